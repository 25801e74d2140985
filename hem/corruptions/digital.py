"""Digital corruptions. Arguments, results and sources: see :mod:`hem.corruptions`."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hem.corruptions.constants import constants
from hem.corruptions.pixels import box_matrix, gaussian, like, uniform


def brightness(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Brighten: the value of HSV, v = max(r, g, b), becomes min(v + c, 1); hue and saturation stay.

    So every channel is multiplied by the new value over the old one; black becomes grey. Not random.

    Example:
        >>> brightness(torch.tensor([0.5, 0.25, 0.0]).reshape(1, 3, 1, 1), 5, torch.tensor([0])).flatten()
        tensor([0.8000, 0.4000, 0.0000])
    """
    more = constants("brightness", images, severity, key)
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp(0, 1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-12)), brighter).clamp_(0, 1)


def contrast(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Reduce the contrast: c (x - m) + m, with m the mean of each channel of the image.

    Not random.

    Example:
        >>> contrast(torch.tensor([[[[0.0, 1.0]]]]), 2, torch.tensor([0]))
        tensor([[[[0.2500, 0.7500]]]])
    """
    factor = constants("contrast", images, severity, key)
    return torch.lerp(images.mean((2, 3), keepdim=True), images, factor).clamp_(0, 1)


def warp(images: Tensor, columns: Tensor, rows: Tensor, *, about_centres: bool) -> Tensor:
    """Sample images bilinearly at positions in pixels.

    Args:
        images: (N, C, H, W).
        columns: Horizontal positions, (N, H, W).
        rows: Vertical positions, (N, H, W).
        about_centres: Whether pixels outside are mirrored about the centre of the last pixel, not about its edge.
    """
    height, width = images.shape[2:]
    if about_centres:
        grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], -1)
    else:
        grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=about_centres)


def elastic_transform(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Deform elastically: a random affine map, then a displacement of each pixel by smooth noise.

    The affine map moves three corners of a square around the centre, a third of the image's side away from it, by
    amounts uniform in [-c, c] pixels. The displacement is alpha times uniform noise in [-1, 1],
    convolved with a Gaussian.

    Source of the displacement: Simard et al., "Best practices for convolutional neural networks", ICDAR 2003.

    Example:
        >>> elastic_transform(torch.full((1, 1, 28, 28), 0.5), 5, torch.tensor([1])).std() < 1e-6
        tensor(True)
    """
    alpha, sigma, shift = constants("elastic_transform", images, severity, key)
    height, width = images.shape[2:]
    across, down, side = width // 2, height // 2, min(height, width) // 3
    corners = torch.tensor(
        [[across + side, down + side], [across + side, down - side], [across - side, down - side]],
        dtype=torch.float32,
        device=images.device,
    )
    moved = corners + shift * (2 * uniform(key, 0, (3, 2)) - 1)
    # maps a pixel to its source: (x, y, 1) of the moved corners times this matrix are the corners
    affine = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners.expand(len(images), -1, -1))
    rows, columns = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=images.device) for n in (height, width)), indexing="ij"
    )
    place = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ affine[:, None]
    out = warp(images, place[..., 0], place[..., 1], about_centres=True)
    if alpha:
        noise = alpha * gaussian(2 * uniform(key, 1, (2, height, width)) - 1, sigma, "reflect", 3.0)
        out = warp(out, columns + noise[:, 0], rows + noise[:, 1], about_centres=False)
    return out.clamp_(0, 1)


def pixelate(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Pixelate: scale down and up again by Pillow's box filter.

    Pillow computes in bytes, so the images and the result are rounded to them. Not random.

    Example:
        >>> ramp = torch.arange(64).div(255).expand(1, 1, 64, 64)
        >>> pixelate(ramp, 5, torch.tensor([0]))[0, 0, 0, :4] * 255
        tensor([1., 1., 3., 3.])
    """
    share = constants("pixelate", images, severity, key)
    height, width = images.shape[2:]
    low, narrow = max(1, int(height * share)), max(1, int(width * share))
    out = torch.round(images * 255)
    for rows, columns in ((low, narrow), (height, width)):
        for axis, (size, result) in ((3, (out.shape[3], columns)), (2, (out.shape[2], rows))):
            matrix = torch.from_numpy(box_matrix(size, result)).to(out)
            out = torch.floor((out @ matrix.T if axis == 3 else matrix @ out) + 0.5)
    return out / 255


def jpeg_compression(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Compress to JPEG of low quality and decompress, by Pillow, image by image on the CPU.

    The images and the result are rounded to bytes. Not random.

    Example:
        >>> jpeg_compression(torch.ones(1, 1, 28, 28), 5, torch.tensor([0])).unique() > 0.99
        tensor([True])
    """
    quality = constants("jpeg_compression", images, severity, key)
    pixels = torch.round(images * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels)
    for i, image in enumerate(pixels.squeeze(3) if pixels.shape[3] == 1 else pixels):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as unpacked:
            out[i] = np.asarray(unpacked).reshape(out.shape[1:])
    return torch.from_numpy(out).to(images.device).permute(0, 3, 1, 2).float() / 255


def saturate(images: Tensor, severity: int, key: Tensor) -> Tensor:
    """Change the saturation s of HSV to min(a s + b, 1) (an extra corruption); hue and value stay.

    So v - x is multiplied by the new saturation over the old one in every channel. Grey pixels have hue 0, red, in HSV:
    where b > 0 they turn reddish.

    Of a grey image the result is the luma of its changed three equal channels: unchanged for severities 1 to 3, a
    little darker for 4 and 5. Not random.

    Example:
        >>> saturate(torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1), 1, torch.tensor([0])).flatten()
        tensor([0.5000, 0.4700, 0.4400])
    """
    factor, more = constants("saturate", images, severity, key)
    colour = images.expand(-1, 3, -1, -1)
    value = colour.amax(1, keepdim=True)
    missing = value - colour
    saturation = missing.amax(1, keepdim=True) / value.clamp(min=1e-12)
    new = (factor * saturation + more).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device)[:, None, None]
    missing = torch.where(saturation > 0, missing * (new / saturation.clamp(min=1e-12)), value * new * red)
    return like(value - missing, images).clamp_(0, 1)
