"""The data module of an examination: one of ours, with a label for each image."""

from __future__ import annotations

from lightning.pytorch import Trainer

from hem.datamodules import ImageDataModule, SegmentationDataModule
from hem.runs.trainer import datamodule


def data_of(trainer: Trainer) -> ImageDataModule:
    """Return the data of the classifier that is examined.

    Raises:
        TypeError: It is no data module of ours, whose test images can be gone through again and again.
        ValueError: It has masks.
    """
    data = datamodule(trainer)
    if not isinstance(data, ImageDataModule):
        raise TypeError(
            f"{type(trainer.lightning_module).__name__} needs one of hem.datamodules, whose test images it can go "
            f"through again and again and bring others to their form, but the data is {type(data).__name__}."
        )
    refuse_masks(trainer)
    return data


def refuse_masks(trainer: Trainer) -> None:
    """Refuse to examine a segmentation as a classifier: its labels are of pixels, and some are void.

    Raises:
        ValueError: The data has masks.
    """
    data = datamodule(trainer)
    if isinstance(data, SegmentationDataModule):
        raise ValueError(
            f"Expected images with a label each, by which {type(trainer.lightning_module).__name__} examines a "
            f"classifier, got masks, of {data.title}: measure a segmentation by `test --run <run>` alone."
        )
