"""Plots of a hyperparameter search: its trials, and tuned runs beside untuned ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hem.plots.comparison import legend, rows_of
from hem.plots.style import GREY, blank, styled, tiled, wrapped

if TYPE_CHECKING:
    import pandas as pd

Space = Mapping[str, Mapping[str, Any]]  # by parameter: `log`, and `choices` where it is one of some values


def places(values: pd.Series, space: Mapping[str, Any]) -> pd.Series:
    """Return the values of a parameter as coordinates of an axis: for choices their number."""
    choices = list(map(str, space.get("choices") or ()))
    return values.map(lambda value: float(choices.index(str(value))) if choices else float(value))


@styled
def slices(
    trials: Mapping[str, pd.DataFrame], spaces: Mapping[str, Space], label: str, hues: Mapping[str, str]
) -> Figure:
    """Draw the value of every trial against each parameter: a panel for each parameter, a star for the best trial.

    Args:
        trials: By loss: ``value`` of the complete trials, ``best`` (True for one of them) and the parameters.
        spaces: The search space by loss.
        label: Label of the values.
        hues: Colours by loss.
    """
    names = list(dict.fromkeys(name for space in spaces.values() for name in space))
    figure, panels = tiled(len(names), 3.3, 2.8, sharey=True)
    for panel, name in zip(panels, names, strict=True):
        for loss, rows in trials.items():
            if name not in spaces[loss] or rows.empty:
                continue
            space, best = spaces[loss][name], rows[rows.best]
            panel.plot(
                places(rows[name], space), rows.value, "o", color=hues[loss], markersize=5, alpha=0.6, mew=0, label=loss
            )
            panel.plot(
                places(best[name], space), best.value, "*", color=hues[loss], markersize=14, mec="white", mew=0.8
            )
            if space.get("choices"):
                panel.set_xticks(range(len(space["choices"])), list(map(str, space["choices"])))
            elif space.get("log"):
                panel.set_xscale("log")
        panel.set(xlabel=name)
    panels[0].set_ylabel(wrapped(label, 28))
    legend(figure, panels)
    return figure


@styled
def parallel_coordinates(
    trials: Mapping[str, pd.DataFrame], spaces: Mapping[str, Space], label: str, best: str = "max"
) -> Figure:
    """Draw every trial as a line through its parameters: a panel for each loss, good trials dark.

    Args:
        trials: As of :func:`slices`.
        spaces: The search space by loss, with ``low`` and ``high``.
        label: Label of the values.
        best: Whether the largest value is the best, ``max``, or the smallest, ``min``.
    """
    values = [value for rows in trials.values() for value in rows.value]
    shade = Normalize(min(values), max(values))
    colours = colormaps["cividis_r" if best == "max" else "cividis"]
    figure, panels = tiled(len(trials), 4.2, 2.8)
    for panel, (loss, rows) in zip(panels, trials.items(), strict=True):
        space = spaces[loss]
        axes = range(len(space))
        for _, row in rows.sort_values("value", ascending=best == "max").iterrows():
            heights = [position(row[name], space[name]) for name in space]
            look: dict[str, Any] = {"linewidth": 1.1, "marker": "o", "markersize": 4}
            if row.best:
                look = {"linewidth": 2.4, "marker": "*", "markersize": 11}
            panel.plot(axes, heights, color=colours(shade(row.value)), linestyle="-", **look)
        panel.set_xticks(axes, [f"{name}\n{ends(space[name])}" for name in space], fontsize=8)
        panel.set(title=loss, yticks=[], ylim=(-0.05, 1.05), xlim=(-0.2, max(len(space) - 0.8, 0.2)))
        panel.vlines(axes, 0, 1, color=GREY, linewidth=0.8)
        panel.spines["left"].set_visible(False)
    figure.colorbar(ScalarMappable(shade, colours), ax=panels, label=wrapped(label, 28), aspect=30)
    return figure


def position(value: Any, space: Mapping[str, Any]) -> float:
    """Return the position of a value in its range, from 0 to 1, on a logarithmic scale where the space has one.

    Example:
        >>> position(0.1, {"low": 0.01, "high": 1.0, "log": True})
        0.5
    """
    choices = list(map(str, space.get("choices") or ()))
    if choices:
        return choices.index(str(value)) / max(len(choices) - 1, 1)
    scale = math.log if space.get("log") else float
    low, high = scale(space["low"]), scale(space["high"])
    return float((scale(value) - low) / (high - low)) if high > low else 0.5


def ends(space: Mapping[str, Any]) -> str:
    """Return the lower and upper end of a range as text."""
    choices = space.get("choices") or (f"{space['low']:g}", f"{space['high']:g}")
    return f"{choices[0]} to {choices[-1]}"


@styled
def beside_untuned(values: pd.DataFrame, label: str, hues: Mapping[str, str]) -> Figure:
    """Draw each loss before and after the search: an arrow between the means if none is NaN, every seed as a dot.

    Args:
        values: ``loss``, ``tuned`` (True or False) and ``value`` of each run.
        label: Label of the values.
        hues: Colours by loss.
    """
    losses = list(values.loss.unique())
    figure, ((panel,),) = blank(5.2, 1.0 + 0.42 * len(losses))
    for y, loss in enumerate(losses):
        before, after = (values.value[(values.loss == loss) & (values.tuned == tuned)] for tuned in (False, True))
        panel.plot(before, [y] * len(before), "o", mfc="none", color=hues[loss], markersize=4.5, alpha=0.6)
        panel.plot(after, [y] * len(after), "o", color=hues[loss], markersize=4.5, alpha=0.6, mew=0)
        end, start = after.mean(skipna=False), before.mean(skipna=False)
        if math.isfinite(end - start):
            panel.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "-|>", "color": hues[loss], "lw": 1.8})
    rows_of(panel, losses)
    panel.set(xlabel=f"{label}; hollow: untuned, filled: tuned")
    return figure
