"""Names in configs: near ones for a misspelt name, and what a name of former versions stands for."""

import difflib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

Former = Mapping[str, tuple[type, Mapping[str, Any]]]  #: a name of former versions: its class now, and arguments


def near(word: str, names: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the names that look like the word, and ``""`` where none does.

    Example:
        >>> near("max_logits", ["msp", "max_logit"])
        "; did you mean 'max_logit'?"
        >>> near("hem", ["CrossEntropyLoss", "HEMLoss"])
        "; did you mean 'HEMLoss'?"
    """
    lower = {name.lower(): name for name in names}
    found = [lower[match] for match in difflib.get_close_matches(word.lower(), lower, n=2, cutoff=0.6)]
    found += [name for key, name in lower.items() if key.startswith(word.lower()) and name not in found][:2]
    return f"; did you mean {' or '.join(repr(name) for name in found)}?" if found else ""


def check_name(name: str, names: Iterable[str], what: str) -> None:
    """Refuse a name that there is none of, with those that look like it and with all that there are.

    Args:
        name: What the user wrote.
        names: What there is.
        what: What it is the name of, for the sentence.

    Raises:
        ValueError: ``name`` is not among ``names``.

    Example:
        >>> check_name("gausian_noise", ["gaussian_noise", "fog"], "corruption")
        Traceback (most recent call last):
        ValueError: Unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'? Available: gaussian_noise, fog.
    """
    names = list(names)
    if name not in names:
        raise ValueError(f"Unknown {what} '{name}'{near(name, names) or '.'} Available: {', '.join(names)}.")


def former(name: str, table: Former, what: str) -> Any:
    """Return the object that a name of former versions stands for, with a warning that says its class.

    Args:
        name: What the user wrote.
        table: The names, their classes and arguments.
        what: What it is the name of, for the sentence.

    Raises:
        ValueError: ``name`` is not among them.
    """
    check_name(name, table, what)
    kind, given = table[name]
    room = ".".join(kind.__module__.split(".")[:2])
    warnings.warn(f"The {what} '{name}' is a class by now: {room}.{kind.__name__}.", FutureWarning, stacklevel=3)
    return kind(**given)
