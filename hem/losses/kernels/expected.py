"""The C kernel of class probabilities as a function of autograd.

The slopes come with the losses, for one sort gives both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hem.losses.kernels import native
from hem.losses.kernels.fused import attached, beyond_kernels
from hem.losses.kernels.problem import Problem, laid, layout


def expected_margin_loss(input: Tensor, shares: Tensor, *, margin: float | Tensor, high: bool = True) -> Tensor:
    """Return Σ_c s_c l_c of each sample for HEM, HEM+ (``high``) or multi-margin.

    Only where :func:`~hem.losses.kernels.backend` says ``"c"``. The gradient is made with the losses and kept, as large
    as the logits.

    Args:
        input: Logits, ``(N, C)`` or ``(N, C, d1, ..., dK)``, float32 or float64.
        shares: Probability times weight of each class s, in the logits' shape and dtype; a constant to autograd.
        margin: One for all classes, or the margin of each target class, ``(C)``.
        high: Whether errors below the sample's mean error are left out.

    Returns:
        The input's shape without C, in its dtype; 0 where all shares are, whatever the logits hold.
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
        if beyond_kernels(upstream):  # a slope of 0 gives 0, whatever is upstream
            gradient = torch.where(slope != 0, slope * upstream.unsqueeze(1), 0.0)
        else:
            gradient = torch.empty_like(slope)
            images, classes, pixels = ctx.shape
            problem = Problem(images, classes, pixels, -100, True, False, 0.0, None, None, slope, upstream)
            native.scaled(problem, slope, upstream.contiguous(), gradient)
        return attached(gradient, input), None, None, None, None
