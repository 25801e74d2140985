"""Findings of a study: each loss against the baseline, in each task and over all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from hem.metrics.catalog import Metric
from hem.report import statistics
from hem.report.records import Runs
from hem.report.statistics import Comparison, Estimate, compare, holm, least, level_within, verdict


@dataclass(frozen=True)
class Finding:
    """A loss against the baseline in one metric of one cell."""

    metric: Metric
    loss: str
    values: np.ndarray  #: values (2, seeds), of the loss and of the baseline
    p: float = math.nan  #: p-value, corrected for the losses of the cell
    verdict: str = ""  #: the verdict; empty: not tested, since the metric is not the primary one
    comparisons: int = 1  #: number of losses that are tested against the baseline in the cell
    level: float = statistics.LEVEL  #: level of the test
    pairs: int = 0  #: number of seeds with results of both, which may lack this metric

    @property
    def comparison(self) -> Comparison:
        """Difference, interval and tests."""
        return compare(*self.values)

    @property
    def detectable(self) -> float:
        """The smallest difference that these seeds would probably show; NaN if they show one."""
        if self.verdict != "not significant":
            return math.nan
        return statistics.detectable(self.values[0] - self.values[1], self.comparisons, level=self.level)

    @property
    def seeds_needed(self) -> int | None:
        """The number of seeds to show the observed difference; None if these seeds show it."""
        if math.isnan(self.detectable):
            return None
        try:
            return statistics.seeds_needed(self.values[0] - self.values[1], None, self.comparisons, level=self.level)
        except ValueError:  # the difference is 0
            return None


def against(runs: Runs, cell: str, metrics: Sequence[Metric], baseline: str) -> list[Finding]:
    """Pair every loss with the baseline by seed, in each of some metrics."""
    found = []
    seeds = {loss: set(rows) for loss, rows in runs.of(cell).groupby("loss").seed}
    for metric in metrics:
        values = runs.by_loss(cell, metric.key)
        for loss, own in values.items():
            if baseline in values and loss != baseline:
                both = sorted(own.index.intersection(values[baseline].index))
                pair = np.array([own[both], values[baseline][both]], dtype=float)
                found.append(Finding(metric, loss, pair, pairs=len(seeds[loss] & seeds[baseline])))
    return found


def tested(runs: Runs, primary: Mapping[str, Metric], baseline: str) -> dict[str, list[Finding]]:
    """Test every loss against the baseline in the primary metric of each cell, corrected for losses and cells."""
    found = {cell: against(runs, cell, [metric], baseline) for cell, metric in primary.items()}
    corrected = {cell: holm([each.comparison.p for each in findings]) for cell, findings in found.items()}
    level = level_within([least(each) for each in corrected.values()])
    return {
        cell: [
            replace(each, p=p, level=level, comparisons=sum(not math.isnan(p) for p in corrected[cell]),
                    verdict=verdict(each.comparison, p, each.metric.higher, level))
            for each, p in zip(findings, corrected[cell], strict=True)
        ]
        for cell, findings in found.items()
    }  # fmt: skip


class Overall(NamedTuple):
    """A loss against the baseline over all cells."""

    loss: str
    tasks: int
    change: Estimate | None  #: relative change in percent, positive is better; None: a baseline's mean is 0
    improvement: Estimate | None


def overall(findings: Mapping[str, Sequence[Finding]], losses: Sequence[str]) -> list[Overall]:
    """Combine the cells whose metric has a direction and which have three seeds of loss and baseline."""
    out = []
    for loss in losses:
        pairs = [
            each.values * (1 if each.metric.higher else -1)
            for found in findings.values() for each in found
            if each.loss == loss and each.metric.higher is not None and each.comparison.seeds >= statistics.FEWEST
            and np.isfinite(each.values).all()
        ]  # fmt: skip
        if pairs:
            relative = all(values[1].mean() != 0 for values in pairs)
            change = statistics.mean_relative_change([(x, y) for x, y in pairs]) if relative else None
            better = statistics.probability_of_improvement([(x, y) for x, y in pairs])
            out.append(Overall(loss, len(pairs), change, better))
    return out


class Ranks(NamedTuple):
    """Mean ranks of losses over tasks, 1 the best."""

    ranks: pd.Series
    tasks: int
    p: float  #: p-value of Friedman's test
    pairs: pd.DataFrame  #: p-values of Nemenyi's test for each pair of losses


def ranked(runs: Runs, primary: Mapping[str, Metric]) -> Ranks | None:
    """Rank the losses by the mean of each task's primary metric; None: fewer than three losses or two tasks.

    Means are over the seeds that all losses of a task have; a loss whose metric is NaN in one of them has no mean.

    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006, section 3.2.
    """
    means = pd.DataFrame({
        cell: pd.concat(runs.by_loss(cell, metric.key), axis="columns", join="inner").mean(skipna=False)
        * (1 if metric.higher else -1)
        for cell, metric in primary.items() if metric.higher is not None
    }).reindex(runs.losses).dropna(how="all")  # fmt: skip
    # ranks need every loss in every task: drop incomplete losses or incomplete tasks, whichever keeps more
    means = max(means.dropna(axis="columns"), means.dropna(), key=lambda table: table.size)
    if len(means) < 3 or len(means.columns) < 2:
        return None
    from scikit_posthocs import posthoc_nemenyi_friedman  # imported late: it takes seconds to load

    table = means.T
    ranks = table.rank(axis="columns", ascending=False).mean()
    friedman = float(stats.friedmanchisquare(*means.to_numpy()).pvalue)
    return Ranks(ranks, len(table), friedman, posthoc_nemenyi_friedman(table))
