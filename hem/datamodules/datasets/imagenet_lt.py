"""ImageNet-LT, a long-tailed subset of ImageNet by published lists."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hem.datamodules.augment import RandomFlip
from hem.datamodules.base import ImageDataModule
from hem.datamodules.datasets.imagenet import ImageNetDataModule
from hem.datamodules.images import FileImages, RandomFit
from hem.datamodules.splits import Split


class ImageNetLTDataModule(ImageDataModule):
    """A thousand classes with 1,280 to 5 training images (115,846), 20 each for validation, 50 each for the test.

    The images are ImageNet's, ``imagenet/{train,val}/<wnid>/*`` (or ``val/*``); which of them are used, and their
    labels, is in the official lists ``ImageNet_LT/ImageNet_LT_{train,val,test}.txt``, with lines such as
    ``train/n01440764/n01440764_190.JPEG 0``. The training list is read when ``class_counts`` are needed: the
    command line links them to the loss, so a run needs the list in any case.

    The validation part is that of the lists, and ``val_fraction`` is ignored. Crops, flips and sizes are those of
    :class:`ImageNetDataModule`. Arguments are those of :class:`ImageDataModule`.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, section 4.
    """

    name = "imagenet_lt"
    title = "ImageNet-LT"
    source = (
        "https://image-net.org (the images, as for ImageNet), and "
        "https://github.com/facebookresearch/classifier-balancing (the lists, under data/ImageNet_LT/)"
    )
    class_names = ImageNetDataModule.class_names
    in_channels = 3
    image_size = (224, 224)
    mean = ImageNetDataModule.mean
    std = ImageNetDataModule.std
    usual = (RandomFlip(),)  # the random crop is part of decoding
    official_val = True
    shorter = 256  # before the centre crop

    @cached_property
    def train_counts(self) -> list[int]:  # type: ignore[override]
        """Images of each class in the training list.

        Raises:
            FileNotFoundError: The list is missing.
            ValueError: The list is damaged, or a class has no image in it.
        """
        counts = torch.bincount(self.listed("train")[1], minlength=self.num_classes).tolist()
        if 0 in counts:
            raise ValueError(f"{self.list_of('train')} has no image of class {counts.index(0)}: fetch the list anew.")
        return counts

    def list_of(self, split: Split) -> Path:
        """Return the path of the list of a part."""
        return self.root / "ImageNet_LT" / f"ImageNet_LT_{split}.txt"

    def listed(self, split: Split) -> tuple[list[str], Tensor]:
        """Return the N paths in a list, relative to ImageNet's folder, and their labels, (N,) int64.

        Raises:
            FileNotFoundError: The list is missing.
            ValueError: A line is not a path and a label.
        """
        path = self.list_of(split)
        if not path.is_file():
            raise self.missing(split, path)
        names: list[str] = []
        labels: list[int] = []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            name, _, label = line.rpartition(" ")
            if not (name and label.isdigit() and int(label) < self.num_classes):
                raise ValueError(
                    f"{path}, line {number}: expected a path and a label from 0 to {self.num_classes - 1}, such as "
                    f"'train/n01440764/n01440764_190.JPEG 0', but it is '{line}'."
                )
            names.append(name)
            labels.append(int(label))
        return names, torch.tensor(labels)

    def load(self, split: Split) -> FileImages:
        """Return the listed images."""
        names, targets = self.listed(split)
        folder = self.root / "imagenet"
        if not folder.is_dir() and (self.root / "train").is_dir():
            folder = self.root
        paths = [folder / name for name in names]
        if not paths or not paths[0].is_file():
            raise self.missing(split, paths[0] if paths else self.list_of(split))
        return FileImages(paths, targets, self.eval_transform(), RandomFit(self.image_size, (0.08, 1.0)))
