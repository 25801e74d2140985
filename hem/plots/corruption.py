"""Plots of corruptions: accuracy against severity, and corrupted images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import mean

import numpy as np
from matplotlib.figure import Figure

from hem.plots.style import blank, styled


@styled
def severity_curves(accuracy: Mapping[str, Mapping[int, float]], groups: Mapping[str, Collection[str]]) -> Figure:
    """Draw accuracy against severity: a panel for each group of corruptions, with the mean over all of them.

    Args:
        accuracy: Accuracy in [0, 1] by corruption and severity; severity 0 is the clean image.
        groups: Names of the corruptions in each panel; those of no group have a panel of their own.
    """
    shown = {group: [name for name in accuracy if name in known] for group, known in groups.items()}
    shown["others"] = [name for name in accuracy if not any(name in known for known in groups.values())]
    shown = {group: names for group, names in shown.items() if names}
    severities = sorted({severity for values in accuracy.values() for severity in values})
    overall = [100 * mean(values[s] for values in accuracy.values() if s in values) for s in severities]
    figure, panels = blank(3.2 * len(shown) + 0.6, 3.6, 1, len(shown), sharey=True)
    for panel, (group, names) in zip(panels[0], shown.items(), strict=True):
        for name in names:
            points = sorted((severity, 100 * value) for severity, value in accuracy[name].items())
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.replace("_", " "))
        panel.plot(severities, overall, color="black", linewidth=2, linestyle="--", label="mean of all")
        panel.set(title=group, xlabel="severity (0: clean)", xticks=severities)
        panel.legend(loc="lower left")
    panels[0][0].set_ylabel("accuracy in %")
    return figure


@styled
def image_sheet(rows: Mapping[str, Mapping[int, np.ndarray]]) -> Figure:
    """Draw one image under every corruption (rows) at every severity (columns).

    Args:
        rows: Images (H, W) or (H, W, 3) in [0, 1] by corruption and severity; all of one size.
    """
    severities = list(next(iter(rows.values())))
    framed = [[np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2), constant_values=1.0)
               for image in images.values()] for images in rows.values()]  # fmt: skip
    height, width = framed[0][0].shape[:2]
    figure, ((panel,),) = blank(1.6 + 0.9 * len(severities), 0.4 + 0.9 * len(rows))
    panel.imshow(np.concatenate([np.concatenate(row, 1) for row in framed]), cmap="gray", vmin=0, vmax=1)
    panel.set_xticks((np.arange(len(severities)) + 0.5) * width, [str(s) if s else "clean" for s in severities])
    panel.set_yticks((np.arange(len(rows)) + 0.5) * height, [name.replace("_", " ") for name in rows])
    panel.tick_params(length=0, labelsize=8, top=True, labeltop=True, bottom=False, labelbottom=False)
    panel.spines[:].set_visible(False)
    panel.grid(visible=False)
    return figure
