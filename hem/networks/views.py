"""Several views of one image, one prediction: windows that slide over it, scales, mirror images.

Pure functions of a network, which is any callable from images (N, C, H, W) to logits (N, K, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Net = Callable[[Tensor], Tensor]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side: every ``stride`` pixels, the last one flush with the end.

    Example:
        >>> starts(10, 4, 3), starts(10, 4, 4), starts(3, 4, 4)
        ([0, 3, 6], [0, 4, 6], [0])
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_window(net: Net, input: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The logits of images that are larger than the network's window: the mean over the windows of each pixel.

    A network of 1 x 1 convolutions gives what it gives for the whole image. An image smaller than the window is
    one view.

    Args:
        net: The network.
        input: (N, C, H, W).
        window: Height and width of a window, in pixels.
        stride: Steps between windows downwards and to the right, in pixels, at most the window's sides.

    Returns:
        (N, K, H, W).

    Raises:
        ValueError: Windows that leave pixels out, or are no windows.

    Example:
        >>> image = torch.rand(1, 3, 7, 9)
        >>> torch.equal(sliding_window(lambda x: x, image, (4, 4), (4, 4)), image)
        True
    """
    if min(*window, *stride) < 1 or stride[0] > window[0] or stride[1] > window[1]:
        raise ValueError(
            f"Windows are of 1 pixel or more and their stride is no longer than they are, "
            f"but window is {tuple(window)} and stride {tuple(stride)}."
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
    assert total is not None  # `starts` gives one window at least
    return total / seen


def scaled(net: Net, input: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False) -> Tensor:
    """The mean of the logits over some scales of the images, and over their mirror images.

    Logits are averaged, not probabilities: losses whose logits are small, such as margin losses, make the softmax
    almost flat, which leaves its order alone but not its mean.

    Args:
        net: The network.
        input: (N, C, H, W).
        scales: Factors of the sides, > 0; bilinear, both ways.
        flip: Whether to add the mirror image of each.

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
        raise ValueError(f"scales are factors above 0, one or more, but they are {list(scales)}.")
    size = input.shape[-2:]
    views = []
    for scale in scales:
        sides = [max(1, round(scale * side)) for side in size]
        view = input if scale == 1 else F.interpolate(input, sides, mode="bilinear", antialias=scale < 1)
        found = [net(view), net(view.flip(-1)).flip(-1)] if flip else [net(view)]
        views += [logits if scale == 1 else F.interpolate(logits, size, mode="bilinear") for logits in found]
    return torch.stack(views).mean(0)
