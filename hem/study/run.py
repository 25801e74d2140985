"""A run of a study: its folder, its commands, and which of them remain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hem.runs import RunFolder


class Work(Protocol):
    """Protocol of a unit of work of a study, a run or a search."""

    @property
    def name(self) -> str:
        """Path of its folder, relative to the study's."""

    @property
    def cell(self) -> str:
        """Name of the task in tables."""

    @property
    def folder(self) -> Path:
        """Its folder."""

    @property
    def after(self) -> Work | None:
        """The work that it depends on."""

    @property
    def done(self) -> bool:
        """Whether nothing remains to be done."""

    @property
    def changed(self) -> bool:
        """Whether it was begun by another command."""

    @property
    def seconds(self) -> float:
        """How long it took, in seconds."""


def differs(steps: Mapping[str, Sequence[str]], record: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return True if the recorded commands differ."""
    return any(list(steps.get(step, ())) != found.get("arguments") for step, found in record.items())


@dataclass(frozen=True)
class Run:
    """A run: a folder, and the commands that fill it."""

    cell: str  #: ``<task>_<data>``; of an examination ``<task>_<data>_<examination>``
    loss: str
    seed: int
    folder: Path
    #: arguments of ``python cli.py`` by step: ``fit`` and ``test`` of a training, ``test`` of an examination
    steps: dict[str, tuple[str, ...]] = field(hash=False)
    #: the training of an examination; the search whose setting a training has
    after: Work | None = None
    setting: Path | None = None  #: the config that the search writes

    @property
    def training(self) -> Run | None:
        """The training of an examination; None: this is a training."""
        return self.after if isinstance(self.after, Run) else None

    @property
    def name(self) -> str:
        """Path of its folder: ``<cell>/<loss>/seed<k>``, followed by ``/evaluate/<name>`` for an examination."""
        if self.training is None:
            return f"{self.cell}/{self.loss}/seed{self.seed}"
        return f"{self.training.name}/{self.folder.relative_to(self.training.folder).as_posix()}"

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        """Content of the run folder's ``study.json``: ``arguments`` and, when done, ``seconds`` of each step."""
        return RunFolder(self.folder).read_study()

    @property
    def seconds(self) -> float:
        """Total time of the finished steps in seconds, as far as it is recorded."""
        return float(sum(step.get("seconds", 0) for step in self._known.values()))

    @property
    def _known(self) -> dict[str, dict[str, Any]]:
        """The record, or an empty one if it is damaged, which is an error when the run is executed."""
        try:
            return self.record
        except ValueError:
            return {}

    @property
    def done(self) -> bool:
        """Whether the run has its results or, for a training that is not tested, has ended.

        Results of an examination must not be older than the checkpoint: a repeated training is examined again.
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
        """Whether the run was made, or begun, by other commands than the study has now."""
        if not self.done and not any(RunFolder(self.folder).checkpoints.glob("*.ckpt")):
            return False  # it failed before it wrote anything, and begins again
        found = self.found
        return differs(self.steps, self.record) or any(step.get("setting") != found for step in self.record.values())

    @property
    def found(self) -> str | None:
        """The config that its search wrote, as text; None: there is no search, or it is not finished."""
        return self.setting.read_text("utf-8") if self.setting and self.setting.is_file() else None

    def left(self) -> dict[str, tuple[str, ...]]:
        """Return the remaining steps with their arguments; a training resumes where it stopped."""
        if self.done:
            return {}
        record = self.record
        # a former test is repeated if its results are missing or of another network
        left = {
            step: words for step, words in self.steps.items() if step == "test" or "seconds" not in record.get(step, {})
        }
        if "fit" in left and RunFolder(self.folder).begun:
            left["fit"] += ("--ckpt_path", "last")
        return left
