"""Labelled images: in memory, all of them at once, or in files, decoded when they are asked for."""

import os
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

NO_TARGET = -100  # the target of an image without a label: what the losses ignore
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# of images that are not read: whoever has them beside others would miss them
OTHER_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".jxl", ".tga", ".dng", ".dcm")


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The paths of all image files in a folder and below it, sorted; hidden files and folders left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]
        found += [os.path.join(parent, file) for file in files if file.lower().endswith(suffixes) and not hidden(file)]
    return sorted(found)


def hidden(name: str) -> bool:
    """Whether a file or folder is no data: hidden, or what macOS puts beside the data into archives."""
    return name.startswith(".") or name == "__MACOSX"


def subfolders(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))


def height_and_width(size: int | Sequence[int], argument: str = "image_size") -> tuple[int, int]:
    """Height and width in pixels, of which one number means both.

    Raises:
        ValueError: They are not one or two numbers of 1 or more.

    Example:
        >>> height_and_width(48), height_and_width([48, 64])
        ((48, 48), (48, 64))
    """
    both = [size, size] if isinstance(size, int) else list(size)
    if len(both) != 2 or min(both) < 1:
        raise ValueError(
            f"{argument} is a height and a width in pixels, or one number for both, but it is "
            f"{size if isinstance(size, int) else both}: give such as 224."
        )
    return both[0], both[1]


class Images(Dataset[tuple[Tensor, int]], ABC):
    """A fixed sequence of uint8 images with targets; ``targets`` is an int64 tensor of shape (N,)."""

    targets: Tensor
    batched = False  # whether :meth:`take` gives many of them at once, in no time
    name: str  #: what the set is called in tables, such as ``mnist/test``
    paths: Sequence[str] | None = None  #: of the N files, where the images lie in files
    device: torch.device | None = None  #: where the images lie, if they are in memory

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image at a position, (C, H, W) uint8 as an evaluation sees it, and its target."""

    def augmented(self, index: int, key: int) -> tuple[Tensor, int]:
        """The same for training: changed at random, as a function of the key alone."""
        return self[index]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Several images and their targets (N,) at once."""
        return stack([self[i] for i in index.tolist()])

    def placed(self, device: torch.device) -> "Images":
        """The same images on an accelerator, where they are in memory and take less than a quarter of what is free."""
        return self

    def name_of(self, index: int) -> str:
        """The name of an image in tables: its path, or the set's name and its number."""
        return f"{self.name}/{index:05d}"


def stack(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Several images and their targets, classes or masks, each in one tensor."""
    images, targets = zip(*items, strict=True)
    return torch.stack(images), torch.stack([torch.as_tensor(target) for target in targets])


class MemoryImages(Images):
    """Images of one size in one tensor.

    Args:
        images: (N, C, H, W) uint8.
        targets: (N,) int64.
        name: What the set is called in tables, such as ``mnist/test``.

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
            raise TypeError(f"{name}: images are uint8, but these are {images.dtype}.")
        if images.ndim != 4 or targets.shape != images.shape[:1]:
            raise ValueError(
                f"{name}: expected images of shape (N, C, H, W) and targets of shape (N,), "
                f"but got {tuple(images.shape)} and {tuple(targets.shape)}."
            )
        self.images = images
        self.targets = targets.long()
        self.name = name
        self.device = images.device

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Several images (N, C, H, W) and their targets (N,) at once."""
        return self.images[index], self.targets[index]

    def to(self, device: torch.device) -> "MemoryImages":
        """The same images on another device."""
        return MemoryImages(self.images.to(device), self.targets.to(device), self.name)

    def placed(self, device: torch.device) -> "MemoryImages":
        """The same images on an accelerator, where they take less than a quarter of what is free there."""
        if device.type != "cuda" or self.device == device:
            return self
        return self.to(device) if self.images.nbytes * 4 <= torch.cuda.mem_get_info(device)[0] else self


class FileImages(Images):
    """Images in files, decoded one by one (in worker processes, when the loader has some).

    For training an image may be changed by ``augment``, under a state of torch's CPU generator that is a
    function of the sample's key alone and that nobody else sees.

    Args:
        paths: The files.
        targets: (N,) int64.
        transform: Makes a (C, H, W) uint8 tensor of an RGB or grey PIL image, the same one every time.
        augment: The same for training, at random by torch's CPU generator; ``None`` for no difference.
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
        """The image at a position, changed at random as a function of the key alone."""
        if self.augment is None:
            return self[index]
        image = self.decode(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # torch.manual_seed would reach the accelerators as well
            return self.augment(image), int(self.targets[index])

    def decode(self, path: str) -> Image.Image:
        """The image in a file, as RGB or grey; see :mod:`hem.decoder`."""
        try:
            return decode_image(path, self.channels)
        except FileNotFoundError:
            raise FileNotFoundError(f"The image {path} was there when the folder was listed, but is gone.") from None

    def name_of(self, index: int) -> str:
        """The path of the file."""
        return self.paths[index]


class Fit(v2.Compose):  # type: ignore[misc]  # torchvision has no types
    """Makes a (C, height, width) uint8 tensor of a PIL image: stretched, or scaled and cut at the centre.

    Args:
        size: Height and width of the result in pixels.
        shorter: Scale the shorter side to this many pixels and cut the centre out; ``None`` stretches to
            ``size``.
    """

    def __init__(self, size: tuple[int, int], shorter: int | None = None) -> None:
        steps = [v2.Resize(list(size))] if shorter is None else [v2.Resize(shorter), v2.CenterCrop(list(size))]
        super().__init__([*steps, v2.PILToTensor()])
        self.size = size
        self.shorter = shorter


class RandomFit(v2.Compose):  # type: ignore[misc]  # torchvision has no types
    """Makes a (C, height, width) uint8 tensor of a random part of a PIL image, by torch's CPU generator.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.

    Args:
        size: Height and width of the result in pixels.
        scale: Smallest and largest area of the part, as a share of the image's.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"The crop's scale is a range of shares of the area within (0, 1], but it is {scale}.")
        super().__init__([v2.RandomResizedCrop(list(size), scale=scale), v2.PILToTensor()])


def unlabelled(
    folder: Path, argument: str, transform: Callable[[Image.Image], Tensor], channels: int = 3
) -> FileImages:
    """The images of a folder, which have no label.

    Args:
        folder: Images, also in folders below it.
        argument: What names it, for the sentence.
        transform: As of :class:`FileImages`.
        channels: As of :class:`FileImages`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, or files that are none: all of these are named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} is {folder}, but there is no such folder.")
    if not (paths := image_files(folder)):
        raise ValueError(f"{argument} {folder} holds no image ({', '.join(SUFFIXES)}).")
    refuse_faults(paths, header_fault, folder)
    return FileImages(paths, torch.full((len(paths),), NO_TARGET), transform, channels=channels)


def decode(files: FileImages, name: str) -> MemoryImages:
    """All the images of some files, decoded into memory by as many threads as there are cores."""
    first, _ = files[0]
    images = torch.empty(len(files), *first.shape, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, (image, _) in enumerate(pool.map(files.__getitem__, range(len(files)))):
            images[i] = image
    return MemoryImages(images, files.targets, name)


def conform(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Images of one data set in the form of another: grey or RGB, and scaled (bilinear, antialiased).

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3.
        channels: 1 or 3.
        size: Height and width in pixels.

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
