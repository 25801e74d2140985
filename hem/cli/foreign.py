"""Examine a network that was trained elsewhere: ``test --net resnet50 --weights file.pth --config ...``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

import hem.datamodules
from hem.cli.configs import given
from hem.cli.examine import EXAMINES, examinations, last_value

OPTIONS = ("--net", "--weights", "--class_order")


def foreign(args: Sequence[str]) -> list[str]:
    """Return the arguments of a command, with ``--net`` and ``--weights`` spelt out as a config before them.

    Args:
        args: What stands behind ``python cli.py``; configs by their paths.

    Raises:
        ValueError: If ``fit`` is given such a network, weights are given without one, or it meets a run.

    Example:
        >>> foreign(["test", "--net", "resnet18", "--data", "MNISTDataModule"])[2].splitlines()[:3]
        ['model:', '  class_path: hem.modules.ClassificationTask', '  init_args:']
    """
    command, *rest = args or [""]
    named = {option: last_value(rest, option) for option in OPTIONS}
    if not any(named.values()):
        return list(args)
    if named["--net"] is None:
        raise ValueError(
            "Expected the name of a network beside --weights and --class_order, got none: add --net, such as --net "
            "resnet50."
        )
    if command not in EXAMINES:
        raise ValueError(
            f"Expected --net with {', '.join(EXAMINES)}, got it with {command}: start a training from weights with "
            f"--model.net Named --model.net.name {named['--net']} --model.net.weights <path>."
        )
    if both := next((option for option in ("--run", "--ckpt_path") if last_value(rest, option)), None):
        raise ValueError(f"Expected --net or {both}, got both: a run has its own network.")
    net: dict[str, Any] = {"name": named["--net"], "weights": named["--weights"] or "default"}
    if named["--class_order"] is not None:
        net["class_order"] = named["--class_order"]
    model = {
        "class_path": "hem.modules.ClassificationTask",
        "init_args": {
            "net": {"class_path": "hem.networks.Named", "init_args": net},
            "loss": {"class_path": "torch.nn.CrossEntropyLoss"},
        },
    }
    others = _others(rest)
    return [
        command,
        "--config",
        yaml.safe_dump({"model": model}, sort_keys=False),
        *examinations(others, _data(others)),
    ]


def _data(args: Sequence[str]) -> str:
    """The name of the data set, of ``--data`` or of a config; "" where it has none."""
    paths = [last_value(args, "--data")]
    for config in filter(os.path.isfile, reversed(list(given(args)))):
        content = yaml.safe_load(Path(config).read_bytes())
        paths.append((content.get("data") or {}).get("class_path") if isinstance(content, dict) else None)
    word = next((path for path in paths if path), "").rpartition(".")[2]
    return next((name for name, entry in hem.datamodules.DATA.items() if entry.__name__ == word), "")


def _others(args: Sequence[str]) -> list[str]:
    """The arguments without our own options and their values."""
    out: list[str] = []
    words = iter(args)
    for word in words:
        if word in OPTIONS:
            next(words, None)
        elif word.partition("=")[0] not in OPTIONS:
            out.append(word)
    return out


def name_of(net: Namespace) -> str | None:
    """Return the name that stands for the unknown loss of a network from elsewhere: its own and its weights'.

    Args:
        net: A network's config.

    Returns:
        None for a network that starts from nothing.
    """
    arguments = net.get("init_args") or {}
    if not arguments.get("weights"):
        return None
    words = (arguments.get("name") or net.class_path.rpartition(".")[2], Path(arguments["weights"]).stem)
    return "-".join(dict.fromkeys(words))
