"""The classes that a config can name without their path: tasks, networks, losses, data, strategies.

One table serves short names, in YAML and on the command line, near names, and what ``hem losses`` lists.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import lightning.pytorch.cli
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import hem.datamodules
import hem.losses
import hem.modules
import hem.networks
import hem.schedules
import hem.strategies


class Registry(NamedTuple):
    """What one key of a config may name."""

    what: str  #: in words, for a sentence
    classes: dict[str, str]  #: the path of each class by its short name

    def path(self, name: Any) -> Any:
        """Return the path of a class of ours, and anything else as it is."""
        return self.classes.get(name, name) if isinstance(name, str) else name


def offered(base: type, *rooms: ModuleType, but: Sequence[type] = ()) -> dict[str, str]:
    """Return the classes that rooms offer under one base, the base itself left out: their paths by their names."""
    found = {
        name: f"{room.__name__}.{name}"
        for room in rooms
        for name, value in vars(room).items()
        if isinstance(value, type) and issubclass(value, base) and name[0] != "_" and value not in (base, *but)
    }
    return dict(sorted(found.items()))


#: by the last word of an option or a key: ``--model.loss HEMLoss``, ``loss: {class_path: HEMLoss}``
REGISTRIES = {
    "model": Registry("task", offered(hem.modules.Task, hem.modules)),
    "data": Registry("data module", offered(hem.datamodules.ImageDataModule, hem.datamodules)),
    "dataset": Registry("data set", offered(hem.datamodules.MaskDataset, hem.datamodules)),
    "subset": Registry("subset", offered(hem.datamodules.Subset, hem.datamodules)),
    "sampling": Registry("sampling", offered(hem.datamodules.Sampling, hem.datamodules)),
    "loss": Registry("loss", offered(nn.Module, hem.losses)),
    "net": Registry(
        "network",
        offered(nn.Module, hem.networks, but=(hem.networks.Network, hem.networks.CosineLinear, hem.networks.Normalize)),
    ),
    "strategy": Registry("strategy", offered(hem.strategies.Strategy, hem.strategies)),
    "training": Registry("training", offered(hem.modules.adversarial_training.AdversarialTraining, hem.modules)),
    "optimizer": Registry("optimiser", offered(Optimizer, torch.optim)),
    # Lightning's ReduceLROnPlateau in place of torch's: it knows its monitor
    "lr_scheduler": Registry(
        "schedule",
        offered(LRScheduler, torch.optim.lr_scheduler, lightning.pytorch.cli, hem.schedules, hem.modules),
    ),
}
REGISTRIES["losses"] = REGISTRIES["loss"]  # those that SumLoss adds


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
    out: list[str] = []
    for argument in args:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        words = (option or (out[-1] if out else "")).lstrip("-").split(".")
        while words[-1:] and words[-1] in ("class_path", "help"):
            words.pop()
        if words and words[-1] in REGISTRIES:
            argument = f"{option}{equals}{REGISTRIES[words[-1]].path(value)}"
        out.append(argument)
    return out


def spelt_out(content: Any, key: str = "") -> Any:
    """Return what a config says with our own class names spelt out, as :func:`qualified` does for arguments.

    Args:
        content: A mapping, list or value as YAML has it.
        key: The key that it stands under.

    Example:
        >>> spelt_out({"model": {"init_args": {"net": {"class_path": "MLP"}, "loss": "HEMLoss"}}})
        {'model': {'init_args': {'net': {'class_path': 'hem.networks.MLP'}, 'loss': 'hem.losses.HEMLoss'}}}
    """
    if isinstance(content, dict):
        return {name: spelt_out(value, key if name == "class_path" else str(name)) for name, value in content.items()}
    if isinstance(content, list):
        return [spelt_out(value, key) for value in content]
    return REGISTRIES[key].path(content) if key in REGISTRIES else content
