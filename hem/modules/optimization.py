"""Build the optimiser of a task and its learning rate scheduler, and check the callbacks beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    WeightAveraging,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, PolynomialLR, ReduceLROnPlateau

from hem.metrics import catalog
from hem.modules.finetuning import groups

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


def make_optimizer(
    make: OptimizerCallable, net: nn.Module, encoder_lr: float, layer_decay: float
) -> tuple[Optimizer, list[float]]:
    """Return the optimiser of the trainable parameters, and the learning rate factor of each group.

    Args:
        make: Makes it from parameters or groups of them.
        net: The network.
        encoder_lr: See :func:`~hem.modules.finetuning.groups`.
        layer_decay: Likewise.
    """
    if (encoder_lr, layer_decay) == (1, 1):
        return make(p for p in net.parameters() if p.requires_grad), [1.0]
    found = [
        (learning, scale)
        for params, scale in groups(net, encoder_lr, layer_decay)
        if (learning := [p for p in params if p.requires_grad])
    ]
    optimizer = make([{"params": params} for params, _ in found])
    for group, (_, scale) in zip(optimizer.param_groups, found, strict=True):
        group["lr"] *= scale
    return optimizer, [scale for _, scale in found]


def make_scheduler(
    make: LRSchedulerCallable, optimizer: Optimizer, scales: list[float], total_steps: Callable[[], int]
) -> LRScheduler:
    """Return the scheduler of an optimiser, with the arguments that its config leaves open.

    Args:
        make: Makes it from the optimiser; ``total_steps`` is filled in where the config has null, and one ``max_lr``
            becomes one of each group.
        optimizer: The optimiser.
        scales: The factor of the learning rate of each of its groups.
        total_steps: Counts the steps of the training.

    Raises:
        ValueError: If it overrides the learning rates of the groups.
    """
    if isinstance(make, partial):
        if make.keywords.get("total_steps", 0) is None and not make.keywords.get("epochs"):
            make = partial(make, total_steps=total_steps())
        if isinstance(highest := make.keywords.get("max_lr"), (int, float)) and len(scales) > 1:
            make = partial(make, max_lr=[highest * scale for scale in scales])
    scheduler = make(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    if any(abs(rate * scales[-1] - scale * rates[-1]) > 1e-9 for rate, scale in zip(rates, scales, strict=True)):
        wanted, got = (", ".join(f"{value:g}" for value in values) for values in (scales, rates))
        raise ValueError(
            f"Expected learning rates in the proportion {wanted}, got {got} from the schedule: take one that "
            "multiplies the optimiser's rates, or OneCycleLR with one number as max_lr."
        )
    return scheduler


def scheduler_config(
    scheduler: LRScheduler, interval: str, trainer: Trainer, total_steps: Callable[[], int]
) -> dict[str, Any]:
    """Return when Lightning is to step a scheduler, and by which metric.

    Args:
        scheduler: The scheduler.
        interval: ``"step"`` or ``"epoch"``; one that reads a metric is stepped behind epochs.
        trainer: Of the training.
        total_steps: Counts the steps of the training.

    Raises:
        ValueError: If it ends, at no rate or with an error, before the training does, or takes the worst of its metric
            for the best.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = getattr(scheduler, "monitor", catalog.LOSS.key("val"))  # known behind an epoch that is validated
        catalog.check_mode(type(scheduler).__name__, monitor, scheduler.mode)
        every: int = trainer.check_val_every_n_epoch or 1 if monitor.startswith("val/") else 1
        return {"scheduler": scheduler, "monitor": monitor, "interval": "epoch", "frequency": every}
    spans = {OneCycleLR: "total_steps", PolynomialLR: "total_iters"}
    span = next((getattr(scheduler, each) for kind, each in spans.items() if isinstance(scheduler, kind)), None)
    if span is not None:
        length, unit = total_steps(), "steps"
        if interval == "epoch":
            length, unit = round(length * (trainer.max_epochs or 0) / length_of(trainer)), "epochs"
        if length > span:
            raise ValueError(
                f"Expected a schedule as long as the training, {length} {unit}, got {type(scheduler).__name__} of "
                f"{span}, behind which nothing is learnt: set its length; OneCycleLR and PolyLR have the training's "
                "where total_steps is null and lr_interval is step."
            )
    return {"scheduler": scheduler, "interval": interval}


def length_of(trainer: Trainer) -> int:
    """Return the number of optimiser steps of the whole training.

    Raises:
        ValueError: If the training has no end.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError(
            "Expected a training of a known length for a schedule that goes over all of it, got one without "
            "an end: set trainer.max_epochs or max_steps, or the schedule's total_steps."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler) and (epochs := trainer.max_epochs or 0) > 0:
            batches = (callback.get_accumulate_grad_batches(epoch) for epoch in range(epochs))  # of a step
            longest = sum(math.ceil(trainer.num_training_batches / count) for count in batches)
            steps = min(longest, trainer.max_steps) if trainer.max_steps > 0 else longest
    return int(steps)


def most_accumulated(trainer: Trainer) -> int:
    """Return the most micro-batches of a step in any epoch, those of a ``GradientAccumulationScheduler`` included."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = [each for each in callbacks if isinstance(each, GradientAccumulationScheduler)]
    return max(trainer.accumulate_grad_batches, *(max(each.scheduling.values()) for each in schedulers), 1)


def check_callbacks(trainer: Any) -> bool:
    """Refuse callbacks that the metrics or the precision do not suit; return whether one averages weights.

    Raises:
        ValueError: If a callback monitors a metric with the wrong mode, or averages weights of half precision.
    """
    averaged = False
    for each in trainer.callbacks:
        if isinstance(each, EarlyStopping | ModelCheckpoint) and each.monitor is not None:
            catalog.check_mode(type(each).__name__, each.monitor, each.mode)
        if isinstance(each, WeightAveraging):
            averaged = True
            if trainer.precision in ("16-true", "bf16-true"):
                raise ValueError(
                    f"Expected weights of single precision to average, got {trainer.precision}, whose average rounds "
                    f"to where it is and never moves: take bf16-mixed, or leave {type(each).__name__} out."
                )
    return averaged
