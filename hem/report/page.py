"""One page of many runs: ``python -m hem.report runs/<study>`` writes ``runs/<study>/report/index.html``.

Beside the page, which needs no network and no other file, lie its tables as Markdown and CSV (``raw.csv`` holds every
figure of every run, ``<task>_runs.csv`` those of the tables) and its figures as SVG and PNG. What a study asks for and
has not got is shown as missing.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from hem.metrics.catalog import Metric, best_of_validation, describe, headlines, with_means
from hem.names import near
from hem.plots import comparison
from hem.plots.style import colours, saved, wrapped
from hem.report.statistics import LEVEL, Comparison, compare, holm, verdict
from hem.runs import RunFolder
from hem.runs.files import read_json, write_atomically
from hem.study.grid import PLAN
from hem.study.local import tail
from hem.study.progress import duration
from hem.study.run import differs

PICTURES = 6  # of one kind that runs left, at most, in the page


@dataclass(frozen=True)
class Result:
    """What one run left."""

    cell: str
    loss: str
    seed: int
    folder: Path
    facts: dict[str, Any] = field(hash=False)
    metrics: dict[str, float] = field(hash=False)
    curves: dict[str, dict[float, float]] = field(hash=False)  #: ``metrics.csv``: value by epoch, from 1

    name: str  #: its folder, below that of the study

    @property
    def task(self) -> str:
        """The task, as ``results.json`` has it."""
        return str(self.facts.get("task") or self.cell.partition("_")[0])


class Missing(NamedTuple):
    """A run that the study asks for and has not got."""

    name: str
    why: str
    log: str  #: the last lines of its log


class Table(NamedTuple):
    """A table, in the page and as files."""

    name: str
    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        text = "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)
        return f"### {self.title}\n\n{text}\n"

    def csv(self) -> str:
        """As CSV."""
        return as_csv([self.head, *self.rows])


class Picture(NamedTuple):
    """A figure in the page."""

    title: str
    source: str  #: a data URI
    width: int = 0  #: in pixels; 0: its own


def as_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV with Unix line ends."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def monitor_of(run: RunFolder) -> tuple[str, str] | tuple[()]:
    """What chose the best checkpoint of a run, ``(monitor, mode)``, as its config says; ("", "") for the last epoch."""
    try:
        config = run.read_config()
    except (FileNotFoundError, ValueError):  # a folder of old, of which the config is gone
        return ()
    rule = config.get("checkpoint") or {}
    return (rule.get("monitor") or "", rule.get("mode") or "min") if rule else ()


def read_curves(path: Path) -> dict[str, dict[float, float]]:
    """The curves of a run's ``metrics.csv``: of each figure the mean by epoch; empty where there is no such file."""
    points: dict[str, dict[float, list[float]]] = {}
    if path.is_file():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                epoch = row.pop("epoch", None)
                for key, value in row.items():
                    if epoch and value and key != "step":
                        points.setdefault(key, {}).setdefault(float(epoch) + 1, []).append(float(value))
    return {key: {epoch: mean(values) for epoch, values in by_epoch.items()} for key, by_epoch in points.items()}


class Place(NamedTuple):
    """What the folder of a run, below that of a study, says of it."""

    cell: str  #: ``<task>_<data>``; of an examination in a run ``<task>_<data>_<examination>``
    loss: str
    seed: int

    @classmethod
    def of(cls, name: str) -> Place:
        """Read ``<task>_<data>/<loss>/seed<k>``, with ``/evaluate/<examination>`` behind it or not.

        Raises:
            ValueError: If it is none of them.

        Example:
            >>> Place.of("classification_mnist/hem/seed0/evaluate/rejection")
            Place(cell='classification_mnist_rejection', loss='hem', seed=0)
        """
        cell, loss, seed, *examination = name.split("/")
        return cls("_".join([cell, *examination[1:]]), loss, int(seed.removeprefix("seed")))


def settings(results: Sequence[Result]) -> list[set[str]]:
    """For each run with a config, its lines that do not tell the seed or the folder; of examinations the test's."""
    own = ("#", "seed_everything:", "ckpt_path:", "run:")
    for stage in ("fit", "test"):
        texts = {r.name: path.read_text() for r in results if (path := RunFolder(r.folder).config_of(stage)).is_file()}
        if texts:
            break
    return [
        {line for each in text.splitlines() if not (line := each.strip()).startswith(own) and run not in line}
        for run, text in texts.items()
    ]


