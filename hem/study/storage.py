"""Where the trials of a search are kept: Optuna's storages, shared by processes of which any may be killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hem.runs.lock import lock

SQLITE = 60.0  # seconds that SQLite waits for another process that writes


def library() -> Any:
    """Return Optuna, without its news.

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
    """Return Optuna's storage.

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
    """The lock of a journal: the system's own, which no killed process leaves behind as Optuna's are for 30 seconds.

    Args:
        path: The journal.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(f"{path}.held")
        self.stack = ExitStack()

    def acquire(self) -> bool:
        """Wait until the journal is free."""
        self.stack.enter_context(waited(self.folder))
        return True

    def release(self) -> None:
        """Let it go."""
        self.stack.close()


@contextmanager
def waited(folder: Path) -> Iterator[None]:
    """Hold a folder, as soon as nobody else does."""
    while True:
        with lock(folder) as held:
            if held is not None:
                yield
                return
        time.sleep(0.01)
