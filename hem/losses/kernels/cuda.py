"""Triton kernels for a GPU; computation and saved numbers are those of ``margin.c``.

A program computes a tile of samples and classes. For logits in memory as ``(samples, C)`` (``ROWS``) the tile is a few
rows, for ``(images, C, pixels)`` a run of pixels for every class. If all classes fit into registers (``_tile``), the
loop over classes has a single iteration, the compiler merges the loads of both loops of the forward pass, and the
logits are read once; ``tests/losses/test_cuda_code.py`` checks this in the compiled code.

The number of classes is a constant to the compiler, as are the layout and the sizes of the tile: it omits the surplus
classes of a tile, whose size is a power of two, and loads 128 bits at a time where the alignment allows it. For that a
mask must not depend on data: ignored samples are read like others and masked afterwards.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (Triton interprets the annotations of its functions itself.)

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

from hem.losses.kernels.problem import Problem


@triton.jit
def _block(target, span, ignore_index, CLASSES: tl.constexpr, ROWS: tl.constexpr, SAMPLES: tl.constexpr):
    """Return number, existence, label, validity of the label, and first logit of this program's samples."""
    blocks = tl.cdiv(span, SAMPLES)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    inside = place < span
    sample = image * span + place
    label = tl.load(target + sample, mask=inside, other=ignore_index)
    known = (label >= 0) & (label < CLASSES) & (label != ignore_index)
    return sample, inside, label, known, sample * CLASSES if ROWS else image * CLASSES * span + place


@triton.jit
def _of_label(input, margins, margin, start, step, label, known, REAL: tl.constexpr):
    """Return z_y and the margin of each sample."""
    zy = tl.load(input + start + label * step, mask=known, other=0.0).to(REAL)
    m = tl.zeros(label.shape, REAL) + margin if margins is None else tl.load(margins + label, mask=known, other=0.0)
    return zy, m


