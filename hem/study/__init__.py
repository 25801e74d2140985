"""Many runs of one study: a grid of tasks, losses and seeds, a search for each loss, done here or by a cluster."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def __getattr__(name: str) -> Any:
    """Hand on what stood here when this was one file."""
    if find_spec(f"{__name__}.{name}"):  # a file of this folder, which is just being imported
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from hem.moved import handed_on  # the processes of a study import this package, and need none of it

    return handed_on("hem.study", ("hem.study.command", "hem.study.progress", "hem.study.grid"), name)
