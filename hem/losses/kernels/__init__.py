"""The margin losses at memory speed: HEM, HEM+ and multi-margin, fused.

In plain torch (``functional._margin_errors``) these losses take a dozen passes over the logits and keep
several copies of them. The kernels read the logits once in the forward and once in the backward, write the
gradient once, and keep two numbers per sample: the threshold that an error must reach, and how many do.

Class probabilities have a kernel of their own on a CPU, ``expected.c``, which keeps the gradient of every sample.

Which implementation runs follows from the logits, see :func:`backend`: on a CPU the C kernel ``margin.c``,
where the machine has a compiler; on a GPU the Triton kernel ``cuda.py``, where Triton is installed;
everywhere else, and wherever torch traces or transforms functions, the plain formula. ``HEM_KERNEL=plain``
in the environment forces the latter. Under ``torch.compile`` labels go through :mod:`~hem.losses.kernels.operator`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
from torch.autograd import forward_ad

from hem.losses.arguments import label_error, traced
from hem.losses.kernels import native
from hem.losses.kernels.problem import Problem, layout, real
from hem.losses.reduction import Reduction

__all__ = ["backend", "expected_margin_loss", "margin_loss"]


NUMBERS = 7  # fields of a Problem before its tensors


def compiling() -> bool:
    """Whether ``torch.compile`` traces, and nothing else does."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


@functools.cache
def _kernels(device: str, dtype: torch.dtype) -> ModuleType | None:
    """The kernels for logits on such a device and of such a dtype; None: there are none."""
    choice = os.environ.get("HEM_KERNEL") or {"cpu": "c", "cuda": "triton"}.get(device, "plain")
    if choice not in ("c", "triton", "plain"):
        raise ValueError(f"HEM_KERNEL must be c, triton or plain, or not be set; got {choice!r}.")
    if choice == "c" and native.runs(device, dtype):
        return native
    if choice == "triton" and find_spec("triton"):
        from hem.losses.kernels import cuda  # here, because importing Triton takes a while

        return cuda if cuda.runs(device, dtype) else None
    return None


def implementation(input: Tensor) -> ModuleType:
    """The kernels for such logits, where :func:`backend` names some."""
    kernels = _kernels(input.device.type, input.dtype)
    if kernels is None:
        raise TypeError(f"no kernel takes {input.dtype} logits on {input.device} here; ask backend(input) first.")
    return kernels


# asked while torch.compile traces, and not again
_any_kernel: Callable[[str, torch.dtype], bool] = torch.compiler.assume_constant_result(  # type: ignore[no-untyped-call]
    lambda device, dtype: _kernels(device, dtype) is not None
)


