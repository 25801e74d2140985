"""The kernels for a GPU, in Triton: the mathematics and the saved numbers of ``margin.c``.

A program takes a block of samples and walks over the classes, a few at a time. In memory as ``(samples, C)``
the block is a few rows, which it follows in long strides; as ``(images, C, pixels)`` it is a run of pixels,
followed class by class. Of the strides of samples and classes one is 1: that is all that tells the two apart.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (Triton reads the annotations of its functions as its own.)

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hem.losses.kernels.problem import Problem


@triton.jit
def _locate(
    input, target, margins, margin, image_stride, span, sample_stride, class_stride, classes,
    ignore_index, SAMPLES: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """This program's samples: number, whether there is one, label, whether a class, logits, z_y, margin."""
    blocks = tl.cdiv(span, SAMPLES)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    inside = place < span
    sample = image * span + place
    label = tl.load(target + sample, mask=inside, other=ignore_index)
    known = (label >= 0) & (label < classes) & (label != ignore_index)
    logits = image * image_stride + place * sample_stride
    zy = tl.load(input + logits + label * class_stride, mask=known, other=0.0).to(REAL)
    m = tl.zeros((SAMPLES,), REAL) + margin if margins is None else tl.load(margins + label, mask=known, other=0.0)
    return sample, inside, label, known, logits, zy, m


@triton.jit
def _errors(input, logits, zy, m, label, mask, first, class_stride, classes, CLASSES: tl.constexpr, REAL: tl.constexpr):
    """The errors of the classes from ``first`` on, and where their logits lie; a NaN stays."""
    c = first + tl.arange(0, CLASSES).to(tl.int64)
    mask = mask[:, None] & (c < classes)[None, :]
    offset = logits[:, None] + (c * class_stride)[None, :]
    e = tl.load(input + offset, mask=mask, other=0.0).to(REAL) - zy[:, None] + m[:, None]
    target = label[:, None] == c[None, :]
    return tl.where((e < 0) | target | ~mask, 0.0, e), target, offset


