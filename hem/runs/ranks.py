"""Gather objects and tensors from all processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor

T = TypeVar("T")


def of_all_ranks(trainer: Trainer, mine: T) -> list[T]:
    """Return the object of every process, in the order of ranks; all processes must call it."""
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def gathered(trainer: Trainer, parts: Sequence[Tensor]) -> Tensor:
    """Return the concatenation of tensors of all processes, on the CPU."""
    whole = torch.cat([part.detach().cpu() for part in parts]) if parts else torch.empty(0)
    return torch.cat([part for part in of_all_ranks(trainer, whole) if part.numel()] or [whole])
