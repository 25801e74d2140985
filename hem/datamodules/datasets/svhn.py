"""Street View House Numbers, read from the official .mat files."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat
from torchvision import datasets

from hem.datamodules.augment import RandomCrop
from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import MemoryImages
from hem.datamodules.splits import Split
from hem.datamodules.unpacked import unpacked


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images (N, 3, 32, 32) uint8 and labels (N,) int64 of a file.

    Raises:
        ValueError: The file is damaged; the message has its name.
    """
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel()
    except Exception as error:  # scipy's reader may raise any exception for damaged bytes
        raise ValueError(f"{path} is damaged and cannot be read ({error}): fetch it anew.") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(
            f"{path} is damaged: X is {images.dtype} of shape {images.shape} "
            f"where uint8 of shape (32, 32, 3, {len(labels)}) was expected. Fetch it anew."
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), np.where(labels == 10, 0, labels).astype(np.int64)


class SVHNDataModule(ImageDataModule):
    """House numbers, cropped digits: 73,257 + 26,032 colour images of 32 x 32 pixels.

    Usual augmentation: crops after padding by 4 pixels.

    The digit 0, with the label 10 in the files, is class 0. The 531,131 easier images of the ``extra`` part are not
    used.

    Source: Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011.

    Example:
        >>> sum(SVHNDataModule(val_fraction=0).class_counts)
        73257
    """

    name = "svhn"
    title = "SVHN"
    source = "http://ufldl.stanford.edu/housenumbers/"
    class_names = tuple("0123456789")
    train_counts = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
    in_channels = 3
    image_size = (32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    usual = (RandomCrop(4),)  # no flips, for digits

    def load(self, split: Split) -> MemoryImages:
        """Read ``train_32x32.mat`` or ``test_32x32.mat``, in the root or in its sub-folder ``SVHN``."""
        path = self.root / "SVHN" / f"{split}_32x32.mat"
        if not path.exists():
            path = self.root / f"{split}_32x32.mat"
        if not path.exists():
            raise self.missing(split, path)
        return unpacked(self.root, f"svhn/{split}", [path], lambda: read_mat(path), (3, 32, 32))

    def fetch(self) -> None:
        """Download by torchvision."""
        for split in ("train", "test"):
            datasets.SVHN(str(self.root / "SVHN"), split=split, download=True)
