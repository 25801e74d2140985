"""What a run keeps of its data, ``data.json``, and what becomes of a run whose files have changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from hem.datamodules.base import ImageDataModule, Split
from hem.runs.files import read_json, write_atomically

NAME = "data.json"


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
        if not isinstance(data, ImageDataModule) or command == "predict":
            return
        folder = Path(trainer.default_root_dir)
        path = folder / NAME
        if self.checkpoint is not None:
            run = self.checkpoint.parent.parent if self.checkpoint.parent.name == "checkpoints" else folder
            self._compare(data, command, run / NAME)
        begins = self.checkpoint is None or not path.is_file()  # a try that left no checkpoint may have left a record
        if command == "fit" and trainer.is_global_zero and begins:
            write_atomically(path, json.dumps(data.record(), indent=2, ensure_ascii=False) + "\n")

    def _compare(self, data: ImageDataModule, command: str, path: Path) -> None:
        kept = read_json(path).get("files") if path.is_file() else None
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
