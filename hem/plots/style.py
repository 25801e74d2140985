"""Style of all plots: colours, fonts, empty figures, image files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind readers tell apart, then Tol's
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933", "#332288", "#AA4499")
GREY = "#555555"
# a loss has one colour in every drawing of every report; what is not listed takes a colour that is left
COLOURS = {
    "ce": GREY,
    **dict(zip(("hem", "hem_plus", "logit_adjusted", "logit_norm", "multi_margin", "dice"), PALETTE, strict=False)),
}
STYLE: Any = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=PALETTE),
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "hem",  # the same numbers give the same file
}
#: decorates every function that draws
styled = matplotlib.rc_context(STYLE)


def colours(losses: Sequence[str]) -> dict[str, str]:
    """Return a colour for each loss: its own, or one that no other loss has.

    Example:
        >>> colours(["ce", "mine", "hem"])
        {'ce': '#555555', 'mine': '#D55E00', 'hem': '#0072B2'}
    """
    own = {loss: COLOURS[loss] for loss in losses if loss in COLOURS}
    left = [colour for colour in PALETTE if colour not in own.values()] or list(PALETTE)
    others = [loss for loss in losses if loss not in own]
    return {loss: own.get(loss) or left[others.index(loss) % len(left)] for loss in losses}


def blank(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return an empty figure of a size in inches and its axes, an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels: np.ndarray = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, panels


def tiled(count: int, width: float, height: float, most: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its panels, each of a size in inches, at most ``most`` of them in a row."""
    columns = 2 if (count, most) == (4, 3) else min(count, most)
    lines = math.ceil(count / columns)
    figure, panels = blank(width * columns, height * lines, lines, columns, **options)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return figure, list(panels.flat[:count])


def wrapped(text: str, width: int) -> str:
    """Break a text at spaces into lines of at most ``width`` characters."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) >= width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


@styled
def saved(figure: Figure, form: str = "png") -> bytes:
    """Return the bytes of a figure as a ``png`` or ``svg`` file, without a date: equal figures give equal bytes."""
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    figure.set_layout_engine("none")  # it is laid out: as a file of the other kind it is drawn alone
    return out.getvalue()
