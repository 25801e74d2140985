"""The newest checkpoint of a run, kept beside the one before it: files alone, without torch."""

from __future__ import annotations

import os
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

LAST, BEFORE = "last.ckpt", "last-1.ckpt"  # the newest checkpoint of a run, and the one before it


def whole(path: Path) -> bool:
    """Return whether a checkpoint exists and is undamaged, by the checksums of its zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint among ``last`` and the one before it; print the name of a damaged one.

    Args:
        folder: The folder of a run's checkpoints.

    Returns:
        Its path; None if there is none. If all are damaged, the path of the newest, which fails to load with an error.
    """
    there = [path for name in (LAST, BEFORE) if (path := folder / name).is_file()]
    found = next(filter(whole, there), None)
    if found and found != there[0]:
        from lightning.pytorch.utilities import rank_zero_only  # imported late: reading folders needs no Lightning

        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"{there[0]} is damaged: {found}, the checkpoint before it, is taken.", file=sys.stderr)
    return found or next(iter(there), None)


def set_aside(damaged: Path) -> None:
    """Rename a damaged ``last``, so that it does not replace the checkpoint before it on the next save."""
    with suppress(FileNotFoundError):
        os.replace(damaged, damaged.with_suffix(".damaged"))
