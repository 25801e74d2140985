"""Unrecognisable images: noise and destroyed images, functions of seed and position, so the same for all networks.

Functions of noise take the shape (C, H, W) of an image, those of destroyed images the images that they destroy; both
take
a seed and the positions (N,) int64 of the images to return.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hem.datamodules.images import NO_TARGET, Images, MemoryImages
from hem.rng import key, uniform


class DerivedImages(Images):
    """Images that are generated on access, from their positions.

    Args:
        make: From positions (N,) int64 to images (N, C, H, W) uint8.
        count: Number of images.
        name: Name of the set in tables.
    """

    def __init__(self, make: Callable[[Tensor], Tensor], count: int, name: str) -> None:
        self.make = make
        self.name = name
        self.targets = torch.full((count,), NO_TARGET)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.make(torch.tensor([index]))[0], NO_TARGET

    def in_memory(self, index: Tensor) -> MemoryImages:
        """Return the images at some positions, generated in batches of 500, in memory."""
        images = torch.cat([self.make(part) for part in torch.split(index, 500)])
        return MemoryImages(images, self.targets[index], self.name)


def stacked(images: Images, index: Tensor) -> Tensor:
    """Return the images at positions ``index`` (N,) as one tensor (N, C, H, W) uint8 on the CPU."""
    return images.take(index.to(images.device or "cpu"))[0].cpu()


def _draw(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return uniform numbers in [0, 1), (N, *shape), for images at positions ``index`` (N,)."""
    return uniform(key(seed, stream, index), math.prod(shape)).view(-1, *shape)


def _bytes(pixels: Tensor) -> Tensor:
    """Clip pixels to [0, 1] and convert them to bytes."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def uniform_noise(shape: tuple[int, int, int], seed: int, index: Tensor) -> Tensor:
    """Return uniform noise, all values independent: (N, C, H, W) uint8.

    Example:
        >>> uniform_noise((1, 28, 28), 0, torch.arange(2)).shape
        torch.Size([2, 1, 28, 28])
    """
    return (_draw(seed, 1, index, shape) * 256).to(torch.uint8)


def gaussian_noise(shape: tuple[int, int, int], seed: int, index: Tensor) -> Tensor:
    """Return normal noise with mean 1/2 and standard deviation 1/4, clipped to [0, 1]: (N, C, H, W) uint8.

    For pixels in [-1, 1] this is the standard deviation 1/2 of the outlier-exposure code. Source: Hendrycks et al.,
    "Deep anomaly detection with outlier exposure", ICLR 2019, appendix.
    """
    radius, angle = _draw(seed, 2, index, (2, *shape)).unbind(1)
    normal = (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)
    return _bytes(0.5 + 0.25 * normal)


def blobs(shape: tuple[int, int, int], seed: int, index: Tensor) -> Tensor:
    """Return blobs: Bernoulli(0.7) pixels, blurred (Gaussian, sigma 1.5 pixels), below 3/4 black: (N, C, H, W) uint8.

    As in the outlier-exposure code, the channels are a third axis of the blur. Source: Hendrycks et al.,
    "Deep anomaly detection with outlier exposure", ICLR 2019, appendix.
    """
    pixels = (_draw(seed, 3, index, shape) < 0.7).float().numpy()
    blurred = torch.from_numpy(gaussian_filter(pixels, sigma=(0, 1.5, 1.5, 1.5), mode="nearest"))
    return _bytes(torch.where(blurred < 0.75, 0.0, blurred))


def permuted(images: Images, seed: int, index: Tensor) -> Tensor:
    """Return images with permuted pixels, by a different permutation for each image: (N, C, H, W) uint8."""
    pixels = stacked(images, index)
    place = torch.arange(pixels.shape[2] * pixels.shape[3])
    order = torch.argsort(key(seed, 4, index[:, None], place), dim=1)
    return pixels.flatten(2).gather(2, order[:, None].expand(-1, pixels.shape[1], -1)).view(pixels.shape)


def phase_randomised(images: Images, seed: int, index: Tensor) -> Tensor:
    """Return images with the phases of their Fourier transform replaced by those of white noise: (N, C, H, W) uint8.

    All channels get the same phases. The mean is kept, except for clipping to [0, 1]: its phase is 0 for noise in [0,
    1). Source: Spratling, "A comprehensive assessment benchmark for rigorously evaluating deep learning image
    classifiers", Neural Networks 192, 2025, which names the kind of image.
    """
    pixels = stacked(images, index).float() / 255
    size = (pixels.shape[2], pixels.shape[3])
    phases = torch.fft.rfft2(_draw(seed, 5, index, (1, *size))).angle()
    return _bytes(torch.fft.irfft2(torch.polar(torch.fft.rfft2(pixels).abs(), phases), s=size))