# -- what lies there -----------------------------------------------------------------------------------------------


class Runs:
    """The results under a folder, and what is missing.

    Args:
        folder: ``runs/<study>``, or ``runs`` itself for runs made by hand.

    Raises:
        FileNotFoundError: If there is no such folder, or neither a result nor a study's plan in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"Expected the folder of a study, such as runs/quick, but there is no {folder}.")
        self.folder = folder
        self.notes: list[str] = []
        self.plan: dict[str, Any] = {}
        if (folder / PLAN).is_file():
            self.plan = read_json(folder / PLAN)
        asked = self.plan.get("runs", {})
        self.results = [result for run in self._folders(RunFolder.RESULTS) if (result := self._read(run))]
        self.results += [
            result
            for run in self._folders(RunFolder.STUDY)
            if "test" not in asked.get(self._name(run), {}).get("steps", "test") and (result := self._trained(run))
        ]
        if not self.results and not self.plan:
            raise FileNotFoundError(
                f"{folder} holds no results: expected <task>_<data>/<loss>/seed<k>/results.json in it, as `python -m "
                "hem.study` and `python cli.py test` write them."
            )
        there = {result.name for result in self.results}
        self.asked = Counter(Place.of(name)[:2] for name in asked)  #: runs of the plan, by task and loss
        self.missing = [self._missing(name) for name in asked if name not in there]
        self.missing += [
            self._missing(name)
            for run in self._folders(RunFolder.STUDY)
            if (name := self._name(run)) not in there and name not in asked
        ]
        if extra := [name for name in there if asked and name not in asked]:
            self.notes.append(
                f"{len(extra)} runs lie here that the study does not ask for: {', '.join(sorted(extra)[:4])}."
            )
        self._mixtures()
        self._changed()
        order = list(dict.fromkeys(cell for cell, _ in self.asked))
        self.cells = order + sorted({r.cell for r in self.results} - set(order))
        losses = list(dict.fromkeys(loss for _, loss in self.asked))
        self.losses = losses + sorted({r.loss for r in self.results} - set(losses))
        self.results.sort(key=lambda r: (self.cells.index(r.cell), self.losses.index(r.loss), r.seed))

    def _folders(self, file: str) -> list[RunFolder]:
        """The runs and examinations that have a file; results that were set aside are left out."""
        patterns = (f"*/*/seed*/{file}", f"*/*/seed*/{RunFolder.EVALUATIONS}/*/{file}")
        paths = sorted(path.parent for pattern in patterns for path in self.folder.glob(pattern))
        return [RunFolder(path) for path in paths if RunFolder.ASIDE not in path.name]

    def _name(self, run: RunFolder) -> str:
        return run.path.relative_to(self.folder).as_posix()

    def _read(self, run: RunFolder) -> Result | None:
        name = self._name(run)
        try:
            facts = read_json(run.results)
            metrics = {key: float(value) for key, value in facts.pop("metrics").items()}
            place = Place.of(name)
            curves = read_curves(run.curves)
        except (ValueError, KeyError, AttributeError, TypeError):
            self.notes.append(f"{run.results} cannot be read as the results of a run, and is left out.")
            return None
        if facts.get("seed") not in (place.seed, None):
            self.notes.append(f"{run.results} is of seed {facts['seed']}, but lies under seed{place.seed}.")
        metrics = with_means(metrics) | best_of_validation(curves, *monitor_of(run))
        return Result(place.cell, place.loss, place.seed, run.path, facts, metrics, curves, name)

    def _trained(self, run: RunFolder) -> Result | None:
        """A training that the study does not test: what its validation said, once it has ended."""
        if run.results.is_file() or "seconds" not in run.read_study().get("fit", {}):
            return None
        place, curves = Place.of(self._name(run)), read_curves(run.curves)
        metrics = best_of_validation(curves, *monitor_of(run))
        return Result(place.cell, place.loss, place.seed, run.path, {}, metrics, curves, self._name(run))

    def _changed(self) -> None:
        """Say which runs were made by other commands than the study has now, and which losses by several configs."""
        plan = self.plan.get("runs", {})
        changed = [
            r.name
            for r in self.results
            if r.name in plan and differs(plan[r.name].get("steps", {}), RunFolder(r.folder).read_study())
        ]
        if changed:
            self.notes.append(
                f"{len(changed)} runs were made with other options than the study has now, and are made anew if their "
                f"folders are deleted: {', '.join(sorted(changed)[:4])}."
            )
        for cell, loss in dict.fromkeys((r.cell, r.loss) for r in self.results):
            configs = settings(self.of(cell, loss))
            lines = sorted(set[str]().union(*configs))
            if differing := [line for line in lines if not all(line in config for config in configs)]:
                self.notes.append(
                    f"The runs of {cell}/{loss} differ in more than their seed: {'; '.join(differing[:4])}."
                )

    def _missing(self, name: str) -> Missing:
        folder = self.folder / name
        logs = sorted(folder.glob("*.log"), key=lambda p: p.stat().st_mtime)
        after = (self.plan.get("runs", {}).get(name) or {}).get("after")
        if logs:
            return Missing(name, "begun, but it has no results: failed, stopped or still running", tail(logs[-1]))
        if after and not RunFolder(self.folder / after).results.is_file():
            return Missing(name, f"not begun: {after} is not done", "")
        return Missing(name, "not begun", "")

    def _mixtures(self) -> None:
        """Say where runs that stand in one table were not made alike, or not of all images."""
        if parts := [f"{r.name} ({r.facts['partial']})" for r in self.results if r.facts.get("partial")]:
            self.notes.append(f"{len(parts)} results are of a part of the images: {', '.join(parts[:4])}.")
        for result in (r for r in self.results if r.facts.get("note")):
            self.notes.append(f"{result.name} is of {result.facts['note']}.")
        for cell in dict.fromkeys(r.cell for r in self.results):
            of = Counter(Path(r.facts["checkpoint"]).name for r in self.of(cell) if r.facts.get("checkpoint"))
            if len(of) > 1:
                counts = ", ".join(f"{name} ({count} runs)" for name, count in sorted(of.items()))
                self.notes.append(f"The results of {cell} are of different checkpoints: {counts}.")
        for key, word in (("hardware", "kinds of hardware"), ("devices", "numbers of devices")):
            if len(found := Counter(str(r.facts.get(key)) for r in self.results if r.facts)) > 1:
                counts = "; ".join(f"{name} ({count} runs)" for name, count in found.items())
                self.notes.append(f"The runs were made on {len(found)} {word}: {counts}.")
        for package in ("hem", "torch"):
            found = Counter(str((r.facts.get("versions") or {}).get(package)) for r in self.results if r.facts)
            if len(found) > 1:
                self.notes.append(f"The runs were made by {len(found)} versions of {package}: {', '.join(found)}.")

    def of(self, cell: str, loss: str | None = None) -> list[Result]:
        """The results of a task, and of a loss."""
        return [r for r in self.results if r.cell == cell and loss in (None, r.loss)]

    def values(self, cell: str, key: str) -> dict[str, dict[int, float]]:
        """A figure by loss and seed; losses without it are left out."""
        found: dict[str, dict[int, float]] = {}
        for loss in self.losses:
            if numbers := {r.seed: r.metrics[key] for r in self.of(cell, loss) if key in r.metrics}:
                found[loss] = numbers
        return found

    def keys(self, cell: str) -> list[str]:
        """The figures of a task."""
        return sorted({key for r in self.of(cell) for key in r.metrics})


# -- tables --------------------------------------------------------------------------------------------------------


def number(value: float, metric: Metric) -> str:
    """A value as it is shown: percent with two places, others with four digits; ``-`` for none."""
    if math.isnan(value):
        return "-"
    return f"{metric.scale * value:.2f}" if metric.percent else f"{value:.4g}"


def spread(values: Iterable[float], metric: Metric) -> str:
    """Mean ± standard deviation (number of seeds); where a value is none, how many are."""
    values = list(values)
    if not values:
        return "missing"
    if lacking := len(values) - sum(map(math.isfinite, values)):
        return f"not a number in {lacking} of {len(values)}"
    deviation = number(stdev(values), metric) if len(values) > 1 else "-"
    return f"{number(mean(values), metric)} ± {deviation} ({len(values)})"


class Compared(NamedTuple):
    """A row of a table of comparisons."""

    metric: Metric
    loss: str
    comparison: Comparison
    p: float  #: corrected
    verdict: str


def comparisons(runs: Runs, cell: str, metrics: Sequence[Metric], baseline: str) -> list[Compared]:
    """Every loss against the baseline in every one of some figures; p-values corrected over all of them."""
    found = []
    for metric in metrics:
        values = runs.values(cell, metric.key)
        if baseline not in values:
            continue
        for loss, own in values.items():
            if loss != baseline:
                both = sorted(own.keys() & values[baseline].keys())
                pair = compare([own[s] for s in both], [values[baseline][s] for s in both])
                found.append((metric, loss, pair))
    corrected = holm([pair.p for _, _, pair in found])
    return [
        Compared(metric, loss, pair, p, verdict(pair, p, metric.higher))
        for (metric, loss, pair), p in zip(found, corrected, strict=True)
    ]


def p_value(p: float) -> str:
    """A p-value as it is shown."""
    return "-" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def comparison_table(cell: str, rows: Sequence[Compared], baseline: str) -> Table:
    """The comparisons as a table."""
    out = []
    for row in rows:
        scale, pair = row.metric.scale, row.comparison
        digits = "+.2f" if row.metric.percent else "+.4g"
        signed = "-" if math.isnan(pair.difference) else f"{scale * pair.difference:{digits}}"
        interval = "-" if math.isnan(pair.low) else f"{scale * pair.low:{digits}} to {scale * pair.high:{digits}}"
        names = [
            row.metric.label,
            row.loss,
            str(pair.seeds),
        ]
        out.append([*names, signed, interval, p_value(pair.p), p_value(row.p), p_value(pair.p_signs), row.verdict])
    head = [
        "figure",
        "loss",
        "seeds",
        f"difference to {baseline}",
        "95 % interval",
        "p",
        "p (Holm)",
        "p (signs)",
        "verdict",
    ]
    return Table(f"{cell}_comparisons", f"{cell}: difference to {baseline}", head, out)


def metric_table(runs: Runs, cell: str, metrics: Sequence[Metric], name: str, title: str) -> Table:
    """Mean ± standard deviation (number of seeds) of figures, a column for each loss."""
    rows = []
    losses = [loss for loss in runs.losses if runs.asked[cell, loss] or runs.of(cell, loss)]
    for metric in metrics:
        values = runs.values(cell, metric.key)
        rows.append([metric.label, *(spread(values.get(loss, {}).values(), metric) for loss in losses)])
    return Table(name, title, ["figure", *losses], rows)


def coverage(runs: Runs) -> Table:
    """How many runs of each task and loss are there, of how many."""
    rows = []
    for cell in runs.cells:
        row = [cell]
        for loss in runs.losses:
            have, want = len(runs.of(cell, loss)), runs.asked[cell, loss]
            row.append(f"{have} of {want}" if want else str(have) if have else "-")
        rows.append(row)
    return Table("coverage", "Runs with results", ["task", *runs.losses], rows)


def runs_table(runs: Runs, cell: str, metrics: Sequence[Metric]) -> Table:
    """The same figures of every run, a row for each: small enough to be kept beside a table that quotes them."""
    rows = []
    for r in runs.of(cell):
        figures_of = (f"{r.metrics[metric.key]:.6g}" if metric.key in r.metrics else "" for metric in metrics)
        facts = (str(r.facts.get("date", ""))[:10], str(r.facts.get("hardware", "")))
        rows.append([cell, r.loss, str(r.seed), *figures_of, *facts])
    names = [metric.key.removeprefix("test/") for metric in metrics]
    return Table(f"{cell}_runs", f"{cell}: every run", ["task", "loss", "seed", *names, "date", "hardware"], rows)


def raw(runs: Runs, study: str) -> str:
    """Every figure of every run, one a row."""
    rows: list[Sequence[Any]] = [
        ("study", "task", "data", "loss", "seed", "metric", "value", "date", "hardware", "config")
    ]
    for r in runs.results:
        facts = [r.facts.get("date", ""), r.facts.get("hardware", ""), f"{r.name}/config_test.yaml"]
        data = r.facts.get("data") or r.cell.partition("_")[2]
        rows += [[study, r.task, data, r.loss, r.seed, key, repr(value), *facts] for key, value in r.metrics.items()]
    return as_csv(rows)


# -- figures -------------------------------------------------------------------------------------------------------


def training(runs: Runs, cell: str) -> Sequence[comparison.Panel]:
    """The curves of training, of every loss and seed."""
    wanted = {
        "val/accuracy": "validation accuracy in %",
        "val/miou": "validation mIoU in %",
        "val/robust_accuracy": "robust validation accuracy in %",
        "train/accuracy": "training accuracy in %",
        "train/active": "samples with error in %",
        "train/loss": "training loss",
    }
    found: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {}
    for r in runs.of(cell):
        for key in wanted.keys() & r.curves.keys():
            scale = 1.0 if key == "train/loss" else 100.0
            y = [scale * value for value in r.curves[key].values()]
            found.setdefault(key, {}).setdefault(r.loss, []).append((list(r.curves[key]), y))
    shown = [(wanted[key], "epoch", found[key]) for key in wanted if key in found]
    return [each for each in shown if any(len(x) > 1 for runs_ in each[2].values() for x, _ in runs_)][:3]


def robustness(runs: Runs, cell: str) -> Sequence[comparison.Panel]:
    """Accuracy against the radius of the attack: the worst of all attacks."""
    panels = []
    for norm, label in (("linf", "L∞"), ("l2", "L2")):
        by_loss: dict[str, list[tuple[list[float], list[float]]]] = {}
        for r in runs.of(cell):
            points = {0.0: 100 * r.metrics.get("test/accuracy", math.nan)}
            for key, value in r.metrics.items():
                if match := re.fullmatch(rf"test/robust_accuracy/{norm}/([\d.e-]+)/(worst|clean)", key):
                    points[float(match[1])] = 100 * value
            if len(points) > 1:
                x = sorted(points)
                by_loss.setdefault(r.loss, []).append((x, [points[place] for place in x]))
        if by_loss:
            panels.append((f"accuracy in % under all attacks, {label}", "radius, pixels in [0, 1]", by_loss))
    return panels


def groups(runs: Runs, cell: str, pattern: str) -> dict[str, dict[str, list[float]]]:
    """Figures in percent whose name matches, by the pattern's group, then by loss."""
    found: dict[str, dict[str, list[float]]] = {}
    for key in runs.keys(cell):
        if match := re.fullmatch(pattern, key):
            values = runs.values(cell, key)
            found[match[1]] = {loss: [100 * v for v in numbers.values()] for loss, numbers in values.items()}
    return found


