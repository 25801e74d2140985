"""Long-tailed subsets of any data set, and sampling of classes by their frequency."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hem.rng import key, uniform

DRAWS = -2  # RNG stream ids of the draws of classes and samples


class Subset(ABC):
    """Base class of a fixed selection from the training part, such as a long tail."""

    @abstractmethod
    def counts(self, class_counts: list[int]) -> list[int]:
        """Return how many samples of each class remain of ``class_counts``, without reading the data."""

    @abstractmethod
    def select(self, targets: Tensor) -> Tensor:
        """Return the positions (K,) in ``targets`` (N,) of the samples that remain, :meth:`counts` of each class."""


class Sampling(ABC):
    """Base class of the choice and order of the training samples of an epoch."""

    @abstractmethod
    def draw(self, targets: Tensor, seed: int, epoch: int) -> Tensor:
        """Return positions (N,) in ``targets`` (N,), with repeats; a function of targets, seed and epoch alone."""


class LongTail(Subset):
    """Long tail: a subset in which the first class has ``imbalance`` times as many samples as the last.

    With classes i = 0..C-1 in the order of the data set, r_i = IF^(-i / (C-1)) for the profile ``exponential``,
    and r_i = 1 for i < floor(C / 2), else 1 / IF, for ``step``:

        n_i = floor(n_max r_i),  n_max = min_i s_i / r_i,

    where class i has s_i samples: n_max is the largest number for which all classes have enough samples (the size of a
    class, if all have the same size). From the whole training part of CIFAR-10 (``val_fraction`` 0) and
    IF = 100 that gives the published 5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50.

    The samples are those of the authors' code: the first n_i after ``np.random.seed(seed)`` and ``np.random.shuffle``
    of each class's positions in turn. The same seed and data give the same samples, and those of a larger imbalance are
    among those of a smaller one.

    Args:
        imbalance: IF >= 1, samples of the most frequent class over those of the rarest.
        profile: ``exponential`` or ``step``.
        seed: Seed of the choice of samples; 0 in the literature.

    Raises:
        ValueError: ``imbalance`` is below 1, or a class is left without samples.

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
                "Expected imbalance, samples of the most frequent class over those of the rarest, to be 1 or more, got "
                f"{imbalance:g}: give {'its inverse, ' + format(1 / imbalance, 'g') if 0 < imbalance < 1 else '100'}."
            )
        if profile not in ("exponential", "step"):
            raise ValueError(f"Expected profile to be 'exponential' or 'step', got '{profile}'.")
        self.imbalance = imbalance
        self.profile = profile
        self.seed = seed

    def counts(self, class_counts: Sequence[int]) -> list[int]:
        """Return how many samples of each class remain.

        Raises:
            ValueError: A class is left without samples.
        """
        classes = len(class_counts)
        if 0 in class_counts:
            raise ValueError(
                f"Expected samples of every class for a long tail, got none of class {list(class_counts).index(0)}: "
                "leave the class out, or add some."
            )
        if self.profile == "exponential":
            ratios = [(1 / self.imbalance) ** (i / max(classes - 1, 1)) for i in range(classes)]
        else:
            ratios = [1.0 if i < classes // 2 else 1 / self.imbalance for i in range(classes)]
        most = min(there / ratio for there, ratio in zip(class_counts, ratios, strict=True))
        kept = [int(most * ratio + 1e-6) for ratio in ratios]  # for rounding: 49 (1 / 49) is 0.99...
        if 0 in kept:
            short = min(range(classes), key=lambda i: class_counts[i] / ratios[i])
            raise ValueError(
                f"An imbalance of {self.imbalance:g} leaves class {kept.index(0)} without samples, since class {short} "
                f"has {class_counts[short]}: take an imbalance of at most {max(most, 1):.0f}, or more data."
            )
        return kept

    def select(self, targets: Tensor) -> Tensor:
        """Return the positions (K,) in ``targets`` (N,) of the samples that remain, ordered by class.

        Classes are 0 to the largest in ``targets``.
        """
        counts = self.counts(torch.bincount(targets).tolist())
        labels = targets.numpy()
        random = np.random.RandomState(self.seed)  # the numbers of this legacy generator are guaranteed not to change
        chosen = []
        for label, count in enumerate(counts):
            positions = np.flatnonzero(labels == label)
            random.shuffle(positions)
            chosen.append(positions[:count])
        return torch.from_numpy(np.concatenate(chosen))


class PowerSampling(Sampling):
    """Sampling with replacement that draws a class by a power of its size, then one of its samples.

        p_j = n_j^q / sum_i n_i^q

    q = 0 is class-balanced sampling (all classes equally often, known as over-sampling), q = 1/2 square-root sampling,
    and q = 1 draws all samples with equal probability. An epoch has as many draws as there are samples, so its number
    of steps does not change.

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
                "Expected power to be 0 (class-balanced), 0.5 (square root) or another number in [0, 1], got "
                f"{power:g}."
            )
        self.power = power

    def draw(self, targets: Tensor, seed: int, epoch: int) -> Tensor:
        """Return positions (N,) in ``targets`` (N,), a function of the seed and the epoch, not of the devices."""
        counts = torch.bincount(targets)
        shares = torch.where(counts > 0, counts.double() ** self.power, 0.0)
        limits = shares.cumsum(0)
        draws = uniform(key(seed, epoch, DRAWS, torch.arange(len(targets))), 2).double()
        label = torch.searchsorted(limits, draws[:, 0] * limits[-1], right=True)
        by_class = torch.argsort(targets, stable=True)
        place = (draws[:, 1] * counts[label]).long()
        return by_class[(counts.cumsum(0) - counts)[label] + place]


def repeats(index: Tensor) -> Tensor:
    """Return how often each number of ``index`` (N,) occurs before it, (N,) int64.

    Example:
        >>> repeats(torch.tensor([7, 3, 7, 7, 3]))
        tensor([0, 0, 1, 2, 1])
    """
    sorted, order = index.sort(stable=True)
    count = torch.empty_like(index)
    count[order] = torch.arange(len(index)) - torch.searchsorted(sorted, sorted)
    return count
