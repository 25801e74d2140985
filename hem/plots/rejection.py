"""Plots of rejection scores of known and unknown images: histograms, ROC and OSCR curves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hem.plots.style import blank, styled

Curve = tuple[Tensor, Tensor, float]  # x, y, and the area


@styled
def rejection_curves(
    score: str, samples: Mapping[str, Tensor], roc: Mapping[str, Curve], oscr: Mapping[str, Curve],
    threshold: float | None = None, keep: float = 0.95,
) -> Figure:  # fmt: skip
    """Draw histograms of one score beside its ROC and OSCR curves, a line for each unknown set.

    Args:
        score: Name of the score.
        samples: Scores by name of the set; the set of known images comes first.
        roc: By unknown set, the rejected share of known images (x) and of unknown images (y), and the area.
        oscr: By unknown set, the accepted share of unknown images (x) and the share of known images that is accepted
            and correctly classified (y), and the area.
        threshold: Score between accepted and rejected images; None: not drawn.
        keep: Share of the known images that the threshold accepts.
    """
    columns = max(1, 70 // (max(map(len, samples)) + 13))  # of the legends, below the panels
    figure, panels = blank(15, 4.3 + 0.17 * -(-(len(samples) + 1) // columns), 1, 3)
    histogram = panels[0][0]
    # 101 quantiles of each set, so that sets weigh equally in the shared range of bins
    steps = torch.linspace(0, 1, 101, dtype=torch.float64)
    ranges = torch.cat([torch.quantile(values.double(), steps) for values in samples.values()])
    low, high = torch.quantile(ranges, torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high if high > low else low + 1, 61).tolist()
    known = next(iter(samples))
    for name, values in samples.items():
        look = {"color": "black", "linestyle": "-"} if name == known else {}
        weights = [1 / len(values)] * len(values)
        histogram.hist(values.clamp(low, high).tolist(), edges, weights=weights, histtype="step", label=name, **look)
        if name == known:
            histogram.set_prop_cycle(None)
    if threshold is not None:
        histogram.axvline(threshold, color="grey", linestyle="--", label=f"keeps {100 * keep:g} %")
    histogram.set(xlabel=f"{score}, unknown to the right", ylabel="share of the samples")
    labels = (("ROC", "known rejected", "unknown rejected"),
              ("OSCR", "unknown accepted", "known accepted, rightly classified"))  # fmt: skip
    for panel, curves, (title, x, y) in zip(panels[0][1:], (roc, oscr), labels, strict=True):
        for name, (across, up, area) in curves.items():
            shown = torch.linspace(0, len(across) - 1, min(500, len(across))).long()  # with both ends
            panel.plot(across[shown], up[shown], label=f"{name} {100 * area:.1f}")
        panel.set(xlabel=x, ylabel=y, title=f"{title}, area in %")
    for panel in panels[0]:
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns)
    return figure
