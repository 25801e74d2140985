"""Plots that compare losses over all runs; a loss has the same colour in each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hem.plots.style import GREY, blank, styled, tiled, wrapped

if TYPE_CHECKING:
    import pandas as pd


def rows_of(panel: Axes, names: Sequence[str]) -> None:
    """Label the y axis with one row per name, from the top."""
    panel.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6))
    panel.set_yticklabels(names)
    panel.grid(axis="y", visible=False)


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend above all panels."""
    shown = {name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    width = sum(len(name) + 8 for name in shown) / len(shown)
    columns = min(len(shown), max(1, int(14 * figure.get_figwidth() / width)))
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=columns)


@styled
def relative_change(rows: pd.DataFrame, hues: Mapping[str, str]) -> Figure:
    """Draw the relative change of each loss against the baseline as bars, a panel for each task.

    Filled bars are significant; lines are confidence intervals.

    Args:
        rows: ``task``, ``loss``, ``change`` in percent (positive = better), the interval's ends ``low`` and ``high``
            (NaN: none), and ``found``, whether it is significant.
        hues: Colours by loss.
    """
    tasks, losses = list(rows.groupby("task", sort=False)), list(rows.loss.unique())
    figure, panels = tiled(len(tasks), 3.5, 1.0 + 0.26 * len(losses))
    for panel, (task, each) in zip(panels, tasks, strict=True):
        panel.axvline(0, color="black", linewidth=0.8)
        y = [losses.index(loss) for loss in each.loss]
        edges = [hues[loss] for loss in each.loss]
        faces = [hue if found else "white" for hue, found in zip(edges, each.found, strict=True)]
        panel.barh(y, each.change, 0.66, color=faces, edgecolor=edges, linewidth=1.2)
        panel.hlines(y, each.low, each.high, color="black", linewidth=0.9)
        rows_of(panel, losses)
        panel.set_title(task)
    figure.supxlabel(
        wrapped("relative change against the baseline in %, right is better", 34 * min(len(tasks), 3)), fontsize=9
    )
    return figure


@styled
def seeds(values: pd.DataFrame, hues: Mapping[str, str]) -> Figure:
    """Draw every seed as a dot and the mean as a line, a panel for each metric of a task; no mean if one is NaN.

    Args:
        values: ``title`` (with its unit), ``loss`` and ``value`` of each run.
        hues: Colours by loss.
    """
    metrics = list(values.groupby("title", sort=False))
    most = max(each.loss.nunique() for _, each in metrics)
    figure, panels = tiled(len(metrics), 2.5 if len(metrics) > 1 else 3.4, 0.75 + 0.24 * most, most=4)
    for panel, (title, each) in zip(panels, metrics, strict=True):
        by_loss = list(each.groupby("loss", sort=False).value)
        for y, (loss, numbers) in enumerate(by_loss):
            panel.plot(numbers, [y] * len(numbers), "o", color=hues[loss], markersize=4.5, alpha=0.55, mew=0)
            panel.plot(
                [numbers.mean(skipna=False)] * 2, [y - 0.3, y + 0.3], color=hues[loss], linewidth=2, linestyle="-"
            )
        rows_of(panel, [loss for loss, _ in by_loss])
        panel.set_title(wrapped(title, 24), fontsize=8)
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=4)
    return figure


