"""The classes that a config can name without their path: tasks, networks, losses, data, strategies.

One table serves near names, short names and the names of run folders.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch

import hem.datamodules
import hem.losses
import hem.modules
import hem.networks
import hem.strategies


def subclasses(package: ModuleType, base: type) -> list[str]:
    """Return the names of the concrete classes that a package offers under one base."""
    found = {name: value for name, value in vars(package).items() if isinstance(value, type) and name[0] != "_"}
    return sorted(name for name, value in found.items() if issubclass(value, base) and value is not base)


# what `--model.loss Hem` may have meant, by the last word of the option
CHOICES: dict[str, tuple[str, Iterable[str]]] = {
    "model": ("task", subclasses(hem.modules, hem.modules.Task)),
    "data": ("data module", subclasses(hem.datamodules, hem.datamodules.ImageDataModule)),
    "dataset": ("data set", sorted(entry.__name__ for entry in hem.datamodules.MASKS.values())),
    "loss": ("loss", sorted(entry.__name__ for entry in hem.losses.LOSSES.values())),
    "net": (
        "network",
        [*subclasses(hem.networks, hem.networks.Network), "EncoderDecoder", "SegNet", "TorchvisionSegmentation"],
    ),
    "strategy": ("strategy", subclasses(hem.strategies, hem.strategies.Strategy)),
    "optimizer": ("optimiser", subclasses(torch.optim, torch.optim.Optimizer)),
    "lr_scheduler": ("schedule", subclasses(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)),
}


def parameters(class_path: str) -> list[str]:
    """Return the names that a class takes, its bases' among them where it hands arguments on to them."""
    names: dict[str, None] = {}
    for base in class_of(class_path).__mro__[:-1]:
        if "__init__" in vars(base):
            found = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            names |= {p.name: None for p in list(found)[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            if not any(p.kind is p.VAR_KEYWORD for p in found):
                break
    return list(names)


def class_of(class_path: str) -> type:
    """Return the class that a path names; its module is imported already, as the parser has checked it."""
    module, _, name = class_path.rpartition(".")
    found: type = getattr(sys.modules[module], name)
    return found


def short_name(class_path: str, registry: dict[str, type]) -> str:
    """Return the registry's name of a class, else the name of the class."""
    found = class_of(class_path)
    return next((key for key, entry in registry.items() if entry is found), found.__name__)


def data_name(data: Any) -> str:
    """Return the name of a data set as folders have it, from the ``data`` of a config."""
    if "dataset" in data.init_args:  # one data module for all data sets with masks
        return short_name(data.init_args.dataset.class_path, hem.datamodules.MASKS)
    return short_name(data.class_path, hem.datamodules.DATA)


def task_name(class_path: str) -> str:
    """Return the name of a task as folders have it: ``ClassificationTask`` is ``classification``."""
    return class_path.rpartition(".")[2].removesuffix("Task").lower()


def qualified(args: Sequence[str]) -> list[str]:
    """Return the arguments with our own class names spelt out: torchvision has an ``MLP`` and a ``ResNet``, too.

    Example:
        >>> qualified(["fit", "--model.net", "MLP", "--model.loss=HEMLoss"])
        ['fit', '--model.net', 'hem.networks.MLP', '--model.loss=hem.losses.HEMLoss']
    """
    rooms = {
        "model": hem.modules,
        "data": hem.datamodules,
        "dataset": hem.datamodules,
        "loss": hem.losses,
        "net": hem.networks,
        "strategy": hem.strategies,
    }
    out: list[str] = []
    for argument in args:
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        key = (option or (out[-1] if out else "")).lstrip("-").rpartition(".")[2]
        if key in rooms and isinstance(getattr(rooms[key], value, None), type):
            argument = f"{option}{equals}{rooms[key].__name__}.{value}"
        out.append(argument)
    return out
