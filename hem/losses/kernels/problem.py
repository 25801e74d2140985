"""Arguments of a kernel."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 7  # number of fields of a Problem before its tensors


class Problem(NamedTuple):
    """Arguments of a margin loss: the first fields of ``struct problem`` in ``margin.c``, in its order.

    The layout of the logits in memory is ``(images, classes, pixels)``, or ``(samples, classes)`` if ``pixels`` is 1.
    """

    images: int
    classes: int
    pixels: int
    ignore_index: int
    high: bool  # True: HEM, False: multi-margin
    mean: bool  # True: reduce by the mean, False: by the sum, or not
    margin: float  # for all classes, unless `margins` is given
    margins: Tensor | None  # (C)
    weight: Tensor | None  # (C)
    input: Tensor
    target: Tensor  # int64, contiguous


def layout(input: Tensor) -> tuple[int, int, int] | None:
    """Return images, classes and pixels of logits ``(N, C, ...)`` by their layout in memory; None: another layout."""
    images, classes, *spatial = input.shape
    if input.is_contiguous():
        return images, classes, prod(spatial)
    if input.movedim(1, -1).is_contiguous():
        return images * prod(spatial), classes, 1
    return None


def real(input: Tensor) -> torch.dtype:
    """Return the dtype of the computation, float64 for float64 logits, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def laid(input: Tensor) -> Tensor:
    """Return the logits in a layout that kernels support, copied if necessary."""
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
    """Return the arguments of a kernel for logits that went through :func:`laid`, and the other arguments of a loss."""
    shape = layout(input)
    assert shape is not None
    return Problem(*shape, ignore_index, high, reduction == "mean", margin, margins, weight, input, target.contiguous())
