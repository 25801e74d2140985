"""One page of many runs: ``hem report runs/<study>`` writes ``runs/<study>/report/index.html``.

Beside the page, which needs no network and no other file, lie its tables as Markdown and CSV (``raw.csv`` holds every
metric of every run, ``<task>_runs.csv`` those of the tables) and its plots as SVG and PNG. What a study asks for and
has not got is shown as missing.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {"Runs": "records", "Place": "records", "write": "page", "main": "page"}


def __getattr__(name: str) -> Any:
    """Load what reads and writes when it is asked for: it needs pandas, and the statistics do not.

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
