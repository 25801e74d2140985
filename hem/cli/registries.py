"""Registry of the names that a config may use: tasks, networks, losses, data, strategies, attacks, scores, ...

One table serves short names, in YAML and on the command line, near names, and what ``hem losses`` lists. It reads the
rooms: whatever one offers under the base class is in it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, get_args

import lightning.pytorch.callbacks
import lightning.pytorch.cli
import lightning.pytorch.loggers
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import hem.attacks
import hem.datamodules
import hem.losses
import hem.modules
import hem.networks
import hem.rejection
import hem.runs
import hem.schedulers
import hem.strategies
from hem.attacks import Attack
from hem.cli.own import check_class
from hem.datamodules import CorruptedImages, ImageDataModule, MaskDataset, Sampling, Subset
from hem.modules import Task
from hem.modules.adversarial_training import AdversarialTraining
from hem.names import Former
from hem.rejection import LOGIT_SCORES, FeatureScore, InputScore
from hem.strategies import Strategy


class Registry(NamedTuple):
    """The names that one option may have."""

    option: str  #: as it is typed; a config has the same keys
    what: str  #: in words, for a sentence
    base: Any  #: what all of them derive from: a class, or several
    classes: dict[str, str]  #: the path of each class by its short name
    functions: Mapping[str, Any] = MappingProxyType({})  #: what stands in a config under a name of its own
    former: Former = MappingProxyType({})  #: names of former configs

    @property
    def names(self) -> tuple[str, ...]:
        """All that may be named without a path."""
        return (*self.functions, *self.classes)

    def path(self, name: Any) -> Any:
        """Return the path of a class of ours; a path is returned as it is, and anything else.

        Raises:
            Unusable: If nothing can be imported by that path, or it is no class of this kind.
        """
        if not isinstance(name, str):
            return name
        if name in self.former:
            kind, given = self.former[name]
            path = self.classes[kind.__name__]
            now = {"class_path": path, "init_args": dict(given)} if given else path
            warnings.warn(f"The {self.what} '{name}' is a class by now: write {now}.", FutureWarning, stacklevel=2)
            return now
        path = self.classes.get(name, name)
        if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path) and path not in self.classes.values():
            check_class(path, self.base, self.what, self.names, self.base in (Optimizer, LRScheduler, SCORES))
        return path


NO_CHOICE = ("Network", "CosineLinear", "Normalize")  # parts of networks


def offered(base: Any, *rooms: ModuleType) -> dict[str, str]:
    """Return the paths of the public subclasses of a base in some packages, by name."""
    found = {
        name: f"{room.__name__}.{name}"
        for room in rooms
        for name, value in vars(room).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and name[0] != "_"
        and value not in (get_args(base) or (base,))
        and name not in NO_CHOICE
    }
    return dict(sorted(found.items()))


# Lightning's ReduceLROnPlateau in place of torch's: it knows its monitor
SCHEDULES = (torch.optim.lr_scheduler, lightning.pytorch.cli, hem.schedulers, hem.modules)
SCORES = FeatureScore | InputScore
#: by the last word of their option: ``--model.loss HEMLoss``, ``loss: {class_path: HEMLoss}``
REGISTRIES = {
    option.rpartition(".")[2]: Registry(option, what, base, offered(base, *rooms), *others)
    for option, what, base, rooms, *others in (
        ("model", "task", Task, (hem.modules,)),
        ("model.net", "network", nn.Module, (hem.networks,)),
        ("model.loss", "loss", nn.Module, (hem.losses,)),
        ("model.loss.losses", "loss", nn.Module, (hem.losses,)),  # those that SumLoss adds
        ("model.optimizer", "optimiser", Optimizer, (torch.optim,)),
        ("model.lr_scheduler", "schedule", LRScheduler, SCHEDULES),
        ("model.strategy", "strategy", Strategy, (hem.strategies,)),
        ("model.training", "training", AdversarialTraining, (hem.modules,)),
        ("model.attacks", "attack", Attack, (hem.attacks,), {}, hem.attacks.FORMER),
        ("model.scores", "rejection score", SCORES, (hem.rejection,), LOGIT_SCORES, hem.rejection.FORMER),
        ("model.corrupted", "set of corrupted images", CorruptedImages, (hem.datamodules,)),
        ("data", "data module", ImageDataModule, (hem.datamodules,)),
        ("data.dataset", "data set", MaskDataset, (hem.datamodules,)),
        ("data.subset", "subset", Subset, (hem.datamodules,)),
        ("data.sampling", "sampling", Sampling, (hem.datamodules,)),
        ("trainer.callbacks", "callback", Callback, (lightning.pytorch.callbacks,)),
        # our CSVLogger in place of Lightning's
        ("trainer.logger", "logger", Logger, (lightning.pytorch.loggers, hem.runs)),
    )
}


def parameters(class_path: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class, those of its bases included where it passes ``**kwargs`` on."""
    taken: dict[str, inspect.Parameter] = {}
    for base in class_of(class_path).__mro__[:-1]:
        if "__init__" in vars(base):
            found = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
            taken = {p.name: p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} | taken
            if not any(p.kind is p.VAR_KEYWORD for p in found):
                break
    return taken


def class_of(class_path: str) -> type:
    """Return the class that a path names."""
    module, _, name = class_path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
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
        >>> qualified(["fit", "--model.net", "MLP", "--model.loss=HEMLoss", "--model.attacks", "[FGSM]"])[2:]
        ['hem.networks.MLP', '--model.loss=hem.losses.HEMLoss', '--model.attacks', "['hem.attacks.FGSM']"]
    """
    out: list[str] = []
    for argument in args:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        words = (option or (out[-1] if out else "")).strip("-+").split(".")
        while words[-1:] and words[-1] in ("class_path", "help"):
            words.pop()
        registry = REGISTRIES.get(words[-1]) if words else None
        # `trainer.strategy` is Lightning's
        if registry and (words[0] in ("model", "data") or registry.option == ".".join(words)):
            listed = yaml.safe_load(value) if value.startswith("[") else value
            found = _spelt_out(listed, words[-1])
            argument = f"{option}{equals}{value if found == listed else found}"
        out.append(argument)
    return out


def spelt_out(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a config says with our own class names spelt out, as :func:`qualified` does for arguments.

    Raises:
        Unusable: If a class is named by a path that leads to none.

    Example:
        >>> spelt_out({"model": {"init_args": {"net": {"class_path": "MLP"}, "loss": "HEMLoss"}}})
        {'model': {'init_args': {'net': {'class_path': 'hem.networks.MLP'}, 'loss': 'hem.losses.HEMLoss'}}}
    """
    return {key: _spelt_out(value, key) if key in ("model", "data") else value for key, value in content.items()}


def _spelt_out(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _spelt_out(each, key if name == "class_path" else str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_spelt_out(each, key) for each in value]
    return REGISTRIES[key].path(value) if key in REGISTRIES else value
