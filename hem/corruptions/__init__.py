"""Common corruptions: noise, blur, weather and digital changes of five severities, on batches of images.

The 15 common and 4 extra corruptions of Hendrycks & Dietterich, "Benchmarking neural network robustness to
common corruptions and perturbations", ICLR 2019, with the constants of their programs
(github.com/hendrycks/robustness, ``ImageNet-C/create_c``): those of CIFAR-10-C for images nearest to 32
pixels, of Tiny-ImageNet-C for those nearest to 64, of ImageNet-C for those nearest to 224. All of them are
functions of ``(images, severity, key)``, where the key of an image determines its random numbers
(:mod:`hem.rng`): the result for an image depends on its own pixels and key alone.

All of them have these arguments:

* ``images``: (N, C, H, W) float32 in [0, 1], C = 1 or 3;
* ``severity``: 1 to 5;
* ``key``: (N,) int64, one for each image.

They return images of the same shape and range, and raise a TypeError if the images are not float32, a ValueError if a
shape or the severity is wrong. Functions that name no source are those of section 3.2 of the paper, as in the authors'
program.

Grey images. The authors corrupt colour images only. Here a grey image of 28 pixels takes the constants of CIFAR-10-C;
noise is drawn for its one channel; corruptions that add colours (spatter, frost) or change them (saturate) are applied
to three equal channels, and the result is their luma (ITU-R BT.601). MNIST-C is another
set of corruptions, see :class:`~hem.datamodules.OfficialCorruptions`.

Differences from the authors' programs: images are not stored as JPEG files afterwards, as those of ImageNet-C are;
arithmetic is in float32, and interpolation exact, where OpenCV rounds positions to 1/32 pixel; the water of
:func:`spatter` measures Euclidean distances, where OpenCV approximates them; the photographs of :func:`frost` are not
included, and a generated texture replaces them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hem.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from hem.corruptions.constants import CONSTANTS, SEVERITIES, check_severity
from hem.corruptions.digital import brightness, contrast, elastic_transform, jpeg_compression, pixelate, saturate
from hem.corruptions.drops import spatter
from hem.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from hem.corruptions.pixels import truncate
from hem.corruptions.weather import fog, frost, frost_photographs, snow
from hem.names import check_name

__all__ = [
    "COMMON",
    "CONSTANTS",
    "CORRUPTIONS",
    "EXTRA",
    "GROUPS",
    "SEVERITIES",
    "check_severity",
    "corrupt",
    "frost_photographs",
]

Corruption = Callable[[Tensor, int, Tensor], Tensor]

KINDS: dict[str, tuple[Corruption, ...]] = {
    "noise": (gaussian_noise, shot_noise, impulse_noise),
    "blur": (defocus_blur, glass_blur, motion_blur, zoom_blur),
    "weather": (snow, frost, fog, brightness),
    "digital": (contrast, elastic_transform, pixelate, jpeg_compression),
    "extra": (speckle_noise, gaussian_blur, spatter, saturate),
}
GROUPS = {kind: {each.__name__: each for each in functions} for kind, functions in KINDS.items()}
"""The corruptions by kind and name."""
CORRUPTIONS: dict[str, Corruption] = {name: f for group in GROUPS.values() for name, f in group.items()}
"""Every corruption by name."""
EXTRA = tuple(GROUPS["extra"])
"""The four that Hendrycks & Dietterich keep aside, for choosing hyper-parameters."""
COMMON = tuple(name for name in CORRUPTIONS if name not in EXTRA)
"""The fifteen whose mean the field reports."""


def corrupt(
    images: Tensor,
    corruption: str,
    severity: int,
    key: Tensor,
    *,
    photographs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Apply a corruption by its name, and quantise the result to 256 levels like the official files.

    Values are rounded down to multiples of 1/255, as by the authors' casts to bytes.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C = 1 or 3.
        corruption: A key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        key: (N,) int64, one key per image.
        photographs: Of :func:`frost`.

    Returns:
        (N, C, H, W) float32 in [0, 1], multiples of 1/255.

    Raises:
        TypeError: If the images are not float32.
        ValueError: If there is no such corruption or severity, pixels are outside [0, 1], or the shapes are wrong.

    Example:
        >>> corrupt(torch.full((1, 1, 28, 28), 0.5), "brightness", 1, torch.tensor([0])).unique() * 255
        tensor([140.])
    """
    check_name(corruption, CORRUPTIONS, "corruption")
    with torch.autocast(images.device.type, enabled=False):  # images of a network in half precision are converted
        if corruption == "frost":
            return truncate(frost(images, severity, key, photographs=photographs))
        return truncate(CORRUPTIONS[corruption](images, severity, key))
