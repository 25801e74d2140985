"""Selective prediction: risk-coverage curve, its area (AURC), and the AUROC of errors.

Scores are unknownness, as in :mod:`hem.rejection`: higher means less sure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hem.metrics.probability import joined
from hem.metrics.samples import rows, wide
from hem.rejection import auroc


def risk_coverage(unknownness: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return the risk-coverage curve: the error rate of the k most confident samples, for every k.

    For k = 1..N: coverage k / N, and risk sum_{i <= k} [i is wrong] / k in the order of the scores. Samples of one
    score come in no order: each of them counts with the mean of them all.

    Args:
        unknownness: (N,), higher means less sure.
        correct: (N,) bool, whether the prediction is right.

    Returns:
        Coverage and risk, (N,) float64 each.

    Raises:
        ValueError: The shapes differ, there is no sample, or a score is NaN.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", JMLR 11, 2010; Geifman &
    El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.

    Example:
        >>> coverage, risk = risk_coverage(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([True, True, False, True]))
        >>> risk.tolist()
        [0.0, 0.0, 0.3333333333333333, 0.25]
    """
    if unknownness.ndim != 1 or correct.shape != unknownness.shape or not len(correct):
        raise ValueError(
            f"Expected a score (N,) and whether it is right (N,) for each of one or more samples, got shapes "
            f"{tuple(unknownness.shape)} and {tuple(correct.shape)}."
        )
    unknownness, wrong = unknownness.detach().cpu().double(), 1 - correct.cpu().double()
    if unknownness.isnan().any():
        raise ValueError(f"Expected numbers as scores, got NaN in {int(unknownness.isnan().sum())} of them.")
    _, group, size = unknownness.unique(sorted=True, return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    mean = torch.bincount(group, weights=wrong) / size
    k = torch.arange(1, len(wrong) + 1, dtype=torch.float64)
    return k / len(wrong), mean.repeat_interleave(size).cumsum(0) / k


def aurc(unknownness: Tensor, correct: Tensor) -> float:
    """Return the area under the risk-coverage curve, the mean of the risk over all coverages; less is better.

    Args, Raises, Source: as :func:`risk_coverage`.

    Example:
        >>> aurc(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([True, True, False, False]))
        0.20833333333333331
    """
    return float(risk_coverage(unknownness, correct)[1].mean())


def error_auroc(unknownness: Tensor, correct: Tensor) -> float:
    """Return the AUROC of misclassification: the probability that an error scores as less confident than a hit.

    Args:
        unknownness: (N,), higher means less sure.
        correct: (N,) bool, whether the prediction is right.

    Returns:
        From 0 to 1, ties counting half; NaN where all samples are right, or all wrong.

    Source: Hendrycks & Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in neural
    networks", ICLR 2017, section 3.

    Example:
        >>> error_auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([True, True, False, True]))
        0.6666666666666667
    """
    correct = correct.bool()
    if correct.all() or not correct.any():
        return float("nan")
    return auroc(unknownness[correct], unknownness[~correct])


class Selective(Metric):
    """:func:`aurc` and :func:`error_auroc` of a score of logits, over batches and processes.

    Args:
        score: Logits (N, C) to unknownness (N,), such as those of :data:`hem.rejection.LOGIT_SCORES`.
        ignore_index: The label of what has none.
        name: Stands behind both names, with a slash.
        **kwargs: See :class:`torchmetrics.Metric`.

    Example:
        >>> from hem.rejection import max_logit
        >>> metric = Selective(max_logit)
        >>> metric.update(torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'aurc': 0.111, 'error_auroc': 1.0}
    """

    unknownness: list[Tensor]
    correct: list[Tensor]

    def __init__(
        self, score: Callable[[Tensor], Tensor], ignore_index: int = -100, name: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.score = score
        self.names = [f"{each}/{name}".rstrip("/") for each in ("aurc", "error_auroc")]
        self.ignore_index = ignore_index
        for name in ("unknownness", "correct"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch: logits (N, C, ...) and class indices (N, ...)."""
        logits, target = rows(logits, target, self.ignore_index)
        self.unknownness.append(wide(self.score(logits)))
        self.correct.append(logits.argmax(1) == target)

    def compute(self) -> dict[str, Tensor]:
        """``aurc`` and ``error_auroc``, scalars; NaN where nothing had a label."""
        parts = joined(self.unknownness), joined(self.correct)
        if not len(parts[0]):
            return dict.fromkeys(self.names, torch.tensor(torch.nan, device=self.device))
        found = aurc(*parts), error_auroc(*parts)
        return {name: torch.tensor(value, device=self.device) for name, value in zip(self.names, found, strict=True)}
