"""Sets of unknown images for tests of rejection, in the channels and size of the known data.

A name in :data:`UNKNOWN` stands for images of another data set (``novel``) or for noise and destroyed images
(``unrecognisable``). Noise is a function of (seed, position) alone, so that all networks get the same. The set
``nonsense`` is noise that :class:`hem.modules.RejectionTask` optimises until a network is confident about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from hem.datamodules.base import ImageDataModule
from hem.datamodules.datasets.digits import DigitsDataModule
from hem.datamodules.datasets.open_set import WHOLE, OpenSetDataModule
from hem.datamodules.images import NO_TARGET, FileImages, Fit, Images, conform, image_files
from hem.datamodules.noise import (
    DerivedImages,
    blobs,
    gaussian_noise,
    permuted,
    phase_randomised,
    stacked,
    uniform_noise,
)
from hem.names import near
from hem.rng import some

Kind = Literal["novel", "unrecognisable"]


class Unknown(NamedTuple):
    """An entry of :data:`UNKNOWN`."""

    kind: Kind
    load: Callable[[ImageDataModule, Path, int], Images]  # from the known data, the root folder and the seed


# -- novel: other data sets ----------------------------------------------------------------------------------


def _conformed(images: Images, channels: int, size: tuple[int, int], index: Tensor) -> Tensor:
    return conform(stacked(images, index), channels, size)


def _module(module: type[ImageDataModule]) -> Unknown:
    """Return the test part of another data module, in the channels and size of the known one."""

    def load(known: ImageDataModule, root: Path, seed: int) -> Images:
        other = module(root=str(root))
        try:
            images = other.load("test")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the test part of {other.title} is not in {root}; get it from {other.source} into that folder"
            ) from error
        make = partial(_conformed, images, known.in_channels, known.image_size)
        return DerivedImages(make, len(images), str(module.name))

    return Unknown("novel", load)


def _files(folders: Sequence[str], source: str, known: ImageDataModule, root: Path) -> FileImages:
    """Return the image files below the first existing one of some folders, scaled and cropped like the known images."""
    found = next((root / folder for folder in folders if (root / folder).is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"none of the folders {', '.join(folders)} is in {root}; get it from {source} into one of them"
        )
    paths = image_files(found)
    if not paths:
        raise FileNotFoundError(f"{found} holds no image; get it from {source}")
    fit = known.eval_transform()
    if fit.shorter is None:  # crop: photographs should not be stretched
        fit = Fit(known.image_size, min(known.image_size))
    return FileImages(paths, torch.full((len(paths),), NO_TARGET), fit, channels=known.in_channels)


def _folder(source: str, *folders: str) -> Unknown:
    return Unknown("novel", lambda known, root, seed: _files(folders, source, known, root))


def _omniglot(known: ImageDataModule, root: Path, seed: int) -> Images:
    """Return Omniglot's characters, inverted to white on black: the evaluation part, else the background part."""
    whole = ("omniglot-py/images_evaluation", "omniglot-py/images_background")
    small = [f"omniglot-small{i}/images_background_small{i}" for i in (1, 2)]
    source = "https://github.com/brendenlake/omniglot"
    parts: list[tuple[str, ...]] = [(part,) for part in small if (root / part).is_dir()]
    if not parts or any((root / folder).is_dir() for folder in whole):
        parts = [(*whole, *small)]
    images = [_files(part, source, known, root) for part in parts]
    paths = [path for each in images for path in each.paths]
    negative = v2.Compose([known.eval_transform(), v2.Lambda(TF.invert)])
    return FileImages(paths, torch.full((len(paths),), NO_TARGET), negative, channels=known.in_channels)


def _held_out(known: ImageDataModule, root: Path, seed: int) -> Images:
    """Return the images of the classes that an open-set split holds out."""
    if not isinstance(known, OpenSetDataModule):
        raise FileNotFoundError(
            f"{known.title} is known as a whole; take --data hem.datamodules.OpenSetDataModule, which holds classes out"
        )
    return known.unknown_images()


# -- unrecognisable: noise and destroyed images ---------------------------------------------------------------

NOISE_COUNT = 10_000  # images in a set of noise
IN_MEMORY = 2**27  # up to this many bytes of generated images are kept; larger sets are generated on access

Noise = Callable[[tuple[int, int, int], int, Tensor], Tensor]
Destroyer = Callable[[Images, int, Tensor], Tensor]


def _made(make: Noise, name: str) -> Unknown:
    def load(known: ImageDataModule, root: Path, seed: int) -> Images:
        return DerivedImages(partial(make, (known.in_channels, *known.image_size), seed), NOISE_COUNT, name)

    return Unknown("unrecognisable", load)


