"""Sets of labelled images, in memory or in files that are decoded on access."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from hem.corruptions.pixels import GREY
from hem.decoder import decode_image, header_fault, refuse_faults

NO_TARGET = -100  # target of an image without a label, the losses' ignore_index
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# images that are not read; a folder that has them beside others is reported
OTHER_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".jxl", ".tga", ".dng", ".dcm")


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Return the paths of all image files in a folder and its sub-folders, sorted, without hidden ones.

    Links to folders are followed, each folder once.

    Raises:
        OSError: If a folder cannot be read; one that is not there holds no files.
    """
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        status = os.stat(parent)
        if (place := (status.st_dev, status.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not hidden(name))  # the order says which of two links counts
        found += [os.path.join(parent, file) for file in files if file.lower().endswith(suffixes) and not hidden(file)]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def hidden(name: str) -> bool:
    """Return whether a file or folder is no data: hidden, or metadata that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def subfolders(folder: Path) -> list[str]:
    """Return the names of the sub-folders, sorted, without hidden ones.

    Raises:
        ValueError: If a name is not in the encoding of the locale: it is to be a class, and to be written.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"Expected names of folders in {sys.getfilesystemencoding()}, got {os.fsencode(name)!r} in {folder}: "
                "rename it, or set the environment's PYTHONUTF8=1 if it is in UTF-8."
            ) from None
    return names


def height_and_width(size: int | Sequence[int], argument: str = "image_size") -> tuple[int, int]:
    """Return height and width in pixels, given both or one number for both.

    Raises:
        ValueError: They are not one or two numbers of at least 1.

    Example:
        >>> height_and_width(48), height_and_width([48, 64])
        ((48, 48), (48, 64))
    """
    both = [size, size] if isinstance(size, int) else list(size)
    if len(both) != 2 or min(both) < 1:
        raise ValueError(
            f"Expected {argument} to be a height and a width in pixels, or one number for both, got "
            f"{size if isinstance(size, int) else both}: give such as 224."
        )
    return both[0], both[1]


class Images(Dataset[tuple[Tensor, int]], ABC):
    """Base class of a fixed sequence of uint8 images with ``targets``, an int64 tensor of shape (N,)."""

    targets: Tensor
    batched = False  # whether :meth:`take` is fast, as of images in memory
    name: str  #: name of the set in tables, such as ``mnist/test``
    paths: Sequence[str] | None = None  #: paths of the N files; None: the images are not in files
    device: torch.device | None = None  #: device of images in memory; None: they are not

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image at a position, (C, H, W) uint8, as for an evaluation, and its target."""

    def augmented(self, index: int, key: int) -> tuple[Tensor, int]:
        """Return the image at a position, augmented for training as a function of the key, and its target."""
        return self[index]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images at positions ``index`` (N,) and their targets, both stacked."""
        return stack([self[i] for i in index.tolist()])

    def placed(self, device: torch.device) -> "Images":
        """Return the images on an accelerator if they are in memory and take less than a quarter of its free memory."""
        return self

    def name_of(self, index: int) -> str:
        """Return the name of an image in tables: its path, or the name of the set and its position."""
        return f"{self.name}/{index:05d}"


