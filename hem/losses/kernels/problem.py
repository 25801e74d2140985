"""What a kernel is asked to compute."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 7  # fields of a Problem before its tensors


class Problem(NamedTuple):
    """An evaluation of a margin loss; the first half of ``struct problem`` in ``margin.c``, in its order.

    The logits lie in memory as ``(images, classes, pixels)``, or with one pixel as ``(samples, classes)``.
    """

    images: int
    classes: int
    pixels: int
    ignore_index: int
    high: bool  # HEM; otherwise multi-margin
    mean: bool  # reduce by the mean; otherwise by the sum, or not at all
    margin: float  # for all classes, unless `margins` is given
    margins: Tensor | None  # (C)
    weight: Tensor | None  # (C)
    input: Tensor
    target: Tensor  # int64, contiguous


def layout(input: Tensor) -> tuple[int, int, int] | None:
    """Return images, classes and pixels of logits ``(N, C, ...)`` as they lie in memory; None: neither way."""
    images, classes, *spatial = input.shape
    if input.is_contiguous():
        return images, classes, prod(spatial)
    if input.movedim(1, -1).is_contiguous():
        return images * prod(spatial), classes, 1
    return None


def real(input: Tensor) -> torch.dtype:
    """Return the dtype to compute in."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def laid(input: Tensor) -> Tensor:
    """Return the logits as a kernel wants them, a copy if they lie in neither way."""
    return input if layout(input) is not None else input.contiguous()


def pose(
    input: Tensor,
    target: Tensor,
    margins: Tensor | None,
    weight: Tensor | None,
    margin: float,
    ignore_index: int,
    high: bool,
    reduction: str,
) -> Problem:
    """Return the problem of logits that are :func:`laid`, and of what a loss is given beside them."""
    shape = layout(input)
    assert shape is not None
    return Problem(*shape, ignore_index, high, reduction == "mean", margin, margins, weight, input, target.contiguous())
