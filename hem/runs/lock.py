"""The lock of a run folder: one process at a time works in it.

It is a lock of the operating system on the folder's file ``lock``. The kernel gives it back when the last process that
holds it has ended, in whatever way, so no lock outlives its owner.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hem.runs.folder import RunFolder

HELD = "HEM_LOCK"  # in the environment of a process that is handed a lock: the file descriptor
_descriptors: set[int] = set()


def _let_go() -> None:
    """Close the locks in a copy of this process: one that reads images must not hold a folder whose owner is dead."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def lock(folder: Path) -> Iterator[int | None]:
    """Hold a run folder, for this process and those that are given the file descriptor.

    Args:
        folder: The folder; it is made if need be.

    Yields:
        A file descriptor; None where another process holds the folder. A process that was handed the lock (its number
        stands in the environment as :data:`HELD`) holds it already.

    Raises:
        OSError: If the file cannot be made or locked.
    """
    path = RunFolder(folder).lock
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        handed = _handed(descriptor)
        held = {descriptor, descriptor if handed is None else handed} - _descriptors
        try:
            try:
                fcntl.flock(descriptor if handed is None else handed, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if not _is_still(path, descriptor):
                continue
            if handed is None:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
            _descriptors.update(held)
            yield descriptor
            return
        finally:
            _descriptors.difference_update(held)
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a path is that of an open file: whoever held it before may have removed it, see :func:`remove_empty`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def remove_empty(folder: Path) -> None:
    """Remove a folder that one holds alone, where nothing came into it but the lock."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [RunFolder(folder).lock.name]:
            RunFolder(folder).lock.unlink()
            folder.rmdir()


def _handed(descriptor: int) -> int | None:
    """Return the descriptor that this process was handed, where it is one of the same file."""
    with suppress(OSError, ValueError):  # not open, no number: the variable came here without the lock
        handed = int(os.environ.get(HELD, ""))
        return handed if os.path.sameopenfile(handed, descriptor) else None
    return None


def holder(folder: Path) -> str:
    """Return who holds a folder, in words."""
    with suppress(OSError):
        return RunFolder(folder).lock.read_text().strip() or "another process"
    return "another process"
