"""The folder of a run: where it lies, what is written into it, and how a network comes back out of it.

``runs/<task>_<dataset>/<loss>/seed<k>/`` holds ``config.yaml`` (the record of the run), ``events.*`` and
``metrics.csv`` (curves), ``checkpoints/best.ckpt`` and ``last.ckpt``, ``results.json`` (every test figure)
and ``predictions.csv``. Files are written beside their place and renamed into it, so that a killed process
leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import platform
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch.loggers
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

PACKAGES = ("hem", "torch", "torchvision", "lightning", "torchmetrics")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that will be there whole or not at all: written beside its place, flushed, then renamed.

    Args:
        path: Where the file shall lie; its folder is made if need be.

    Raises:
        OSError: If the folder cannot be written, or the disk is full; what was at ``path`` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        reason = error.__context__ if isinstance(error, RuntimeError) else error  # torch wraps what a write raises
        if not isinstance(reason, OSError):
            raise
        reason.filename = reason.filename or str(path)  # a full disk tells the number of the error alone
        raise reason from None
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as :func:`atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file of ours holds.

    Raises:
        ValueError: It holds none: a full disk or a copy that was stopped left it empty or cut off.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is empty or damaged ({error}): delete it, and it will be made anew.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping, but {found!r}: delete it, and it will be made anew.")
    return found


LAST, BEFORE = "last.ckpt", "last-1.ckpt"  # the newest checkpoint of a run, and the one before it


def whole(path: Path) -> bool:
    """Whether a checkpoint is there with every byte as it was written, by the checksums of its zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint among ``last`` and the one before it; a damaged one is named. None: there is none.

    Args:
        folder: The checkpoints of a run.

    Returns:
        Its path; where all are damaged, that of the newest, whose reading will say so.
    """
    there = [path for name in (LAST, BEFORE) if (path := folder / name).is_file()]
    found = next(filter(whole, there), None)
    if found and found != there[0] and getattr(rank_zero_only, "rank", 0) == 0:
        print(f"{there[0]} is damaged: {found}, the checkpoint before it, is taken.", file=sys.stderr)
    return found or next(iter(there), None)


def set_aside(damaged: Path) -> None:
    """Take a damaged ``last`` out of the way of the next one, which would otherwise become the one before."""
    with suppress(FileNotFoundError):
        os.replace(damaged, damaged.with_suffix(".damaged"))


def refuse_programs(path: Path) -> None:
    """Refuse a checkpoint that calls for more than tensors and plain values, which FSDP of Lightning 2.6 would run.

    Raises:
        ValueError: If it does.
    """
    try:
        calls = torch.serialization.get_unsafe_globals_in_checkpoint(path) if path.is_file() else []
    except Exception:  # no checkpoint: whatever its bytes happen to mean; reading it says so
        return
    if calls:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it calls for {calls[0]}, which could be a program, where tensors "
            "and plain values were expected; give one of those under runs/."
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that a killed process cannot cut in half: written beside their place, flushed, renamed.

    The ``last`` checkpoint that a new one replaces stays as ``last-1.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint under ``path``, whole or not at all.

        Raises:
            OSError: If it cannot be written; the checkpoints that were there stay.
        """
        path = Path(path)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)
            if path.name == LAST and path.is_file():
                self._keep(path)

    def _keep(self, last: Path) -> None:
        before, beside = last.with_name(BEFORE), last.with_name(f".{BEFORE}.{os.getpid()}")
        try:
            os.link(last, beside)  # at no moment is there no `last`
        except OSError:  # a file system without links
            os.replace(last, before)
        else:
            os.replace(beside, before)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; only tensors and plain values come in, nothing in it is executed.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is damaged or no checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"Expected a checkpoint at {path}, but there is no such file: give the path of one, or `best` or "
                "`last` for those of this run."
            )
        try:
            if not whole(Path(path)):
                raise zipfile.BadZipFile  # torch itself would take bytes that have changed
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
        except (
            RuntimeError,
            OSError,
            EOFError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            KeyError,
        ) as error:
            raise ValueError(
                f"{path} cannot be read as a checkpoint (cut short, changed on the disk, or another kind of file): "
                "give another one, `best` or `last`, or train again."
            ) from error
        if "state_dict" not in loaded:
            raise ValueError(f"{path} is no checkpoint of a run: it has no state_dict; give one of those under runs/.")
        return loaded


