"""Tables of a report, as Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import NamedTuple

import pandas as pd

from hem.metrics.catalog import Metric
from hem.report.findings import Finding, Overall
from hem.report.records import Runs


class Table(NamedTuple):
    """A table of formatted cells."""

    name: str  #: name of its file
    title: str
    frame: pd.DataFrame

    def markdown(self) -> str:
        """Return the table as Markdown."""
        head = list(self.frame.columns)
        lines = [head, ["---"] * len(head), *self.frame.itertuples(index=False)]
        text = "\n".join(f"| {' | '.join(str(cell).replace('|', '∣') for cell in line)} |" for line in lines)
        return f"### {self.title}\n\n{text}\n"

    def csv(self) -> str:
        """Return the table as CSV."""
        return str(self.frame.to_csv(index=False, lineterminator="\n"))


def number(value: float, metric: Metric, sign: str = "") -> str:
    """Format a value: percent with two decimals, others with four digits, ``-`` for NaN."""
    if math.isnan(value):
        return "-"
    return f"{metric.scale * value:{sign}.2f}" if metric.percent else f"{value:{sign}.4g}"


def spread(values: Iterable[float], metric: Metric, runs: int = 0) -> str:
    """Format values as mean ± standard deviation (number of seeds); if some are NaN, with their number.

    Args:
        values: One of each seed that has it.
        metric: Their metric.
        runs: Number of seeds with results, which may lack this metric.
    """
    values = list(values)
    if not values:
        return "missing"
    if lacking := len(values) - sum(map(math.isfinite, values)):
        return f"not a number in {lacking} of {len(values)}"
    deviation = number(stdev(values), metric) if len(values) > 1 else "-"
    seeds = of(len(values), runs) + ("; no value in the others" if len(values) < runs else "")
    return f"{number(mean(values), metric)} ± {deviation} ({seeds})"


def of(count: int, all_of_them: int) -> str:
    """Format the number of seeds that have a metric.

    Example:
        >>> of(5, 5), of(2, 5)
        ('5', '2 of 5')
    """
    return f"{count} of {all_of_them}" if count < all_of_them else str(count)


def p_value(p: float) -> str:
    """Format a p-value."""
    return "-" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def coverage(runs: Runs) -> Table:
    """Return a table of the numbers of finished and planned runs by task and loss."""
    have = runs.table.groupby(["cell", "loss"]).size()

    def cell(place: tuple[str, str]) -> str:
        there, want = have.get(place, 0), runs.asked[place]
        return f"{there} of {want}" if want else str(there or "-")

    rows = [[name, *(cell((name, loss)) for loss in runs.losses)] for name in runs.cells]
    return Table("coverage", "Runs with results", pd.DataFrame(rows, columns=["task", *runs.losses]))


def metric_table(runs: Runs, cell: str, metrics: Sequence[Metric], name: str, title: str) -> Table:
    """Return a table of mean ± standard deviation (number of seeds), a row for each metric, a column for each loss."""
    losses = [loss for loss in runs.losses if runs.asked[cell, loss] or len(runs.of(cell, loss))]
    values = runs.values[runs.values.cell == cell].groupby(["metric", "loss"]).value.agg(list)
    there = {loss: len(runs.of(cell, loss)) for loss in losses}
    rows = [
        [each.label, *(spread(values.get((each.key, loss), ()), each, there[loss]) for loss in losses)]
        for each in metrics
    ]
    return Table(name, title, pd.DataFrame(rows, columns=["metric", *losses]))


def primary_table(cell: str, findings: Sequence[Finding], baseline: str) -> Table:
    """Return the table of tests: the primary metric of each loss against the baseline."""
    rows = []
    for found in findings:
        metric, pair = found.metric, found.comparison
        could, needed = found.detectable, found.seeds_needed
        rows.append({
            "metric": metric.label, "loss": found.loss, "seeds": of(pair.seeds, found.pairs),
            f"difference to {baseline}": number(pair.difference, metric, "+"), "95 % interval": interval(found),
            "p": p_value(pair.p), "p (Holm)": p_value(found.p), "p (signs)": p_value(pair.p_signs),
            "verdict": found.verdict,
            "could have shown": "-" if math.isnan(could) else f"± {number(could, metric)}",
            "seeds needed": "-" if needed is None else str(needed) if needed <= 1000 else "> 1000",
        })  # fmt: skip
    return Table(f"{cell}_primary", f"{cell}: primary metric, difference to {baseline}", pd.DataFrame(rows))


def interval(found: Finding) -> str:
    """Format a confidence interval."""
    low, high = (number(end, found.metric, "+") for end in (found.comparison.low, found.comparison.high))
    return "-" if low == "-" else f"{low} to {high}"


def exploratory_table(cell: str, findings: Sequence[Finding], baseline: str) -> Table:
    """Return the table of the other metrics, which are not tested, with intervals."""
    rows = [
        [found.metric.label, found.loss, of(found.comparison.seeds, found.pairs),
         number(found.comparison.difference, found.metric, "+"), interval(found)]
        for found in findings
    ]  # fmt: skip
    head = ["metric", "loss", "seeds", f"difference to {baseline}", "95 % interval"]
    return Table(
        f"{cell}_exploratory", f"{cell}: further metrics, difference to {baseline}", pd.DataFrame(rows, columns=head)
    )


def overall_table(found: Sequence[Overall], name: str, title: str) -> Table:
    """Return the table of each loss against the baseline over all tasks."""
    rows = []
    for each in found:
        change, better = each.change, each.improvement
        rows.append({
            "loss": each.loss, "tasks": each.tasks,
            "mean relative change": "-" if change is None else f"{change.value:+.2f} %",
            "95 % interval": "-" if change is None else f"{change.low:+.2f} to {change.high:+.2f} %",
            "probability of improvement": "-" if better is None else f"{100 * better.value:.0f} %",
            "95 % interval ": "-" if better is None else f"{100 * better.low:.0f} to {100 * better.high:.0f} %",
        })  # fmt: skip
    return Table(name, title, pd.DataFrame(rows))


def runs_table(runs: Runs, cell: str, metrics: Sequence[Metric]) -> Table:
    """Return the table of metrics of every run, a row for each run."""
    values = runs.values[runs.values.cell == cell].pivot(index="name", columns="metric", values="value")
    shown = values.reindex(columns=[metric.key for metric in metrics]).map(lambda v: "" if pd.isna(v) else f"{v:.6g}")
    shown.columns = [metric.key.removeprefix("test/") for metric in metrics]
    rows = runs.of(cell).set_index("name")
    facts = pd.DataFrame({"date": rows.date.fillna("").str[:10], "hardware": rows.hardware.fillna("")})
    places = pd.DataFrame({"task": cell, "loss": rows.loss, "seed": rows.seed})
    return Table(f"{cell}_runs", f"{cell}: every run", places.join(shown).join(facts))


def raw(runs: Runs, study: str) -> str:
    """Return all metrics of all runs as CSV, a row for each metric."""
    facts = runs.table[["name", "task", "data", "date", "hardware"]]
    rows = runs.values.merge(facts, on="name", sort=False)
    rows = rows.assign(study=study, config=rows.name + "/config_test.yaml", value=rows.value.map(repr))
    columns = ["study", "task", "data", "loss", "seed", "metric", "value", "date", "hardware", "config"]
    return str(rows[columns].to_csv(index=False, lineterminator="\n"))
