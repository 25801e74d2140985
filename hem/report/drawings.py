"""Plots of a task in a report: selection of their metrics by the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from hem.metrics import catalog
from hem.metrics.catalog import Metric, Template
from hem.plots import comparison
from hem.plots.robustness import NORMS
from hem.report.records import Runs


class Drawing(NamedTuple):
    """A plot of the page."""

    name: str  #: name of its files
    title: str
    figure: Figure


CURVES = (
    (catalog.ACCURACY, "val"), (catalog.MIOU, "val"), (catalog.TRAINING_ROBUST_ACCURACY, "val"),
    (catalog.ACCURACY, "train"), (catalog.ACTIVE, "train"), (catalog.LOSS, "train"),
)  # fmt: skip
STAGES = {"val": "validation", "train": "training"}
GROUPS = (
    ("unknown", catalog.AUROC, "set", "AUROC of the largest logit by unknown set", "AUROC in %"),
    ("corruptions", catalog.CORRUPTION_MEAN, "corruption", "Accuracy by corruption", "accuracy in %"),
    ("classes", catalog.CLASS_ACCURACY, "name", "Accuracy by class", "accuracy in %"),
    ("iou", catalog.IOU, "name", "IoU by class", "IoU in %"),
)


def of_template(runs: Runs, cell: str, template: Template) -> pd.DataFrame:
    """Return the test values of a template in the units of display, with the parts of their keys as further columns."""
    rows = runs.values[runs.values.cell == cell]
    found = {key: metric for key in rows.metric.unique() if (metric := template.match(key))}
    found = {key: metric for key, metric in found.items() if metric.stage == "test" and not metric.variant}
    rows = rows[rows.metric.isin(list(found))]
    parts = pd.DataFrame([dict(found[key].parts) for key in rows.metric], index=rows.index)
    scale = next((metric.scale for metric in found.values()), 1.0)
    return rows.drop(columns="name").assign(value=scale * rows.value.astype(float)).join(parts)


def training(runs: Runs, cell: str) -> pd.DataFrame:
    """Return the training curves of the first three metrics that change over epochs."""
    found = []
    for template, stage in CURVES:
        key = template.key(stage)
        rows = runs.curves[(runs.curves.cell == cell) & (runs.curves.metric == key)]
        if rows.groupby(["loss", "seed"]).size().max() > 1:
            metric = catalog.describe(key)
            unit = " in %" if metric.percent else ""
            found.append(
                rows.assign(title=f"{STAGES[stage]} {template.title}{unit}", x=rows.epoch, y=metric.scale * rows.value)
            )
    return pd.concat(found[:3]) if found else pd.DataFrame()


def robustness(runs: Runs, cell: str) -> pd.DataFrame:
    """Return the worst accuracy over all attacks by eps, and at 0 that of all clean images."""
    rows = of_template(runs, cell, catalog.ROBUST_ACCURACY)
    if rows.empty:
        return rows
    rows = rows[rows.attack.isin(["worst", "clean"]) & (rows.eps != "mean")]
    clean = of_template(runs, cell, catalog.ACCURACY)
    rows = pd.concat([*(clean.assign(norm=norm, eps="0") for norm in NORMS if norm in set(rows.norm)), rows])
    rows = rows.assign(
        x=rows.eps.astype(float), y=rows.value, title=rows.norm.map(NORMS).radd("accuracy in % under all attacks, ")
    )
    return rows.drop_duplicates(["title", "loss", "seed", "x"], keep="last")


def severity(runs: Runs, cell: str) -> pd.DataFrame:
    """Return the mean accuracy over all corruptions by severity, where 0 is clean."""
    rows = of_template(runs, cell, catalog.CORRUPTION)
    if rows.empty or rows.severity.nunique() < 3:
        return pd.DataFrame()
    each = rows.groupby(["loss", "seed", "severity"], sort=False).value
    means = each.agg(lambda values: values.mean(skipna=False)).reset_index()
    return means.assign(x=means.severity.astype(int), y=means.value, title="accuracy in %, mean of all corruptions")


def drawings(runs: Runs, cell: str, metrics: Sequence[Metric], hues: Mapping[str, str]) -> Iterator[Drawing]:
    """Yield the plots of a cell."""
    rows = runs.values[runs.values.cell == cell]
    dots = [
        each.assign(title=metric.label, value=metric.scale * each.value)
        for metric in metrics if len(each := rows[rows.metric == metric.key])
    ]  # fmt: skip
    if dots:
        yield Drawing("seeds", "Every seed, and the mean", comparison.seeds(pd.concat(dots), hues))
    for name, title, label, points in (
        ("training", "Training", "epoch", training(runs, cell)),
        ("robustness", "Robustness", "radius, pixels in [0, 1]", robustness(runs, cell)),
        ("severity", "Corruptions by severity", "severity (0: clean)", severity(runs, cell)),
    ):
        if len(points):
            log = [str(t) for t, y in points.groupby("title").y if "loss" in str(t) and comparison.positive(y)]
            yield Drawing(name, f"{title}: mean and range of the seeds", comparison.curves(points, label, hues, log))
    for name, template, part, title, label in GROUPS:
        rows = of_template(runs, cell, template)
        if name == "unknown" and len(rows):
            rows = rows[rows.score == "max_logit"]
        if len(rows) and 1 < rows[part].nunique() <= 40:
            figure = comparison.groups(rows.rename(columns={part: "group"}), label, hues)
            yield Drawing(name, f"{title}, mean and deviation", figure)
