"""Report on many runs as one page: ``hem report runs/<study>`` writes ``runs/<study>/report/index.html``.

The page needs no network and no other file. Beside it are its tables as Markdown and CSV (``raw.csv`` has all metrics
of all runs, ``<task>_runs.csv`` those of the tables) and its plots as SVG and PNG. Runs that the study lists but that
have no results are shown as missing.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {"Runs": "records", "Place": "records", "write": "page", "main": "page"}


def __getattr__(name: str) -> Any:
    """Import :class:`Runs` and :func:`write` on first use, since they need pandas, which the statistics do not.

    Raises:
        ImportError: If pandas is not installed.
    """
    if name not in PLACES:
        raise AttributeError(f"module 'hem.report' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f"hem.report.{PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Expected the packages that make a report, but there is no {error.name}: pip install 'hem-loss[report]'."
        ) from error
