"""Why a loss wins or loses: what its networks do on the validation images, and what training was like.

    HEM_DATA=<folder> python benchmarks/explain.py runs/evidence/segmentation_camvid_finetune [--losses ce hem dice]

For every finished run of one task of a study: from `metrics.csv` the share of samples with error, the validation metric
and the learning rate over training; from the best checkpoint, on validation images, by how much the target's logit
leads the next (the gap), how the gradient's length at the logits is divided among the classes, recall by the class's
frequency and, for masks, accuracy by the distance to the nearest other class. Means over seeds, with their range.
Writes `benchmarks/results/<study>_<task>_explained.csv` and `docs/pictures/<study>_<task>.png`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rows import save
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from hem.cli import build, quiet
from hem.losses import evaluate
from hem.modules.classification import logit_margin
from hem.networks.weights import without_start
from hem.plots.style import colours, saved, styled, tiled
from hem.runs import AtomicCheckpointIO, RunFolder

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
DISTANCES = (1, 2, 4, 8, 16, 1000)  # pixels to the nearest pixel of another class, at most
LEVELS = (5, 25, 50, 75, 95)  # percentiles of the gap
BATCHES = 40  # of validation images: enough for shares of a class


def distances(target: Tensor) -> Tensor:
    """How far each pixel (N, H, W) is from the nearest pixel of another class or of none."""
    found = np.empty(target.shape, np.float32)
    for mask, out in zip(target.numpy(), found, strict=True):
        out[:] = np.inf
        for label in np.unique(mask):
            inside = mask == label
            if not inside.all():
                out[inside] = distance_transform_edt(inside)[inside]
    return torch.from_numpy(found)


def of_network(run: RunFolder) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """What the best network of a run does on validation images, and how frequent the classes are in training."""
    record = run.read_config()
    without_start(record["model"]["init_args"]["net"].get("init_args", {}))
    parts = {key: record[key] for key in ("seed_everything", "model", "data")}
    cli = build({**parts, "trainer": {"logger": False, "accelerator": "cpu", "devices": 1}}, run=False)
    task, data = cli.model.eval(), cli.datamodule
    state = AtomicCheckpointIO().load_checkpoint(run.checkpoint("best"), map_location="cpu")["state_dict"]
    task.load_state_dict({name: value for name, value in state.items() if name.startswith("net.")}, strict=False)
    data.setup("validate")
    gaps, lengths = [], torch.zeros(data.num_classes, dtype=torch.float64)
    right, count = torch.zeros(data.num_classes), torch.zeros(data.num_classes)
    near: dict[int, list[float]] = {most: [0.0, 0.0] for most in DISTANCES}
    for _, raw in zip(range(BATCHES), data.val_dataloader(), strict=False):
        images, target, *_ = data.on_after_batch_transfer(raw, 0)
        with torch.no_grad():
            logits = task(images).float()
        logits.requires_grad_()
        evaluate(task.loss, logits, target).sum().backward()
        length = logits.grad.norm(dim=1)  # of each sample
        labelled = (target >= 0) & (target < data.num_classes)
        rows, labels = logits.detach().movedim(1, -1)[labelled], target[labelled]
        gaps.append(logit_margin(rows, labels))
        correct = (gaps[-1] > 0).float()
        lengths += torch.bincount(labels, length[labelled].double(), minlength=data.num_classes)
        right += torch.bincount(labels, correct, minlength=data.num_classes)
        count += torch.bincount(labels, minlength=data.num_classes)
        if target.ndim == 3:
            distance, least = distances(target)[labelled], 0
            for most in DISTANCES:
                there = (distance > least) & (distance <= most)
                near[most][0] += float(correct[there].sum())
                near[most][1] += float(there.sum())
                least = most
    gap = torch.cat(gaps).numpy()
    names = data.class_names
    found = {
        "gap": dict(zip(map(str, LEVELS), np.percentile(gap, LEVELS).tolist(), strict=True)),
        "share of the gradient": dict(zip(names, (lengths / lengths.sum()).tolist(), strict=True)),
        "recall": dict(zip(names, (right / count).tolist(), strict=True)),
        "distance": {str(most): hits / all_ for most, (hits, all_) in near.items() if all_},
    }
    frequencies = torch.as_tensor(getattr(data, "class_frequencies", None) or data.class_counts, dtype=torch.float64)
    return found, dict(zip(names, (frequencies / frequencies.sum()).tolist(), strict=True))


def of_training(run: RunFolder) -> dict[str, dict[str, float]]:
    """The curves of a training, by epoch."""
    table = pd.read_csv(run.curves)
    rate = next(name for name in table if name.startswith("lr-"))
    table[rate] = table[rate].ffill()
    primary = next(name for name in ("val/miou", "val/accuracy") if name in table)
    found = {}
    for name, column in (("with error", "train/active"), ("validation", primary), ("rate", rate)):
        if column in table:
            values = table.dropna(subset=["epoch", column]).groupby("epoch")[column].mean()
            found[name] = {str(int(epoch)): float(value) for epoch, value in values.items()}
    return found


@styled
def draw(table: pd.DataFrame, frequencies: dict[str, float]) -> bytes:
    """Draw the table, a panel for each quantity."""
    paint = colours(list(dict.fromkeys(table["loss"])))
    panels = [
        ("with error", "epoch", "share of samples with error"),
        ("validation", "epoch", "validation (dotted: rate)"),
        ("gap", "percentile of the samples", "lead of the target's logit"),
        ("share of the gradient", "frequency of the class", "gradient share / frequency"),
        ("recall", "frequency of the class", "recall of the class"),
        ("distance", "pixels to another class, at most", "accuracy"),
    ]
    panels = [each for each in panels if (table["quantity"] == each[0]).any()]
    figure, axes = tiled(len(panels), 3.6, 2.9)
    for (name, below, beside), panel in zip(panels, axes, strict=True):
        panel.set(xlabel=below, ylabel=beside)
        for loss, own in table[table["quantity"] == name].groupby("loss", sort=False):
            grouped = own.groupby("key")["value"]
            keys = list(dict.fromkeys(own["key"]))
            if below.startswith("frequency"):
                keys.sort(key=lambda key: -frequencies[key])
                at, scale = [frequencies[key] for key in keys], [frequencies[key] for key in keys]
            else:
                at, scale = [float(min(float(key), 32.0)) if name == "distance" else float(key) for key in keys], None
            mean, low, high = (
                np.array([getattr(grouped.get_group(key), how)() for key in keys]) for how in ("mean", "min", "max")
            )
            if name == "share of the gradient":
                mean, low, high = mean / scale, low / scale, high / scale
            panel.plot(at, mean, label=loss, color=paint[loss], linestyle="-", marker="." if len(at) < 30 else None)
            panel.fill_between(at, low, high, color=paint[loss], alpha=0.15, linewidth=0)
        if below.startswith("frequency"):
            panel.set(xscale="log")
            panel.invert_xaxis()
        if name == "share of the gradient":
            panel.set(yscale="log")
            panel.axhline(1, color="black", linewidth=0.6)
        if name == "gap":
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set(yscale="symlog")
        if name == "distance":
            panel.set(xscale="log")
        if name == "validation":
            rate = table[table["quantity"] == "rate"].groupby("key")["value"].mean()
            beside_it = panel.twinx()
            at = sorted(map(int, rate.index))
            beside_it.plot(at, [rate[str(epoch)] for epoch in at], color="black", linestyle=":", linewidth=0.9)
            beside_it.set(yticks=[])
            beside_it.grid(False)
    max(axes, key=lambda panel: len(panel.get_lines())).legend()  # not every loss counts samples with error
    return saved(figure)


def main() -> None:
    """Read the runs, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, help="the folder of a task of a study, runs/<study>/<task>")
    parser.add_argument("--losses", nargs="*", help="by default all that are there")
    chosen = parser.parse_args()
    quiet()
    rows: list[dict[str, Any]] = []
    frequencies: dict[str, float] = {}
    kinds = sorted(path.name for path in chosen.task.iterdir() if path.is_dir())
    for loss in chosen.losses or sorted(kinds, key=lambda name: (name != "ce", name)):
        for folder in sorted((chosen.task / loss).glob("seed*")):
            run = RunFolder(folder)
            if not run.results.is_file():
                continue
            found, frequencies = of_network(run)
            for quantity, values in {**of_training(run), **found}.items():
                rows += [
                    {"loss": loss, "seed": folder.name[4:], "quantity": quantity, "key": key, "value": value}
                    for key, value in values.items()
                ]
            print(folder, flush=True)
    if not rows:
        raise SystemExit(f"Expected finished runs below {chosen.task}/<loss>/seed<k>, found none: run the study first.")
    name = f"{chosen.task.resolve().parent.name}_{chosen.task.name}"
    save(f"{name}_explained", rows)
    (PICTURES / f"{name}.png").write_bytes(draw(pd.DataFrame(rows), frequencies))


if __name__ == "__main__":
    main()
