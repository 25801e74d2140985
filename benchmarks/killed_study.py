"""A study killed with -9 at random moments, against an undisturbed one: both must end with the same tables.

    python benchmarks/killed_study.py [--kills 20] [--seed 0]

The study: scikit-learn's digits, two losses, two seeds, 6 epochs each, and the rejection of noise; with a search of
four trials for each loss, some of which are pruned, and the same runs with what it finds. Every other kill spares the
processes that the study started. Code 0 where the tables and the trials are the same, to the last digit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from hem.study.storage import open_storage

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "killed_study"
RATE = ["--model.optimizer.lr", "--model.lr_scheduler.max_lr"]
STUDY = {
    "name": "digits",
    "losses": ["ce", "hem"],
    "seeds": [0, 1],
    "overrides": ["--trainer.max_epochs 6", "--trainer.accelerator cpu"],
    "tasks": [
        {
            "train": "configs/classification/digits.yaml",
            "primary": "test/accuracy",
            "examine": ["configs/evaluate/rejection.yaml"],
        }
    ],
    "search": {
        "trials": 4,
        "seed": 1000,
        "pruner": {"median": {"n_startup_trials": 1}},
        "space": {"lr": {"options": RATE, "low": 0.003, "high": 0.3, "log": True}},
        "losses": {"hem": {"margin": {"options": ["--model.loss.margin"], "low": 0.1, "high": 4.0, "log": True}}},
    },
}


def start(folder: Path, **options) -> subprocess.Popen:
    """Start, or go on with, the study in a folder."""
    words = [sys.executable, "-m", "hem.study", str(RUNS / "digits.yaml"), "--root", str(folder), "--jobs", "2"]
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, **options)


def trials(folder: Path) -> list[tuple]:
    """Every trial of every search, and the files of what was found."""
    storage = open_storage(f"sqlite:///{folder / 'digits' / 'search.db'}")
    found: list[tuple] = [
        (loss, t.number, t.state.name, t.params, t.value, t.intermediate_values)
        for loss in STUDY["losses"]
        for t in storage.get_all_trials(storage.get_study_id_from_name(f"classification_digits/{loss}"))
    ]
    return found + [(path.name, path.read_text()) for path in sorted(folder.glob("digits/search/*/*.yaml"))]


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Every figure of every run."""
    paths = sorted(
        path for depth in ("", "/evaluate/*") for path in folder.glob(f"digits/*/*/seed*{depth}/results.json")
    )
    return {str(path.parent.relative_to(folder)): json.loads(path.read_text())["metrics"] for path in paths}


def main() -> int:
    """Run both, compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(RUNS, ignore_errors=True)  # this script's own folder
    RUNS.mkdir(parents=True)
    (RUNS / "digits.yaml").write_text(yaml.safe_dump(STUDY))
    begun = time.time()
    if start(RUNS / "undisturbed").wait():
        return 1
    seconds = time.time() - begun
    draw, hit, past = random.Random(options.seed), 0, []
    killed = RUNS / "killed"
    while hit < options.kills:
        process = start(killed, stdout=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(0.02, 0.3) * seconds)
            print(f"the study was done after {hit} kills: begun again", flush=True)
            past.append(killed.rename(RUNS / f"killed{len(past)}"))
        except subprocess.TimeoutExpired:
            (os.killpg if hit % 2 else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            hit += 1
            print(f"kill {hit}: {len(figures(killed))} runs have results", flush=True)
    if start(killed).wait():
        return 1
    expected, same = figures(RUNS / "undisturbed"), True
    for folder in [*past, killed]:
        subprocess.run([sys.executable, "-m", "hem.report", str(folder / "digits")], cwd=ROOT, check=True)
        same &= figures(folder) == expected and trials(folder) == trials(RUNS / "undisturbed")
    subprocess.run([sys.executable, "-m", "hem.report", str(RUNS / "undisturbed" / "digits")], cwd=ROOT, check=True)
    tables = [
        (RUNS / folder / "digits" / "report" / "tables.md").read_text() for folder in ("undisturbed", killed.name)
    ]
    same &= tables[0] == tables[1]
    count = sum(map(len, expected.values()))
    print(f"{hit} kills, {len(past) + 1} studies, {count} figures: {'the same' if same else 'NOT THE SAME'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
