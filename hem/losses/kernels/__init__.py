"""Fused kernels of the margin losses HEM, HEM+ and multi-margin.

In plain torch (:mod:`hem.losses.margin`) these losses take a dozen passes over the logits and keep several copies of
them. The kernels read the logits once in the forward and once in the backward pass, write the gradient once, and save
two numbers per sample: the threshold that an error must reach, and the number of errors that do. For class
probabilities there is another kernel, on a CPU only, which saves the gradient of every sample.

The logits decide which implementation runs, see :func:`backend`: on a CPU the C kernels ``margin.c`` and
``expected.c``, compiled into the user's cache folder at first use if the machine has a compiler; on a GPU the Triton
kernel ``cuda.py`` if Triton is installed; everywhere else, and while torch traces or transforms functions, plain torch.
The environment variable ``HEM_KERNEL=plain`` forces the latter. Under ``torch.compile``, losses of labels use
``operator.py``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hem.losses.kernels import choice, fused
from hem.losses.kernels.fused import expected_margin_loss
from hem.losses.kernels.problem import real
from hem.losses.reduction import Reduction

__all__ = ["backend", "compiling", "expected_margin_loss", "margin_loss"]


def compiling() -> bool:
    """Return whether ``torch.compile`` is tracing, and no other tracer or transform is active."""
    # the flag behind torch.compiler.is_exporting(), which torch 2.11 takes for true wherever it compiles
    return torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag


def backend(
    input: Tensor, target: Tensor | None = None, *constants: float | Tensor | None
) -> Literal["c", "triton", "plain", "operator"]:
    """Return which implementation computes a margin loss of these logits.

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Target of the loss.
        constants: Margin and class weights, for which the kernels have no gradient.

    Returns:
        ``"c"``, ``"triton"`` or ``"plain"``; ``"operator"`` under ``torch.compile``, which chooses when it runs.

    Example:
        >>> backend(torch.zeros(2, 3, device="meta"))
        'plain'
    """
    if not compiling():
        return choice.backend(input, target, *constants)
    from hem.losses.kernels import operator  # imported late: it loads torch's compiler

    small = input.device.type == "cpu" and input.numel() < 2048  # dispatching an operator takes longer
    plain = small or type(input) is not Tensor or torch._C._are_functorch_transforms_active()
    if plain or any(value.requires_grad for value in constants if isinstance(value, Tensor)):
        return "plain"
    return "operator" if operator.available(input.device.type, input.dtype) else "plain"


def margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    *,
    margin: float | Tensor,
    high: bool = True,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Compute HEM, HEM+ (``high``) or multi-margin (not ``high``) by the kernel that :func:`backend` names.

    With z the logits, y the target and m its margin, for each sample:

        e_j = max(0, z_j - z_y + m) for j ≠ y,  e_y = 0
        l   = mean of the e_j > 0 that reach Σ_j e_j / C (``high``), or Σ_j e_j / C

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``; copied if neither contiguous nor channels-last.
        target: Class indices, int64, ``(N)`` or ``(N, d1, ..., dK)``.
        weight: Factor per class, ``(C)``.
        ignore_index: Samples with this index give 0 with a gradient of exactly 0.
        margin: One margin for all classes, or the margin m_y of each target class, ``(C)``.
        high: Whether errors below the sample's mean error are left out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.

    Returns:
        The losses w_y l of the samples, their sum or their mean, and the denominator of the mean, a constant to
        autograd: Σ w_y [l ≠ 0] (``high``) or the number of labelled samples. In float32, for float64 logits in
        float64.

    Raises:
        ValueError: If a label is no class. On a GPU, to avoid a synchronisation, the loss of the sample is NaN instead.
        TypeError: If there is no kernel for such logits.
    """
    margins = None
    if isinstance(margin, Tensor) and margin.dim() == 1:
        margins, margin = margin.to(input.device, real(input)).contiguous(), 0.0
    if weight is not None:
        weight = weight.to(input.device, real(input)).contiguous()
    given = (input, target, margins, weight, float(margin), ignore_index, high, reduction)
    if not compiling():
        return fused.margin_loss(*given)
    from hem.losses.kernels import operator  # imported late: it loads torch's compiler

    loss, mass, _ = operator.margin_loss(*given)
    return loss, mass
