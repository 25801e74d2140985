"""Import of pytorch-ood, which computes the scores that need more than logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def library(score: str) -> Any:
    """Return the module of detectors.

    Args:
        score: What needs them.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import pytorch_ood.detector
    except ImportError as error:
        raise ImportError(
            f"The score '{score}' is computed by pytorch-ood, which is not installed: pip install 'hem-loss[ood]'."
        ) from error
    return pytorch_ood.detector


@contextmanager
def in_float64() -> Iterator[None]:
    """Make new tensors float64: the library inverts a sum of squares, which float32 makes singular."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
