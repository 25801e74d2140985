"""Studies on SLURM, by submitit: one job array with a job for each training.

Jobs whose trainings use the setting of a search take part in the search first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hem.study.local import PAUSE, Jobs
from hem.study.run import Run, Work

ELSEWHERE = 600.0  # seconds that a job waits for another process, which may be of a job that is being ended


class Chain:
    """A training, its test and its examinations, in one job of a cluster.

    Args:
        runs: The runs, in the order of their dependencies.
    """

    def __init__(self, runs: Sequence[Work]) -> None:
        self.runs = list(runs)

    @property
    def name(self) -> str:
        """Name of its training or search."""
        return next((run.name for run in self.runs if isinstance(run, Run)), self.runs[0].name)

    def __call__(self) -> dict[str, str]:
        """Execute the runs, except those that depend on a failed one.

        Raises:
            RuntimeError: If a run failed, so that the job fails, too.
        """
        # a job has one task: Lightning is to start its own processes for several devices, as without SLURM
        environment = {key: value for key, value in os.environ.items() if key != "SLURM_NTASKS"}
        worker = Jobs(environment)
        states: dict[str, str] = {}
        until = time.monotonic() + ELSEWHERE
        for run in self.runs:
            failed = run.after is not None and states.get(run.after.name, "done") != "done"
            state = "not run: its training is not done" if failed else worker.do(run)
            while state == "elsewhere" and time.monotonic() < until:
                time.sleep(PAUSE)
                state = worker.do(run)
            states[run.name] = "another process works on it" if state == "elsewhere" else state
            print(f"{run.name}: {states[run.name]}", flush=True)
        if bad := [f"{name}: {state}" for name, state in states.items() if state != "done"]:
            raise RuntimeError("; ".join(bad))
        return states

    def checkpoint(self) -> Any:
        """Requeue the job when its time limit is near; finished work is kept."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def chains(runs: Sequence[Work]) -> list[Chain]:
    """Return the runs that are not done, each training with its dependencies and dependants."""
    found: dict[str, list[Work]] = {}
    for run in runs:
        training = (run.training if isinstance(run, Run) else None) or run
        found.setdefault(training.name, [training.after] if training.after else []).append(run)
    shared = {
        each[0].name for name, each in found.items() if each[0].name != name
    }  # searches that are part of a training's chain
    return [Chain(each) for name, each in found.items() if name not in shared and not all(run.done for run in each)]


def executor_for(folder: Path, parameters: Mapping[str, Any], trial: bool = False) -> Any:
    """Return submitit's executor with parameters.

    Args:
        folder: Folder of submitit's files and logs.
        parameters: Parameters of submitit, as for :func:`submit`.
        trial: Only check the parameters, which needs no SLURM.

    Raises:
        ImportError: If submitit is not installed.
        ValueError: If it does not know a parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--slurm needs submitit: pip install 'hem-loss[cluster]'") from error
    given = dict(parameters)
    try:
        cluster = given.pop("cluster", "slurm")
        built = {key: given.pop(key) for key in ("slurm_max_num_timeout",) if key in given}
        executor = submitit.AutoExecutor(folder=str(folder), cluster="debug" if trial else cluster, **built)
        executor.update_parameters(**given)
    except (AssertionError, NameError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"submitit refuses the parameters of `slurm`: {said}") from error
    return executor


def submit(runs: Sequence[Work], folder: Path, parameters: Mapping[str, Any]) -> list[Any]:
    """Submit runs to SLURM as one job array.

    Args:
        runs: The runs.
        folder: Folder of submitit's files and logs.
        parameters: Parameters of submitit, such as ``timeout_min``, ``slurm_partition`` and ``slurm_max_num_timeout``
            (how often a job is requeued at its time limit); ``cluster`` may be ``local`` or ``debug``, which need no
            SLURM.

    Returns:
        submitit's jobs, one for each training.

    Raises:
        ImportError: If submitit is not installed.
        ValueError: If it does not know a parameter.
    """
    executor = executor_for(folder, parameters)
    if not (left := chains(runs)):
        return []
    with executor.batch():  # one array; the callable is the chain itself, for submitit calls its `checkpoint`
        return [executor.submit(chain) for chain in left]
