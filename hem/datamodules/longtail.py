"""A long tail cut from any data set, and classes drawn more or less often than they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hem.rng import key, uniform

DRAWS = -2  # the words of a key end in it where classes and samples are drawn


class Subset(ABC):
    """A fixed selection from the training part: a long tail, some classes, a few labels."""

    @abstractmethod
    def counts(self, class_counts: list[int]) -> list[int]:
        """How many samples of each class remain of ``class_counts``; must not need the data."""

    @abstractmethod
    def select(self, targets: Tensor) -> Tensor:
        """Positions (K,) in ``targets`` (N,) of the samples that remain, per class as many as counted."""


class Sampling(ABC):
    """Which training samples an epoch takes, in which order: other than each of them once."""

    @abstractmethod
    def draw(self, targets: Tensor, seed: int, epoch: int) -> Tensor:
        """Positions (N,) in ``targets`` (N,), repeats among them; a function of targets, seed and epoch alone."""


class LongTail(Subset):
    """Keep so many samples of each class that the first has ``imbalance`` times as many as the last.

    With classes i = 0..C-1 in the order of the data set, r_i = IF^(-i / (C-1)) for the profile ``exponential``,
    and r_i = 1 for i < floor(C / 2), else 1 / IF, for ``step``:

        n_i = floor(n_max r_i),  n_max = min_i s_i / r_i,

    where s_i samples are there: n_max is the largest number for which every class can fill its place (the size
    of a class, where all are of one size). From the whole training part of CIFAR-10 (``val_fraction`` 0) and
    IF = 100 that gives the published 5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50.

    Which samples: those that the authors' code takes, the first n_i after ``np.random.seed(seed)`` and
    ``np.random.shuffle`` of each class's positions in turn. The same seed and data give the same samples, and a
    milder imbalance holds a stronger one's.

    Args:
        imbalance: IF >= 1, samples of the most over those of the rarest class.
        profile: ``exponential`` or ``step``.
        seed: Chooses the samples; 0 in the literature.

    Raises:
        ValueError: ``imbalance`` is below 1; or, once the classes' sizes are known, one is left without samples.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, section 5.1
    (exponential); Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
    NeurIPS 2019, section 4 and the authors' code (both, and the choice of samples).

    Example:
        >>> LongTail(100).counts([5000] * 10)
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
        >>> LongTail(10, "step").counts([500, 700, 100])
        [500, 50, 50]
    """

    def __init__(
        self, imbalance: float = 100.0, profile: Literal["exponential", "step"] = "exponential", seed: int = 0
    ) -> None:
        if not 1 <= imbalance < float("inf"):
            raise ValueError(
                f"imbalance is samples of the most frequent class over those of the rarest, 1 or more, but it is "
                f"{imbalance:g}: give {'its inverse, ' + format(1 / imbalance, 'g') if 0 < imbalance < 1 else '100'}."
            )
        if profile not in ("exponential", "step"):
            raise ValueError(f"profile is 'exponential' or 'step', but it is '{profile}'.")
        self.imbalance = imbalance
        self.profile = profile
        self.seed = seed

    def counts(self, class_counts: Sequence[int]) -> list[int]:
        """How many samples of each class remain.

        Raises:
            ValueError: A class is left without samples.
        """
        classes = len(class_counts)
        if 0 in class_counts:
            raise ValueError(
                f"A long tail needs samples of every class, but class {list(class_counts).index(0)} has none: "
                "leave the class out, or bring some."
            )
        if self.profile == "exponential":
            ratios = [(1 / self.imbalance) ** (i / max(classes - 1, 1)) for i in range(classes)]
        else:
            ratios = [1.0 if i < classes // 2 else 1 / self.imbalance for i in range(classes)]
        most = min(there / ratio for there, ratio in zip(class_counts, ratios, strict=True))
        kept = [int(most * ratio + 1e-6) for ratio in ratios]  # 49 (1 / 49) is 0.99... in floating point
        if 0 in kept:
            short = min(range(classes), key=lambda i: class_counts[i] / ratios[i])
            raise ValueError(
                f"An imbalance of {self.imbalance:g} leaves class {kept.index(0)} without samples, since class {short} "
                f"has {class_counts[short]}: take an imbalance of at most {max(most, 1):.0f}, or more data."
            )
        return kept

    def select(self, targets: Tensor) -> Tensor:
        """Positions (K,) in ``targets`` (N,) of the samples that remain, class after class.

        Classes are 0 to the largest in ``targets``.
        """
        counts = self.counts(torch.bincount(targets).tolist())
        labels = targets.numpy()
        random = np.random.RandomState(self.seed)  # its numbers never change
        chosen = []
        for label, count in enumerate(counts):
            positions = np.flatnonzero(labels == label)
            random.shuffle(positions)
            chosen.append(positions[:count])
        return torch.from_numpy(np.concatenate(chosen))


class PowerSampling(Sampling):
    """Draw classes by a power of their size, then one of the class's samples, all with replacement.

        p_j = n_j^q / sum_i n_i^q

    q = 0 is class-balanced sampling (every class as often as any other, known as over-sampling), q = 1/2
    square-root sampling, and q = 1 draws samples as they come; each sample exactly once is no sampling at all. An
    epoch has as many draws as there are samples, so that all take as many steps.

    Args:
        power: q in [0, 1].

    Raises:
        ValueError: ``power`` is out of its range.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020,
    equation 1; Mahajan et al. 2018 (square root).

    Example:
        >>> target = torch.tensor([0] * 900 + [1] * 100)
        >>> torch.bincount(target[PowerSampling(0).draw(target, seed=0, epoch=0)])
        tensor([518, 482])
    """

    def __init__(self, power: float = 0.0) -> None:
        if not 0 <= power <= 1:
            raise ValueError(
                f"power is 0 (class-balanced), 0.5 (square root) or another number in [0, 1], but it is {power:g}."
            )
        self.power = power

    def draw(self, targets: Tensor, seed: int, epoch: int) -> Tensor:
        """Positions (N,) in ``targets`` (N,): a function of the seed and the epoch, whatever the devices."""
        counts = torch.bincount(targets)
        shares = torch.where(counts > 0, counts.double() ** self.power, 0.0)
        limits = shares.cumsum(0)
        draws = uniform(key(seed, epoch, DRAWS, torch.arange(len(targets))), 2).double()
        label = torch.searchsorted(limits, draws[:, 0] * limits[-1], right=True)
        by_class = torch.argsort(targets, stable=True)
        place = (draws[:, 1] * counts[label]).long()
        return by_class[(counts.cumsum(0) - counts)[label] + place]


def repeats(index: Tensor) -> Tensor:
    """How often each number has come before, (N,) for (N,) int64.

    Example:
        >>> repeats(torch.tensor([7, 3, 7, 7, 3]))
        tensor([0, 0, 1, 2, 1])
    """
    sorted, order = index.sort(stable=True)
    count = torch.empty_like(index)
    count[order] = torch.arange(len(index)) - torch.searchsorted(sorted, sorted)
    return count
