"""Lists of what there is to choose from: ``hem configs``, ``hem losses``, ``hem data``, ..."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from hem.cli.configs import SHIPPED, short_names

COMMAND = re.compile(r"([A-Z_]+=\S+ )*(python|hem) ")  # what to type, in the first lines of a config
#: what is listed, and its key in a config
KEYS = {
    "losses": "loss",
    "data": "data",
    "datasets": "dataset",
    "networks": "net",
    "tasks": "model",
    "strategies": "strategy",
    "attacks": "attacks",
    "scores": "scores",
}


def configs(folder: str = "") -> list[tuple[str, str]]:
    """Return the shipped configs, each with the first line that it says about itself."""
    return [(name, about((SHIPPED / f"{name}.yaml").read_text())) for name in short_names() if name.startswith(folder)]


def about(text: str) -> str:
    r"""Return the first comment of a config that is no command.

    Example:
        >>> about("# python cli.py fit --config configs/x.yaml\n# MNIST, LeNet.\nmodel: {}")
        'MNIST, LeNet.'
        >>> about("# HEM_DATA=data hem study x\n# Three seeds.\nname: x")
        'Three seeds.'
        >>> about("# --config configs/loss/ce.yaml: Cross-entropy.")
        'Cross-entropy.'
    """
    for line in text.splitlines():
        words = line.removeprefix("#").strip()
        if line.startswith("#") and not COMMAND.match(words):
            return words.partition(": ")[2] if words.startswith("--config ") else words
    return ""


def classes(kind: str) -> list[tuple[str, str]]:
    """Return what there is of a kind, each with the first line of its docstring."""
    from hem.cli.registries import REGISTRIES, class_of  # deferred: imports torch

    registry = REGISTRIES[KEYS[kind]]
    found = {**registry.functions, **{name: class_of(path) for name, path in registry.classes.items()}}
    return [(name, summary(entry)) for name, entry in found.items()]


def summary(entry: Any) -> str:
    """Return the first line of a docstring, without what it refers to."""
    line = (inspect.getdoc(entry) or "").partition("\n")[0].partition(": see ")[0]
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", line).rstrip(".") + "."


def listing(kind: str, words: Sequence[str] = ()) -> str:
    """Return a list as text.

    Args:
        kind: ``configs``, or a key of ``KEYS``.
        words: For configs, the folder that is wanted.

    Raises:
        ValueError: If there is nothing of that kind.
    """
    rows = configs(*words[:1]) if kind == "configs" else classes(kind)
    if not rows:
        raise ValueError(f"Expected a folder of configs, got '{words[0]}': `hem configs` lists all.")
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in rows)
