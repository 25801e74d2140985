"""Planning of a study: the number of seeds that it needs, from the spread of its finished runs as a pilot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from statistics import mean, stdev
from typing import Protocol

from hem.metrics import catalog
from hem.runs import RunFolder
from hem.runs.files import read_json
from hem.study.grid import Study
from hem.study.run import Run

Pair = tuple[Sequence[float], Sequence[float]]  # values of a loss and of the baseline, by seed


class Statistics(Protocol):
    """Protocol of :mod:`hem.report.statistics`."""

    def level_of(self, tasks: Sequence[Sequence[Pair]]) -> float:
        """Return the level of the test in each task of a study."""

    def seeds_needed(self, differences: Sequence[float], *, comparisons: int, level: float) -> int:
        """Return the number of seeds that show the mean of some paired differences."""


def baseline_of(losses: Sequence[str]) -> str:
    """Return the loss that a study's others are compared with: ``ce`` if there is one, else the first."""
    return "ce" if "ce" in losses else losses[0]


def plan(study: Study, shown: Collection[str], statistics: Statistics) -> str:
    """Return a text on the seeds that would show the pilot's difference, for each task with a primary metric and loss.

    As in the report, each loss is compared with the baseline, paired by seed, at a level for the whole study.

    Args:
        study: The study, whose finished runs are the pilot.
        shown: The cells to write about.
        statistics: Computes level and number of seeds.
    """
    cells = study.cells()
    values: dict[str, dict[str, dict[int, float]]] = {cell: {} for cell in cells}
    runs = [run for run in study.runs() if isinstance(run, Run)]
    for run in runs:
        found, results = values[run.cell].setdefault(run.loss, {}), RunFolder(run.folder).results
        metrics = catalog.with_means(read_json(results)["metrics"]) if results.is_file() else {}
        if (primary := cells[run.cell]["primary"]) in metrics:
            found[run.seed] = metrics[primary]
    baseline = baseline_of([run.loss for run in runs])
    pairs: dict[str, dict[str, Pair]] = {}
    for cell, by_loss in values.items():
        pairs[cell] = {}
        if (base := by_loss.pop(baseline, None)) is not None:
            for loss, own in by_loss.items():
                seeds = sorted(own.keys() & base.keys())
                pairs[cell][loss] = ([own[seed] for seed in seeds], [base[seed] for seed in seeds])
    level = statistics.level_of([list(by_loss.values()) for by_loss in pairs.values() if by_loss])
    lines = []
    for cell in (cell for cell in cells if cell in shown):
        primary = cells[cell]["primary"]
        if primary is None:
            lines.append(f"{cell}: no `primary` metric is declared.")
            continue
        metric = catalog.describe(primary)
        lines.append(f"{cell}: {metric.label}" if pairs[cell] else f"{cell}: nothing to compare with {baseline}.")
        for loss, pair in pairs[cell].items():
            differences = [x - y for x, y in zip(*pair, strict=True)]
            needed = partial(statistics.seeds_needed, comparisons=len(pairs[cell]), level=level)
            lines.append(f"  {loss} against {baseline}: {_needed(differences, metric.scale, needed)}")
    return "\n".join(lines)


def _needed(differences: Sequence[float], scale: float, seeds_needed: Callable[[Sequence[float]], int]) -> str:
    if len(differences) < 2:
        return (
            f"{len(differences)} pairs of runs are done, and a spread needs two: --only seed0, --only seed1 make them."
        )
    there = f"{scale * mean(differences):+.3g} ± {scale * stdev(differences):.3g} ({len(differences)} seeds)"
    try:
        return f"{there}: {seeds_needed(differences)} seeds would show it, in four cases of five"
    except ValueError as error:
        return f"{there}: {error}"
