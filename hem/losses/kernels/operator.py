"""The fused margin losses as an operator of torch: what ``torch.compile`` puts into a graph as one piece.

Torch's compiler cannot look into a kernel, and the formula that it would compile instead takes more passes over the
logits and keeps a copy of them: 18 times as long at (256, 1000) on a CPU.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from hem.losses import kernels
from hem.losses.kernels.problem import layout, real
from hem.losses.reduction import Reduction


@torch.library.custom_op("hem::margin_loss", mutates_args=())
def margin_loss(
    input: Tensor,
    target: Tensor,
    margins: Tensor | None,
    weight: Tensor | None,
    margin: float,
    ignore_index: int,
    high: bool,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, their sum or their mean; mass; and what the backward needs."""
    kind = cast(Reduction, reduction)
    problem = kernels.posed(laid(input), target, ignore_index, high, margin, margins, weight, kind)
    return kernels.evaluate(kernels.implementation(input), problem, kind)


@torch.library.custom_op("hem::margin_loss_backward", mutates_args=())
def margin_loss_backward(
    upstream: Tensor,
    mass: Tensor,
    saved: Tensor,
    input: Tensor,
    target: Tensor,
    margins: Tensor | None,
    weight: Tensor | None,
    margin: float,
    ignore_index: int,
    high: bool,
    reduction: str,
) -> Tensor:
    """The gradient of the logits."""
    kind = cast(Reduction, reduction)
    problem = kernels.posed(laid(input), target, ignore_index, high, margin, margins, weight, kind)
    gradient = kernels.slope(kernels.implementation(input), problem, saved, mass, upstream)
    return gradient if problem.input is input else torch.empty_like(input).copy_(gradient)


def laid(input: Tensor) -> Tensor:
    """The logits as a kernel wants them."""
    return input if layout(input) is not None else input.contiguous()


@margin_loss.register_fake
def _(input: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    compute = real(input)
    loss = input.new_empty(target.shape if rest[-1] == "none" else (), dtype=compute)
    return loss, input.new_empty((), dtype=compute), input.new_empty((2, target.numel()), dtype=compute)


@margin_loss_backward.register_fake
def _(upstream: Tensor, mass: Tensor, saved: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, target, margins, weight, *ctx.rest = inputs
    _, mass, saved = output
    ctx.save_for_backward(mass, saved, input, target, margins, weight)
    ctx.mark_non_differentiable(mass, saved)


def _back(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return margin_loss_backward(upstream.contiguous(), *ctx.saved_tensors, *ctx.rest), *(None,) * 7


margin_loss.register_autograd(_back, setup_context=_keep)
