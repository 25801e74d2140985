"""Execution of a study's runs on this machine, each step in a process.

One process at a time works in a run folder: it holds the folder's lock (:mod:`hem.runs.lock`), which the training
process inherits. After an interruption all can be started again: a run with results is skipped, a training resumes from
its last checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import yaml

from hem.runs import RunFolder
from hem.runs.files import write_atomically
from hem.runs.lock import HELD, lock
from hem.study import forkserver
from hem.study.run import Run, Work
from hem.study.search import Search

CLI = Path(__file__).resolve().parents[2] / "cli.py"
MEMORY = 2 * 2**30  # memory of a run of a small network in bytes: torch, the data set, its workers
PATIENCE = 15.0  # seconds that a process has to end after a request
LOOK = 0.5  # seconds between two checks whether a trial is to be pruned
PAUSE = 2.0  # seconds between two checks of a run that another study is working on


def command(arguments: Sequence[str]) -> list[str]:
    """Return the whole command: this interpreter, ``cli.py`` (or ``-m hem`` if installed), and the arguments."""
    if not CLI.is_file():
        return [sys.executable, "-m", "hem", *arguments]
    here = Path("cli.py")
    return [sys.executable, "cli.py" if here.is_file() and here.resolve() == CLI else str(CLI), *arguments]


def tail(path: Path, lines: int = 6) -> str:
    """Return the last lines of a log, without overwritten states of progress bars."""
    if not path.is_file():
        return ""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", path.read_bytes().decode(errors="replace"))
    kept = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in kept if line.strip()][-lines:])


def clear(folder: Path, unfinished: bool) -> None:
    """Remove what a killed process left: temporary files, and an unfinished training without a checkpoint."""
    run = RunFolder(folder)
    if unfinished and not run.begun:
        for path in run.checkpoints.glob("*.ckpt"):
            path.unlink()
    run.clear()


def end(processes: Sequence[BaseProcess]) -> None:
    """Terminate processes: request it first, and kill them after a while."""
    for process in processes:
        process.terminate()
    until = time.time() + PATIENCE
    for process in processes:
        if forkserver.wait(process, max(0.0, until - time.time())) is None:
            process.kill()
            forkserver.wait(process, PATIENCE)


class Jobs:
    """Executes runs in processes that can be stopped together.

    Args:
        environment: Environment of each process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.stopped = threading.Event()
        self._processes: set[BaseProcess] = set()

    def do(self, run: Work, extra: Mapping[str, str] | None = None) -> str:
        """Execute the remaining steps of a run or of a search.

        Args:
            run: The run; those that it depends on are done.
            extra: Further environment variables.

        Returns:
            ``"done"``; ``"elsewhere"``: another process works on it; ``"stopped"``; or, for a failure, a message with
            the last lines of its log or about the folder or file at fault.
        """
        try:
            if isinstance(run, Search):
                return run.do(self, extra or {})
            assert isinstance(run, Run)
            with lock(run.folder) as held:
                return "elsewhere" if held is None else self.do_held(run, held, extra or {})
        except (OSError, ValueError) as error:
            return f"{run.folder}: {error}"

    def do_held(self, run: Run, held: int, extra: Mapping[str, str], ends: Callable[[], bool] | None = None) -> str:
        """Execute the remaining steps of a run whose lock this process holds.

        Args:
            run: The run.
            held: The file descriptor of its lock.
            extra: Further environment variables.
            ends: Called regularly; if it returns True, the run is stopped and ``"pruned"``.

        Returns:
            As of :meth:`do`.
        """
        if run.done:
            return "done"
        if run.changed:
            return (
                f"{run.folder} was begun by another command (see {RunFolder.STUDY} there): give the options it was "
                "begun with, or delete the folder."
            )
        left = run.left()
        if run.record:
            clear(run.folder, unfinished="fit" in left)
        for step, arguments in left.items():
            if self.stopped.is_set():
                return "stopped"
            if step == "test" and not (needed := Path(run.steps["test"][-1])).is_file():
                return (
                    f"Expected the checkpoint that is tested at {needed}, but there is no such file: put it back, or "
                    f"delete the folder {(run.training or run).folder}, and the study trains it anew."
                )
            record = run.record
            record[step] = {"arguments": list(run.steps[step]), **({"setting": run.found} if run.setting else {})}
            write_atomically(RunFolder(run.folder).study, json.dumps(record, indent=1) + "\n")
            log, begun = run.folder / f"{step}.log", time.time()
            code = self._process(arguments, log, held, extra, ends)
            if self.stopped.is_set() and code:
                return "stopped"
            if code is None:
                return "pruned"
            if code:
                return f"{step} ended with code {code}, see {log}:\n{tail(log)}"
            record[step]["seconds"] = round(time.time() - begun, 1)
            write_atomically(RunFolder(run.folder).study, json.dumps(record, indent=1) + "\n")
        return "done" if run.done else f"{run.folder} has no results.json after its test, see {run.folder}/test.log."

    def config(self, arguments: Sequence[str], log: Path, extra: Mapping[str, str]) -> dict[str, Any]:
        """Return the merged config of a command.

        Args:
            arguments: Arguments of ``python cli.py``.
            log: File for other output.
            extra: Further environment variables.

        Raises:
            ValueError: The command failed or was stopped.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file, tempfile.TemporaryFile() as output:
            words, environment = (*arguments, "--print_config"), {**self.environment, **extra}
            process = forkserver.start(forkserver.command, words, environment=environment, stdout=output, stderr=file)
            if code := self._wait(process):
                raise ValueError(f"its config ended with code {code}, see {log}:\n{tail(log)}")
            output.seek(0)
            config: dict[str, Any] = yaml.safe_load(output)
        return config

    def _process(
        self,
        arguments: Sequence[str],
        log: Path,
        held: int,
        extra: Mapping[str, str],
        ends: Callable[[], bool] | None,
    ) -> int | None:
        """Return the exit code of a step; None: it was pruned."""
        with open(log, "ab") as file:
            file.write(f"$ {' '.join(command(arguments))}\n".encode())
            file.flush()
            environment = {**self.environment, **extra}
            process = forkserver.start(
                forkserver.command, arguments, environment=environment, stdout=file, stderr=file, keep={HELD: held}
            )
        return self._wait(process, ends)

    def _wait(self, process: BaseProcess, ends: Callable[[], bool] | None = None) -> int | None:
        self._processes.add(process)
        try:
            while (code := forkserver.wait(process, LOOK)) is None:
                if ends is not None and ends():
                    end([process])
                    return None
            return code
        finally:
            self._processes.discard(process)

    def stop(self) -> None:
        """Stop all processes: request it first, and kill them after a while. All runs can be resumed."""
        self.stopped.set()
        end(list(self._processes))


class Watcher(Protocol):
    """Protocol of an observer of a study's progress."""

    def change(self, run: Work, state: str) -> None:
        """Note a run's new state: ``running``, ``waiting``, ``done`` or a message about a failure."""

    def tick(self) -> None:
        """Update the display of time."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())])[
        : torch.cuda.device_count()
    ]


def fitting(devices: Sequence[str], per_gpu: int = 1) -> int:
    """Return how many runs fit on this machine: ``per_gpu`` for each GPU, or one for each core that memory allows."""
    if devices:
        return len(devices) * per_gpu
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = cores() * MEMORY
    return max(1, min(cores(), free // MEMORY))


def run_here(runs: Sequence[Work], jobs: int, devices: Sequence[str], watcher: Watcher) -> dict[str, str]:
    """Execute runs by processes of this machine.

    Args:
        runs: The runs, executed in this order as far as their dependencies allow.
        jobs: Number of runs at once; each gets its share of the cores.
        devices: The GPUs, of which each run gets one; empty: runs choose themselves.
        watcher: Gets every change of a run's state.

    Returns:
        By name of the run ``"done"`` or a message.

    Raises:
        KeyboardInterrupt: After all processes were stopped.
    """
    worker = Jobs({"OMP_NUM_THREADS": str(max(1, cores() // jobs)), **os.environ})
    slots: SimpleQueue[str | None] = SimpleQueue()
    for i in range(jobs):
        slots.put(devices[i % len(devices)] if devices else None)

    def do(run: Work) -> str:
        device = slots.get()
        try:
            return worker.do(run, {} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        finally:
            slots.put(device)

    state = {run.name: "done" if run.done else "waiting" for run in runs}
    again: dict[str, float] = {}
    running: dict[Future[str], Work] = {}

    def change(run: Work, new: str) -> None:
        state[run.name] = new
        watcher.change(run, new)

    pool = ThreadPoolExecutor(jobs)
    try:
        while running or "waiting" in state.values():
            for run in runs:
                if state[run.name] != "waiting" or len(running) == jobs or again.get(run.name, 0) > time.time():
                    continue
                before = "done" if run.after is None else state.get(run.after.name, "done")
                if before == "done":
                    running[pool.submit(do, run)] = run
                    change(run, "running")
                elif before not in ("waiting", "running"):
                    change(run, f"not run: {run.after.name if run.after else ''} failed")
            if running:
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    run, outcome = running.pop(future), future.result()
                    if outcome == "elsewhere":
                        again[run.name] = time.time() + PAUSE
                        outcome = "waiting"
                    change(run, outcome)
            else:
                time.sleep(0.2)
            watcher.tick()
    except BaseException:
        worker.stop()
        raise
    finally:
        pool.shutdown(wait=True)
    return state
