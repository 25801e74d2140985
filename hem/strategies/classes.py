"""Restrict a loss and its targets to some of the classes."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

Mask = Literal["none", "unseen", "other_tasks"]


def among(criterion: nn.Module, classes: Tensor, num_classes: int, class_counts: Tensor | None = None) -> nn.Module:
    """Return the loss restricted to some of the classes: it takes ``logits[:, classes]``.

    The other logits are left out, not put to -inf: no error, no mean over classes, no norm and no softmax
    sees them, and their gradient is exactly 0. Buffers with an entry per class (``weight``,
    ``class_counts``) lose the others' entries. HEM's mean error is then over the remaining classes, and the n
    of HEM+'s margins sqrt(m / (n s_i)) is their number.

    Args:
        criterion: Any loss, or a sum of losses; it is not changed.
        classes: (K,) int64.
        num_classes: C.
        class_counts: (C,), in place of the loss's own where it has such a buffer.

    Example:
        >>> loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
        >>> among(loss, torch.tensor([0, 2]), 3).weight
        tensor([1., 3.])
    """
    alike = copy.copy(criterion)
    buffers = dict(criterion._buffers)
    if class_counts is not None and (own := buffers.get("class_counts")) is not None:
        buffers["class_counts"] = class_counts.to(own)
    alike._buffers = {
        name: value[classes.to(value.device)] if value is not None and value.shape[:1] == (num_classes,) else value
        for name, value in buffers.items()
    }
    alike._modules = {
        name: None if part is None else among(part, classes, num_classes, class_counts)
        for name, part in criterion._modules.items()
    }
    return alike


def among_targets(target: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return targets as positions within some of the classes.

    Args:
        target: Class indices (N,), those below 0 stay; or probabilities (N, C).
        classes: (K,) int64, with every class of ``target`` among them.
        num_classes: C.

    Returns:
        Indices (N,) in 0..K-1, or probabilities (N, K).
    """
    if target.ndim > 1:
        return target[:, classes]
    position = torch.zeros(num_classes, dtype=torch.int64, device=target.device)
    position[classes] = torch.arange(len(classes), device=target.device)
    return torch.where(target >= 0, position[target.clamp(min=0)], target)


def loss_classes(stream: Any, mask: Mask, task: int) -> Tensor:
    """Return the classes over which the loss of a task's samples is computed, (K,) int64.

    Args:
        stream: A :class:`~hem.datamodules.ContinualDataModule`.
        mask: ``"none"``: all classes; ``"unseen"``: those of the task and all before it; ``"other_tasks"``: the task's.
        task: From 0.
    """
    if mask == "none":
        return torch.arange(stream.num_classes)
    found: Tensor = stream.seen(task) if mask == "unseen" else stream.classes(task)
    return found


def decision_classes(stream: Any, mask: Mask, after: int) -> Tensor:
    """Return the classes that may be predicted for samples of each task, (T, C) bool.

    Under the scenario ``task`` those of the sample's task; else with the mask ``"none"`` all classes, with another one
    those of the tasks so far and of the tasks up to the sample's.

    Args:
        stream: A :class:`~hem.datamodules.ContinualDataModule` of T tasks and C classes.
        mask: As :func:`loss_classes` has it.
        after: The task that was learnt last, from 0; -1: none.
    """
    own = stream.scenario == "task"
    allowed = torch.full((stream.tasks, stream.num_classes), not own and mask == "none")
    for task in range(stream.tasks):
        allowed[task, stream.classes(task) if own else stream.seen(max(task, after))] = True
    return allowed
