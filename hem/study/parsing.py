"""What the file of a study may say: dataclasses whose values jsonargparse checks, and sentences for mistakes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from hem.cli.configs import find
from hem.names import near
from hem.runs import RunFolder

T = TypeVar("T")
Options = tuple[str, ...]  #: words of the command line
OF_THE_STUDY = ("--seed_everything", "--run_dir", "--ckpt_path")


@dataclass(frozen=True)
class Entry:
    """What a file may have for a field, in the field's ``Annotated`` type."""

    words: str = ""  #: what its value is, for the sentence about another one; jsonargparse checks the type
    read: Callable[[Any, str], Any] | None = None  #: in its place: makes the value of the file's, and where that stands


def parse(kind: type[T], value: Any, where: str) -> T:
    """Return a dataclass of what a file has for it.

    Args:
        kind: The dataclass; its fields with an :class:`Entry` are the keys. Its ``SHORT`` is the key of a text alone.
        value: What the file has.
        where: What that is, for sentences.

    Raises:
        FileNotFoundError: If a config that it names is not there.
        ValueError: If it has a key too many or too few, or a value of another kind.
    """
    hints = get_type_hints(kind, include_extras=True)
    known = {each.name: each for each in fields(kind) if get_origin(hints[each.name]) is Annotated}  # type: ignore[arg-type]
    if isinstance(value, str) and (short := getattr(kind, "SHORT", None)):
        value = {short: value}
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a mapping with the keys {', '.join(known)}, got {value!r}.")
    for key in value:
        if key not in known:
            raise ValueError(f"{where} has no key '{key}'{near(str(key), known) or '.'} It takes {', '.join(known)}.")
    for key, each in known.items():
        if each.default is MISSING and each.default_factory is MISSING and value.get(key) in (None, [], {}):
            raise ValueError(f"{where} needs the key '{key}'.")
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
        raise ValueError(f"{key} of {where} is {entry.words}, got {value!r}.") from None


def listed(value: Any, where: str) -> list[Any]:
    """Return a list as it is.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where} is a list, got {value!r}.")
    return value


def read_options(value: Any, where: str) -> Options:
    """Options as the command line has them, each in a string: ``["--trainer.max_epochs 2"]``."""
    words = [word for option in listed(value, where) for word in shlex.split(str(option))]
    if words and not words[0].startswith("--"):
        raise ValueError(f"{where} is a list of options such as '--trainer.max_epochs 2', got {value!r}.")
    for before, after in pairwise(not_own(words, where)):
        if before == "--config":
            _config(after, where)
    return tuple(words)


def not_own(words: Sequence[str], where: str) -> Options:
    """Options of every run, none of which is one that the study gives."""
    if own := [word for word in words if word.partition("=")[0] in OF_THE_STUDY]:
        raise ValueError(f"{where} has {own[0]}, which a study gives to each run itself: leave it out.")
    return tuple(words)


def _config(path: Any, where: str) -> str:
    try:
        find(str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None
    return str(path)  # as it was given: each run finds it again, wherever hem is installed then


def read_overrides(value: Any, where: str) -> Options:
    """Read ``overrides``."""
    return read_options(value, f"overrides of {where}")


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Read ``seeds``."""
    seeds = listed(value, f"seeds of {where}")
    if not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds of {where} are different whole numbers, got {value!r}.")
    return tuple(seeds)


def read_losses(value: Any, where: str) -> dict[str, Options]:
    """Read ``losses``: by name, each with the options that choose it."""
    found: dict[str, Options] = {}
    for entry in listed(value, f"losses of {where}"):
        for name, given in (entry if isinstance(entry, dict) else {str(entry): None}).items():
            if given is None:  # the shipped loss of that name, also with a colon too many: `- hem:`
                given = [f"--config configs/loss/{name}.yaml"]
            words = read_options(given, f"loss {name} of {where}")
            if name in found or Path(str(name)).name != str(name):
                raise ValueError(f"losses of {where} need different names that are names of folders, got {name!r}.")
            if same := next((other for other, others in found.items() if others == words), None):
                raise ValueError(f"losses of {where} are to differ, but {same} and {name} have the same options.")
            found[str(name)] = words
    return found


Text = Annotated[str, Entry("a text")]
Overrides = Annotated[Options, Entry(read=read_overrides)]
Seeds = Annotated[tuple[int, ...], Entry(read=read_seeds)]
Losses = Annotated[dict[str, Options], Entry(read=read_losses)]


@dataclass
class Part:
    """A config, by its path or with options of its own."""

    SHORT: ClassVar = "config"
    config: Annotated[str, Entry(read=_config)]
    name: Text = ""
    overrides: Overrides = ()

    def __post_init__(self) -> None:
        path = Path(self.config)
        own = path.stem if path.parent.name == RunFolder.EVALUATIONS else f"{path.parent.name}_{path.stem}"
        self.name = self.name or own


def read_train(value: Any, where: str) -> Part:
    """Read ``train``."""
    return parse(Part, value, f"train of {where}")


def read_examinations(value: Any, where: str) -> tuple[Part, ...]:
    """Read ``examine``."""
    where = f"examine of {where}"
    return tuple(parse(Part, each, where) for each in listed(value, where))


@dataclass
class Task:
    """A training of every loss and seed, and what examines it."""

    train: Annotated[Part, Entry(read=read_train)]
    name: Text = ""
    overrides: Overrides = ()
    losses: Losses = field(default_factory=dict)  #: by default the study's
    seeds: Seeds = ()  #: by default the study's
    checkpoint: Annotated[Literal["last", "best"], Entry("last or best")] = "last"
    test: Annotated[bool, Entry("true or false")] = True
    examine: Annotated[tuple[Part, ...], Entry(read=read_examinations)] = ()

    def __post_init__(self) -> None:
        self.name = self.name or self.train.name

    @property
    def folders(self) -> list[str]:
        """The names of what it asks for, below the study's folder."""
        return [self.name, *(f"{self.name}/{part.name}" for part in self.examine)]


def read_tasks(value: Any, where: str) -> tuple[Task, ...]:
    """Read ``tasks``."""
    tasks = tuple(
        parse(Task, each, f"task {i} of {where}") for i, each in enumerate(listed(value, f"tasks of {where}"), 1)
    )
    names = [name for task in tasks for name in task.folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where} has two tasks in one folder, {twice[0]}: give one of them a `name` of its own.")
    return tasks