def backend(input: Tensor, *arguments: float | Tensor | None) -> Literal["c", "triton", "plain", "operator"]:
    """Which implementation computes a margin loss of these logits.

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        arguments: Margin and class weights; the kernels have no gradient for them.

    Returns:
        ``"c"``, ``"triton"`` or ``"plain"``; ``"operator"`` where ``torch.compile`` traces: one of those, later.

    Example:
        >>> backend(torch.zeros(2, 3, device="meta"))
        'plain'
    """
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if compiling() and type(input) is Tensor and not torch._C._are_functorch_transforms_active():
        fits = _any_kernel(input.device.type, input.dtype) and not any(value.requires_grad for value in tensors)
        return "operator" if fits else "plain"
    if (
        traced()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or input.is_neg()
        # the kernels read memory: what is a tensor's own, and nothing that a subclass has in its place
        or any(type(value) not in (Tensor, nn.Parameter) for value in (input, *tensors))
        or any(value.requires_grad for value in tensors)
    ):
        return "plain"
    kernels = _kernels(input.device.type, input.dtype)
    return "plain" if kernels is None else "c" if kernels is native else "triton"


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
    """HEM, HEM+ (``high``) or multi-margin (not ``high``), fused; only where :func:`backend` names a kernel.

    With z the logits, y the target and m its margin, for each sample:

        e_j = max(0, z_j - z_y + m) for j ≠ y,  e_y = 0
        l   = mean of the e_j > 0 that reach Σ_j e_j / C (``high``), or Σ_j e_j / C

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``; copied if neither contiguous nor channels-last.
        target: Class indices, int64, ``(N)`` or ``(N, d1, ..., dK)``.
        weight: Factor per class, ``(C)``.
        ignore_index: Samples with this index give 0 with a gradient of exactly 0.
        margin: One for all classes, or the margin m_y of each target class, ``(C)``.
        high: Whether errors below the sample's mean error are left out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.

    Returns:
        The losses w_y l of the samples, their sum or their mean, and the denominator of the mean, a constant to
        autograd: Σ w_y [l ≠ 0] (``high``) or the number of labelled samples. In float32, for float64 logits in
        float64.

    Raises:
        ValueError: If a label is none of the classes. On a GPU, where looking would make it wait, the
            sample's loss is NaN instead.
        TypeError: If there is no kernel for such logits.
    """
    margins = None
    if isinstance(margin, Tensor) and margin.dim() == 1:
        margins, margin = margin.to(input.device, real(input)).contiguous(), 0.0
    if weight is not None:
        weight = weight.to(input.device, real(input)).contiguous()
    if compiling():
        given = (input, target, margins, weight, float(margin), ignore_index, high, reduction)
        value, mass, _ = operator.margin_loss(*given)
        return value, mass
    kernels = implementation(input)
    if layout(input) is None:
        input = input.contiguous()
    loss: tuple[Tensor, Tensor] = _Margin.apply(
        input, target, ignore_index, high, float(margin), margins, weight, reduction, kernels
    )
    return loss


def expected_margin_loss(input: Tensor, shares: Tensor, *, margin: float | Tensor, high: bool = True) -> Tensor:
    """Σ_c s_c l_c of each sample for HEM, HEM+ (``high``) or multi-margin; only where :func:`backend` says ``"c"``.

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``, float32 or float64.
        shares: Probability times weight of each class s, in the logits' shape and dtype; a constant to autograd.
        margin: One for all classes, or the margin of each target class, ``(C)``.
        high: Whether errors below the sample's mean error are left out.

    Returns:
        The input's shape without C, in its dtype; 0 where all shares are, whatever the logits hold. The gradient is
        made with it and kept, as large as the logits.
    """
    margins = None
    if isinstance(margin, Tensor) and margin.dim() == 1:
        margins, margin = margin.to(input).contiguous(), 0.0
    loss: Tensor = _ExpectedMargin.apply(input, shares, high, float(margin), margins)
    return loss


def _scaled(slope: Tensor, upstream: Tensor) -> Tensor:
    """The slope of each sample times its upstream gradient; where it is 0 it stays so, whatever is upstream."""
    return torch.where(slope != 0, slope * upstream.unsqueeze(1), 0.0)


