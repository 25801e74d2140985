"""Continual learning task: train on the tasks of a stream in turn, and measure forgetting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from hem.datamodules.continual import ContinualDataModule
from hem.losses import evaluate, reduction
from hem.metrics import Accuracy, catalog, collection
from hem.metrics.transfer import Row, TaskAccuracy, row_metrics, transfer
from hem.modes import evaluating
from hem.modules.base import Task
from hem.modules.calibrator import Calibrator, RunCalibration, Scores, predicted, run_calibration
from hem.modules.optimization import most_accumulated
from hem.names import check_name
from hem.plots.matrices import accuracy_matrix
from hem.rng import some
from hem.runs.outputs import write_figure, write_table
from hem.runs.trainer import datamodule, passed
from hem.strategies import Naive, Samples, Strategy
from hem.strategies.classes import Mask, among, among_targets, decision_classes, loss_classes

Counts = Literal["stream", "presented"]
STATE = "continual"  # the checkpoint's key
REPLAY = 0x7265706C6179  # what the augmentation of replayed samples is drawn with


class ContinualTask(Task):
    """Train on the tasks of a stream in turn, within one ``fit``; test on all tasks after each.

    At the beginning of each task the optimiser and its schedule begin anew (``total_steps`` are those of the
    task). Behind each task the test parts of *all* tasks give a row of the accuracy matrix: it is in
    ``accuracy_matrix.csv`` (row 0: the untrained network) and ``accuracy_matrix.png``, what it says
    (:func:`~hem.metrics.transfer.transfer`) in the curves as ``stream/<metric>``, and the accuracies as
    ``stream/accuracy/<task>``. The validation part (``val/accuracy``, of the tasks so far) is another matter.

    ``test`` with a checkpoint of the stream takes the matrix from it, tests once more for its last row, and
    gives ``test/<metric>``, ``test/accuracy_after/<k>/<i>``, ``test/accuracy`` (of all test images) and
    ``test/tasks_learnt``: where training was stopped before the last task, the metrics are of those alone.

    Which classes a decision is among: under the scenario ``task`` those of the image's task, else with
    ``mask="none"`` all of them, with any other mask those of the tasks so far and of the tasks up to the
    image's (so that the untrained network and tasks to come have an accuracy). Which classes the *loss* of a
    sample is among, see ``mask``; the other logits get no gradient at all (:func:`among`). The loss of samples
    with different sets of classes is the mean over the sets' losses, weighted by their samples. Under the
    scenarios ``domain`` and ``permuted`` every task has every class, and the mask changes nothing.

    Checkpoints hold, beside ``net.*``, the matrix and what the strategy carries: a run that is killed goes on
    with ``--ckpt_path last`` and ends like an uninterrupted one. Other tasks can examine them.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        strategy: What is done against forgetting; None: nothing.
        mask: ``"none"``: the loss is among all classes from the start; ``"unseen"``: among those of the tasks so
            far; ``"other_tasks"``: among those of the sample's own task.
        counts: What a loss with ``class_counts`` gets: ``"stream"``, the training samples of the whole stream;
            ``"presented"``, the samples of each class that an epoch of the current task shows, replayed ones
            among them (at least 1).
        calibrator: Fits probabilities in the test, on the validation samples of the tasks that are learnt and among the
            classes that their decisions are among; None: one temperature. See :class:`~hem.modules.Calibrator`.
        scores: Whether predictions have ``"calibrated"`` probabilities, or ``"raw"`` ones, the softmax of the logits.
        **kwargs: See :class:`~hem.modules.base.Task`.

    Raises:
        ValueError: ``skip_separated`` or ``frozen_epochs`` is on, or the mask or counts are none of those.
    """

    shown = Task.shown | {catalog.AVERAGE_ACCURACY.key(stage) for stage in ("stream", "test")}
    resumes_within_epochs = False  # a task begins with an epoch, and its strategy keeps what steps have left behind

    def __init__(
        self,
        *args: Any,
        strategy: Strategy | None = None,
        mask: Mask = "unseen",
        counts: Counts = "stream",
        calibrator: Calibrator | None = None,
        scores: Scores = "calibrated",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.frozen_epochs not in (0, "all"):
            raise ValueError(
                f"A stream begins its optimiser anew with each task: set frozen_epochs to 0 or all, not "
                f"{self.frozen_epochs}."
            )
        check_name(scores, get_args(Scores), "kind of scores")
        check_name(mask, get_args(Mask), "mask")
        check_name(counts, get_args(Counts), "kind of counts")
        if self.skip_separated:
            raise ValueError("A strategy needs the logits of all samples: leave skip_separated off.")
        self.strategy = Naive() if strategy is None else strategy
        self.mask = mask
        self.counts = counts
        self.calibrator = Calibrator() if calibrator is None else calibrator
        self.scores = scores
        self.calibration: RunCalibration | None = None
        self.step = 0  # of the epoch, from 0
        self.baseline: Row = []
        self.matrix: list[Row] = []
        self.measured = 0  # the optimiser step of the last row
        self.row_is_of_weights = True  # whether the checkpoint was saved at that step
        self.presented: Tensor | None = None  # (C,)

    def configure_metrics(self, stage: str) -> dict[str, MetricCollection]:
        """Return the accuracy in validation; training logs the strategy's loss, the test an accuracy per task."""
        return {"plain": collection({catalog.ACCURACY.path: Accuracy()})} if stage == "val" else {}

    # -- what the strategies use ---------------------------------------------------------------------------

    @property
    def stream(self) -> ContinualDataModule:
        """The data module, a stream.

        Raises:
            TypeError: The data is none.
        """
        data = datamodule(self.trainer)
        if not isinstance(data, ContinualDataModule):
            raise TypeError(
                f"Expected a stream for ContinualTask, got {type(data).__name__}: put it into one, "
                f"`--data ContinualDataModule --data.data {type(data).__name__}`."
            )
        return data

    @property
    def current(self) -> int:
        """The current task, from 0."""
        return self.stream.current_task

    @property
    def steps_per_epoch(self) -> int:
        """The steps of an epoch of the current task."""
        return int(self.trainer.num_training_batches)

    @property
    def batch_size(self) -> int:
        """The samples of a step, over all processes."""
        return self.stream.batch_size

    @property
    def processes(self) -> tuple[int, int]:
        """Rank and world size."""
        return self.trainer.global_rank, self.trainer.world_size

    def task_samples(self) -> Tensor:
        """Return the numbers of the current task's training samples, (N,) int64."""
        return self.stream.part_of("train", [self.current])

    def groups(self, index: Tensor) -> Tensor:
        """Return the group of each training sample, (N,) int64: one for every class of every task."""
        index = index.cpu()
        return self.stream.task_of(index) * self.num_classes + self.stream.images("train").targets.cpu()[index]

    def replayed(self, index: Tensor, draw: int = 0) -> Samples:
        """Return this process's share of samples, on its device, augmented anew in each step and draw."""
        own = index.tensor_split(self.trainer.world_size)[self.trainer.global_rank]
        raw = self.stream.fetched(own, REPLAY, draw, self.trainer.global_step)
        return Samples(*self.trainer.strategy.batch_to_device(raw, dataloader_idx=0))

    def heads(self, task: int) -> list[Tensor]:
        """Return the classes of each softmax up to a task: one head for all tasks, or one per task."""
        stream, own = self.stream, self.stream.scenario == "task"
        return [each.to(self.device) for each in (map(stream.classes, range(task + 1)) if own else [stream.seen(task)])]

    def loss_of(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Return the loss of training samples over the classes that ``mask`` keeps, averaged over all devices.

        Args:
            logits: (N, C).
            target: (N,) or (N, C).
            index: (N,), the samples' numbers.
        """
        if self.mask != "other_tasks":
            return self._loss_among(logits, target, self._loss_classes(self.current))
        tasks = self.stream.task_of(index)
        shares = torch.bincount(tasks, minlength=self.stream.tasks).to(logits)
        with self._loss_scopes():
            shares = reduction.all_sum(shares)
        shares = shares / shares.sum()
        total = logits.new_zeros(())
        for t in shares.nonzero()[:, 0].tolist():  # the same ones on each device
            own = tasks == t
            total = total + shares[t] * self._loss_among(logits[own], target[own], self._loss_classes(t))
        return total

    def _loss_classes(self, task: int) -> Tensor:
        return loss_classes(self.stream, self.mask, task).to(self.device)

    def _loss_among(self, logits: Tensor, target: Tensor, classes: Tensor) -> Tensor:
        criterion = among(self.loss, classes, self.num_classes, self.presented)
        target = among_targets(target, classes, self.num_classes)
        return self.training_loss(logits[:, classes], target, criterion)

    def sample_gradients(self, count: int, chunk: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield per-sample gradients of the loss on the current task, in evaluation mode, without augmentation.

        Args:
            count: Number of samples, at most; which ones is a function of the seed.
            chunk: Samples at once.

        Yields:
            By name of weight a tensor (chunk, *shape of the weight).
        """
        stream, classes = self.stream, self._loss_classes(self.current)
        criterion = among(self.loss, classes, self.num_classes, self.presented)

        def loss(weights: dict[str, Tensor], input: Tensor, target: Tensor) -> Tensor:
            logits = functional_call(self.net, weights, (input[None],))
            return evaluate(criterion, logits[:, classes], target[None])

        index = stream.part_of("train", [self.current])
        index = index[some(count, len(index), stream.seed, self.current)]
        weights = {name: p.detach() for name, p in self.net.named_parameters() if p.requires_grad}
        with evaluating(self.net):
            for part in torch.split(index, chunk):
                batch = self.trainer.strategy.batch_to_device(stream.fetched(part), dataloader_idx=0)
                target = among_targets(batch.target, classes, self.num_classes)
                yield vmap(grad(loss), in_dims=(None, 0, 0))(weights, batch.input, target)

    # -- training ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the stream and the strategy before training."""
        super().setup(stage)
        stream = self.stream
        self.accuracies = TaskAccuracy(stream.tasks)
        if stage != "fit":
            return
        stream.cumulative = self.strategy.cumulative
        if (accumulated := most_accumulated(self.trainer)) != 1:
            raise ValueError(
                "Expected one batch per step, for a strategy's loss cannot be put together from micro-batches, got "
                f"{accumulated}: set trainer.accumulate_grad_batches to 1, and leave GradientAccumulationScheduler out."
            )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                raise ValueError(
                    "Expected the weights that a stream is trained with, which give the accuracy matrix, got "
                    f"{type(callback).__name__}, whose averages it would be tested with: leave the callback out."
                )
        if stream.mixing and self.strategy.cumulative and self.mask == "other_tasks":
            raise ValueError(
                "Expected images of one task in each mixture, for the loss of a sample leaves out the classes of other "
                f"tasks, got {type(self.strategy).__name__} with MixUp or CutMix over the images of all tasks: leave "
                "them out, or set mask to unseen."
            )
        self.strategy.check(stream)

    def total_steps(self) -> int:
        """Return the number of optimiser steps of the current task."""
        super().total_steps()  # loads what is to be counted
        return int(self.trainer.num_training_batches) * self.stream.epochs_per_task

    def on_train_start(self) -> None:
        """Test the untrained network."""
        super().on_train_start()
        if not self.baseline:
            self.baseline = self.tested(-1)
            self._record()

    def on_train_epoch_start(self) -> None:
        """Begin a task in its first epoch."""
        super().on_train_epoch_start()
        if self.current_epoch % self.stream.epochs_per_task:
            return
        if self.current_epoch:
            self.trainer.strategy.setup_optimizers(self.trainer)
        self.presented = self._presented() if self.counts == "presented" else None
        self.strategy.begin_task(self)

    def _presented(self) -> Tensor:
        stream = self.stream
        first = 0 if self.strategy.cumulative else self.current
        index = stream.part_of("train", range(first, self.current + 1))
        counts = torch.bincount(stream.images("train").targets.cpu()[index], minlength=self.num_classes).double()
        return (counts + self.strategy.presented(self)).clamp(min=1).to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the strategy's loss of one batch."""
        self.step = batch_idx
        loss = self.strategy.loss(self, batch)
        if self.logs_this_step:
            self.log(catalog.LOSS.key("train"), loss.detach(), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Call the strategy's ``before_step``."""
        super().on_before_optimizer_step(optimizer)
        self.strategy.before_step(self)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call the strategy's ``after_step``."""
        self.strategy.after_step(self)

    def on_train_epoch_end(self) -> None:
        """End a task in its last epoch: update the strategy, test, write the matrix."""
        if (self.current_epoch + 1) % self.stream.epochs_per_task:
            return
        self.log(catalog.TASK.key("stream"), float(self.current + 1))
        for name, value in self.strategy.end_task(self).items():
            self.log(f"stream/{name}", value, sync_dist=True)
        self.matrix.append(self.tested(self.current))
        self.measured, self.row_is_of_weights = self.trainer.global_step, True
        self._log_row("stream", self.matrix[-1])
        self._log_transfer("stream")
        self._record()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the accuracy matrix and the strategy's state, under a key that other tasks ignore."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE] = {
            "strategy": type(self.strategy).__name__,
            "state": self.strategy.state_dict(),
            "matrix": self.matrix,
            "measured": self.measured,
            "baseline": self.baseline,
            "presented": self.presented,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the accuracy matrix, and the strategy's state where training is resumed."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(STATE)
        fitting = self.trainer.state.fn == "fit"
        if state is None:
            if fitting:
                raise ValueError(
                    "The checkpoint is of another task and holds no state of a stream to go on with: leave --ckpt_path "
                    "out to begin one."
                )
            return
        self.matrix, self.baseline = [list(row) for row in state["matrix"]], list(state["baseline"])
        step = checkpoint["global_step"]
        self.measured = state.get("measured", step)
        self.row_is_of_weights = self.measured == step
        if fitting:
            if state["strategy"] != type(self.strategy).__name__:
                raise ValueError(
                    f"The checkpoint was trained with the strategy {state['strategy']}, but the config has "
                    f"{type(self.strategy).__name__}: go on with the same one."
                )
            if (tasks := len(self.baseline)) not in (0, self.stream.tasks):
                raise ValueError(
                    f"The checkpoint is of a stream of {tasks} tasks, but the config has {self.stream.tasks}: go on "
                    "with as many."
                )
            self.presented = None if state["presented"] is None else state["presented"].to(self.device)
            self.strategy.load_state_dict(state["state"])

    # -- testing -------------------------------------------------------------------------------------------

    def _among(self, logits: Tensor, tasks: Tensor, after: int) -> Tensor:
        """Return the logits (N, C), with -inf for classes that cannot be chosen."""
        allowed = decision_classes(self.stream, self.mask, after).to(logits.device)
        return logits.masked_fill(~allowed[tasks], -torch.inf)

    def tested(self, after: int) -> Row:
        """Return the accuracy on the test part of each task; NaN for a task without sample (see limit_test_batches).

        Args:
            after: The task that was learnt last, from 0; -1: none.
        """
        self.accuracies.reset()
        with evaluating(self.net), torch.no_grad():
            for input, target, index in passed(self.trainer, self.stream.test_dataloader()):
                self._count(self(input), target, index, after)
        row: Row = self.accuracies.compute().tolist()
        return row

    def _count(self, logits: Tensor, target: Tensor, index: Tensor, after: int) -> None:
        tasks = self.stream.task_of(index, "test")
        self.accuracies.update(self._among(logits, tasks, after).argmax(1) == target, tasks.to(target.device))

    def evaluate(self, batch: Any, stage: str) -> Tensor:
        """Update the metrics of a stage with decisions among the allowed classes; return the logits."""
        input, target, index = batch
        logits: Tensor = self(input).float()
        if stage == "test":
            self._count(logits, target, index, self._learnt - 1)
        else:
            after = self.current if self.trainer.state.fn == "fit" else self.stream.tasks - 1
            self.measure(stage, self._among(logits, self.stream.task_of(index, "val"), after), target)
        return logits

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the last row of the matrix with a batch, and the calibration with its samples of learnt tasks."""
        _, target, index = batch
        logits = self.evaluate(batch, "test")
        self.calibrator.update(*self._known(logits, target, self.stream.task_of(index, "test")))

    def _known(self, logits: Tensor, target: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Return masked logits and labels of the samples of learnt tasks."""
        known = (tasks < self._learnt).to(logits.device)
        return self._among(logits, tasks, self._learnt - 1)[known], target[known]

    def on_test_start(self) -> None:
        """Fit the probabilities on the validation samples of the tasks that are learnt."""
        self.calibrator.begin(self.trainer, self._validation)

    def _validation(self, batch: Any) -> tuple[Tensor, Tensor]:
        input, target, index = batch
        return self._known(self(input).float(), target, self.stream.task_of(index, "val"))

    @property
    def _learnt(self) -> int:
        """The number of tasks that are learnt; all, where the checkpoint is not of a stream."""
        return len(self.matrix) or self.stream.tasks

    def on_test_epoch_end(self) -> None:
        """Log and write the accuracy matrix and its metrics."""
        row: Row = self.accuracies.compute().tolist()
        self.log(catalog.ACCURACY.key("test"), self.accuracies.whole(), prog_bar=True, sync_dist=True)
        self.accuracies.reset()
        self.log_found(self.calibrator.finish(self.trainer, self.net))
        if not self.matrix:
            self._log_row("test", row)
            return
        if not self.row_is_of_weights:
            if self.trainer.is_global_zero:
                print("the checkpoint was saved before its task ended: the accuracy matrix is left as it is")
            self._log_row("test", row)
            return
        if len(self.matrix) < self.stream.tasks and self.trainer.is_global_zero:
            print(f"only {len(self.matrix)} of the {self.stream.tasks} tasks are learnt: the metrics are of those")
        self.log(catalog.TASKS_LEARNT.key("test"), float(len(self.matrix)), sync_dist=True)
        self.matrix[-1] = row
        for after, accuracies in enumerate([self.baseline, *self.matrix]):
            self._log_row("test", accuracies, after)
        self._log_transfer("test")
        self._record()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the columns of ``predictions.csv``: index, the most probable of all classes with their scores."""
        input, _, index = batch
        return predicted(self(input), index, self.class_names, self.calibration)

    def on_predict_start(self) -> None:
        """Load the run's calibration for these weights, if any."""
        self.calibration = run_calibration(self.trainer, self.net) if self.scores == "calibrated" else None

    # -- what is written -----------------------------------------------------------------------------------

    def _log_row(self, stage: str, row: Row, after: int | None = None) -> None:
        # those of a test into results.json alone
        self.log_dict(row_metrics(stage, row, after), logger=None if stage == "stream" else False, sync_dist=True)

    def _log_transfer(self, stage: str) -> None:
        found = transfer(self.matrix, self.baseline)
        self.log_found({f"{stage}/{path}": torch.tensor(value) for path, value in found.items()})

    def _record(self) -> None:
        """Write the matrix as a table and as a picture."""
        if not self.trainer.is_global_zero:
            return
        columns = ["after", *(f"task_{task}" for task in range(1, len(self.baseline) + 1))]
        rows = [
            dict(zip(columns, [after, *(f"{accuracy:.6f}" for accuracy in row)], strict=True))
            for after, row in enumerate([self.baseline, *self.matrix])
        ]
        write_table(self.trainer, "accuracy_matrix", columns, rows)
        if self.matrix:
            write_figure(self.trainer, "accuracy_matrix", accuracy_matrix(self.matrix))
