"""Corruptions: noise. Arguments, results and sources: see :mod:`hem.corruptions`."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from hem.corruptions.constants import constants
from hem.corruptions.pixels import normal, uniform


def gaussian_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Noise of low light: x + sigma z, z of the standard normal distribution, cut to [0, 1].

    Example:
        >>> noisy = gaussian_noise(torch.full((2, 1, 28, 28), 0.5), 5, torch.tensor([1, 2]))
        >>> round(noisy.std().item(), 2)
        0.1
    """
    sigma: float = constants("gaussian_noise", images, severity, key)
    return (images + sigma * normal(key, 0, images.shape[1:])).clamp_(0, 1)


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
    """Salt and pepper: a share of the values (of each channel apart) becomes 0 or 1, each as often.

    Example:
        >>> noisy = impulse_noise(torch.full((2, 1, 28, 28), 0.5), 5, torch.tensor([1, 2]))
        >>> noisy.unique().tolist()
        [0.0, 0.5, 1.0]
    """
    amount = constants("impulse_noise", images, severity, key)
    draw = uniform(key, 0, images.shape[1:])
    return torch.where(draw < amount, (draw < amount / 2).to(images.dtype), images)


def speckle_noise(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Noise in proportion to the light (extra): x + sigma x z, cut to [0, 1].

    Example:
        >>> speckle_noise(torch.zeros(2, 1, 28, 28), 5, torch.tensor([1, 2])).abs().sum()
        tensor(0.)
    """
    sigma: float = constants("speckle_noise", images, severity, key)
    return (images * (1 + sigma * normal(key, 0, images.shape[1:]))).clamp_(0, 1)
