"""Weather corruptions. Arguments, results and sources: see :mod:`hem.corruptions`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hem.corruptions.constants import constants, of_size
from hem.corruptions.pixels import like, luma, normal, streak, truncate, uniform, zoom
from hem.rng import integers
from hem.rng import key as key_of


def snow(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Add snow: flakes are zoomed normal noise above a threshold, blurred along a line (-135 to -45 degrees).

    The image is whitened, c x + (1 - c) max(x, 1.5 luma(x) + 0.5), and the flakes are added twice, the second time
    rotated by 180 degrees. A grey image is its own luma.

    Example:
        >>> white = snow(torch.zeros(2, 3, 32, 32), 5, torch.tensor([1, 2]))
        >>> bool((white >= 0.0999).all())  # (1 - 0.8) * 0.5
        True
    """
    mean, deviation, factor, threshold, radius, sigma, share = constants("snow", images, severity, key)
    flakes = zoom(mean + deviation * normal(key, 0, (1, *images.shape[2:])), factor)
    flakes = truncate(torch.where(flakes < threshold, 0, flakes).clamp_(0, 1))
    flakes = streak(flakes, radius, sigma, 90 * uniform(key, 1, ()) - 135)
    white = torch.maximum(images, 1.5 * luma(images) + 0.5)
    return torch.lerp(white, images, share).add_(flakes).add_(flakes.flip((2, 3))).clamp_(0, 1)


# By the side of the images: the factor by which the authors scale their photographs before they cut pieces out.
FROST_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}


def frost_photographs(folder: str | Path, size: tuple[int, int]) -> list[Tensor]:
    """Load the authors' photographs of frost and scale them as their program does.

    Args:
        folder: Folder with ``frost1.png`` to ``frost3.png``, ``frost4.jpg`` and ``frost5.jpg`` (the authors' program
            never takes the sixth), or any other images named ``frost*``.
        size: Height and width of the images that are to be corrupted.

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
    scale = of_size(FROST_SCALE, size)
    photographs = []
    for path in paths:
        try:
            with Image.open(path) as photograph:
                pixels = torch.from_numpy(np.array(photograph.convert("RGB"))).permute(2, 0, 1).float() / 255
        except OSError as error:
            raise ValueError(f"{path} is not a readable image ({error}): fetch it anew.") from error
        pixels = F.interpolate(pixels[None], scale_factor=scale, mode="bilinear", align_corners=False)[0]
        if pixels.shape[1] <= size[0] or pixels.shape[2] <= size[1]:
            raise ValueError(
                f"{path}: a photograph of frost for images of {size[0]} x {size[1]} pixels must be larger than "
                f"that after scaling by {scale}, but this one has {pixels.shape[1]} x {pixels.shape[2]} then."
            )
        photographs.append(pixels)
    return photographs


def _frost_texture(images: Tensor, key: Tensor) -> Tensor:
    """Generate a texture of bluish ridges of several sizes, (N, 3, H, W) in [0, 1], in place of the photographs."""
    size = list(images.shape[2:])
    texture = torch.zeros(len(images), 1, *size, device=images.device)
    for octave in range(4):
        cells = 3 * 2**octave
        noise = uniform(key, octave, (1, cells, cells))
        noise = F.interpolate(noise, size, mode="bicubic", align_corners=True)
        texture += 2.0**-octave * (1 - (2 * noise - 1).abs()) ** 2
    low, high = (texture.flatten(1).aminmax(dim=1)[i].reshape(-1, 1, 1, 1) for i in (0, 1))
    tint = torch.tensor([0.85, 0.95, 1.0], device=images.device)[:, None, None]
    return (texture - low) / (high - low) * tint


def frost(images: Tensor, severity: int, key: Tensor, *, photographs: Sequence[Tensor] | None = None) -> Tensor:
    """Add frost on the lens: a x + b f, clipped to [0, 1], with f a random crop of a random photograph.

    The authors' photographs are not included. Without them f is a generated texture, ridges of random noise of several
    sizes: similar in look and weight, but accuracies under it are not comparable with those on the official files.

    A grey image gets the luma of the frost. Arguments are those of all corruptions, and ``photographs``, as
    :func:`frost_photographs` returns them; None: the generated texture.

    Example:
        >>> icy = frost(torch.zeros(2, 3, 32, 32), 5, torch.tensor([1, 2]))
        >>> round(icy.max().item(), 2)  # the weight of the frost
        0.45
    """
    weights: tuple[float, float] = constants("frost", images, severity, key)
    if photographs is None:
        ice = _frost_texture(images, key)
    else:
        height, width = images.shape[2:]
        which = integers(key_of(key, 0), len(photographs)).tolist()
        places = uniform(key, 1, (2,)).tolist()
        pieces = []
        for i, (down, right) in zip(which, places, strict=True):
            top, left = int(down * (photographs[i].shape[1] - height)), int(right * (photographs[i].shape[2] - width))
            pieces.append(photographs[i][:, top : top + height, left : left + width])
        ice = torch.stack(pieces).to(images)
    return (weights[0] * images + weights[1] * like(ice, images)).clamp_(0, 1)


def _plasma(key: Tensor, side: int, decay: float) -> Tensor:
    """Generate clouds by the diamond-square algorithm: (N, side, side) in [0, 1], side a power of two.

    On a periodic grid, the centres of the squares and then the middles of their edges become the mean of their four
    neighbours plus w^2 u, u uniform in [-1, 1]. Then the grid spacing is halved and w, 100 at first, divided by
    ``decay``.

    Source: Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", CACM 1982.
    """
    clouds = torch.zeros(len(key), side, side, device=key.device)
    step, wibble, stream = side, 100.0, 0
    while step >= 2:
        half = step // 2
        corner = clouds[:, ::step, ::step]
        count = corner.shape[1]
        noise = wibble**2 * (2 * uniform(key, stream, (3, count, count)) - 1)
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
    """Add fog, random clouds p in front of the object: (x + c p) max(x) / (max(x) + c).

    Example:
        >>> fog(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).max() <= 0.5
        tensor(True)
    """
    weight: float
    weight, decay = constants("fog", images, severity, key)
    height, width = images.shape[2:]
    clouds = _plasma(key, 1 << (max(height, width, 2) - 1).bit_length(), decay)[:, None, :height, :width]
    most = images.amax((1, 2, 3), keepdim=True)
    return ((images + weight * clouds) * (most / (most + weight))).clamp_(0, 1)
