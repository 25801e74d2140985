"""The first minute: HEM beside cross-entropy on real 8x8 digits, in one small table (``make train``)."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
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


def main() -> int:
    """Train and test both losses, then print what came of them."""
    if RUNS.exists():
        shutil.rmtree(RUNS)  # this script's own folder, made again each time
    console = Console()
    table = Table("loss", "accuracy %", "calibration error %", "calibrated", "noise rejected (AUROC %)", "seconds")
    for loss, name in LOSSES.items():
        run, begun = RUNS / loss, time.perf_counter()
        configs = ["--config", "configs/classification/digits.yaml", "--config", f"configs/loss/{loss}.yaml"]
        console.print(f"training with {name}: configs/classification/digits.yaml + configs/loss/{loss}.yaml")
        if code := command(["fit", *configs, "--run_dir", str(run), "--trainer.enable_model_summary", "false"]):
            return code
        seconds = time.perf_counter() - begun
        with contextlib.redirect_stdout(io.StringIO()):  # Lightning's table of all figures: they are in results.json
            if code := command(["test", *configs, "--run_dir", str(run), "--ckpt_path", "last"]):
                return code
        metrics = read_json(RunFolder(run).results)["metrics"]
        errors = (metrics[f"test/{when}calibration_error"] for when in ("", "calibrated/"))
        figures = (metrics["test/accuracy"], *errors, noise_auroc(run))
        table.add_row(name, *(f"{100 * figure:.1f}" for figure in figures), f"{seconds:.0f}")
    console.print(table)
    console.print(
        "One seed of a small data set: it shows that everything works, not which loss is better; three seeds with"
    )
    console.print("their spread: `make study`. HEM's scores are no probabilities before they are calibrated.")
    console.print(f"Curves: `make tensorboard`; configs, checkpoints and results: {RUNS}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
