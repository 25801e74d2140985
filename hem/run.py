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
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch.loggers
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelCheckpoint
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
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as :func:`atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that a killed process cannot cut in half: written beside their place, flushed, renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint under ``path``, whole or not at all."""
        with atomic_file(path) as file:
            torch.save(checkpoint, file)

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
                f"{path} cannot be read as a checkpoint (cut short, or another kind of file): "
                "give another one, `best` or `last`, or train again."
            ) from error
        if "state_dict" not in loaded:
            raise ValueError(f"{path} is no checkpoint of a run: it has no state_dict; give one of those under runs/.")
        return loaded


class Checkpoints(ModelCheckpoint):
    """Lightning's checkpoints, with a ``last.ckpt`` that is the last epoch's.

    Lightning 2.6 writes ``last.ckpt`` where the monitored figure has improved and at no other time: it is then
    the best once more, and a run that goes on from it repeats the epochs since.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last.ckpt`` unless the validation of this epoch has done so."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class CSVLogger(lightning.pytorch.loggers.CSVLogger):
    """Lightning's CSV logger, which keeps the rows that an interrupted run wrote, where Lightning's deletes them.

    Rows of epochs that the resumed run repeats are dropped when it logs them again: a row is kept where its
    step is below the first step that is logged now.
    """

    @property
    def experiment(self) -> Any:
        """Return the writer, begun with the rows that are already in ``metrics.csv``."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            path = Path(self.log_dir) / "metrics.csv"
            rows: list[dict[str, Any]] = []
            if path.is_file():
                with open(path, newline="") as file:
                    rows = [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
            with warnings.catch_warnings():
                # "previous log files will be deleted": they are written again below
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = super().experiment
            writer.metrics.extend(rows)
            self._resumed = bool(rows)
            return writer
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row; the first one of a resumed run drops the rows of steps that it is about to repeat."""
        writer = self.experiment
        if getattr(self, "_resumed", False) and step is not None:
            writer.metrics = [row for row in writer.metrics if int(row["step"]) < step]
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
