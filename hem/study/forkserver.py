"""Processes that begin with everything imported, forked from a prepared parent.

A process of hem spends seconds of work on imports. Here the server of Python's own ``multiprocessing`` does them once
and runs nothing, so that it can be forked at any time; each process is such a fork, with an environment, a working
folder and outputs of its own, as one that was started anew.
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

PRELOAD = ["hem.cli.parser", "torch.utils.tensorboard"]  # what the server imports: the latter is of Lightning's logger
_lock = threading.Lock()


def command(arguments: Sequence[str]) -> NoReturn:
    """Run a command of hem: for :func:`start`.

    Args:
        arguments: What stands behind ``python cli.py``.
    """
    from hem.cli import main  # whoever starts commands need not import what they do

    # Lightning starts further processes by the name of the main module: here that would be the starter's
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
    """Start a process, in the current folder.

    The first call starts the server, with the environment of that moment: what libraries read when they are imported
    is the same for all processes, the number of OpenMP's threads and Lightning's rank excepted.

    Args:
        function: What the process calls: a function of an importable module, such as :func:`command`.
        *arguments: Its arguments.
        environment: The whole environment of the process; None: that of this one.
        stdout: An open file that takes its output; None: where the server was started.
        stderr: The same for its errors.
        keep: Further file descriptors that stay open in the process, such as that of a lock, by the variable of its
            environment that tells which number they have there.

    Returns:
        The process, to be waited for by :func:`wait`.
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
    """Keep processes from running the starter's script again, which ``multiprocessing`` has them import."""
    main: Any = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    vars(main).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(main).update(kept)


def wait(process: BaseProcess, timeout: float | None = None) -> int | None:
    """Return how a process ended, as ``subprocess`` says it; None if it still runs after so many seconds.

    ``multiprocessing`` itself loses the code where one thread starts a process while another waits for its own.
    """
    connection.wait([process.sentinel], timeout)
    with _lock:
        return process.exitcode


@dataclass
class _Call:
    """What a process does, with the file descriptors that it takes along while it is started."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    environment: dict[str, str]
    streams: dict[int, Any]  # by the descriptors' numbers: open files here, what hands them on over there
    keep: dict[str, Any]
    folder: Path = field(default_factory=Path.cwd)

    def __getstate__(self) -> dict[str, Any]:
        """Hand file descriptors on: possible only while the process is being started."""
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
    """Let libraries read again what they read from the environment when they were imported, if they were."""
    if not {"torch", "lightning"} <= sys.modules.keys():
        return
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0  # type: ignore[attr-defined]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
