"""Import a user's own class by its path, or say why that fails: the parser would hide the reason."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable
from types import ModuleType
from typing import Any, get_args

from hem.names import near


class Unusable(ValueError):
    """A class that an argument or a config names cannot be used."""


def check_class(path: str, base: Any, what: str, names: Iterable[str], functions: bool = False) -> None:
    """Refuse a path that leads to no class of a kind.

    Args:
        path: ``module.Class``; the module may lie in the current folder.
        base: What the class must derive from; of several, joined by ``|``, one.
        what: The kind in words, for the sentence.
        names: Our own classes of the kind, for near names.
        functions: Whether a function that makes one serves as well.

    Raises:
        Unusable: If the module is not there or cannot be imported, or has no such class.

    Example:
        >>> check_class("math.Sqrt", int, "number", [])
        Traceback (most recent call last):
        hem.cli.own.Unusable: math has no class 'Sqrt'.
    """
    module = imported(path, what, names)
    name = path.rpartition(".")[2]
    if not hasattr(module, name):
        there = [each for each, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        raise Unusable(f"{module.__name__} has no class '{name}'{near(name, there) or '.'}")
    found = getattr(module, name)
    if functions and callable(found) and not isinstance(found, type):
        return
    if not isinstance(found, type):
        by_name = "; one of torchvision or timm comes by --model.net Named --model.net.name NAME"
        raise Unusable(f"Expected a class for the {what}, got {path}{by_name if what == 'network' else ''}.")
    if not issubclass(found, base):
        base = (*get_args(base), base)[0]
        inside = base.__module__.partition(".modules.module")[0]  # torch.nn's
        room = inside.rpartition(".")[0] if inside.startswith("hem.") else inside
        raise Unusable(f"{path} is no {what}: derive it from {room}.{base.__qualname__}.")


def imported(path: str, what: str, names: Iterable[str]) -> ModuleType:
    """Import the module of a class.

    Raises:
        Unusable: If that fails, whatever the reason: it is code of somebody else's.
    """
    module = path.rpartition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):  # itself, not what it imports
            raise Unusable(
                f"unknown {what} '{path}': there is no module '{error.name}' in the current folder or among the "
                f"installed packages{near(path.rpartition('.')[2], names)}"
            ) from None
        raise Unusable(f"{path} cannot be imported: {told(error)}") from error
    except Exception as error:
        raise Unusable(f"{path} cannot be imported: {told(error)}") from error


def told(error: BaseException) -> str:
    """Return what an error says, and the line that it comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{at}"
