"""Strategy base class and what it sees of a learner; Naive (lower bound), Joint (upper bound)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Samples(NamedTuple):
    """Samples of a step, as the batches of a data module are: ``input, target, index``."""

    input: Tensor  # (N, ...)
    target: Tensor  # (N,) class indices, or (N, C) class probabilities
    index: Tensor  # type: ignore[assignment]  # (N,) int64, the samples' numbers; it hides tuple.index


class Stream(Protocol):
    """The part of a stream that strategies check before training."""

    @property
    def num_classes(self) -> int:
        """C."""

    tasks: int
    mixing: Any  #: MixUp and CutMix objects; empty: images are not mixed
    scenario: Any  #: ``class``, ``task``, ``domain`` or ``permuted``
    seed: int


class Learner(Protocol):
    """The part of a continual learner that strategies use; :class:`~hem.modules.ContinualTask` is one."""

    net: Any  #: an nn.Module
    num_classes: int  #: C
    step: int  #: of the epoch, from 0

    @property
    def current(self) -> int:
        """The current task, from 0."""

    @property
    def current_epoch(self) -> int:
        """The epoch of the whole stream, from 0."""

    @property
    def steps_per_epoch(self) -> int:
        """The steps of an epoch of the current task."""

    @property
    def batch_size(self) -> int:
        """The samples of a step, over all processes."""

    @property
    def processes(self) -> tuple[int, int]:
        """Rank and world size."""

    def __call__(self, input: Tensor) -> Tensor:
        """Return the logits (N, C) of images."""

    def loss_of(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Return the loss of training samples, over all processes: logits (N, C), target and numbers (N,)."""

    def heads(self, task: int) -> Sequence[Tensor]:
        """Return the classes that each softmax is over, of a task and all before it."""

    def task_samples(self) -> Tensor:
        """Return the numbers of the current task's training samples, (N,) int64."""

    def groups(self, index: Tensor) -> Tensor:
        """Return the group of each training sample, (N,) int64: g C + class, with g the task."""

    def replayed(self, index: Tensor, draw: int = 0) -> Samples:
        """Return this process's share of samples, on its device, augmented anew in each step and draw."""

    def sample_gradients(self, count: int, chunk: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the gradients of single training samples, ``chunk`` at once: by name of weight (chunk, *shape)."""


class Strategy:
    """Base class of strategies: hooks around the training of a stream. Tasks count from 0.

    What a strategy carries from step to step (a replay buffer, importances, an old network) it names in ``carried``:
    plain tensors in dicts and lists, or what has a ``state_dict`` of such. They are part of every checkpoint, so that a
    run goes on in the middle of the stream. Whatever it draws must be a function of the seed and of what it is drawn
    for.
    """

    cumulative: ClassVar[bool] = False  #: whether a task is trained on the samples of all tasks so far
    carried: ClassVar[tuple[str, ...]] = ()  #: the attributes that checkpoints hold

    def check(self, data: Stream) -> None:
        """Refuse a stream that the strategy cannot work with, before training begins.

        Raises:
            ValueError: With a sentence.
        """

    def begin_task(self, learner: Learner) -> None:
        """Prepare for a task; called before its first epoch."""

    def loss(self, learner: Learner, batch: Samples) -> Tensor:
        """Return what the optimiser minimises in a step."""
        return learner.loss_of(learner(batch.input), batch.target, batch.index)

    def presented(self, learner: Learner) -> Tensor:
        """Return how many samples of each class an epoch of the task shows beside the task's own, (C,) float64."""
        return torch.zeros(learner.num_classes, dtype=torch.float64)

    def before_step(self, learner: Learner) -> None:
        """Called with the gradients, before the optimiser's step."""

    def after_step(self, learner: Learner) -> None:
        """Called after the optimiser's step."""

    def end_task(self, learner: Learner) -> dict[str, float]:
        """Called after the last epoch of a task; return metrics to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes named in ``carried``, as tensors in dicts and lists."""
        values = {name: getattr(self, name) for name in self.carried}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in self.carried:
            value = state["memory" if name == "buffer" and name not in state else name]  # as it was called in 0.1
            if hasattr(own := getattr(self, name), "load_state_dict"):
                own.load_state_dict(value)
            else:
                setattr(self, name, value)


def trained(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are trained, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def check_weights(**numbers: float) -> None:
    """Refuse a negative weight.

    Raises:
        ValueError: With the argument's name.
    """
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"Expected {name}, a weight, to be 0 or more, got {number}: 0 leaves it out.")


def check_counts(**numbers: object) -> None:
    """Refuse a number of samples below 1.

    Raises:
        ValueError: With the argument's name.
    """
    for name, number in numbers.items():
        if isinstance(number, int) and number < 1:
            raise ValueError(f"Expected {name}, a number of samples, to be 1 or more, got {number}: raise it.")


class Naive(Strategy):
    """Fine-tuning: nothing is done against forgetting. The lower bound."""


class Joint(Strategy):
    """Training each task on the samples of all tasks so far. The upper bound.

    Behind the last task that is joint training on the whole data set, from the weights of the earlier ones.
    An epoch goes through all these samples, so a later task has more steps.
    """

    cumulative: ClassVar[bool] = True
