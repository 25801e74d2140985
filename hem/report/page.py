"""HTML page of a report, and the files of its tables and plots."""

from __future__ import annotations

import argparse
import base64
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from hem.metrics.catalog import Metric, describe
from hem.names import near
from hem.plots import comparison
from hem.plots import search as plots
from hem.plots.style import colours, saved, wrapped
from hem.report import tables
from hem.report.drawings import drawings
from hem.report.findings import Finding, against, overall, ranked, tested
from hem.report.records import Runs
from hem.report.search import Search, budget_of, chosen_table, read_searches, trials_table, tuned_table
from hem.report.setting import compared
from hem.report.statistics import FEWEST, critical_difference
from hem.runs import RunFolder
from hem.runs.files import write_atomically
from hem.study.plan import baseline_of
from hem.study.progress import duration

MOST_PICTURES = 6  # pictures of one kind, from run folders


class Picture(NamedTuple):
    """A picture in the page."""

    title: str
    source: str  #: a data URI
    width: int = 0  #: width in pixels; 0: that of the picture


def uri(content: bytes, kind: str) -> str:
    """Return a picture as a data URI."""
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(content).decode()}"


class Page:
    """Builder of a report: collects the contents of the page, and writes the files of tables and plots."""

    def __init__(self, runs: Runs, baseline: str) -> None:
        self.runs = runs
        self.baseline = baseline
        self.hues = colours(runs.losses)
        self.files: dict[str, str | bytes] = {}
        self.text: list[str] = []  #: tables in tables.md

    def table(self, table: tables.Table, in_text: bool = True) -> tables.Table:
        """Write a table as a file, and return it."""
        self.files[f"{table.name}.csv"] = table.csv()
        if in_text:
            self.text.append(table.markdown())
        return table

    def picture(self, name: str, title: str, figure: Figure) -> Picture:
        """Write a plot as files, and return its picture."""
        self.files[f"{name}.png"] = saved(figure, "png")
        self.files[f"{name}.svg"] = drawn = saved(figure, "svg")
        return Picture(title, uri(drawn, "svg"), round(96 * figure.get_figwidth()))

    def section(self, cell: str, findings: Sequence[Finding], further: Sequence[str]) -> dict[str, Any]:
        """Return the section of the page on a cell."""
        runs = self.runs
        if runs.of(cell).empty:
            return {"cell": cell, "empty": True}
        keys, metrics = runs.keys(cell), runs.headlines(cell)
        shown = {metric.key for metric in metrics}
        metrics += [describe(key) for key in keys if key not in shown and any(re.search(each, key) for each in further)]
        exploratory = against(runs, cell, metrics[1:], self.baseline)
        every = [describe(key) for key in keys]
        return {
            "cell": cell,
            "task": runs.of(cell).task.iloc[0],
            "declared": runs.declared(cell),
            "compared": compared(runs, cell),
            "main": self.table(tables.metric_table(runs, cell, metrics, cell, cell)),
            "primary": self.table(tables.primary_table(cell, findings, self.baseline)) if findings else None,
            "exploratory": self.table(tables.exploratory_table(cell, exploratory, self.baseline)),
            "everything": self.table(
                tables.metric_table(runs, cell, every, f"{cell}_all", f"{cell}: every metric"), False
            ),
            "each": self.table(tables.runs_table(runs, cell, metrics), False),
            "baseline_there": len(runs.of(cell, self.baseline)) > 0,
            "tuned": self.beside_untuned(cell, metrics[0]) if metrics else None,
            "pictures": [
                self.picture(f"{cell}_{each.name}", each.title, each.figure)
                for each in drawings(runs, cell, metrics, self.hues)
            ],
            "left": left_by_runs(runs, cell),
            "runs": [described(run, runs.folder) for run in runs.of(cell).itertuples()],
        }

    def search(self, cell: str, searches: Sequence[Search]) -> dict[str, Any]:
        """Return the part of a section on the search: trials, importances, chosen values."""
        trials, spaces = {}, {}
        for each in searches:
            rows = each.trials
            if len(rows) and (rows.state == "complete").any():
                best = each.record.get("best", {}).get("trial")
                trials[each.loss] = rows[rows.state == "complete"].assign(best=rows.trial == best)
                spaces[each.loss] = each.space
        pictures = []
        if trials:
            label = searches[0].metric.label
            pictures = [
                self.picture(f"{cell}_slices", "Every complete trial, by each parameter; the star was chosen",
                             plots.slices(trials, spaces, label, self.hues)),
                self.picture(f"{cell}_parallel", "Every complete trial as a line through its parameters",
                             plots.parallel_coordinates(trials, spaces, label, searches[0].record["mode"])),
            ]  # fmt: skip
        return {
            "cell": cell,
            "budget": budget_of(searches),
            "warnings": [sentence for each in searches for sentence in (*each.without_own(), *each.at_the_edge())],
            "chosen": self.table(chosen_table(cell, searches)),
            "trials": self.table(trials_table(cell, searches), False),
            "pictures": pictures,
        }

    def beside_untuned(self, cell: str, metric: Metric) -> dict[str, Any] | None:
        """Return the comparison of a cell of tuned runs with the untuned ones; None: there are no untuned runs."""
        untuned = self.runs.untuned(cell)
        table = tuned_table(self.runs, cell, untuned, metric, self.baseline) if untuned else None
        if table is None or table.frame.empty:
            return None
        values = self.runs.values
        values = values[(values.metric == metric.key) & values.loss.isin(table.frame.loss)]
        shown = values[values.cell.isin([untuned, cell])].assign(tuned=lambda rows: rows.cell == cell)
        figure = plots.beside_untuned(shown.assign(value=metric.scale * shown.value), metric.label, self.hues)
        return {
            "table": self.table(table),
            "picture": self.picture(f"{cell}_beside_untuned", "Tuned beside untuned", figure),
        }

    def answer(self, findings: Mapping[str, Sequence[Finding]], primary: Mapping[str, Metric]) -> dict[str, Any]:
        """Return the summary: primary metrics by task and over all tasks."""
        rows = [
            relative_row(cell, each) for cell, found in findings.items() for each in found
            if each.metric.higher is not None and math.isfinite(each.comparison.difference)
            and each.values[1].mean() != 0
        ]  # fmt: skip
        answer: dict[str, Any] = {"summary": None, "overall": [], "ranks": None}
        answer["level"] = next((each.level for found in findings.values() for each in found), None)
        if rows:
            figure = comparison.relative_change(pd.DataFrame(rows), self.hues)
            answer["summary"] = self.picture("summary", "Relative change", figure)
        losses = [loss for loss in self.runs.losses if loss != self.baseline]
        tuned = {cell: metric for cell, metric in primary.items() if self.runs.untuned(cell)}
        untuned = {cell: metric for cell, metric in primary.items() if cell not in tuned}
        parts = {"overall_tuned": (tuned, "Over all tasks, tuned"), "overall": (untuned, "Over all tasks")}
        for name, (cells, title) in parts.items():
            found = overall({cell: findings[cell] for cell in cells}, losses)
            if any(each.tasks > 1 for each in found):
                table = tables.overall_table(found, name, f"{title}, against {self.baseline}")
                answer["overall"].append(self.table(table))
        if ranks := ranked(self.runs, tuned or primary):
            distance = critical_difference(len(ranks.ranks), ranks.tasks)
            figure = comparison.critical_differences(ranks.ranks, ranks.pairs, distance, self.hues)
            title = f"Mean ranks over {ranks.tasks} tasks (1: the best); a bar joins losses that are not told apart"
            answer["ranks"], answer["friedman"] = self.picture("ranks", title, figure), tables.p_value(ranks.p)
        return answer


