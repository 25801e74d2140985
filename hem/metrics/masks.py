"""IoU and accuracy per class, over the pixels of a whole data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from hem.metrics import catalog


def iou(matrix: Tensor) -> Tensor:
    """Return the intersection over union of each class, of the pixels of a whole data set.

    With M_ab pixels of class a that are predicted as b, IoU_c = M_cc / (Σ_b M_cb + Σ_a M_ac - M_cc).

    Args:
        matrix: Confusion matrix (C, C), rows the truth; pixels without a label are not in it.

    Returns:
        (C,) float64; NaN for a class that is neither there nor predicted.

    Example:
        >>> iou(torch.tensor([[6, 2, 0], [0, 2, 0], [0, 0, 0]]))
        tensor([0.7500, 0.5000,    nan], dtype=torch.float64)
    """
    matrix = matrix.double()
    right = matrix.diagonal()
    return right / (matrix.sum(0) + matrix.sum(1) - right)


def class_accuracy(matrix: Tensor) -> Tensor:
    """Return the share of each class's pixels that are predicted as it: (C,) float64; NaN for one that is not there.

    Example:
        >>> class_accuracy(torch.tensor([[6, 2], [0, 0]]))
        tensor([0.7500,    nan], dtype=torch.float64)
    """
    matrix = matrix.double()
    return matrix.diagonal() / matrix.sum(1)


class Overlap(MulticlassConfusionMatrix):
    """Mean IoU, IoU per class and accuracies; NaN for absent classes.

    Args:
        class_names: Name of each class, C of them.
        ignore_index: The label of pixels without one.

    Example:
        >>> overlap = Overlap(["sky", "road"])
        >>> overlap.update(torch.tensor([[[[2.0, 0.0]], [[1.0, 1.0]]]]), torch.tensor([[[0, 0]]]))
        >>> {name: round(value.item(), 2) for name, value in overlap.compute().items()}
        {'miou': 0.25, 'mean_accuracy': 0.5, 'accuracy': 0.5, 'iou/sky': 0.5, 'iou/road': 0.0}
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int = 255) -> None:
        super().__init__(len(class_names), ignore_index=ignore_index, validate_args=False)
        self.class_names = class_names
        self.matrix = torch.empty(0, 0)  # the confusion matrix, as last computed: (C, C), rows the truth

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """The metrics, by their names."""
        self.matrix = super().compute()
        each, recall = iou(self.matrix), class_accuracy(self.matrix)
        return {
            catalog.MIOU.path: each.nanmean(),
            catalog.MEAN_ACCURACY.path: recall.nanmean(),
            catalog.ACCURACY.path: self.matrix.diagonal().sum() / self.matrix.sum(),
            **{catalog.IOU.key(name=name): value for name, value in zip(self.class_names, each, strict=True)},
        }
