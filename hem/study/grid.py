"""Grid of a study: the runs of its YAML file, their folders and commands.

A study is a file such as ``configs/study/quick.yaml``:

.. code-block:: yaml

    name: quick                       # runs/quick/<task>_<data>/<loss>/seed<k>
    cost: six minutes on two cores    # printed by --dry-run
    losses:
      - ce                            # configs/loss/ce.yaml
      - hem_0.2: [--config configs/loss/hem.yaml, --model.loss.margin 0.2]
    seeds: [0, 1, 2]
    overrides: []                     # options of every command
    tasks:
      - train: configs/classification/digits.yaml
        primary: test/accuracy        # the metric by which losses are compared, declared in advance
        checkpoint: last              # or best: the checkpoint that is tested and examined
        examine: [configs/evaluate/rejection.yaml]   # results are in each run's folder, evaluate/rejection
    slurm: {}                         # parameters of submitit
    search: {}                        # see hem.study.search
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from hem.cli.configs import find, short_names
from hem.metrics import catalog
from hem.names import check_name
from hem.runs import RunFolder
from hem.study.parsing import (
    Entry,
    Losses,
    Options,
    Overrides,
    Part,
    SearchBlock,
    Seeds,
    Task,
    Text,
    not_own,
    parse,
    read_search,
    read_tasks,
)
from hem.study.run import Run, Work
from hem.study.search import Search

PLAN = "plan.json"  # file in a study's folder with all of its runs


@dataclass
class Study:
    """The content of a study's file, checked."""

    losses: Losses
    seeds: Seeds
    tasks: Annotated[tuple[Task, ...], Entry(read=read_tasks)]
    name: Annotated[str, Entry("the name of a folder")] = ""
    cost: Text = ""
    overrides: Overrides = ()
    slurm: Annotated[Mapping[str, Any], Entry("a mapping of submitit's parameters")] = field(default_factory=dict)
    search: Annotated[SearchBlock | None, Entry(read=read_search)] = None
    root: Path = Path("runs")
    given: Options = ()  #: options of every command, from the command line; they come after those of the file

    def __post_init__(self) -> None:
        for task in self.tasks:
            task.losses = task.losses or self.losses
            task.seeds = task.seeds or self.seeds
        if self.search is not None:
            self._check(self.search)

    def _check(self, search: SearchBlock) -> None:
        """Raise an error if a search is incomplete or inconsistent."""
        for loss in search.losses:
            check_name(loss, {loss for task in self.tasks for loss in task.losses}, "loss of the search")
        names = {task.name for task in self.tasks}
        for task in (task for task in self.tasks if task.trials != 0):
            if search.seed in task.seeds:
                raise ValueError(f"Expected a seed of the search that is none of the study's seeds, got {search.seed}.")
            if not task.judged_by:
                raise ValueError(
                    f"Expected a `primary` metric or a `monitor` for {task.name}, which is searched, got neither."
                )
            if not (catalog.validated(task.judged_by) or task.monitor.startswith("val/")):
                raise ValueError(
                    f"Expected a metric of validation for the search of {task.name}, got {task.judged_by}: give a "
                    "`monitor`, such as val/accuracy."
                )
            if task.tuned in names | {"search"}:
                raise ValueError(
                    f"Expected another name than {task.tuned}, the folder of tuned runs of {task.name}: rename the "
                    "task."
                )
            for loss in task.losses:
                if not {**search.space, **task.space, **search.losses.get(loss, {})}:
                    raise ValueError(f"Expected a `space` for {loss} of {task.name}, which is searched, got none.")

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return self.root / self.name

    @property
    def storage(self) -> str:
        """Optuna's storage of the searches, a URL or the path of a journal."""
        kept = self.search.storage if self.search else ""
        files = {"sqlite": f"sqlite:///{self.folder / 'search.db'}", "journal": str(self.folder / "search.journal")}
        return files.get(kept, kept)

    def runs(self, only: str = "") -> list[Work]:
        """Return all searches, then all runs of the grid, ordered by seed so that all losses have results early.

        Args:
            only: Select runs whose ``<cell>/<loss>/seed<k>`` contains this text, and those that they depend on.
        """
        searches = {(task.name, loss): self._search(task, loss) for task in self.tasks for loss in task.losses}
        found: list[Work] = [search for search in searches.values() if search is not None]
        for seed in sorted({seed for task in self.tasks for seed in task.seeds}):
            for task in (task for task in self.tasks if seed in task.seeds):
                for loss in task.losses:
                    search = searches[task.name, loss]
                    if search is None or search.block.untuned:
                        found += self._of(task, loss, seed)
                    if search is not None:
                        found += self._of(task, loss, seed, search)
        names = set[str]()
        for run in found:
            needed: Work | None = run
            while only in (f"{run.cell}/{run.loss}/seed{run.seed}" if isinstance(run, Run) else run.name) and needed:
                names.add(needed.name)
                needed = needed.after
        return [run for run in found if run.name in names]

    def cells(self) -> dict[str, dict[str, str | None]]:
        """Return for each cell its primary metric and, if it has tuned runs, the cell of the untuned ones."""
        found: dict[str, dict[str, str | None]] = {}
        for task in self.tasks:
            for end, primary in (("", task.primary), *((f"_{part.name}", part.primary) for part in task.examine)):
                plain = task.name + end
                searched = self.search is not None and task.trials != 0
                if self.search is None or self.search.untuned or not searched:
                    found[plain] = {"primary": primary or None, "untuned": None}
                if searched:
                    found[task.tuned + end] = {"primary": primary or None, "untuned": plain if plain in found else None}
        return found

    def _of(self, task: Task, loss: str, seed: int, search: Search | None = None) -> list[Run]:
        training = self._training(task, loss, seed, search)
        return [training, *(self._examination(task, part, training) for part in task.examine)]

    def _options(self, task: Task, *more: str) -> Options:
        """Return the options of a task's commands, which come after those of the loss."""
        return (*self.overrides, *task.overrides, *more, *self.given)

    def _search(self, task: Task, loss: str) -> Search | None:
        if self.search is None or task.trials == 0:
            return None
        block = self.search if task.trials is None else replace(self.search, trials=task.trials, seconds=None)
        space = {**self.search.space, **task.space, **self.search.losses.get(loss, {})}
        command = ("--config", task.train.config, *task.losses[loss], "--seed_everything", str(self.search.seed))
        command += self._options(task, *task.train.overrides, *self.search.overrides)
        folder = self.folder / "search" / task.name / loss
        return Search(
            task.name, loss, folder, command, task.judged_by, task.better, task.checkpoint, block, space, self.storage
        )

    def _training(self, task: Task, loss: str, seed: int, search: Search | None) -> Run:
        cell = task.tuned if search else task.name
        folder = self.folder / cell / loss / f"seed{seed}"
        common = ("--config", task.train.config, *task.losses[loss], "--seed_everything", str(seed))
        common += ("--run_dir", str(folder), *self._options(task, *task.train.overrides))
        common += ("--config", str(search.found)) if search else ()
        steps = {"fit": ("fit", *common)}
        if task.test:
            steps["test"] = ("test", *common, "--ckpt_path", _checkpoint(task, folder))
        return Run(cell, loss, seed, folder, steps, search, search.found if search else None)

    def _examination(self, task: Task, part: Part, training: Run) -> Run:
        """Return the test by an examination's config of a training, whose network, data, loss and seed it keeps."""
        own = ("test", "--run", str(training.folder), "--name", part.name, "--config", part.config)
        words = (*own, *self._options(task, *part.overrides), "--ckpt_path", _checkpoint(task, training.folder))
        folder = RunFolder(training.folder).evaluation(part.name).path
        return Run(f"{training.cell}_{part.name}", training.loss, training.seed, folder, {"test": words}, training)


