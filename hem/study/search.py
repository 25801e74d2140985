"""Hyperparameter search of a study: for each task and loss the best setting on validation images, by Optuna.

It is a ``search`` block in a study's file. Trials are trained and never tested:

.. code-block:: yaml

    search:
      trials: 8             # for each task and loss; or seconds: 600
      seed: 1000            # of the sampler and of every trial; not one of the study's seeds
      sampler: tpe          # or random, gp; with arguments {tpe: {multivariate: true}}
      pruner: median        # or none, percentile, threshold
      storage: sqlite       # search.db in the study's folder; or journal, or an RDB URL
      space:                # for every task and loss; a task may have a further `space`
        lr: {options: [--model.optimizer.lr, --model.lr_scheduler.max_lr], low: 0.003, high: 0.3, log: true}
      losses:               # further parameters of a loss
        hem: {margin: {options: [--model.loss.margin], low: 0.1, high: 8, log: true}}

The first trial is the config's own setting, if it is inside the space, so that the result is never worse than it on
validation images. It counts as one of the trials, for every loss.

Any number of processes share a search. Each claims a trial under a lock: first one whose process was killed, with its
parameters; else a new one, which is written to the storage at once. A trial is drawn by the sampler, seeded by the
trial's number, from the trials before it, so trials that run one after the other do not depend on interruptions. The
result is a config, ``search/<task>/<loss>.yaml``.
"""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import yaml

from hem.metrics import catalog
from hem.runs import RunFolder
from hem.runs.files import read_json, write_atomically
from hem.runs.lock import lock
from hem.study.options import excerpt, value_of
from hem.study.parsing import PRUNERS, SAMPLERS, Parameter, SearchBlock
from hem.study.run import Run
from hem.study.storage import library, open_storage, waited

if TYPE_CHECKING:
    import optuna

PAUSE = 1.0  # seconds between two checks of a search whose last trials are with other processes


class Worker(Protocol):
    """Protocol of what executes trials, :class:`hem.study.local.Jobs`."""

    stopped: threading.Event

    def do_held(self, run: Run, held: int, extra: Mapping[str, str], ends: Callable[[], bool] | None) -> str:
        """Execute the remaining steps of a run whose lock is held."""

    def config(self, arguments: Sequence[str], log: Path, extra: Mapping[str, str]) -> dict[str, Any]:
        """Return the merged config of a command."""


