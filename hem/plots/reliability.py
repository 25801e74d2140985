"""Reliability diagrams: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from hem.metrics import Reliability
from hem.plots.style import GREY, blank, styled


@styled
def reliability_diagram(diagrams: Mapping[str, Reliability]) -> Figure:
    """Draw accuracy against confidence, a line for each diagram, above the share of samples in each bin.

    Args:
        diagrams: The bins by name of a line, such as before and after calibration.

    Source: Niculescu-Mizil & Caruana, "Predicting good probabilities with supervised learning", ICML 2005.
    """
    figure, panels = blank(4.2, 5.0, 2, 1, sharex=True, height_ratios=(3, 1))
    upper, lower = panels[0][0], panels[1][0]
    upper.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle="--")
    for name, diagram in diagrams.items():
        there = diagram.size > 0
        sure = (100 * diagram.confidence[there]).tolist()
        share = (100 * diagram.size[there] / diagram.size.sum()).tolist()
        label = f"{name}: error {100 * float(diagram.error):.2f} %"
        upper.plot(sure, (100 * diagram.accuracy[there]).tolist(), marker="o", markersize=4, label=label)
        lower.plot(sure, share, marker="o", markersize=3)
    upper.set(ylabel="accuracy in %", xlim=(0, 100), ylim=(0, 100), title="calibration error of bins of equal width")
    upper.legend(loc="lower right")
    lower.set(xlabel="confidence in %", ylabel="samples in %", ylim=(0, None))
    return figure
