"""Callbacks that write the record of a run: config, results, predictions."""

from __future__ import annotations

import csv
import io
import json
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor

from hem import __version__
from hem.runs.data import KeepData
from hem.runs.files import write_atomically
from hem.runs.folder import RunFolder
from hem.runs.ranks import of_all_ranks
from hem.runs.trainer import datamodule, partial, trial

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics")


class SaveConfig(SaveConfigCallback):
    """Callback that writes the merged config of a run into its folder; a resumed run keeps its first config.

    The first line of the file is a comment with the loss as it was built, where ``margin: auto`` is a number. Each time
    that a run is resumed, the date and the options that differ are added to ``resumes.json``.

    Args:
        *args: See Lightning's SaveConfigCallback.
        changed: Options of a resumed run that differ from those it began with, as pairs (former, new) by name.
        **kwargs: See Lightning's SaveConfigCallback.
    """

    def __init__(self, *args: Any, changed: Mapping[str, tuple[Any, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.changed = dict(changed or {})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml`` (of a training that begins) or ``config_<stage>.yaml`` before anything else happens."""
        if self.already_saved:
            return
        stage = str(trainer.state.fn.value) if trainer.state.fn else stage
        if stage == "fit" and self.config.get("ckpt_path"):  # a command that was built in Python has no such option
            return
        self.already_saved = True
        self._write(trainer, pl_module, RunFolder(trainer.default_root_dir).config_of(stage))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the resume once the checkpoint is loaded; in a new folder write the config instead."""
        if self.already_saved:
            return
        self.already_saved = True
        run = RunFolder(trainer.default_root_dir)
        if not run.config.exists():
            self._write(trainer, pl_module, run.config)
        elif trainer.is_global_zero and not trial(trainer):
            date = datetime.now().astimezone().isoformat(timespec="seconds")
            run.add_resume({"date": date, "checkpoint": self.config.ckpt_path, "changed": self.changed})

    def _write(self, trainer: Trainer, pl_module: LightningModule, path: Path) -> None:
        if trainer.is_global_zero and not trial(trainer):
            loss = textwrap.indent(f"The loss as it was built: {getattr(pl_module, 'loss', None)}", "# ")
            # the objects of this run were built from it, which validated it; doing so again takes a while
            config = self.parser.dump(self.config, skip_none=False, skip_validation=True)
            write_atomically(path, f"{loss}\n{config}")


@dataclass(eq=False)
class SaveResults(Callback):
    """Callback that writes all metrics of ``test`` and ``validate`` to ``results.json`` and ``results_validate.json``.

    A trial run (``fast_dev_run``) writes nothing; results of a part of the images have an entry ``partial``.

    Args:
        task: Name of the task, as in the name of the run folder.
        data: Name of the data set.
        loss: Name of the loss that the network was trained with.
        seed: Seed of the training.
        run: Folder of the run that is examined; None: the folder of the results.
        note: A sentence for readers of the results, such as what is special about them.
    """

    task: str
    data: str
    loss: str
    seed: int | bool | None
    run: str | None = None
    note: str | None = None
    weights: str | None = field(default=None, init=False)  # identity of the network in the checkpoint
    options: str | None = field(default=None, init=False)  # hash of the options that the results depend on

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``results.json``."""
        self._write(trainer, pl_module, RunFolder(trainer.default_root_dir).results)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``results_validate.json`` after ``validate``, but not after the validations of a training."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, RunFolder(trainer.default_root_dir).results_validate)

    def _write(self, trainer: Trainer, pl_module: LightningModule, path: Path) -> None:
        if not trainer.is_global_zero or trial(trainer):
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        notes = [self.note, *(each.note for each in callbacks if isinstance(each, KeepData))]
        more = {"run": self.run, "note": " ".join(filter(None, notes)), "partial": partial(trainer)}
        results = {
            **{name: getattr(self, name) for name in ("task", "data", "loss", "seed")},
            **{name: value for name, value in more.items() if value},
            "loss_as_built": str(getattr(pl_module, "loss", None)),
            "metrics": {key: float(value) for key, value in sorted(trainer.callback_metrics.items())},
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "weights": self.weights,
            "options": self.options,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), "hem": __version__} | {p: version(p) for p in PACKAGES},
            "hardware": hardware(),
            "devices": trainer.world_size,
        }
        write_atomically(path, json.dumps(results, indent=2) + "\n")


def hardware() -> str:
    """Return the name of the GPU, or that of the processor with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


class SavePredictions(BasePredictionWriter):
    """Callback that writes ``predictions.csv``: one row per image with its file, label and score.

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
        """Collect the rows of all ranks and write them in the order of the images; a trial run writes none."""
        if trial(trainer):
            return
        data = datamodule(trainer)
        rows: list[dict[str, Any]] = []
        for columns in predictions:
            lists = {k: v.tolist() if isinstance(v, Tensor) else list(v) for k, v in columns.items()}
            rows += [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        rows = [row for part in of_all_ranks(trainer, rows) for row in part]
        if trainer.is_global_zero and rows:
            rows.sort(key=lambda row: row["index"])
            text = io.StringIO()
            writer = csv.DictWriter(text, ["file", *(key for key in rows[0] if key != "index")], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"file": data.name_of(row.pop("index")), **row} for row in rows)
            path = RunFolder(trainer.default_root_dir).predictions
            write_atomically(path, text.getvalue())
            print(f"predictions: {path}")