class _ExpectedMargin(torch.autograd.Function):
    """Class probabilities: the slopes come with the losses, for one sort gives both."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, shares: Tensor, high: bool, margin: float, margins: Tensor | None) -> Tensor:
        shape = layout(input)
        if shape is None:
            input = input.contiguous()
            shape = layout(input)
        assert shape is not None
        slope = torch.empty_like(input)
        if input.stride() != shares.stride():
            shares = torch.empty_like(input).copy_(shares)
        losses = input.new_empty((input.shape[0], *input.shape[2:]))
        problem = Problem(*shape, -100, high, False, margin, margins, None, input, losses)
        native.expected(problem, shares, losses, slope)
        ctx.save_for_backward(input, slope)
        ctx.shape = shape
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, slope = ctx.saved_tensors
        again = torch.is_grad_enabled()  # to be differentiated once more
        if is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream) or (again and upstream.requires_grad):
            gradient = _scaled(slope, upstream)
        else:
            gradient = torch.empty_like(slope)
            images, classes, pixels = ctx.shape
            problem = Problem(images, classes, pixels, -100, True, False, 0.0, None, None, slope, upstream)
            native.scaled(problem, slope, upstream.contiguous(), gradient)
        if again:  # it is flat in the logits, which stay in the graph
            gradient = torch.where(input.new_ones((), dtype=torch.bool), gradient, input)
        return gradient, None, None, None, None


def posed(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    high: bool,
    margin: float,
    margins: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
) -> Problem:
    """The problem of logits that lie as a kernel wants them."""
    shape = layout(input)
    assert shape is not None
    return Problem(*shape, ignore_index, high, reduction == "mean", margin, margins, weight, input, target.contiguous())


def evaluate(kernels: ModuleType, problem: Problem, reduction: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, their sum or their mean; mass; and the two numbers per sample that the backward needs."""
    input, target = problem.input, problem.target
    saved = input.new_empty((2, target.numel()), dtype=real(input))
    losses = input.new_empty(target.shape, dtype=real(input)) if reduction == "none" else None
    loss, mass, wrong = kernels.forward(problem, saved, losses)
    if wrong >= 0:
        raise label_error(int(target.view(-1)[wrong]), input)
    return loss if losses is None else losses, mass, saved


class _Margin(torch.autograd.Function):
    """The kernels for autograd.

    ``ctx`` is an argument of ``forward`` because a ``setup_context`` of its own would cost as much as all the
    rest at small shapes; what it is good for, transforms of functions, is left to the plain formula.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        ignore_index: int,
        high: bool,
        margin: float,
        margins: Tensor | None,
        weight: Tensor | None,
        reduction: Reduction,
        kernels: ModuleType,
    ) -> tuple[Tensor, Tensor]:
        problem = posed(input, target, ignore_index, high, margin, margins, weight, reduction)
        loss, mass, saved = evaluate(kernels, problem, reduction)
        ctx.save_for_backward(*problem[NUMBERS:], saved, mass)
        ctx.numbers, ctx.kernels = problem[:NUMBERS], kernels
        ctx.mark_non_differentiable(mass)
        ctx.set_materialize_grads(False)
        return loss, mass

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        rest = (None,) * 8
        if upstream is None:
            return None, *rest
        kept = ctx.saved_tensors  # once: activation checkpointing makes them anew when asked
        *_, input, target, _, _ = kept
        again = torch.is_grad_enabled()  # to be differentiated once more
        if is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream) or (again and upstream.requires_grad):
            # The gradient is linear in the upstream one; where it is 0 it stays so, whatever is upstream.
            ones = input.new_ones(target.shape if upstream.dim() else (), dtype=upstream.dtype)
            direction = _gradient(ctx, kept, ones)
            product = direction * (upstream.unsqueeze(1) if upstream.dim() else upstream)
            gradient = torch.where(direction != 0, product, 0.0).to(input.dtype)
        else:
            gradient = _gradient(ctx, kept, upstream)
        if again:  # it is flat in the logits, which stay in the graph
            gradient = torch.where(input.new_ones((), dtype=torch.bool), gradient, input)
        return gradient, *rest


def _gradient(ctx: Any, kept: tuple[Any, ...], upstream: Tensor) -> Tensor:
    """The gradient of the logits, given that of what ``forward`` returned."""
    *tensors, saved, mass = kept
    return slope(ctx.kernels, Problem(*ctx.numbers, *tensors), saved, mass, upstream)


def slope(kernels: ModuleType, problem: Problem, saved: Tensor, mass: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of the logits."""
    grad = torch.empty_like(problem.input)
    kernels.backward(problem, saved, mass, upstream.contiguous(), grad)
    return grad


from hem.losses.kernels import operator  # noqa: E402 (needs what stands above)
