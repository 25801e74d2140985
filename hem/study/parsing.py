"""Parsing of a study's file into dataclasses, whose values jsonargparse checks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from hem.cli.configs import find
from hem.metrics import catalog
from hem.names import check_name, near
from hem.runs import RunFolder

T = TypeVar("T")
Options = tuple[str, ...]  #: arguments of a command
OF_THE_STUDY = ("--seed_everything", "--run_dir", "--ckpt_path")


@dataclass(frozen=True)
class Entry:
    """Annotation of a dataclass field that a study's file sets, in the field's ``Annotated`` type."""

    words: str = ""  #: description of valid values for error messages; jsonargparse checks the type
    read: Callable[[Any, str], Any] | None = None  #: parses the value instead, given its place


def parse(kind: type[T], value: Any, where: str) -> T:
    """Parse a value of a file into a dataclass.

    Args:
        kind: The dataclass; its fields with an :class:`Entry` are the keys. A text alone is the value of the key
            ``SHORT``.
        value: The value in the file.
        where: Its place, for error messages.

    Raises:
        FileNotFoundError: If a config that it names is missing.
        ValueError: If it has unknown or missing keys, or a value of the wrong type.
    """
    hints = get_type_hints(kind, include_extras=True)
    known = {each.name: each for each in fields(kind) if get_origin(hints[each.name]) is Annotated}  # type: ignore[arg-type]
    if isinstance(value, str) and (short := getattr(kind, "SHORT", None)):
        value = {short: value}
    if not isinstance(value, dict):
        raise ValueError(f"Expected {where} to be a mapping with the keys {', '.join(known)}, got {value!r}.")
    for key in value:
        if key not in known:
            raise ValueError(
                f"Expected keys of {where} among {', '.join(known)}, got '{key}'{near(str(key), known) or '.'}"
            )
    for key, each in known.items():
        if each.default is MISSING and each.default_factory is MISSING and value.get(key) in (None, [], {}):
            raise ValueError(f"Expected the key '{key}' in {where}, got none.")
    return kind(**{key: _value(key, hints[key], given, where) for key, given in value.items() if given is not None})


def _value(key: str, annotated: Any, value: Any, where: str) -> Any:
    hint, entry = get_args(annotated)
    if entry.read:
        return entry.read(value, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=hint)
    try:
        return parser.parse_object({key: value})[key]
    except ArgumentError:
        raise ValueError(f"Expected {key} of {where} to be {entry.words}, got {value!r}.") from None


def listed(value: Any, where: str) -> list[Any]:
    """Return a value that must be a list.

    Raises:
        ValueError: If it is no list.
    """
    if not isinstance(value, list):
        raise ValueError(f"Expected {where} to be a list, got {value!r}.")
    return value


def read_options(value: Any, where: str) -> Options:
    """Parse a list of options, each a string as on the command line: ``["--trainer.max_epochs 2"]``."""
    words = [word for option in listed(value, where) for word in shlex.split(str(option))]
    if words and not words[0].startswith("--"):
        raise ValueError(f"Expected {where} to be a list of options such as '--trainer.max_epochs 2', got {value!r}.")
    for before, after in pairwise(not_own(words, where)):
        if before == "--config":
            _config(after, where)
    return tuple(words)


def not_own(words: Sequence[str], where: str) -> Options:
    """Return options of every run; raise an error if one of them is set by the study itself."""
    if own := [word for word in words if word.partition("=")[0] in OF_THE_STUDY]:
        raise ValueError(
            f"Expected options of runs in {where}, got {own[0]}, which the study sets itself: leave it out."
        )
    return tuple(words)


def _config(path: Any, where: str) -> str:
    try:
        find(str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None
    return str(path)  # as it was given: each run resolves it, wherever hem is installed


def read_overrides(value: Any, where: str) -> Options:
    """Parse ``overrides``."""
    return read_options(value, f"overrides of {where}")


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Parse ``seeds``."""
    seeds = listed(value, f"seeds of {where}")
    if not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected seeds of {where} to be different whole numbers, got {value!r}.")
    return tuple(seeds)


def read_primary(value: Any, where: str) -> str:
    """Parse ``primary``, a metric of the test with a direction."""
    found = catalog.match(str(value))
    if found is None or found.stage not in ("test", "stream") or found.higher is None:
        raise ValueError(
            f"Expected primary of {where} to be a metric of the test that losses can be compared by, such as "
            f"test/accuracy, got {value!r}{near(str(value), [f'test/{each.path}' for each in catalog.CATALOG]) or '.'}"
        )
    return str(value)


