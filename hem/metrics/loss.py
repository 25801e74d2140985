"""Mean loss of a data set, over all labelled samples and over those whose loss is not 0."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchmetrics import Metric

from hem.metrics.catalog import ACTIVE, ACTIVE_LOSS, LOSS
from hem.metrics.samples import wide


def sample_losses(criterion: nn.Module, logits: Tensor, target: Tensor) -> Tensor | None:
    """Return the loss of each sample, without gradient; None for a loss that is no mean over samples (Dice).

    Args:
        criterion: Any loss with torch's ``reduction``.
        logits: Shape (N, C, ...).
        target: Class indices (N, ...) or class probabilities (N, C, ...).

    Example:
        >>> sample_losses(nn.CrossEntropyLoss(), torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    if not (hasattr(criterion, "reduction") and getattr(criterion, "of_samples", True)):
        return None
    alike = copy.copy(criterion)
    alike.reduction = "none"  # type: ignore[assignment]
    weight = getattr(criterion, "weight", None)  # of the model's precision, which torch's losses ask of logits as well
    buffers = {"weight": weight.to(logits.dtype)} if isinstance(weight, Tensor) else {}
    with torch.no_grad():
        losses: Tensor = functional_call(alike, buffers, (logits, target))
    return losses if losses.shape == logits.select(1, 0).shape else None


class MeanLoss(Metric):
    """Mean loss over all labelled samples, whatever the loss divides by in training.

    HEM's own mean is over the samples that still carry error. It rises while fewer and fewer of them do, the hard ones:
    no measure of progress. Here are, with l_i the loss of sample i and N the labelled samples,

    * ``loss`` = sum_i l_i / N, which falls;
    * ``active`` = |{i : l_i > 0}| / N, the share of samples that still carry error;
    * ``active_loss`` = sum_i l_i / |{i : l_i > 0}|, HEM's own mean.

    A loss that is no mean over samples (Dice) has ``loss`` alone, the mean over batches weighted by their samples.

    Args:
        criterion: The loss.
        ignore_index: The label of what has none; None: the loss's own, or torch's -100.

    Example:
        >>> from hem.losses import HEMLoss
        >>> metric = MeanLoss(HEMLoss(margin=1.0))
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 0]))
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'loss': 0.25, 'active': 0.5, 'active_loss': 0.5}
    """

    total: Tensor
    active: Tensor
    samples: Tensor
    others: Tensor

    def __init__(self, criterion: nn.Module, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = getattr(criterion, "ignore_index", -100) if ignore_index is None else ignore_index
        self.criterion = (criterion,)  # no part of the metric, which would otherwise save and move it
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        for name in ("active", "samples", "others"):  # others: samples of which the loss gives no single one
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch: logits (N, C, ...), class indices (N, ...) or class probabilities (N, C, ...)."""
        (criterion,) = self.criterion
        if target.is_floating_point():
            labelled = (target.sum(1) != 0).sum()  # a row of zero probabilities has no label
        else:
            labels = target if logits.shape != target.shape else target.select(1, 0)
            labelled = (labels != self.ignore_index).sum()
        losses = sample_losses(criterion, logits, target)
        if losses is None:
            self.total = self.total + wide(criterion(logits, target)) * labelled
            self.others = self.others + labelled
        else:
            self.total = self.total + wide(losses).sum()
            self.active = self.active + (losses != 0).sum()  # a NaN counts as an error
        self.samples = self.samples + labelled

    def compute(self) -> dict[str, Tensor]:
        """``loss``, ``active`` and ``active_loss``, scalars; those without samples are left out."""
        if not self.samples:
            return {}
        found = {LOSS.path: self.total / self.samples}
        if not self.others:
            found[ACTIVE.path] = self.active / self.samples
            if self.active:
                found[ACTIVE_LOSS.path] = self.total / self.active
        return found


class MeanOf(Metric):
    """The mean of a function of logits and target over all samples.

    Args:
        function: Logits (N, C) and class indices (N,) to a number of each sample (N,).
    """

    total: Tensor
    samples: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch."""
        values = wide(self.function(logits, target))
        self.total, self.samples = self.total + values.sum(), self.samples + len(values)

    def compute(self) -> Tensor:
        """The mean; NaN without samples."""
        return self.total / self.samples
