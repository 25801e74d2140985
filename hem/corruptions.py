"""Common corruptions: noise, blur, weather and digital changes of five severities, on batches of images.

The 15 common and 4 extra corruptions of Hendrycks & Dietterich, "Benchmarking neural network robustness to
common corruptions and perturbations", ICLR 2019, with the constants of their programs
(github.com/hendrycks/robustness, ``ImageNet-C/create_c``): those of CIFAR-10-C for images nearest to 32
pixels, of Tiny-ImageNet-C for those nearest to 64, of ImageNet-C for those nearest to 224. All of them are
functions of ``(images, severity, key)``, where a sample's key names its random numbers
(:mod:`hem.datamodules.counter`): what happens to a sample depends on nothing but its own pixels and key.

Grey images. The authors corrupt colour images alone. Here a grey image of 28 pixels takes the constants of
CIFAR-10-C; noise is drawn for its one channel; what brings a colour of its own (spatter, frost) or changes
colour (saturate) gives the luma (ITU-R BT.601) of what it makes of three equal channels. MNIST-C is another
set of corruptions, see :class:`~hem.datamodules.CorruptionDataModule`.

Where we differ from the authors' programs: images are not packed into JPEG files afterwards, as those of
ImageNet-C are; arithmetic is in float32, and interpolation exact, where OpenCV rounds positions to 1/32
pixel; the water of :func:`spatter` measures Euclidean distances, where OpenCV approximates them; the
photographs of :func:`frost` are not shipped, a texture stands in for them.
"""

import io
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from hem.datamodules.counter import integers, uniform
from hem.datamodules.counter import key as key_of
from hem.datamodules.images import GREY
from hem.names import check_name

SEVERITIES = (1, 2, 3, 4, 5)

