"""The kernels as autograd functions, for labels and for class probabilities."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hem.losses.kernels import native
from hem.losses.kernels.choice import implementation
from hem.losses.kernels.problem import NUMBERS, Problem, laid, layout, pose, real
from hem.losses.samples import label_error


def margin_loss(input: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """Return losses, their sum or their mean, and the mass; arguments are those of :func:`pose`."""
    loss: tuple[Tensor, Tensor] = _Margin.apply(implementation(input), laid(input), *given)
    return loss


def forward(kernels: ModuleType, problem: Problem, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, their sum or their mean, the mass, and the two numbers per sample for the backward pass."""
    input, target = problem.input, problem.target
    saved = input.new_empty((2, target.numel()), dtype=real(input))
    losses = input.new_empty(target.shape, dtype=real(input)) if reduction == "none" else None
    loss, mass, wrong = kernels.forward(problem, saved, losses)
    if wrong >= 0:
        raise label_error(int(target.view(-1)[wrong]), input)
    return loss if losses is None else losses, mass, saved


def backward(kernels: ModuleType, problem: Problem, saved: Tensor, mass: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of the logits for the ``upstream`` gradient of the losses that :func:`forward` returned."""
    grad = torch.empty_like(problem.input)
    kernels.backward(problem, saved, mass, upstream.contiguous(), grad)
    return grad


def beyond_kernels(upstream: Tensor) -> bool:
    """Return whether an upstream gradient is batched by ``vmap`` or to be differentiated: kernels support neither."""
    if torch.is_grad_enabled() and upstream.requires_grad:
        return True
    try:
        upstream.data_ptr()
    except RuntimeError:  # a batched tensor has no memory of its own
        return True
    return False


def attached(gradient: Tensor, input: Tensor) -> Tensor:
    """Return the gradient, connected to the logits (with derivative 0) if it is to be differentiated."""
    if not torch.is_grad_enabled():
        return gradient
    return torch.where(input.new_ones((), dtype=torch.bool), gradient, input)


class _Margin(torch.autograd.Function):
    """The kernels for labels as an autograd function.

    ``ctx`` is an argument of ``forward``, since a separate ``setup_context`` would double the time at small shapes; it
    would allow transforms by ``torch.func``, which use plain torch here.
    """

    @staticmethod
    def forward(ctx: Any, kernels: ModuleType, *given: Any) -> tuple[Tensor, Tensor]:
        problem = pose(*given)
        loss, mass, saved = forward(kernels, problem, given[-1])
        ctx.save_for_backward(*problem[NUMBERS:], saved, mass)
        ctx.numbers, ctx.kernels = problem[:NUMBERS], kernels
        ctx.mark_non_differentiable(mass)
        ctx.set_materialize_grads(False)
        return loss, mass

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 9
        # unpacked once: activation checkpointing recomputes them
        *tensors, saved, mass = ctx.saved_tensors
        problem = Problem(*ctx.numbers, *tensors)
        if beyond_kernels(upstream):
            # linear in the upstream gradient; a gradient of 0 stays 0 even for infinite upstream ones; in half
            # precision the share of one sample among many would lose its digits
            exact = problem._replace(input=problem.input.to(upstream.dtype))
            ones = exact.input.new_ones(problem.target.shape if upstream.dim() else ())
            direction = backward(ctx.kernels, exact, saved, mass, ones)
            product = direction * (upstream.unsqueeze(1) if upstream.dim() else upstream)
            gradient = torch.where(direction != 0, product, 0.0).to(problem.input.dtype)
        else:
            gradient = backward(ctx.kernels, problem, saved, mass, upstream)
        return None, attached(gradient, problem.input), *(None,) * 7


def expected_margin_loss(input: Tensor, shares: Tensor, *, margin: float | Tensor, high: bool = True) -> Tensor:
    """Return Σ_c s_c l_c of each sample for HEM, HEM+ (``high``) or multi-margin, the loss of class probabilities.

    Only for logits whose :func:`~hem.losses.kernels.backend` is ``"c"``. The gradient, as large as the logits, is
    computed with the losses and saved.

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``, float32 or float64.
        shares: Probability times weight of each class s, in the logits' shape and dtype; a constant to autograd.
        margin: One margin for all classes, or the margin of each target class, ``(C)``.
        high: Whether errors below the sample's mean error are left out.

    Returns:
        The losses, in the input's shape without C and its dtype; 0 for samples whose shares are all 0.
    """
    margins = None
    if isinstance(margin, Tensor) and margin.dim() == 1:
        margins, margin = margin.to(input).contiguous(), 0.0
    loss: Tensor = _ExpectedMargin.apply(laid(input), shares, high, float(margin), margins)
    return loss


class _ExpectedMargin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, shares: Tensor, high: bool, margin: float, margins: Tensor | None) -> Tensor:
        ctx.shape = shape = layout(input)
        assert shape is not None
        slope = torch.empty_like(input)
        if input.stride() != shares.stride():
            shares = torch.empty_like(input).copy_(shares)
        losses = input.new_empty((input.shape[0], *input.shape[2:]))
        problem = Problem(*shape, -100, high, False, margin, margins, None, input, losses)
        native.expected(problem, shares, losses, slope)
        ctx.save_for_backward(input, slope)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, slope = ctx.saved_tensors
        if beyond_kernels(upstream):  # a derivative of 0 gives 0 even for infinite upstream gradients
            gradient = torch.where(slope != 0, slope * upstream.unsqueeze(1), 0.0)
        else:
            gradient = torch.empty_like(slope)
            images, classes, pixels = ctx.shape
            problem = Problem(images, classes, pixels, -100, True, False, 0.0, None, None, slope, upstream)
            native.scaled(problem, slope, upstream.contiguous(), gradient)
        return attached(gradient, input), None, None, None, None
