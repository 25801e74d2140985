"""MNIST, Fashion-MNIST and KMNIST, read from their official idx files."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import MemoryImages
from hem.datamodules.splits import Split
from hem.datamodules.unpacked import mapped


def read_idx(path: Path) -> Tensor:
    """Read an idx file: two zero bytes, the type (8: uint8), the number of axes, their lengths (>u4), the data.

    Source: LeCun's page of MNIST, "file formats".

    Args:
        path: The file; if it is missing, ``path`` with the suffix ``.gz`` is read.

    Returns:
        uint8 tensor of the file's shape.

    Raises:
        FileNotFoundError: Both are missing.
        ValueError: The file is damaged; the message has its name.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.exists():
        path = packed
    try:  # an uncompressed file is memory-mapped and shared by all processes
        unzipped = np.frombuffer(bytearray(gzip.decompress(path.read_bytes())), np.uint8) if path == packed else None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged and cannot be unpacked ({error}): delete it and fetch it anew.") from error
    data = mapped(path) if unzipped is None else torch.from_numpy(unzipped)
    header = bytes(data[: 4 + 4 * 255].tolist())  # the longest header that there can be
    if len(header) < 4 or header[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is damaged: it does not begin as an idx file of bytes does. Fetch it anew.")
    axes = header[3]
    start = 4 + 4 * axes
    shape = [int.from_bytes(header[4 * i : 4 * i + 4]) for i in range(1, axes + 1)]
    if len(data) != start + math.prod(shape):
        raise ValueError(f"{path} is damaged: its header promises {shape} bytes, but it has {len(data)}.")
    return data[start:].view(shape)


def load_idx(module: ImageDataModule, folder: str, split: Split) -> MemoryImages:
    """Read an official part in MNIST's layout: ``<root>/<folder>/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``."""
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = (
        module.root / folder / "raw" / f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")
    )
    for path in (images, labels):
        if not path.exists() and not path.with_name(path.name + ".gz").exists():
            raise module.missing(split, path)
    pixels, targets = read_idx(images), read_idx(labels)
    if pixels.shape[1:] != module.image_size or targets.shape != pixels.shape[:1]:
        raise ValueError(
            f"{images} and {labels} do not fit together: their shapes are {tuple(pixels.shape)} and "
            f"{tuple(targets.shape)}, but (N, 28, 28) and (N,) were expected."
        )
    return MemoryImages(pixels.unsqueeze(1), targets, f"{module.name}/{split}")


class MNISTDataModule(ImageDataModule):
    """Handwritten digits: 60,000 + 10,000 grey images of 28 x 28 pixels. No augmentation.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998.

    Example:
        >>> MNISTDataModule(val_fraction=0).class_counts
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    """

    name = "mnist"
    title = "MNIST"
    source = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    class_names = tuple("0123456789")
    train_counts = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    in_channels = 1
    image_size = (28, 28)
    mean = (0.1307,)
    std = (0.3081,)

    def load(self, split: Split) -> MemoryImages:
        """Read ``MNIST/raw/*-ubyte`` or ``*-ubyte.gz``."""
        return load_idx(self, "MNIST", split)

    def fetch(self) -> None:
        """Download by torchvision."""
        datasets.MNIST(str(self.root), download=True)


class FashionMNISTDataModule(ImageDataModule):
    """Pieces of clothing in MNIST's format: 60,000 + 10,000 grey images of 28 x 28 pixels. No augmentation.

    Source: Xiao et al., "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
    2017.
    """

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    source = "https://github.com/zalandoresearch/fashion-mnist"
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    train_counts = (6000,) * 10
    in_channels = 1
    image_size = (28, 28)
    mean = (0.2860,)
    std = (0.3530,)

    def load(self, split: Split) -> MemoryImages:
        """Read ``FashionMNIST/raw/*-ubyte`` or ``*-ubyte.gz``."""
        return load_idx(self, "FashionMNIST", split)

    def fetch(self) -> None:
        """Download by torchvision."""
        datasets.FashionMNIST(str(self.root), download=True)


class KMNISTDataModule(ImageDataModule):
    """Cursive Japanese characters in MNIST's format: 60,000 + 10,000 grey images of 28 x 28 pixels. No augmentation.

    Source: Clanuwat et al., "Deep learning for classical Japanese literature", 2018.
    """

    name = "kmnist"
    title = "KMNIST"
    source = "https://codh.rois.ac.jp/kmnist/"
    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    train_counts = (6000,) * 10
    in_channels = 1
    image_size = (28, 28)
    mean = (0.1918,)
    std = (0.3483,)

    def load(self, split: Split) -> MemoryImages:
        """Read ``KMNIST/raw/*-ubyte`` or ``*-ubyte.gz``."""
        return load_idx(self, "KMNIST", split)

    def fetch(self) -> None:
        """Download by torchvision."""
        datasets.KMNIST(str(self.root), download=True)
