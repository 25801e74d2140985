"""Draw ``docs/pictures/front.png``, the picture of the README, from the committed rows of three studies."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
STUDIES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10_small": "CIFAR-10"}
LOSSES = {"ce": ("cross-entropy", "0.35"), "hem": ("HEM", "#0072b2")}
CURVE = r"robust_accuracy/linf/([\d.]+)/worst"


def draw() -> None:
    """A panel for each study: accuracy over the radius of the attack, the mean of the seeds, their range as a band."""
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 2.9), layout="constrained", sharey=True)
    for panel, (study, title) in zip(panels, STUDIES.items(), strict=True):
        rows = pd.read_csv(ROOT / "benchmarks" / "results" / f"{study}_adversarial.csv")
        for loss, (name, colour) in LOSSES.items():
            curve = rows[rows.loss == loss].filter(regex=CURVE)
            curve.columns = curve.columns.str.extract(CURVE)[0].astype(float)
            curve = 100 * curve.sort_index(axis=1).dropna(axis=1)
            panel.plot(curve.columns, curve.mean(), "o-", color=colour, label=name, markersize=4)
            panel.fill_between(curve.columns, curve.min(), curve.max(), color=colour, alpha=0.2, linewidth=0)
        panel.set(title=title, xlabel="largest change of a pixel in [0, 1]", ylim=(0, 103))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy under attack, %")
    panels[0].legend(frameon=False)
    figure.savefig(ROOT / "docs" / "pictures" / "front.png", dpi=150)


if __name__ == "__main__":
    draw()
