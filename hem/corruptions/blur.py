"""Blur corruptions. Arguments, results and sources: see :mod:`hem.corruptions`."""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from hem.corruptions.constants import constants
from hem.corruptions.pixels import gaussian, streak, truncate, uniform, zoom


@lru_cache(maxsize=16)
def _disk(radius: float, sigma: float) -> np.ndarray:
    """Return a disk kernel of sum 1, its edge smoothed by a Gaussian of 3 x 3 (large disks: 5 x 5) pixels.

    The disk of radius 10 reaches the border of its array, which is mirrored, so smoothing adds 1 % to its sum.
    """
    half = 8 if radius <= 8 else math.ceil(radius)
    axis = np.arange(-half, half + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    disk /= disk.sum()
    reach = 1 if radius <= 8 else 2
    smooth = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    for along in (0, 1):
        # OpenCV's default border, mirrored about the last pixel
        disk = ndimage.correlate1d(disk, smooth / smooth.sum(), axis=along, mode="mirror")
    used = np.flatnonzero((disk > 1e-9).any(0))
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def defocus_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Blur as out of focus: convolve with a disk with a smoothed edge; the image's edges are mirrored.

    Not random.

    Example:
        >>> point = torch.zeros(1, 1, 32, 32).index_fill(2, torch.tensor(9), 1.0)
        >>> defocus_blur(point, 5, torch.tensor([0]))[0, 0, 7:12, 9]
        tensor([0.0000, 0.3333, 0.3333, 0.3333, 0.0000])
    """
    kernel = torch.from_numpy(_disk(*constants("defocus_blur", images, severity, key))).to(images)
    reach = len(kernel) // 2
    flat = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(flat, kernel[None, None]).reshape(images.shape).clamp_(0, 1)


def glass_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Blur as by frosted glass: blur, replace each pixel by a random one nearby, blur again.

    From the last row and column to the first, each pixel p away from the edge gets the present value at p + d, each
    component of d uniform in -m, ..., m - 1. The paper describes a swap, and the authors' program looks like one, but
    its arrays share memory, so the other pixel stays as it is; the official files are made this way. Where p + d was
    replaced before p, its own source is looked up, for all pixels at once (a path of length L takes log2 L steps).

    Example:
        >>> flat = glass_blur(torch.full((1, 1, 28, 28), 0.2), 5, torch.tensor([1]))
        >>> torch.allclose(flat, torch.tensor(0.2))
        True
    """
    sigma, most, rounds = constants("glass_blur", images, severity, key)
    channels, height, width = images.shape[1:]
    out = truncate(gaussian(images, sigma)).flatten(2)
    for i in range(rounds):
        step = torch.floor(uniform(key, i, (2, height, width)) * (2 * most)).long() - most
        source = glass_sources(step, most)
        out = out.gather(2, source[:, None].expand(-1, channels, -1))
    return gaussian(out.reshape(images.shape), sigma).clamp_(0, 1)


def glass_sources(step: Tensor, most: int) -> Tensor:
    """Return the source of each pixel after the replacements of :func:`glass_blur`.

    Args:
        step: (N, 2, H, W) int64, rows down and columns to the right, each in -most, ..., most - 1.
        most: The largest step; as many pixels at each edge (one more at the top and left) keep their values.

    Returns:
        (N, H W) int64: position of the source, row * W + column.
    """
    height, width = step.shape[2:]
    rows, columns = (torch.arange(n, device=step.device) for n in (height, width))
    moves = ((rows > most) & (rows <= height - most))[:, None] & (columns > most) & (columns <= width - most)
    moves = moves.flatten()
    own = torch.arange(height * width, device=step.device)
    source = torch.where(moves, own + (step[:, 0] * width + step[:, 1]).flatten(1), own)
    # the original value of a pixel is at place + H W, the end of its path
    source = source + torch.where(moves[source] & (source > own), 0, height * width)
    while bool((open_ := source < height * width).any()):
        source = torch.where(open_, source.gather(1, source.clamp(max=height * width - 1)), source)
    return source - height * width


def motion_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Blur as by a moving camera: half a Gaussian along a line, its angle uniform in [-45, 45] degrees.

    The authors' program calls ImageMagick's ``MotionBlurImage``.

    Example:
        >>> motion_blur(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).mean()
        tensor(0.5000)
    """
    radius, sigma = constants("motion_blur", images, severity, key)
    degrees = uniform(key, 0, ())
    return streak(images, radius, sigma, 90 * degrees - 45).clamp_(0, 1)


def zoom_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Blur as by a camera moving towards the object: the mean of the image and of its zoomed versions.

    Not random.

    Example:
        >>> zoom_blur(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).std() < 1e-6
        tensor(True)
    """
    end, step = constants("zoom_blur", images, severity, key)
    factors = np.arange(1, end, step)
    out = images.clone()
    for factor in factors:
        out += zoom(images, float(factor))
    return out.div_(len(factors) + 1).clamp_(0, 1)


def gaussian_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Convolve with a Gaussian (an extra corruption), truncated at 4 standard deviations; edges are repeated.

    Not random.

    Example:
        >>> line = torch.zeros(1, 1, 32, 32).index_fill(2, torch.tensor(9), 1.0)
        >>> gaussian_blur(line, 5, torch.tensor([0]))[0, 0, 8:11, 9]
        tensor([0.2420, 0.3989, 0.2420])
    """
    return gaussian(images, constants("gaussian_blur", images, severity, key)).clamp_(0, 1)