def _destroyed(make: Destroyer, name: str) -> Unknown:
    def load(known: ImageDataModule, root: Path, seed: int) -> Images:
        images = known.images("test")
        return DerivedImages(partial(make, images, seed), len(images), name)

    return Unknown("unrecognisable", load)


# -- by name -------------------------------------------------------------------------------------------------

OPENOOD = "https://github.com/Jingkang50/OpenOOD"
UNKNOWN: dict[str, Unknown] = {
    **{str(module.name): _module(module) for module in WHOLE.values() if module is not DigitsDataModule},
    "omniglot": Unknown("novel", _omniglot),
    "held_out": Unknown("novel", _held_out),
    "textures": _folder(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "dtd/images",
        "dtd/dtd/images",
        "images_classic/texture",
    ),
    "places": _folder(
        "http://places2.csail.mit.edu", "places365/val_256", "val_256", "places365", "images_classic/places365"
    ),
    "lsun": _folder("https://www.yf.io/p/lsun", "LSUN_resize", "LSUN", "lsun"),
    "imagenet_o": _folder("https://github.com/hendrycks/natural-adv-examples", "imagenet-o"),
    "inaturalist": _folder(OPENOOD, "iNaturalist/images", "inaturalist", "images_largescale/inaturalist"),
    "ssb_hard": _folder(OPENOOD, "ssb_hard", "images_largescale/ssb_hard"),
    "ninco": _folder("https://github.com/j-cb/NINCO", "NINCO/NINCO_OOD_classes", "ninco", "images_largescale/ninco"),
    "openimage_o": _folder(OPENOOD, "openimage_o/images", "openimage_o", "images_largescale/openimage_o"),
    "uniform": _made(uniform_noise, "uniform"),
    "gaussian": _made(gaussian_noise, "gaussian"),
    "blobs": _made(blobs, "blobs"),
    "permuted": _destroyed(permuted, "permuted"),
    "phase": _destroyed(phase_randomised, "phase"),
    "nonsense": _made(uniform_noise, "nonsense"),  # the start of the task's optimisation
}
"""Sets of images that a classifier has not learnt, by name."""


def check_unknown(name: str) -> None:
    """Check the name of an unknown set; one with a ``/`` is the path of a folder.

    Raises:
        ValueError: There is no such set.
    """
    if name not in UNKNOWN and "/" not in name:
        raise ValueError(
            f"Unknown set '{name}'{near(name, UNKNOWN) or '.'} Available: {', '.join(UNKNOWN)}, or the path of a "
            "folder of images, with a '/' in it."
        )


def kind_of(name: str) -> Kind:
    """Return whether a set is ``novel`` or ``unrecognisable``; a folder is novel."""
    return UNKNOWN[name].kind if name in UNKNOWN else "novel"


def unknown_images(
    name: str, known: ImageDataModule, root: Path | None = None, limit: int = 10_000, seed: int = 0
) -> tuple[Images, Tensor]:
    """Return an unknown set in the channels and size of the known images.

    Args:
        name: A key of :data:`UNKNOWN`, or the path of a folder of images (with a ``/`` in it).
        known: The data module whose channels and size the images get.
        root: Folder of the data sets; ``None``: the known one's.
        limit: Largest number of images to evaluate, always the same ones.
        seed: Seed of the noise.

    Returns:
        The images, and the positions of those to evaluate, (N,) int64, ascending.

    Raises:
        FileNotFoundError: The set is missing; the message says where it was searched and how to get it.
        ValueError: There is no such set, it is the known one, or a file is damaged.

    Example:
        >>> from hem.datamodules import MNISTDataModule
        >>> images, index = unknown_images("blobs", MNISTDataModule(), limit=3)
        >>> images[int(index[0])][0].shape, len(index)
        (torch.Size([1, 28, 28]), 3)
    """
    check_unknown(name)
    if name == known.name:
        raise ValueError(f"The set '{name}' cannot be unknown: it is the known one. Leave it out.")
    if isinstance(known, OpenSetDataModule) and name == known.whole.name:
        raise ValueError(
            f"The set '{name}' cannot be unknown: some of its classes are known. Take 'held_out', the others."
        )
    root = known.root if root is None else root
    if name in UNKNOWN:
        images = UNKNOWN[name].load(known, root, seed)
    else:
        images = _files((str(Path(name).expanduser().absolute()),), "where you keep it", known, root)
    index = some(limit, len(images), 0)
    if isinstance(images, DerivedImages) and len(index) * math.prod((known.in_channels, *known.image_size)) < IN_MEMORY:
        return images.in_memory(index), torch.arange(len(index))
    return images, index
