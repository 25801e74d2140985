"""The normalisation of pixels, kept inside the network so that inputs and attacks stay in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Normalises each channel: (x - mean) / std.

    The buffers `mean` and `std`, of shape (1, C, 1, 1), are part of the state dict: a checkpoint brings the
    preprocessing it was trained with.

    Args:
        mean: mean of each channel, in units of the input, which lies in [0, 1].
        std: standard deviation of each channel, in the same units, above 0.

    Raises:
        ValueError: if `mean` and `std` differ in length, are empty, or a deviation is not above 0.

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"mean and std need one number per channel each, got {len(mean)} and {len(std)}")
        if not all(value > 0 for value in std):
            raise ValueError(f"each std must be above 0, got {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Normalises images (N, C, H, W).

        Raises:
            ValueError: if the images have another number of channels.
            TypeError: if the images are integers: those are pixels in [0, 255], not in [0, 1].
        """
        channels = self.mean.shape[1]
        if input.ndim != 4 or input.shape[1] != channels:
            raise ValueError(
                f"Normalize has {channels} channel(s) and takes images of shape (N, {channels}, H, W), "
                f"got {tuple(input.shape)}: give mean and std one number per channel of the data"
            )
        if not input.is_floating_point():
            raise TypeError(f"Normalize takes floating-point images in [0, 1], got {input.dtype}: divide by 255")
        return (input - self.mean) / self.std

    def extra_repr(self) -> str:
        """The numbers, channel by channel."""
        mean, std = ([round(value, 6) for value in each.flatten().tolist()] for each in (self.mean, self.std))
        return f"mean={mean}, std={std}"
