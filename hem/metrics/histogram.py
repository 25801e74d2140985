"""AUROC from a fixed histogram over the top 20 bits of float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

BITS = 20  # of 32: sign, exponent and 11 bits of the mantissa


class ScoreHistogram(Metric):
    """The AUROC of unknownness scores over any number of samples, in 16 MB.

    A float's bits, read as an integer, are ordered as the float is (negative ones in reverse). The first 20 of
    them are the bin: scores of one bin differ by less than 2^-11 of their size and count as ties. With k_b known
    and u_b unknown samples in bin b,

        AUROC = Σ_b u_b (Σ_{a < b} k_a + k_b / 2) / (Σ_b u_b Σ_b k_b).

    Args:
        score: Logits (M, C) to unknownness (M,), of what :meth:`update` is given; None: it is given scores.

    Example:
        >>> histogram = ScoreHistogram()
        >>> histogram.update(torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([False, False, True, True]))
        >>> histogram.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    known: Tensor
    unknown: Tensor

    def __init__(self, score: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.score = score
        for name in ("known", "unknown"):
            self.add_state(name, torch.zeros(2**BITS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, unknown: Tensor) -> None:
        """Take scores, higher = more unknown, or logits (M, C), and which samples are unknown."""
        place = bins((scores if self.score is None else self.score(scores)).flatten())
        flags = unknown.flatten()
        self.known += torch.bincount(place[~flags], minlength=2**BITS)
        self.unknown += torch.bincount(place[flags], minlength=2**BITS)

    def compute(self) -> Tensor:
        """The AUROC; NaN where there is nothing known or nothing unknown."""
        known, unknown = self.known.double(), self.unknown.double()
        below = known.cumsum(0) - known / 2
        return (unknown * below).sum() / (unknown.sum() * known.sum())


def bins(scores: Tensor) -> Tensor:
    """Return the bin of each score: int64 in 0..2^BITS - 1, ordered as the scores are.

    Example:
        >>> place = bins(torch.tensor([-torch.inf, -2.0, -0.0, 0.0, 1.0, 1.001, torch.inf]))
        >>> bool((place.diff() >= 0).all()), bool(place[2] == place[3]), bool(place[4] < place[5])
        (True, True, True)
    """
    bits = (scores.float() + 0.0).view(torch.int32).long()  # -0.0 + 0.0 is 0.0
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + 2**31  # monotone, 0..2^32 - 1
    return ordered >> (32 - BITS)
