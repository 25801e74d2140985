"""Callback that saves within epochs, and stops a training at signals and at a loss that is not finite."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from hem.runs.files import atomic_file
from hem.runs.newest import LAST, last_checkpoint
from hem.runs.ranks import of_all_ranks
from hem.runs.trainer import trial

GO_ON, SAVE, STOP, NONFINITE = range(4)  # per-rank status of a step; ranks agree on the maximum
STATE = "watch"  # the checkpoint's key
INTERRUPTED = 130  # the exit code of a run that Ctrl-C has stopped, as shells have it
AGAIN = 75  # the exit code of a run that was told to stop and can be continued: EX_TEMPFAIL of sysexits.h


class Step(NamedTuple):
    """One training step, kept until its loss is known to be finite."""

    status: Tensor  # int32 scalar on the device
    gathering: dist.Work | None  # the pending all-reduce to the maximum over processes
    loss: Tensor | None
    batch: Any
    logits: Tensor | None
    step: int
    epoch: int


def _moved(value: Any, there: str, here: str) -> Any:
    """Return a path, or a mapping whose keys are paths, with the folder ``there`` replaced by ``here``."""
    if isinstance(value, dict):
        return {_moved(path, there, here): score for path, score in value.items()}
    return here + value.removeprefix(there) if isinstance(value, str) and value.startswith(there) else value


def _stopped(callback: Callback) -> bool:
    """Return whether a callback may have stopped the training, and would stop it again with its present patience."""
    if not isinstance(callback, EarlyStopping):
        return False
    patience = callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
    return not patience or callback.wait_count >= callback.patience


def stop(trainer: Trainer, reason: str) -> NoReturn:
    """End all processes of a run, the first of them with an error message.

    Raises:
        ValueError: On rank 0.
        SystemExit: On the other ranks.
    """
    if trainer.is_global_zero:
        raise ValueError(reason)
    raise SystemExit(1)


def answer(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> None:
    """Install a handler of signals; in another thread than the main one, where Python handles none, do nothing."""
    with suppress(ValueError):
        for number in signals:
            signal.signal(number, handler)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at a signal, with the exit code that says to try again."""
    raise SystemExit(AGAIN)


