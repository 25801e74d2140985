"""The eps-ball around an image, in L-inf or L2, within [0, 1]."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hem.checks import check_pixels
from hem.rng import key, normal, uniform

Norm = Literal["linf", "l2"]


def check_eps(eps: float, norm: str, dimension: int | None = None) -> None:
    """Refuse an eps that is not in pixel units of [0, 1], or an unknown norm.

    Args:
        eps: Radius of the ball.
        norm: ``"linf"`` or ``"l2"``.
        dimension: Numbers in an image, where it is known: the L2 diameter of [0, 1]^d is √d.

    Raises:
        ValueError: With what was expected.

    Example:
        >>> check_eps(8, "linf")
        Traceback (most recent call last):
        ...
        ValueError: Expected an L-inf eps in [0, 1], as pixels are, got 8: for 8/255 write 0.03137.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"Expected the norm 'linf' or 'l2', got '{norm}': choose one of them.")
    if norm == "linf" and not 0 <= eps <= 1:
        mend = f"for {eps:g}/255 write {eps / 255:.4g}" if 1 < eps <= 255 else "give a radius"
        raise ValueError(f"Expected an L-inf eps in [0, 1], as pixels are, got {eps:g}: {mend}.")
    limit = math.inf if dimension is None else math.sqrt(dimension)
    if norm == "l2" and not 0 <= eps <= limit * (1 + 1e-6):
        raise ValueError(
            f"Expected an L2 eps in [0, {limit:.4g}], the diagonal of [0, 1]^d, got {eps:g}: pixels are in [0, 1]."
        )


def check_images(input: Tensor, eps: float, norm: str) -> None:
    """Refuse images (N, ...) outside [0, 1] or of half precision, and an eps or norm as :func:`check_eps` does.

    In bfloat16 neighbouring pixels are up to 1/256 apart, as far as the radii that attacks are measured with.
    """
    check_pixels(input)
    if input.dtype.itemsize < 4:
        raise TypeError(
            f"Expected images of single precision to attack, got {input.dtype}, whose rounding is as large as a small "
            "radius: give float32 (trainer.precision bf16-mixed computes with half precision, and leaves pixels alone)."
        )
    check_eps(eps, norm, input[0].numel() if len(input) else None)


def length(flat: Tensor) -> Tensor:
    """Return the Euclidean length of each row, shape (N, 1)."""
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return lengths


def project(point: Tensor, center: Tensor, eps: float, norm: Norm) -> Tensor:
    """Return the nearest point that is within eps of the centre and in [0, 1].

    L-inf: coordinates are clamped. L2: the nearest point is center + clamp(s u, -center, 1 - center), with
    u = point - center and the largest s <= 1 that keeps its length at most eps. For a set S of clamped
    coordinates s = √((eps² - Σ_S bound²) / Σ_{not S} u²); S only grows with s, so a few rounds find it, and
    every round's point is allowed.

    Args:
        point: Shape (N, ...).
        center: Clean images in [0, 1], same shape.
        eps: Radius.
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        Same shape.

    Example:
        >>> project(torch.tensor([[1.5, 0.9]]), torch.tensor([[0.9, 0.5]]), 0.5, "l2")
        tensor([[1.0000, 0.9000]])
    """
    if norm == "linf":
        return point.maximum(center - eps).minimum(center + eps).clamp(0, 1)
    u = (point - center).flatten(1)
    low, high = -center.flatten(1), 1 - center.flatten(1)
    tiny = torch.finfo(u.dtype).tiny
    scale = (eps / length(u).clamp_min(tiny)).clamp_max(1)
    inside = torch.ones_like(u, dtype=torch.bool)
    for _ in range(20):
        moved = scale * u
        free = (moved > low) & (moved < high)
        if torch.equal(free, inside):
            break
        inside = free
        bounds = torch.where(free, 0, moved.clamp(low, high)).square().sum(1, keepdim=True)
        rest = length(torch.where(free, u, 0))
        grown = (eps**2 - bounds).clamp_min(0).sqrt() / rest.clamp_min(tiny)
        scale = torch.where(rest > 0, grown.maximum(scale).clamp_max(1), scale)
    moved = (scale * u).clamp(low, high)
    return (center + moved.view_as(center)).clamp(0, 1)


def random_start(center: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
    """Return a uniform random point of the ball around each image, within [0, 1], drawn by the image's key (N,)."""
    count = center.flatten(1).shape[1]
    if norm == "linf":
        noise = uniform(keys, count) * 2 - 1
    else:
        noise = normal(keys, count)
        radius = uniform(key(keys, 1), 1) ** (1 / count)
        noise = noise / length(noise) * radius
    return project(center + eps * noise.to(center).view_as(center), center, eps, norm)


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the steepest ascent direction: sign(g) in L-inf, g / ||g||_2 in L2; 0 where g is 0.

    Example:
        >>> ascent(torch.tensor([[3e-30, -4e-30]]), "l2")
        tensor([[ 0.6000, -0.8000]])
    """
    gradient = torch.nan_to_num(gradient)  # one NaN would count as a successful attack
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    tiny = torch.finfo(flat.dtype).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)  # squares of small gradients underflow
    flat = flat / length(flat).clamp_min(tiny)
    return flat.view_as(gradient)
