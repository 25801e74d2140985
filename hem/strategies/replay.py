"""Replay: train on stored samples of earlier tasks as well (Replay, DER++)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from hem.strategies.base import Learner, Samples, Strategy, Stream, check_counts, check_weights
from hem.strategies.buffer import ReplayBuffer


def joined(batch: Samples, more: Samples, num_classes: int) -> Samples:
    """Concatenate two batches; labels become probabilities where those of the first are."""
    target = F.one_hot(more.target, num_classes).to(batch.target) if batch.target.ndim > 1 else more.target
    return Samples(*(torch.cat(pair) for pair in zip(batch, (more.input, target, more.index), strict=True)))


def check_size(size: int | None, data: Stream) -> None:
    """Refuse a buffer in which not every class can have a sample.

    Raises:
        ValueError: It is smaller than the number of classes.
    """
    classes = data.num_classes * (data.tasks if data.scenario in ("domain", "permuted") else 1)
    if size is not None and size < classes:
        what = "classes" if classes == data.num_classes else "classes of all tasks"
        raise ValueError(
            f"Expected a buffer with room for a sample of each of the {classes} {what}, got size {size}: set size to "
            f"{classes} or more, or null for all samples."
        )


def presented_by(learner: Learner, buffer: ReplayBuffer, count: float) -> Tensor:
    """Return the expected number of samples of each class among those drawn from a buffer, (C,) float64."""
    classes = torch.bincount(buffer.group % learner.num_classes, minlength=learner.num_classes).double()
    return classes * count / max(len(buffer), 1)


def of_all(own: Tensor) -> Tensor:
    """Gather the rows of all processes, equally many each."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


class Replay(Strategy):
    """Experience replay: each step adds stored samples of earlier tasks to the batch.

    After a task its training samples are presented to the buffer. A step's loss is that of the batch and of
    the replayed samples together, l(B u M_B): one mean over both.

    Source: Chaudhry et al., "On tiny episodic memories in continual learning", 2019 (arXiv 1902.10486).

    Args:
        size: Number of samples in the buffer; None: all samples of the earlier tasks.
        balanced: Whether each class has the same share of the buffer; else it is a reservoir.
        per_step: How many samples of the buffer a step has: a number over all processes; ``"equal"``, as many
            as the task at hand has; ``"epoch"``, as many as it takes to go through the buffer once in an
            epoch. With ``size=None`` and ``"epoch"`` every sample so far is seen once per epoch: joint
            training's distribution.

    Raises:
        ValueError: ``size`` or ``per_step`` is below 1; when training begins, ``size`` below the number of
            classes.
    """

    carried: ClassVar[tuple[str, ...]] = ("buffer",)

    def __init__(
        self, size: int | None = 200, balanced: bool = False, per_step: int | Literal["equal", "epoch"] = "equal"
    ) -> None:
        check_counts(size=size, per_step=per_step)
        self.size = size
        self.per_step = per_step
        self.buffer = ReplayBuffer(size, balanced=balanced)

    def check(self, data: Stream) -> None:
        """Refuse a buffer that is smaller than the number of classes."""
        check_size(self.size, data)
        self.buffer.seed = data.seed

    def loss(self, learner: Learner, batch: Samples) -> Tensor:
        """Return the loss of the batch joined with samples of the buffer."""
        places = self._places(learner, len(batch.input) * learner.processes[1])
        if len(places):
            batch = joined(batch, learner.replayed(self.buffer.index[places]), learner.num_classes)
        return super().loss(learner, batch)

    def presented(self, learner: Learner) -> Tensor:
        """Return how many samples of each class are replayed in an epoch."""
        per_step = learner.batch_size if self.per_step == "equal" else self.per_step
        count = len(self.buffer) if isinstance(per_step, str) else learner.steps_per_epoch * per_step
        return presented_by(learner, self.buffer, count)

    def _places(self, learner: Learner, batch_size: int) -> Tensor:
        if not len(self.buffer):
            return self.buffer.index
        epoch, step = learner.current_epoch, learner.step
        if self.per_step == "epoch":
            start, stop = (len(self.buffer) * s // learner.steps_per_epoch for s in (step, step + 1))
            return self.buffer.section(start, stop, epoch)
        return self.buffer.draw(batch_size if self.per_step == "equal" else self.per_step, epoch, step)

    def end_task(self, learner: Learner) -> dict[str, float]:
        """Offer the task's training samples to the buffer."""
        index = learner.task_samples()
        self.buffer.add(index, learner.groups(index))
        return {"memory": len(self.buffer)}


class DERPlusPlus(Strategy):
    """Dark experience replay++: replay with labels, and with the logits stored when the sample was seen.

        l(B) + alpha mean_{(x', z') in M} ||h(x') - z'||^2 / C + beta l(M'')

    with two draws M, M'' from a reservoir. Samples enter it as they are trained on, with their logits of that
    step (all C of them, whatever the mask), in every epoch. Logits of a margin loss are small beside those of
    cross-entropy, and so is the middle term: an alpha found with one loss is not comparable under another.

    Source: Buzzega et al., "Dark experience for general continual learning: a strong, simple baseline",
    NeurIPS 2020, equation 6. The square is the mean over logits, as in the authors' code.

    Args:
        size: Number of samples in the buffer.
        alpha: Weight of the logits.
        beta: Weight of the labels.

    Raises:
        ValueError: ``size`` is below 1 or a weight negative; when training begins, ``size`` below the number
            of classes, or data that mixes images.
    """

    carried: ClassVar[tuple[str, ...]] = ("buffer",)

    def __init__(self, size: int = 200, alpha: float = 0.2, beta: float = 1.0) -> None:
        check_counts(size=size)
        check_weights(alpha=alpha, beta=beta)
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.buffer = ReplayBuffer(size)

    def check(self, data: Stream) -> None:
        """Refuse a buffer that is smaller than the number of classes, and mixtures of images."""
        check_size(self.size, data)
        if data.mixing:
            raise ValueError(
                "Expected single images for DER++, which stores an image's logits as they are trained on, got MixUp or "
                "CutMix, whose logits are of two images: leave them out."
            )
        self.buffer.seed = data.seed

    def presented(self, learner: Learner) -> Tensor:
        """Return how many samples of each class are replayed with their labels in an epoch."""
        return presented_by(learner, self.buffer, learner.steps_per_epoch * learner.batch_size)

    def loss(self, learner: Learner, batch: Samples) -> Tensor:
        """Return the sum of the three terms, from one forward pass; take the batch into the buffer."""
        rank, processes = learner.processes
        count = len(batch.input) * processes
        parts, old = [batch], None
        if len(self.buffer):
            assert self.buffer.logits is not None, "they are stored with each sample"
            places = [self.buffer.draw(count, learner.current_epoch, learner.step, stream) for stream in (0, 1)]
            parts += [learner.replayed(self.buffer.index[p], draw) for draw, p in enumerate(places)]
            old = self.buffer.logits[places[0].tensor_split(processes)[rank]]
        logits = torch.split(learner(torch.cat([part.input for part in parts])), [len(part.input) for part in parts])
        loss = learner.loss_of(logits[0], batch.target, batch.index)
        if old is not None:
            loss = loss + self.alpha * F.mse_loss(logits[1], old.to(logits[1]))
            loss = loss + self.beta * learner.loss_of(logits[2], parts[2].target, parts[2].index)
        index, now = batch.index, logits[0].detach()
        if processes > 1:
            index, now = of_all(index), of_all(now)
        self.buffer.add(index, learner.groups(index), learner.current_epoch, logits=now)
        return loss
