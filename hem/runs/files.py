"""Files that are there whole or not at all.

They are written beside their place and renamed into it, so that a killed process leaves the old file or the new one,
never half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that will be there whole or not at all: written beside its place, flushed, then renamed.

    Args:
        path: Where the file shall lie; its folder is made if need be.

    Raises:
        OSError: If the folder cannot be written, or the disk is full; what was at ``path`` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        reason = error.__context__ if isinstance(error, RuntimeError) else error  # torch wraps what a write raises
        if not isinstance(reason, OSError):
            raise
        reason.filename = reason.filename or str(path)  # a full disk tells the number of the error alone
        raise reason from None
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as :func:`atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file of ours holds.

    Raises:
        ValueError: It holds none: a full disk or a copy that was stopped left it empty or cut off.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is empty or damaged ({error}): delete it, and it will be made anew.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping, but {found!r}: delete it, and it will be made anew.")
    return found