@triton.jit
def _differences(input, start, step, read, zy, m, label, first, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """Return (z_j - z_y) + m of the classes from ``first`` on, a mask of the target, offsets, and a mask of classes."""
    c = first + tl.arange(0, WIDTH)[None, :]
    offset = start[:, None] + c.to(tl.int64) * step
    z = tl.load(input + offset, mask=read & (c < CLASSES), other=0.0).to(zy.dtype)
    return z - zy[:, None] + m[:, None], label.to(tl.int32)[:, None] == c, offset, c < CLASSES


@triton.jit
def _errors(input, start, step, read, zy, m, label, first, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """Return the errors of the classes from ``first`` on; a NaN stays."""
    e, of_target, _, there = _differences(input, start, step, read, zy, m, label, first, CLASSES, WIDTH)
    return tl.where(of_target | ~there, 0.0, tl.where(e < 0, 0.0, e))


@triton.jit
def _mean(total, mass):
    """Return total / mass, 0 if the mass is 0."""
    return total / tl.where(mass == 0, float("inf"), mass)


@triton.jit(do_not_specialize=["margin", "ignore_index"])
def _forward(
    input, target, margins, weight, saved, losses, totals, loss, mass, margin, span, number, ignore_index,
    CLASSES: tl.constexpr, HIGH: tl.constexpr, MEAN: tl.constexpr, ROWS: tl.constexpr, REAL: tl.constexpr,
    LEAST: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample, inside, label, known, start = _block(target, span, ignore_index, CLASSES, ROWS, SAMPLES)
    step = 1 if ROWS else span
    zy, m = _of_label(input, margins, margin, start, step, label, known, REAL)
    read = inside[:, None]
    total = tl.zeros((SAMPLES,), REAL)
    most = tl.zeros((SAMPLES,), REAL)
    for first in range(0, CLASSES, WIDTH):
        e = _errors(input, start, step, read, zy, m, label, first, CLASSES, WIDTH)
        total += tl.sum(e, 1)
        most = tl.maximum(most, tl.max(e, 1))
    # correctly rounded, as on a CPU, for errors equal to the mean; `/` is so for float64 only
    limit = total / CLASSES if REAL == tl.float64 else tl.div_rn(total, tl.full((SAMPLES,), CLASSES, REAL))  # noqa: SIM300
    limit = tl.where(limit > most, most, limit)  # the sum of errors overflows near the maximum of REAL
    # The smallest positive number: the threshold is above 0, which is no error, so one comparison suffices.
    least = tl.full((SAMPLES,), LEAST, REAL)
    limit = tl.where(limit < least if HIGH else limit == limit, least, limit)
    total = tl.zeros((SAMPLES,), REAL)
    k = tl.zeros((SAMPLES,), REAL)
    for first in range(0, CLASSES, WIDTH):
        e = _errors(input, start, step, read, zy, m, label, first, CLASSES, WIDTH)
        keep = ~(e < limit[:, None])
        total += tl.sum(tl.where(keep, e, 0.0), 1)
        k += tl.sum(tl.where(keep, 1.0, 0.0), 1)
    k = tl.where(known, k, 0.0)
    l = tl.where(known, total, 0.0)  # noqa: E741
    l = l / (tl.where(k == 0, 1.0, k) if HIGH else CLASSES)  # noqa: E741
    l = tl.where(inside & ~known & (label != ignore_index), float("nan"), l)  # noqa: E741
    w = known.to(REAL) if weight is None else tl.load(weight + label, mask=known, other=0.0)
    tl.store(saved + sample, limit, mask=inside)
    tl.store(saved + number + sample, tl.where(l == l, k, l), mask=inside)
    if losses is not None:
        tl.store(losses + sample, w * l, mask=inside)
    of_all = tl.sum(w * l, 0)
    of_mass = tl.sum(tl.where(l == 0, 0.0, w) if HIGH else known.to(REAL), 0)
    if totals is None:
        tl.store(loss, _mean(of_all, of_mass) if MEAN else of_all)
        tl.store(mass, of_mass)
    else:
        tl.store(totals + tl.program_id(0), of_all)
        tl.store(totals + tl.num_programs(0) + tl.program_id(0), of_mass)


@triton.jit(do_not_specialize=["programs"])
def _finish(totals, loss, mass, programs, MEAN: tl.constexpr, WIDTH: tl.constexpr):
    """Store sum or mean, and mass, from the totals of all programs in a fixed order, which makes them deterministic."""
    i = tl.arange(0, WIDTH)
    of_all = tl.zeros((WIDTH,), totals.dtype.element_ty)
    of_mass = tl.zeros((WIDTH,), totals.dtype.element_ty)
    for first in range(0, programs, WIDTH):
        inside = first + i < programs
        of_all += tl.load(totals + first + i, mask=inside, other=0.0)
        of_mass += tl.load(totals + programs + first + i, mask=inside, other=0.0)
    of_all, of_mass = tl.sum(of_all, 0), tl.sum(of_mass, 0)
    tl.store(loss, _mean(of_all, of_mass) if MEAN else of_all)
    tl.store(mass, of_mass)


@triton.jit(do_not_specialize=["margin", "ignore_index"])
def _backward(
    input, target, margins, weight, saved, upstream, mass, grad, margin, span, number, ignore_index,
    EACH: tl.constexpr, CLASSES: tl.constexpr, HIGH: tl.constexpr, MEAN: tl.constexpr, ROWS: tl.constexpr,
    REAL: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample, inside, label, known, start = _block(target, span, ignore_index, CLASSES, ROWS, SAMPLES)
    step = 1 if ROWS else span
    limit = tl.load(saved + sample, mask=inside, other=0.0)
    k = tl.load(saved + number + sample, mask=inside, other=0.0)
    zy, m = _of_label(input, margins, margin, start, step, label, known, REAL)
    up = tl.load(upstream + sample, mask=inside, other=0.0) if EACH else tl.load(upstream)
    if MEAN:
        up = _mean(up, tl.load(mass))
    if weight is not None:
        up *= tl.load(weight + label, mask=known, other=0.0)
    up = up / (tl.where(k == 0, 1.0, k) if HIGH else tl.where(k == k, CLASSES, k))
    up = tl.where(k == 0, 0.0, up)  # whatever the upstream gradient is
    down = tl.where(k == 0, 0.0, -up * k)
    limit = tl.where(k == k, limit, k)  # if the loss of a sample is NaN, all its errors are kept
    if ROWS:
        read = (k != 0)[:, None]
    else:  # eight pixels share a mask, so that loads stay wide; eight neighbours without error are not read
        push = tl.reshape((inside & (k != 0)).to(tl.int32), (SAMPLES // 8, 8))
        push = tl.reshape(tl.broadcast_to(tl.max(push, 1)[:, None], (SAMPLES // 8, 8)), (SAMPLES,))
        read = tl.max_constancy(push != 0, (8,))[:, None]
    for first in range(0, CLASSES, WIDTH):
        e, of_target, offset, there = _differences(input, start, step, read, zy, m, label, first, CLASSES, WIDTH)
        g = tl.where(of_target, down[:, None], tl.where(e < limit[:, None], 0.0, up[:, None]))
        tl.store(grad + offset, g.to(grad.dtype.element_ty), mask=inside[:, None] & there)


def runs(device: str, dtype: torch.dtype) -> bool:
    """Return whether there is a kernel for a device type and a dtype; Triton's interpreter, for tests, needs a CPU."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return False
    return device == ("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def forward(problem: Problem, saved: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Fill ``saved`` and ``losses``; return sum or mean, mass, and -1 in place of the first wrong label."""
    programs, tensors, numbers, sizes, warps = _plan(problem, saved, backward=False)
    if not programs:
        return saved.new_zeros(()), saved.new_zeros(()), -1
    loss, mass = saved.new_empty(()), saved.new_empty(())
    totals = saved.new_empty((2, programs)) if programs > 1 else None
    least = 5e-324 if saved.dtype == torch.float64 else 2**-149
    with _device(problem.input):
        results = (losses, totals, loss, mass)
        _launch(_forward, programs, (*tensors, saved, *results), numbers, (*sizes[:5], least, *sizes[5:]), warps)
        if totals is not None:
            if programs > 10_000:  # too many totals for one program
                totals = totals.sum(1, keepdim=True)
            _launch(_finish, 1, (totals, loss, mass), (totals.shape[1],), (problem.mean, 1024), 4)
    return loss, mass, -1


def backward(problem: Problem, saved: Tensor, mass: Tensor, upstream: Tensor, grad: Tensor) -> None:
    """Fill ``grad``."""
    programs, tensors, numbers, sizes, warps = _plan(problem, saved, backward=True)
    if programs:
        with _device(problem.input):
            tensors = (*tensors, saved, upstream, mass, grad)
            _launch(_backward, programs, tensors, numbers, (upstream.dim() > 0, *sizes), warps)


def _device(input: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which the device of the logits is the current one; comparing costs less than setting it."""
    same = not input.is_cuda or input.get_device() == torch.cuda.current_device()
    return nullcontext() if same else torch.cuda.device_of(input)


_known: dict[tuple[Any, ...], Any] = {}  # compiled kernels by what they are specialised for


def _launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    constants: tuple[Any, ...],
    warps: int,
) -> None:
    """Launch a kernel, from our own cache of compiled kernels where possible.

    Triton determines at each launch how to specialise a kernel, which takes longer than the launch itself. If tensors
    are aligned to 16 bytes and numbers are neither 1 nor of 64 bits, the specialisation is a function of the key used
    here.
    """
    bits = 0
    kinds: list[Any] = []
    for tensor in tensors:
        if tensor is not None:
            bits |= tensor.data_ptr()
        kinds.append(None if tensor is None else tensor.dtype)
    usual = bits % 16 == 0
    for number in numbers:
        if type(number) is int:
            usual &= number != 1 and -(2**31) <= number < 2**31
            kinds.append(number % 16 == 0)
    first: Any = tensors[0]
    key = (id(kernel), first.get_device(), warps, *constants, *kinds)
    found = _known.get(key) if usual else None
    if found is not None:
        found[programs, 1, 1](*tensors, *numbers, *constants)
        return
    found = kernel[(programs,)](*tensors, *numbers, *constants, num_warps=warps, enable_fp_fusion=False)
    if usual and isinstance(found, CompiledKernel):
        _known[key] = found


def _plan(
    problem: Problem, saved: Tensor, *, backward: bool
) -> tuple[int, tuple[Tensor | None, ...], tuple[float, ...], tuple[Any, ...], int]:
    """Return the number of programs, the first tensors of both kernels, their numbers and constants, and the warps."""
    images, classes, pixels, ignore_index, high, mean, margin, margins, weight, input, target = problem
    double = saved.dtype == torch.float64
    if double and margins is None:
        margins = saved.new_full((classes,), margin)  # Triton passes a Python float as float32
    rows = pixels == 1
    span, images = (images, 1) if rows else (pixels, images)
    samples, width, warps = _tile(classes, span, rows, input.element_size(), backward)
    numbers = (margin, span, images * span, ignore_index)
    sizes = (classes, high, mean, rows, tl.float64 if double else tl.float32, samples, width)
    return images * -(-span // samples), (input, target, margins, weight), numbers, sizes, warps


@functools.cache
def _tile(classes: int, span: int, rows: bool, itemsize: int, backward: bool) -> tuple[int, int, int]:
    """Return the samples, classes and warps of a program.

    The forward pass needs all classes in registers; the backward pass reads them once anyway and gains from many
    programs.
    """
    width = 1 << (classes - 1).bit_length()
    if rows:
        most = 4096 if backward else 16384 if itemsize == 8 else 32768
        width = width if width <= most else min(most, 8192)
        samples = 128 if width <= 16 else max(1024 // width, 1)
        return samples, width, min(max(samples * width // 512, 4), 32)
    if width <= 32:  # each thread has all classes of as many pixels as fit into 128 bits
        samples, warps = (1024 if itemsize == 2 and width <= 16 and not backward else 512), 4
    elif width <= 256:
        samples, warps = 16384 // max(width, 128), 4 if width == 64 else 8
    else:
        samples, width, warps = 128, 64, 4
    samples = samples // 2 if itemsize == 8 else samples
    return min(samples, max(1 << (span - 1).bit_length(), 16)), width, warps
