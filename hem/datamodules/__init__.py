"""Data modules: images and labels, and the facts about them that networks and losses need."""

from hem.datamodules.base import ImageDataModule
from hem.datamodules.continual import ContinualDataModule
from hem.datamodules.corruption import ComputedCorruptions, CorruptedImages
from hem.datamodules.corruption_files import OfficialCorruptions
from hem.datamodules.datasets.camvid import CamVid, CamVidOriginal
from hem.datamodules.datasets.cifar import CIFAR10DataModule, CIFAR100DataModule
from hem.datamodules.datasets.cityscapes import Cityscapes
from hem.datamodules.datasets.digits import DigitsDataModule
from hem.datamodules.datasets.folder import FolderDataModule
from hem.datamodules.datasets.imagenet import ImageNetDataModule
from hem.datamodules.datasets.imagenet_lt import ImageNetLTDataModule
from hem.datamodules.datasets.inaturalist import INaturalistDataModule
from hem.datamodules.datasets.mask_folder import MaskFolder
from hem.datamodules.datasets.mnist import FashionMNISTDataModule, KMNISTDataModule, MNISTDataModule
from hem.datamodules.datasets.open_set import OpenSetDataModule
from hem.datamodules.datasets.svhn import SVHNDataModule
from hem.datamodules.datasets.tiny_imagenet import TinyImageNetDataModule
from hem.datamodules.datasets.voc import VOC
from hem.datamodules.images import FileImages, Images, MemoryImages, conform
from hem.datamodules.loader import Batch, Batches, Loader
from hem.datamodules.longtail import LongTail, PowerSampling, Sampling, Subset
from hem.datamodules.masks import MaskDataset
from hem.datamodules.pairs import RandomScale
from hem.datamodules.segmentation import SegmentationDataModule
from hem.datamodules.unknown import UNKNOWN

CLASSES = [each for each in vars().values() if isinstance(each, type) and "name" in vars(each)]
DATA: dict[str, type[ImageDataModule]] = {str(each.name): each for each in CLASSES if issubclass(each, ImageDataModule)}
"""The data sets by their names, as folders of runs have them."""
DATA["open_set"] = OpenSetDataModule  # abstract: its name is that of another set until it is built
MASKS: dict[str, type[MaskDataset]] = {each.name: each for each in CLASSES if issubclass(each, MaskDataset)}
"""The data sets of SegmentationDataModule by their names."""

__all__ = [
    "DATA",
    "MASKS",
    "UNKNOWN",
    "VOC",
    "Batch",
    "Batches",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CamVid",
    "CamVidOriginal",
    "Cityscapes",
    "ComputedCorruptions",
    "ContinualDataModule",
    "CorruptedImages",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FileImages",
    "FolderDataModule",
    "INaturalistDataModule",
    "ImageDataModule",
    "ImageNetDataModule",
    "ImageNetLTDataModule",
    "Images",
    "KMNISTDataModule",
    "Loader",
    "LongTail",
    "MNISTDataModule",
    "MaskDataset",
    "MaskFolder",
    "MemoryImages",
    "OfficialCorruptions",
    "OpenSetDataModule",
    "PowerSampling",
    "RandomScale",
    "SVHNDataModule",
    "Sampling",
    "SegmentationDataModule",
    "Subset",
    "TinyImageNetDataModule",
    "conform",
]