@dataclass(frozen=True)
class Search:
    """The search for one task and loss."""

    cell: str  #: the task, ``<task>_<data>``
    loss: str
    folder: Path  #: ``<study>/search/<task>/<loss>``, the folder of the trials
    command: tuple[str, ...]  #: arguments of a trial, without its folder and parameters
    monitor: str  #: the validation metric to optimise
    mode: str  #: ``max``, or ``min`` if smaller values of the metric are better
    checkpoint: str  #: ``best``: at the validation of the best checkpoint; ``last``: at the last one
    block: SearchBlock = field(hash=False)
    space: dict[str, Parameter] = field(hash=False)
    storage: str  #: for :func:`hem.study.storage.open_storage`
    after: None = None

    @property
    def name(self) -> str:
        """``search/<task>/<loss>``."""
        return f"search/{self.cell}/{self.loss}"

    @property
    def found(self) -> Path:
        """The path of the config that it writes."""
        return self.folder.with_name(f"{self.loss}.yaml")

    @property
    def definition(self) -> dict[str, Any]:
        """The definition of the search, which must be the same when it is resumed, and its budget."""
        return {
            "command": list(self.command),
            "monitor": self.monitor,
            "mode": self.mode,
            "checkpoint": self.checkpoint,
            "space": {name: asdict(parameter) for name, parameter in self.space.items()},
            **{name: getattr(self.block, name) for name in ("sampler", "pruner", "seed", "trials", "seconds")},
        }

    @property
    def record(self) -> dict[str, Any]:
        """Content of ``search.json``: the definition and, when finished, ``best`` and ``spent``."""
        path = self.folder / "search.json"
        return read_json(path) if path.is_file() else {}

    @property
    def done(self) -> bool:
        """Whether the budget is spent and the result written."""
        record = self.record
        return self.found.is_file() and "best" in record and self._same(record, budget=True)

    @property
    def changed(self) -> bool:
        """Whether it was begun with another definition."""
        return bool(self.record) and not self._same(self.record)

    def _same(self, record: Mapping[str, Any], budget: bool = False) -> bool:
        own = json.loads(json.dumps(self.definition))
        return all(record.get(key) == value for key, value in own.items() if budget or key not in ("trials", "seconds"))

    @property
    def seconds(self) -> float:
        """Total time of all trials."""
        return float(self.record.get("spent", 0))

    @property
    def summary(self) -> str:
        """The budget and the space as text."""
        space = ", ".join(f"{name} {parameter}" for name, parameter in self.space.items())
        block = self.block
        return f"{block.budget} by {block.sampler[0]}, seed {block.seed}, judged by {self.monitor}: {space}"

    @property
    def placeholders(self) -> str:
        """The options of a trial, with names in place of values."""
        return " ".join(f"{option} <{name}>" for name, each in self.space.items() for option in each.options)

    # -- trials --------------------------------------------------------------------------------------------

    def run(self, number: int | str, params: Mapping[str, Any]) -> Run:
        """Return the training of a trial."""
        folder = self.folder / f"trial{number}"
        words = [word for name, value in params.items() for word in self.space[name].words(value)]
        fit = ("fit", *self.command, "--run_dir", str(folder), *words)
        return Run(f"search/{self.cell}", self.loss, self.block.seed, folder, {"fit": fit})

    def do(self, worker: Worker, extra: Mapping[str, str]) -> str:
        """Train trials until the budget is spent, in parallel with other processes.

        Returns:
            ``"done"``, ``"stopped"``, or an error message.
        """
        try:
            return self._do(worker, extra)
        except library().exceptions.OptunaError as error:
            return f"{self.storage}: {error}"

    def _alone(self) -> AbstractContextManager[None]:
        """Lock the storage: SQLite fails if two processes have read and then write."""
        return waited(self.folder.parents[1])

    def _do(self, worker: Worker, extra: Mapping[str, str]) -> str:
        if self.done:
            return "done"
        if self.changed:
            return f"{self.folder} was begun with another space or command: give those it was begun with, or delete it."
        own = None if self.record else self._own(worker, extra)
        with self._alone():
            if own is not None and not self.record:
                self._begin(own)
            study = self._open(self.record.get("title", self._name), load=True)
        while True:
            with ExitStack() as held:
                claimed = self._claim(study, held)
                if claimed is None:
                    break
                trial, descriptor = claimed
                if trial is not None:
                    outcome = self._train(study, trial, worker, descriptor, extra)
                    if outcome != "done":
                        return outcome
            if trial is None and worker.stopped.wait(PAUSE):
                return "stopped"
        return self._end(study)

    def _own(self, worker: Worker, extra: Mapping[str, str]) -> dict[str, Any]:
        """Return the entries of the record on the config's own setting, the first trial, or on why it is none."""
        config = worker.config(("fit", *self.command), self.folder / "config.log", extra)
        own: dict[str, Any] = {}
        for name, parameter in self.space.items():
            values = [value_of(config, option)[1] for option in parameter.options]
            if any(value not in parameter or value != values[0] for value in values):
                said = ", ".join(map(str, dict.fromkeys(values)))
                return {"own": None, "why": f"{name} is {said} there, and is searched in {parameter}"}
            own[name] = values[0]
        return {"own": own}

    @property
    def _name(self) -> str:
        """What the storage calls it, unless that was another search's name."""
        return f"{self.cell}/{self.loss}"

    def _begin(self, own: Mapping[str, Any]) -> None:
        """Write the record, and add the search to the storage: beside one of its name, which may be another study's."""
        title = self._name
        try:
            self._open(title)
        except library().exceptions.DuplicatedStudyError:
            title = f"{title} {uuid4().hex}"
        self._write({**own, "title": title})

    def _open(self, title: str, load: bool = False) -> optuna.Study:
        optuna = library()
        name, arguments = self.block.pruner
        return optuna.create_study(  # type: ignore[no-any-return]
            storage=open_storage(self.storage),
            sampler=optuna.samplers.RandomSampler(),  # not used: `_ask` draws
            pruner=getattr(optuna.pruners, PRUNERS[name])(**arguments),
            study_name=title,
            direction={"max": "maximize", "min": "minimize"}[self.mode],
            load_if_exists=load,
        )

    def _claim(self, study: optuna.Study, held: ExitStack) -> tuple[optuna.trial.FrozenTrial | None, int] | None:
        """Return a trial and its lock; no trial: others work on all that remain; None: all are finished."""
        with self._alone():
            trials = study.get_trials(deepcopy=False)
            running = [trial for trial in trials if not trial.state.is_finished()]
            for trial in running:
                # two locks: one that the training inherits, and one of the process that reports to the storage
                folder = self.folder / f"trial{trial.number}"
                if held.enter_context(lock(folder / "told")) is not None:
                    descriptor = held.enter_context(lock(folder))
                    # its former process is dead: resume it, before a new trial is drawn from its result
                    return (None, 0) if descriptor is None else (trial, descriptor)
            if self._spent(trials):
                return (None, 0) if running else None
            trial = self._ask(study, trials)
            folder = self.folder / f"trial{trial.number}"
            descriptors = [held.enter_context(lock(each)) for each in (folder / "told", folder)]
            return trial, descriptors[1] or 0

    def _spent(self, trials: list[optuna.trial.FrozenTrial]) -> bool:
        if self.block.trials is not None:
            return len(trials) >= self.block.trials
        return seconds_of(trials) >= (self.block.seconds or 0.0)

    def _ask(self, study: optuna.Study, trials: list[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial:
        """Add a trial atomically: it is drawn in memory, so a killed process leaves all of it or nothing."""
        from hem.rng import seed_of  # imported late: it needs torch, unlike all else in a study

        optuna = library()
        name, arguments = self.block.sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of a chosen sampler
            seed = seed_of(self.block.seed, len(trials)) % 2**32
            sampler = getattr(optuna.samplers, SAMPLERS[name])(**{"seed": seed, **arguments})
        draft = optuna.create_study(sampler=sampler, direction=study.direction)
        draft.add_trials(trials)
        if own := self.record.get("own") if not trials else None:
            draft.enqueue_trial(own)
        drawn = draft.ask({name: parameter.distribution() for name, parameter in self.space.items()})
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=drawn.params,
                distributions=drawn.distributions,
                user_attrs={"folder": f"{self.name}/trial{len(trials)}", "own": bool(own)},
            )
        )
        return study.get_trials(deepcopy=False)[-1]

    def _train(
        self, study: optuna.Study, frozen: optuna.trial.FrozenTrial, worker: Worker, held: int, extra: Mapping[str, str]
    ) -> str:
        """Execute a trial, and report its result to the storage."""
        optuna = library()
        trial, run = optuna.trial.Trial(study, frozen._trial_id), self.run(frozen.number, frozen.params)
        if run.done and run.changed:
            return f"{run.folder} holds a trial of other parameters, of a search whose record is gone: delete it."
        told = dict(frozen.intermediate_values)
        begun, before = time.monotonic(), frozen.user_attrs.get("seconds", 0.0)

        def prunes() -> bool:
            """Report new epochs in order; return whether the pruner stops the trial at one of them."""
            values = RunFolder(run.folder).read_validations().get(self.monitor, {})
            # the first validation of an epoch, since further ones may be there or not when this is called
            first = {int(epoch): value for (epoch, _), value in sorted(values.items(), reverse=True)}
            for epoch, value in sorted(first.items()):
                if epoch not in told:
                    with self._alone():
                        trial.report(value, epoch)
                    told[epoch] = value
                    if trial.should_prune():
                        return True
            return False

        # a killed process may have reported an epoch without asking the pruner
        outcome = "pruned" if told and trial.should_prune() else worker.do_held(run, held, extra, prunes)
        if outcome == "done" and prunes():
            outcome = "pruned"
        value = self.value(RunFolder(run.folder)) if outcome == "done" else None
        with self._alone():
            trial.set_user_attr("seconds", max(run.seconds, before + time.monotonic() - begun))
            if outcome == "pruned":
                trial.set_user_attr("why", f"pruned by {self.block.pruner[0]} after epoch {max(told)}")
                study.tell(frozen.number, state=optuna.trial.TrialState.PRUNED)
            elif value is not None:
                study.tell(frozen.number, value)
            elif outcome == "done" or any(run.folder.glob("nonfinite_*.pt")):
                trial.set_user_attr("why", "the loss or the metric is not finite")
                study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
            else:  # stopped or failed: the trial is resumed another time
                return outcome
        return "done"

    def value(self, run: RunFolder) -> float | None:
        """Return the value of a trial; None if it is not finite.

        Raises:
            ValueError: The training logs no such metric, or not in the validation of the best checkpoint.
        """
        rule = (run.read_config().get("checkpoint") or {}) if self.checkpoint == "best" else {}
        keys = (self.monitor, rule.get("monitor"))
        curves = {key: values for key, values in run.read_validations().items() if key in keys}
        chosen = catalog.best_of_validation(curves, rule.get("monitor") or "", rule.get("mode") or "min")
        if self.monitor not in chosen:
            raise ValueError(
                f"Expected {self.monitor} in {run.curves}, of the {self.checkpoint} validation, got no such metric: "
                "name another `monitor`."
            )
        return chosen[self.monitor] if math.isfinite(chosen[self.monitor]) else None

    # -- result --------------------------------------------------------------------------------------------

    def _end(self, study: optuna.Study) -> str:
        """Write the best setting as a config, and complete the record."""
        trials = study.get_trials(deepcopy=False)
        sign = -1 if self.mode == "max" else 1
        finished = [
            (sign * trial.value, trial.number)
            for trial in trials
            if trial.value is not None and trial.state.name == "COMPLETE"
        ]
        if not finished:
            return f"no trial of {self.folder} came to its end: {trials[-1].user_attrs.get('why')}."
        best = trials[min(finished)[1]]
        run = RunFolder(self.run(best.number, best.params).folder)
        options = [option for parameter in self.space.values() for option in parameter.options]
        found = (
            f"# Found for {self.loss} by {len(trials)} trials ({self.block.sampler[0]}, seed {self.block.seed}): "
            f"{self.monitor} {best.value:.6g} in trial {best.number}.\n"
            + yaml.safe_dump(excerpt(run.read_config(), options), sort_keys=False)
        )
        if not self.found.is_file() or self.found.read_text("utf-8") != found:
            write_atomically(self.found, found)
        self._write(
            {
                "best": {"trial": best.number, "value": best.value, "params": best.params},
                "spent": round(seconds_of(trials), 1),
            }
        )
        return "done"

    def _write(self, more: Mapping[str, Any]) -> None:
        record = {**self.record, **self.definition, **more}
        write_atomically(self.folder / "search.json", json.dumps(record, indent=1) + "\n")


def seconds_of(trials: Iterable[optuna.trial.FrozenTrial]) -> float:
    """Return the total time of trials."""
    return float(sum(trial.user_attrs.get("seconds", 0.0) for trial in trials))
