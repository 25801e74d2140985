"""What a kernel is asked to compute."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """One evaluation of a margin loss; the first half of ``struct problem`` in ``margin.c``, in its order.

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
    """Images, classes and pixels of logits ``(N, C, ...)`` as they lie in memory; None: neither way."""
    images, classes, *spatial = input.shape
    if input.is_contiguous():
        return images, classes, prod(spatial)
    if input.movedim(1, -1).is_contiguous():
        return images * prod(spatial), classes, 1
    return None


def real(input: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32
