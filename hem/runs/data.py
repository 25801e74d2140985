"""Record of a run's data in ``data.json``, by which a run is not resumed on other files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from hem.runs.folder import RunFolder
from hem.runs.trainer import datamodule, trial

NO_RECORD = (
    "The run has no record of its files: it was trained before there was one, when one's own folders were split by the "
    "place of a file in the sorted list, not by its name. Its test part may hold images that it was trained on: train "
    "it anew, or part the files into train, val and test."
)
PARTS = ("train", "val", "test")


class Data(Protocol):
    """Protocol of a data module that a run can record; see :class:`~hem.datamodules.ImageDataModule`."""

    title: str
    root: Path
    own: bool

    @property
    def split_by_name(self) -> bool:
        """Whether files are assigned to parts by their names."""

    def facts(self) -> dict[str, Any]:
        """Return what a network's inputs and outputs mean: class names, channels, size, normalisation."""

    def names(self, part: Any) -> list[str] | None:
        """Return the paths of a part's files relative to the root; None: the images are not in files of their own."""

    def record(self) -> dict[str, Any]:
        """Return the record of a run's data: the facts, and more."""


def files_of(data: Data, parts: Sequence[str] = PARTS) -> dict[str, dict[str, Any]]:
    """Return the number of files of each part and the SHA-256 of their sorted paths relative to the root.

    For a user's own folders the total size in bytes is added; contents are not read. A part that is missing is left
    out.

    Args:
        data: The data module.
        parts: The parts to look at.

    Returns:
        By part the entries ``count``, ``sha256`` and, where known, ``bytes``; empty if the images are not in files.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        try:
            names = data.names(part)
        except (OSError, ValueError):  # an error is raised where the part is used
            continue
        if names is None:
            return {}
        text = "\n".join(sorted(names)).encode(errors="surrogateescape")
        found[part] = {"count": len(names), "sha256": hashlib.sha256(text).hexdigest()}
        if data.own:
            found[part]["bytes"] = sum((data.root / name).stat().st_size for name in names)
    return found


def changed_files(data: Data, kept: Mapping[str, Any] | None, parts: Sequence[str] = PARTS) -> list[str]:
    """Return a sentence for each part whose files differ from those that a run was trained with.

    Args:
        data: The data module now.
        kept: Result of :func:`files_of` when the run was trained; None: of a run before there was such a record.
        parts: The parts to compare.
    """
    if kept is None:
        return [NO_RECORD] if data.split_by_name else []
    changed = []
    for part, now in files_of(data, parts).items() if kept else ():
        before = kept.get(part, {"count": 0})
        if any(before.get(name, value) != value for name, value in now.items()):  # older records lack bytes
            others = "others" if now["count"] != before["count"] else "others of the same number"
            if now["sha256"] == before.get("sha256"):
                others = f"of the same names, but other sizes: {before['bytes']} bytes in all, now {now['bytes']}"
            changed.append(
                f"The {part} part of {data.title} in {data.root} has {now['count']} files, but the run was trained "
                f"with {before['count']}, {others}."
            )
    return changed


def refuse_others(kept: Mapping[str, Any], data: Data, run: RunFolder) -> None:
    """Raise an error if the data does not fit a trained network.

    Args:
        kept: The facts of the data that the run was trained with, see :meth:`~hem.datamodules.ImageDataModule.facts`.
        data: The data module now.
        run: The run, for the error.

    Raises:
        ValueError: If class names, channels, size, normalisation or colours differ; the first difference is named.
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
    """Callback that writes ``data.json`` when a run begins and compares it with the data when it is resumed or tested.

    Resuming on other files is an error: it could train on images that were held out. Testing on other files is a
    warning and a note in the results, since files of a user's own folders stay in their parts; threshold and
    temperature of the run are left as they are.

    Args:
        checkpoint: Path of the checkpoint that is resumed or tested, for callbacks learn it too late from Lightning.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.note: str | None = None  # for readers of the results
        self.other_files = False  # whether they are known to be others than those of the training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record of the data, or compare the data with the record of the checkpoint's run.

        Raises:
            ValueError: A run is resumed and its files have changed.
        """
        data = datamodule(trainer)
        command = str(trainer.state.fn.value) if trainer.state.fn else stage
        if not hasattr(data, "facts"):  # a data module that is not of this package
            return
        folder = RunFolder(trainer.default_root_dir)
        if self.checkpoint is not None:
            self._compare(data, command, RunFolder.of_checkpoint(self.checkpoint) or folder)
        # an earlier attempt without a checkpoint may have left a record
        begins = self.checkpoint is None or not folder.data.is_file()
        if command == "fit" and trainer.is_global_zero and begins and not trial(trainer):
            folder.write_data({**data.record(), "files": files_of(data)})

    def _compare(self, data: Data, command: str, run: RunFolder) -> None:
        record = run.read_data() or {}
        refuse_others(record, data, run)
        if command == "predict":
            return
        kept = record.get("files")
        changed = changed_files(data, kept, {"validate": ("val",), "test": ("test",)}.get(command, PARTS))
        if not changed:
            return
        if command == "fit":
            raise ValueError(
                f"{' '.join(changed)} Going on would train on other files: bring the folder back to what it was, or "
                "begin a new run (--run_dir)."
            )
        self.other_files = kept is not None
        self.note = f"{' '.join(changed)} The metrics are of the files that are there now."
        rank_zero_warn(self.note)