def read_losses(value: Any, where: str) -> dict[str, Options]:
    """Parse ``losses``: options by name of the loss."""
    found: dict[str, Options] = {}
    for entry in listed(value, f"losses of {where}"):
        for name, given in (entry if isinstance(entry, dict) else {str(entry): None}).items():
            if given is None:  # a shipped loss, also if written as `- hem:`
                given = [f"--config configs/loss/{name}.yaml"]
            words = read_options(given, f"loss {name} of {where}")
            if name in found or Path(str(name)).name != str(name):
                raise ValueError(f"Expected different names of folders for losses of {where}, got {name!r}.")
            if same := next((other for other, others in found.items() if others == words), None):
                raise ValueError(f"Expected losses of {where} to differ, got the same options for {same} and {name}.")
            found[str(name)] = words
    return found


Text = Annotated[str, Entry("a text")]
Primary = Annotated[str, Entry(read=read_primary)]
Overrides = Annotated[Options, Entry(read=read_overrides)]
Seeds = Annotated[tuple[int, ...], Entry(read=read_seeds)]
Losses = Annotated[dict[str, Options], Entry(read=read_losses)]


@dataclass
class Parameter:
    """A parameter of a search: a number in a range, or one of some choices."""

    options: Annotated[
        tuple[str, ...], Entry("a list of options such as --model.optimizer.lr, which all get its value")
    ]
    low: Annotated[int | float | None, Entry("a number")] = None
    high: Annotated[int | float | None, Entry("a number")] = None
    log: Annotated[bool, Entry("true or false")] = False
    choices: Annotated[tuple[Any, ...], Entry("a list of values")] = ()

    def distribution(self) -> Any:
        """Return Optuna's distribution, of integers if both ends are integers."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return distributions.IntDistribution(self.low, self.high, self.log)
        return distributions.FloatDistribution(float(self.low or 0), float(self.high or 0), self.log)

    def __contains__(self, value: Any) -> bool:
        if self.choices or isinstance(value, bool) or not isinstance(value, int | float):
            return value in self.choices
        whole = isinstance(self.low, int) and isinstance(self.high, int)  # as in `distribution`
        return (self.low or 0) <= value <= (self.high or 0) and (not whole or value == int(value))

    def words(self, value: Any) -> list[str]:
        """Return the command-line options that set the parameter to a value."""
        said = value if isinstance(value, str) else json.dumps(value)
        return [word for option in self.options for word in (option, said)]

    def __str__(self) -> str:
        scale = " on a log scale" if self.log else ""
        return " | ".join(map(str, self.choices)) or f"{self.low} to {self.high}{scale}"


Space = dict[str, Parameter]


def read_space(value: Any, where: str) -> Space:
    """Parse ``space``: parameters by name."""
    if not isinstance(value, dict):
        raise ValueError(f"Expected space of {where} to be a mapping of parameters by name, got {value!r}.")
    space = {str(name): parse(Parameter, each, f"{name} of the space of {where}") for name, each in value.items()}
    for name, each in space.items():
        not_own(read_options(list(each.options), f"options of {name} of {where}"), f"{name} of {where}")
        ends = (each.low, each.high)
        if bool(each.choices) == (ends != (None, None)) or (None in ends and not each.choices):
            raise ValueError(
                f"Expected either low and high or choices for {name} of the space of {where}, got {value[name]!r}."
            )
        if not each.choices and not (each.log <= (each.low > 0) and each.low < each.high):  # type: ignore[operator]
            raise ValueError(
                f"Expected low below high, and above 0 on a log scale, for {name} of the space of {where}, got "
                f"{value[name]!r}."
            )
    return space


def read_spaces(value: Any, where: str) -> dict[str, Space]:
    """Parse ``losses`` of a search: a space for each loss."""
    if not isinstance(value, dict):
        raise ValueError(f"Expected losses of {where} to be a mapping of spaces by loss, got {value!r}.")
    return {str(loss): read_space(each, f"{loss} of {where}") for loss, each in value.items()}


#: by name in the file; all are functions of the former trials and the seed
SAMPLERS = {"random": "RandomSampler", "tpe": "TPESampler", "gp": "GPSampler"}
#: by name in the file; all are stateless, so that a killed process loses nothing
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "threshold": "ThresholdPruner",
}
Named = tuple[str, dict[str, Any]]  #: a name and its arguments


def _named(names: Iterable[str], what: str, value: Any, where: str) -> Named:
    """Parse a name, optionally with arguments: ``tpe`` or ``{tpe: {multivariate: true}}``."""
    name, arguments = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (value, {})
    check_name(str(name), names, what)
    if not isinstance(arguments, dict):
        raise ValueError(f"Expected the arguments of {what} {name} to be a mapping, got {arguments!r}.")
    return str(name), arguments


@dataclass
class SearchBlock:
    """Settings of the searches, which all tasks and losses share, except the space."""

    seed: Annotated[int, Entry("a whole number")]  #: seed of the sampler and of the training of every trial
    trials: Annotated[int | None, Entry("a number of trials, 1 or more")] = None
    seconds: Annotated[float | None, Entry("a number of seconds")] = None
    sampler: Annotated[Named, Entry(read=partial(_named, SAMPLERS, "sampler"))] = ("tpe", {})
    pruner: Annotated[Named, Entry(read=partial(_named, PRUNERS, "pruner"))] = ("none", {})
    storage: Annotated[str, Entry("sqlite, journal, or the URL of a database")] = "sqlite"
    overrides: Overrides = ()  #: options of every trial
    space: Annotated[Space, Entry(read=read_space)] = field(default_factory=dict)
    losses: Annotated[dict[str, Space], Entry(read=read_spaces)] = field(default_factory=dict)
    untuned: Annotated[bool, Entry("true or false")] = True  #: whether runs with the configs' own setting are made, too

    @property
    def budget(self) -> str:
        """The budget of each task and loss as text."""
        return f"{self.trials} trials" if self.trials is not None else f"{self.seconds:g} s of trials"


def read_search(value: Any, where: str) -> SearchBlock:
    """Parse ``search``."""
    block = parse(SearchBlock, value, f"search of {where}")
    budget = [each for each in (block.trials, block.seconds) if each is not None]
    if len(budget) != 1 or budget[0] <= 0:
        raise ValueError(
            f"Expected either trials or seconds, a number above 0, in search of {where}, got trials {block.trials} and "
            f"seconds {block.seconds}."
        )
    if block.storage not in ("sqlite", "journal") and "://" not in block.storage:
        raise ValueError(
            f"Expected storage of {where} to be sqlite, journal, or the URL of a database, got {block.storage!r}."
        )
    return block


@dataclass
class Part:
    """A config with options, given by its path alone or as a mapping."""

    SHORT: ClassVar = "config"
    config: Annotated[str, Entry(read=_config)]
    name: Text = ""
    overrides: Overrides = ()
    primary: Primary = ""  #: name of an examination

    def __post_init__(self) -> None:
        path = Path(self.config)
        own = path.stem if path.parent.name == RunFolder.EVALUATIONS else f"{path.parent.name}_{path.stem}"
        self.name = self.name or own


def read_train(value: Any, where: str) -> Part:
    """Parse ``train``."""
    return parse(Part, value, f"train of {where}")


def read_examinations(value: Any, where: str) -> tuple[Part, ...]:
    """Parse ``examine``."""
    where = f"examine of {where}"
    return tuple(parse(Part, each, where) for each in listed(value, where))


@dataclass
class Task:
    """A task of a study: a training for every loss and seed, and its examinations."""

    train: Annotated[Part, Entry(read=read_train)]
    name: Text = ""
    overrides: Overrides = ()
    losses: Losses = field(default_factory=dict)  #: by default the study's
    seeds: Seeds = ()  #: by default the study's
    checkpoint: Annotated[Literal["last", "best"], Entry("last or best")] = "last"
    test: Annotated[bool, Entry("true or false")] = True
    examine: Annotated[tuple[Part, ...], Entry(read=read_examinations)] = ()
    primary: Primary = ""  #: the metric by which losses are compared
    monitor: Text = ""  #: the metric that a search optimises; by default the primary metric on validation images
    mode: Annotated[Literal["", "max", "min"], Entry("max or min")] = ""  #: its better end, if its name does not say
    space: Annotated[Space, Entry(read=read_space)] = field(default_factory=dict)  #: in addition to the search's
    trials: Annotated[int | None, Entry("a number of trials, 0 for no search")] = None  #: in place of the search's
    cost: Text = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.train.name

    @property
    def folders(self) -> list[str]:
        """The names of its folders in the study's folder."""
        return [self.name, *(f"{self.name}/{part.name}" for part in self.examine)]

    @property
    def tuned(self) -> str:
        """The name of the folder of its runs with the setting of a search."""
        return f"{self.name}_tuned"

    @property
    def judged_by(self) -> str:
        """The metric on validation images that a search optimises."""
        return self.monitor or (f"val/{self.primary.removeprefix('test/')}" if self.primary else "")

    @property
    def better(self) -> str:
        """The better end of :attr:`judged_by`, ``max`` or ``min``.

        Raises:
            ValueError: It is not known, or ``mode`` contradicts it.
        """
        known = {"higher": "max", "lower": "min", None: ""}[catalog.describe(self.judged_by).direction]
        found = self.mode or known
        if not found or known not in ("", found):
            raise ValueError(
                f"Expected mode of {self.name}, the better end of {self.judged_by}, to be {known or 'max or min'}, got "
                f"{self.mode or 'none'}."
            )
        return found


def read_tasks(value: Any, where: str) -> tuple[Task, ...]:
    """Parse ``tasks``."""
    tasks = tuple(
        parse(Task, each, f"task {i} of {where}") for i, each in enumerate(listed(value, f"tasks of {where}"), 1)
    )
    names = [name for task in tasks for name in task.folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Expected a folder for each task of {where}, got {twice[0]} for two: give one of them a `name`."
        )
    return tasks
