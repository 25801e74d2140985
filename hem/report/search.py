"""Searches of a study in its report: budget, space, trials, importances, chosen values and their gain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hem.metrics.catalog import Metric, describe
from hem.plots.search import position
from hem.report.records import Runs
from hem.report.statistics import compare
from hem.report.tables import Table, number, spread
from hem.runs.files import read_json
from hem.study.progress import duration

OWN = "the config's own setting"
EDGE = 0.05  # share of a range, on its scale, that counts as its edge


@dataclass(frozen=True)
class Search:
    """The hyperparameter search of one loss in one task."""

    cell: str
    loss: str
    record: dict[str, Any]  #: content of ``search.json``: space, budget, sampler and, when finished, the best trial
    trials: pd.DataFrame  #: ``trial``, ``state``, ``value`` as displayed, ``seconds``, ``why`` and the parameters
    importances: dict[str, float]  #: importances of parameters, of sum 1; empty: too few trials

    @property
    def metric(self) -> Metric:
        """The metric that the trials optimise."""
        return describe(str(self.record["monitor"]))

    @property
    def space(self) -> dict[str, dict[str, Any]]:
        """The entries ``low``, ``high``, ``log`` and ``choices`` of each parameter."""
        return dict(self.record["space"])

    @property
    def best_trial(self) -> str:
        """The number of the best trial, with a note if it is the config's own setting."""
        best = self.record.get("best")
        if not best:
            return "not over"
        return f"{best['trial']}: {OWN}" if self.record.get("own") and best["trial"] == 0 else f"{best['trial']}"

    def without_own(self) -> Iterator[str]:
        """Yield a sentence if the config's own setting was no trial."""
        if why := self.record.get("why"):
            yield (
                f"The config's own setting of {self.loss} in {self.cell} is none of the trials: {why}. What was found "
                "may be worse than what was there."
            )

    def at_the_edge(self) -> Iterator[str]:
        """Yield sentences on parameters whose best value is at an end of the range: a better one may lie beyond."""
        best = self.record.get("best", {}).get("params", {})
        for name, each in self.space.items():
            if name in best and not each.get("choices"):
                place = position(best[name], each)
                if not EDGE < place < 1 - EDGE:
                    side = "lower" if place < 0.5 else "upper"
                    yield (
                        f"The best {name} of {self.loss} in {self.cell}, {best[name]:.4g}, lies at the {side} edge of "
                        f"its space, {range_of(each)}: a better one may lie beyond it. Widen it."
                    )


def range_of(space: Mapping[str, Any]) -> str:
    """Return the range or the choices of a parameter as text.

    Example:
        >>> range_of({"low": 0.01, "high": 1.0, "log": True})
        '0.01 to 1, logarithmic'
    """
    if space.get("choices"):
        return " | ".join(map(str, space["choices"]))
    return f"{space['low']:g} to {space['high']:g}{', logarithmic' if space.get('log') else ''}"


def read_searches(runs: Runs) -> dict[str, list[Search]]:
    """Return the searches of a study by cell, finished or not; add a note to the runs if trials cannot be read."""
    plan = runs.plan.get("search") or {}
    found: dict[str, list[Search]] = {}
    storage, known = None, set()
    if plan:
        try:
            from hem.study.storage import open_storage  # Optuna is needed only if there was a search

            storage = open_storage(place_of(runs.folder, str(plan["storage"])))
            known = {each.study_name for each in storage.get_all_studies()}
        except Exception as error:  # whatever the driver of a database raises: the rest of the page is there
            runs.notes.append(f"The trials of the search are not shown: {error}")
    for name in plan.get("searches", ()):
        path = runs.folder / "search" / name / "search.json"
        if path.is_file():
            cell, _, loss = name.rpartition("/")
            record = read_json(path)
            scale = describe(record["monitor"]).scale
            title = record.get("title", name)
            trials, importances = read_trials(storage, title, scale) if title in known else (pd.DataFrame(), {})
            found.setdefault(cell, []).append(Search(cell, loss, record, trials, importances))
    return found


def place_of(folder: Path, storage: str) -> str:
    """Return the path of the trials in the present folder of the study, or their URL.

    Raises:
        FileNotFoundError: If they were in a file that is neither here nor where it was.
    """
    for name, prefix in (("search.db", "sqlite:///"), ("search.journal", "")):
        if storage.endswith(name) and (folder / name).is_file():
            return f"{prefix}{folder / name}"
    path = Path(storage.removeprefix("sqlite:///").partition("?")[0])
    if ("://" not in storage or storage.startswith("sqlite:///")) and not path.is_file():
        raise FileNotFoundError(f"Expected them in {folder / path.name}, got no such file: copy it there as well.")
    return storage