# The constants of the five severities, by the side of the images they are meant for.
CONSTANTS: dict[str, dict[int, tuple[Any, ...]]] = {
    "gaussian_noise": {  # standard deviation
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {  # photons that make white
        32: (500, 250, 100, 75, 50),
        64: (250, 100, 50, 30, 15),
        224: (60, 25, 12, 5, 3),
    },
    "impulse_noise": {  # share of the values
        32: (0.01, 0.02, 0.03, 0.05, 0.07),
        64: (0.01, 0.02, 0.05, 0.08, 0.14),
        224: (0.03, 0.06, 0.09, 0.17, 0.27),
    },
    "defocus_blur": {  # radius of the disk, standard deviation of its smoothed edge
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {  # standard deviation, largest step, rounds
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {  # radius, standard deviation
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {  # end and step of the factors, which begin at 1
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {  # mean, standard deviation, zoom, threshold, radius and deviation of the motion, share of the image
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {  # weight of the image, weight of the frost
        32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    },
    "fog": {  # weight, decay of the wibble
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {  # added to HSV's value
        32: (0.05, 0.1, 0.15, 0.2, 0.3),
        64: (0.1, 0.2, 0.3, 0.4, 0.5),
        224: (0.1, 0.2, 0.3, 0.4, 0.5),
    },
    "contrast": {  # factor
        32: (0.75, 0.5, 0.4, 0.3, 0.15),
        64: (0.4, 0.3, 0.2, 0.1, 0.05),
        224: (0.4, 0.3, 0.2, 0.1, 0.05),
    },
    "elastic_transform": {  # weight and standard deviation of the displacement, largest shift of the corners, in pixels
        32: ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        64: ((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
        224: (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
    },
    "pixelate": {  # share of the side
        32: (0.95, 0.9, 0.85, 0.75, 0.65),
        64: (0.9, 0.8, 0.7, 0.6, 0.5),
        224: (0.6, 0.5, 0.4, 0.3, 0.25),
    },
    "jpeg_compression": {  # quality
        32: (80, 65, 58, 50, 40),
        64: (65, 58, 50, 40, 25),
        224: (25, 18, 15, 10, 7),
    },
    "speckle_noise": {  # standard deviation at white
        32: (0.06, 0.1, 0.12, 0.16, 0.2),
        64: (0.15, 0.2, 0.25, 0.3, 0.35),
        224: (0.15, 0.2, 0.35, 0.45, 0.6),
    },
    "gaussian_blur": {  # standard deviation
        32: (0.4, 0.6, 0.7, 0.8, 1),
        64: (0.5, 0.75, 1, 1.25, 1.5),
        224: (1, 2, 3, 4, 6),
    },
    "spatter": {  # mean, deviation, blur of the liquid, its threshold, strength of water or blur of mud, mud?
        32: (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        64: (
            (0.62, 0.1, 0.7, 0.7, 0.6, False),
            (0.65, 0.1, 0.8, 0.7, 0.6, False),
            (0.65, 0.3, 1, 0.69, 0.6, False),
            (0.65, 0.1, 0.7, 0.68, 0.6, True),
            (0.65, 0.1, 0.5, 0.67, 0.6, True),
        ),
        224: (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    },
    "saturate": {  # factor of HSV's saturation, what is added to it
        32: ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        64: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        224: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
}


# -- what they share -----------------------------------------------------------------------------------------


def _constant(name: str, images: Tensor, severity: int, key: Tensor) -> Any:
    """The constants of a corruption at a severity for images of this size; refuses what is no batch of images."""
    if images.dtype != torch.float32:
        raise TypeError(f"{name} expects float32 images in [0, 1], got {images.dtype}: divide bytes by 255.")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} expects images of shape (N, C, H, W) with 1 or 3 channels, got {tuple(images.shape)}."
        )
    if key.dtype != torch.int64 or key.shape != images.shape[:1]:
        raise ValueError(
            f"{name} expects one int64 key per image, shape ({len(images)},), got {key.dtype} of shape "
            f"{tuple(key.shape)}: make them by hem.datamodules.counter.key."
        )
    check_severity(severity)
    side = math.log(min(images.shape[2:]))
    sizes = CONSTANTS[name]
    return sizes[min(sizes, key=lambda size: abs(math.log(size) - side))][severity - 1]


def check_severity(severity: int) -> None:
    """Refuse a severity that is none.

    Raises:
        ValueError: If it is not one of 1, 2, 3, 4, 5.
    """
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"Severities are the whole numbers 1 to 5, got {severity!r}.")


def _uniform(key: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) of shape (N, *shape); another stream gives other ones."""
    return uniform(key_of(key, stream), math.prod(shape)).reshape(len(key), *shape)


def _normal(key: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Numbers of the standard normal distribution, by its inverse; u is moved off 0, where that is infinite."""
    return torch.erfinv(2 * _uniform(key, stream, shape) - (1 - 2.0**-24)) * math.sqrt(2)


def _truncate(images: Tensor) -> Tensor:
    """Values cut down to multiples of 1/255, as a cast to bytes does; rounding errors do not cost a step."""
    return torch.floor(images * 255 + 1e-3) / 255


def _luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) of (N, 3, H, W) or of what is grey already."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(GREY, device=images.device)[:, None, None]).sum(1, keepdim=True)


def _like(colour: Tensor, images: Tensor) -> Tensor:
    """A colour image with the channels of ``images``."""
    return _luma(colour) if images.shape[1] == 1 else colour


def _separable(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """``rows @ image @ columns^T``: a linear map along the height, and one along the width."""
    left, right = (torch.from_numpy(matrix).to(images) for matrix in (rows, columns))
    return left @ images @ right.T


# A filter along one axis is a matrix, and it is what the filter makes of the identity.


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Convolution with a Gaussian; 4 deviations and repeated edges are scikit-image's defaults."""
    matrix: np.ndarray = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate)
    return matrix


@lru_cache(maxsize=64)
def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Linear interpolation of the middle of the axis, ceil(size / factor) pixels, cut to its size again."""
    middle = math.ceil(size / factor)
    start = (size - middle) // 2
    zoomed = ndimage.zoom(np.eye(size)[start : start + middle], (factor, 1), order=1)
    trim = (len(zoomed) - size) // 2
    matrix: np.ndarray = zoomed[trim : trim + size]
    return matrix


@lru_cache(maxsize=64)
def _box_matrix(size: int, result: int) -> np.ndarray:
    """Pillow's box filter from ``size`` to ``result`` pixels."""
    identity = Image.fromarray(np.eye(size, dtype=np.float32))
    return np.array(identity.resize((size, result), Image.Resampling.BOX))


def _gaussian(images: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    height, width = images.shape[2:]
    return _separable(
        images, _gaussian_matrix(height, sigma, mode, truncate), _gaussian_matrix(width, sigma, mode, truncate)
    )


def _zoom(images: Tensor, factor: float) -> Tensor:
    height, width = images.shape[2:]
    return _separable(images, _zoom_matrix(height, factor), _zoom_matrix(width, factor))


def _streak(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Motion blur by ImageMagick's definition: half a Gaussian along a line, edges repeated.

    y(p) = sum_i k_i x(p + d_i), k_i ~ exp(-i^2 / 2 sigma^2), i = 0 ... 2 ceil(radius), with
    d_i = ceil(i (sin a, cos a) - 1/2) for rows and columns.

    Source: ImageMagick, ``MotionBlurImage`` in MagickCore/effect.c.
    """
    channels, height, width = images.shape[1:]
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * math.ceil(radius) + 1)]
    weights = [weight for weight in weights if weight > 1e-7]  # the others are lost in float32
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


# -- noise ---------------------------------------------------------------------------------------------------


def gaussian_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Noise of low light: x + sigma z, z of the standard normal distribution, cut to [0, 1].

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> noisy = gaussian_noise(torch.full((2, 1, 28, 28), 0.5), 5, torch.tensor([1, 2]))
        >>> round(noisy.std().item(), 2)
        0.1
    """
    sigma: float = _constant("gaussian_noise", images, severity, key)
    return (images + sigma * _normal(key, 0, images.shape[1:])).clamp_(0, 1)


@lru_cache(maxsize=16)
def _poisson_table(photons: int) -> Tensor:
    """(256, K): r + P(k photons or fewer) of the Poisson distribution with mean photons * r / 255, in row r."""
    rate = torch.arange(256, dtype=torch.float64)[:, None] * photons / 255
    count = torch.arange(int(photons + 9 * math.sqrt(photons) + 30), dtype=torch.float64)
    table = torch.exp(torch.xlogy(count, rate) - rate - torch.lgamma(count + 1)).cumsum(1)
    table[:, -1] = 1
    return table.clamp_(max=1) + torch.arange(256)[:, None]


def shot_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Noise of the discrete light: Poisson(c x) / c, cut to [0, 1].

    The Poisson distribution is inverted exactly, by a table for the 256 levels of a pixel; values between
    them count as the nearest one.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> noisy = shot_noise(torch.full((2, 3, 32, 32), 0.5), 5, torch.tensor([1, 2]))
        >>> round(noisy.var().item(), 3)  # x / c = 0.5 / 50
        0.01
    """
    photons: int = _constant("shot_noise", images, severity, key)
    table = _poisson_table(photons).to(images.device)
    level = torch.round(images * 255).long().clamp_(0, 255)
    draw = level + _uniform(key, 0, images.shape[1:]).double()
    count = torch.searchsorted(table.flatten(), draw, right=True) - level * table.shape[1]
    return (count / photons).float().clamp_(0, 1)


def impulse_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Salt and pepper: a share of the values (of each channel apart) becomes 0 or 1, each as often.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> noisy = impulse_noise(torch.full((2, 1, 28, 28), 0.5), 5, torch.tensor([1, 2]))
        >>> noisy.unique().tolist()
        [0.0, 0.5, 1.0]
    """
    amount = _constant("impulse_noise", images, severity, key)
    draw = _uniform(key, 0, images.shape[1:])
    return torch.where(draw < amount, (draw < amount / 2).to(images.dtype), images)


def speckle_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Noise in proportion to the light (extra): x + sigma x z, cut to [0, 1].

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> speckle_noise(torch.zeros(2, 1, 28, 28), 5, torch.tensor([1, 2])).abs().sum()
        tensor(0.)
    """
    sigma: float = _constant("speckle_noise", images, severity, key)
    return (images * (1 + sigma * _normal(key, 0, images.shape[1:]))).clamp_(0, 1)


# -- blur ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _disk(radius: float, sigma: float) -> np.ndarray:
    """A disk of weight 1, its edge smoothed by a Gaussian of 3 x 3 (large disks: 5 x 5) pixels.

    The disk of radius 10 fills its array to the border, which is mirrored, so that smoothing adds 1 % to it.
    """
    half = 8 if radius <= 8 else math.ceil(radius)
    axis = np.arange(-half, half + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    disk /= disk.sum()
    reach = 1 if radius <= 8 else 2
    smooth = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    for along in (0, 1):
        # the border of OpenCV: mirrored about the last pixel
        disk = ndimage.correlate1d(disk, smooth / smooth.sum(), axis=along, mode="mirror")
    used = np.flatnonzero((disk > 1e-9).any(0))
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def defocus_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """An image out of focus: convolved with a disk whose edge is smoothed; edges are mirrored.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> point = torch.zeros(1, 1, 32, 32).index_fill(2, torch.tensor(9), 1.0)
        >>> defocus_blur(point, 5, torch.tensor([0]))[0, 0, 7:12, 9]
        tensor([0.0000, 0.3333, 0.3333, 0.3333, 0.0000])
    """
    kernel = torch.from_numpy(_disk(*_constant("defocus_blur", images, severity, key))).to(images)
    reach = len(kernel) // 2
    flat = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(flat, kernel[None, None]).reshape(images.shape).clamp_(0, 1)


def glass_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Frosted glass: blurred, then pixels taken from random places nearby, then blurred again.

    From the last row and column to the first, each pixel p away from the edge becomes the pixel at p + d,
    each part of d uniform in -m, ..., m - 1, as it is by then. The paper speaks of a swap, and the authors'
    program looks like one, but its arrays share their memory, so the other pixel stays: their files hold
    this. Where p + d was treated before p, its own source is followed, for all pixels at once (a path of
    length L takes log2 L steps).

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> flat = glass_blur(torch.full((1, 1, 28, 28), 0.2), 5, torch.tensor([1]))
        >>> torch.allclose(flat, torch.tensor(0.2))
        True
    """
    sigma, most, rounds = _constant("glass_blur", images, severity, key)
    channels, height, width = images.shape[1:]
    out = _truncate(_gaussian(images, sigma)).flatten(2)
    for i in range(rounds):
        step = torch.floor(_uniform(key, i, (2, height, width)) * (2 * most)).long() - most
        source = glass_sources(step, most)
        out = out.gather(2, source[:, None].expand(-1, channels, -1))
    return _gaussian(out.reshape(images.shape), sigma).clamp_(0, 1)


def glass_sources(step: Tensor, most: int) -> Tensor:
    """Where each pixel comes from, when each in turn becomes the one a step away from it; see :func:`glass_blur`.

    Args:
        step: (N, 2, H, W) int64, rows down and columns to the right, each in -most, ..., most - 1.
        most: The largest step; so many pixels at the edge (at the top and left one more) stay.

    Returns:
        (N, H W) int64: the place of the source, row * W + column.
    """
    height, width = step.shape[2:]
    rows, columns = (torch.arange(n, device=step.device) for n in (height, width))
    moves = ((rows > most) & (rows <= height - most))[:, None] & (columns > most) & (columns <= width - most)
    moves = moves.flatten()
    own = torch.arange(height * width, device=step.device)
    source = torch.where(moves, own + (step[:, 0] * width + step[:, 1]).flatten(1), own)
    # a pixel as it was before lies at place + H W, and is the end of the path
    source = source + torch.where(moves[source] & (source > own), 0, height * width)
    while bool((open_ := source < height * width).any()):
        source = torch.where(open_, source.gather(1, source.clamp(max=height * width - 1)), source)
    return source - height * width


def motion_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """A moving camera: half a Gaussian along a line, its angle uniform between -45 and 45 degrees.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness, which calls
        ImageMagick's ``MotionBlurImage``.

    Example:
        >>> motion_blur(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).mean()
        tensor(0.5000)
    """
    radius, sigma = _constant("motion_blur", images, severity, key)
    degrees = _uniform(key, 0, ())
    return _streak(images, radius, sigma, 90 * degrees - 45).clamp_(0, 1)


def zoom_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """A camera that moves towards its object: the mean of the image and of its zoomed versions.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> zoom_blur(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).std() < 1e-6
        tensor(True)
    """
    end, step = _constant("zoom_blur", images, severity, key)
    factors = np.arange(1, end, step)
    out = images.clone()
    for factor in factors:
        out += _zoom(images, float(factor))
    return out.div_(len(factors) + 1).clamp_(0, 1)


def gaussian_blur(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Convolution with a Gaussian (extra), cut off at 4 deviations; edges are repeated.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> line = torch.zeros(1, 1, 32, 32).index_fill(2, torch.tensor(9), 1.0)
        >>> gaussian_blur(line, 5, torch.tensor([0]))[0, 0, 8:11, 9]
        tensor([0.2420, 0.3989, 0.2420])
    """
    return _gaussian(images, _constant("gaussian_blur", images, severity, key)).clamp_(0, 1)


# -- weather -------------------------------------------------------------------------------------------------


def snow(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Flakes: normal noise, zoomed, what is dark cut away, blurred along a line (-135 to -45 degrees).

    The image itself is whitened: c x + (1 - c) max(x, 1.5 luma(x) + 0.5). The flakes are added twice, once
    upside down.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3; a grey image is its own luma.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> white = snow(torch.zeros(2, 3, 32, 32), 5, torch.tensor([1, 2]))
        >>> bool((white >= 0.0999).all())  # (1 - 0.8) * 0.5
        True
    """
    mean, deviation, factor, threshold, radius, sigma, share = _constant("snow", images, severity, key)
    flakes = _zoom(mean + deviation * _normal(key, 0, (1, *images.shape[2:])), factor)
    flakes = _truncate(torch.where(flakes < threshold, 0, flakes).clamp_(0, 1))
    flakes = _streak(flakes, radius, sigma, 90 * _uniform(key, 1, ()) - 135)
    white = torch.maximum(images, 1.5 * _luma(images) + 0.5)
    return torch.lerp(white, images, share).add_(flakes).add_(flakes.flip((2, 3))).clamp_(0, 1)


# The authors scale their photographs by so much before they cut pieces out, by the side of the images
FROST_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}


def frost_photographs(folder: str | Path, size: tuple[int, int]) -> list[Tensor]:
    """The authors' photographs of frost, scaled as they scale them.

    Args:
        folder: Where ``frost1.png`` to ``frost3.png``, ``frost4.jpg`` and ``frost5.jpg`` lie (the authors'
            program never takes the sixth); any other images named ``frost*`` do as well.
        size: Height and width of the images they are for.

    Returns:
        Tensors (3, h, w) in [0, 1].

    Raises:
        FileNotFoundError: If the folder holds no such image.
        ValueError: If a photograph is damaged, or smaller than the images once it is scaled.
    """
    paths = sorted(path for path in Path(folder).expanduser().glob("frost*") if path.is_file())[:5]
    if not paths:
        raise FileNotFoundError(
            f"Expected photographs of frost (frost1.png, ...) in {folder}, but there are none: get them from "
            "github.com/hendrycks/robustness, ImageNet-C/create_c, or name no folder for the texture made here."
        )
    side = math.log(min(size))
    scale = FROST_SCALE[min(FROST_SCALE, key=lambda known: abs(math.log(known) - side))]
    photographs = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is not a readable image: {error}.") from error
        pixels = F.interpolate(pixels[None], scale_factor=scale, mode="bilinear", align_corners=False)[0]
        if pixels.shape[1] <= size[0] or pixels.shape[2] <= size[1]:
            raise ValueError(
                f"{path}: a photograph of frost for images of {size[0]} x {size[1]} pixels must be larger than "
                f"that after scaling by {scale}, but this one has {pixels.shape[1]} x {pixels.shape[2]} then."
            )
        photographs.append(pixels)
    return photographs


def _frost_texture(images: Tensor, key: Tensor) -> Tensor:
    """Bluish ridges of several sizes, (N, 3, H, W) in [0, 1]: made up here, not the authors' photographs."""
    size = list(images.shape[2:])
    texture = torch.zeros(len(images), 1, *size, device=images.device)
    for octave in range(4):
        cells = 3 * 2**octave
        noise = _uniform(key, octave, (1, cells, cells))
        noise = F.interpolate(noise, size, mode="bicubic", align_corners=True)
        texture += 2.0**-octave * (1 - (2 * noise - 1).abs()) ** 2
    low, high = (texture.flatten(1).aminmax(dim=1)[i].reshape(-1, 1, 1, 1) for i in (0, 1))
    tint = torch.tensor([0.85, 0.95, 1.0], device=images.device)[:, None, None]
    return (texture - low) / (high - low) * tint


def frost(images: Tensor, severity: int, key: Tensor, *, photographs: Sequence[Tensor] | None = None) -> Tensor:
    """Frost on the lens: a x + b f, cut to [0, 1], with f a random piece of a random photograph.

    The authors' photographs are not shipped. Without them f is a texture made here, ridges of random noise
    of several sizes, which is frost in its look and weight, but other pictures: such figures are not those
    of the official files.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3; a grey image gets the luma of the frost.
        severity: 1 to 5.
        key: (N,) int64, one key per image.
        photographs: What :func:`frost_photographs` returns; None: the texture.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness; the texture is ours.

    Example:
        >>> icy = frost(torch.zeros(2, 3, 32, 32), 5, torch.tensor([1, 2]))
        >>> round(icy.max().item(), 2)  # the weight of the frost
        0.45
    """
    weights: tuple[float, float] = _constant("frost", images, severity, key)
    if photographs is None:
        ice = _frost_texture(images, key)
    else:
        height, width = images.shape[2:]
        which = integers(key_of(key, 0), len(photographs)).tolist()
        places = _uniform(key, 1, (2,)).tolist()
        pieces = []
        for i, (down, right) in zip(which, places, strict=True):
            top, left = int(down * (photographs[i].shape[1] - height)), int(right * (photographs[i].shape[2] - width))
            pieces.append(photographs[i][:, top : top + height, left : left + width])
        ice = torch.stack(pieces).to(images)
    return (weights[0] * images + weights[1] * _like(ice, images)).clamp_(0, 1)


def _plasma(key: Tensor, side: int, decay: float) -> Tensor:
    """Clouds by the diamond-square algorithm: (N, side, side) in [0, 1], side a power of two.

    Of a grid that wraps around, the centres of the squares and then the middles of their edges become the
    mean of their four neighbours plus w^2 u, u uniform in [-1, 1]; the grid is halved, and so is w divided
    by the decay, 100 at first.

    Source: Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", CACM 1982.
    """
    clouds = torch.zeros(len(key), side, side, device=key.device)
    step, wibble, stream = side, 100.0, 0
    while step >= 2:
        half = step // 2
        corner = clouds[:, ::step, ::step]
        count = corner.shape[1]
        noise = wibble**2 * (2 * _uniform(key, stream, (3, count, count)) - 1)
        below = corner + corner.roll(-1, 1)
        centre = (below + below.roll(-1, 2)) / 4 + noise[:, 0]
        top = (centre + centre.roll(1, 1) + corner + corner.roll(-1, 2)) / 4 + noise[:, 1]
        left = (centre + centre.roll(1, 2) + below) / 4 + noise[:, 2]
        clouds[:, half::step, half::step] = centre
        clouds[:, ::step, half::step] = top
        clouds[:, half::step, ::step] = left
        step, wibble, stream = half, wibble / decay, stream + 1
    low, high = clouds.flatten(1).aminmax(dim=1)
    return (clouds - low[:, None, None]) / (high - low)[:, None, None]


def fog(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Clouds p in front of the object: (x + c p) max(x) / (max(x) + c).

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> fog(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).max() <= 0.5
        tensor(True)
    """
    weight: float
    weight, decay = _constant("fog", images, severity, key)
    height, width = images.shape[2:]
    clouds = _plasma(key, 1 << (max(height, width, 2) - 1).bit_length(), decay)[:, None, :height, :width]
    most = images.amax((1, 2, 3), keepdim=True)
    return ((images + weight * clouds) * (most / (most + weight))).clamp_(0, 1)


# -- digital -------------------------------------------------------------------------------------------------


def brightness(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """More light: HSV's value v = max(r, g, b) becomes min(v + c, 1), hue and saturation stay.

    So every channel is multiplied by the new value over the old one; black becomes grey.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> brightness(torch.tensor([0.5, 0.25, 0.0]).reshape(1, 3, 1, 1), 5, torch.tensor([0])).flatten()
        tensor([0.8000, 0.4000, 0.0000])
    """
    more = _constant("brightness", images, severity, key)
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp(0, 1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-12)), brighter).clamp_(0, 1)


def contrast(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Less contrast: c (x - m) + m, with m the mean of each channel of the image.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> contrast(torch.tensor([[[[0.0, 1.0]]]]), 2, torch.tensor([0]))
        tensor([[[[0.2500, 0.7500]]]])
    """
    factor = _constant("contrast", images, severity, key)
    return torch.lerp(images.mean((2, 3), keepdim=True), images, factor).clamp_(0, 1)


def _warp(images: Tensor, columns: Tensor, rows: Tensor, *, about_centres: bool) -> Tensor:
    """Bilinear values at (N, H, W) positions in pixels; outside mirrored about the last pixel's centre or edge."""
    height, width = images.shape[2:]
    if about_centres:
        grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], -1)
    else:
        grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=about_centres)


def elastic_transform(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Stretched and wobbled: a random affine map, then each pixel displaced by smooth noise.

    The affine map moves three corners of a square around the centre, a third of the image's side away from
    it, by amounts uniform in [-c, c] pixels. The displacement is alpha times uniform noise in [-1, 1],
    convolved with a Gaussian.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness; Simard et al.,
        "Best practices for convolutional neural networks", ICDAR 2003.

    Example:
        >>> elastic_transform(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).std() < 1e-6
        tensor(True)
    """
    alpha, sigma, shift = _constant("elastic_transform", images, severity, key)
    height, width = images.shape[2:]
    across, down, side = width // 2, height // 2, min(height, width) // 3
    corners = torch.tensor(
        [[across + side, down + side], [across + side, down - side], [across - side, down - side]],
        dtype=torch.float32,
        device=images.device,
    )
    moved = corners + shift * (2 * _uniform(key, 0, (3, 2)) - 1)
    # from where each pixel comes: (x, y, 1) of the moved corners times this are the corners
    affine = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners.expand(len(images), -1, -1))
    rows, columns = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=images.device) for n in (height, width)), indexing="ij"
    )
    place = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ affine[:, None]
    out = _warp(images, place[..., 0], place[..., 1], about_centres=True)
    if alpha:
        noise = alpha * _gaussian(2 * _uniform(key, 1, (2, height, width)) - 1, sigma, "reflect", 3.0)
        out = _warp(out, columns + noise[:, 0], rows + noise[:, 1], about_centres=False)
    return out.clamp_(0, 1)


def pixelate(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Too few pixels: scaled down and up again by Pillow's box filter, in bytes as it works.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3; rounded to bytes.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1], multiples of 1/255.

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> ramp = torch.arange(64).div(255).expand(1, 1, 64, 64)
        >>> pixelate(ramp, 5, torch.tensor([0]))[0, 0, 0, :4] * 255
        tensor([1., 1., 3., 3.])
    """
    share = _constant("pixelate", images, severity, key)
    height, width = images.shape[2:]
    low, narrow = max(1, int(height * share)), max(1, int(width * share))
    out = torch.round(images * 255)
    for rows, columns in ((low, narrow), (height, width)):
        for axis, (size, result) in ((3, (out.shape[3], columns)), (2, (out.shape[2], rows))):
            matrix = torch.from_numpy(_box_matrix(size, result)).to(out)
            out = torch.floor((out @ matrix.T if axis == 3 else matrix @ out) + 0.5)
    return out / 255


def jpeg_compression(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Packed into a JPEG file of low quality and unpacked, by Pillow, image by image on the processor.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3; rounded to bytes.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1], multiples of 1/255.

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> jpeg_compression(torch.ones(1, 1, 28, 28), 5, torch.tensor([0])).unique() > 0.99
        tensor([True])
    """
    quality = _constant("jpeg_compression", images, severity, key)
    pixels = torch.round(images * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels)
    for i, image in enumerate(pixels.squeeze(3) if pixels.shape[3] == 1 else pixels):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as unpacked:
            out[i] = np.asarray(unpacked).reshape(out.shape[1:])
    return torch.from_numpy(out).to(images.device).permute(0, 3, 1, 2).float() / 255


def saturate(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """More or less colour (extra): HSV's saturation s becomes min(a s + b, 1), hue and value stay.

    So v - x is multiplied by the new saturation over the old one in every channel. What is grey has hue 0,
    red, in HSV: where b > 0 it turns reddish.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3; a grey image gives the luma of what its three
            equal channels become: the same for severities 1 to 3, a little darker for 4 and 5.
        severity: 1 to 5.
        key: (N,) int64, one key per image; nothing here is random.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> saturate(torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1), 1, torch.tensor([0])).flatten()
        tensor([0.5000, 0.4700, 0.4400])
    """
    factor, more = _constant("saturate", images, severity, key)
    colour = images.expand(-1, 3, -1, -1)
    value = colour.amax(1, keepdim=True)
    missing = value - colour
    saturation = missing.amax(1, keepdim=True) / value.clamp(min=1e-12)
    new = (factor * saturation + more).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device)[:, None, None]
    missing = torch.where(saturation > 0, missing * (new / saturation.clamp(min=1e-12)), value * new * red)
    return _like(value - missing, images).clamp_(0, 1)


# -- spatter -------------------------------------------------------------------------------------------------


def _filter3(images: Tensor, kernel: Sequence[Sequence[float]], mode: str = "reflect") -> Tensor:
    """Correlation of (N, 1, H, W) with a kernel of 3 x 3."""
    weight = torch.tensor(kernel, dtype=images.dtype, device=images.device)
    return F.conv2d(F.pad(images, (1,) * 4, mode=mode), weight[None, None])


def _canny(levels: Tensor, low: float, high: float) -> Tensor:
    """Canny's edges of (N, 1, H, W), values 0 ... 255, with Sobel's gradient and its L1 norm, as OpenCV's.

    Source: Canny, "A computational approach to edge detection", PAMI 1986.
    """
    sobel = [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]
    across = _filter3(levels, sobel, "replicate")
    down = _filter3(levels, [list(row) for row in zip(*sobel, strict=True)], "replicate")
    size = across.abs() + down.abs()
    height, width = levels.shape[2:]
    around = F.pad(size, (1,) * 4)

    def at(i: int, j: int) -> Tensor:
        return around[:, :, 1 + i : 1 + i + height, 1 + j : 1 + j + width]

    flat = down.abs() < math.tan(math.pi / 8) * across.abs()
    steep = down.abs() > math.tan(3 * math.pi / 8) * across.abs()
    rising = (across < 0) != (down < 0)
    before = torch.where(flat, at(0, -1), torch.where(steep, at(-1, 0), torch.where(rising, at(-1, 1), at(-1, -1))))
    after = torch.where(flat, at(0, 1), torch.where(steep, at(1, 0), torch.where(rising, at(1, -1), at(1, 1))))
    # of two equal neighbours the first one is the edge; on a diagonal neither
    ridge = (size > before) & torch.where(flat | steep, size >= after, size > after)
    weak = ridge & (size > low)
    edges = weak & (size > high)
    while True:
        grown = (F.max_pool2d(edges.float(), 3, 1, 1) > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance(edges: Tensor, most: int) -> Tensor:
    """Euclidean distance of each pixel to the nearest edge, at most ``most``; along rows, then columns."""
    squared = torch.where(edges, 0.0, float(most**2))
    for axis in (2, 3):
        nearest, size = squared.clone(), squared.shape[axis]
        for step in range(1, min(most, size)):
            ahead, behind = squared.narrow(axis, step, size - step), squared.narrow(axis, 0, size - step)
            here = nearest.narrow(axis, 0, size - step)
            here.copy_(torch.minimum(here, ahead + step**2))
            here = nearest.narrow(axis, step, size - step)
            here.copy_(torch.minimum(here, behind + step**2))
        squared = nearest
    return squared.sqrt()


def _equalize(levels: Tensor) -> Tensor:
    """Levels 0 ... 255 of (N, 1, H, W) spread so that each is equally frequent; the lowest one becomes 0."""
    flat = levels.long().flatten(1)
    counts = torch.zeros(len(flat), 256, device=levels.device).scatter_add_(1, flat, torch.ones_like(flat).float())
    lowest = counts.gather(1, flat.amin(1, keepdim=True))
    rest = flat.shape[1] - lowest
    spread = torch.round((counts.cumsum(1) - lowest) * (255 / rest.clamp(min=1)))
    return torch.where(rest > 0, spread.gather(1, flat), flat).reshape(levels.shape)


def spatter(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Drops of water (severities 1 to 3) or mud (4 and 5) on the lens (extra).

    Blurred normal noise above a threshold is the liquid. Water: pale turquoise is added, lit from one side
    by a relief of the distance to the liquid's edges. Mud: brown covers the image where the blurred liquid
    exceeds 0.8.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3; a grey image gets the luma of water and mud.
        severity: 1 to 5.
        key: (N,) int64, one key per image.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        TypeError: If the images are not float32.
        ValueError: If the shapes or the severity are wrong.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 3.2; github.com/hendrycks/robustness.

    Example:
        >>> black = spatter(torch.zeros(2, 3, 32, 32), 5, torch.tensor([1, 2]))
        >>> bool((black <= torch.tensor([63, 42, 20]).reshape(3, 1, 1) / 255 + 1e-6).all())  # mud
        True
    """
    strength: float
    mean, deviation, blur, threshold, strength, mud = _constant("spatter", images, severity, key)
    liquid = _gaussian(mean + deviation * _normal(key, 0, (1, *images.shape[2:])), blur)
    liquid = torch.where(liquid < threshold, 0, liquid)

    def colour(*rgb: int) -> Tensor:
        return _like(torch.tensor(rgb, device=images.device).reshape(1, 3, 1, 1) / 255, images)

    if mud:
        cover = _gaussian((liquid > threshold).float(), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        return torch.lerp(images, colour(63, 42, 20).expand_as(images), cover.expand_as(images)).clamp_(0, 1)
    levels = torch.floor(liquid * 255).remainder(256)  # bytes overflow in the authors' program
    mean3 = [[1 / 9] * 3] * 3
    relief = _equalize(torch.floor(_filter3(_distance(_canny(levels, 50, 150), 20), mean3) + 1e-3))
    relief = _filter3(relief, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]).clamp_(0, 255)
    light = levels * torch.round(_filter3(relief, mean3))
    light = light / light.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return (images + strength * light * colour(175, 238, 238)).clamp_(0, 1)


# -- all of them ---------------------------------------------------------------------------------------------

Corruption = Callable[[Tensor, int, Tensor], Tensor]

GROUPS: dict[str, dict[str, Corruption]] = {
    "noise": {"gaussian_noise": gaussian_noise, "shot_noise": shot_noise, "impulse_noise": impulse_noise},
    "blur": {
        "defocus_blur": defocus_blur,
        "glass_blur": glass_blur,
        "motion_blur": motion_blur,
        "zoom_blur": zoom_blur,
    },
    "weather": {"snow": snow, "frost": frost, "fog": fog, "brightness": brightness},
    "digital": {
        "contrast": contrast,
        "elastic_transform": elastic_transform,
        "pixelate": pixelate,
        "jpeg_compression": jpeg_compression,
    },
    "extra": {
        "speckle_noise": speckle_noise,
        "gaussian_blur": gaussian_blur,
        "spatter": spatter,
        "saturate": saturate,
    },
}
CORRUPTIONS: dict[str, Corruption] = {name: f for group in GROUPS.values() for name, f in group.items()}
EXTRA = tuple(GROUPS["extra"])
COMMON = tuple(name for name in CORRUPTIONS if name not in EXTRA)


def corrupt(
    images: Tensor,
    corruption: str,
    severity: int,
    key: Tensor,
    *,
    photographs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Corrupt images by the name of a corruption, in the 256 levels of the official files.

    Values are cut down to multiples of 1/255, as the authors' casts to bytes do.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        corruption: A key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        key: (N,) int64, one key per image.
        photographs: For ``frost``, see there.

    Returns:
        (N, C, H, W) float32 in [0, 1], multiples of 1/255.

    Raises:
        TypeError: If the images are not float32.
        ValueError: If there is no such corruption or severity, or the shapes are wrong.

    Example:
        >>> corrupt(torch.full((1, 1, 28, 28), 0.5), "brightness", 1, torch.tensor([0])).unique() * 255
        tensor([140.])
    """
    check_name(corruption, CORRUPTIONS, "corruption")
    if corruption == "frost":
        return _truncate(frost(images, severity, key, photographs=photographs))
    return _truncate(CORRUPTIONS[corruption](images, severity, key))
