"""Validation splits: a share of every class is held out, by position or by file name."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hem.rng import permutation

Split = Literal["train", "val", "test"]


def held_out_counts(counts: Sequence[int], fraction: float) -> list[int]:
    """Return how many samples of each class are held out: floor(fraction n + 1/2) of n, but not all.

    Example:
        >>> held_out_counts([5000, 15, 1], 0.1)
        [500, 2, 0]
    """
    return [max(0, min(int(fraction * n + 0.5), n - 1)) for n in counts]


def held_out_by_name(names: Sequence[str], targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Hold out about a share of the samples, each by the hash of (seed, its name) alone.

    So a sample stays in its part when other files are added or removed, which :func:`held_out` does not guarantee; in
    exchange, the share of a class is met on average only. There are two exceptions, for few samples: a class that would
    be held out as a whole keeps the sample with the largest hash, and if nothing would be held out, the sample with the
    smallest hash is.

    Args:
        names: Names of N samples, such as paths below a folder.
        targets: (N,) int64 class indices.
        fraction: The share, in [0, 1).
        seed: Seed of the choice.

    Returns:
        (N,) bool, True for the samples that are held out.

    Example:
        >>> names, targets = [f"cat/{i}.png" for i in range(1000)], torch.zeros(1000, dtype=torch.int64)
        >>> held = held_out_by_name(names, targets, 0.2, seed=0)
        >>> held.sum(), bool((held[:500] == held_out_by_name(names[:500], targets[:500], 0.2, seed=0)).all())
        (tensor(203), True)
    """
    place = torch.tensor([place_of(name, seed) for name in names], dtype=torch.float64)
    held = place < fraction
    if not len(targets):
        return held
    whole, kept = (torch.bincount(each, minlength=int(targets.max()) + 1) for each in (targets, targets[~held]))
    for label in ((whole > 0) & (kept == 0)).nonzero()[:, 0].tolist():
        own = (targets == label).nonzero()[:, 0]
        held[own[place[own].argmax()]] = False
    spare = whole[targets] > 1
    if fraction and not bool(held.any()) and bool(spare.any()):
        held[torch.where(spare, place, 1.0).argmin()] = True
    return held


def place_of(name: str, seed: int) -> float:
    """Return a number in [0, 1) for a name and a seed, the first 53 bits of their SHA-256.

    Example:
        >>> round(place_of("cat/1.png", 0), 3)
        0.101
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    return (int.from_bytes(digest[:8]) >> 11) * 2.0**-53


def held_out(targets: Tensor, num_classes: int, fraction: float, seed: int) -> Tensor:
    """Hold out a share of every class, chosen by the hash of (seed, position).

    Args:
        targets: (N,) int64 class indices.
        num_classes: Number of classes.
        fraction: The share, in [0, 1).
        seed: Seed of the choice.

    Returns:
        (N,) bool, True for the samples that are held out: :func:`held_out_counts` of each class.

    Example:
        >>> held_out(torch.tensor([0, 0, 1, 1, 1, 1]), 2, 0.5, seed=0).sum()
        tensor(3)
    """
    counts = torch.bincount(targets, minlength=num_classes)
    quota = torch.tensor(held_out_counts(counts.tolist(), fraction))
    shuffled = permutation(len(targets), seed)
    by_class = shuffled[torch.argsort(targets[shuffled], stable=True)]
    place = torch.arange(len(targets)) - (counts.cumsum(0) - counts)[targets[by_class]]
    held = torch.zeros(len(targets), dtype=torch.bool)
    held[by_class] = place < quota[targets[by_class]]
    return held
