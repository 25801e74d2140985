"""iNaturalist 2018 and 2019, species with a naturally long-tailed distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hem.datamodules.augment import RandomFlip
from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import FileImages, RandomFit
from hem.datamodules.splits import Split

CLASSES = {2018: 8142, 2019: 1010}


class Annotations(NamedTuple):
    """Content of an official annotation file."""

    files: list[str]  # paths of N images
    targets: Tensor  # (N,) int64
    class_names: list[str]  # of the classes, all different


class INaturalistDataModule(ImageDataModule):
    """Species: 8,142 classes and 437,513 training images (2018), or 1,010 and 265,213 (2019).

    The official validation part (24,426 or 3,030 images) is the test part, since the labels of the official test part
    are not public; the validation part is cut from the training part, unless ``val_fraction`` is 0.

    Files in ``inaturalist<version>/``: ``train<version>.json`` and ``val<version>.json`` in the official layout
    (lists ``images`` with ``id`` and ``file_name``, ``annotations`` with ``image_id`` and ``category_id``,
    ``categories`` with ``id`` and ``name``), and the images at the paths in these files,
    ``train_val<version>/...``, or where torchvision's ``INaturalist`` unpacks them, ``<version>/...``. The names and
    counts of the classes are read from the training file when they are needed: the command line links them to the
    network and the loss, so a run needs the file in any case.

    Usual augmentation: random crops of 8 to 100 % of the area, scaled to 224 x 224 pixels, and random flips.

    Args:
        version: 2018 or 2019.
        **kwargs: As of :class:`ImageDataModule`.

    Raises:
        ValueError: There is no such version.

    Source: Van Horn et al., "The iNaturalist species classification and detection dataset", CVPR 2018; mean and
    std: Kang et al. 2020 (the authors' code).
    """

    name = "inaturalist"
    title = "iNaturalist"
    source = "https://github.com/visipedia/inat_comp"
    in_channels = 3
    image_size = (224, 224)
    mean = (0.466, 0.471, 0.380)
    std = (0.195, 0.194, 0.192)
    usual = (RandomFlip(),)  # the random crop is part of decoding
    shorter = 256  # before the centre crop

    def __init__(self, version: Literal[2018, 2019] = 2018, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if version not in CLASSES:
            raise ValueError(f"Expected version to be 2018 or 2019, got {version}.")
        self.version = version
        self._train: Annotations | None = None

    @property
    def folder(self) -> Path:
        """Folder of annotations and images: the root itself, or ``inaturalist<version>`` in it."""
        return (
            self.root
            if (self.root / f"train{self.version}.json").is_file()
            else self.root / f"inaturalist{self.version}"
        )

    def annotations(self, split: Split) -> Annotations:
        """Read the annotations of a part; those of the training part are kept in memory.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: The file is damaged.
        """
        if split == "train" and self._train is not None:
            return self._train
        path = self.folder / f"{'train' if split == 'train' else 'val'}{self.version}.json"
        if not path.is_file():
            raise self.missing(split, path)
        found = read_annotations(path, CLASSES[self.version])
        if split == "train":
            self._train = found
        return found

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return CLASSES[self.version]

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The names of the categories."""
        return self.annotations("train").class_names

    @property
    def train_counts(self) -> list[int]:  # type: ignore[override]
        """Images of each class in the training part."""
        counts: list[int] = torch.bincount(self.annotations("train").targets, minlength=self.num_classes).tolist()
        return counts

    def load(self, split: Split) -> FileImages:
        """Return the images of a part."""
        files, targets, _ = self.annotations(split)
        unpacked = f"train_val{self.version}/"
        if not (self.folder / unpacked).is_dir():  # torchvision renames it
            files = [f"{self.version}/{file.removeprefix(unpacked)}" for file in files]
        paths = [self.folder / file for file in files]
        if not paths[0].is_file():
            raise self.missing(split, paths[0])
        return FileImages(paths, targets, self.eval_transform(), RandomFit(self.image_size, (0.08, 1.0)))


def read_annotations(path: Path, num_classes: int) -> Annotations:
    """Read an annotation file in the competitions' layout.

    Args:
        path: The file, such as ``train2018.json``.
        num_classes: Expected number of classes.

    Raises:
        ValueError: The file is damaged, or has another number of classes; the message has its name.
    """
    try:
        content = json.loads(path.read_bytes())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        targets = torch.tensor([int(entry["category_id"]) for entry in content["annotations"]])
        found = [str(files[entry["image_id"]]) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, or not in the official layout ({type(error).__name__}: {error}): fetch it anew."
        ) from error
    if (
        not found
        or sorted(names) != list(range(num_classes))
        or not 0 <= int(targets.min()) <= int(targets.max()) < num_classes
    ):
        raise ValueError(
            f"{path} is not the official file: expected images of categories 0 to {num_classes - 1}, "
            f"but it has {len(found)} images and {len(names)} categories."
        )
    class_names = [names[k] for k in range(num_classes)]
    if len(set(class_names)) < num_classes:
        class_names = [f"{name} ({k})" for k, name in enumerate(class_names)]
    return Annotations(found, targets, class_names)
