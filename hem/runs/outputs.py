"""Tables, records and plots that a test leaves in the folder of its run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image

from hem.plots.style import saved
from hem.runs.files import write_atomically
from hem.runs.folder import RunFolder
from hem.runs.trainer import partial, run_folder, trial


def folder_of(trainer: Trainer) -> Path:
    """Return the folder of the run, into which files are written."""
    return Path(trainer.default_root_dir)


def writes(trainer: Trainer) -> bool:
    """Return whether files are written: not by a trial run, nor by a test of a part of the images after one of all.

    Such a test would replace the files of the test on all images. In the folder of an examination those are renamed
    together, and a Trainer used from Python has no record of a test on all images.
    """
    if trial(trainer):
        return False
    folder = RunFolder(folder_of(trainer))
    free = trainer.state.fn != "test" or run_folder(trainer) is None or folder.examines or not folder.kept_whole
    return free or not partial(trainer)


def write(trainer: Trainer, name: str, content: str | bytes) -> None:
    """Write a file into the folder of the run, if :func:`writes` is True."""
    if writes(trainer):
        write_atomically(folder_of(trainer) / name, content)


def write_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write ``<name>.csv``, a line for each row; columns that a row lacks stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(trainer, f"{name}.csv", text.getvalue())


def write_record(trainer: Trainer, name: str, record: dict[str, Any]) -> None:
    """Write ``<name>.json``."""
    write(trainer, f"{name}.json", json.dumps(record, indent=2) + "\n")


def write_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Write ``<name>.png``, and log the plot to TensorBoard."""
    picture = saved(figure)
    write(trainer, f"{name}.png", picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):  # rendered once: add_figure would render it again
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def say(trainer: Trainer, *lines: str) -> None:
    """Print lines on rank 0 of a command-line run."""
    if trainer.is_global_zero and run_folder(trainer) is not None:
        for line in lines:
            print(line)
