"""The Markdown of a run of `benchmarks/gpu.py`, for docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

Row = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, or nothing without rows."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""]) if lines else ""


def fixed(value: object, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else ""


def markdown(rows: Sequence[Row]) -> str:
    """What the rows say, one part per stage."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row["stage"], []).append(row)
    machine = by.get("machine", [{}])[0]
    day = datetime.fromtimestamp(rows[0]["at"]).date() if rows else "no results"
    words = [f"{k} {machine[k]}" for k in ("driver", "torch", "triton", "python") if machine.get(k)]
    parts = [f"## {machine.get('card', 'a machine that was not named')}, {day}\n\n{', '.join(words)}\n"]
    if copied := machine.get("copy TB/s"):
        parts.append(f"A copy within the card moves {copied} TB/s, read and written.\n")
    if cases := by.get("correctness"):
        wrong = [row for row in cases if not row["ok"]]
        parts.append(f"### Against float64\n\n{len(cases) - len(wrong)} of {len(cases)} cases agree.\n")
        worst: dict[str, Row] = {}
        for row in cases:
            if row["ok"] and row["gradient error"] >= worst.get(row["dtype"], row)["gradient error"]:
                worst[row["dtype"]] = row
        keys = ("shape", "layout", "gradient error", "loss error")
        parts.append(table(["dtype", "worst at", "layout", "gradient error", "loss error"],
                           [[d, *(r[k] for k in keys)] for d, r in sorted(worst.items())]))  # fmt: skip
        names = ["shape", "dtype", "layout", "kind", "loss error", "gradient error", "error"]
        parts.append(table(names, [[row.get(k, "") for k in names] for row in wrong]))
    for row in by.get("tests", []):
        parts.append(f"### Tests\n\n{row['summary']} ({row['seconds']} s)\n")
        parts += [f"* {line}" for line in row["failed"]] + ([""] if row["failed"] else [])
    if found := by.get("losses"):
        names = ["shape", "dtype", "what", "forward us", "step us", "graph us", "floor us", "step / cross-entropy",
                 "TB/s", "share of copy", "extra MB"]  # fmt: skip
        parts.append("### What a loss costs\n\n" + table(names, [[row.get(k, "") for k in names] for row in found]))
    if found := by.get("training"):
        names = ["network", "way", "batch", "images/s", "quartiles", "with ends"]
        parts.append("### Images per second\n\n" + table(names, [[row.get(k, "") for k in names] for row in found]))
    if found := by.get("tiles"):
        names = ["shape", "dtype", "kernel", "samples", "classes", "warps", "us", "TB/s", "chosen"]
        parts.append("### Tiles\n\n" + table(names, [[row.get(k, "") for k in names] for row in found]))
    if found := [*by.get("cifar10", []), *by.get("seeds", [])]:
        names = ["loss", "seed", "data", "epochs", "seconds", "test accuracy"]
        body = [[fixed(row.get(k), 4) if "accuracy" in k else row.get(k, "") for k in names] for row in found]
        parts.append("### CIFAR-10, ResNet-18\n\n" + table(names, body))
    for row in by.get("error", []):
        parts.append(f"* {row['of']}: {str(row['error']).strip().splitlines()[-1]}")
    return "\n".join(parts)
