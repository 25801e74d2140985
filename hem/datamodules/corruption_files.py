"""Corrupted versions of a known test part, read from the official files."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import hem.corruptions
from hem.datamodules.base import ImageDataModule
from hem.datamodules.corruption import CLEAN, Condition, CorruptedImages, Pass
from hem.datamodules.datasets.folder import scan
from hem.datamodules.images import FileImages, Fit, Images, MemoryImages, subfolders
from hem.names import check_name

MNIST_C = (
    "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness",
    "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges",
)  # fmt: skip


class Official(NamedTuple):
    """Where the official corrupted files of a data set are."""

    folder: str
    title: str
    source: str
    names: Sequence[str] | None = None  # those of hem.corruptions

    @property
    def common(self) -> Sequence[str]:
        """The corruptions that the headline figures are means over."""
        return hem.corruptions.COMMON if self.names is None else self.names

    @property
    def extra(self) -> Sequence[str]:
        """The others."""
        return hem.corruptions.EXTRA if self.names is None else ()


OFFICIAL = {
    "mnist": Official("mnist_c", "MNIST-C", "https://zenodo.org/records/3239543 (mnist_c.zip)", MNIST_C),
    "cifar10": Official("CIFAR-10-C", "CIFAR-10-C", "https://zenodo.org/records/2535967 (CIFAR-10-C.tar)"),
    "cifar100": Official("CIFAR-100-C", "CIFAR-100-C", "https://zenodo.org/records/3555552 (CIFAR-100-C.tar)"),
    "tiny_imagenet": Official(
        "Tiny-ImageNet-C", "Tiny-ImageNet-C", "https://zenodo.org/records/2536630 (Tiny-ImageNet-C.tar)"
    ),
    "imagenet": Official(
        "ImageNet-C",
        "ImageNet-C",
        "https://zenodo.org/records/2235448 (noise.tar, blur.tar, weather.tar, digital.tar, extra.tar)",
    ),
}  #: by the name of the data module


class OfficialCorruptions(CorruptedImages):
    """Corruptions from the official files, in the data module's root.

    * CIFAR-10-C and CIFAR-100-C: ``<corruption>.npy``, (5 n, 32, 32, 3) bytes, severity after severity, and
      ``labels.npy``.
    * MNIST-C: ``<corruption>/test_images.npy``, (n, 28, 28, 1) bytes, and ``test_labels.npy``. Its 15
      corruptions are others, each of one severity, which is called 1 here; ``severities`` goes unused.
    * Tiny-ImageNet-C and ImageNet-C: ``<corruption>/<severity>/<class>/*.JPEG``, perhaps below a folder of
      their group such as ``noise``. They are the cut images already.

    Source: Hendrycks & Dietterich, ICLR 2019; Mu & Gilmer, "MNIST-C: a robustness benchmark for computer
    vision", 2019.

    Args:
        corruptions: Their names; ``None``: the 15 common ones, and the 4 extra ones where they are there.
        severities: Some of 1 to 5; ``None``: all.
        images: So many images alone, the same under every condition; ``None``: all.
        seed: Chooses those images. It is no run's seed: all networks shall see the same images.
        folder: The folder with the corruptions; ``None``: in the data module's root, by its official name.

    Raises:
        ValueError: A severity is none, one is named twice, or fewer than one image is asked for.

    Example:
        >>> from hem.datamodules import SVHNDataModule
        >>> OfficialCorruptions().conditions(SVHNDataModule())
        Traceback (most recent call last):
        ValueError: There are no official corrupted files of SVHN, only of mnist, cifar10, ...
    """

    def __init__(
        self,
        corruptions: list[str] | None = None,
        severities: list[int] | None = None,
        images: int | None = None,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        super().__init__(corruptions, severities, images, seed)
        self.folder = folder

    def conditions(self, known: ImageDataModule) -> list[Condition]:
        """The conditions, corruption by corruption; see :meth:`CorruptedImages.conditions`."""
        official, folder = self._where(known)
        names = [*official.common, *official.extra]
        for name in self.corruptions or ():
            check_name(name, names, "corruption")
        if self.corruptions is not None:
            names = self.corruptions
        else:
            names = [n for n in names if n in official.common or self._path(official, folder, n).exists()]
        severities = [1] if official.folder == "mnist_c" else self.severities
        for name in names:
            path = self._path(official, folder, name)
            if not path.exists():
                raise FileNotFoundError(
                    f"{official.title} is missing: {path} is not there. Get it from {official.source} and unpack it "
                    f"into {folder.parent}; files that lie elsewhere are found by the argument `folder`. Or compute "
                    "the corruptions: hem.datamodules.ComputedCorruptions needs no files."
                )
        return [Condition(name, severity, name in official.extra) for name in names for severity in severities]

    def passes(self, known: ImageDataModule) -> list[Pass]:
        """A way through the clean images, and one through the files of each condition."""
        found = {condition: self.load(known, condition) for condition in self.conditions(known)}
        return [
            Pass(self.examined(f"{condition.corruption}/{condition.severity}", images), [condition])
            for condition, images in {CLEAN: known.images("test"), **found}.items()
        ]

    def load(self, known: ImageDataModule, condition: Condition) -> Images:
        """The images of a condition; arrays stay on the disk, and files are not listed, until a batch needs them.

        Args:
            known: The data set.
            condition: One of :meth:`conditions`.

        Raises:
            FileNotFoundError: A file or a class's folder is not there.
            ValueError: A file is damaged; the sentence has its name.
        """
        official, folder = self._where(known)
        path = self._path(official, folder, condition.corruption)
        title = f"{official.title}/{condition.corruption}/{condition.severity}"
        if official.folder == "mnist_c":
            return self._arrays(known, path / "test_images.npy", path / "test_labels.npy", 1, 1, title)
        if path.suffix == ".npy":
            severities = len(hem.corruptions.SEVERITIES)
            return self._arrays(known, path, folder / "labels.npy", condition.severity, severities, title)
        path = path / str(condition.severity)
        if not path.is_dir():
            raise FileNotFoundError(f"{official.title} lacks a severity: {path} is not there. Unpack it anew.")
        classes = subfolders(path)
        if len(classes) != known.num_classes:
            raise ValueError(
                f"{path} holds {len(classes)} class folders, but {known.title} has {known.num_classes} classes."
            )
        return ListedImages(path, classes, known.image_size, known.in_channels, len(known.images("test")))

    def _where(self, known: ImageDataModule) -> tuple[Official, Path]:
        if known.name not in OFFICIAL:
            raise ValueError(
                f"There are no official corrupted files of {known.title}, only of {', '.join(OFFICIAL)}: take "
                "hem.datamodules.ComputedCorruptions."
            )
        official = OFFICIAL[str(known.name)]
        return official, Path(self.folder).expanduser() if self.folder else known.root / official.folder

    def _path(self, official: Official, folder: Path, corruption: str) -> Path:
        """The file or folder of a corruption, or where it should be."""
        if official.folder.startswith("CIFAR"):
            return folder / f"{corruption}.npy"
        return next(folder.glob(f"*/{corruption}"), folder / corruption)

    def _arrays(
        self, known: ImageDataModule, path: Path, labels_path: Path, severity: int, severities: int, title: str
    ) -> MemoryImages:
        """The part of a severity out of the images in one file and the labels in another."""
        pixels, labels = read_array(path), read_array(labels_path)
        expected = (*known.image_size, known.in_channels)
        count = len(pixels) // severities if pixels.ndim else 0
        if pixels.dtype != np.uint8 or pixels.shape != (count * severities, *expected):
            raise ValueError(
                f"{path} is damaged: expected bytes of shape ({severities} n, {', '.join(map(str, expected))}), but it "
                f"has {pixels.dtype} of shape {pixels.shape}. Fetch it anew."
            )
        if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{labels_path} and {path} do not fit together: {labels.dtype} of shape {labels.shape} for "
                f"{len(pixels)} images. Fetch them anew."
            )
        part = slice(count * (severity - 1), count * severity)
        targets = torch.from_numpy(labels[part].astype(np.int64))
        if count == 0 or int(targets.min()) < 0 or int(targets.max()) >= known.num_classes:
            raise ValueError(
                f"{labels_path} is damaged: expected one or more labels, 0 to {known.num_classes - 1}. Fetch it anew."
            )
        return MappedImages(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2), targets, title)


