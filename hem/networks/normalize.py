"""Normalisation of pixels, part of the network so that its inputs, and attacks, are in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Normalise each channel: (x - mean) / std.

    The buffers ``mean`` and ``std``, of shape (1, C, 1, 1), are in the state dict, so that a checkpoint has the
    normalisation that it was trained with.

    Args:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, > 0.

    Raises:
        ValueError: If ``mean`` and ``std`` differ in length, are empty, or a standard deviation is not positive.

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"Expected one number per channel in mean and in std, got {len(mean)} and {len(std)}.")
        if not all(value > 0 for value in std):
            raise ValueError(f"Expected each std to be above 0, got {tuple(std)}.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised images (N, C, H, W).

        Raises:
            ValueError: If the images have another number of channels.
            TypeError: If the images are integers, thus pixels in [0, 255], not in [0, 1].
        """
        channels = self.mean.shape[1]
        if input.ndim != 4 or input.shape[1] != channels:
            raise ValueError(
                f"Expected images of shape (N, {channels}, H, W) to normalise, got {tuple(input.shape)}: give mean and "
                "std one number per channel of the data."
            )
        if not input.is_floating_point():
            raise TypeError(f"Expected floating-point images in [0, 1] to normalise, got {input.dtype}: divide by 255.")
        return (input - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return mean and standard deviation of each channel."""
        mean, std = ([round(value, 6) for value in each.flatten().tolist()] for each in (self.mean, self.std))
        return f"mean={mean}, std={std}"
