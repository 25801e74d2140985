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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

from hem.cli.configs import find, short_names
from hem.runs import RunFolder
from hem.study.parsing import Entry, Losses, Overrides, Part, Seeds, Task, Text, not_own, parse, read_tasks
from hem.study.run import Run

PLAN = "plan.json"  # in a study's folder: every run that it asks for


@dataclass
class Study:
    """A study as its file has it, checked."""

    losses: Losses
    seeds: Seeds
    tasks: Annotated[tuple[Task, ...], Entry(read=read_tasks)]
    name: Annotated[str, Entry("the name of a folder")] = ""
    cost: Text = ""
    overrides: Overrides = ()
    slurm: Annotated[Mapping[str, Any], Entry("a mapping of submitit's parameters")] = field(default_factory=dict)
    root: Path = Path("runs")

    def __post_init__(self) -> None:
        for task in self.tasks:
            task.losses = task.losses or self.losses
            task.seeds = task.seeds or self.seeds

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return self.root / self.name

    def runs(self, only: str = "") -> list[Run]:
        """Every run of the grid; seed by seed, so that all losses have a figure early.

        Args:
            only: Runs whose ``<cell>/<loss>/seed<k>`` holds this, and the trainings that they need.
        """
        seeds = sorted({seed for task in self.tasks for seed in task.seeds})
        found = [run for seed in seeds for task in self.tasks if seed in task.seeds for run in self._of(task, seed)]
        wanted = {run.name for run in found if only in f"{run.cell}/{run.loss}/seed{run.seed}"}
        wanted |= {run.after.name for run in found if run.name in wanted and run.after is not None}
        return [run for run in found if run.name in wanted]

    def _of(self, task: Task, seed: int) -> list[Run]:
        runs = []
        for loss in task.losses:
            training = self._training(task, loss, seed)
            runs += [training, *(self._examination(task, part, training) for part in task.examine)]
        return runs

    def _training(self, task: Task, loss: str, seed: int) -> Run:
        folder = self.folder / task.name / loss / f"seed{seed}"
        common = ("--config", task.train.config, *task.losses[loss], "--seed_everything", str(seed))
        common += ("--run_dir", str(folder), *self.overrides, *task.overrides, *task.train.overrides)
        steps = {"fit": ("fit", *common)}
        if task.test:
            steps["test"] = ("test", *common, "--ckpt_path", _checkpoint(task, folder))
        return Run(task.name, loss, seed, folder, steps)

    def _examination(self, task: Task, part: Part, training: Run) -> Run:
        """A test of a training under another config: network, data, loss and seed are the training's."""
        own = ("test", "--run", str(training.folder), "--name", part.name, "--config", part.config)
        options = (*self.overrides, *task.overrides, *part.overrides)
        words = (*own, *options, "--ckpt_path", _checkpoint(task, training.folder))
        folder = RunFolder(training.folder).evaluation(part.name).path
        return Run(f"{training.cell}_{part.name}", training.loss, training.seed, folder, {"test": words}, training)


def _checkpoint(task: Task, folder: Path) -> str:
    return str(RunFolder(folder).checkpoints / f"{task.checkpoint}.ckpt")


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
    study = parse(Study, content, str(path))
    study.name = study.name or path.stem
    if Path(study.name).name != study.name:
        raise ValueError(f"name of {path} is the name of a folder in {root}/, got {study.name!r}.")
    study.overrides += not_own(overrides, "the command line")
    study.root = Path(root)
    return study
