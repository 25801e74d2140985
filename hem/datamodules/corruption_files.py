"""Corrupted versions of a test part, read from the official files."""

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
    """The official corrupted files of a data set."""

    folder: str
    title: str
    source: str
    names: Sequence[str] | None = None  # None: those of hem.corruptions

    @property
    def common(self) -> Sequence[str]:
        """The corruptions over which headline means are taken."""
        return hem.corruptions.COMMON if self.names is None else self.names

    @property
    def extra(self) -> Sequence[str]:
        """The other corruptions."""
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
    """Corruptions read from the official files in the data module's root.

    * CIFAR-10-C and CIFAR-100-C: ``<corruption>.npy``, (5 n, 32, 32, 3) bytes, severity after severity, and
      ``labels.npy``.
    * MNIST-C: ``<corruption>/test_images.npy``, (n, 28, 28, 1) bytes, and ``test_labels.npy``. It has 15
      other corruptions, each of one severity, called 1 here; ``severities`` is ignored.
    * Tiny-ImageNet-C and ImageNet-C: ``<corruption>/<severity>/<class>/*.JPEG``, optionally below a
      folder of their group such as ``noise``. The images are cropped already.

    Source: Hendrycks & Dietterich, ICLR 2019; Mu & Gilmer, "MNIST-C: a robustness benchmark for computer
    vision", 2019.

    Args:
        corruptions: Names of corruptions; ``None``: the 15 common ones, and those of the 4 extra ones that are there.
        severities: Some of 1 to 5; ``None``: all.
        images: Number of images, the same ones under every condition; ``None``: all.
        seed: Seed of the choice of images; not a run's seed, so that all networks get the same images.
        folder: The folder of the corruptions; ``None``: the one with the official name in the data module's root.

    Raises:
        ValueError: A severity is not in 1 to 5, a name is repeated, or ``images`` is below 1.

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
        """Return the conditions, corruption by corruption; see :meth:`CorruptedImages.conditions`."""
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
        """Return a pass over the clean images, and one over the files of each condition."""
        found = {condition: self.load(known, condition) for condition in self.conditions(known)}
        return [
            Pass(self.examined(f"{condition.corruption}/{condition.severity}", images), [condition])
            for condition, images in {CLEAN: known.images("test"), **found}.items()
        ]

    def load(self, known: ImageDataModule, condition: Condition) -> Images:
        """Return the images of a condition; arrays are read, and files listed, when a batch needs them.

        Args:
            known: The data set.
            condition: One of :meth:`conditions`.

        Raises:
            FileNotFoundError: A file or the folder of a class is missing.
            ValueError: A file is damaged; the message has its name.
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
        """Return the path of a corruption's file or folder, which need not exist."""
        if official.folder.startswith("CIFAR"):
            return folder / f"{corruption}.npy"
        return next(folder.glob(f"*/{corruption}"), folder / corruption)

    def _arrays(
        self, known: ImageDataModule, path: Path, labels_path: Path, severity: int, severities: int, title: str
    ) -> MemoryImages:
        """Return the images and labels of a severity from files that hold all severities."""
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
    """Images in a memory-mapped file, which are read once, batch by batch, and not copied to an accelerator."""

    def placed(self, device: torch.device) -> MemoryImages:
        """Return the images, where they are."""
        return self


class ListedImages(Images):
    """Images in a folder for each class, listed on first access, since the conditions of ImageNet have millions.

    Args:
        folder: Parent of the classes' folders.
        classes: Names of the classes' folders.
        size: Height and width of the images.
        channels: 3 for RGB, 1 for grey.
        count: Expected number of images.
    """

    def __init__(self, folder: Path, classes: Sequence[str], size: tuple[int, int], channels: int, count: int) -> None:
        self.place = (folder, tuple(classes), size, channels, count)

    def __len__(self) -> int:
        return self.place[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return listed(*self.place)[index]

    def name_of(self, index: int) -> str:
        """Return the path of an image."""
        return listed(*self.place).name_of(index)


@lru_cache(maxsize=1)  # only the list of one condition is kept
def listed(folder: Path, classes: tuple[str, ...], size: tuple[int, int], channels: int, count: int) -> FileImages:
    """List the images in a folder for each class.

    Raises:
        ValueError: There are not ``count`` images.
    """
    images = FileImages(*scan(folder, classes), Fit(size), channels=channels)
    if len(images) != count:
        raise ValueError(
            f"Expected {count} images in {folder}, as the test part has, got {len(images)}: unpack it anew."
        )
    return images


def read_array(path: Path) -> np.ndarray:
    """Return the array in a ``.npy`` file, memory-mapped; pickles are not loaded.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged; the message has its name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, though its folder is: unpack the official files anew.")
    try:
        # "c", copy on write: torch warns of arrays that are read-only
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}): fetch it anew.") from error
    return array
