"""Noise corruptions. Arguments, results and sources: see :mod:`hem.corruptions`."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from hem.corruptions.constants import constants
from hem.corruptions.pixels import normal, uniform


def gaussian_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Add normal noise, as in low light: x + sigma z, z standard normal, clipped to [0, 1].

    Example:
        >>> noisy = gaussian_noise(torch.full((2, 1, 28, 28), 0.5), 5, torch.tensor([1, 2]))
        >>> round(noisy.std().item(), 2)
        0.1
    """
    sigma: float = constants("gaussian_noise", images, severity, key)
    return (images + sigma * normal(key, 0, images.shape[1:])).clamp_(0, 1)


@lru_cache(maxsize=16)
def _poisson_table(photons: int) -> Tensor:
    """Return cumulative Poisson probabilities, (256, K): row r holds r + P(X <= k) for the mean photons * r / 255."""
    rate = torch.arange(256, dtype=torch.float64)[:, None] * photons / 255
    count = torch.arange(int(photons + 9 * math.sqrt(photons) + 30), dtype=torch.float64)
    table = torch.exp(torch.xlogy(count, rate) - rate - torch.lgamma(count + 1)).cumsum(1)
    table[:, -1] = 1
    return table.clamp_(max=1) + torch.arange(256)[:, None]


def shot_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Apply shot noise, of discrete photons: Poisson(c x) / c, clipped to [0, 1].

    The Poisson distribution is inverted exactly by a table for the 256 levels of a pixel; other values are rounded to
    the nearest level.

    Example:
        >>> noisy = shot_noise(torch.full((2, 3, 32, 32), 0.5), 5, torch.tensor([1, 2]))
        >>> round(noisy.var().item(), 3)  # x / c = 0.5 / 50
        0.01
    """
    photons: int = constants("shot_noise", images, severity, key)
    table = _poisson_table(photons).to(images.device)
    level = torch.round(images * 255).long().clamp_(0, 255)
    draw = level + uniform(key, 0, images.shape[1:]).double()
    count = torch.searchsorted(table.flatten(), draw, right=True) - level * table.shape[1]
    return (count / photons).float().clamp_(0, 1)


def impulse_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Apply salt-and-pepper noise: a share of the values, in each channel independently, becomes 0 or 1, equally often.

    Example:
        >>> noisy = impulse_noise(torch.full((2, 1, 28, 28), 0.5), 5, torch.tensor([1, 2]))
        >>> noisy.unique().tolist()
        [0.0, 0.5, 1.0]
    """
    amount = constants("impulse_noise", images, severity, key)
    draw = uniform(key, 0, images.shape[1:])
    return torch.where(draw < amount, (draw < amount / 2).to(images.dtype), images)


def speckle_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Add noise in proportion to the pixel (an extra corruption): x + sigma x z, z standard normal, clipped to [0, 1].

    Example:
        >>> speckle_noise(torch.zeros(2, 1, 28, 28), 5, torch.tensor([1, 2])).abs().sum()
        tensor(0.)
    """
    sigma: float = constants("speckle_noise", images, severity, key)
    return (images * (1 + sigma * normal(key, 0, images.shape[1:]))).clamp_(0, 1)
