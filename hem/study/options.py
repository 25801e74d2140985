"""Options in a merged config: their values, and the part of the config that some options set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def value_of(config: Mapping[str, Any], option: str) -> tuple[list[str], Any]:
    """Return the path of an option in a config, as a list of keys, and its value.

    Raises:
        ValueError: The config has no such option.
    """
    here: Any = config
    path: list[str] = []
    for word in option.removeprefix("--").split("."):
        if isinstance(here, Mapping) and word not in here and "init_args" in here:
            here = here["init_args"]
            path.append("init_args")
        if not isinstance(here, Mapping) or word not in here:
            raise ValueError(f"Expected an option of the config, got {option}: it has no '{word}'.")
        here = here[word]
        path.append(word)
    return path, here


def excerpt(config: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Return the part of a config that options set.

    Raises:
        ValueError: The config has no such option.

    Example:
        >>> loss = {"class_path": "HEMLoss", "init_args": {"margin": 2}}
        >>> excerpt({"model": {"class_path": "Task", "init_args": {"loss": loss}}}, ["--model.loss.margin"])
        {'model': {'init_args': {'loss': {'init_args': {'margin': 2}}}}}
    """
    found: dict[str, Any] = {}
    for option in options:
        (*above, last), value = value_of(config, option)
        there = found
        for word in above:
            there = there.setdefault(word, {})
        there[last] = value
    return found
