"""Processes that tests start: forked from a prepared parent, for a new interpreter spends seconds on imports."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

from hem.study import forkserver

ROOT = Path(__file__).resolve().parents[1]


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


class Processes:
    """A function of a module in processes of their own, at the root of the repository.

    Several are the ranks of a group, started as a cluster starts them: Lightning then starts none itself.
    """

    def __init__(self, function: Callable, *arguments: object, ranks: int = 1, **environment: str) -> None:
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.folder = tempfile.TemporaryDirectory()
        self.processes = []
        for rank in range(ranks):
            own = {**os.environ, **environment} | ({"LOCAL_RANK": str(rank)} if ranks > 1 else {})
            with chdir(ROOT), open(self._file(rank, "out"), "wb") as out, open(self._file(rank, "err"), "wb") as err:
                process = forkserver.start(function, *arguments, environment=own, stdout=out, stderr=err)
            self.processes.append(process)

    def _file(self, rank: int, stream: str) -> Path:
        return Path(self.folder.name) / f"{rank}.{stream}"

    def running(self) -> bool:
        """Whether none has ended."""
        return all(forkserver.wait(process, 0) is None for process in self.processes)

    def kill(self) -> None:
        """End them without a word, as SIGKILL does."""
        for process in self.processes:
            process.kill()

    def kill_after(self, writes: int, file: Path, seconds: float = 240) -> Outcome:
        """Kill them once a file was written so often; that they end before is a failure."""
        seen, mark, deadline = 0, None, time.monotonic() + seconds
        while seen < writes and self.running() and time.monotonic() < deadline:
            if file.exists() and file.stat().st_mtime_ns != mark:
                mark, seen = file.stat().st_mtime_ns, seen + 1
            time.sleep(0.002)
        self.kill()
        done = self.wait()
        assert done.code == -signal.SIGKILL, f"they ended before {file.name} was written {writes} times: {done.err}"
        return done

    def wait(self, seconds: float = 300) -> Outcome:
        """Wait until they have ended, all with the same code; what they printed comes rank by rank."""
        try:
            codes = [forkserver.wait(process, seconds) for process in self.processes]
        finally:
            self.kill()
        out, err = (
            "".join(self._file(rank, stream).read_text() for rank in range(len(codes))) for stream in ("out", "err")
        )
        self.folder.cleanup()
        assert len(set(codes)) == 1, f"the processes ended with codes {codes}: {err}"
        assert codes[0] is not None, f"still running after {seconds} seconds: {err}"
        return Outcome(codes[0], out, err)


def hem(*arguments: object, ranks: int = 1, **environment: str) -> Processes:
    """Start ``python cli.py ...``; more than one rank trains with DDP."""
    devices = ("--trainer.devices", ranks, "--trainer.strategy", "ddp") if ranks > 1 else ()
    words = [str(word) for word in (*arguments, *devices)]
    return Processes(forkserver.command, words, ranks=ranks, **environment)