class MappedImages(MemoryImages):
    """Images in a file, of which a batch is read: they are gone through once, and do not go to an accelerator."""

    def placed(self, device: torch.device) -> MemoryImages:
        """The same images."""
        return self


class ListedImages(Images):
    """Images in a folder for each class, listed when the first is asked for: all conditions of ImageNet have millions.

    Args:
        folder: Where the classes' folders are.
        classes: Their names.
        size: Height and width of the images.
        channels: 3 for RGB, 1 for grey.
        count: How many there must be.
    """

    def __init__(self, folder: Path, classes: Sequence[str], size: tuple[int, int], channels: int, count: int) -> None:
        self.place = (folder, tuple(classes), size, channels, count)

    def __len__(self) -> int:
        return self.place[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return listed(*self.place)[index]

    def name_of(self, index: int) -> str:
        """The path of an image."""
        return listed(*self.place).name_of(index)


@lru_cache(maxsize=1)  # the lists of one condition alone are kept
def listed(folder: Path, classes: tuple[str, ...], size: tuple[int, int], channels: int, count: int) -> FileImages:
    """The images in a folder for each class.

    Raises:
        ValueError: There are not as many as there must be.
    """
    images = FileImages(*scan(folder, classes), Fit(size), channels=channels)
    if len(images) != count:
        raise ValueError(
            f"Expected {count} images in {folder}, as the test part has, got {len(images)}: unpack it anew."
        )
    return images


def read_array(path: Path) -> np.ndarray:
    """An array in a ``.npy`` file, read from the disk where it is used; nothing in it is executed.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged; the sentence has its name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, though its folder is: unpack the official files anew.")
    try:
        # "c": changes, which nobody makes, would stay in memory; torch warns of arrays that cannot be written
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}): fetch it anew.") from error
    return array
