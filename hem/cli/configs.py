"""Find and check configs: ``classification/digits`` is the shipped ``configs/classification/digits.yaml``.

Nothing here imports torch: what is wrong with a config's name or its YAML is said at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from hem.names import near

PACKAGE = Path(__file__).resolve().parents[1]
# an installed package holds them itself; a checkout without symbolic links has them at its top alone
SHIPPED = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
OPTIONS = ("--config", "-c")
EXAMINATIONS = ("adversarial", "corruption", "rejection")


def base_config() -> Path:
    """Return the config that is read before every other one.

    Raises:
        FileNotFoundError: If it is not there: without it a run would have no curves and no best checkpoint.
    """
    path = SHIPPED / "base.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"Expected the base config at {path}, found none: install hem again.")
    return path


def short_names() -> list[str]:
    """Return the names of all shipped configs but the base: ``loss/hem``, ``classification/digits``, ..."""
    return sorted(str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.glob("*/*.yaml"))


def find(name: str) -> Path:
    """Return the file of a config: as it is named, else in ``configs`` of this folder, else among the shipped ones.

    Args:
        name: A path, or a short name such as ``loss/hem``, with or without ``.yaml`` and ``configs/`` before it.

    Raises:
        FileNotFoundError: If there is none; the sentence names those that look like it.

    Example:
        >>> find("loss/hem").read_text() == find("configs/loss/hem.yaml").read_text()
        True
        >>> find("loss/hemm")
        Traceback (most recent call last):
        FileNotFoundError: Expected a config, got 'loss/hemm', ... hem; did you mean 'loss/hem' ...
    """
    if not name or name.startswith("--"):
        raise FileNotFoundError(
            "Expected a config behind --config, got none: `hem configs` lists those that come with hem."
        )
    inside = name.removeprefix("configs/")
    for place in (Path(name), Path("configs") / inside, SHIPPED / inside):
        for path in (place, place.with_name(f"{place.name}.yaml") if place.name else place):
            if path.is_file():
                return path
    if now := former(name):
        return find(now[1])  # a study examines runs, whose data is known
    shipped = short_names()
    folder = [each for each in shipped if each.startswith(f"{inside.rstrip('/')}/")]
    if there := ", ".join(folder or sorted(map(str, Path(name).glob("*.yaml")))):
        raise FileNotFoundError(f"Expected a config, got the folder '{name}': name one of {there}.")
    word = inside.removesuffix(".yaml").removesuffix(".yml")
    beside = near(name, map(str, Path(name).parent.glob("*.y*ml")))
    same = [each for each in shipped if each.rpartition("/")[2] == word.rpartition("/")[2]][:4]
    meant = beside or (f"; did you mean {' or '.join(map(repr, same))}?" if same else near(word, shipped)) or "."
    raise FileNotFoundError(
        f"Expected a config, got '{name}', which is no file and not among those that come with hem{meant} "
        "`hem configs` lists them."
    )


def former(name: str) -> list[str]:
    """Return the configs that replace one of former versions, with a warning.

    Args:
        name: As :func:`find` takes it.

    Returns:
        Names of configs: network and data, the examination, and what differs by data set; empty for any other name.
    """
    examination, _, data = name.removeprefix("configs/").removesuffix(".yaml").partition("/")
    parts = [f"classification/{data}", f"evaluate/{examination}"]
    if examination not in EXAMINATIONS or not (SHIPPED / f"{parts[0]}.yaml").is_file() or Path(name).is_file():
        return []
    own = f"evaluate/{examination}/{data.replace('mnist_open', 'open_set')}"
    warnings.warn(
        f"The config {name} is {parts[1]} by now, for all data sets: `test --run FOLDER --config {parts[1]}`.",
        FutureWarning,
        stacklevel=2,
    )
    return [*parts, own] if (SHIPPED / f"{own}.yaml").is_file() else parts


class Strict(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys, of which PyYAML drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            ConstructorError: If a key stands in it twice.
        """
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a config.

    Raises:
        ValueError: If it is no YAML, holds no mapping, or has arguments of a class beside its ``init_args``.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), Strict)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        mend = ": indent with spaces, not with tabs" if r"'\t'" in said else ""
        raise ValueError(f"{path} is not valid YAML{mend}: {said}") from None
    if not isinstance(content, dict):
        holds = "is empty" if content is None else f"holds {str(content)[:40]!r}"
        raise ValueError(f"Expected keys such as model, data and trainer in {path}, which {holds}: see `hem configs`.")
    for keys, part in mappings(content):
        beside = [key for key in part if key not in ("class_path", "init_args", "dict_kwargs")]
        if "class_path" in part and beside:
            where = ".".join(key for key in keys if key != "init_args")
            raise ValueError(
                f"{path} has '{beside[0]}' beside the class_path of {where}: put it under init_args, as in "
                f"{{class_path: {part['class_path']}, init_args: {{{beside[0]}: {part[beside[0]]}}}}}."
            )
    return content


