"""What the processes of a run have, each its own, brought together."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

T = TypeVar("T")


def of_all_ranks(trainer: Trainer, mine: T) -> list[T]:
    """Return what every process has, in the order of ranks; all of them must call it."""
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
