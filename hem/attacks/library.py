"""Import of pyautoattack, which computes AutoAttack and Square."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NORMS = {"linf": "Linf", "l2": "L2"}  #: by the library's names


def library() -> Any:
    """Return the package that has AutoAttack.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pyautoattack.square
    except ImportError as error:
        raise ImportError(
            "AutoAttack and Square come with the package pyautoattack, which is not installed: "
            "pip install 'hem-loss[attack]'."
        ) from error
    return pyautoattack


@contextmanager
def seeding(device: torch.device) -> Iterator[None]:
    """Restore the global random generators and the tracer, which the library changes."""
    tracer = sys.gettrace()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        sys.settrace(tracer)
