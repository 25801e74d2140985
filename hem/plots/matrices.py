"""Heat maps: accuracy after each task of a stream, and confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hem.plots.style import blank, styled


@styled
def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str, **labels: Any) -> Figure:
    """Draw a matrix (R, C) of shares in [0, 1] with the percentage in each cell; below 0.5 % a cell stays empty.

    Args:
        shares: The matrix.
        rows: Names of the rows.
        columns: Names of the columns.
        label: Label of the colour bar.
        labels: ``xlabel``, ``ylabel``.
    """
    long = max(map(len, columns)) > 3
    width, height = 2.2 + 0.42 * len(columns), 1.3 + 0.42 * len(rows)
    figure, ((panel,),) = blank(width + 0.8 * long, height + 0.5 * long)
    picture = panel.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, ax=panel, label=label, fraction=0.046)
    turned: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if long else {}
    panel.set_xticks(range(len(columns)), columns, fontsize=8, **turned)
    panel.set_yticks(range(len(rows)), rows, fontsize=8)
    panel.set(**labels)
    panel.grid(visible=False)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            ink = "white" if share > 0.55 else "black"
            panel.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    return figure


def accuracy_matrix(matrix: Sequence[Sequence[float]]) -> Figure:
    """Draw the accuracy on each task of a stream (columns) after training on each task (rows).

    Args:
        matrix: Accuracies in [0, 1], (T, T).
    """
    names = [str(task + 1) for task in range(len(matrix[0]))]
    return heat_map(
        np.asarray(matrix), names[: len(matrix)], names, "accuracy in %",
        xlabel="accuracy on task", ylabel="behind task",
    )  # fmt: skip


def confusion(matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix of pixels, each row in percent of the class's labelled pixels.

    Args:
        matrix: Numbers of pixels, (C, C); rows are true classes, columns predicted ones.
        class_names: Name of each class.
    """
    shares = (matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    return heat_map(shares, class_names, class_names, "% of the class's pixels", xlabel="predicted", ylabel="true")
