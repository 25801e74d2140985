"""Losses for masks, beside those of :data:`hem.losses.LOSSES`, which all take a label for each pixel as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hem.losses import functional
from hem.losses.arguments import as_tensor
from hem.losses.criteria import Criterion, Weight
from hem.losses.reduction import Reduction, evaluate


def median_frequency_weights(class_frequencies: Sequence[float]) -> Tensor:
    """Class weights w_c = median(f) / f_c.

    f_c is the number of pixels of class c divided by the number of pixels of all images that have the class.

    Args:
        class_frequencies: f, (C), each in (0, 1].

    Returns:
        (C,) float32.

    Raises:
        ValueError: Without frequencies, or with one that is not positive.

    Source: Eigen & Fergus, "Predicting depth, surface normals and semantic labels", ICCV 2015, section 4.3.2;
    Badrinarayanan et al., "SegNet", TPAMI 2017, section 3.

    Example:
        >>> median_frequency_weights([0.5, 0.1, 0.2])
        tensor([0.4000, 2.0000, 1.0000])
    """
    frequencies = as_tensor(class_frequencies, torch.float64)
    if frequencies.ndim != 1 or not bool((frequencies > 0).all()):
        raise ValueError(
            "class_frequencies must hold the share of each class in the images that have it, all above 0, such as "
            f"data_module.class_frequencies; got {frequencies.tolist()}."
        )
    return (frequencies.quantile(0.5) / frequencies).float()


class MedianFrequencyLoss(Criterion):
    """Cross-entropy with :func:`median_frequency_weights`.

    Args:
        weight: Factor per class beside the balancing one, ``(C)``.
        ignore_index: Index of pixels that count for nothing.
        reduction: ``"none"``, ``"mean"`` (weights in the denominator, as torch has it) or ``"sum"``.
        class_frequencies: Share of each class in the images that have it, ``(C)``; required.

    Example:
        >>> MedianFrequencyLoss(class_frequencies=[0.5, 0.1, 0.2], reduction="sum")(
        ...     torch.zeros(1, 3), torch.tensor([1]))
        tensor(2.1972)
    """

    function = staticmethod(functional.ce_loss)

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_frequencies: Sequence[float] = (),
    ) -> None:
        if not len(class_frequencies):
            raise ValueError(
                "class_frequencies is missing: give the share of each class in the images that have it, such as "
                "data_module.class_frequencies."
            )
        balance = median_frequency_weights(class_frequencies)
        super().__init__(balance if weight is None else balance * as_tensor(weight), ignore_index, reduction)


class SumLoss(nn.Module):
    """A weighted sum of losses, Σ_k a_k l_k, such as cross-entropy + Dice.

    Each is the loss of the whole global batch on many devices. With accumulated gradients it is no exact sum:
    the losses' denominators differ and share one factor; see :class:`hem.losses.Accumulation`.

    Args:
        losses: The criteria l_k, each of which gives one number.
        factors: Their factors a_k; None: 1 each.

    Raises:
        ValueError: If there are no losses, or not one factor for each.

    Example:
        >>> loss = SumLoss([nn.CrossEntropyLoss(), nn.CrossEntropyLoss()], [1.0, 0.5])
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(1.0397)
    """

    def __init__(self, losses: list[nn.Module], factors: list[float] | None = None) -> None:
        super().__init__()
        factors = [1.0] * len(losses) if factors is None else factors
        if not losses or len(factors) != len(losses):
            raise ValueError(f"Expected one factor for each loss, got {len(factors)} for {len(losses)} losses.")
        self.losses = nn.ModuleList(losses)
        self.factors = list(factors)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The sum, a scalar."""
        parts = [a * evaluate(loss, input, target) for a, loss in zip(self.factors, self.losses, strict=True)]
        return torch.stack(parts).sum()
