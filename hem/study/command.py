"""Command line of studies: ``hem study <name or file> [--dry-run]``.

The runs of a grid of tasks, losses and seeds are in ``runs/<study>/<task>_<data>/<loss>/seed<k>``. They are executed by
processes of this machine, or with ``--slurm`` by a cluster. Finished runs are skipped, so the same command resumes a
study that was interrupted. ``hem report runs/<study>`` writes a report.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from hem.names import near
from hem.runs.files import write_atomically
from hem.study.grid import PLAN, Study, load
from hem.study.local import command, fitting, gpus, run_here
from hem.study.plan import Statistics, plan
from hem.study.progress import Progress, reason
from hem.study.run import Run, Work
from hem.study.search import Search
from hem.study.slurm import chains, executor_for, submit
from hem.study.storage import library


def save_plan(study: Study, source: Path) -> None:
    """Write the plan of the study into its folder, from which the report finds missing runs."""
    found = study.runs()
    plan = {
        "study": study.name,
        "source": str(source),
        "cost": study.cost,
        "cells": study.cells(),
        "search": {
            "storage": study.storage,
            "searches": [f"{each.cell}/{each.loss}" for each in found if isinstance(each, Search)],
        }
        if study.search
        else None,
        "runs": {
            run.name: {"after": run.after.name if run.after else None, "steps": run.steps}
            for run in found
            if isinstance(run, Run)
        },
    }
    write_atomically(study.folder / PLAN, json.dumps(plan, indent=1) + "\n")


def dry_run(study: Study, runs: Sequence[Work], jobs: int, slurm: Mapping[str, Any] | None = None) -> None:
    """Print the commands that remain, in order, and their cost.

    Args:
        study: The study.
        runs: The runs to consider.
        jobs: Number of runs at once on this machine.
        slurm: Parameters of submitit for SLURM, which are checked although nothing is submitted.

    Raises:
        ImportError: If submitit is needed and not installed.
        ValueError: If submitit does not know a parameter.
    """
    if slurm is not None:
        executor_for(study.folder / "slurm", slurm, trial=True)
    done = sum(run.done for run in runs)
    where = f"{jobs} at once" if slurm is None else "by SLURM"
    print(f"# {study.name}: {len(runs)} runs, {done} done, {where}, into {study.folder}")
    if study.cost:
        print(f"# cost: {study.cost}")
    for task in (task for task in study.tasks if task.cost):
        print(f"# cost of {task.name}: {task.cost}")
    for run in runs:
        if run.done:
            print(f"# done: {run.name}")
    if slurm is None:
        for run in runs:
            print_commands(run)
        return
    sent = chains(runs)
    given = " ".join(f"{key}={value}" for key, value in slurm.items())
    print(f"# SLURM: an array of {len(sent)} jobs, each a training with what examines it; {given or 'no parameters'}")
    if "timeout_min" not in slurm and "slurm_time" not in slurm:
        print("# SLURM: no timeout_min is given: submitit asks for 5 minutes a job")
    if note := of_files(study):
        print(f"# {note}")
    for number, chain in enumerate(sent, 1):
        print(f"# job {number}: {chain.name}")
        for run in chain.runs:
            print_commands(run)


def of_files(study: Study) -> str:
    """Return a warning about a search whose jobs are on several machines but whose storage is a file."""
    if study.storage.startswith("sqlite"):
        return "SLURM: SQLite is for one machine: `storage: journal`, or the URL of a database, serves several."
    return ""


def print_commands(run: Work) -> None:
    """Print the remaining commands of a run or of a search."""
    if isinstance(run, Run):
        for arguments in run.left().values():
            print(shlex.join(command(arguments)))
    elif isinstance(run, Search) and not run.done:
        print(f"# {run.name}: {run.summary}")
        print(f"# each trial: {shlex.join(command(run.run('<k>', {}).steps['fit']))} {run.placeholders}")


def options(args: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; return the arguments, and the remaining words, which are options of every run."""
    parser = argparse.ArgumentParser(
        prog="hem study", description="Run a grid of tasks, losses and seeds.", allow_abbrev=False,
        epilog="Further options, such as --trainer.max_epochs 2, are handed to every run.",
    )  # fmt: skip
    parser.add_argument("study", help="a file, or the name of one that ships, such as quick: `hem configs study`")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    parser.add_argument("--jobs", type=int, help="runs at once; as many as fit, if not given")
    parser.add_argument("--per-gpu", type=int, metavar="K", help="runs at once on each GPU; one, if not given")
    parser.add_argument("--plan", action="store_true", help="say how many seeds the spread of those done would need")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs whose name holds this: task_data/loss/seed")
    parser.add_argument("--root", default="runs", help="the folder that holds the studies' folders")
    parser.add_argument(
        "--slurm", nargs="*", metavar="KEY=VALUE",
        help="send the runs to SLURM; parameters of submitit, over those in the file",
    )  # fmt: skip
    return parser.parse_known_args(args)


def refuse_misspelt(rest: Sequence[str]) -> None:
    """Raise an error for options of runs that look like misspelt ones of the study, such as ``--job 2``."""
    for word in rest:
        name = word.partition("=")[0].removeprefix("--")
        if (
            word.startswith("--")
            and "." not in name
            and (meant := near(name, ("dry-run", "jobs", "only", "per-gpu", "plan", "root", "slurm")))
        ):
            raise ValueError(f"There is no option --{name}{meant}")


