"""CIFAR-10 and CIFAR-100, read from their official Python pickles by a safe unpickler."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from hem.datamodules.augment import RandomCrop, RandomFlip
from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import MemoryImages
from hem.datamodules.splits import Split
from hem.datamodules.unpacked import unpacked

CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


def _dtype(name: str, *flags: Any) -> np.dtype[Any]:
    return np.dtype(name)  # without the flags, which are integers where numpy now requires booleans


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # by which Python 3 writes bytes into a pickle of protocol 2


# all that the official files refer to; anything else could execute code
HARMLESS = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it calls for {module}.{name}, which no CIFAR file needs")
        return HARMLESS[module, name]


def read_pickle(path: Path, label: str) -> tuple[np.ndarray, list[int]]:
    """Read the images and labels of one file, a dictionary with ``data``, (N, 3072) uint8, and the labels.

    Args:
        path: The file.
        label: The key of the labels: ``labels`` or ``fine_labels``.

    Returns:
        Images (N, 3, 32, 32) uint8 and N labels.

    Raises:
        ValueError: The file is damaged, or no such dictionary; the message has its name.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        images, labels = content["data"], content[label]
    except Exception as error:  # a damaged pickle may raise any exception
        raise ValueError(f"{path} is damaged and cannot be read ({error}): fetch it anew.") from error
    if not (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and isinstance(labels, list)
        and all(isinstance(label, int) for label in labels)
        and images.shape == (len(labels), 3072)
    ):
        raise ValueError(f"{path} is damaged: it does not hold (N, 3072) bytes and N labels. Fetch it anew.")
    return images.reshape(-1, 3, 32, 32), labels


def load_pickles(module: ImageDataModule, folder: str, files: Sequence[str], label: str, split: Split) -> MemoryImages:
    """Return an official part of CIFAR from files in ``<root>/<folder>``."""
    paths = [module.root / folder / file for file in files]
    for path in paths:
        if not path.exists():
            raise module.missing(split, path)

    def read() -> tuple[np.ndarray, np.ndarray]:
        images, labels = zip(*(read_pickle(path, label) for path in paths), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    return unpacked(module.root, f"{module.name}/{split}", paths, read, (3, 32, 32))


class CIFAR10DataModule(ImageDataModule):
    """Animals and vehicles: 50,000 + 10,000 colour images of 32 x 32 pixels.

    Usual augmentation: crops after padding by 4 pixels, random flips.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; augmentation: He et
    al., CVPR 2016.

    Example:
        >>> CIFAR10DataModule(val_fraction=0.1).class_counts[:3]
        [4500, 4500, 4500]
    """

    name = "cifar10"
    title = "CIFAR-10"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html (a slow server)"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train_counts = (5000,) * 10
    in_channels = 3
    image_size = (32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    usual = (RandomCrop(4), RandomFlip())

    def load(self, split: Split) -> MemoryImages:
        """Read ``cifar-10-batches-py/data_batch_1`` to ``5``, or ``test_batch``."""
        files = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
        return load_pickles(self, "cifar-10-batches-py", files, "labels", split)

    def fetch(self) -> None:
        """Download by torchvision."""
        datasets.CIFAR10(str(self.root), download=True)


class CIFAR100DataModule(ImageDataModule):
    """A hundred classes: 50,000 + 10,000 colour images of 32 x 32 pixels.

    Usual augmentation: crops after padding by 4 pixels, random flips.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; augmentation: He et
    al., CVPR 2016.
    """

    name = "cifar100"
    title = "CIFAR-100"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html (a slow server)"
    class_names = tuple(CIFAR100_CLASSES.split())
    train_counts = (500,) * 100
    in_channels = 3
    image_size = (32, 32)
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    usual = (RandomCrop(4), RandomFlip())

    def load(self, split: Split) -> MemoryImages:
        """Read ``cifar-100-python/train`` or ``test``, with the hundred fine labels."""
        return load_pickles(self, "cifar-100-python", [split], "fine_labels", split)

    def fetch(self) -> None:
        """Download by torchvision."""
        datasets.CIFAR100(str(self.root), download=True)
