"""How many micro-batches the steps of a training are put together from."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def most_accumulated(trainer: Trainer) -> int:
    """Return the most micro-batches of a step in any epoch, those of a ``GradientAccumulationScheduler`` included."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = [each for each in callbacks if isinstance(each, GradientAccumulationScheduler)]
    return max(trainer.accumulate_grad_batches, *(max(each.scheduling.values()) for each in schedulers), 1)
