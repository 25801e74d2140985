"""Checks of images that several rooms share."""

from __future__ import annotations

import torch
from torch import Tensor

from hem.losses.samples import has_values

ROUNDING = 1e-3  # beyond 0 and 1: what scaling and half precision add


def check_pixels(images: Tensor) -> None:
    """Refuse floating-point images whose pixels are not in [0, 1]: bytes that were not divided, normalised images.

    Nothing is looked at while torch traces. On an accelerator the look waits for the device, once.

    Args:
        images: Of any shape, floating point.

    Raises:
        TypeError: They are not floating point.
        ValueError: A pixel is outside, or NaN.

    Example:
        >>> check_pixels(torch.tensor([[0.0, 255.0]]))
        Traceback (most recent call last):
        ValueError: Expected pixels in [0, 1], got 0 to 255: divide bytes by 255.
    """
    if not images.is_floating_point():
        raise TypeError(f"Expected floating-point images in [0, 1], got {images.dtype}: divide bytes by 255.")
    if not images.numel() or not has_values(images):
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # a NaN is neither
        mend = "divide bytes by 255" if low >= 0 and high > 2 else "leave normalisation to the network"
        raise ValueError(f"Expected pixels in [0, 1], got {low:g} to {high:g}: {mend}.")
