"""Atomic writing of files, and reading of JSON.

A file is written under a temporary name and renamed, so a killed process leaves the old file or the new one, never a
part of one.
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
    """Open a temporary file that is flushed and renamed to ``path`` at the end, or removed on an error.

    Args:
        path: Path of the file; its folder is created if it is missing.

    Raises:
        OSError: If the folder cannot be written, or the disk is full; a former file at ``path`` stays.
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
        reason = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save wraps errors of writing
        if not isinstance(reason, OSError):
            raise
        reason.filename = reason.filename or str(path)  # the error of a full disk has no file name
        raise reason from None
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8, names of files as the system has them) or bytes to a file, see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        ValueError: If the file holds no mapping or is cut off, as after a full disk or an interrupted copy.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is empty or damaged ({error}): delete it, and it will be made anew.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping, but {found!r}: delete it, and it will be made anew.")
    return found
