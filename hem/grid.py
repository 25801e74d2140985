"""The grid of a study: which runs its YAML asks for, where they lie, and the commands that make them.

A study is a file such as ``configs/study/quick.yaml``:

.. code-block:: yaml

    name: quick                       # runs/quick/<task>_<data>/<loss>/seed<k>
    cost: six minutes on two cores    # what --dry-run says
    losses:
      - ce                            # configs/loss/ce.yaml
      - hem_0.2: [--config configs/loss/hem.yaml, --model.loss.margin 0.2]
    seeds: [0, 1, 2]
    overrides: []                     # options of every command
    tasks:
      - train: configs/classification/digits.yaml
        checkpoint: last              # or best: what is tested and examined
        examine: [configs/evaluate/rejection.yaml]   # lies in each run's folder, evaluate/rejection
    slurm: {}                         # parameters of submitit
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from hem.cli.configs import find, short_names
from hem.names import near
from hem.runs import RunFolder

STUDY_KEYS = ("name", "cost", "losses", "seeds", "overrides", "tasks", "slurm")
CELL_KEYS = ("train", "name", "overrides", "losses", "seeds", "checkpoint", "test", "examine")
CONFIG_KEYS = ("config", "name", "overrides")
OF_THE_STUDY = ("--seed_everything", "--run_dir", "--ckpt_path")


def differs(steps: Mapping[str, Sequence[str]], record: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a record tells of other commands than these."""
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
    #: the training that an examination needs
    after: Run | None = None

    @property
    def name(self) -> str:
        """``<cell>/<loss>/seed<k>``; of an examination that of its training and ``/evaluate/<name>``: its folder."""
        if self.after is None:
            return f"{self.cell}/{self.loss}/seed{self.seed}"
        return f"{self.after.name}/{self.folder.relative_to(self.after.folder).as_posix()}"

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
        if self.after is None:
            return True
        fresh = not checkpoint.is_file() or results.stat().st_mtime >= checkpoint.stat().st_mtime
        return fresh and self.after.done

    @property
    def changed(self) -> bool:
        """Whether the run was begun, or made, by other commands than the study has now."""
        if not self.done and not any(RunFolder(self.folder).checkpoints.glob("*.ckpt")):
            return False  # it failed before it made anything: begun anew
        return differs(self.steps, self.record)

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


@dataclass(frozen=True)
class Study:
    """A study as its file has it, checked."""

    name: str
    tasks: tuple[dict[str, Any], ...]
    losses: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    cost: str = ""
    slurm: dict[str, Any] = field(default_factory=dict)
    root: Path = Path("runs")

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return self.root / self.name

    def runs(self, only: str = "") -> list[Run]:
        """Every run of the grid; seed by seed, so that all losses have a figure early.

        Args:
            only: Runs whose ``<cell>/<loss>/seed<k>`` holds this, and the trainings that they need.
        """
        seeds = sorted({seed for cell in self.tasks for seed in cell["seeds"]})
        found = [run for seed in seeds for cell in self.tasks if seed in cell["seeds"] for run in self._of(cell, seed)]
        wanted = {run.name for run in found if only in f"{run.cell}/{run.loss}/seed{run.seed}"}
        wanted |= {run.after.name for run in found if run.name in wanted and run.after is not None}
        return [run for run in found if run.name in wanted]

    def _of(self, cell: dict[str, Any], seed: int) -> list[Run]:
        runs = []
        for loss in cell["losses"]:
            training = self._training(cell, loss, seed)
            runs += [training, *(self._examination(cell, part, training) for part in cell["examine"])]
        return runs

    def _training(self, cell: dict[str, Any], loss: str, seed: int) -> Run:
        part = cell["train"]
        folder = self.folder / part["name"] / loss / f"seed{seed}"
        common = ("--config", part["config"], *cell["losses"][loss], "--seed_everything", str(seed))
        common += ("--run_dir", str(folder), *self.overrides, *cell["overrides"], *part["overrides"])
        steps = {"fit": ("fit", *common)}
        if cell["test"]:
            steps["test"] = ("test", *common, "--ckpt_path", self._checkpoint(cell, folder))
        return Run(part["name"], loss, seed, folder, steps)

    def _examination(self, cell: dict[str, Any], part: dict[str, Any], training: Run) -> Run:
        """A test of a training under another config: network, data, loss and seed are the training's."""
        own = ("test", "--run", str(training.folder), "--name", part["name"], "--config", part["config"])
        options = (*self.overrides, *cell["overrides"], *part["overrides"])
        words = (*own, *options, "--ckpt_path", self._checkpoint(cell, training.folder))
        folder = RunFolder(training.folder).evaluation(part["name"]).path
        name = f"{training.cell}_{part['name']}"
        return Run(name, training.loss, training.seed, folder, {"test": words}, training)

    @staticmethod
    def _checkpoint(cell: dict[str, Any], folder: Path) -> str:
        return str(RunFolder(folder).checkpoints / f"{cell['checkpoint']}.ckpt")


