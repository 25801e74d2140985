"""AUROC, AUPR, FPR at 95 % and OSCR, of the scores of known and of unknown samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def checked(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Return both samples of scores, also of arrays or lists, in float64 on the CPU.

    Raises:
        ValueError: One is empty, no vector or has a NaN.
    """
    known, unknown = (torch.as_tensor(scores, dtype=torch.float64) for scores in (known, unknown))
    for kind, scores in (("known", known), ("unknown", unknown)):
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(
                f"Expected the scores of the {kind} samples as a vector of one or more, "
                f"got shape {tuple(scores.shape)}."
            )
        if scores.isnan().any():
            raise ValueError(
                f"{int(scores.isnan().sum())} of {len(scores)} scores of the {kind} samples are NaN: "
                "the network's logits are not finite."
            )
    return known.detach().cpu(), unknown.detach().cpu()


def _labelled(known: Tensor, unknown: Tensor) -> tuple[Any, Any]:
    """Return labels (1: unknown) and ranks of both samples, as scikit-learn takes them: it refuses infinite scores."""
    scores = torch.cat(checked(known, unknown))
    _, rank = scores.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return (torch.arange(len(scores)) >= len(known)).numpy(), rank.numpy()


class Roc(NamedTuple):
    """A ROC curve with unknown as the positive class: what is rejected where ``score >= threshold``."""

    fpr: Tensor  # share of the known that is rejected, ascending from 0 to 1
    tpr: Tensor  # share of the unknown that is rejected
    threshold: Tensor  # descending from +inf


def roc(known: Tensor, unknown: Tensor) -> Roc:
    """The ROC curve at every distinct score, as ``sklearn.metrics.roc_curve(drop_intermediate=False)``.

    Args:
        known: Unknownness of the known samples, (N,).
        unknown: Unknownness of the unknown samples, (M,).

    Raises:
        ValueError: A sample of scores is empty, no vector or has a NaN.

    Example:
        >>> curve = roc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        >>> curve.fpr.tolist(), curve.tpr.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    from sklearn.metrics import roc_curve  # takes a second to load

    known, unknown = checked(known, unknown)
    fpr, tpr, _ = roc_curve(*_labelled(known, unknown), drop_intermediate=False)
    threshold = torch.cat([known, unknown]).unique().flip(0)  # type: ignore[no-untyped-call]
    return Roc(torch.from_numpy(fpr), torch.from_numpy(tpr), torch.cat([threshold.new_tensor([torch.inf]), threshold]))


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Area under the ROC curve: P(unknown > known) + P(unknown = known) / 2.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(known, unknown)))


def aupr_out(known: Tensor, unknown: Tensor) -> float:
    """Average precision with the unknown as positives: sum_n (R_n - R_{n-1}) P_n, as scikit-learn's.

    Example:
        >>> round(aupr_out(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])), 4)
        0.8333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(known, unknown)))


def aupr_in(known: Tensor, unknown: Tensor) -> float:
    """Average precision with the known as positives, by confidence (the score with its sign changed)."""
    known, unknown = checked(known, unknown)
    return aupr_out(-unknown, -known)


def fpr95_unknown_positive(known: Tensor, unknown: Tensor) -> float:
    """Share of the known that is rejected where at least 95 % of the unknown is: OpenOOD's FPR@95.

    Example:
        >>> fpr95_unknown_positive(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.5
    """
    curve = roc(known, unknown)
    return float(curve.fpr[int((curve.tpr >= 0.95).int().argmax())])


def fpr95_known_positive(known: Tensor, unknown: Tensor) -> float:
    """Share of the unknown that is accepted where at least 95 % of the known is: the older FPR@95."""
    known, unknown = checked(known, unknown)
    return fpr95_unknown_positive(-unknown, -known)


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr95_unknown_positive": fpr95_unknown_positive,
    "fpr95_known_positive": fpr95_known_positive,
}
"""Metrics of the scores of known and of unknown inputs, by name."""


def oscr_curve(known: Tensor, correct: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """The open-set classification rate curve, over every threshold t on unknownness u.

    CCR(t) = #{known, rightly classified, u <= t} / #known against FPR(t) = #{unknown, u <= t} / #unknown.

    Args:
        known: Unknownness of the known samples, (N,).
        correct: Which of them are classified rightly, (N,) bool.
        unknown: Unknownness of the unknown samples, (M,).

    Returns:
        FPR and CCR, ascending from 0.

    Raises:
        ValueError: As :func:`roc`, or ``correct`` has another length.

    Source: Dhamija et al., "Reducing network agnostophobia", NeurIPS 2018, equations 5 and 6.
    """
    known, correct = torch.as_tensor(known, dtype=torch.float64), torch.as_tensor(correct)
    if correct.shape != known.shape:
        raise ValueError(
            f"Expected one `correct` per known sample, got shapes {tuple(correct.shape)} and {tuple(known.shape)}."
        )
    known, unknown = checked(known, unknown)
    correct = correct.cpu().bool()
    if not correct.any():
        return torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double()
    curve = roc(known[correct], unknown)  # what is not rejected is accepted
    return (1 - curve.tpr).flip(0), (1 - curve.fpr).flip(0) * correct.double().mean()


def oscr(known: Tensor, correct: Tensor, unknown: Tensor) -> float:
    """Area under the open-set classification rate curve, 1 at best and never above the accuracy.

    Example:
        >>> known, correct = torch.tensor([0.0, 1.0]), torch.tensor([True, False])
        >>> oscr(known, correct, torch.tensor([2.0, 3.0]))
        0.5
    """
    fpr, ccr = oscr_curve(known, correct, unknown)
    return float(torch.trapezoid(ccr, fpr))
