"""Losses compared: drawn from the numbers of all runs, one colour for each loss throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hem.plots.style import blank, styled, wrapped

#: values of a figure by loss, one for each seed
Values = Mapping[str, Sequence[float]]


@styled
def relative_change(rows: Sequence[tuple[str, str, float, float, float, bool]], hues: Mapping[str, str]) -> Figure:
    """The summary in the manner of the paper: how much better each loss is than the baseline, task by task.

    Args:
        rows: Task, loss, relative change in percent (positive = better), the interval's two ends (NaN: none), and
            whether it is significant.
        hues: Colours by loss.
    """
    tasks = list(dict.fromkeys(row[0] for row in rows))
    losses = list(dict.fromkeys(row[1] for row in rows))
    height = 0.2 * len(losses)
    columns = 2 if len(tasks) in (2, 4) else min(len(tasks), 3)
    lines = math.ceil(len(tasks) / columns)
    figure, panels = blank(3.5 * columns, (0.55 + 1.3 * height + 0.35) * lines + 0.3, lines, columns)
    for panel in panels.flat[len(tasks) :]:
        panel.set_axis_off()
    for panel, task in zip(panels.flat, tasks, strict=False):
        panel.axvline(0, color="black", linewidth=0.8)
        for _, loss, change, low, high, significant in (row for row in rows if row[0] == task):
            y = losses.index(loss)
            face = hues[loss] if significant else "white"
            panel.barh(y, change, 0.66, facecolor=face, edgecolor=hues[loss], linewidth=1.2)
            if not math.isnan(low):
                panel.plot([low, high], [y, y], color="black", linewidth=0.9)
        panel.set(title=task, yticks=range(len(losses)), ylim=(len(losses) - 0.4, -0.6))
        panel.set_yticklabels(losses)
        panel.grid(axis="y", visible=False)
    label = "relative change against the baseline in %, right is better"
    figure.supxlabel(wrapped(label, 34 * columns), fontsize=9)
    return figure


@styled
def seeds(metrics: Sequence[tuple[str, Values]], hues: Mapping[str, str]) -> Figure:
    """Every seed as a dot, the mean as a line: a panel for each figure of a task.

    Args:
        metrics: Title (with its unit) and values of each.
        hues: Colours by loss.
    """
    columns = min(len(metrics), 4)
    lines = math.ceil(len(metrics) / columns)
    longest = max(len(values) for _, values in metrics)
    figure, panels = blank(max(2.5 * columns, 3.4), (0.75 + 0.24 * longest) * lines, lines, columns)
    for panel in panels.flat[len(metrics) :]:
        panel.set_axis_off()
    for panel, (title, values) in zip(panels.flat, metrics, strict=False):
        for y, (loss, numbers) in enumerate(values.items()):
            panel.plot(numbers, [y] * len(numbers), "o", color=hues[loss], markersize=4.5, alpha=0.55, mew=0)
            panel.plot([float(np.mean(numbers))] * 2, [y - 0.3, y + 0.3], color=hues[loss], linewidth=2)
        panel.set(yticks=range(len(values)), ylim=(len(values) - 0.5, -0.5))
        panel.set_yticklabels(values)
        panel.set_title(wrapped(title, 24), fontsize=8)
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=4)
    return figure


Curves = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
Panel = tuple[str, str, Curves]  # title, label of x, curves


@styled
def curves(panels_of: Sequence[Panel], hues: Mapping[str, str], log: Sequence[str] = ()) -> Figure:
    """Lines, the mean of the seeds, in a band from the lowest to the highest seed.

    Args:
        panels_of: Title, label of x, and by loss the points (x, y) of each seed.
        hues: Colours by loss.
        log: Titles of panels with a logarithmic y.
    """
    columns = min(len(panels_of), 3)
    lines = math.ceil(len(panels_of) / columns)
    figure, panels = blank(3.3 * columns, 2.5 * lines + 0.3, lines, columns)
    for panel in panels.flat[len(panels_of) :]:
        panel.set_axis_off()
    for panel, (title, label, by_loss) in zip(panels.flat, panels_of, strict=False):
        for loss, runs in by_loss.items():
            band(panel, runs, hues[loss], loss)
        panel.set(title=title, xlabel=label)
        if title in log:
            panel.set_yscale("log")
    handles, names = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 7))
    return figure


def band(panel: Axes, runs: Sequence[tuple[Sequence[float], Sequence[float]]], colour: str, label: str) -> None:
    """Draw the mean over seeds and their range, at the places where every seed has a point."""
    shared = sorted(set.intersection(*(set(x) for x, _ in runs)))
    table = np.array([[dict(zip(x, y, strict=True))[place] for place in shared] for x, y in runs])
    marker = "o" if len(shared) <= 12 else ""
    panel.plot(shared, table.mean(0), color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)
    if len(runs) > 1:
        panel.fill_between(shared, table.min(0), table.max(0), color=colour, alpha=0.15, linewidth=0)


@styled
def bars(groups: Mapping[str, Values], hues: Mapping[str, str], label: str) -> Figure:
    """Grouped bars with the standard deviation over seeds: unknown sets, corruptions, classes.

    Args:
        groups: By name of a group, values by loss.
        hues: Colours by loss.
        label: Of the values.
    """
    losses = list(dict.fromkeys(loss for values in groups.values() for loss in values))
    figure, panels = blank(min(max(4.0, 0.9 + len(groups) * (0.25 + 0.12 * len(losses))), 10.0), 2.7)
    panel, width = panels[0][0], 0.8 / len(losses)
    lowest = 100.0
    for i, loss in enumerate(losses):
        present = [(x, values[loss]) for x, values in enumerate(groups.values()) if loss in values]
        means = [float(np.mean(numbers)) for _, numbers in present]
        spread = [float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0 for _, numbers in present]
        places = [x + (i - (len(losses) - 1) / 2) * width for x, _ in present]
        panel.bar(places, means, width * 0.92, yerr=spread, color=hues[loss], label=loss, error_kw={"linewidth": 0.8})
        lowest = min([lowest, *(m - s for m, s in zip(means, spread, strict=True))])
    panel.set(ylabel=label, xticks=range(len(groups)), ylim=(max(0.0, 10 * math.floor(lowest / 10 - 0.5)), 100))
    names = [name.replace("_", " ") for name in groups]
    long = sum(map(len, names)) > 8 * figure.get_figwidth()
    panel.set_xticklabels(names, rotation=40 if long else 0, ha="right" if long else "center")
    panel.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=min(len(losses), 7))
    return figure
