"""The spatter corruption. Arguments, results and sources: see :mod:`hem.corruptions`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hem.corruptions.constants import constants
from hem.corruptions.pixels import gaussian, like, normal


def _filter3(images: Tensor, kernel: Sequence[Sequence[float]], mode: str = "reflect") -> Tensor:
    """Correlate (N, 1, H, W) with a kernel of 3 x 3."""
    weight = torch.tensor(kernel, dtype=images.dtype, device=images.device)
    return F.conv2d(F.pad(images, (1,) * 4, mode=mode), weight[None, None])


def _canny(levels: Tensor, low: float, high: float) -> Tensor:
    """Find edges by Canny's method, with Sobel's gradient and its L1 norm as in OpenCV; (N, 1, H, W), values 0 to 255.

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
    # of two equal neighbours the first is the edge, on a diagonal neither
    ridge = (size > before) & torch.where(flat | steep, size >= after, size > after)
    weak = ridge & (size > low)
    edges = weak & (size > high)
    while True:
        grown = (F.max_pool2d(edges.float(), 3, 1, 1) > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance(edges: Tensor, most: int) -> Tensor:
    """Return the Euclidean distance of pixels to the nearest edge, clipped at ``most``; along rows, then columns."""
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
    """Equalise the histogram of levels 0 to 255, (N, 1, H, W); the lowest level becomes 0."""
    flat = levels.long().flatten(1)
    none = torch.zeros(len(flat), 256, device=levels.device, dtype=torch.float32)  # whatever the default dtype is
    counts = none.scatter_add_(1, flat, torch.ones_like(flat).float())
    lowest = counts.gather(1, flat.amin(1, keepdim=True))
    rest = flat.shape[1] - lowest
    spread = torch.round((counts.cumsum(1) - lowest) * (255 / rest.clamp(min=1)))
    return torch.where(rest > 0, spread.gather(1, flat), flat).reshape(levels.shape)


def spatter(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Add drops of water (severities 1 to 3) or mud (4 and 5) on the lens (an extra corruption).

    The liquid is where blurred normal noise exceeds a threshold. Water: pale turquoise is added, lit from one side by a
    relief of the distance to the liquid's edges. Mud: brown covers the image where the blurred liquid exceeds 0.8.

    A grey image gets the luma of water and mud.

    Example:
        >>> black = spatter(torch.zeros(2, 3, 32, 32), 5, torch.tensor([1, 2]))
        >>> bool((black <= torch.tensor([63, 42, 20]).reshape(3, 1, 1) / 255 + 1e-6).all())  # mud
        True
    """
    strength: float
    mean, deviation, blur, threshold, strength, mud = constants("spatter", images, severity, key)
    liquid = gaussian(mean + deviation * normal(key, 0, (1, *images.shape[2:])), blur)
    liquid = torch.where(liquid < threshold, 0, liquid)

    def colour(*rgb: int) -> Tensor:
        return like(torch.tensor(rgb, device=images.device).reshape(1, 3, 1, 1) / 255, images)

    if mud:
        cover = gaussian((liquid > threshold).float(), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        return torch.lerp(images, colour(63, 42, 20).expand_as(images), cover.expand_as(images)).clamp_(0, 1)
    levels = torch.floor(liquid * 255).remainder(256)  # the authors' program lets bytes overflow
    mean3 = [[1 / 9] * 3] * 3
    relief = _equalize(torch.floor(_filter3(_distance(_canny(levels, 50, 150), 20), mean3) + 1e-3))
    relief = _filter3(relief, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]).clamp_(0, 255)
    light = levels * torch.round(_filter3(relief, mean3))
    light = light / light.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return (images + strength * light * colour(175, 238, 238)).clamp_(0, 1)
