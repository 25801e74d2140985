"""Plot of accuracy against the frequency of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hem.plots.style import blank, styled


@styled
def frequency_curves(class_counts: Sequence[int], accuracy: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the accuracy of each class against its number of training samples (log scale), rare classes on the right.

    Args:
        class_counts: Training samples of each class.
        accuracy: Accuracy of each class, in [0, 1], by name of a line.
    """
    figure, ((panel,),) = blank(6.4, 4)
    order = sorted(range(len(class_counts)), key=lambda k: -class_counts[k])
    look = {"marker": "o"} if len(order) <= 20 else {"marker": ".", "linestyle": "none"}
    for name, values in accuracy.items():
        panel.plot([class_counts[k] for k in order], [100 * values[k] for k in order], label=name, alpha=0.8, **look)
    panel.set(xscale="log", ylim=(-3, 103), xlabel="training samples of the class", ylabel="accuracy of the class in %")
    panel.invert_xaxis()
    panel.legend()
    return figure
