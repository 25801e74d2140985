"""Guard of a training: it saves within epochs, and stops at signals and at a loss that is no number."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from hem.runs.checkpoints import LAST, last_checkpoint
from hem.runs.files import atomic_file
from hem.runs.ranks import of_all_ranks
from hem.runs.trainer import trial

GO_ON, SAVE, STOP, NONFINITE = range(4)  # per-rank status of a step; ranks agree on the maximum
STATE = "watch"  # the checkpoint's key
INTERRUPTED = 130  # the exit code of a run that Ctrl-C has stopped, as shells have it
AGAIN = 75  # the exit code of a run that was told to stop and can be continued: EX_TEMPFAIL of sysexits.h


class Step(NamedTuple):
    """One step of training: what is kept of it until its loss is known to be finite."""

    word: Tensor  # int32 scalar on the device
    gathering: dist.Work | None  # the maximum of the word over all processes, on its way
    loss: Tensor | None
    batch: Any
    logits: Tensor | None
    step: int
    epoch: int


def _moved(value: Any, there: str, here: str) -> Any:
    """Return a path, or a mapping of paths, with one folder in place of another."""
    if isinstance(value, dict):
        return {_moved(path, there, here): score for path, score in value.items()}
    return here + value.removeprefix(there) if isinstance(value, str) and value.startswith(there) else value


def _stopped(callback: Callback) -> bool:
    """Whether a callback may have stopped a training, and would do so again with the patience that it has now."""
    if not isinstance(callback, EarlyStopping):
        return False
    patience = callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
    return not patience or callback.wait_count >= callback.patience


def stop(trainer: Trainer, reason: str) -> NoReturn:
    """End all processes of a run, one of them with a sentence.

    Raises:
        ValueError: On the first process.
        SystemExit: On the others.
    """
    if trainer.is_global_zero:
        raise ValueError(reason)
    raise SystemExit(1)


class Watch(Checkpoint):
    """Saves ``last.ckpt``, stops when told to, and stops at a loss that is no number.

    * The run's ``last`` checkpoint is written after every epoch, behind its validation. (Lightning's ``save_last``
      writes one only where the epoch was among the best.)
    * Every ``save_minutes`` (or ``save_steps``) it is written within an epoch, too, with the position:
      ``--ckpt_path auto`` goes on with the next batch.
    * At SIGTERM or SIGUSR1 (a scheduler's notice that the time is up) it is written after the step in progress,
      and the process ends with exit code 75: "try again". So it does at Ctrl-C, with code 130; a second one stops at
      once.
    * A NaN or infinite training loss ends the run with exit code 1. The batch that made it lies in the run folder,
      ``nonfinite_step<k>_rank<r>.pt``, for ``torch.load(path, weights_only=True)``: a dictionary of ``input``,
      ``target``, ``index``, ``logits``, ``loss``, ``step`` and ``epoch``. No checkpoint is written after it.

    All processes do the same after the same step: each has a word to say of it, and the largest counts. Nobody
    waits for that: the maximum is taken beside the work that follows, and the word of a step is read after the next
    one has been handed to the device (or before a checkpoint is written, or a validation begins).

    Nothing is saved after the last batch of an epoch: the checkpoint that follows its validation does so, and a
    resumed run would leave the validation out. Nor between the micro-batches of an accumulated step, nor for a task
    that says ``resumes_within_epochs = False``: it goes on from the end of an epoch.

    Args:
        save_minutes: Minutes between checkpoints within an epoch; None: none by time.
        save_steps: Optimiser steps between them, two at least; None: none by steps.

    Raises:
        ValueError: If one of them is not above nought.
    """

    def __init__(self, save_minutes: float | None = 10, save_steps: int | None = None) -> None:
        for name, value in (("save_minutes", save_minutes), ("save_steps", save_steps)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is above nought, or null for no checkpoints by it, but it is {value}.")
        self.save_minutes = save_minutes
        self.save_steps = save_steps
        self.saved = (0.0, 0)  # when, and after which step
        self.closed = 0  # the step after which an epoch, or a validation, was saved
        self.notice: signal.Signals | None = None
        self.task_at_hand = GO_ON
        self.pending: Step | None = None
        self.resumed: dict[str, Any] = {}  # what the checkpoint says of the training that is resumed

    # -- Lightning's hooks ---------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up where the checkpoint was; listen for signals. The Trainer puts back what was there before."""
        metrics = self.resumed.get("metrics", {})
        trainer.callback_metrics.update({name: value.to(pl_module.device) for name, value in metrics.items()})
        if trainer.fit_loop.resumed_on_epoch_end:  # saved by `on_train_epoch_end`, which is not called again
            self._step_plateau(trainer, pl_module, trainer.current_epoch)
            stops = any(map(_stopped, trainer.callbacks))  # type: ignore[attr-defined]
            trainer.should_stop = stops and self.resumed.get("stop", False)
        if trainer.ckpt_path is not None and trainer.global_step >= trainer.estimated_stepping_batches:
            self._refuse_finished(trainer)
        self.saved, self.closed = (time.monotonic(), trainer.global_step), trainer.global_step
        self.notice, self.task_at_hand, self.pending = None, GO_ON, None
        try:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                signal.signal(number, self._take_notice)
        except ValueError:
            pass  # not in the main thread, where alone Python hears signals

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was said of the step before, say a word of this one, and do what is to be done."""
        self._read(trainer)
        self.pending = self._speak(trainer, pl_module, outputs, batch)
        between = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if self.task_at_hand == GO_ON or between or trainer.is_last_batch:
            return
        # Lightning writes the row of this step behind this hook: too late where the process ends in between
        trainer._logger_connector.update_train_step_metrics()
        if getattr(pl_module, "resumes_within_epochs", True):
            self._save(trainer)
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
        """Let no validation begin behind a loss that was no number."""
        self._read(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was validated; Lightning calls those that save checkpoints in turn, so the best one is known."""
        within = getattr(pl_module, "resumes_within_epochs", True)  # else the end of the epoch has work of its own
        if trainer.state.fn == "fit" and not trainer.sanity_checking and within:
            self.closed = trainer.global_step
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save an epoch that has no validation; end one that was saved behind its validation."""
        if trainer.fit_loop.restarting:
            self._step_plateau(trainer, pl_module, trainer.current_epoch + 1)
        if self.closed != trainer.global_step:
            self.closed = trainer.global_step
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last word."""
        self._read(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where not a step was trained: all has been done, or there is nothing to be done.

        Raises:
            ValueError: If a new run stays empty.
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
        """Refuse to begin another run from the end of a training: it would be empty."""
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
        """Let no checkpoint be written behind a loss that was no number; write the curves down as far.

        The metrics go with it, for callbacks and schedules that read them at the end of the epoch.
        """
        self._read(trainer)
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint[STATE] = {"metrics": metrics, "stop": trainer.should_stop}
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what it says until training begins: Lightning forgets the metrics that it has before.

        Where the run was moved, what Lightning knows of the best checkpoint is told its new place: it would forget the
        score as well, and the next epoch would become the best.
        """
        self.resumed = {**checkpoint.get(STATE, {}), "step": checkpoint["global_step"]}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                state["patience"] = callback.patience  # that of the command, where Lightning takes the former one
        here = self._folder(trainer)
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).parent == here:
            for state in checkpoint.get("callbacks", {}).values():
                if there := state.get("dirpath"):
                    moved = {name: _moved(value, there, str(here)) for name, value in state.items()}
                    state.update(moved)

    @staticmethod
    def _step_plateau(trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Step the schedules that read a metric, behind so many epochs: Lightning leaves it out in a resumed run."""
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
        """Where the run's other checkpoints lie."""
        return Path(getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir)

    # -- words ---------------------------------------------------------------------------------------------

    def _take_notice(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.notice == signal.SIGINT:
                raise KeyboardInterrupt
            # past Python's buffers, which may be in use
            os.write(2, b"stopping after the next step, with a checkpoint; Ctrl-C again: at once\n")
        self.notice = signal.Signals(number)

    def _speak(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any) -> Step:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        loss = loss.detach() if isinstance(loss, Tensor) else None
        word = torch.full((), self._wish(trainer), dtype=torch.int32, device=task.device)
        if loss is not None:
            word = torch.where(loss.isfinite().all(), word, NONFINITE)
        several = trainer.world_size > 1
        gathering = dist.all_reduce(word, dist.ReduceOp.MAX, async_op=True) if several else None
        logits = getattr(task, "latest_logits", None)
        return Step(word, gathering, loss, batch, logits, trainer.global_step, trainer.current_epoch)

    def _wish(self, trainer: Trainer) -> int:
        if self.notice is not None:
            return STOP
        then, step = self.saved
        late = self.save_minutes is not None and time.monotonic() - then >= 60 * self.save_minutes
        # a step from now is when it is done
        far = self.save_steps is not None and trainer.global_step + 1 - step >= self.save_steps
        return SAVE if late or far else GO_ON

    def _read(self, trainer: Trainer) -> None:
        step, self.pending = self.pending, None
        if step is None:
            return
        if step.gathering is not None:
            step.gathering.wait()
        word = int(step.word)
        if word == NONFINITE:
            self._report(trainer, step)
        self.task_at_hand = max(self.task_at_hand, word)

    def _report(self, trainer: Trainer, step: Step) -> None:
        """Save the batch on the processes whose batch it was, and end all of them.

        The mean of a loss is over the samples of all processes, so one batch makes the loss of all of them NaN: the
        logits tell whose it was. Where all logits are finite (the loss itself is at fault), all batches are kept.

        Raises:
            FloatingPointError: On those processes.
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
