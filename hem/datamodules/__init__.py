"""Data modules: images, labels, and the facts that networks and losses need to know about them."""

from hem.datamodules.base import ImageDataModule, Subset
from hem.datamodules.digits import DigitsDataModule
from hem.datamodules.images import FileImages, Images, MemoryImages, conform
from hem.datamodules.loader import Batch, Batches, Loader
from hem.datamodules.mnist import FashionMNISTDataModule, KMNISTDataModule, MNISTDataModule

DATA: dict[str, type[ImageDataModule]] = {
    "digits": DigitsDataModule,
    "mnist": MNISTDataModule,
    "fashion_mnist": FashionMNISTDataModule,
    "kmnist": KMNISTDataModule,
}

__all__ = [
    "DATA",
    "Batch",
    "Batches",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FileImages",
    "ImageDataModule",
    "Images",
    "KMNISTDataModule",
    "Loader",
    "MNISTDataModule",
    "MemoryImages",
    "Subset",
    "conform",
]