def severity(runs: Runs, cell: str) -> Sequence[comparison.Panel]:
    """Accuracy against the severity of the corruption, mean of all corruptions."""
    by_loss: dict[str, list[tuple[list[float], list[float]]]] = {}
    for r in runs.of(cell):
        points: dict[float, list[float]] = {}
        for key, value in r.metrics.items():  # of the images that are corrupted, clean/0 among them
            if match := re.fullmatch(r"test/corruption/\w+/(\d)", key):
                points.setdefault(float(match[1]), []).append(value)
        if len(points) > 2:
            x = sorted(points)
            by_loss.setdefault(r.loss, []).append((x, [100 * mean(points[place]) for place in x]))
    return [("accuracy in %, mean of all corruptions", "severity (0: clean)", by_loss)] if by_loss else []


def drawings(
    runs: Runs, cell: str, metrics: Sequence[Metric], hues: Mapping[str, str]
) -> dict[str, tuple[str, Figure]]:
    """The figures of a task: by name, a title and the drawing."""
    found: dict[str, tuple[str, Figure]] = {}
    dots = []
    for metric in metrics:
        values = runs.values(cell, metric.key)
        shown = {loss: [metric.scale * v for v in numbers.values()] for loss, numbers in values.items()}
        dots.append((metric.label, shown))
    if dots:
        found["seeds"] = ("Every seed, and the mean", comparison.seeds(dots, hues))
    if panels := training(runs, cell):
        log = [title for title, _, by_loss in panels if title == "training loss" and positive(by_loss)]
        found["training"] = ("Training: mean and range of the seeds", comparison.curves(panels, hues, log))
    if panels := robustness(runs, cell):
        found["robustness"] = ("Robustness: mean and range of the seeds", comparison.curves(panels, hues))
    if panels := severity(runs, cell):
        found["severity"] = ("Corruptions by severity: mean and range of the seeds", comparison.curves(panels, hues))
    for name, title, pattern in (
        ("unknown", "AUROC of the largest logit by unknown set, mean and deviation", r"test/auroc/max_logit/(.+)"),
        ("corruptions", "Accuracy by corruption, mean and deviation", r"test/corruption/(\w+)/mean"),
        ("classes", "Accuracy by class, mean and deviation", r"test/class_accuracy/(.+)"),
        ("iou", "IoU by class, mean and deviation", r"test/iou/(.+)"),
    ):
        by_group = groups(runs, cell, pattern)
        if 1 < len(by_group) <= 40:
            found[name] = (
                title,
                comparison.bars(
                    by_group, hues, f"{'AUROC' if name == 'unknown' else 'IoU' if name == 'iou' else 'accuracy'} in %"
                ),
            )
    return found


