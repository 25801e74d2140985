"""Planning of a study: the number of seeds that it needs, from the spread of its finished runs as a pilot."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Protocol

from hem.metrics import catalog
from hem.runs import RunFolder
from hem.runs.files import read_json
from hem.study.grid import Study
from hem.study.run import Run


class SeedsNeeded(Protocol):
    """Protocol of :func:`hem.report.statistics.seeds_needed`."""

    def __call__(self, differences: Sequence[float], *, comparisons: int) -> int:
        """Return the number of seeds that show the mean of some paired differences."""


def plan(study: Study, runs: Sequence[Run], seeds_needed: SeedsNeeded) -> str:
    """Return a text on the seeds that would show the pilot's difference, for each task with a primary metric and loss.

    Each loss is compared with the first loss of its task, paired by seed.

    Args:
        study: The study.
        runs: The runs to consider, of which the finished ones are the pilot.
        seeds_needed: Computes the number of seeds.
    """
    lines = []
    for cell, about in study.cells().items():
        primary = about["primary"]
        values: dict[str, dict[int, float]] = {}
        for run in (run for run in runs if run.cell == cell):
            found = values.setdefault(run.loss, {})
            results = RunFolder(run.folder).results
            metrics = catalog.with_means(read_json(results)["metrics"]) if results.is_file() else {}
            if primary in metrics:
                found[run.seed] = metrics[primary]
        if not values:
            continue
        if primary is None:
            lines.append(f"{cell}: no `primary` metric is declared.")
            continue
        metric = catalog.describe(primary)
        lines.append(f"{cell}: {metric.label}")
        first, *others = values
        for loss in others:
            seeds = sorted(values[loss].keys() & values[first].keys())
            differences = [values[loss][seed] - values[first][seed] for seed in seeds]
            lines.append(f"  {loss} against {first}: {_needed(differences, len(others), metric.scale, seeds_needed)}")
    return "\n".join(lines)


def _needed(differences: Sequence[float], comparisons: int, scale: float, seeds_needed: SeedsNeeded) -> str:
    if len(differences) < 2:
        return (
            f"{len(differences)} pairs of runs are done, and a spread needs two: --only seed0, --only seed1 make them."
        )
    there = f"{scale * mean(differences):+.3g} ± {scale * stdev(differences):.3g} ({len(differences)} seeds)"
    try:
        return (
            f"{there}: {seeds_needed(differences, comparisons=comparisons)} seeds would show it, in four cases of five"
        )
    except ValueError as error:
        return f"{there}: {error}"
