"""What examinations share: the data that they can examine, and the tables, records and pictures that a test leaves.

The examinations of any checkpoint of a classifier use them (:class:`~hem.modules.RejectionTask`,
:class:`~hem.modules.CorruptionTask`, :class:`~hem.modules.AdversarialTask`), and so do the tasks that leave more than
figures.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image

from hem.datamodules import ImageDataModule, SegmentationDataModule
from hem.modules.base import Task, datamodule
from hem.modules.rejector import run_folder
from hem.plots.style import saved
from hem.runs import RunFolder
from hem.runs.callbacks import partial
from hem.runs.files import write_atomically


def data_of(task: Task) -> ImageDataModule:
    """The data of the classifier that is examined.

    Raises:
        TypeError: It is no data module of ours, whose test images can be gone through again and again.
        ValueError: It has masks.
    """
    data = datamodule(task.trainer)
    if not isinstance(data, ImageDataModule):
        raise TypeError(
            f"{type(task).__name__} needs one of hem.datamodules, whose test images it can go through again and again "
            f"and bring others to their form, but the data is {type(data).__name__}."
        )
    refuse_masks(task, data)
    return data


def refuse_masks(task: Task, data: Any) -> None:
    """Refuse to examine a segmentation as a classifier: its labels are of pixels, and some are void.

    Raises:
        ValueError: The data has masks.
    """
    if isinstance(data, SegmentationDataModule):
        raise ValueError(
            f"Expected images with a label each, by which {type(task).__name__} examines a classifier, got masks, of "
            f"{data.title}: measure a segmentation by `test --run <run>` alone."
        )


def folder_of(task: Task) -> Path:
    """The folder that a task writes into: the run's."""
    return Path(task.trainer.default_root_dir)


def writes(task: Task) -> bool:
    """Whether a task leaves files: a trial run (``fast_dev_run``) does not, nor a part of the images after the whole.

    The files of the whole test would be gone. In the folder of an examination they are set aside together, and a
    Trainer used from Python has no record of a whole test.
    """
    trainer = task.trainer
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    folder = RunFolder(folder_of(task))
    free = trainer.state.fn != "test" or run_folder(trainer) is None or folder.examines or not folder.kept_whole
    return free or not partial(trainer)


def write(task: Task, name: str, content: str | bytes) -> None:
    """Write a file into the folder of the run, where :func:`writes` says so."""
    if writes(task):
        write_atomically(folder_of(task) / name, content)


def write_table(task: Task, name: str, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write ``<name>.csv``: a line for each row, in which a missing column stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(task, f"{name}.csv", text.getvalue())


def write_record(task: Task, name: str, record: dict[str, Any]) -> None:
    """Write ``<name>.json``."""
    write(task, f"{name}.json", json.dumps(record, indent=2) + "\n")


def write_figure(task: Task, name: str, figure: Figure) -> None:
    """Write ``<name>.png``; TensorBoard shows the same picture."""
    picture = saved(figure)
    write(task, f"{name}.png", picture)
    for logger in task.loggers:
        if isinstance(logger, TensorBoardLogger):  # drawn once: add_figure would draw it again
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            logger.experiment.add_image(name, pixels, task.global_step, dataformats="HWC")
