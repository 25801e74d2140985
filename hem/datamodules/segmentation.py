"""Data module for semantic segmentation, with any data set of :class:`MaskDataset`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchvision.transforms.v2 import RandomHorizontalFlip

from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import Images, height_and_width
from hem.datamodules.loader import Batch, RawBatch
from hem.datamodules.masks import HELD_OUT, VOID, Color, Counts, MaskDataset
from hem.datamodules.pairs import Pad, Pairs, Shape, Stretch
from hem.datamodules.splits import Split, held_out_by_name
from hem.decoder import size_of


class SegmentationDataModule(ImageDataModule):
    """Images with masks, in a train, a validation and a test part.

    Unlabelled pixels have :attr:`ignore_index`, 255, which the task gives to loss and metrics. The validation part is
    the official one, or a share of the training images.

    Args:
        dataset: The data set, with its files, classes and colours.
        root: Folder of the data sets, each in its official layout; ``None``: the environment's ``HEM_DATA``,
            else ``data``.
        batch_size: Images per training step, over all processes.
        augment: Joint augmentation of training images and masks, in this order: any transforms of
            ``torchvision.transforms.v2``. ``None``: random horizontal flips.
        image_size: Height and width of the images, or one number for both; ``None``: the data set's.
        fit: Whether images of other sizes are stretched (``"resize"``), or kept and padded with void (``"pad"``).
        crop_size: Height and width of the random crops for training; ``None``: ``image_size``.
        max_share: A crop is drawn again (ten times at most) if a class covers more than this share of it, or if it has
            no label.
        in_memory: Keep the decoded images in memory.
        unknown_classes: Names of classes that are left out of training, and are unknown objects in the test.
        count: What ``class_counts`` count, for losses that need them: ``"pixels"`` or ``"images"`` of the whole
            official training part, at the size of its files.
        **kwargs: ``val_fraction`` (for data sets without an official validation part), ``split_seed``,
            ``seed``, ``num_workers``, ``eval_batch_size`` and ``predict_folder``, as of :class:`ImageDataModule`.

    Raises:
        ValueError: An argument is out of its range, or an unknown class is none of the data set's.
    """

    def __init__(
        self,
        dataset: MaskDataset,
        root: str | None = None,
        batch_size: int = 16,
        augment: list[nn.Module] | None = None,
        image_size: int | tuple[int, int] | None = None,
        fit: Literal["resize", "pad"] = "resize",
        crop_size: int | tuple[int, int] | None = None,
        max_share: float = 1.0,
        in_memory: bool = False,
        unknown_classes: Sequence[str] = (),
        count: Literal["pixels", "images"] = "pixels",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root, batch_size, augment=[], download=False, subset=None, sampling=None, on_device=True, **kwargs
        )  # set here, so that they are no options of segmentation
        if unfit := set(unknown_classes) - set(dataset.class_names):
            raise ValueError(
                f"Expected unknown_classes to be some of {dataset.title}'s classes, {', '.join(dataset.class_names)}, "
                f"got {', '.join(sorted(unfit))}."
            )
        if twice := {name for name in dataset.class_names if list(dataset.class_names).count(name) > 1}:
            raise ValueError(f"Expected class names that differ, got {min(twice)} more than once: rename one of them.")
        known = [c for c, name in enumerate(dataset.class_names) if name not in unknown_classes]
        if len(known) < 2:
            raise ValueError(f"Expected unknown_classes to leave two known classes or more, got {len(known)}.")
        if not 0 < max_share <= 1:
            raise ValueError(
                f"Expected max_share to be a share of a crop's labelled pixels in (0, 1], got {max_share}."
            )
        self.dataset, self.own = dataset, dataset.own
        self.known = known
        self.name, self.title, self.source = dataset.name, dataset.title, dataset.source
        self.class_names = tuple(dataset.class_names[c] for c in known)
        self.palette: list[Color] = [dataset.palette[c] for c in known]
        self.in_channels, self.mean, self.std = 3, dataset.mean, dataset.std
        self.image_size = height_and_width(image_size or dataset.image_size)
        self.ignore_index = VOID
        self.unknown_index = HELD_OUT if len(unknown_classes) else VOID
        self.shape: Shape = Stretch(self.image_size) if fit == "resize" else Pad(self.image_size)
        self.joint = [RandomHorizontalFlip()] if augment is None else augment
        self.crop_size = height_and_width(crop_size or self.image_size, "crop_size")
        self.max_share = max_share
        self.in_memory = in_memory
        self.counted = count

    # Facts about the classes.

    @property
    def official_val(self) -> bool:  # type: ignore[override]
        """Whether the data set has a validation part."""
        return self.dataset.has_val(self.root)

    @property
    def split_by_name(self) -> bool:  # type: ignore[override]
        """Whether a share of a user's own training images is held out."""
        return self.dataset.own and not self.official_val

    @cached_property
    def counts(self) -> Counts:
        """Counts of the known classes in the official training part, read from the disk at most once."""
        try:
            whole = self.dataset.count(self.root)
        except FileNotFoundError as error:  # the data is missing: its error is raised when it is read
            raise AttributeError(str(error)) from error
        pixels, images, pixels_of_images = ([column[c] for c in self.known] for column in whole[:3])
        return Counts(pixels, images, pixels_of_images, whole.total)

    @property
    def class_counts(self) -> list[int]:
        """Pixels or images of each class; see ``count``."""
        return self.counts.pixels if self.counted == "pixels" else self.counts.images

    @property
    def class_frequencies(self) -> list[float]:
        """Share of each class in the pixels of the images that contain it."""
        return self.counts.frequencies()

    def facts(self) -> dict[str, Any]:
        """Return the facts, with the palette, the void label and how images are resized."""
        return {
            **super().facts(),
            "palette": [list(color) for color in self.palette],
            "ignore_index": self.ignore_index,
            "fit": "resize" if isinstance(self.shape, Stretch) else "pad",
        }

    # Parts.

    def load(self, split: Split) -> Images:
        """Return the pairs of an official part."""
        remap = torch.full((256,), VOID, dtype=torch.uint8)
        remap[: len(self.dataset.class_names)] = HELD_OUT
        for new, old in enumerate(self.known):
            remap[old] = new
        files = self.dataset.files(self.root, split)
        options = (self.joint, self.crop_size, self.max_share, self.in_memory)
        return Pairs(self.dataset, files, self.shape, remap, *options)

    def check_labels(self, images: Images, split: Split) -> None:
        """Do nothing: masks are checked when they are read."""

    def validation(self, images: Images) -> Tensor:
        """Return which training images are held out, (N,) bool; in a user's own folder by the hash of their names."""
        if not self.split_by_name:
            return super().validation(images)
        names = [Path(path).relative_to(self.root).as_posix() for path in images.paths or ()]
        return held_out_by_name(names, images.targets, self.val_fraction, self.split_seed)

    def names(self, part: Split) -> list[str] | None:
        """Return the paths of a part's images relative to the root, without decoding any."""
        light = copy.copy(self)
        light.in_memory, light._images = False, {}
        return super(SegmentationDataModule, light).names(part)

    def setup(self, stage: str) -> None:
        """Read the parts that the stage needs; before training, check that a user's own masks have labels."""
        super().setup(stage)
        if stage == "fit" and self.dataset.own:
            self._check_labels()

    def _check_labels(self) -> None:
        counts = self.counts
        names = dict(zip(self.class_names, counts.pixels, strict=True))
        present = [name for name, pixels in names.items() if pixels]
        absent = [name for name in names if name not in present]
        share = sum(counts.pixels) / max(counts.total, 1)
        facts = f"the training masks of {self.title} in {self.root}, {100 * (1 - share):.1f} % of whose pixels are void"
        if len(present) < 2:
            raise ValueError(
                f"Expected pixels of two classes or more in {facts}, got {' and '.join(present) or 'none'}: where "
                "masks hold other values than 0, 1, 2, ..., such as 0 and 255, give the value of each class, "
                "--data.dataset.values '[0, 255]'."
            )
        if absent:
            rank_zero_warn(f"No pixel of {', '.join(absent)} is in {facts}: the network cannot learn what it is.")
        if share < 0.01:
            rank_zero_warn(f"Few pixels have a label in {facts}: the network learns from {100 * share:.2g} % of them.")

    def eval_transform(self) -> Shape:  # type: ignore[override]
        """Return the transform that brings an image of any size to that of the data module."""
        return self.shape

    def file_mask(self, index: int, mask: Tensor) -> Tensor:
        """Return a predicted mask (H, W) of a sample of ``predict_dataloader`` in the size of the sample's file."""
        return self.shape.back(mask, size_of(self.name_of(index)))

    def on_after_batch_transfer(self, batch: RawBatch | Batch, dataloader_idx: int) -> Batch:
        """Scale pixels from 0..255 to [0, 1] on the device, and convert labels to int64."""
        return super().on_after_batch_transfer(batch._replace(target=batch.target.long()), dataloader_idx)
