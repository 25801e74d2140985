"""Quickstart: train HEM and cross-entropy on 8x8 digits and print a table (``make train``)."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import hem
from hem.cli import main as command
from hem.datamodules import DigitsDataModule
from hem.runs import RunFolder
from hem.runs.files import read_json

LOSSES = {"ce": "cross-entropy", "hem": "HEM"}
METRICS = (
    "accuracy %",
    "calibration error %",
    "the same, calibrated",
    "noise told from digits, AUROC %",
)
SEEDS = 3
RUNS = Path("runs/quickstart")


def noise_auroc(run: Path) -> float:
    """Return how well the largest logit tells test digits from uniform noise: AUROC, noise positive."""
    model = hem.load(run, "last")
    digits = DigitsDataModule().load("test").images
    noise = torch.randint(0, 256, digits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        known, unknown = model(digits).amax(1), model(noise).amax(1)
    unknownness = -torch.cat([known, unknown])
    is_unknown = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))])
    return float(roc_auc_score(is_unknown, unknownness))


def spread(shares: Sequence[float]) -> str:
    """Return the mean and range of shares in percent.

    Example:
        >>> spread([0.97, 0.98, 0.99])
        '98.0 (97.0 to 99.0)'
    """
    return f"{100 * sum(shares) / len(shares):.1f} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def main() -> int:
    """Train and test both losses with several seeds, then print what came of them."""
    if RUNS.exists():
        shutil.rmtree(RUNS)  # this script's own folder, made again each time
    columns = []
    for loss, name in LOSSES.items():
        found = []
        words = ["--config", "classification/digits", "--config", f"loss/{loss}"]
        print(f"{name}, {SEEDS} seeds: hem fit {' '.join(words)}", flush=True)
        quiet = ["--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false"]
        for seed in range(SEEDS):
            run = RUNS / "classification_digits" / loss / f"seed{seed}"
            own = [*words, "--seed_everything", str(seed), "--run_dir", str(run), *quiet]
            with contextlib.redirect_stdout(io.StringIO()):  # all metrics are in results.json
                if code := command(["fit", *own]) or command(["test", *own, "--ckpt_path", "last"]):
                    return code
            metrics = read_json(RunFolder(run).results)["metrics"]
            errors = (metrics[f"test/{when}calibration_error"] for when in ("", "calibrated/"))
            found.append((metrics["test/accuracy"], *errors, noise_auroc(run)))
        columns.append([spread(each) for each in zip(*found, strict=True)])
    table = Table("", *LOSSES.values())
    for row in zip(METRICS, *columns, strict=True):
        table.add_row(*row)
    Console().print(table)
    print(f"Means of {SEEDS} seeds, and their range: where the ranges overlap, the losses cannot be told apart.")
    print(f"All metrics on one page: `hem report {RUNS}`. Curves: `make tensorboard`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
