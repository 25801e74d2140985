"""Strategies that show samples of earlier tasks again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from hem.datamodules.loader import Batch
from hem.strategies.base import Strategy
from hem.strategies.memory import Memory

if TYPE_CHECKING:
    from hem.datamodules.continual import ContinualDataModule
    from hem.modules.continual import ContinualTask

REPLAY = 0x7265706C6179  # what the augmentation of replayed samples is drawn with


def joined(batch: Batch, more: Batch, num_classes: int) -> Batch:
    """Two batches as one; where labels are mixed in the first, those of the second become probabilities."""
    target = F.one_hot(more.target, num_classes).to(batch.target) if batch.target.ndim > 1 else more.target
    return Batch(*(torch.cat(pair) for pair in zip(batch, (more.input, target, more.index), strict=True)))


def check_size(size: int | None, data: ContinualDataModule) -> None:
    """Refuse a memory in which not every class can have a sample.

    Raises:
        ValueError: It is smaller than the number of classes.
    """
    classes = data.num_classes * (data.tasks if data.scenario in ("domain", "permuted") else 1)
    if size is not None and size < classes:
        what = "classes" if classes == data.num_classes else "classes of all tasks"
        raise ValueError(
            f"A memory needs a sample of each of the {classes} {what} at least, but its size is {size}: set size to "
            f"{classes} or more, or null for all samples."
        )


def groups_of(learner: ContinualTask, index: Tensor) -> Tensor:
    """The group of each training sample, (N,) int64: one for every class of every task."""
    targets = learner.stream.images("train").targets.cpu()[index.cpu()]
    return learner.stream.task_of(index.cpu()) * learner.num_classes + targets


def presented_by(learner: ContinualTask, memory: Memory, count: float) -> Tensor:
    """How many of so many samples drawn from a memory are of each class, on average: (C,) float64."""
    classes = torch.bincount(memory.group % learner.num_classes, minlength=learner.num_classes).double()
    return classes * count / max(len(memory), 1)


def replayed(learner: ContinualTask, index: Tensor, stream: int = 0) -> Batch:
    """The samples of a memory as a batch of this process: its share of them, augmented anew in each step."""
    trainer = learner.trainer
    own = index.tensor_split(trainer.world_size)[trainer.global_rank]
    raw = learner.stream.fetched(own, REPLAY, stream, trainer.global_step)
    batch: Batch = trainer.strategy.batch_to_device(raw, dataloader_idx=0)
    return batch


def of_all(own: Tensor) -> Tensor:
    """The rows of all processes, each of which has as many."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


