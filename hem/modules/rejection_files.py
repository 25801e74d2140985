"""Outputs of a rejection test: table on the screen, ``rejection.csv``, ``rejection.json``, a plot per score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from hem.plots.rejection import rejection_curves
from hem.rejection import METRICS, auroc, oscr, oscr_curve, roc
from hem.rejection.evaluation import Row, Scored
from hem.runs.outputs import folder_of, write_figure, write_record, write_table, writes

Groups = Mapping[str, Sequence[str]]  # unknown sets by the name of their group


def write_rejection(
    trainer: Trainer,
    asked: Sequence[str],
    clean: Scored,
    unknown: Mapping[str, Scored],
    groups: Groups,
    rows: Sequence[Row],
    record: Mapping[str, Any],
) -> None:
    """Print the table and write all files.

    Args:
        trainer: Of the test.
        asked: The scores that the table on the screen has.
        clean: The known images as they are.
        unknown: The unknown sets.
        groups: The groups of them.
        rows: All metrics.
        record: What ``rejection.json`` says; pictures take thresholds from it.
    """
    Console().print(auroc_table(f"AUROC (%), {record['known']} known", asked, clean, unknown, groups, rows))
    for score in clean.scores:
        write_figure(trainer, f"rejection_{score}", curves(score, clean, unknown, record))
    columns = ["score", "name", "sets", "images", *METRICS, "oscr", "dar", "dar_strict"]
    lines = (
        {"score": row.score, "name": row.name, "sets": row.sets, "images": record["images"].get(row.name)}
        | {metric: round(value, 6) for metric, value in row.metrics.items()}
        for row in rows
    )
    write_table(trainer, "rejection", columns, lines)
    write_record(trainer, "rejection", dict(record))
    if writes(trainer):
        print(f"rejection: {folder_of(trainer) / 'rejection.csv'}, rejection.json and rejection_<score>.png")


def auroc_table(
    title: str,
    asked: Sequence[str],
    clean: Scored,
    unknown: Mapping[str, Scored],
    groups: Groups,
    rows: Sequence[Row],
) -> Table:
    """Return AUROC in per cent: unknown sets and means of groups against scores."""
    accuracy = 100 * float(clean.correct.double().mean())
    made = Table("unknown set", title=f"{title}, accuracy {accuracy:.2f} %")
    for score in asked:
        made.add_column(score, justify="right")
    values = {(row.name, row.score): row.metrics.get("auroc") for row in rows}
    labels = {name: name for name in unknown}
    for group, names in groups.items():
        labels[group] = f"{group}, mean of {sum(name in unknown for name in names)}/{len(names)}"
    last = list(unknown)[-1:]
    for name, label in labels.items():
        cells = (values.get((name, score)) for score in asked)
        made.add_row(label, *("-" if c is None else f"{100 * c:.2f}" for c in cells), end_section=name in last)
    return made


def curves(score: str, clean: Scored, unknown: Mapping[str, Scored], record: Mapping[str, Any]) -> Figure:
    """Draw histograms of one score beside its ROC and OSCR curves, one line per unknown set."""
    known, correct = clean.scores[score], clean.correct
    others = {name: found.scores[score] for name, found in unknown.items()}
    rocs = {name: (*roc(known, values)[:2], auroc(known, values)) for name, values in others.items()}
    oscrs = {
        name: (*oscr_curve(known, correct, values), oscr(known, correct, values)) for name, values in others.items()
    }
    samples = {"known": known, **others}
    return rejection_curves(score, samples, rocs, oscrs, record["thresholds"].get(score), record["keep"])
