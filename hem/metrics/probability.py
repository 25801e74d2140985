"""Negative log-likelihood, Brier score, calibration error and reliability diagram, from logits.

All take logits: probabilities p are their softmax, and whoever has p hands in ``p.log()``. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from hem.metrics.samples import rows

Binning = Literal["width", "mass"]


Weight = Sequence[float] | Tensor


def negative_log_likelihood(
    logits: Tensor, target: Tensor, ignore_index: int = -100, weight: Weight | None = None
) -> Tensor:
    """Return the mean of -log p_y, in nats.

    Args:
        logits: (N, C) or (N, C, d1, ..., dK).
        target: Class indices, (N) or (N, d1, ..., dK).
        ignore_index: The label of what has none.
        weight: What a sample of each class counts, (C), in a mean for another prior of the classes than the samples
            have: its share of the class over the samples' share. None: 1.

    Returns:
        A scalar, float64; NaN where nothing has a label.

    Raises:
        TypeError: The logits are no floating point numbers, or the target is no integers.
        ValueError: The shapes do not fit, a logit is NaN, or a label is no class.

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([0]))
        tensor(0.2877, dtype=torch.float64)
    """
    return _mean(NegativeLogLikelihood(ignore_index, weight), logits, target)


def brier_score(logits: Tensor, target: Tensor, ignore_index: int = -100, weight: Weight | None = None) -> Tensor:
    """Return the mean of sum_j (p_j - [j = y])^2, from 0 (sure and right) to 2 (sure and wrong).

    Args, Returns, Raises: as :func:`negative_log_likelihood`.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.

    Example:
        >>> brier_score(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([0]))
        tensor(0.1250, dtype=torch.float64)
    """
    return _mean(BrierScore(ignore_index, weight), logits, target)


def _mean(metric: _Mean, logits: Tensor, target: Tensor) -> Tensor:
    metric.update(logits, target)
    found: Tensor = metric.compute()
    return found.to(logits.device)


def _squares(logits: Tensor, target: Tensor) -> Tensor:
    probabilities = logits.softmax(1)
    own = probabilities.gather(1, target[:, None]).squeeze(1)
    return probabilities.square().sum(1) - own.square() + (1 - own).square()


class Reliability(NamedTuple):
    """A reliability diagram: samples, confidence and accuracy per bin of confidence."""

    size: Tensor  # (B,) float64, the samples or the sum of their weights
    confidence: Tensor  # (B,) float64, their mean confidence; NaN for an empty bin
    accuracy: Tensor  # (B,) float64, the share of them that is right; NaN for an empty bin

    @property
    def error(self) -> Tensor:
        """The calibration error: sum_b n_b / N |accuracy_b - confidence_b|, a scalar; NaN without a sample."""
        share = self.size / self.size.sum()
        return (share * (self.accuracy - self.confidence).abs())[self.size > 0].sum() + 0 * share.sum()


def reliability(
    confidence: Tensor, correct: Tensor, bins: int = 15, binning: Binning = "width", weight: Tensor | None = None
) -> Reliability:
    """Sort samples into bins of confidence.

    Of equal width: bin b = 1..B holds the confidences in ((b - 1) / B, b / B], so that 1 is in the last bin. Of equal
    mass: the edges are the quantiles b / B of the confidences (without weights); equal confidences are in one bin,
    whatever their order.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) bool, whether the prediction is right.
        bins: B >= 1.
        binning: ``"width"`` or ``"mass"``.
        weight: What each sample counts, (N,); None: 1.

    Raises:
        ValueError: ``bins`` or ``binning`` is none of those, the shapes differ, or a confidence is outside [0, 1].

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 2 (equal width); Nguyen &
    O'Connor, "Posterior calibration and exploratory analysis", EMNLP 2015 (equal mass).

    Example:
        >>> found = reliability(torch.tensor([0.6, 0.8, 1.0]), torch.tensor([True, False, True]), bins=2)
        >>> found.size.tolist(), round(found.confidence[1].item(), 4), round(found.accuracy[1].item(), 4)
        ([0.0, 3.0], 0.8, 0.6667)
    """
    _check_bins(bins, binning)
    if confidence.ndim != 1 or correct.shape != confidence.shape:
        raise ValueError(
            f"Expected a confidence (N,) and whether it is right (N,) for each sample, got shapes "
            f"{tuple(confidence.shape)} and {tuple(correct.shape)}."
        )
    confidence, correct = confidence.detach().cpu().double(), correct.cpu().double()
    if len(confidence) and not (confidence.amin() >= 0 and confidence.amax() <= 1):
        raise ValueError(
            f"Expected confidences from 0 to 1, got {confidence.amin():g} to {confidence.amax():g}: hand in "
            "probabilities, such as the largest of a softmax."
        )
    if binning == "width":
        inner = torch.arange(1, bins, dtype=torch.float64) / bins
    elif len(confidence):
        # by sorting, for torch.quantile takes at most 16 million values
        place = torch.arange(1, bins, dtype=torch.float64) / bins * (len(confidence) - 1)
        ordered = confidence.sort().values
        below, above = ordered[place.floor().long()], ordered[place.ceil().long()]
        inner = below + (place - place.floor()) * (above - below)
    else:
        inner = torch.zeros(bins - 1, dtype=torch.float64)
    where = torch.searchsorted(inner, confidence)  # inner[b - 1] < confidence <= inner[b]
    each = torch.ones_like(confidence) if weight is None else weight.detach().cpu().double()
    size, *sums = (
        torch.bincount(where, weights=each * values, minlength=bins)
        for values in (torch.ones_like(confidence), confidence, correct)
    )
    return Reliability(size, *(total / size for total in sums))


def _check_bins(bins: int, binning: str) -> None:
    if bins < 1:
        raise ValueError(f"Expected bins as a number, 1 or more, got {bins}: 15 is usual.")
    if binning not in get_args(Binning):
        raise ValueError(f"Expected binning as 'width' or 'mass', got {binning!r}.")


def calibration_error(
    logits: Tensor,
    target: Tensor,
    bins: int = 15,
    binning: Binning = "width",
    ignore_index: int = -100,
    weight: Weight | None = None,
) -> Tensor:
    """Return the expected calibration error: sum_b n_b / N |accuracy_b - confidence_b| over bins of confidence.

    A sample's confidence is its largest probability, and the accuracy that of its most probable class. The bins are
    those of :func:`reliability`. (That of torchmetrics 1.9 has a bin of its own for confidences of exactly 1, which the
    definition has not.)

    Args:
        logits: (N, C) or (N, C, d1, ..., dK).
        target: Class indices, (N) or (N, d1, ..., dK).
        bins: Their number.
        binning: Of equal ``"width"`` or of equal ``"mass"``.
        ignore_index: The label of what has none.
        weight: What a sample of each class counts, (C), as in :func:`negative_log_likelihood`.

    Returns:
        A scalar in [0, 1], float64; NaN where nothing has a label.

    Raises:
        TypeError: The logits are no floating point numbers, or the target is no integers.
        ValueError: The shapes do not fit, a logit is NaN, a label is no class, or the bins are none.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; Guo et al.,
    "On calibration of modern neural networks", ICML 2017, equation 3.

    Example:
        >>> calibration_error(torch.tensor([[0.6, 0.4], [0.2, 0.8]]).log(), torch.tensor([0, 0]))
        tensor(0.6000, dtype=torch.float64)
    """
    metric = CalibrationError(bins, binning, ignore_index, weight)
    metric.update(logits, target)
    found: Tensor = metric.compute()
    return found.to(logits.device)


def confidences(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each sample, (N,), and whether its most probable class is right, (N,) bool."""
    # softmax may round a little above 1
    return logits.softmax(1).amax(1).clamp(max=1), logits.argmax(1) == target