def stack(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack images and their targets, classes or masks."""
    images, targets = zip(*items, strict=True)
    return torch.stack(images), torch.stack([torch.as_tensor(target) for target in targets])


class MemoryImages(Images):
    """Images of one size in one tensor.

    Args:
        images: (N, C, H, W) uint8.
        targets: (N,) int64.
        name: Name of the set in tables, such as ``mnist/test``.

    Raises:
        TypeError: The images are not uint8.
        ValueError: The shapes do not fit together.

    Example:
        >>> images = MemoryImages(torch.zeros(2, 1, 8, 8).byte(), torch.tensor([0, 1]), "toy/test")
        >>> len(images), images.name_of(1)
        (2, 'toy/test/00001')
    """

    batched = True

    def __init__(self, images: Tensor, targets: Tensor, name: str = "images") -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"Expected uint8 images in {name}, got {images.dtype}.")
        if images.ndim != 4 or targets.shape != images.shape[:1]:
            raise ValueError(
                f"Expected images of shape (N, C, H, W) and targets of shape (N,) in {name}, got {tuple(images.shape)} "
                f"and {tuple(targets.shape)}."
            )
        self.images = images
        self.targets = targets.long()
        self.name = name
        self.device = images.device

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (N, C, H, W) at positions ``index`` (N,), and their targets (N,)."""
        return self.images[index], self.targets[index]

    def to(self, device: torch.device) -> "MemoryImages":
        """Return the images on another device."""
        return MemoryImages(self.images.to(device), self.targets.to(device), self.name)

    def placed(self, device: torch.device) -> "MemoryImages":
        """Return the images on an accelerator if they take less than a quarter of what is free there."""
        if device.type != "cuda" or self.device == device:
            return self
        return self.to(device) if self.images.nbytes * 4 <= torch.cuda.mem_get_info(device)[0] else self


class FileImages(Images):
    """Images in files, decoded one by one (in worker processes, if the loader has some).

    For training ``augment`` is called under a state of torch's CPU generator that is a function of the sample's key;
    the former state is restored.

    Args:
        paths: The files.
        targets: (N,) int64.
        transform: From an RGB or grey PIL image to a (C, H, W) uint8 tensor, deterministic.
        augment: The same for training, random by torch's CPU generator; ``None``: ``transform``.
        channels: 3 for RGB, 1 for grey.

    Raises:
        ValueError: An image cannot be decoded; the message has its path.
    """

    paths: list[str]

    def __init__(
        self,
        paths: Sequence[str | Path],
        targets: Tensor,
        transform: Callable[[Image.Image], Tensor],
        augment: Callable[[Image.Image], Tensor] | None = None,
        channels: int = 3,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.targets = targets.long()
        self.transform = transform
        self.augment = augment
        self.channels = channels

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.decode(self.paths[index])), int(self.targets[index])

    def augmented(self, index: int, key: int) -> tuple[Tensor, int]:
        """Return the image at a position, augmented as a function of the key, and its target."""
        if self.augment is None:
            return self[index]
        image = self.decode(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # torch.manual_seed would seed the accelerators too
            return self.augment(image), int(self.targets[index])

    def decode(self, path: str) -> Image.Image:
        """Decode the image in a file to RGB or grey, see :mod:`hem.decoder`."""
        try:
            return decode_image(path, self.channels)
        except FileNotFoundError:
            raise FileNotFoundError(f"The image {path} was there when the folder was listed, but is gone.") from None

    def name_of(self, index: int) -> str:
        """Return the path of the file."""
        return self.paths[index]


class Fit(v2.Compose):  # type: ignore[misc]  # torchvision has no types
    """Transform a PIL image to a (C, height, width) uint8 tensor, by stretching or by scaling and a centre crop.

    Args:
        size: Height and width of the result in pixels.
        shorter: Pixels to which the shorter side is scaled before the centre crop; ``None``: stretch to ``size``.
    """

    def __init__(self, size: tuple[int, int], shorter: int | None = None) -> None:
        steps = [v2.Resize(list(size))] if shorter is None else [v2.Resize(shorter), v2.CenterCrop(list(size))]
        super().__init__([*steps, v2.PILToTensor()])
        self.size = size
        self.shorter = shorter


class RandomFit(v2.Compose):  # type: ignore[misc]  # torchvision has no types
    """Transform a random crop of a PIL image to a (C, height, width) uint8 tensor, by torch's CPU generator.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.

    Args:
        size: Height and width of the result in pixels.
        scale: Smallest and largest area of the crop, as a share of the image's.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"Expected crop_scale to be a range of shares of the area within (0, 1], got {scale}.")
        super().__init__([v2.RandomResizedCrop(list(size), scale=scale), v2.PILToTensor()])


def unlabelled(
    folder: Path, argument: str, transform: Callable[[Image.Image], Tensor], channels: int = 3
) -> FileImages:
    """Return the images of a folder and its sub-folders, without labels.

    Args:
        folder: The folder.
        argument: Name of the option with the folder, for error messages.
        transform: As of :class:`FileImages`.
        channels: As of :class:`FileImages`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, or files that cannot be used, all of which are named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder for {argument}, got {folder}, which does not exist.")
    if not (paths := image_files(folder)):
        raise ValueError(f"Expected images ({', '.join(SUFFIXES)}) in {argument} {folder}, got none.")
    refuse_faults(paths, header_fault, folder)
    return FileImages(paths, torch.full((len(paths),), NO_TARGET), transform, channels=channels)


def decode(files: FileImages, name: str) -> MemoryImages:
    """Decode all images of a set into memory, by as many threads as there are cores."""
    first, _ = files[0]
    images = torch.empty(len(files), *first.shape, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, (image, _) in enumerate(pool.map(files.__getitem__, range(len(files)))):
            images[i] = image
    return MemoryImages(images, files.targets, name)


def conform(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Convert images to grey or RGB, and scale them to a size (bilinear, antialiased).

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3.
        channels: Channels of the result, 1 or 3.
        size: Height and width of the result in pixels.

    Returns:
        (N, channels, *size) uint8.

    Example:
        >>> conform(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8), 1, (28, 28)).unique()
        tensor([7], dtype=torch.uint8)
    """
    if tuple(images.shape[-2:]) != size:
        images = TF.resize(images, list(size), antialias=True)
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    weight = torch.tensor(GREY, device=images.device)[:, None, None]
    return (images * weight).sum(1, keepdim=True).round().to(torch.uint8)
