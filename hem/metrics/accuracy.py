"""The accuracy of each class, which is no number for a class without a sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy


class ClassAccuracy(MulticlassAccuracy):
    """The share of each class's samples that are classified rightly: (C,), NaN where a class has none.

    torchmetrics has 0 there, which reads as a class of which everything is wrong.

    Args:
        num_classes: C.

    Example:
        >>> import torch
        >>> accuracy = ClassAccuracy(3)
        >>> accuracy.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        >>> accuracy.compute()
        tensor([0.5000, 1.0000,    nan])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none", validate_args=False)

    def compute(self) -> Tensor:
        """Right of all, for each class; torchmetrics has gathered the counts of all processes before."""
        right: Any = self.tp
        missed: Any = self.fn
        accuracy: Tensor = right / (right + missed)
        return accuracy