class Replay(Strategy):
    """Experience replay: each step has samples of the earlier tasks beside those of the task at hand.

    After a task its training samples are presented to the memory. A step's loss is that of the batch and of
    the replayed samples together, l(B u M_B): one mean over both.

    Source: Chaudhry et al., "On tiny episodic memories in continual learning", 2019 (arXiv 1902.10486).

    Args:
        size: Number of samples in the memory; None: all samples of the earlier tasks.
        balanced: Whether each class has the same share of the memory; else it is a reservoir.
        per_step: How many samples of the memory a step has: a number over all processes; ``"equal"``, as many
            as the task at hand has; ``"epoch"``, as many as it takes to go through the memory once in an
            epoch. With ``size=None`` and ``"epoch"`` every sample so far is seen once per epoch: joint
            training's distribution.

    Raises:
        ValueError: ``size`` or ``per_step`` is below 1; when training begins, ``size`` below the number of
            classes.
    """

    def __init__(
        self, size: int | None = 200, balanced: bool = False, per_step: int | Literal["equal", "epoch"] = "equal"
    ) -> None:
        check_positive(size=size, per_step=per_step)
        self.size = size
        self.per_step = per_step
        self.memory = Memory(size, balanced=balanced)

    def check(self, data: ContinualDataModule) -> None:
        """Refuse a memory that is smaller than the number of classes."""
        check_size(self.size, data)
        self.memory.seed = data.seed

    def loss(self, learner: ContinualTask, batch: Batch) -> Tensor:
        """Return the loss of the batch joined with samples of the memory."""
        places = self._places(learner, len(batch.input) * learner.trainer.world_size)
        if len(places):
            more = replayed(learner, self.memory.index[places])
            batch = joined(batch, more, learner.num_classes)
        return super().loss(learner, batch)

    def presented(self, learner: ContinualTask) -> Tensor:
        """Return how many samples of each class are replayed in an epoch."""
        steps, size = int(learner.trainer.num_training_batches), len(self.memory)
        per_step = learner.stream.batch_size if self.per_step == "equal" else self.per_step
        return presented_by(learner, self.memory, size if isinstance(per_step, str) else steps * per_step)

    def _places(self, learner: ContinualTask, batch_size: int) -> Tensor:
        if not len(self.memory):
            return self.memory.index
        epoch, step = learner.current_epoch, learner.step
        if self.per_step == "epoch":
            steps = int(learner.trainer.num_training_batches)
            start, stop = (len(self.memory) * s // steps for s in (step, step + 1))
            return self.memory.section(start, stop, epoch)
        return self.memory.draw(batch_size if self.per_step == "equal" else self.per_step, epoch, step)

    def end_task(self, learner: ContinualTask) -> dict[str, float]:
        """Present the task's training samples to the memory."""
        index = learner.stream.part_of("train", [learner.current])
        self.memory.add(index, groups_of(learner, index))
        return {"memory": len(self.memory)}

    def state_dict(self) -> dict[str, Any]:
        """Return the memory."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the memory."""
        self.memory.load_state_dict(state["memory"])


class DERPlusPlus(Strategy):
    """Dark experience replay++: replayed samples shall have their labels, and others the logits of old.

        l(B) + alpha mean_{(x', z') in M} ||h(x') - z'||^2 / C + beta l(M'')

    with two draws M, M'' from a reservoir. Samples enter it as they are trained on, with their logits of that
    step (all C of them, whatever the mask), in every epoch. Logits of a margin loss are small beside those of
    cross-entropy, and so is the middle term: an alpha found with one loss is not comparable under another.

    Source: Buzzega et al., "Dark experience for general continual learning: a strong, simple baseline",
    NeurIPS 2020, equation 6. The square is the mean over logits, as in the authors' code.

    Args:
        size: Number of samples in the memory.
        alpha: Weight of the logits.
        beta: Weight of the labels.

    Raises:
        ValueError: ``size`` is below 1 or a weight negative; when training begins, ``size`` below the number
            of classes.
    """

    def __init__(self, size: int = 200, alpha: float = 0.2, beta: float = 1.0) -> None:
        check_positive(size=size)
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha and beta are weights, 0 or more, but they are {alpha} and {beta}.")
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.memory = Memory(size)

    def check(self, data: ContinualDataModule) -> None:
        """Refuse a memory that is smaller than the number of classes."""
        check_size(self.size, data)
        self.memory.seed = data.seed

    def presented(self, learner: ContinualTask) -> Tensor:
        """Return how many samples of each class are replayed with their labels in an epoch."""
        steps = int(learner.trainer.num_training_batches)
        return presented_by(learner, self.memory, steps * learner.stream.batch_size)

    def loss(self, learner: ContinualTask, batch: Batch) -> Tensor:
        """Return the sum of the three terms, from one forward pass; take the batch into the memory."""
        count = len(batch.input) * learner.trainer.world_size
        parts, old = [batch], None
        if len(self.memory):
            assert self.memory.logits is not None, "they are stored with each sample"
            places = [self.memory.draw(count, learner.current_epoch, learner.step, stream) for stream in (0, 1)]
            parts += [replayed(learner, self.memory.index[p], stream) for stream, p in enumerate(places)]
            trainer = learner.trainer
            old = self.memory.logits[places[0].tensor_split(trainer.world_size)[trainer.global_rank]]
        logits = learner(torch.cat([part.input for part in parts])).split([len(part.input) for part in parts])
        loss = learner.loss_of(logits[0], batch.target, batch.index)
        if old is not None:
            loss = loss + self.alpha * F.mse_loss(logits[1], old.to(logits[1]))
            loss = loss + self.beta * learner.loss_of(logits[2], parts[2].target, parts[2].index)
        index, now = batch.index, logits[0].detach()
        if learner.trainer.world_size > 1:
            index, now = of_all(index), of_all(now)
        self.memory.add(index, groups_of(learner, index), learner.current_epoch, logits=now)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the memory."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the memory."""
        self.memory.load_state_dict(state["memory"])


def check_positive(**numbers: int | str | None) -> None:
    """Refuse a number of samples below 1.

    Raises:
        ValueError: With the argument's name.
    """
    for name, number in numbers.items():
        if isinstance(number, int) and number < 1:
            raise ValueError(f"{name} is a number of samples, 1 or more, but it is {number}.")