def positive(by_loss: comparison.Curves) -> bool:
    """Whether every value can stand on a logarithmic axis."""
    return all(value > 0 for each in by_loss.values() for _, y in each for value in y)


def left_by_runs(runs: Runs, cell: str) -> dict[str, list[Picture]]:
    """Pictures that the runs left, of the first seed of each loss, by the name of the file."""
    found: dict[str, list[Picture]] = {}
    for loss in runs.losses:
        for r in runs.of(cell, loss)[:1]:
            for path in sorted(r.folder.glob("*.png")):
                kept = found.setdefault(path.stem.replace("_", " "), [])
                if len(kept) < PICTURES:
                    kept.append(Picture(f"{loss}, seed {r.seed}", uri(path.read_bytes(), "png")))
    return found


def uri(content: bytes, kind: str) -> str:
    """A picture as a data URI."""
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(content).decode()}"


# -- the page ------------------------------------------------------------------------------------------------------


def summary_rows(compared: Mapping[str, Sequence[Compared]], runs: Runs, baseline: str) -> list[Any]:
    """The rows of the summary figure: of each task its first headline figure, relative to the baseline's mean."""
    rows = []
    for cell, found in compared.items():
        for row in found:
            if row.metric is not found[0].metric or row.metric.higher is None:
                continue
            base = mean(runs.values(cell, row.metric.key)[baseline].values())
            if base == 0:
                continue
            factor = 100 / abs(base) * (1 if row.metric.higher else -1)
            ends = sorted(factor * end for end in (row.comparison.low, row.comparison.high))
            title = f"{cell}\n{wrapped(row.metric.title, 32)}"
            rows.append((title, row.loss, factor * row.comparison.difference, *ends, row.p < LEVEL))
    return rows


