"""What the runs of a task have in common: network, length, batch size, optimiser, checkpoint, numbers of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hem.report.records import Runs
from hem.runs import RunFolder

MOST = 4  # values that are named where runs differ


def options(entry: Any) -> dict[str, Any]:
    """Return the arguments of an entry of a config, ``class_path`` and ``init_args``; empty: there is none."""
    return (entry.get("init_args") or {}) if isinstance(entry, Mapping) else {}


def named(entry: Any) -> str:
    """Return the name of a class in a config, or of the network that it is to build, and of its weights.

    Example:
        >>> named({"class_path": "hem.networks.Named", "init_args": {"name": "resnet18", "weights": "/of/mine.pt"}})
        'resnet18, from mine.pt'
        >>> named({"class_path": "torch.optim.SGD"}), named(None)
        ('SGD', '')
    """
    own = options(entry)
    name = own.get("name") or (str(entry.get("class_path", "")).rpartition(".")[2] if entry else "")
    weights = own.get("weights") or own.get("pretrained")
    return str(name) + (
        f", from {Path(str(weights)).name}" if isinstance(weights, str) else ", pretrained" * bool(weights)
    )


def setting(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a training was made with, as far as it is known.

    Args:
        config: Its merged config.
        record: Its ``data.json``.
    """
    model, data, trainer = options(config.get("model")), options(config.get("data")), config.get("trainer") or {}
    rate = options(model.get("lr_scheduler")).get("max_lr") or options(model.get("optimizer")).get("lr")
    accumulated = trainer.get("accumulate_grad_batches") or 1
    optimiser = [named(model.get("optimizer")), f"rate {rate:.4g}" if isinstance(rate, float) else "",
                 named(model.get("lr_scheduler"))]  # fmt: skip
    parts = {"training": "train", "validation": "val", "test": "test"}
    counts = {title: (record.get("files") or {}).get(part, {}).get("count") for title, part in parts.items()}
    images = [f"{count} {title}" for title, count in counts.items() if count is not None]
    if not images and data.get("val_fraction"):
        images = [f"{data['val_fraction']} of those for training are for validation"]
    found = {
        "network": named(model.get("net")),
        "epochs": trainer.get("max_epochs"),
        "steps": trainer.get("max_steps"),
        "batch size": data.get("batch_size"),
        "batches in a step": accumulated if accumulated != 1 else None,
        "optimiser": ", ".join(filter(None, optimiser)),
        "images": ", ".join(images),
    }
    return {key: str(value) for key, value in found.items() if value not in (None, "", -1)}


def compared(runs: Runs, cell: str) -> dict[str, str]:
    """Return what the runs of a cell were made with; where they differ, each value with its losses."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs.of(cell).itertuples():
        training = RunFolder(runs.folder / run.name.partition(f"/{RunFolder.EVALUATIONS}/")[0])
        try:
            own = setting(training.read_config(), training.read_data() or {})
        except (FileNotFoundError, ValueError, AttributeError):  # of an older version, or damaged
            own = {}
        for key, value in (
            own | {"tested checkpoint": run.checkpoint if isinstance(run.checkpoint, str) else ""}
        ).items():
            if value:
                losses = found.setdefault(key, {}).setdefault(value, [])
                losses += [] if run.loss in losses else [run.loss]
    return {key: said(values) for key, values in found.items()}


def said(values: Mapping[str, list[str]]) -> str:
    """Return a value that all runs share, or the differing ones with their losses.

    Example:
        >>> said({"SGD": ["ce", "hem"]}), said({"SGD": ["ce"], "Adam": ["hem"]})
        ('SGD', 'differs: SGD (ce); Adam (hem)')
    """
    if len(values) == 1:
        return next(iter(values))
    named_of = [f"{value} ({', '.join(losses)})" for value, losses in values.items()]
    return f"differs: {'; '.join(named_of[:MOST])}{'; ...' if len(values) > MOST else ''}"
