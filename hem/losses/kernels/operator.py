"""The fused margin losses as a custom operator, which ``torch.compile`` keeps in a graph as one node.

The code that the compiler generates for the formula takes more passes over the logits and a copy of them: 10 to 19
times the time of the kernel at (256, 1000) and (4, 12, 360, 480) on a CPU, though 0.8 times at (128, 10). Outside
``torch.compile`` the operator is not used, since its dispatch takes as long as a cross-entropy at (128, 10). Import
this module only while torch compiles: it loads the compiler, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hem.losses.kernels import choice, fused
from hem.losses.kernels.problem import laid, pose, real

# evaluated once while torch traces; the result is a constant of the graph
available: Callable[[str, torch.dtype], bool] = torch.compiler.assume_constant_result(  # type: ignore[no-untyped-call]
    lambda device, dtype: choice.available(device, dtype) is not None
)


GIVEN = (
    "Tensor input, Tensor target, Tensor? margins, Tensor? weight, float margin, int ignore_index, bool high, "
    "str reduction"
)
FORWARD = f"({GIVEN}) -> (Tensor loss, Tensor mass, Tensor saved)"
BACKWARD = f"(Tensor upstream, Tensor mass, Tensor saved, {GIVEN}) -> Tensor"


@torch.library.custom_op("hem::margin_loss", mutates_args=(), schema=FORWARD)
def margin_loss(input: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, their sum or their mean, the mass, and the numbers saved for the backward pass."""
    return fused.forward(choice.implementation(input), pose(laid(input), *given), given[-1])


@torch.library.custom_op("hem::margin_loss_backward", mutates_args=(), schema=BACKWARD)
def margin_loss_backward(upstream: Tensor, mass: Tensor, saved: Tensor, input: Tensor, *given: Any) -> Tensor:
    """Return the gradient of the logits."""
    problem = pose(laid(input), *given)
    gradient = fused.backward(choice.implementation(input), problem, saved, mass, upstream)
    return gradient if problem.input is input else torch.empty_like(input).copy_(gradient)


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
