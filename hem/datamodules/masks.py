"""Base class of data sets of images with masks; reading of masks and counting of their classes."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hem.decoder import decode_mask
from hem.runs.files import write_atomically

VOID = 255  # label of unlabelled pixels in all masks of this package
HELD_OUT = 254  # label of pixels of classes that are held out as unknown
_WRONG = 253  # stands for values that are no class, until an error is raised
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Files = list[tuple[str, str]]  # paths of images and their masks
Color = tuple[int, int, int]


class Counts(NamedTuple):
    """Frequencies of C classes in the training masks, at their stored size."""

    pixels: list[int]  #: pixels of the class
    images: list[int]  #: images that have a pixel of it
    pixels_of_images: list[int]  #: all pixels of those images, void included
    total: int  #: all pixels of all images

    def frequencies(self) -> list[float]:
        """Return the share of each class in the images that contain it, for median-frequency balancing.

        Example:
            >>> Counts([30, 5], [2, 1], [40, 20], 40).frequencies()
            [0.75, 0.25]
        """
        return [n / max(whole, 1) for n, whole in zip(self.pixels, self.pixels_of_images, strict=True)]


class MaskDataset(ABC):
    """Base class of a data set of images with masks, in its official layout.

    Masks hold the classes 0..C-1, and :data:`VOID` = 255 for unlabelled pixels; other values are errors.
    """

    name: str  #: used in file names
    title: str  #: used in messages
    source: str  #: URL of the data
    place: str = ""  #: its folder, relative to the root of all data sets
    class_names: Sequence[str]
    palette: Sequence[Color]  #: RGB of each class; void is black
    image_size: tuple[int, int]  #: height and width in pixels to which images are resized by default
    mean: tuple[float, ...] = _IMAGENET_MEAN  #: per channel, pixels in [0, 1]
    std: tuple[float, ...] = _IMAGENET_STD
    official_val: bool = False  #: whether there is an official validation part
    counts: Counts | None = None  #: of the official training part, if known without reading it
    labels: Mapping[int, int] | None = None  #: from values of masks to classes or VOID; None: values are classes

    own: bool = False  #: whether it is a user's own folder, whose files may change, not a published list of files

    @abstractmethod
    def files(self, root: Path, split: str) -> Files:
        """Return the paths of images and masks of the part ``train``, ``val`` or ``test`` under ``root``, sorted.

        Raises:
            FileNotFoundError: The part, or the mask of an image, is missing.
        """

    def folder(self, root: Path) -> Path:
        """Return the folder of the data set, :attr:`place` in the root, where its counts are kept as well."""
        return root / self.place

    def has_val(self, root: Path) -> bool:
        """Return whether there is a validation part; for a user's own folder this depends on its files."""
        return self.official_val

    def read_mask(self, path: str) -> Tensor:
        """Read the classes of a mask file: (H, W) uint8, 0..C-1 or :data:`VOID`.

        Raises:
            ValueError: The file cannot be read, has more than one channel, or a value that is no class.
        """
        values = decode_mask(path)
        if values.ndim != 2:
            found = "2, the second of them alpha" if values.shape[2] == 2 else "3, of a colour image"
            raise ValueError(
                f"Expected one channel in {path}, the index of a class of {self.title} in each pixel, got {found}: "
                "save the mask as a grey or palette PNG without alpha."
            )
        classes = self._table[torch.from_numpy(values).int().clamp(-1, 256)]
        if bool((wrong := classes == _WRONG).any()):
            value = int(values[wrong.numpy()][0])
            known = f"0 to {len(self.class_names) - 1} or {VOID} (void)"
            if self.labels is not None:
                known = ", ".join(map(str, sorted(self.labels)))
            mend = (
                ": name a further class in --data.dataset.class_names, or say by --data.dataset.values and "
                "--data.dataset.void which value is what"
                if self.own
                else ""
            )
            raise ValueError(f"Expected masks of {self.title} to hold {known}, got the value {value} in {path}{mend}.")
        return classes

    @property
    def _table(self) -> Tensor:
        table = torch.full((258,), _WRONG, dtype=torch.uint8)  # at 256 and -1: for values beyond a byte
        labels = self.labels or {**{c: c for c in range(len(self.class_names))}, VOID: VOID}
        for value, label in labels.items():
            table[value] = label
        return table

    def missing(self, path: Path) -> FileNotFoundError:
        """Return the error for a part that is missing."""
        return FileNotFoundError(
            f"{self.title} is missing: {path} is not there. Get it from {self.source}; data that lies elsewhere is "
            "found by --data.root or the environment's HEM_DATA."
        )

    def _state(self, masks: Sequence[str]) -> str:
        """Return a hash of names, sizes and modification times of masks, and of ``labels``: counts depend on them."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for mask in masks:
            found = os.stat(mask)
            digest.update(f"\n{mask} {found.st_size} {found.st_mtime_ns}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def count(self, root: Path) -> Counts:
        """Return the counts of the training part, where unknown counted once and kept beside the data."""
        if self.counts is not None:
            return self.counts
        kept = self.folder(root) / f"{self.name}_counts.json"
        masks = [mask for _, mask in self.files(root, "train")]
        known = {"masks": len(masks), "classes": list(self.class_names), "state": self._state(masks)}
        with suppress(OSError, ValueError, KeyError, TypeError):  # missing, of an older version, or damaged
            record = json.loads(kept.read_bytes())
            if {key: record[key] for key in known} == known:
                return Counts(**record["counts"])
        counts = count_classes(map(self.read_mask, masks), len(self.class_names))
        record = {**known, "counts": counts._asdict()}
        with suppress(OSError):  # read-only folder: they are counted again next time
            write_atomically(kept, json.dumps(record) + "\n")
        return counts


def count_classes(masks: Iterable[Tensor], num_classes: int) -> Counts:
    """Count the pixels and images of each class.

    Args:
        masks: Each (H, W) uint8; values of at least ``num_classes`` are void.
        num_classes: Number of classes C.

    Example:
        >>> count_classes([torch.tensor([[0, 0], [1, 255]], dtype=torch.uint8), torch.zeros(1, 2).byte()], 2)
        Counts(pixels=[4, 1], images=[2, 1], pixels_of_images=[6, 4], total=6)
    """
    pixels, images, whole = (torch.zeros(num_classes, dtype=torch.int64) for _ in range(3))
    total = 0
    for mask in masks:
        found = torch.bincount(mask.flatten(), minlength=256)[:num_classes]
        pixels += found
        images += found > 0
        whole += (found > 0) * mask.numel()
        total += mask.numel()
    return Counts(pixels.tolist(), images.tolist(), whole.tolist(), total)


def paired(images: Iterable[Path], mask_of: Callable[[Path], Path]) -> Files:
    """Pair each image with its mask, in the order of the images.

    Raises:
        FileNotFoundError: An image has no mask.
    """
    files = [(image, mask_of(image)) for image in images]
    present = {folder: set(os.listdir(folder)) for folder in {mask.parent for _, mask in files} if folder.is_dir()}
    for image, mask in files:
        if mask.name not in present.get(mask.parent, ()):
            raise FileNotFoundError(f"The image {image} has no mask: {mask} is not there.")
    return [(str(image), str(mask)) for image, mask in files]
