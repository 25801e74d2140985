"""Many runs of one study: a grid of tasks, losses and seeds, a search for each loss, done here or by a cluster."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Hand on what stood here when this was one file."""
    from hem.moved import handed_on  # the processes of a study import this package, and need none of it

    return handed_on("hem.study", ("hem.study.command", "hem.study.progress", "hem.study.grid"), name)
