"""Plot of accuracy under attacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from hem.plots.style import styled, tiled

NORMS = {"linf": "L∞", "l2": "L2"}


@styled
def robustness_curves(rows: Iterable[tuple[str, float, str, int, float]]) -> Figure:
    """Draw robust accuracy against eps: a panel for each norm, a line for each attack.

    An attack that ran at some of the radii only is drawn as points, since a line would suggest values between them.

    Args:
        rows: Norm, eps, attack (also ``clean``, and ``worst`` of all attacks), number of images, accuracy in [0, 1].
    """
    lines: dict[str, dict[str, list[tuple[float, int, float]]]] = {}
    for norm, radius, attack, images, accuracy in rows:
        lines.setdefault(norm, {}).setdefault(attack, []).append((radius, images, 100 * accuracy))
    figure, panels = tiled(len(lines), 5, 4)
    for panel, (norm, by_attack) in zip(panels, lines.items(), strict=True):
        clean = by_attack.pop("clean", [])
        radii = {radius for points in by_attack.values() for radius, *_ in points if radius > 0}
        for attack, points in by_attack.items():
            label = f"{attack} ({points[0][1]} images)"
            look: dict[str, Any] = {"marker": ".", "linewidth": 1.2}
            if attack == "worst":
                look |= {"color": "black", "linestyle": "-", "linewidth": 2.5, "zorder": 1}
            if radii - {radius for radius, *_ in points}:
                look |= {"marker": "D", "markersize": 5, "linestyle": "none", "zorder": 3}
            elif points[0][0] > 0:
                points = [*clean, *points]
            panel.plot([radius for radius, *_ in points], [value for *_, value in points], label=label, **look)
        panel.set(
            xlabel=f"radius ({'L∞' if norm == 'linf' else 'L2'}, pixels in [0, 1])", ylabel="robust accuracy in %"
        )
        panel.set(xlim=(0, None), ylim=(0, 100))
        panel.legend()
    return figure
