"""MNIST with the BatchNorm LeNet: cross-entropy, HEM and multi-margin, three seeds each, as a Markdown table.

    python benchmarks/mnist.py [--losses ce hem multi_margin] [--seeds 0 1 2]

Each run is one `cli.py fit` and one `cli.py test` on the last checkpoint; finished runs are not run again. The
table goes to the terminal and, with every run's figures, to benchmarks/results/mnist.csv.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/classification/mnist.yaml"
FIGURES = {"accuracy": 100.0, "calibration_error": 100.0, "active": 100.0, "logit_margin": 1.0}


def results(loss: str, seed: int) -> dict:
    """Train and test one run, unless its results are there; return them."""
    folder = ROOT / "runs" / "classification_mnist" / loss / f"seed{seed}"
    path = folder / "results.json"
    if not path.exists():
        common = ["--config", CONFIG, "--config", f"configs/loss/{loss}.yaml", "--seed_everything", str(seed)]
        resume = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").exists() else []
        for command in (["fit", *common, *resume], ["test", *common, "--ckpt_path", "last"]):
            subprocess.run([sys.executable, "cli.py", *command], cwd=ROOT, check=True, stdout=sys.stderr)
    return json.loads(path.read_text())


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="+", default=["ce", "hem", "multi_margin"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows, lines = [], []
    for loss in options.losses:
        runs = [results(loss, seed) for seed in options.seeds]
        rows += [
            {"loss": loss, "seed": run["seed"], **{key: run["metrics"][f"test/{key}"] for key in FIGURES},
             "date": run["date"][:10], "hardware": run["hardware"], "torch": run["versions"]["torch"]}
            for run in runs
        ]  # fmt: skip
        cells = []
        for key, scale in FIGURES.items():
            values = [scale * run["metrics"][f"test/{key}"] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
        lines.append(f"| `{loss}` | {' | '.join(cells)} |")
    out = ROOT / "benchmarks" / "results" / "mnist.csv"
    out.parent.mkdir(exist_ok=True)
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=os.linesep)
        writer.writeheader()
        writer.writerows(rows)
    print("| loss | accuracy % | calibration error % | test samples with error % | mean z_y - max z_j |")
    print("|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"mean ± standard deviation over seeds {options.seeds}; {CONFIG}; {rows[0]['hardware']}; {rows[0]['date']}")


if __name__ == "__main__":
    main()