def _checkpoint(task: Task, folder: Path) -> str:
    return str(RunFolder(folder).checkpoints / f"{task.checkpoint}.ckpt")


def load(path: str | Path, overrides: Sequence[str] = (), root: str | Path = "runs") -> Study:
    """Read a study.

    Args:
        path: Its YAML file, or the name of a shipped study, such as ``quick``.
        overrides: Further options of every command, after those of the file.
        root: Parent of the studies' folders.

    Raises:
        FileNotFoundError: If the study or a config that it names is missing.
        ValueError: If it is no valid YAML, has unknown or missing keys, or a value of the wrong type.
    """
    shipped = [name.removeprefix("study/") for name in short_names() if name.startswith("study/")]
    try:
        path = find(f"study/{path}" if str(path) in shipped else str(path))
    except FileNotFoundError:
        here = sorted(str(p) for p in Path(path).parent.glob("*.yaml"))
        there = here or shipped
        raise FileNotFoundError(f"Expected a study at {path}; there are: {', '.join(there)}.") from None
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected valid YAML in {path}, got: {' '.join(str(error).split())}") from None
    study = parse(Study, content, str(path))
    study.name = study.name or path.stem
    if Path(study.name).name != study.name:
        raise ValueError(f"Expected name of {path} to be the name of a folder in {root}/, got {study.name!r}.")
    study.given = not_own(overrides, "the command line")
    study.root = Path(root)
    return study