@styled
def curves(points: pd.DataFrame, label: str, hues: Mapping[str, str], log: Sequence[str] = ()) -> Figure:
    """Draw the mean over seeds as a line, in a band from the lowest to the highest seed.

    Points that some seed lacks are left out.

    Args:
        points: ``title`` of a panel, ``loss``, ``seed``, ``x`` and ``y``.
        label: Label of the x axis.
        hues: Colours by loss.
        log: Titles of panels with a logarithmic y.
    """
    titles = list(points.groupby("title", sort=False))
    figure, panels = tiled(len(titles), 3.3, 2.6)
    for panel, (title, of_title) in zip(panels, titles, strict=True):
        for loss, each in of_title.groupby("loss", sort=False):
            table = each.pivot(index="x", columns="seed", values="y").dropna()
            marker = "o" if len(table) <= 12 else ""
            panel.plot(table.index, table.mean(axis=1), color=hues[loss], linestyle="-", linewidth=1.6, marker=marker,
                       markersize=3, label=loss)  # fmt: skip
            panel.fill_between(
                table.index, table.min(axis=1), table.max(axis=1), color=hues[loss], alpha=0.15, linewidth=0
            )
        panel.set(title=wrapped(title, 34), xlabel=label)
        if (of_title.x % 1 == 0).all():  # epochs, severities
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if title in log:
            panel.set_yscale("log")
    legend(figure, panels)
    return figure


@styled
def groups(values: pd.DataFrame, label: str, hues: Mapping[str, str]) -> Figure:
    """Draw means with the standard deviation over seeds, by group: unknown sets, corruptions, classes.

    A group with a NaN is left out. Bars end at 0 and 100, as the values do.

    Args:
        values: ``group``, ``loss`` and ``value`` in percent of each run.
        label: Label of the y axis.
        hues: Colours by loss.
    """
    names, losses = list(values.group.unique()), list(values.loss.unique())
    figure, ((panel,),) = blank(min(max(4.0, 1.2 + len(names) * (0.3 + 0.1 * len(losses))), 10.0), 3.0)
    for i, loss in enumerate(losses):
        each = values[values.loss == loss].groupby("group", sort=False).value
        found = each.agg(mean=lambda numbers: numbers.mean(skipna=False), std="std").fillna({"std": 0})
        places = [names.index(name) + 0.7 * ((i + 0.5) / len(losses) - 0.5) for name in found.index]
        bars = [found["std"].clip(upper=room).clip(lower=0) for room in (found["mean"], 100 - found["mean"])]
        panel.errorbar(
            places, found["mean"], bars, fmt="o", color=hues[loss], markersize=4.5, elinewidth=1.2, label=loss
        )
    for edge in np.arange(0.5, len(names) - 1):
        panel.axvline(edge, color=GREY, alpha=0.15, linewidth=0.6)
    shown = [name.replace("_", " ") for name in names]
    turned: Any = {"rotation": 40, "ha": "right"} if sum(map(len, shown)) > 8 * figure.get_figwidth() else {}
    panel.set_xticks(range(len(names)), shown, **turned)
    panel.set(ylabel=label, xlim=(-0.5, len(names) - 0.5))
    panel.grid(axis="x", visible=False)
    legend(figure, [panel])
    return figure


@styled
def critical_differences(ranks: pd.Series, pairs: pd.DataFrame, distance: float, hues: Mapping[str, str]) -> Figure:
    """Draw a critical-difference diagram: a bar joins losses that Nemenyi's test does not tell apart.

    Args:
        ranks: Mean rank by loss, 1 the best.
        pairs: p-values of each pair of losses.
        distance: The critical difference.
        hues: Colours by loss.

    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006, figure 1.
    """
    from scikit_posthocs import critical_difference_diagram  # imported late: it takes seconds to load

    figure, ((panel,),) = blank(6.4, 1.4 + 0.2 * len(ranks))
    panel.grid(visible=False)
    critical_difference_diagram(
        ranks, pairs, ax=panel, color_palette=dict(hues), text_h_margin=0.05, label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}", crossbar_props={"linestyle": "-"}, elbow_props={"linestyle": "-"},
    )  # fmt: skip
    panel.set_title(f"mean rank; critical difference {distance:.2f}", pad=14)
    return figure


def positive(values: pd.Series) -> bool:
    """Return whether all values are positive and finite, as a logarithmic axis needs them."""
    return bool((values > 0).all()) and math.isfinite(values.max())