@triton.jit
def _forward(
    input, target, margins, weight, threshold, count, losses, totals, margin,
    image_stride, span, sample_stride, class_stride, classes, ignore_index,
    HIGH: tl.constexpr, REAL: tl.constexpr, SAMPLES: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    sample, inside, label, known, logits, zy, m = _locate(
        input, target, margins, margin, image_stride, span, sample_stride, class_stride, classes,
        ignore_index, SAMPLES, REAL,
    )  # fmt: skip
    total = tl.zeros((SAMPLES, CLASSES), REAL)
    largest = tl.zeros((SAMPLES, CLASSES), REAL)
    for first in range(0, classes, CLASSES):
        e, _, _ = _errors(input, logits, zy, m, label, known, first, class_stride, classes, CLASSES, REAL)
        total += e
        largest = tl.maximum(largest, e)
    limit = tl.sum(total, 1) / classes
    most = tl.max(largest, 1)
    limit = tl.where(limit > most, most, limit)  # the sum of errors near the end of REAL overflows
    if not HIGH:
        limit = tl.where(limit == limit, 0.0, limit)
    total = tl.zeros((SAMPLES, CLASSES), REAL)
    number = tl.zeros((SAMPLES, CLASSES), REAL)
    for first in range(0, classes, CLASSES):
        e, _, _ = _errors(input, logits, zy, m, label, known, first, class_stride, classes, CLASSES, REAL)
        keep = (e != 0) & ~(e < limit[:, None])
        total += tl.where(keep, e, 0.0)
        number += keep.to(REAL)
    k = tl.sum(number, 1)
    l = tl.sum(total, 1) / (tl.where(k == 0, 1.0, k) if HIGH else classes)  # noqa: E741
    wrong = inside & ~known & (label != ignore_index)
    l = tl.where(wrong, float("nan"), l)  # noqa: E741
    w = known.to(REAL) if weight is None else tl.load(weight + label, mask=known, other=0.0)
    tl.store(threshold + sample, limit, mask=inside)
    tl.store(count + sample, tl.where(l == l, k, l), mask=inside)
    if losses is not None:
        tl.store(losses + sample, w * l, mask=inside)
    tl.store(totals + tl.program_id(0), tl.sum(w * l, 0))
    mass = tl.where(l == 0, 0.0, w) if HIGH else known.to(REAL)
    tl.store(totals + tl.num_programs(0) + tl.program_id(0), tl.sum(mass, 0))


@triton.jit
def _backward(
    input, target, margins, weight, threshold, count, upstream, grad, margin,
    image_stride, span, sample_stride, class_stride, classes, ignore_index,
    EACH: tl.constexpr, HIGH: tl.constexpr, REAL: tl.constexpr, SAMPLES: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    sample, inside, label, known, logits, zy, m = _locate(
        input, target, margins, margin, image_stride, span, sample_stride, class_stride, classes,
        ignore_index, SAMPLES, REAL,
    )  # fmt: skip
    limit = tl.load(threshold + sample, mask=inside, other=0.0)
    k = tl.load(count + sample, mask=inside, other=0.0)
    up = tl.load(upstream + sample, mask=inside, other=0.0) if EACH else tl.load(upstream)
    if weight is not None:
        up *= tl.load(weight + label, mask=known, other=0.0)
    up = up / (tl.where(k == 0, 1.0, k) if HIGH else tl.where(k == k, classes, k))
    up = tl.where(k == 0, 0.0, up)  # whatever the upstream gradient is
    down = tl.where(k == 0, 0.0, -up * k)
    for first in range(0, classes, CLASSES):
        e, target_class, offset = _errors(
            input, logits, zy, m, label, known & (k != 0), first, class_stride, classes, CLASSES, REAL
        )
        keep = (e != 0) & ~(e < limit[:, None]) | (k != k)[:, None]
        g = tl.where(target_class, down[:, None], tl.where(keep, up[:, None], 0.0))
        c = first + tl.arange(0, CLASSES)
        tl.store(grad + offset, g.to(grad.dtype.element_ty), mask=inside[:, None] & (c < classes)[None, :])


def runs(device: str, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for such logits. Triton's interpreter, for tests, runs on a CPU."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return False
    return device == ("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def forward(problem: Problem, saved: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Fill ``saved`` and ``losses``; give sum or mean, mass, and -1: a label that is no class makes a loss NaN."""
    programs, arguments, sizes = _launch(problem, saved)
    totals = saved.new_zeros((2, programs))  # summed in a fixed order: the same bits every time
    if programs:
        with torch.cuda.device_of(problem.input):  # which need not be the current one
            _forward[(programs,)](*arguments[:6], losses, totals, *arguments[6:], **sizes)
    loss, mass = totals.sum(1).unbind()
    return loss / _divisor(mass) if problem.mean else loss, mass, -1


def backward(problem: Problem, saved: Tensor, mass: Tensor, upstream: Tensor, grad: Tensor) -> None:
    """Fill ``grad``."""
    programs, arguments, sizes = _launch(problem, saved)
    if programs:
        sizes["EACH"] = upstream.dim() > 0
        upstream = upstream / _divisor(mass) if problem.mean else upstream
        with torch.cuda.device_of(problem.input):
            _backward[(programs,)](*arguments[:6], upstream, grad, *arguments[6:], **sizes)


def _divisor(mass: Tensor) -> Tensor:
    """The denominator of the mean; where it is 0, infinity, which makes 0 of whatever it divides."""
    return torch.where(mass != 0, mass, torch.inf)


def _launch(problem: Problem, saved: Tensor) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """How many programs, the arguments of both kernels, and what they are compiled for."""
    images, classes, pixels, ignore_index, high, _, margin, margins, weight, input, target = problem
    if saved.dtype == torch.float64 and margins is None:
        margins = saved.new_full((classes,), margin)  # Triton takes a bare number in float32
    if pixels == 1:
        images, span, strides = 1, images, (0, images, classes, 1)
        width = min(triton.next_power_of_2(max(classes, 1)), 4096)
        samples = max(1024 // width, 1)
    else:
        span, strides = pixels, (classes * pixels, pixels, 1, pixels)
        samples = min(max(triton.next_power_of_2(max(pixels, 1)), 16), 512)
        width = min(triton.next_power_of_2(max(classes, 1)), 2048 // samples)
    arguments = (input, target, margins, weight, saved[0], saved[1], margin, *strides, classes, ignore_index)
    sizes = {"HIGH": high, "SAMPLES": samples, "CLASSES": width, "num_warps": 8 if width >= 2048 else 4}
    sizes["REAL"] = tl.float64 if saved.dtype == torch.float64 else tl.float32
    return images * triton.cdiv(span, samples), arguments, sizes
