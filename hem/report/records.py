"""Results of the runs of a study as one long table, with a row for each metric of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hem.metrics.catalog import Metric, best_of_validation, describe, headlines, with_means
from hem.runs import RunFolder
from hem.runs.files import read_json
from hem.study.grid import PLAN
from hem.study.local import tail
from hem.study.run import differs

RUN = ["name", "cell", "loss", "seed", "task", "data", "date", "hardware", "devices", "checkpoint", "partial", "note",
       "hem", "torch", "versions"]  # fmt: skip
VALUE = ["name", "cell", "loss", "seed", "metric", "value"]
CURVE = ["cell", "loss", "seed", "metric", "epoch", "value"]


class Missing(NamedTuple):
    """A run of the study's plan without results."""

    name: str
    why: str
    log: str  #: last lines of its log


class Place(NamedTuple):
    """A run as identified by the path of its folder, relative to the study's."""

    cell: str  #: ``<task>_<data>``; of an examination in a run ``<task>_<data>_<examination>``
    loss: str
    seed: int

    @classmethod
    def of(cls, name: str) -> Place:
        """Parse ``<task>_<data>/<loss>/seed<k>``, optionally with ``/evaluate/<examination>``.

        Raises:
            ValueError: If the path has another form.

        Example:
            >>> Place.of("classification_mnist/hem/seed0/evaluate/rejection")
            Place(cell='classification_mnist_rejection', loss='hem', seed=0)
        """
        cell, loss, seed, *examination = name.split("/")
        return cls("_".join([cell, *examination[1:]]), loss, int(seed.removeprefix("seed")))


def monitor_of(run: RunFolder) -> tuple[str, str] | tuple[()]:
    """Return ``(monitor, mode)`` of a run's best checkpoint from its config; ("", "") for the last epoch."""
    try:
        config = run.read_config()
    except (FileNotFoundError, ValueError):  # the config of an older run is missing
        return ()
    rule = config.get("checkpoint") or {}
    return (rule.get("monitor") or "", rule.get("mode") or "min") if rule else ()


def read_curves(path: Path) -> pd.DataFrame:
    """Read the curves in a run's ``metrics.csv``: metric, epoch (from 1), and the mean value of an epoch."""
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame(columns=["metric", "epoch", "value"])
    by_epoch = pd.read_csv(path).drop(columns="step", errors="ignore").groupby("epoch").mean()
    by_epoch.index = by_epoch.index.astype(float) + 1
    return by_epoch.melt(ignore_index=False, var_name="metric").dropna().reset_index()


def settings(folder: Path, names: Sequence[str]) -> list[set[str]]:
    """Return the lines of each run's config, except those with seed or folder; of examinations the test's config."""
    own = ("#", "seed_everything:", "ckpt_path:", "run:")
    for stage in ("fit", "test"):
        paths = {name: RunFolder(folder / name).config_of(stage) for name in names}
        texts = {name: path.read_text("utf-8") for name, path in paths.items() if path.is_file()}
        if texts:
            break
    return [
        {line for each in text.splitlines() if not (line := each.strip()).startswith(own) and run not in line}
        for run, text in texts.items()
    ]