def write(folder: str | Path | Runs, baseline: str | None = None, further: Sequence[str] = ()) -> Path:
    """Write the report of a folder of runs.

    Args:
        folder: ``runs/<study>``, or what was read of it.
        baseline: The loss that all others are compared with; None: ``ce`` where it is among them, else the first.
        further: Regular expressions: figures whose names they fit stand in the tables beside the headline ones. Their
            p-values are corrected over these figures alone, the headline figures' over those.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If there is nothing to report on.
        ValueError: If no run is of the baseline, or none has a figure that a pattern fits.
    """
    runs = folder if isinstance(folder, Runs) else Runs(Path(folder))
    known = sorted({key for cell in runs.cells for key in runs.keys(cell)})
    if unmet := [pattern for pattern in further if known and not any(re.search(pattern, key) for key in known)]:
        raise ValueError(
            f"Expected patterns of figures that the runs have, got '{unmet[0]}'{near(unmet[0], known) or ':'} all of "
            f"them are in {runs.folder / 'report' / 'raw.csv'}, once there is a report."
        )
    if baseline is None:
        baseline = "ce" if "ce" in runs.losses or not runs.losses else runs.losses[0]
    if runs.losses and baseline not in runs.losses:
        raise ValueError(f"no run has the baseline '{baseline}': --baseline is one of {', '.join(runs.losses)}.")
    out = runs.folder / "report"
    study = str(runs.plan.get("study") or runs.folder.resolve().name)
    hues = colours(runs.losses)
    sections, compared = [], {}
    files: dict[str, str | bytes] = {"raw.csv": raw(runs, study)}
    tables = [coverage(runs)]

    def picture(name: str, title: str, figure: Figure) -> Picture:
        files[f"{name}.png"] = saved(figure, "png")
        files[f"{name}.svg"] = drawn = saved(figure, "svg")
        return Picture(title, uri(drawn, "svg"), round(96 * figure.get_figwidth()))

    for cell in runs.cells:
        results = runs.of(cell)
        if not results:
            sections.append({"cell": cell, "empty": True})
            continue
        keys = runs.keys(cell)
        metrics = headlines(results[0].task, keys)
        more = [key for key in keys if any(re.search(pattern, key) for pattern in further)]
        others = [describe(key) for key in more if key not in {metric.key for metric in metrics}]
        # what one looks into besides does not make the headline figures less significant
        compared[cell] = [each for part in (metrics, others) for each in comparisons(runs, cell, part, baseline)]
        metrics += others
        main = metric_table(runs, cell, metrics, cell, cell)
        against = comparison_table(cell, compared[cell], baseline)
        everything = metric_table(runs, cell, [describe(key) for key in keys], f"{cell}_all", f"{cell}: every figure")
        tables += [main, against, everything, runs_table(runs, cell, metrics)]
        sections.append(
            {
                "cell": cell,
                "task": results[0].task,
                "main": main,
                "against": against,
                "baseline_there": bool(runs.of(cell, baseline)),
                "everything": everything,
                "pictures": [
                    picture(f"{cell}_{name}", title, figure)
                    for name, (title, figure) in drawings(runs, cell, metrics, hues).items()
                ],
                "left": left_by_runs(runs, cell),
                "runs": [described(r, runs.folder) for r in results],
            }
        )
    summary = summary_rows(compared, runs, baseline)
    head = picture("summary", "Relative change", comparison.relative_change(summary, hues)) if summary else None
    for table in tables:
        files[f"{table.name}.csv"] = table.csv()
    files["tables.md"] = "\n".join(table.markdown() for table in tables if not table.name.endswith(("_all", "_runs")))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hem.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    files["index.html"] = environment.get_template("template.html").render(
        study=study,
        plan=runs.plan,
        folder=str(runs.folder),
        baseline=baseline,
        hues=hues,
        notes=runs.notes,
        facts=facts_of(runs),
        coverage=tables[0],
        missing=runs.missing,
        summary=head,
        sections=sections,
    )
    for name, content in files.items():
        write_atomically(out / name, content)
    return out / "index.html"