class CSVLogger(lightning.pytorch.loggers.CSVLogger):
    """Lightning's CSV logger, which keeps the rows that an interrupted run wrote, where Lightning's deletes them.

    Every row is in the file as soon as it is logged (``flush_logs_every_n_steps: 1`` in ``base.yaml``), so before any
    checkpoint of a later step. Rows that the resumed run repeats are dropped when it logs the first of them again: a
    row is kept where its step is below the first step that is logged now.
    """

    @property
    def experiment(self) -> Any:
        """Return the writer, which goes on with the ``metrics.csv`` that is there."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            path = Path(self.log_dir) / "metrics.csv"
            aside = path.with_name(".metrics.csv")
            with suppress(FileNotFoundError):
                os.replace(path, aside)  # out of the way of Lightning, which deletes it
            with warnings.catch_warnings():
                # "previous log files will be deleted": they are not
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = super().experiment
            self._resumed = aside.is_file()
            if self._resumed:
                os.replace(aside, path)
            return writer
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row; the first one of a resumed run drops the rows of steps that it is about to repeat."""
        writer = self.experiment
        if getattr(self, "_resumed", False) and step is not None:
            path = Path(self.log_dir) / "metrics.csv"
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                # the last row may be cut where the process was killed; it is one of those that are repeated
                kept = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
                writer.metrics_keys = list(reader.fieldnames or ())
            text = io.StringIO()
            table = csv.DictWriter(text, writer.metrics_keys, extrasaction="ignore")
            table.writeheader()
            table.writerows(kept)
            write_atomically(path, text.getvalue())
            self._resumed = False
        super().log_metrics(metrics, step)


class SaveConfig(SaveConfigCallback):
    """Writes the merged config of a run into its folder; a resumed run keeps the one it began with."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml`` (training) or ``config_<stage>.yaml`` before anything else happens."""
        if self.already_saved:
            return
        folder = trainer.default_root_dir
        stage = str(trainer.state.fn.value) if trainer.state.fn else stage
        path = Path(folder) / ("config.yaml" if stage == "fit" else f"config_{stage}.yaml")
        if trainer.is_global_zero and not (stage == "fit" and path.exists()):
            write_atomically(path, self.parser.dump(self.config, skip_none=False))
        self.already_saved = True


class SaveResults(Callback):
    """Writes every figure of ``test`` and ``validate`` into ``results.json`` (``results_validate.json``)."""

    def __init__(self, task: str, data: str, loss: str, seed: int | bool | None) -> None:
        self.facts = {"task": task, "data": data, "loss": loss, "seed": seed}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``results.json``."""
        self._write(trainer, "results.json")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``results_validate.json`` where validation is all that was asked for."""
        if trainer.state.fn == "validate":
            self._write(trainer, "results_validate.json")

    def _write(self, trainer: Trainer, name: str) -> None:
        if not trainer.is_global_zero:
            return
        results = {
            **self.facts,
            "metrics": {key: float(value) for key, value in sorted(trainer.callback_metrics.items())},
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
            "hardware": hardware(),
            "devices": trainer.world_size,
        }
        write_atomically(Path(trainer.default_root_dir) / name, json.dumps(results, indent=2) + "\n")


def hardware() -> str:
    """Return what the run was made on, in words: the GPU, or the processor and the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


class SavePredictions(BasePredictionWriter):
    """Writes ``predictions.csv``: one row per image with its file, label and score.

    A task's ``predict_step`` returns a dict of columns, each a list or a tensor of length N, with ``index``
    among them; the data module's ``name_of(index)`` gives the file.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Collect the rows of all ranks and write them in the order of the images."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows: list[dict[str, Any]] = []
        for columns in predictions:
            lists = {k: v.tolist() if isinstance(v, Tensor) else list(v) for k, v in columns.items()}
            rows += [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero and rows:
            rows.sort(key=lambda row: row["index"])
            text = io.StringIO()
            writer = csv.DictWriter(text, ["file", *(key for key in rows[0] if key != "index")], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"file": data.name_of(row.pop("index")), **row} for row in rows)
            path = Path(trainer.default_root_dir) / "predictions.csv"
            write_atomically(path, text.getvalue())
            print(f"predictions: {path}")
