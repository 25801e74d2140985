"""C kernels for a CPU, ``margin.c`` and ``expected.c``, compiled by the machine's compiler at first use.

The name of the library in the user's cache folder is a hash of the source, the compiler's command and the processor, so
different machines may share a home folder and a new version never loads an old binary. If anything fails (no compiler,
an unknown flag, no place to write), there is no library.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hem.losses.kernels.problem import Problem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SOURCES = [Path(__file__).with_name(name) for name in ("margin.c", "expected.c")]
FLAGS = [
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # NaN and infinity are respected, but comparisons may be vectorised
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
]


class Arguments(ctypes.Structure):
    """Arguments of both kernels, ``struct problem`` of ``margin.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "classes", "pixels", "ignore_index", "high", "mean")),
        ("margin", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("margins", "weight", "input", "target")),
        *((name, ctypes.c_void_p) for name in ("threshold", "count", "losses", "loss", "mass", "upstream", "grad")),
        *((name, ctypes.c_int64) for name in ("upstream_step", "threads")),
    )


class Expected(ctypes.Structure):
    """Arguments of the kernels for class probabilities, ``struct expected`` of ``expected.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "classes", "pixels", "high")),
        ("margin", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("margins", "input", "shares", "losses", "slope")),
        ("threads", ctypes.c_int64),
    )


def processor() -> str:
    """Return a description of the processor, on which ``-march=native`` depends."""
    try:
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))))


def compiled(folder: Path) -> Path:
    """Return the path of the library in ``folder``, compiled if missing; a rename makes races of processes harmless."""
    command = (*os.environ.get("CC", "cc").split(), *FLAGS)
    key = hashlib.sha256("\0".join((*map(Path.read_text, SOURCES), *command, processor())).encode()).hexdigest()
    path = folder / f"margin-{key[:16]}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / path.name
            whole = (*command, *map(str, SOURCES), "-o", str(fresh), "-lm")
            subprocess.run(whole, check=True, capture_output=True, timeout=120)
            fresh.replace(path)
    return path


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library; None if it cannot be compiled."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return ctypes.CDLL(str(compiled(cache / "hem")))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


@functools.cache
def function(name: str, dtype: torch.dtype, arguments: type[ctypes.Structure]) -> Callable[[ctypes.Structure], int]:
    """Return a function of the library for a dtype of the logits."""
    found = library()
    assert found is not None
    kernel = found[f"{name}_{str(dtype).removeprefix('torch.')}"]
    kernel.argtypes, kernel.restype = (ctypes.POINTER(arguments),), ctypes.c_int64
    return kernel


def runs(device: str, dtype: torch.dtype) -> bool:
    """Return whether there is a kernel for a type of device and a dtype."""
    return device == "cpu" and dtype in DTYPES and library() is not None


def forward(problem: Problem, saved: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Fill ``saved`` and ``losses``; return sum or mean, mass, and the first sample whose label is no class, or -1."""
    loss, mass = saved.new_empty(()), saved.new_empty(())
    results = None if losses is None else losses.data_ptr(), loss.data_ptr(), mass.data_ptr(), None, None, 0
    wrong = function("forward", problem.input.dtype, Arguments)(_arguments(problem, saved, *results))
    if wrong < -1:
        raise MemoryError("The margin loss could not get 16 bytes for each 32768 logits.")
    return loss, mass, wrong


def backward(problem: Problem, saved: Tensor, mass: Tensor, upstream: Tensor, grad: Tensor) -> None:
    """Fill ``grad``."""
    results = None, None, mass.data_ptr(), upstream.data_ptr(), grad.data_ptr(), upstream.dim() > 0
    function("backward", problem.input.dtype, Arguments)(_arguments(problem, saved, *results))


def expected(problem: Problem, shares: Tensor, losses: Tensor, slope: Tensor) -> None:
    """Fill ``losses`` and ``slope``, their derivative by the logits; ``problem.target`` is not used."""
    given = _expected(problem, problem.input, shares, losses, slope)
    if function("expected", slope.dtype, Expected)(given) < -1:
        raise MemoryError("The margin loss could not get 50 bytes for each class.")


def scaled(problem: Problem, slope: Tensor, upstream: Tensor, grad: Tensor) -> None:
    """Fill ``grad`` with ``slope`` times the upstream gradient of each sample; 0 stays 0."""
    function("scaled", slope.dtype, Expected)(_expected(problem, slope, upstream, None, grad))


def _expected(problem: Problem, *tensors: Tensor | None) -> Expected:
    images, classes, pixels, _, high, _, margin, margins, *_ = problem
    places = [None if tensor is None else tensor.data_ptr() for tensor in (margins, *tensors)]
    return Expected(images, classes, pixels, high, margin, *places, torch.get_num_threads())


def _arguments(problem: Problem, saved: Tensor, *results: int | None) -> Arguments:
    *numbers, margins, weight, input, target = problem
    start = saved.data_ptr()
    return Arguments(
        *numbers,
        None if margins is None else margins.data_ptr(),
        None if weight is None else weight.data_ptr(),
        input.data_ptr(),
        target.data_ptr(),
        start,
        start + saved.shape[1] * saved.itemsize,
        *results,
        torch.get_num_threads(),
    )