def load(path: str | Path, overrides: Sequence[str] = (), root: str | Path = "runs") -> Study:
    """Read a study.

    Args:
        path: Its YAML.
        overrides: More options of every command, behind those of the file.
        root: The folder that holds the studies' folders.

    Raises:
        FileNotFoundError: If the study or a config that it names is not there.
        ValueError: If it is no YAML, has a key too many or too few, or a value of another kind.
    """
    try:
        path = find(str(path))
    except FileNotFoundError:
        here = sorted(str(p) for p in Path(path).parent.glob("*.yaml"))
        there = here or [name for name in short_names() if name.startswith("study/")]
        raise FileNotFoundError(f"Expected a study at {path}; there are: {', '.join(there)}.") from None
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    content = _keys(content, STUDY_KEYS, ("losses", "seeds", "tasks"), str(path))
    losses, seeds = _losses(content["losses"], str(path)), _seeds(content["seeds"], str(path))
    tasks = tuple(
        _cell(cell, f"task {i} of {path}", losses, seeds)
        for i, cell in enumerate(_list(content["tasks"], f"tasks of {path}"), 1)
    )
    names = [cell["train"]["name"] for cell in tasks]
    names += [f"{cell['train']['name']}/{part['name']}" for cell in tasks for part in cell["examine"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two tasks in one folder, {twice[0]}: give one of them a `name` of its own.")
    slurm = content.get("slurm") or {}
    if not isinstance(slurm, dict):
        raise ValueError(f"slurm of {path} is a mapping of submitit's parameters, got {slurm!r}.")
    name = str(content.get("name") or path.stem)
    if Path(name).name != name:
        raise ValueError(f"name of {path} is the name of a folder in {root}/, got {name!r}.")
    own = _options(content.get("overrides"), f"overrides of {path}") + _not_own(overrides, "the command line")
    return Study(name, tasks, losses, seeds, own, str(content.get("cost") or ""), slurm, Path(root))


# -- what the file may say ---------------------------------------------------------------------------------------


def _keys(value: Any, allowed: Sequence[str], needed: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a mapping with the keys {', '.join(allowed)}, got {value!r}.")
    for key in value:
        if key not in allowed:
            raise ValueError(
                f"{where} has no key '{key}'{near(str(key), allowed) or '.'} It takes {', '.join(allowed)}."
            )
    for key in needed:
        if value.get(key) in (None, [], {}):
            raise ValueError(f"{where} needs the key '{key}'.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{where} is a list, got {value!r}.")
    return value


def _options(value: Any, where: str) -> tuple[str, ...]:
    """Options as the command line has them, each in a string: ``["--trainer.max_epochs 2"]``."""
    words = [word for option in _list(value, where) for word in shlex.split(str(option))]
    if words and not words[0].startswith("--"):
        raise ValueError(f"{where} is a list of options such as '--trainer.max_epochs 2', got {value!r}.")
    _not_own(words, where)
    for before, after in pairwise(words):
        if before == "--config":
            _exists(after, where)
    return tuple(words)


def _not_own(words: Sequence[str], where: str) -> tuple[str, ...]:
    """Options of every run, none of which is one that the study gives."""
    if own := [word for word in words if word.partition("=")[0] in OF_THE_STUDY]:
        raise ValueError(f"{where} has {own[0]}, which a study gives to each run itself: leave it out.")
    return tuple(words)


def _exists(path: str, where: str) -> str:
    try:
        find(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None
    return path  # as it was given: each run finds it again, wherever hem is installed then


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = _list(value, f"seeds of {where}")
    if not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds of {where} are different whole numbers, got {value!r}.")
    return tuple(seeds)


def _losses(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Losses by name, each with the options that choose it."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in _list(value, f"losses of {where}"):
        named = entry if isinstance(entry, dict) else {str(entry): None}
        for name, options in named.items():
            if options is None:  # the shipped loss of that name, also with a colon too many: `- hem:`
                options = [f"--config configs/loss/{name}.yaml"]
            words = _options(options, f"loss {name} of {where}")
            if name in found or Path(str(name)).name != str(name):
                raise ValueError(f"losses of {where} need different names that are names of folders, got {name!r}.")
            if same := next((other for other, others in found.items() if others == words), None):
                raise ValueError(f"losses of {where} are to differ, but {same} and {name} have the same options.")
            found[str(name)] = words
    return found


def _part(value: Any, where: str) -> dict[str, Any]:
    """A config, by its path or with options of its own."""
    value = {"config": value} if isinstance(value, str) else _keys(value, CONFIG_KEYS, ("config",), where)
    path = Path(_exists(str(value["config"]), where))
    own = path.stem if path.parent.name == RunFolder.EVALUATIONS else f"{path.parent.name}_{path.stem}"
    name = str(value.get("name") or own)
    return {"config": str(path), "name": name, "overrides": _options(value.get("overrides"), f"overrides of {where}")}


def _cell(value: Any, where: str, losses: dict[str, tuple[str, ...]], seeds: tuple[int, ...]) -> dict[str, Any]:
    value = _keys(value, CELL_KEYS, ("train",), where)
    checkpoint, test = value.get("checkpoint", "last"), value.get("test", True)
    if checkpoint not in ("last", "best"):
        raise ValueError(f"checkpoint of {where} is last or best, got {checkpoint!r}.")
    if not isinstance(test, bool):
        raise ValueError(f"test of {where} is true or false, got {test!r}.")
    train = _part(value["train"], f"train of {where}")
    return {
        "train": {**train, "name": str(value.get("name") or train["name"])},
        "overrides": _options(value.get("overrides"), f"overrides of {where}"),
        "losses": _losses(value["losses"], where) if value.get("losses") else losses,
        "seeds": _seeds(value["seeds"], where) if value.get("seeds") else seeds,
        "checkpoint": checkpoint,
        "test": test,
        "examine": [_part(part, f"examine of {where}") for part in _list(value.get("examine"), f"examine of {where}")],
    }
