"""What a run keeps of its data, ``data.json``, and what becomes of a run whose files have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from hem.datamodules.base import ImageDataModule, Split
from hem.runs.folder import RunFolder


def refuse_others(kept: Mapping[str, Any], data: ImageDataModule, run: RunFolder) -> None:
    """Refuse data under which a network's outputs would mean something else, or that it cannot take.

    Args:
        kept: What the run was trained with, see :meth:`~hem.datamodules.base.ImageDataModule.facts`.
        data: What is there now.
        run: The run, for the sentence.

    Raises:
        ValueError: If class names, channels, size, normalisation or colours differ; the sentence names the first.
    """
    for name, now in data.facts().items():
        if name in kept and kept[name] != now:
            raise ValueError(
                f"Expected the {name} that the run {run.path} was trained with, {_words(kept[name])}, got "
                f"{_words(now)}: give it the data that it knows; `hem.load` needs none."
            )


def _words(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ", ".join(map(str, value[:12])) + (f" and {len(value) - 12} more" if len(value) > 12 else "")


class KeepData(Callback):
    """Writes ``data.json`` when a run begins; a run whose files are others now is not gone on with.

    Going on would train on what was held out, or hold out what was trained on. A test is made all the same, since the
    files of one's own folders stay in their parts, but a warning says that its figures are of another list.

    Args:
        checkpoint: The one that is gone on with or tested; Lightning tells callbacks too late.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.checkpoint = None if checkpoint is None else Path(checkpoint)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep what the data module says of itself, or compare it with what the checkpoint's run kept.

        Raises:
            ValueError: A run is resumed whose files have changed.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        command = str(trainer.state.fn.value) if trainer.state.fn else stage
        if not isinstance(data, ImageDataModule):
            return
        folder = RunFolder(trainer.default_root_dir)
        if self.checkpoint is not None:
            self._compare(data, command, RunFolder.of_checkpoint(self.checkpoint) or folder)
        # a try that left no checkpoint may have left a record
        begins = self.checkpoint is None or not folder.data.is_file()
        if command == "fit" and trainer.is_global_zero and begins and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder.write_data(data.record())

    def _compare(self, data: ImageDataModule, command: str, run: RunFolder) -> None:
        record = run.read_data() or {}
        refuse_others(record, data, run)
        if command == "predict":
            return
        kept = record.get("files")
        looked_at: dict[str, tuple[Split, ...]] = {"validate": ("val",), "test": ("test",)}
        changed = data.changed_files(kept, looked_at.get(command, ("train", "val", "test")))
        if not changed:
            return
        if command == "fit":
            raise ValueError(
                f"{' '.join(changed)} Going on would train on other files: bring the folder back to what it was, or "
                "begin a new run (--run_dir)."
            )
        rank_zero_warn(f"{' '.join(changed)} The figures are of the files that are there now.")
