"""An imitation of cli.py for the tests of studies: it trains a number in no time, and keeps the same rules.

`fit` refuses a folder with a config unless it is resumed, saves a checkpoint after each of its epochs and goes on from
it; `test` writes results.json from the checkpoint that it is given. HEM_TEST_FAIL names a run that fails.
"""

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EPOCHS = 8


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def command(arguments: Sequence[str]) -> NoReturn:
    """Stand in the place of :func:`hem.study.forkserver.command`."""
    sys.exit(main(arguments))


def main(arguments: Sequence[str]) -> int:
    """Fit or test."""
    step, *words = arguments
    option = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
    examined = Path(option["--run"]) if "--run" in option else None
    folder = examined / "evaluate" / option["--name"] if examined else Path(option["--run_dir"])
    seed = int((examined or folder).name.removeprefix("seed"))
    with open(os.environ["HEM_TEST_LOG"], "a") as log:
        log.write(f"{step} {folder}\n")
    if os.environ.get("HEM_TEST_FAIL", "nothing") in str(folder):
        print("first line\nerror: Expected something else, got this.", file=sys.stderr)
        return 1
    state = {"epoch": 0, "value": seed}
    last = folder / "checkpoints" / "last.ckpt"
    if step == "fit":
        if option.get("--ckpt_path") == "last":
            state = json.loads(last.read_text())
        elif (folder / "config.yaml").exists():
            print(f"error: {folder} already holds a run", file=sys.stderr)
            return 1
        write(folder / "config.yaml", "")
        for epoch in range(state["epoch"], EPOCHS):
            time.sleep(float(os.environ.get("HEM_TEST_EPOCH", "0")))
            state = {"epoch": epoch + 1, "value": (state["value"] * 31 + epoch) % 1009}
            write(last, json.dumps(state))
        return 0
    state = json.loads(Path(option["--ckpt_path"]).read_text())
    assert state["epoch"] == EPOCHS
    task, data = re.search(r"configs/(\w+)/(\w+)\.yaml", option["--config"]).groups()
    facts = {"task": task, "data": data, "loss": (examined or folder).parent.name, "seed": seed, "hardware": "none",
             "devices": 1, "date": "2026-11-25T00:00:00+00:00", "versions": {"hem": "0"}}  # fmt: skip
    write(folder / "results.json", json.dumps({**facts, "metrics": {"test/accuracy": state["value"] / 1009}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
