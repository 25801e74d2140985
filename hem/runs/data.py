"""Record of a run's data in ``data.json``; a run whose files have changed since is not resumed."""

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
    """What a data module says of itself; see :class:`~hem.datamodules.ImageDataModule`."""

    title: str
    root: Path
    own: bool

    @property
    def split_by_name(self) -> bool:
        """Whether a part is cut off by the names of files."""

    def facts(self) -> dict[str, Any]:
        """What the outputs of a network mean that is trained on this data."""

    def names(self, part: Any) -> list[str] | None:
        """The paths of a part's files below the root; None: they are not files."""

    def record(self) -> dict[str, Any]:
        """The facts, and what else a run keeps of its data."""


def files_of(data: Data, parts: Sequence[str] = PARTS) -> dict[str, dict[str, Any]]:
    """What the parts are made of, as far as they are files: their number and the SHA-256 of their names, by part.

    The names are paths below the root, sorted. Of one's own folders the bytes of all files are counted as well; what
    is in the files is not looked at. A part that is not there is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        try:
            names = data.names(part)
        except (OSError, ValueError):  # whoever needs the part is told
            continue
        if names is None:
            return {}
        text = "\n".join(sorted(names)).encode(errors="surrogateescape")
        found[part] = {"count": len(names), "sha256": hashlib.sha256(text).hexdigest()}
        if data.own:
            found[part]["bytes"] = sum((data.root / name).stat().st_size for name in names)
    return found


def changed_files(data: Data, kept: Mapping[str, Any] | None, parts: Sequence[str] = PARTS) -> list[str]:
    """What differs between the parts of a run and those that are there now, a sentence for each part.

    Args:
        data: What is there now.
        kept: What :func:`files_of` said when the run was trained; None: it was trained before that was kept.
        parts: Those to look at.
    """
    if kept is None:
        return [NO_RECORD] if data.split_by_name else []
    changed = []
    for part, now in files_of(data, parts).items() if kept else ():
        before = kept.get(part, {"count": 0})
        if any(before.get(name, value) != value for name, value in now.items()):  # runs of old counted no bytes
            others = "others" if now["count"] != before["count"] else "others of the same number"
            if now["sha256"] == before.get("sha256"):
                others = f"of the same names, but other sizes: {before['bytes']} bytes in all, now {now['bytes']}"
            changed.append(
                f"The {part} part of {data.title} in {data.root} has {now['count']} files, but the run was trained "
                f"with {before['count']}, {others}."
            )
    return changed


def refuse_others(kept: Mapping[str, Any], data: Data, run: RunFolder) -> None:
    """Refuse data under which a network's outputs would mean something else, or that it cannot take.

    Args:
        kept: What the run was trained with, see :meth:`~hem.datamodules.ImageDataModule.facts`.
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
        data = datamodule(trainer)
        command = str(trainer.state.fn.value) if trainer.state.fn else stage
        if not hasattr(data, "facts"):  # somebody else's
            return
        folder = RunFolder(trainer.default_root_dir)
        if self.checkpoint is not None:
            self._compare(data, command, RunFolder.of_checkpoint(self.checkpoint) or folder)
        # a try that left no checkpoint may have left a record
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
        rank_zero_warn(f"{' '.join(changed)} The figures are of the files that are there now.")
