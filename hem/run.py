"""The former place of what is now in :mod:`hem.runs`; configs and code that name it go on with a warning."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

MOVED = {
    "hem.runs.files": ("atomic_file", "write_atomically", "read_json"),
    "hem.runs.checkpoints": (
        "LAST",
        "BEFORE",
        "whole",
        "last_checkpoint",
        "set_aside",
        "refuse_programs",
        "AtomicCheckpointIO",
    ),
    "hem.runs.csv_logger": ("CSVLogger",),
    "hem.runs.callbacks": ("PACKAGES", "SaveConfig", "SaveResults", "hardware", "SavePredictions"),
}


def __getattr__(name: str) -> Any:
    place = next((module for module, names in MOVED.items() if name in names), None)
    if place is None:
        raise AttributeError(f"module 'hem.run' has no attribute '{name}'")
    warnings.warn(f"hem.run.{name} is now {place}.{name}.", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(place), name)
