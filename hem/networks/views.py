"""Predictions averaged over views of an image: sliding windows, scales, flips.

These are functions of a network, any callable from images (N, C, H, W) to logits (N, K, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Net = Callable[[Tensor], Tensor]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side: every ``stride`` pixels, the last window ending at the border.

    Example:
        >>> starts(10, 4, 3), starts(10, 4, 4), starts(3, 4, 4)
        ([0, 3, 6], [0, 4, 6], [0])
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_window(net: Net, input: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return the logits of images larger than the network's window, averaged over the windows that contain a pixel.

    For a network of 1 x 1 convolutions they equal those of the whole image. An image smaller than the window is one
    view.

    Args:
        net: The network.
        input: (N, C, H, W).
        window: Height and width of a window, in pixels.
        stride: Vertical and horizontal distance of windows in pixels, at most the window's sides.

    Returns:
        (N, K, H, W).

    Raises:
        ValueError: A window is empty, or windows leave pixels out.

    Example:
        >>> image = torch.rand(1, 3, 7, 9)
        >>> torch.equal(sliding_window(lambda x: x, image, (4, 4), (4, 4)), image)
        True
    """
    if min(*window, *stride) < 1 or stride[0] > window[0] or stride[1] > window[1]:
        raise ValueError(
            f"Expected a window of 1 pixel or more and a stride of at most the window, got window {tuple(window)} and "
            f"stride {tuple(stride)}."
        )
    height, width = input.shape[-2:]
    total, seen = None, input.new_zeros(1, 1, height, width, dtype=torch.float32)
    for top in starts(height, window[0], stride[0]):
        for left in starts(width, window[1], stride[1]):
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = net(input[place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width, dtype=torch.float32)
            total[place] += logits
            seen[place] += 1
    assert total is not None  # `starts` returns at least one window
    return total / seen


def scaled(net: Net, input: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False) -> Tensor:
    """Return the mean of the logits over scaled and, optionally, flipped versions of the images.

    Logits are averaged, not probabilities: the small logits of margin losses make the softmax almost flat, which does
    not change the order of classes but does change a mean.

    Args:
        net: The network.
        input: (N, C, H, W).
        scales: Factors of the sides, > 0; images and logits are scaled bilinearly.
        flip: Whether to add the horizontally flipped image at each scale.

    Returns:
        (N, K, H, W).

    Raises:
        ValueError: There is no scale, or one is not positive.

    Example:
        >>> image = torch.rand(1, 3, 4, 6)
        >>> torch.allclose(scaled(lambda x: x, image, flip=True), image)
        True
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"Expected scales to be one or more factors above 0, got {list(scales)}.")
    size = input.shape[-2:]
    views = []
    for scale in scales:
        sides = [max(1, round(scale * side)) for side in size]
        view = input if scale == 1 else F.interpolate(input, sides, mode="bilinear", antialias=scale < 1)
        found = [net(view), net(view.flip(-1)).flip(-1)] if flip else [net(view)]
        views += [logits if scale == 1 else F.interpolate(logits, size, mode="bilinear") for logits in found]
    return torch.stack(views).mean(0)
