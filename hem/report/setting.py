"""What the runs of a task have in common: network, epochs, batches, optimiser, checkpoint and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hem.report.records import Runs
from hem.runs import RunFolder


def setting_of(runs: Runs, cell: str) -> str:
    """Return what the runs of a task were made with, as text; empty: their configs are not there.

    One run of each loss is looked at. Where they differ, the values are named.

    Args:
        runs: The runs.
        cell: The task.
    """
    found: dict[str, list[str]] = {}
    for run in runs.of(cell).drop_duplicates("loss").itertuples():
        folder = RunFolder(runs.folder / str(run.name).partition(f"/{RunFolder.EVALUATIONS}/")[0])
        try:
            facts = dict(_facts(folder.read_config(), folder.read_data() or {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or of another program
            continue
        if run.checkpoint:
            facts["tested"] = str(run.checkpoint)
        for name, value in facts.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return "; ".join(f"{name} {' or '.join(values)}" for name, values in found.items())


def _facts(config: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of a run by name, as text."""
    model, given = config["model"]["init_args"], config["data"].get("init_args") or {}
    net, optimizer = model["net"], model.get("optimizer") or {}
    yield "network", str((net.get("init_args") or {}).get("name") or net["class_path"].rpartition(".")[2])
    yield "epochs", str(config["trainer"].get("max_epochs"))
    if "batch_size" in given:
        yield "batches of", str(given["batch_size"])
    if optimizer:
        kind, rate = optimizer["class_path"].rpartition(".")[2], (optimizer.get("init_args") or {}).get("lr")
        yield "optimiser", kind if rate is None else f"{kind} at {rate:g}"
    if counts := {part: each["count"] for part, each in (data.get("files") or {}).items()}:
        yield "images", ", ".join(f"{count} {part}" for part, count in counts.items())
