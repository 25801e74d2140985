"""Lock of a run folder, in which one process at a time works.

It is a ``flock`` on the folder's file ``lock``. The kernel releases it when the last process that holds it has ended,
however it ended, so no lock outlives its owner.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hem.runs.folder import RunFolder

HELD = "HEM_LOCK"  # environment variable with the file descriptor of a lock that a process inherits
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system without locks
_descriptors: set[int] = set()
_without: set[Path] = set()  # the first folder without locks, once it was said


def _let_go() -> None:
    """Close the locks in a forked process: a data worker must not keep the lock of a folder whose owner is dead."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def lock(folder: Path, needed: bool = False) -> Iterator[int | None]:
    """Lock a run folder for this process and those that inherit the file descriptor.

    Args:
        folder: The folder; it is created if it is missing.
        needed: Whether a file system without locks is an error; else a sentence says that there is one.

    Yields:
        A file descriptor; None if another process holds the lock. A process that inherits the lock (environment
        variable :data:`HELD`) has it already.

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
            except OSError as error:
                if needed or error.errno not in NO_LOCKS:
                    raise
                _say_without(folder)
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


def _say_without(folder: Path) -> None:
    """Say once in a process that a file system has no locks, and not for each run of a study."""
    if not _without:
        _without.add(folder)
        print(
            f"{folder} lies on a file system without locks: see that no two processes train into one folder there.",
            file=sys.stderr,
        )


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether a path still names an open file; a former holder may have removed it (:func:`remove_empty`)."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def remove_empty(folder: Path) -> None:
    """Remove a folder that this process has locked and that holds nothing but the lock."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [RunFolder(folder).lock.name]:
            RunFolder(folder).lock.unlink()
            folder.rmdir()


def _handed(descriptor: int) -> int | None:
    """Return the inherited file descriptor if it is of the same file as ``descriptor``, else None."""
    with suppress(OSError, ValueError):  # no number, or not open: the variable was inherited without the lock
        handed = int(os.environ.get(HELD, ""))
        return handed if os.path.sameopenfile(handed, descriptor) else None
    return None


def holder(folder: Path) -> str:
    """Return a description of the process that holds a folder."""
    with suppress(OSError):
        return RunFolder(folder).lock.read_text().strip() or "another process"
    return "another process"