class Watch(Checkpoint):
    """Callback that saves ``last.ckpt``, stops at signals, and stops at a NaN or infinite loss.

    * The ``last`` checkpoint is written after every epoch, after its validation. (Lightning's ``save_last`` writes one
      only if the epoch was among the best.)
    * It is also written every ``save_minutes`` (or ``save_steps``) within an epoch, and where training ends within one
      (``max_steps``, ``max_time``), with the position in it: ``--ckpt_path auto`` resumes with the next batch.
    * At SIGTERM or SIGUSR1 (a scheduler's notice that the time is up) it is written after the current step, and the
      process ends with exit code 75, "try again". Ctrl-C does the same with code 130; a second one stops at once.
      A test, a validation or a prediction ends at once with code 75, and leaves no results.
    * A NaN or infinite training loss ends the run with exit code 1. Its batch is saved in the run folder as
      ``nonfinite_step<k>_rank<r>.pt``, for ``torch.load(path, weights_only=True)``: a dictionary of ``input``,
      ``target``, ``index``, ``logits``, ``loss``, ``step`` and ``epoch``. No checkpoint is written after it.

    All processes act after the same step: each has a status for it, and all take the maximum. It is reduced
    asynchronously: the status of a step is read after the next step has been given to the device (or before a
    checkpoint is written, or a validation begins).

    Nothing is saved after the last batch of an epoch or before a validation, which a resumed run would skip: its
    checkpoint follows the validation; nor between the micro-batches of an accumulated step, whose gradients no
    checkpoint has; nor for a task with ``resumes_within_epochs = False``, which resumes from the end of an epoch.

    Args:
        save_minutes: Minutes between checkpoints within an epoch; None: no checkpoints by time.
        save_steps: Optimiser steps between them, at least two; None: no checkpoints by steps.

    Raises:
        ValueError: If one of them is not positive.
    """

    def __init__(self, save_minutes: float | None = 10, save_steps: int | None = None) -> None:
        for name, value in (("save_minutes", save_minutes), ("save_steps", save_steps)):
            if value is not None and value <= 0:
                raise ValueError(f"Expected {name} to be above 0, or null for no checkpoints by it, got {value}.")
        self.save_minutes = save_minutes
        self.save_steps = save_steps
        self.saved = (0.0, 0)  # time and step of the last save
        self.closed = 0  # the last step after which an epoch, or a validation, was saved
        self.notice: signal.Signals | None = None
        self.task_at_hand = GO_ON
        self.pending: Step | None = None
        self.resumed: dict[str, Any] = {}  # the state of the training that is resumed

    # -- Lightning's hooks ---------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state of the checkpoint and install signal handlers; the Trainer restores the former ones."""
        metrics = self.resumed.get("metrics", {})
        trainer.callback_metrics.update({name: value.to(pl_module.device) for name, value in metrics.items()})
        if trainer.fit_loop.resumed_on_epoch_end:  # saved by `on_train_epoch_end`, which is not called again
            self._step_plateau(trainer, pl_module, trainer.current_epoch)
        stops = any(map(_stopped, trainer.callbacks))  # type: ignore[attr-defined]
        trainer.should_stop = stops and self.resumed.get("stop", False)
        if trainer.ckpt_path is not None and trainer.global_step >= trainer.estimated_stepping_batches:
            self._refuse_finished(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):  # a run resumed within an epoch does not start it
                trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(trainer.current_epoch)
        self.saved, self.closed = (time.monotonic(), trainer.global_step), trainer.global_step
        self.notice, self.task_at_hand, self.pending = None, GO_ON, None
        answer(self._take_notice, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the curves count the steps from where they stand: a checkpoint behind a validation has one too few."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the status of the previous step, send that of this one, and save or stop if asked to."""
        self._read(trainer)
        self.pending = self._send(trainer, pl_module, outputs, batch)
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        ends = loop._is_training_done or (trainer.should_stop and fit._can_stop_early)  # within the epoch
        if self.task_at_hand == GO_ON and not ends:
            return
        validates = loop._should_check_val_fx(fit._data_fetcher)  # type: ignore[arg-type]
        if loop._should_accumulate() or trainer.is_last_batch or validates:
            return
        # Lightning logs this step after the hook: too late if the process ends here
        trainer._logger_connector.update_train_step_metrics()
        if getattr(pl_module, "resumes_within_epochs", True):
            self._save(trainer)
            if ends:  # with more steps, the epoch would go on here; behind its end it would count as complete
                self.closed = trainer.global_step
        if self.task_at_hand == STOP:
            if trainer.is_global_zero:
                by = "Ctrl-C" if self.notice == signal.SIGINT else "a signal"
                print(
                    f"stopped by {by} after step {trainer.global_step}: go on with `--ckpt_path auto` from "
                    f"{last_checkpoint(self._folder(trainer)) or 'the beginning'}.",
                    file=sys.stderr,
                )
            raise SystemExit(INTERRUPTED if self.notice == signal.SIGINT else AGAIN)
        self.task_at_hand = GO_ON

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last status, so that no validation begins after a loss that is not finite."""
        self._read(trainer)
        if trainer.state.fn == "validate":
            answer(end, signal.SIGTERM, signal.SIGUSR1)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install signal handlers: Lightning's let a test go on, and end it without results as if all were well."""
        answer(end, signal.SIGTERM, signal.SIGUSR1)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install signal handlers, as for a test."""
        answer(end, signal.SIGTERM, signal.SIGUSR1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation; callbacks that save checkpoints run in order, so the best one is known."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if getattr(pl_module, "resumes_within_epochs", True):  # otherwise the end of the epoch saves
            self.closed = trainer.global_step
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save an epoch without validation; finish one that was resumed within it, or after its validation."""
        if self.closed != trainer.global_step:
            self.closed = trainer.global_step
            self._save(trainer)
        if trainer.fit_loop.restarting:  # not saved: who resumes from here steps them again
            self._step_plateau(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last status."""
        self._read(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print that no step was trained because training had ended already.

        Raises:
            ValueError: If no step of a new run was trained.
        """
        if trainer.global_step > self.resumed.get("step", 0) or trial(trainer):
            return
        if trainer.ckpt_path is None:
            stop(
                trainer,
                f"Expected a training of one step at least, got none: set trainer.max_epochs ({trainer.max_epochs}), "
                f"max_steps ({trainer.max_steps}) and limit_train_batches ({trainer.limit_train_batches}) above 0.",
            )
        self._refuse_finished(trainer)
        if trainer.is_global_zero:
            print(f"nothing left to train: {trainer.ckpt_path} is of the end of its training.", file=sys.stderr)

    def _refuse_finished(self, trainer: Trainer) -> None:
        """Raise an error if another run is begun from the end of a finished training: it would train no step."""
        path = Path(str(trainer.ckpt_path))
        if path.parent != self._folder(trainer):
            stop(
                trainer,
                f"Expected the checkpoint of a training that goes on, got {path}, of the end of one (step "
                f"{trainer.global_step}): raise its length, such as --trainer.max_epochs, where no schedule spans it, "
                f"or train another run from its weights with `--model.net.weights {path.parent.parent}` and without "
                "--ckpt_path.",
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the last status, so that no checkpoint follows a loss that is not finite, and flush the curves.

        The checkpoint gets the metrics, for callbacks and schedulers that read them at the end of the epoch.
        """
        self._read(trainer)
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint[STATE] = {"metrics": metrics, "stop": trainer.should_stop}
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training begins, for Lightning resets the metrics before.

        If the run was moved, the paths of the best checkpoints are changed to the new folder: Lightning would otherwise
        forget their scores as well, and the next epoch would become the best.
        """
        self.resumed = {**checkpoint.get(STATE, {}), "step": checkpoint["global_step"]}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StochasticWeightAveraging) and trainer.state.fn == "fit":
                stop(
                    trainer,
                    "Expected callbacks that go on where a run is resumed, got StochasticWeightAveraging, which would "
                    "begin anew or average nothing: train without interruption, or take WeightAveraging or "
                    "EMAWeightAveraging (--config trainer/ema).",
                )
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                state["patience"] = callback.patience  # of the present config; Lightning restores the former one
        here = self._folder(trainer)
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).parent == here:
            for state in checkpoint.get("callbacks", {}).values():
                if there := state.get("dirpath"):
                    moved = {name: _moved(value, there, str(here)) for name, value in state.items()}
                    state.update(moved)

    @staticmethod
    def _step_plateau(trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Step the schedulers that read a metric after ``epochs`` epochs, which Lightning omits in a resumed run."""
        for each in trainer.lr_scheduler_configs:
            if each.reduce_on_plateau and epochs % each.frequency == 0 and each.monitor in trainer.callback_metrics:
                pl_module.lr_scheduler_step(each.scheduler, trainer.callback_metrics[each.monitor])

    def _save(self, trainer: Trainer) -> None:
        if trial(trainer):
            return
        trainer.save_checkpoint(self._folder(trainer) / LAST, weights_only=False)
        self.saved = (time.monotonic(), trainer.global_step)

    @staticmethod
    def _folder(trainer: Trainer) -> Path:
        """Return the folder of the run's other checkpoints."""
        return Path(getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir)

    # -- status of a step ----------------------------------------------------------------------------------

    def _take_notice(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.notice == signal.SIGINT:
                raise KeyboardInterrupt
            # not by print, whose buffer may be in use
            os.write(2, b"stopping after the next step, with a checkpoint; Ctrl-C again: at once\n")
        self.notice = signal.Signals(number)

    def _send(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any) -> Step:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        loss = loss.detach() if isinstance(loss, Tensor) else None
        status = torch.full((), self._request(trainer), dtype=torch.int32, device=task.device)
        if loss is not None:
            status = torch.where(loss.isfinite().all(), status, NONFINITE)
        several = trainer.world_size > 1
        gathering = dist.all_reduce(status, dist.ReduceOp.MAX, async_op=True) if several else None
        logits = getattr(task, "latest_logits", None)
        return Step(status, gathering, loss, batch, logits, trainer.global_step, trainer.current_epoch)

    def _request(self, trainer: Trainer) -> int:
        if self.notice is not None:
            return STOP
        then, step = self.saved
        late = self.save_minutes is not None and time.monotonic() - then >= 60 * self.save_minutes
        # saved one step from now
        far = self.save_steps is not None and trainer.global_step + 1 - step >= self.save_steps
        return SAVE if late or far else GO_ON

    def _read(self, trainer: Trainer) -> None:
        step, self.pending = self.pending, None
        if step is None:
            return
        if step.gathering is not None:
            step.gathering.wait()
        status = int(step.status)
        if status == NONFINITE:
            self._report(trainer, step)
        self.task_at_hand = max(self.task_at_hand, status)

    def _report(self, trainer: Trainer, step: Step) -> None:
        """Save the batch that gave a non-finite loss, and end all processes.

        The mean of a loss is over the samples of all processes, so one batch makes it NaN on all of them: the logits
        show which process had it. If all logits are finite (the loss itself is at fault), all batches are saved.

        Raises:
            FloatingPointError: On the processes that save a batch.
            SystemExit: On the others.
        """
        mine = step.logits is not None and not bool(step.logits.isfinite().all())
        if any(of_all_ranks(trainer, mine)) and not mine:
            raise SystemExit(1)
        parts = dict(zip(("input", "target", "index"), step.batch, strict=False))
        record = {**parts, "logits": step.logits, "loss": step.loss}
        record = {name: value.detach().cpu() for name, value in record.items() if isinstance(value, Tensor)}
        path = Path(trainer.default_root_dir) / f"nonfinite_step{step.step}_rank{trainer.global_rank}.pt"
        with atomic_file(path) as file:
            torch.save({**record, "step": step.step, "epoch": step.epoch}, file)
        value = "none" if step.loss is None else step.loss.item()
        kept = last_checkpoint(self._folder(trainer))
        raise FloatingPointError(
            f"Expected a finite loss, but step {step.step} (epoch {step.epoch}) gave {value}: its batch and "
            f"logits are in {path}, the last checkpoint is {kept or 'not there yet'}; lower the learning rate, clip "
            "gradients (--trainer.gradient_clip_val 1), or look for broken images in the batch."
        )
