"""Configs by short names: ``classification/digits`` is the shipped ``configs/classification/digits.yaml``.

Nothing here imports torch: what is wrong with a config's name or its YAML is said at once.
"""

from __future__ import annotations

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
    shipped = short_names()
    if Path(name).is_dir() or (SHIPPED / inside).is_dir():
        inside_it = [each for each in shipped if each.startswith(f"{inside.rstrip('/')}/")]
        there = ", ".join(inside_it or sorted(map(str, Path(name).glob("*.yaml"))))
        raise FileNotFoundError(
            f"Expected a config, got the folder '{name}': name one of {', '.join(there) or 'yours'}."
        )
    word = inside.removesuffix(".yaml").removesuffix(".yml")
    beside = near(name, map(str, Path(name).parent.glob("*.y*ml")))
    same = [each for each in shipped if each.rpartition("/")[2] == word.rpartition("/")[2]][:4]
    meant = beside or (f"; did you mean {' or '.join(map(repr, same))}?" if same else near(word, shipped)) or "."
    raise FileNotFoundError(
        f"Expected a config, got '{name}', which is no file and not among those that come with hem{meant} "
        "`hem configs` lists them."
    )


def read(path: Path) -> dict[str, Any]:
    """Return what a config says.

    Raises:
        ValueError: If it is no YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        mend = ": indent with spaces, not with tabs" if r"'\t'" in said else ""
        raise ValueError(f"{path} is not valid YAML{mend}: {said}") from None
    if not isinstance(content, dict):
        holds = "is empty" if content is None else f"holds {str(content)[:40]!r}"
        raise ValueError(f"Expected keys such as model, data and trainer in {path}, which {holds}: see `hem configs`.")
    return content


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
    paths = {value: find(value) for value in given(args) if not is_text(value)}
    check({str(path): read(path) for path in paths.values()}, [str(paths[v]) for v in given(args) if v in paths])
    out: list[str] = []
    for option, value in pairwise(["", *args]):
        if option in OPTIONS and value in paths:
            value = str(paths[value])
        elif value.startswith("--config=") and (name := value.partition("=")[2]) in paths:
            value = f"--config={paths[name]}"
        out.append(value)
    return out


def check(contents: dict[str, dict[str, Any]], order: Sequence[str]) -> None:
    """Refuse configs that cannot mean what they say together.

    Args:
        contents: What each config says.
        order: The configs as they were given.

    Raises:
        ValueError: If one is a study, is given twice, or a loss is overruled by a whole config behind it.
    """
    for index, name in enumerate(order):
        content = contents[name]
        if "tasks" in content and "seeds" in content:
            raise ValueError(f"{name} is a study, no config of a run: `python -m hem.study {name}`.")
        if name in order[:index]:
            raise ValueError(f"{name} is given twice: leave one out.")
        if "class_path" in mapping(content, "model"):
            continue
        parts = mapping(content, "model", "init_args")
        for later in order[index + 1 :]:
            whole = "class_path" in mapping(contents[later], "model")
            same = [part for part in parts if part in mapping(contents[later], "model", "init_args")]
            if whole and same:
                raise ValueError(
                    f"{later} overrules the {same[0]} of {name}, since the later config counts: "
                    f"give `--config {name}` behind it."
                )


def mapping(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the mapping under some keys, each inside the one before it; an empty one if there is none."""
    found: Any = content
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
