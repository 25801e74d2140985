"""An imitation of cli.py for the tests of studies: it trains a number in no time, and keeps the same rules.

`fit` refuses a folder with a config unless it is resumed, saves a checkpoint after each of its epochs and goes on from
it; `test` writes results.json from the checkpoint that it is given. HEM_TEST_FAIL names a run that fails, HEM_TEST_NAN
a margin at which the loss is not finite. Validation accuracy is the best at rate 0.1 and margin 1.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EPOCHS = 8
RATE, MARGIN = "--model.optimizer.lr", "--model.loss.margin"


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def command(arguments: Sequence[str]) -> NoReturn:
    """Stand in the place of :func:`hem.study.forkserver.command`."""
    sys.exit(main(arguments))


def study(arguments: Sequence[str]) -> NoReturn:
    """Do a study of imitations, in a process that leads a group of its own: for tests that kill it."""
    from hem.study import command as of_studies
    from hem.study import forkserver

    os.setsid()
    forkserver.command, forkserver.PRELOAD = command, []
    sys.exit(of_studies.main(arguments))


def main(arguments: Sequence[str]) -> int:
    """Fit or test."""
    step, *words = arguments
    option = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
    rate, margin = float(option.get(RATE, 0.01)), float(option.get(MARGIN, 0.5))
    loss = {"class_path": "Loss", "init_args": {"margin": margin}}
    optimizer = {"class_path": "Optimizer", "init_args": {"lr": rate}}
    config = json.dumps(
        {"model": {"class_path": "Task", "init_args": {"loss": loss, "optimizer": optimizer}}, "data": {}}
    )
    if "--print_config" in words:
        print(config)
        return 0
    examined = Path(option["--run"]) if "--run" in option else None
    folder = examined / "evaluate" / option["--name"] if examined else Path(option["--run_dir"])
    seed = int(option.get("--seed_everything") or examined.name.removeprefix("seed"))
    with open(os.environ["HEM_TEST_LOG"], "a") as log:
        log.write(f"{step} {folder}\n")
    if os.environ.get("HEM_TEST_FAIL", "nothing") in str(folder):
        print("first line\nerror: Expected something else, got this.", file=sys.stderr)
        return 1
    state = {"epoch": 0, "value": seed}
    last, curves = folder / "checkpoints" / "last.ckpt", folder / "metrics.csv"
    if step == "fit":
        if option.get("--ckpt_path") == "last":
            state = json.loads(last.read_text())
        elif (folder / "config.yaml").exists():
            print(f"error: {folder} already holds a run", file=sys.stderr)
            return 1
        write(folder / "config.yaml", config)
        for epoch in range(state["epoch"], EPOCHS):
            time.sleep(float(os.environ.get("HEM_TEST_EPOCH", "0")))
            state = {"epoch": epoch + 1, "value": (state["value"] * 31 + epoch) % 1009}
            if option.get(MARGIN) == os.environ.get("HEM_TEST_NAN", "none"):
                write(folder / "nonfinite_step0_rank0.pt", "")
                return 1
            accuracy = (1 - epoch / EPOCHS / 10) / (1 + abs(math.log10(rate) + 1) + abs(math.log2(margin)))
            rows = curves.read_text() if curves.is_file() and epoch else "epoch,val/accuracy\n"
            kept = "".join(line for line in rows.splitlines(keepends=True) if not line.startswith(f"{epoch},"))
            write(curves, f"{kept}{epoch},{accuracy!r}\n")
            write(last, json.dumps(state))
        return 0
    state = json.loads(Path(option["--ckpt_path"]).read_text())
    assert state["epoch"] == EPOCHS
    task, data = re.search(r"configs/(\w+)/(\w+)\.yaml", " ".join(words)).groups()
    facts = {"task": task, "data": data, "loss": (examined or folder).parent.name, "seed": seed, "hardware": "none",
             "devices": 1, "date": "2026-11-25T00:00:00+00:00", "versions": {"hem": "0"}}  # fmt: skip
    write(folder / "results.json", json.dumps({**facts, "metrics": {"test/accuracy": state["value"] / 1009}}))
    return 0