def slurm_parameters(words: Sequence[str]) -> dict[str, Any]:
    """Parse words ``KEY=VALUE``.

    Raises:
        ValueError: For a word without ``=``.

    Example:
        >>> slurm_parameters(["slurm_partition=gpu", "timeout_min=60"])
        {'slurm_partition': 'gpu', 'timeout_min': 60}
    """
    if wrong := [word for word in words if "=" not in word]:
        raise ValueError(f"Expected KEY=VALUE for --slurm, such as slurm_partition=gpu, got '{wrong[0]}'.")
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


def run(study: Study, runs: Sequence[Work], jobs: int, devices: Sequence[str]) -> int:
    """Execute runs on this machine and print their outcome; return 0 if all are done, else 1."""
    console = Console()
    progress = Progress(runs, jobs, console)
    noted = set[str]()

    def note() -> None:
        """Print which existing runs differ from what the study would make now, by its file or by its search."""
        for each in (each for each in runs if each.name not in noted):
            try:
                if not (each.done and each.changed):
                    continue
                why = f"{each.name} was made by another command: delete {each.folder} to run it again."
            except ValueError as error:
                why = str(error)
            noted.add(each.name)
            progress.print(f"note: {why}")

    note()
    try:
        if progress.live is not None:
            with progress.live:
                states = run_here(runs, jobs, devices, progress)
                progress.tick()
        else:
            states = run_here(runs, jobs, devices, progress)
    except KeyboardInterrupt:
        progress.print("stopped: the same command goes on from here.")
        return 130
    note()
    failed = [name for name, state in states.items() if state != "done"]
    tested = any("test" in each.steps for each in runs if isinstance(each, Run))
    trained = "" if tested else ", trained and not tested"
    counted = f"{len(states) - len(failed)} of {len(states)} runs are done{trained}"
    progress.print(f"{counted}; the page of them: hem report {study.folder}")
    for said in unfinished({name: states[name] for name in failed}):
        progress.print(said)
    return 1 if failed else 0


def unfinished(states: Mapping[str, str]) -> Iterator[str]:
    r"""Return a line for each reason why runs are not done, and not one for each run of a mistake that all share.

    Args:
        states: Of these runs, by name: what :meth:`hem.study.local.Jobs.do` returns.

    Example:
        >>> said = "fit ended with code 1, see {}/fit.log:\nerror: no images"
        >>> list(unfinished({"a": said.format("a"), "b": said.format("b"), "c": "stopped"}))
        ['not done: a, b: error: no images (a: fit ended with code 1, see a/fit.log)', 'not done: c: stopped']
    """
    names: dict[str, list[str]] = {}
    for name, state in states.items():
        names.setdefault(reason(state), []).append(name)
    for why, found in names.items():
        first, *rest = states[found[0]].splitlines()
        where = f" ({f'{found[0]}: ' if len(found) > 1 else ''}{first.rstrip(':')})" if rest else ""
        yield f"not done: {', '.join(found)}: {why}{where}"


def interrupt(number: int, frame: Any) -> None:
    """Handle a signal to terminate like Ctrl-C."""
    raise KeyboardInterrupt


def main(args: Sequence[str] | None = None, statistics: Callable[[], Statistics] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments; None: those of the process.
        statistics: Loads the statistics of reports for ``--plan``.

    Returns:
        0 if all runs are done, 1 if some are not, 2 for a mistake in the arguments or the file, 130 if stopped.
    """
    chosen, overrides = options(args)
    try:
        if overrides and not overrides[0].startswith("--"):
            raise ValueError(f"Expected options of runs, such as --trainer.max_epochs 2, got '{overrides[0]}'.")
        refuse_misspelt(overrides)
        if chosen.jobs is not None and chosen.jobs < 1:
            raise ValueError(f"Expected --jobs to be a number of runs, 1 or more, got {chosen.jobs}.")
        if chosen.per_gpu is not None and (chosen.per_gpu < 1 or chosen.jobs is not None):
            raise ValueError(
                f"Expected --per-gpu to be a number of runs, 1 or more, without --jobs, got {chosen.per_gpu}."
            )
        study = load(chosen.study, overrides, chosen.root)
        if study.search:
            library()
        runs = study.runs(chosen.only)
        if not runs:
            names = ", ".join(dict.fromkeys(run.cell for run in study.runs()))
            raise ValueError(
                f"Expected --only to be a part of a run's name, got '{chosen.only}': the tasks are {names}."
            )
        if chosen.plan and statistics:
            print(plan(study, {run.cell for run in runs if isinstance(run, Run)}, statistics()))
            return 0
        devices = gpus()
        if chosen.per_gpu and not devices:
            raise ValueError(
                "Expected GPUs for --per-gpu, got a machine with none: give --jobs, the number of runs at once."
            )
        jobs = chosen.jobs or fitting(devices, chosen.per_gpu or 1)
        if jobs == 1 and not chosen.per_gpu:  # a run alone may use all GPUs; several get one each
            devices = []
        jobs = min(jobs, len(runs))
        slurm = None if chosen.slurm is None else {**study.slurm, **slurm_parameters(chosen.slurm)}
        if chosen.dry_run:
            dry_run(study, runs, jobs, slurm)
            return 0
        save_plan(study, Path(chosen.study))
        if slurm is not None:
            if note := of_files(study):
                print(note)
            sent = submit(runs, study.folder / "slurm", slurm)
            print(f"sent {len(sent)} jobs: {', '.join(job.job_id for job in sent) or 'everything is done'}")
            return 0
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            return run(study, runs, jobs, devices)
        finally:
            signal.signal(signal.SIGTERM, before)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