def described(result: Result, folder: Path) -> dict[str, Any]:
    """A run as the page lists it: when and where it was made, and links to its files."""
    seconds = sum(step.get("seconds", 0) for step in RunFolder(result.folder).read_study().values())
    present = [p.name for p in sorted(result.folder.iterdir()) if p.suffix in (".yaml", ".json", ".csv", ".log")]
    return {
        "name": f"{result.loss}/seed{result.seed}",
        "partial": result.facts.get("partial", ""),
        "loss": result.loss,
        "date": str(result.facts.get("date", ""))[:16].replace("T", " "),
        "hardware": result.facts.get("hardware", ""),
        "time": duration(seconds) if seconds else "",
        "files": [
            (name, f"../{result.name}/{name}") for name in present if name not in (RunFolder.STUDY, "hparams.yaml")
        ],
    }


def facts_of(runs: Runs) -> dict[str, str]:
    """What the head of the page says of the runs."""
    if not runs.results:
        return {}
    tested = [r for r in runs.results if r.facts]
    dates = sorted(str(r.facts.get("date", ""))[:10] for r in tested) or ["-"]
    versions: dict[str, str] = next((r.facts["versions"] for r in tested if r.facts.get("versions")), {})
    return {
        "runs": f"{len(runs.results)} with results, {len(runs.missing)} missing",
        "seeds": ", ".join(map(str, sorted({r.seed for r in runs.results}))),
        "made": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "on": "; ".join(sorted({str(r.facts.get("hardware")) for r in tested})),
        "with": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 where there is nothing to report on.
    """
    parser = argparse.ArgumentParser(prog="python -m hem.report", description="Make one page of many runs.")
    parser.add_argument("folder", help="the folder of a study, such as runs/quick")
    parser.add_argument("--baseline", help="the loss that all others are compared with: ce, else the study's first one")
    parser.add_argument("--figures", nargs="*", default=[], metavar="PATTERN",
                        help="further figures for the tables: regular expressions of their names")  # fmt: skip
    chosen = parser.parse_args(args)
    try:
        runs = Runs(Path(chosen.folder))
        page = write(runs, chosen.baseline, chosen.figures)
    except re.error as error:
        print(f"error: expected regular expressions after --figures, got '{error.pattern!s}': {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{page}{f'; {len(runs.missing)} runs are missing, the page says which' if runs.missing else ''}")
    return 0