def said_of(trial: Mapping[str, Any]) -> str:
    """Return a remark on a trial: that it is the config's own setting, or why it did not finish."""
    return "; ".join(filter(None, (OWN if trial.get("own") else "", trial.get("why"))))


def read_trials(storage: Any, name: str, scale: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return all trials of a search, and the importances of its parameters (Optuna's fANOVA)."""
    import optuna

    study = optuna.load_study(study_name=name, storage=storage)
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), "value": math.nan if t.value is None else scale * t.value,
         "seconds": t.user_attrs.get("seconds", math.nan), "why": said_of(t.user_attrs), **t.params}
        for t in study.get_trials(deepcopy=False)
    ]  # fmt: skip
    complete = [row for row in rows if row["state"] == "complete"]
    if len({row["value"] for row in complete}) < 2:
        return pd.DataFrame(rows), {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return pd.DataFrame(rows), dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


# -- tables --------------------------------------------------------------------------------------------------------


def chosen_table(cell: str, searches: Sequence[Search]) -> Table:
    """Return a table with a row for each loss and parameter: space, chosen value, importance."""
    rows = []
    for each in searches:
        best = each.record.get("best", {})
        for name, space in each.space.items():
            value = best.get("params", {}).get(name)
            rows.append({
                "loss": each.loss, "parameter": name, "space": range_of(space),
                "chosen": "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value),
                "importance": f"{each.importances[name]:.2f}" if name in each.importances else "-",
                "best trial": each.best_trial,
                f"its {each.metric.title}": number(best["value"], each.metric) if best else "-",
            })  # fmt: skip
    return Table(f"{cell}_chosen", f"{cell}: what was chosen", pd.DataFrame(rows))


def trials_table(cell: str, searches: Sequence[Search]) -> Table:
    """Return a table of all trials of all losses."""
    found = [each.trials.assign(loss=each.loss) for each in searches if len(each.trials)]
    if not found:
        return Table(f"{cell}_trials", f"{cell}: every trial", pd.DataFrame())
    rows = pd.concat(found)
    names = [column for column in rows if column not in ("loss", "trial", "state", "value", "seconds", "why")]
    shown = {name: rows[name].map(lambda v: "" if pd.isna(v) else f"{v:.4g}" if isinstance(v, float) else str(v))
             for name in (*names, "value", "seconds")}  # fmt: skip
    return Table(
        f"{cell}_trials",
        f"{cell}: every trial",
        rows.assign(**shown)[["loss", "trial", *names, "value", "state", "why", "seconds"]],
    )


def budget_of(searches: Sequence[Search]) -> str:
    """Return the budget as text, which is the same for every loss."""
    record = searches[0].record
    budget = f"{record['trials']} trials" if record.get("trials") else duration(record.get("seconds") or 0)
    times = (f" in {duration(each.trials.seconds.sum())}" if len(each.trials) else "" for each in searches)
    counts = [f"{each.loss} {len(each.trials)} trials{time}" for each, time in zip(searches, times, strict=True)]
    sampler, pruner = (name if isinstance(name, str) else name[0] for name in (record["sampler"], record["pruner"]))
    return (
        f"{budget} for each loss; sampler {sampler}, pruner {pruner}, seed {record['seed']}; judged by "
        f"{describe(record['monitor']).label}, on validation images alone. Done: {', '.join(counts)}."
    )


def tuned_table(runs: Runs, cell: str, untuned: str, metric: Metric, baseline: str) -> Table:
    """Return a table of tuned and untuned runs: the gain by the search, and that over the baseline, paired by seed."""
    after, before = runs.by_loss(cell, metric.key), runs.by_loss(untuned, metric.key)
    rows = []
    for loss in [loss for loss in runs.losses if loss in after and loss in before]:
        rows.append({
            "loss": loss, "untuned": spread(before[loss], metric), "tuned": spread(after[loss], metric),
            "by the setting": gain(after[loss], before[loss], metric),
            f"over {baseline}, untuned": "" if loss == baseline else gain(before[loss], before.get(baseline), metric),
            f"over {baseline}, tuned": "" if loss == baseline else gain(after[loss], after.get(baseline), metric),
        })  # fmt: skip
    return Table(f"{cell}_beside_untuned", f"{cell}: {metric.label}, tuned beside untuned", pd.DataFrame(rows))


def gain(x: pd.Series, y: pd.Series | None, metric: Metric) -> str:
    """Return the difference of two series, paired by seed, with its interval."""
    both = [] if y is None else sorted(x.index.intersection(y.index))
    if not both or y is None:
        return "-"
    found = compare(x[both].tolist(), y[both].tolist())
    low, high = (number(end, metric, "+") for end in (found.low, found.high))
    return number(found.difference, metric, "+") + (f" ({low} to {high})" if low != "-" else "")
