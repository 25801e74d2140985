"""Everything that only a card can show, in one command of at most eight minutes.

    python benchmarks/gpu.py [--limit 480] [--out benchmarks/results] [--stages correctness losses ...]
    python benchmarks/gpu.py --page <file.jsonl>          # the Markdown of a run that is over, or was cut off
    python benchmarks/gpu.py --device cpu --quick         # the same way to the end, without a card

Each stage is a process of its own (`gpu_stages.py`), so that a fault in one, which may leave a card's context unusable,
does not touch the others. In the order of their worth:

* `correctness`: the kernels against float64, all dtypes, shapes, layouts; several processes at a time, and with them
* `tests`: the tests that need a card;
* `losses`: time, memory and achieved bandwidth of HEM beside `F.cross_entropy`, `torch.compile` and a copy;
* `tiles`: what other sizes of the kernels' tiles would give;
* `training`: images per second of `fit` beside a bare loop, and both compiled;
* `cifar10`: ResNet-18 with cross-entropy and HEM, where HEM_DATA has CIFAR-10;
* `seeds`: more of that, until the time is up.

A result is a line of JSON, on the disk the moment it is there: a run that is killed leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import gpu_page
import gpu_rows
import torch

HERE = Path(__file__).resolve().parent
# the most that each may take of the time, in seconds
STAGES = {"correctness": 90, "tests": 120, "losses": 150, "tiles": 50, "training": 150, "cifar10": 600, "seeds": 600}
TOGETHER = 6  # processes of the stage `correctness`, most of whose time is compilation


def start(stage: str, part: int, parts: int, path: Path, until: float, args: argparse.Namespace) -> Any:
    """A stage's process; what it prints goes to a file beside the results."""
    command = [sys.executable, str(HERE / "gpu_stages.py"), stage, "--device", args.device, "--rows", str(path)]
    command += ["--part", str(part), "--parts", str(parts), "--until", str(until), *(["--quick"] if args.quick else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parent), os.environ.get("PYTHONPATH", "")))}
    with path.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=HERE.parent, env=environment, stdout=log, stderr=log)


def wait(running: dict[Any, tuple[str, float]], path: Path) -> None:
    """Wait for processes, each until its own time is up and a little longer, for a line about it; then end it."""
    for process, (stage, until) in running.items():
        try:
            code = process.wait(max(until + 8 - time.time(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            gpu_rows.write(path, stage="error", of=stage, error=f"the process ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: to try the command itself")
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="the folder of the results")
    parser.add_argument(
        "--stages", nargs="+", default=list(STAGES), help="some, each with =SECONDS at most if you like"
    )
    parser.add_argument("--page", type=Path, help="no run: the Markdown of this file")
    args = parser.parse_args()
    if args.page:
        print(gpu_page.markdown(gpu_rows.read(args.page)))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no card here: add --device cpu --quick to try the command without one")
    asked = {name: float(most or STAGES.get(name, 0)) for name, _, most in (s.partition("=") for s in args.stages)}
    if unknown := [name for name in asked if name not in STAGES]:
        parser.error(f"--stages are among {', '.join(STAGES)}, got {', '.join(unknown)}")
    end = time.time() + args.limit
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu_{args.device}_{datetime.now():%Y%m%d_%H%M%S}.jsonl"
    with tempfile.TemporaryDirectory() as scratch:  # the random images of the stage `training`
        os.environ["GPU_SCRATCH"] = scratch
        # a card's processes together, where that disturbs no clock; on a CPU one by one
        together = [s for s in ("correctness", "tests") if s in asked]
        turns = [together] if args.device == "cuda" and together else [[s] for s in together]
        turns += [[stage] for stage in STAGES if stage in asked and stage not in together]
        for turn in turns:
            running = {}
            for stage in turn:
                until = min(time.time() + asked[stage], end)
                if until - time.time() < 5:
                    gpu_rows.write(path, stage="error", of=stage, error="the time was up")
                    continue
                parts = TOGETHER if stage == "correctness" and args.device == "cuda" else 1
                running |= {start(stage, i, parts, path, until, args): (stage, until) for i in range(parts)}
            wait(running, path)
            print(f"{', '.join(turn)}: {end - time.time():.0f} s left", file=sys.stderr, flush=True)
    page = gpu_page.markdown(gpu_rows.read(path))
    path.with_suffix(".md").write_text(page)
    print(page)
    print(json.dumps({"results": str(path), "seconds left": round(end - time.time())}))


if __name__ == "__main__":
    main()
