"""Replay buffer: samples kept from earlier tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hem.rng import key as key_of
from hem.rng import permutation

DRAW, KEEP = 0x64726177, 0x6B656570  # what the order of draws and the choice of samples are drawn with


class ReplayBuffer:
    """A fixed number of samples of a stream, stored by index; which ones depends on the seed alone.

    Each presented sample has a key, a hash of (seed, what it is presented as). A *reservoir* holds the
    samples with the smallest keys: at every time each sample presented so far is in it with the same
    probability, size / presented, as with algorithm R. A *balanced* buffer orders each group's samples by
    their keys and takes the first of every group, then the second of every group, and so on: groups of equal
    size, and where a group has fewer samples than its share, the others have its places. Neither
    carries a generator's state, and both give the same whether samples come one by one or all at once.

    Source: Vitter, "Random sampling with a reservoir", ACM TOMS 11, 1985 (the uniform sample; by smallest
    random keys as in Efraimidis & Spirakis, IPL 97, 2006).

    Args:
        size: Number of samples; None: all.
        balanced: Whether every group gets the same share.
        seed: Chooses the samples.

    Example:
        >>> buffer = ReplayBuffer(4, balanced=True)
        >>> buffer.add(torch.arange(100), group=torch.arange(100) // 90)
        >>> buffer.group.tolist()
        [0, 0, 1, 1]
    """

    def __init__(self, size: int | None, *, balanced: bool = False, seed: int = 0) -> None:
        self.size = size
        self.balanced = balanced
        self.seed = seed
        self.index = torch.empty(0, dtype=torch.int64)  # (M,) numbers of the samples
        self.key = torch.empty(0, dtype=torch.int64)  # (M,)
        self.group = torch.empty(0, dtype=torch.int64)  # (M,) such as the class
        self.logits: Tensor | None = None  # (M, C) of the network when the sample was presented

    def __len__(self) -> int:
        return len(self.index)

    def add(self, index: Tensor, group: Tensor, *words: int, logits: Tensor | None = None) -> None:
        """Offer samples to the buffer.

        Args:
            index: (N,) int64, their numbers.
            group: (N,) int64, what a balanced buffer balances.
            *words: What they are presented as beside their number, such as the epoch.
            logits: (N, C) to be kept with them.
        """
        index, group = index.cpu(), group.cpu()
        fields = {"index": index, "key": key_of(self.seed, KEEP, *words, index), "group": group}
        if logits is not None:
            fields["logits"] = logits.detach().cpu()
        if len(self):
            fields = {name: torch.cat([getattr(self, name), value]) for name, value in fields.items()}
        kept = self._kept(fields["key"], fields["group"])
        for name, value in fields.items():
            setattr(self, name, value[kept])

    def _kept(self, key: Tensor, group: Tensor) -> Tensor:
        """The places of the samples that are kept, ascending."""
        if self.size is None or len(key) <= self.size:
            return torch.arange(len(key))
        order = torch.argsort(key)
        if self.balanced:
            by_group = order[torch.argsort(group[order], stable=True)]
            counts = torch.unique_consecutive(group[by_group], return_counts=True)[1]
            rank = torch.arange(len(key)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
            place = torch.empty_like(rank)
            place[by_group] = rank
            order = order[torch.argsort(place[order], stable=True)]
        return order[: self.size].sort().values

    def draw(self, count: int, epoch: int, step: int, stream: int = 0) -> Tensor:
        """Return positions of samples for a step, from endlessly repeated random permutations.

        Args:
            count: How many, each step of the epoch the same.
            epoch: Another epoch, another order.
            step: The step within the epoch, from 0.
            stream: Another stream, another order.

        Returns:
            (count,) int64.
        """
        return self.section(step * count, (step + 1) * count, epoch, stream)

    def section(self, start: int, stop: int, epoch: int, stream: int = 0) -> Tensor:
        """The places from ``start`` to ``stop`` of the endless random order of an epoch, (stop - start,) int64."""
        size = len(self)
        passes = range(start // size, -(-stop // size))
        orders = [permutation(size, self.seed, DRAW, epoch, stream, number) for number in passes]
        return torch.cat(orders)[start - passes.start * size :][: stop - start]

    def state_dict(self) -> dict[str, Any]:
        """Return the samples as plain tensors."""
        return {name: getattr(self, name) for name in ("index", "key", "group", "logits")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value if value is None else value.cpu())