class Runs:
    """The results in a folder of runs, and the runs that are missing.

    Attributes:
        table: A row for each run with results.
        values: The long table, a row for each metric of each run.
        curves: A row for each metric, epoch and run.
        cells: Names ``<task>_<data>``, in the plan's order.
        losses: Names of losses, in the plan's order.
        asked: Number of runs of the plan, by cell and loss.
        missing: Runs of the plan without results.
        notes: Sentences on inconsistencies between runs.

    Args:
        folder: ``runs/<study>``, or ``runs`` itself for runs without a study.

    Raises:
        FileNotFoundError: If there is no such folder, or neither a result nor a study's plan in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"Expected the folder of a study, such as runs/quick, but there is no {folder}.")
        self.folder = folder
        self.notes: list[str] = []
        self.plan: dict[str, Any] = read_json(folder / PLAN) if (folder / PLAN).is_file() else {}
        asked: dict[str, dict[str, Any]] = self.plan.get("runs", {})
        begun = self._folders(RunFolder.STUDY)
        untested = [name for name in begun if "test" not in asked.get(name, {}).get("steps", "test")]
        found = [run for name in self._folders(RunFolder.RESULTS) if (run := self._read(name))]
        found += [run for name in untested if (run := self._trained(name))]
        if not found and not asked:
            raise FileNotFoundError(
                f"{folder} holds no results: expected <task>_<data>/<loss>/seed<k>/results.json in it, as `hem study` "
                "and `hem test` write them."
            )
        self.asked = Counter(Place.of(name)[:2] for name in asked)
        places = [*self.asked, *sorted((run["cell"], run["loss"]) for run, *_ in found)]
        self.cells, self.losses = (list(dict.fromkeys(names)) for names in zip(*places, strict=True))
        found.sort(
            key=lambda each: (self.cells.index(each[0]["cell"]), self.losses.index(each[0]["loss"]), each[0]["seed"])
        )
        self.table = pd.DataFrame([run for run, *_ in found], columns=RUN)
        keys = RUN[:4]
        self.values = pd.DataFrame(
            [[*(run[key] for key in keys), *pair] for run, metrics, _ in found for pair in metrics.items()],
            columns=VALUE,
        )
        curves = [curve.assign(**{key: run[key] for key in keys[1:]}) for run, _, curve in found if len(curve)]
        self.curves = pd.concat(curves)[CURVE] if curves else pd.DataFrame(columns=CURVE)
        there = set(self.table.name)
        self.missing = [self._missing(name) for name in dict.fromkeys([*asked, *begun]) if name not in there]
        if extra := sorted(name for name in there if asked and name not in asked):
            self.notes.append(f"{len(extra)} runs lie here that the study does not ask for: {', '.join(extra[:4])}.")
        self._mixtures()
        self._changed()

    def _folders(self, file: str) -> list[str]:
        """Return the names of runs and examinations that have a file, without results that were set aside."""
        patterns = (f"*/*/seed*/{file}", f"*/*/seed*/{RunFolder.EVALUATIONS}/*/{file}")
        paths = sorted(path.parent for pattern in patterns for path in self.folder.glob(pattern))
        return [path.relative_to(self.folder).as_posix() for path in paths if RunFolder.ASIDE not in path.name]

    def _read(self, name: str) -> tuple[dict[str, Any], dict[str, float], pd.DataFrame] | None:
        run = RunFolder(self.folder / name)
        try:
            facts = read_json(run.results)
            metrics = {key: float(value) for key, value in facts.pop("metrics").items()}
            place = Place.of(name)
            curves, best = read_curves(run.curves), best_of_validation(run.read_validations(), *monitor_of(run))
            versions = dict(facts.get("versions") or {})
        except (ValueError, KeyError, AttributeError, TypeError):
            self.notes.append(f"{run.results} cannot be read as the results of a run, and is left out.")
            return None
        if facts.get("seed") not in (place.seed, None):
            self.notes.append(f"{run.results} is of seed {facts['seed']}, but lies under seed{place.seed}.")
        task, _, data = place.cell.partition("_")
        own = {"task": facts.get("task") or task, "data": facts.get("data") or data, "versions": versions}
        own |= {package: str(versions.get(package)) for package in ("hem", "torch")}
        own["partial"] = facts.get("partial") or None
        own["checkpoint"] = Path(facts["checkpoint"]).name if facts.get("checkpoint") else None
        return {**facts, **own, "name": name, **place._asdict()}, with_means(metrics) | best, curves

    def _trained(self, name: str) -> tuple[dict[str, Any], dict[str, float], pd.DataFrame] | None:
        """Read the validation metrics of a finished training that the study does not test."""
        run, place = RunFolder(self.folder / name), Place.of(name)
        if run.results.is_file() or "seconds" not in run.read_study().get("fit", {}):
            return None
        curves, (task, _, data) = read_curves(run.curves), place.cell.partition("_")
        best = best_of_validation(run.read_validations(), *monitor_of(run))
        return {"name": name, "task": task, "data": data, **place._asdict()}, best, curves

    def _missing(self, name: str) -> Missing:
        logs = sorted((self.folder / name).glob("*.log"), key=lambda path: path.stat().st_mtime)
        after = (self.plan.get("runs", {}).get(name) or {}).get("after")
        if logs:
            return Missing(name, "begun, but it has no results: failed, stopped or still running", tail(logs[-1]))
        over = after and (self.folder / f"{after}.yaml").is_file()  # a search, and the config that it writes
        if after and not over and not RunFolder(self.folder / after).results.is_file():
            return Missing(name, f"not begun: {after} is not done", "")
        return Missing(name, "not begun", "")

    def _changed(self) -> None:
        """Note which runs were made by other commands than the study has now, and which losses by several configs."""
        plan = self.plan.get("runs", {})
        changed = [
            name for name in self.table.name
            if name in plan and differs(plan[name].get("steps", {}), RunFolder(self.folder / name).read_study())
        ]  # fmt: skip
        if changed:
            self.notes.append(
                f"{len(changed)} runs were made with other options than the study has now, and are made anew if their "
                f"folders are deleted: {', '.join(sorted(changed)[:4])}."
            )
        for (cell, loss), names in self.table.groupby(["cell", "loss"], sort=False).name:
            configs = settings(self.folder, list(names))
            lines = sorted(set[str]().union(*configs))
            if differing := [line for line in lines if not all(line in config for config in configs)]:
                self.notes.append(
                    f"The runs of {cell}/{loss} differ in more than their seed: {'; '.join(differing[:4])}."
                )

    def _mixtures(self) -> None:
        """Note which runs of one table differ in hardware, versions or the like, or did not use all images."""
        if parts := [
            f"{run.name} ({run.partial})" for run in self.table[self.table.partial.notna()].itertuples(index=False)
        ]:
            self.notes.append(f"{len(parts)} results are of a part of the images: {', '.join(parts[:4])}.")
        self.notes += [
            f"{run.name} is of {run.note}." for run in self.table[self.table.note.notna()].itertuples(index=False)
        ]
        tested = self.table[self.table.hardware.notna()]
        sentences = [
            *((each.checkpoint, f"The results of {cell} are of {{}} different checkpoints")
              for cell, each in tested.groupby("cell", sort=False)),
            (tested.hardware, "The runs were made on {} kinds of hardware"),
            (tested.devices, "The runs were made on {} numbers of devices"),
            (tested.hem, "The runs were made by {} versions of hem"),
            (tested.torch, "The runs were made by {} versions of torch"),
        ]  # fmt: skip
        for column, sentence in sentences:
            counts = Counter(map(str, column.dropna()))
            if len(counts) > 1:
                named = "; ".join(f"{name} ({count} runs)" for name, count in counts.items())
                self.notes.append(f"{sentence.format(len(counts))}: {named}.")

    # -- queries ---------------------------------------------------------------------------------------------------

    def of(self, cell: str, loss: str | None = None) -> pd.DataFrame:
        """Return the rows of a cell, and of a loss if one is given."""
        rows = self.table[self.table.cell == cell]
        return rows if loss is None else rows[rows.loss == loss]

    def keys(self, cell: str) -> list[str]:
        """Return the keys of a cell's metrics."""
        return sorted(self.values.metric[self.values.cell == cell].unique())

    def by_loss(self, cell: str, key: str) -> dict[str, pd.Series]:
        """Return a metric by loss, each a series over seeds, without losses that lack it."""
        rows = self.values[(self.values.cell == cell) & (self.values.metric == key)]
        return {loss: each.set_index("seed").value for loss, each in rows.groupby("loss", sort=False)}

    def headlines(self, cell: str) -> list[Metric]:
        """Return the headline metrics of a cell, its primary metric first.

        The primary metric is that of the study's file, or else the catalogue's first headline of the task.
        """
        keys = self.keys(cell)
        found = headlines(self.of(cell).task.iloc[0], keys)
        declared = self.declared(cell)
        if declared not in keys:
            return found
        return [describe(declared), *(metric for metric in found if metric.key != declared)]

    def untuned(self, cell: str) -> str | None:
        """Return the cell of the same runs without a search; None: this cell is not one of tuned runs."""
        found: str | None = self.plan.get("cells", {}).get(cell, {}).get("untuned")
        return found

    def declared(self, cell: str) -> str | None:
        """Return the key of the primary metric that the study's file declares for a cell."""
        found: str | None = self.plan.get("cells", {}).get(cell, {}).get("primary")
        return found
