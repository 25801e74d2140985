"""Processes that start with all imports done, forked from a server.

A process of hem spends seconds on imports. Here the fork server of ``multiprocessing`` imports once and runs nothing
else, so that it can be forked at any time; each process is a fork with its own environment, working folder and outputs,
like a newly started one.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, NoReturn

PRELOAD = ["hem.cli.parser", "torch.utils.tensorboard"]  # the latter for Lightning's logger
_lock = threading.Lock()


def command(arguments: Sequence[str]) -> NoReturn:
    """Run a command of hem, as the function of :func:`start`.

    Args:
        arguments: Arguments of ``python cli.py``.
    """
    from hem.cli import main  # imported late: a process that starts commands need not import their modules

    # Lightning starts further processes by the main module, which is here that of the starting process
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("hem.__main__")
    sys.argv = [sys.argv[0], *arguments]
    sys.exit(main(arguments))


def start(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    keep: Mapping[str, int] | None = None,
) -> BaseProcess:
    """Start a process in the current folder.

    The first call starts the server with the present environment: environment variables that libraries read on import
    have these values in all processes, except the number of OpenMP's threads and Lightning's rank.

    Args:
        function: A function of an importable module, such as :func:`command`, which the process calls.
        *arguments: Arguments of the function.
        environment: The whole environment of the process; None: that of this process.
        stdout: An open file for its output; None: that of the server.
        stderr: An open file for its errors; None: that of the server.
        keep: File descriptors that the process inherits, such as that of a lock, by the environment variable that gets
            their number in the process.

    Returns:
        The process, for :func:`wait`.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    own = dict(os.environ if environment is None else environment)
    streams = {number: file for number, file in ((1, stdout), (2, stderr)) if file is not None}
    process: BaseProcess = context.Process(target=_Call(function, arguments, own, streams, dict(keep or {})))
    with _lock, _main_left_out():
        process.start()
    return process


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Prevent processes from importing the main script of this process, as ``multiprocessing`` would have them do."""
    main: Any = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    vars(main).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(main).update(kept)


def wait(process: BaseProcess, timeout: float | None = None) -> int | None:
    """Return the exit code of a process, as in ``subprocess``; None if it still runs after ``timeout`` seconds.

    ``multiprocessing`` itself loses the code if one thread starts a process while another waits for its own.
    """
    connection.wait([process.sentinel], timeout)
    with _lock:
        return process.exitcode


@dataclass
class _Call:
    """The call of a process, and the file descriptors that it inherits."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    environment: dict[str, str]
    streams: dict[int, Any]  # by number of the descriptor: open files in this process, duplicates in the other
    keep: dict[str, Any]
    folder: Path = field(default_factory=Path.cwd)

    def __getstate__(self) -> dict[str, Any]:
        """Duplicate the file descriptors, which is possible only while the process is being started."""
        streams = {number: DupFd(file.fileno()) for number, file in self.streams.items()}
        keep = {name: DupFd(descriptor) for name, descriptor in self.keep.items()}
        return {**self.__dict__, "streams": streams, "keep": keep}

    def __call__(self) -> None:
        for number, descriptor in self.streams.items():
            os.dup2(descriptor.detach(), number)
        os.environ.clear()
        os.environ.update(self.environment)
        os.environ.update({name: str(descriptor.detach()) for name, descriptor in self.keep.items()})
        os.chdir(self.folder)
        _read_again()
        self.function(*self.arguments)


def _read_again() -> None:
    """Update the settings that imported libraries took from the environment."""
    if not {"torch", "lightning"} <= sys.modules.keys():
        return
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0  # type: ignore[attr-defined]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
