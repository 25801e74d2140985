"""One run of a study: its folder, the commands that make it, and what of them is left to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hem.runs import RunFolder


class Work(Protocol):
    """What a study does: a run, or a search."""

    @property
    def name(self) -> str:
        """Its folder, below that of the study."""

    @property
    def cell(self) -> str:
        """The task, as tables have it."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def after(self) -> Work | None:
        """What has to be done before."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to be done."""

    @property
    def changed(self) -> bool:
        """Whether it was begun by another command."""

    @property
    def seconds(self) -> float:
        """How long it took."""


def differs(steps: Mapping[str, Sequence[str]], record: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return True if the recorded commands differ."""
    return any(list(steps.get(step, ())) != found.get("arguments") for step, found in record.items())


@dataclass(frozen=True)
class Run:
    """One run folder, and what has to be done for it."""

    cell: str  #: ``<task>_<data>``; of an examination ``<task>_<data>_<examination>``
    loss: str
    seed: int
    folder: Path
    #: arguments behind ``python cli.py``, by step: ``fit`` and ``test`` of a training, ``test`` of an examination
    steps: dict[str, tuple[str, ...]] = field(hash=False)
    #: the training that an examination needs; the search whose setting a training has
    after: Work | None = None
    setting: Path | None = None  #: the config that the search writes

    @property
    def training(self) -> Run | None:
        """The training that is examined; None: this is a training."""
        return self.after if isinstance(self.after, Run) else None

    @property
    def name(self) -> str:
        """``<cell>/<loss>/seed<k>``; of an examination that of its training and ``/evaluate/<name>``: its folder."""
        if self.training is None:
            return f"{self.cell}/{self.loss}/seed{self.seed}"
        return f"{self.training.name}/{self.folder.relative_to(self.training.folder).as_posix()}"

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        """What ``study.json`` in the run folder holds: ``arguments`` and, once it is done, ``seconds`` of each step."""
        return RunFolder(self.folder).read_study()

    @property
    def seconds(self) -> float:
        """How long the steps that are done took, as far as is known."""
        return float(sum(step.get("seconds", 0) for step in self._known.values()))

    @property
    def _known(self) -> dict[str, dict[str, Any]]:
        """The record, or nothing where it is damaged: whoever does the run says so."""
        try:
            return self.record
        except ValueError:
            return {}

    @property
    def done(self) -> bool:
        """Whether the run has its results; a training that is not tested, whether it has ended.

        Those of an examination must not be older than the checkpoint that it examines: a training that was made
        anew is examined anew.
        """
        if "test" not in self.steps:
            return "seconds" in self._known.get("fit", {})
        results, checkpoint = RunFolder(self.folder).results, Path(self.steps["test"][-1])
        if not results.is_file():
            return False
        if self.training is None:
            return True
        fresh = not checkpoint.is_file() or results.stat().st_mtime >= checkpoint.stat().st_mtime
        return fresh and self.training.done

    @property
    def changed(self) -> bool:
        """Whether the run was begun, or made, by other commands than the study has now."""
        if not self.done and not any(RunFolder(self.folder).checkpoints.glob("*.ckpt")):
            return False  # it failed before it made anything: begun anew
        found = self.found
        return differs(self.steps, self.record) or any(step.get("setting") != found for step in self.record.values())

    @property
    def found(self) -> str | None:
        """What its search found, as text; None where there is no search, or none yet."""
        return self.setting.read_text() if self.setting and self.setting.is_file() else None

    def left(self) -> dict[str, tuple[str, ...]]:
        """The steps that are still to be done, each with its arguments; a training goes on where it stopped."""
        if self.done:
            return {}
        record = self.record
        # a test of old is done again where its results are gone, or are of another network
        left = {
            step: words for step, words in self.steps.items() if step == "test" or "seconds" not in record.get(step, {})
        }
        if "fit" in left and RunFolder(self.folder).last.is_file():
            left["fit"] += ("--ckpt_path", "last")
        return left
