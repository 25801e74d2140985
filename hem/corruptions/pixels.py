"""Building blocks of corruptions: keyed random numbers, luma, filters."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from hem import rng

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601: what Pillow and torchvision take for grey


def uniform(key: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Return uniform numbers in [0, 1) of shape (N, *shape), independent for each stream.

    Args:
        key: (N,) int64, one for each image.
        stream: Number of the draw within a corruption.
        shape: Shape of the numbers of one image.
    """
    return rng.uniform(rng.key(key, stream), math.prod(shape)).reshape(len(key), *shape)


def normal(key: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers of shape (N, *shape); arguments are those of :func:`uniform`."""
    return rng.normal(rng.key(key, stream), math.prod(shape)).reshape(len(key), *shape)


def truncate(images: Tensor) -> Tensor:
    """Round values down to multiples of 1/255, as a cast to bytes does, with a tolerance for rounding errors."""
    return torch.floor(images * 255 + 1e-3) / 255


def luma(images: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of colour images (N, 3, H, W), or grey images as they are."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(GREY, device=images.device)[:, None, None]).sum(1, keepdim=True)


def like(colour: Tensor, images: Tensor) -> Tensor:
    """Convert colour images to the number of channels of ``images``, 1 or 3."""
    return luma(colour) if images.shape[1] == 1 else colour


def separable(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Apply a linear map along the height and one along the width: ``rows @ image @ columns^T``."""
    left, right = (torch.from_numpy(matrix).to(images) for matrix in (rows, columns))
    return left @ images @ right.T


# The matrix of a linear filter along one axis is the filtered identity matrix.


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Return the matrix of a convolution with a Gaussian; the defaults are scikit-image's."""
    matrix: np.ndarray = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate)
    return matrix


@lru_cache(maxsize=64)
def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Return the matrix that scales the middle of the axis, ceil(size / factor) pixels, up and cuts it to ``size``."""
    middle = math.ceil(size / factor)
    start = (size - middle) // 2
    zoomed = ndimage.zoom(np.eye(size)[start : start + middle], (factor, 1), order=1)
    trim = (len(zoomed) - size) // 2
    matrix: np.ndarray = zoomed[trim : trim + size]
    return matrix


@lru_cache(maxsize=64)
def box_matrix(size: int, result: int) -> np.ndarray:
    """Return the matrix of Pillow's box filter from ``size`` to ``result`` pixels."""
    identity = Image.fromarray(np.eye(size, dtype=np.float32))
    return np.array(identity.resize((size, result), Image.Resampling.BOX))


def gaussian(images: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Convolve images with a Gaussian of standard deviation ``sigma``, truncated at ``truncate`` sigma."""
    height, width = images.shape[2:]
    return separable(
        images, _gaussian_matrix(height, sigma, mode, truncate), _gaussian_matrix(width, sigma, mode, truncate)
    )


def zoom(images: Tensor, factor: float) -> Tensor:
    """Zoom into the middle of images, keeping their size."""
    height, width = images.shape[2:]
    return separable(images, _zoom_matrix(height, factor), _zoom_matrix(width, factor))


def streak(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Apply motion blur by ImageMagick's definition: half a Gaussian along a line, edges repeated.

    y(p) = sum_i k_i x(p + d_i), k_i ~ exp(-i^2 / 2 sigma^2), i = 0 ... 2 ceil(radius), with
    d_i = ceil(i (sin a, cos a) - 1/2) for rows and columns.

    Source: ImageMagick, ``MotionBlurImage`` in MagickCore/effect.c.
    """
    channels, height, width = images.shape[1:]
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * math.ceil(radius) + 1)]
    weights = [weight for weight in weights if weight > 1e-7]  # smaller ones vanish in float32
    step, reach = torch.arange(len(weights), device=images.device), len(weights) - 1
    angle = torch.deg2rad(degrees)[:, None]
    down, right = (torch.ceil(step * part - 0.5).long() for part in (angle.sin(), angle.cos()))
    padded = F.pad(images, (reach,) * 4, mode="replicate").flatten(2)
    stride = width + 2 * reach
    rows, columns = (torch.arange(n, device=images.device) + reach for n in (height, width))
    place = (rows[:, None] * stride + columns).flatten()
    out = torch.zeros_like(images).flatten(2)
    for i, weight in enumerate(weights):
        index = place + (down[:, i] * stride + right[:, i])[:, None]
        out.add_(padded.gather(2, index[:, None].expand(-1, channels, -1)), alpha=weight / sum(weights))
    return out.reshape(images.shape)