def _counts(weight: Weight | None, logits: Tensor, target: Tensor) -> Tensor:
    """The weight of each sample, (N,), in the logits' dtype."""
    if weight is None:
        return torch.ones_like(target, dtype=logits.dtype)
    of_class = torch.as_tensor(weight, dtype=logits.dtype, device=logits.device)
    if of_class.shape != logits.shape[1:] or not (of_class >= 0).all():
        raise ValueError(
            f"Expected a weight of 0 or more for each of {logits.shape[1]} classes, got shape {tuple(of_class.shape)}"
            f"{f', the least of them {of_class.min():g}' if of_class.numel() else ''}."
        )
    return of_class[target]


class _Mean(Metric):
    """A mean over all labelled samples of all processes."""

    total: Tensor
    count: Tensor

    def __init__(self, ignore_index: int = -100, weight: Weight | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.weight = weight
        # they become float64 with the first batch, where the device has that
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """The value of each sample."""
        raise NotImplementedError

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch: logits (N, C, ...) and class indices (N, ...)."""
        logits, target = rows(logits, target, self.ignore_index)
        counts = _counts(self.weight, logits, target)
        self.total = self.total + (counts * self.each(logits, target)).sum()
        self.count = self.count + counts.sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN where nothing had a label."""
        return self.total / self.count


class NegativeLogLikelihood(_Mean):
    """:func:`negative_log_likelihood` over batches and processes.

    Example:
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(1.3863, dtype=torch.float64)
    """

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """-log p_y of each sample."""
        return F.cross_entropy(logits, target, reduction="none")


class BrierScore(_Mean):
    """:func:`brier_score` over batches and processes.

    Example:
        >>> metric = BrierScore()
        >>> metric.update(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """sum_j (p_j - [j = y])^2 of each sample."""
        return _squares(logits, target)


class CalibrationError(Metric):
    """:func:`calibration_error` over batches and processes; :meth:`diagram` is what it is made of.

    Args:
        bins: Their number.
        binning: Of equal ``"width"`` or of equal ``"mass"``.
        ignore_index: The label of what has none.
        weight: What a sample of each class counts, (C), as in :func:`negative_log_likelihood`.
        **kwargs: See :class:`torchmetrics.Metric`.

    Raises:
        ValueError: The bins are none.

    Example:
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[0.6, 0.4], [0.2, 0.8]]).log(), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(0.6000, dtype=torch.float64)
    """

    confidence: list[Tensor]
    correct: list[Tensor]
    counts: list[Tensor]

    def __init__(
        self,
        bins: int = 15,
        binning: Binning = "width",
        ignore_index: int = -100,
        weight: Weight | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_bins(bins, binning)
        self.bins = bins
        self.binning = binning
        self.ignore_index = ignore_index
        self.weight = weight
        for name in ("confidence", "correct", "counts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch: logits (N, C, ...) and class indices (N, ...)."""
        logits, target = rows(logits, target, self.ignore_index)
        confidence, correct = confidences(logits, target)
        self.confidence.append(confidence)
        self.correct.append(correct)
        self.counts.append(_counts(self.weight, logits, target))

    def diagram(self, binning: Binning | None = None) -> Reliability:
        """The bins, of this process's samples; of all processes' within ``compute`` or ``sync_context``."""
        confidence, correct, counts = (joined(each) for each in (self.confidence, self.correct, self.counts))
        return reliability(confidence, correct, self.bins, self.binning if binning is None else binning, counts)

    def compute(self) -> Tensor:
        """The error, a scalar; NaN where nothing had a label."""
        return self.diagram().error.to(self.device)


def joined(parts: list[Tensor] | Tensor) -> Tensor:
    """A list state of torchmetrics as one tensor: a list before processes are joined, a tensor after."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.empty(0)
