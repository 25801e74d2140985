"""The raw rows of a benchmark, kept as CSV in benchmarks/results/ with what they were made on."""

import csv
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("results")


def save(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `<name>.csv`: every row with the date, the hardware and torch's version behind it."""
    from hem.runs.callbacks import hardware

    facts = {"date": date.today(), "hardware": hardware(), "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    print(f"written to {path}", file=sys.stderr)
