"""Common input of probability metrics: one checked row per labelled sample, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """The values in float64; in float32 on a device that has no float64."""
    return values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)


def rows(logits: Tensor, target: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Return the labelled samples as rows: logits (M, C) in float64 and class indices (M,).

    Args:
        logits: (N, C), or (N, C, d1, ..., dK), whose every pixel is a sample.
        target: Class indices, (N) or (N, d1, ..., dK).
        ignore_index: The label of what has none.

    Raises:
        TypeError: The logits are no floating point numbers, or the target is no integers.
        ValueError: The shapes do not fit, a logit is NaN, or a label is no class.

    Example:
        >>> rows(torch.zeros(1, 3, 2), torch.tensor([[2, -100]]))
        (tensor([[0., 0., 0.]], dtype=torch.float64), tensor([2]))
    """
    if not logits.is_floating_point():
        raise TypeError(f"Expected logits in floating point, got {logits.dtype}: hand in what the network gives.")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"Expected class indices, got {target.dtype}: hand in one integer for each sample.")
    if logits.ndim < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"Expected logits (N, C, ...) and target (N, ...), got {tuple(logits.shape)} and {tuple(target.shape)}: "
            "hand in one class index for each sample."
        )
    logits = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    target = target.reshape(-1).to(logits.device)
    kept = target != ignore_index
    logits, target = wide(logits[kept]), target[kept].long()
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
        raise ValueError(
            f"Expected labels from 0 to {logits.shape[1] - 1}, got {int(target.min())} to {int(target.max())}: "
            f"mark what has no label by {ignore_index}."
        )
    if logits.isnan().any():
        raise ValueError(f"Expected numbers as logits, got NaN in {int(logits.isnan().any(1).sum())} samples.")
    return logits, target
