"""What a strategy may do, and the two that do nothing: the lower and the upper bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hem.datamodules.loader import Batch

if TYPE_CHECKING:
    from hem.datamodules.continual import ContinualDataModule
    from hem.modules.continual import ContinualTask


class Strategy:
    """Hooks around the training of a stream. A task's number ``learner.current`` counts from 0.

    What a strategy carries from step to step (a memory, importances, an old network) it hands out as plain
    tensors in :meth:`state_dict`: they are part of every checkpoint, so that a run goes on in the middle of
    the stream. Whatever it draws must be a function of the seed and of what it is drawn for.
    """

    cumulative: ClassVar[bool] = False  #: whether a task is trained on the samples of all tasks so far

    def check(self, data: ContinualDataModule) -> None:
        """Refuse a stream that the strategy cannot work with, before training begins.

        Raises:
            ValueError: With a sentence.
        """

    def begin_task(self, learner: ContinualTask) -> None:
        """Prepare for a task; called before its first epoch."""

    def loss(self, learner: ContinualTask, batch: Batch) -> Tensor:
        """Return what the optimiser minimises in a step."""
        return learner.loss_of(learner(batch.input), batch.target, batch.index)

    def presented(self, learner: ContinualTask) -> Tensor:
        """Return how many samples of each class an epoch of the task shows beside the task's own, (C,) float64."""
        return torch.zeros(learner.num_classes, dtype=torch.float64)

    def before_step(self, learner: ContinualTask) -> None:
        """Look at the gradients before the optimiser uses them."""

    def after_step(self, learner: ContinualTask) -> None:
        """Look at the weights after a step."""

    def end_task(self, learner: ContinualTask) -> dict[str, float]:
        """Remember a task, after its last epoch; return figures for the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what is carried, as tensors in dicts and lists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""


class Naive(Strategy):
    """Fine-tuning: nothing is done against forgetting. The lower bound."""


class Joint(Strategy):
    """Training each task on the samples of all tasks so far. The upper bound.

    Behind the last task that is joint training on the whole data set, from the weights of the earlier ones.
    An epoch goes through all these samples, so a later task has more steps.
    """

    cumulative: ClassVar[bool] = True