def mappings(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every mapping in what a config says, with the keys that lead to it."""
    if isinstance(value, list):
        for each in value:
            yield from mappings(each, keys)
    elif isinstance(value, dict):
        yield keys, value
        for key, each in value.items():
            yield from mappings(each, (*keys, str(key)))


def is_text(value: str) -> bool:
    """Whether the value of ``--config`` is a config itself, or the address of one, not the name of a file."""
    return "{" in value or "\n" in value or "://" in value


def given(args: Sequence[str]) -> Iterator[str]:
    """Yield what stands behind every ``--config`` and ``-c``."""
    for option, value in pairwise([*args, ""]):
        if option in OPTIONS:
            yield value
        elif option.startswith("--config="):
            yield option.partition("=")[2]


def expanded(args: Sequence[str]) -> list[str]:
    """Return the arguments with the paths of configs in the place of their short names, each of them read once.

    Raises:
        FileNotFoundError: If a config is not there.
        ValueError: If one is no YAML, is given twice, or would be overruled by one behind it.
    """
    words: list[str] = []
    for option, value in pairwise(["", *args]):
        name = value if option in OPTIONS else value.partition("=")[2] if value.startswith("--config=") else ""
        if now := former(name):
            words = words[:-1] if option in OPTIONS else words
            words += [word for each in now for word in ("--config", each)]
        else:
            words.append(value)
    args = words
    names = [value for value in given(args) if not is_text(value)]
    paths = {name: find(name) for name in names}
    for index, name in enumerate(names):
        if paths[name] in [paths[other] for other in names[:index]]:
            raise ValueError(f"{name} is given twice: leave one out.")
    check({name: read(path) for name, path in paths.items()})
    out: list[str] = []
    for option, value in pairwise(["", *args]):
        if option in OPTIONS and value in paths:
            value = str(paths[value])
        elif value.startswith("--config=") and (name := value.partition("=")[2]) in paths:
            value = f"--config={paths[name]}"
        out.append(value)
    return out


def check(contents: dict[str, dict[str, Any]]) -> None:
    """Refuse configs that overrule one another.

    Args:
        contents: What each config says, in the order in which they count.

    Raises:
        ValueError: If one is a study, is overruled by a whole config behind it, or two are whole.
    """
    for index, (name, content) in enumerate(contents.items()):
        if "tasks" in content and "seeds" in content:
            raise ValueError(f"{name} is a study, no config of a run: `hem study {name}`.")
        parts = mapping(content, "model", "init_args")
        for later in list(contents)[index + 1 :]:
            same = [part for part in parts if part in mapping(contents[later], "model", "init_args")]
            if not whole(contents[later]) or not same:
                continue
            if whole(content):
                raise ValueError(
                    f"{name} and {later} are both whole configs, of which the later overrules the network and the loss "
                    "of the other: give one of them, then what changes it."
                )
            raise ValueError(
                f"{later} overrules the {same[0]} of {name}, since the later config counts: "
                f"give `--config {name}` behind it."
            )


def whole(content: dict[str, Any]) -> bool:
    """Whether a config has a task with its network, and data."""
    return (
        "class_path" in mapping(content, "model")
        and "net" in mapping(content, "model", "init_args")
        and "class_path" in mapping(content, "data")
    )


def mapping(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the mapping under some keys, each inside the one before it; an empty one if there is none."""
    found: Any = content
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
