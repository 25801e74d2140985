"""Storage of the trials of a search, shared by processes of which any may be killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hem.runs.lock import NO_LOCKS, lock

SQLITE = 60.0  # seconds that SQLite waits for another writing process


def library() -> Any:
    """Import Optuna, with its info messages off.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("A study with a `search` needs Optuna: pip install 'hem-loss[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(storage: str) -> Any:
    """Open a storage of Optuna.

    Args:
        storage: The URL of a database, or the path of a journal.

    Raises:
        ImportError: Optuna is not installed.
    """
    optuna = library()
    if "://" not in storage:
        from optuna.storages.journal import JournalFileBackend

        lock_obj: Any = Journal(storage)
        return optuna.storages.JournalStorage(JournalFileBackend(storage, lock_obj))
    waits = {"connect_args": {"timeout": SQLITE}} if storage.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(storage, engine_kwargs=waits)


class Journal:
    """Lock of a journal by ``flock``, which a killed process releases at once; Optuna's own last for 30 seconds more.

    Args:
        path: The journal.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(f"{path}.held")
        self.stack = ExitStack()

    def acquire(self) -> bool:
        """Acquire the lock, waiting for other processes."""
        self.stack.enter_context(waited(self.folder))
        return True

    def release(self) -> None:
        """Release the lock."""
        self.stack.close()


@contextmanager
def waited(folder: Path) -> Iterator[None]:
    """Lock a folder, waiting for other processes.

    Raises:
        OSError: If the file system has no locks.
    """
    while True:
        with ExitStack() as stack:
            try:
                held = stack.enter_context(lock(folder, needed=True))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise OSError(
                    f"Expected locks for the trials of a search, got a file system without them at {folder}: give "
                    "--root on another one."
                ) from None
            if held is not None:
                yield
                return
        time.sleep(0.01)