def relative_row(cell: str, found: Finding) -> dict[str, Any]:
    """Return the row of a bar in the plot of relative changes."""
    factor = (100 if found.metric.higher else -100) / abs(found.values[1].mean())
    pair = found.comparison
    low, high = sorted((factor * pair.low, factor * pair.high))
    return {
        "task": f"{cell}\n{wrapped(found.metric.title, 32)}", "loss": found.loss, "change": factor * pair.difference,
        "low": low, "high": high, "found": found.verdict in ("better", "worse"),
    }  # fmt: skip


def write(folder: str | Path | Runs, baseline: str | None = None, further: Sequence[str] = ()) -> Path:
    """Write the report of a folder of runs.

    Args:
        folder: ``runs/<study>``, or the runs that were read from it.
        baseline: The loss that all others are compared with; None: ``ce`` if there is one, else the first.
        further: Regular expressions of keys of metrics to show in tables beside the headline ones.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: If there are no runs to report on.
        ValueError: If no run is of the baseline, or none has a metric that matches a pattern.
    """
    runs = folder if isinstance(folder, Runs) else Runs(Path(folder))
    known = sorted(runs.values.metric.unique())
    if unmet := [pattern for pattern in further if known and not any(re.search(pattern, key) for key in known)]:
        raise ValueError(
            f"Expected patterns of metrics that the runs have, got '{unmet[0]}'{near(unmet[0], known) or ':'} all of "
            f"them are in {runs.folder / 'report' / 'raw.csv'}, once there is a report."
        )
    baseline = baseline or baseline_of(runs.losses)
    if baseline not in runs.losses:
        raise ValueError(
            f"Expected one of the study's losses as --baseline, got '{baseline}': choose from {', '.join(runs.losses)}."
        )
    study = str(runs.plan.get("study") or runs.folder.resolve().name)
    page = Page(runs, baseline)
    page.files["raw.csv"] = tables.raw(runs, study)
    coverage = page.table(tables.coverage(runs))
    there = [cell for cell in runs.cells if len(runs.of(cell))]
    primary = {cell: metrics[0] for cell in there if (metrics := runs.headlines(cell))}
    findings = tested(runs, primary, baseline)
    undeclared = [cell for cell in primary if runs.declared(cell) not in runs.keys(cell)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hem.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page.files["index.html"] = environment.get_template("template.html").render(
        study=study,
        plan=runs.plan,
        folder=str(runs.folder),
        baseline=baseline,
        hues=page.hues,
        notes=runs.notes,
        facts=facts_of(runs),
        coverage=coverage,
        missing=runs.missing,
        fewest=FEWEST,
        answer=page.answer(findings, primary),
        searches=[page.search(cell, each) for cell, each in read_searches(runs).items()],
        undeclared=undeclared,
        sections=[page.section(cell, findings.get(cell, ()), further) for cell in runs.cells],
    )
    page.files["tables.md"] = "\n".join(page.text)
    for name, content in page.files.items():
        write_atomically(runs.folder / "report" / name, content)
    return runs.folder / "report" / "index.html"


def left_by_runs(runs: Runs, cell: str) -> dict[str, list[Picture]]:
    """Return pictures in the folders of runs, of the first seed of each loss, by name of the file."""
    found: dict[str, list[Picture]] = {}
    for run in runs.of(cell).drop_duplicates("loss").itertuples():
        for path in sorted((runs.folder / run.name).glob("*.png")):
            kept = found.setdefault(path.stem.replace("_", " "), [])
            if len(kept) < MOST_PICTURES:
                kept.append(Picture(f"{run.loss}, seed {run.seed}", uri(path.read_bytes(), "png")))
    return found


def described(run: Any, folder: Path) -> dict[str, Any]:
    """Return the entry of a run in the page's list: date, hardware, and links to its files."""
    place = RunFolder(folder / run.name)
    seconds = sum(step.get("seconds", 0) for step in place.read_study().values())
    present = [path.name for path in sorted(place.path.iterdir()) if path.suffix in (".yaml", ".json", ".csv", ".log")]
    known = {key: "" if pd.isna(value) else value for key, value in run._asdict().items() if key != "versions"}
    return {
        "name": f"{run.loss}/seed{run.seed}",
        "partial": known["partial"],
        "loss": run.loss,
        "date": known["date"][:16].replace("T", " "),
        "hardware": known["hardware"],
        "time": duration(seconds) if seconds else "",
        "files": [(name, f"../{run.name}/{name}") for name in present if name not in (RunFolder.STUDY, "hparams.yaml")],
    }


def facts_of(runs: Runs) -> dict[str, str]:
    """Return the facts about the runs at the head of the page."""
    if runs.table.empty:
        return {}
    tested = runs.table[runs.table.versions.notna()]
    dates = sorted(tested.date.dropna().str[:10]) or ["-"]
    versions: dict[str, str] = next((each for each in tested.versions if each), {})
    return {
        "runs": f"{len(runs.table)} with results, {len(runs.missing)} missing",
        "seeds": ", ".join(map(str, sorted(runs.table.seed.unique()))),
        "made": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "on": "; ".join(sorted(map(str, tested.hardware.unique()))),
        "with": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, or 1 if there are no runs to report on.
    """
    parser = argparse.ArgumentParser(prog="hem report", description="Make one page of many runs.")
    parser.add_argument("folder", help="the folder of a study, such as runs/quick; runs: all single runs")
    parser.add_argument("--baseline", help="the loss that all others are compared with: ce, else the study's first one")
    parser.add_argument("--metrics", "--figures", nargs="*", default=[], metavar="PATTERN",
                        help="further metrics for the tables: regular expressions of their keys")  # fmt: skip
    chosen = parser.parse_args(args)
    try:
        runs = Runs(Path(chosen.folder))
        page = write(runs, chosen.baseline, chosen.metrics)
    except re.error as error:
        print(f"error: expected regular expressions after --metrics, got '{error.pattern!s}': {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{page}{f'; {len(runs.missing)} runs are missing, the page says which' if runs.missing else ''}")
    return 0
