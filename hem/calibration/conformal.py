"""Split conformal prediction: sets of classes that contain the true one with a chosen probability.

torchcp has these as well, but needs transformers and torch_geometric.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hem.calibration.scaling import Scaling, Temperature
from hem.metrics.samples import rows, wide

Score = Literal["lac", "aps", "raps"]


def nonconformity(probabilities: Tensor, score: Score = "aps", penalty: float = 0.01, free: int = 5) -> Tensor:
    """Return how badly each class of each sample fits what the network says, (N, C).

    * ``lac``: 1 - p_j, which gives the smallest sets on average (Sadinle et al. 2019).
    * ``aps``: the sum of the probabilities from the largest down to p_j: sets grow where the network is unsure
      (Romano et al. 2020, without randomisation).
    * ``raps``: ``aps`` plus ``penalty`` for every rank behind the first ``free``, which cuts off the long tails of
      hundreds of improbable classes (Angelopoulos et al. 2021).

    Args:
        probabilities: (N, C).
        score: Which.
        penalty: lambda of ``raps``.
        free: k_reg of ``raps``.

    Raises:
        ValueError: There is no such score.

    Source: Sadinle et al., "Least ambiguous set-valued classifiers with bounded error levels", JASA 2019; Romano et
    al., "Classification with valid and adaptive coverage", NeurIPS 2020; Angelopoulos et al., "Uncertainty sets for
    image classifiers using conformal prediction", ICLR 2021.

    Example:
        >>> nonconformity(torch.tensor([[0.25, 0.5, 0.125, 0.125]]))
        tensor([[0.7500, 0.5000, 0.8750, 1.0000]])
    """
    if score not in get_args(Score):
        raise ValueError(f"Expected score as one of {', '.join(get_args(Score))}, got {score!r}.")
    if score == "lac":
        return 1 - probabilities
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    sums = ordered.cumsum(1)
    if score == "raps":
        rank = torch.arange(1, probabilities.shape[1] + 1, device=probabilities.device)
        sums = sums + penalty * (rank - free).clamp(min=0)
    return torch.zeros_like(sums).scatter(1, order, sums)


class PredictionSets(nn.Module):
    """Which classes belong to each sample's set: those whose nonconformity is at most the threshold.

    The most probable class always belongs to it: an empty set says less than a class that may be wrong.

    Args:
        probabilities: Logits to probabilities: a :class:`~hem.calibration.Temperature` or such.
        threshold: The largest nonconformity of a class that belongs to a set.
        coverage: The probability that a set holds the true class; nothing is computed from it.
        score: See :func:`nonconformity`.
        penalty: See :func:`nonconformity`.
        free: See :func:`nonconformity`.
    """

    def __init__(
        self,
        probabilities: Scaling,
        threshold: float,
        coverage: float,
        score: Score = "aps",
        penalty: float = 0.01,
        free: int = 5,
    ) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.threshold = float(threshold)  # no buffer, whose float32 would not tell sums close to 1 apart
        self.coverage = coverage
        self.score: Score = score
        self.penalty = penalty
        self.free = free

    def get_extra_state(self) -> float:
        """Return the threshold, for the state dict."""
        return self.threshold

    def set_extra_state(self, state: float) -> None:
        """Take the threshold of a state dict."""
        self.threshold = state

    def forward(self, logits: Tensor) -> Tensor:
        """Return which classes are in the set of each sample: logits (N, C) to bool (N, C)."""
        probabilities = self.probabilities(wide(torch.as_tensor(logits)))  # as the threshold was found
        inside = nonconformity(probabilities, self.score, self.penalty, self.free) <= self.threshold
        return inside.scatter(1, probabilities.argmax(1, keepdim=True), True)


def conformal(
    logits: Tensor,
    target: Tensor,
    coverage: float = 0.9,
    score: Score = "aps",
    *,
    probabilities: Scaling | None = None,
    penalty: float = 0.01,
    free: int = 5,
) -> PredictionSets:
    """Find the threshold that makes sets hold the true class with a chosen probability.

    Of the N scores of the true classes the ceil((N + 1) coverage)-th smallest: for samples exchangeable with these a
    set then holds its true class with at least that probability, whatever the network. The guarantee is of all samples
    together, not of each class; and it asks for probabilities that were fitted on other samples (a single temperature
    of the same ones moves it by about 1 / N).

    Args:
        logits: (N, C), of held-out samples.
        target: Class indices (N).
        coverage: 1 - alpha, in (0, 1).
        score: See :func:`nonconformity`.
        probabilities: Logits to probabilities; None: softmax.
        penalty: See :func:`nonconformity`.
        free: See :func:`nonconformity`.

    Raises:
        TypeError: The logits are no floating point numbers, or the target is no integers.
        ValueError: The coverage is out of range, or takes more samples than there are.

    Source: Vovk et al., "Algorithmic learning in a random world", 2005; Angelopoulos & Bates, "A gentle introduction to
    conformal prediction", 2021, section 1.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]]).repeat(10, 1)
        >>> sets = conformal(logits, torch.tensor([0] * 8 + [1] * 2), coverage=0.7, score="lac")
        >>> sets(torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.0, 0.0]]))
        tensor([[ True, False, False],
                [ True, False, False]])
    """
    if not 0 < coverage < 1:
        raise ValueError(f"Expected a coverage between 0 and 1, got {coverage}: 0.9 is usual.")
    logits, target = rows(torch.as_tensor(logits), torch.as_tensor(target))
    place = math.ceil((len(target) + 1) * coverage - 1e-9)
    if place > len(target):
        raise ValueError(
            f"Expected at least {math.ceil(coverage / (1 - coverage) - 1e-9)} samples for a coverage of {coverage:g}, "
            f"got {len(target)}: hand in more, or ask for less."
        )
    probabilities = Temperature() if probabilities is None else probabilities
    worst = nonconformity(probabilities(logits), score, penalty, free).gather(1, target[:, None]).squeeze(1)
    threshold = float(worst.kthvalue(place).values)
    return PredictionSets(probabilities, threshold, coverage, score, penalty, free).to(logits.device)
