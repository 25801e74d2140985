"""Display of a study's progress in the terminal: finished and failed runs, remaining time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hem.study.run import Work


def duration(seconds: float) -> str:
    """Return a time as text.

    Example:
        >>> duration(42), duration(3700), duration(200_000)
        ('42 s', '1 h 02 min', '2 d 8 h')
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def reason(state: str) -> str:
    r"""Return why a run failed, the last error in the end of its log, or else the last line.

    Example:
        >>> reason("fit ended with code 1, see fit.log:\nerror: Expected images, got none.\nEpoch 1")
        'error: Expected images, got none.'
    """
    lines = [line.strip() for line in state.splitlines()]
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1])


class Progress:
    """Progress display of a study: a live table, or plain lines without a terminal.

    Args:
        runs: All runs.
        jobs: Number of runs at once.
        console: The console to print to.
    """

    def __init__(self, runs: Sequence[Work], jobs: int, console: Console) -> None:
        self.runs = list(runs)
        self.jobs = jobs
        self.console = console
        self.states = {run.name: "done" if run.done else "waiting" for run in runs}
        self.seconds = {run.name: run.seconds for run in runs if run.done}
        self.reasons: dict[str, str] = {}  # of failures, with the first run that had it
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def change(self, run: Work, state: str) -> None:
        """Note a run's new state, and print a line if it is notable."""
        self.states[run.name] = state
        if state == "done":
            self.seconds[run.name] = run.seconds
        if state == "running":
            return
        done = sum(each == "done" for each in self.states.values())
        if state == "done" and self.live is None:
            left = f", about {duration(self.left())} left" if self.left() else ""
            self.print(f"[{done}/{len(self.runs)}] {run.name} in {duration(run.seconds)}{left}")
        elif state not in ("done", "waiting", "stopped"):
            first = self.reasons.setdefault(reason(state), run.name)
            again = first != run.name and "\n" in state
            self.print(f"failed: {run.name}: {f'as {first}' if again else state}")

    def tick(self) -> None:
        """Redraw the table."""
        if self.live is not None:
            self.live.update(self.table(), refresh=True)

    def print(self, text: str) -> None:
        """Print lines as they are."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def left(self) -> float:
        """Return the estimated remaining seconds, by the mean time of finished runs of the same task."""
        known: dict[str, list[float]] = {}
        for run in self.runs:
            if self.seconds.get(run.name):
                known.setdefault(run.cell, []).append(self.seconds[run.name])
        if not known:
            return 0.0
        otherwise = mean(seconds for each in known.values() for seconds in each)
        open_runs = [run for run in self.runs if self.states[run.name] in ("waiting", "running")]
        return sum(mean(known.get(run.cell, [otherwise])) for run in open_runs) / min(self.jobs, max(len(open_runs), 1))

    def table(self) -> Table:
        """Return the table, a row for each task and the sum."""
        table = Table("task", *(f"{each:>7}" for each in ("runs", "done", "running", "failed")), "seconds a run")
        cells: dict[str, list[Work]] = {}
        for run in self.runs:
            cells.setdefault(run.cell, []).append(run)
        for name, runs in [*cells.items(), ("all", self.runs)]:
            states = [self.states[run.name] for run in runs]
            good, running = states.count("done"), states.count("running")
            failed = len(states) - good - running - states.count("waiting")
            seconds = [self.seconds[run.name] for run in runs if self.seconds.get(run.name)]
            bad = f"[red]{failed}[/red]" if failed else "0"
            pace = f"{mean(seconds):.0f}" if seconds and name != "all" else ""
            if name == "all":
                table.add_section()
            table.add_row(name, *(f"{each:>7}" for each in (len(states), good, running)), f"{bad:>7}", pace)
        left = self.left()
        table.caption = f"{self.jobs} at once; about {duration(left)} left" if left else f"{self.jobs} at once"
        return table
