"""Rejector: a threshold on a score that accepts a chosen share of the correctly classified samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hem.rejection.curves import checked
from hem.rejection.logits import LOGIT_SCORES


def accept_threshold(scores: Tensor, keep: float = 0.95) -> float:
    """Return the smallest score at which ``score <= threshold`` accepts the share ``keep`` of the samples.

    Of the scores of rightly classified clean validation samples this is, for keep = 0.95, the 5th percentile
    of their confidence.

    Args:
        scores: Unknownness, (N,).
        keep: Share in (0, 1].

    Raises:
        ValueError: No score, a NaN, or ``keep`` out of range.

    Example:
        >>> import torch
        >>> accept_threshold(torch.arange(100.0), keep=0.95)
        94.0
    """
    if not 0 < keep <= 1:
        raise ValueError(f"Expected keep, the share of samples to accept, in (0, 1], got {keep}: 0.95 is usual.")
    scores, _ = checked(scores, scores)
    rank = math.ceil(keep * len(scores) - 1e-9)  # 0.07 * 100 is a little more than 7
    return float(scores.kthvalue(max(1, rank)).values)


def detection_accuracy(scores: Tensor, correct: Tensor | bool, threshold: float, *, strict: bool = False) -> float:
    """Return the detection accuracy rate (DAR): the share of samples treated correctly at a threshold.

    A known sample is treated rightly when it is accepted and classified rightly, or classified wrongly and
    rejected; an unknown one when it is rejected. Both are ``accepted == correct``, an unknown sample being
    never classified rightly.

    Args:
        scores: Unknownness of samples of one kind, (N,).
        correct: Which are classified rightly, (N,) bool; ``False`` for unknown samples.
        threshold: From :func:`accept_threshold`.
        strict: Rejecting a known sample is never right, even where it is misclassified. For unknown samples
            (``correct=False``) there is no difference.

    Source: Spratling, "A comprehensive assessment benchmark for rigorously evaluating deep learning image
    classifiers", Neural Networks 192, 2025; the threshold and the strict variant are our choices.

    Example:
        >>> import torch
        >>> scores, correct = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([True, False, True, False])
        >>> detection_accuracy(scores, correct, 1.0), detection_accuracy(scores, correct, 1.0, strict=True)
        (0.5, 0.25)
        >>> detection_accuracy(torch.tensor([0.0, 2.0]), False, 1.0)
        0.5
    """
    scores, _ = checked(scores, scores)
    accepted = scores <= threshold
    if isinstance(correct, bool):
        return float((accepted == correct).double().mean())
    correct = torch.as_tensor(correct).cpu().bool()
    return float(((accepted & correct) if strict else (accepted == correct)).double().mean())


class Rejector(NamedTuple):
    """Accepts a sample where the score of its logits is at most the threshold."""

    score: str  #: one of LOGIT_SCORES
    threshold: float
    keep: float  #: the share of rightly classified validation samples that it accepts
    weights: str  #: identity of the network that the threshold belongs to

    def unknownness(self, logits: Tensor) -> Tensor:
        """Return the score of each sample, (N, C) -> (N,): higher means more unknown."""
        return LOGIT_SCORES[self.score](logits)

    def accepts(self, unknownness: Tensor) -> Tensor:
        """Return which samples are accepted as known, (N,) bool."""
        return unknownness.double() <= self.threshold
