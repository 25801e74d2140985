"""Choice of the kernels for given logits."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

from hem.losses.kernels import native
from hem.losses.samples import traced

_PLAIN = (Tensor, nn.Parameter, type(None))


@functools.cache
def available(device: str, dtype: torch.dtype) -> ModuleType | None:
    """Return the module of kernels for a type of device and a dtype; None: there is none.

    Raises:
        ValueError: If ``HEM_KERNEL`` is none of c, triton and plain.
    """
    choice = os.environ.get("HEM_KERNEL") or {"cpu": "c", "cuda": "triton"}.get(device, "plain")
    if choice not in ("c", "triton", "plain"):
        raise ValueError(f"Expected HEM_KERNEL to be c, triton or plain, or not to be set, got {choice!r}.")
    if choice == "c" and native.runs(device, dtype):
        return native
    if choice == "triton" and find_spec("triton"):
        from hem.losses.kernels import cuda  # imported late: Triton takes a while to load

        return cuda if cuda.runs(device, dtype) else None
    return None


def implementation(input: Tensor) -> ModuleType:
    """Return the module of kernels for logits.

    Raises:
        TypeError: If there is none.
    """
    kernels = available(input.device.type, input.dtype)
    if kernels is None:
        raise TypeError(
            f"Expected logits that a kernel takes, got {input.dtype} on {input.device}: ask backend(input) first."
        )
    return kernels


def backend(
    input: Tensor, target: Tensor | None = None, *constants: float | Tensor | None
) -> Literal["c", "triton", "plain"]:
    """Return the implementation for a margin loss of these logits outside ``torch.compile``."""
    tensors = [value for value in constants if isinstance(value, Tensor)]
    if (
        traced()
        or dispatch_modes()
        or forward_ad._current_level >= 0
        or input.is_neg()
        or any(value.requires_grad for value in tensors)  # the kernels have no gradient for them
        # they read memory, which tensor subclasses need not have
        or any(type(value) not in _PLAIN for value in (input, target, *tensors))
    ):
        return "plain"
    kernels = available(input.device.type, input.dtype)
    return "plain" if kernels is None else "c" if kernels is native else "triton"
