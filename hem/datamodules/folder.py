"""Images in folders, one sub-folder per class: one's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hem.datamodules.augment import Augmentation, Mixing, RandomFlip
from hem.datamodules.base import ImageDataModule, Split, held_out
from hem.datamodules.images import SUFFIXES, FileImages, Fit, RandomFit, image_files


def subfolders(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def scan(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """The image files under ``folder/<class>``, class after class, sorted, and their targets.

    Args:
        folder: Where the classes' folders are.
        classes: Their names, in the order of the targets.

    Returns:
        The paths and (N,) int64 targets.

    Raises:
        FileNotFoundError: A class has no folder.
        ValueError: A class has no image, or a folder is none of the classes.
    """
    if unknown := set(subfolders(folder)) - set(classes):
        raise ValueError(
            f"{folder / min(unknown)} is a folder, but there is no such class: {', '.join(classes[:9])} ..."
        )
    paths: list[str] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"The class {name} has no folder: {folder / name} is not there.")
        found = image_files(folder / name)
        if not found:
            raise ValueError(f"The class folder {folder / name} holds no image ({', '.join(SUFFIXES)}).")
        paths += found
        targets += [target] * len(found)
    return paths, torch.tensor(targets)


class FolderDataModule(ImageDataModule):
    """One's own images: ``<root>/train/<class>/*``, and beside ``train`` a ``val`` and a ``test`` or not.

    Without ``train`` the class folders lie directly in the root. Without ``test`` a share of every class is
    set apart as the test part, for good: always the same files as long as the folder does not change.
    Without ``val``, ``val_fraction`` of what remains. The folder is listed when the module is made.

    Args:
        root: The folder.
        image_size: Height and width in pixels to which images are brought.
        in_channels: 3 for colour, 1 for grey.
        crop_scale: Training images are random parts of this share of the area, scaled to ``image_size``, and
            half of them mirrored; for evaluation the shorter side is scaled to 8/7 of the longer one of
            ``image_size`` and the centre cut out. ``None``: images are stretched to ``image_size``, nothing
            is cut off or mirrored.
        test_fraction: Share of every class that is set apart where there is no ``test``, in [0, 1).
        mean: Per channel, pixels in [0, 1]; ``None``: ImageNet's.
        std: Per channel; ``None``: ImageNet's.
        **kwargs: As of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: The folder, or a class's folder in one of the parts, is not there.
        ValueError: A class folder without images, a folder in one part that is no class of ``train``.
    """

    name = "folder"
    title = "the folder"
    source = "where you keep them"

    def __init__(
        self,
        root: str,
        image_size: tuple[int, int] = (224, 224),
        in_channels: int = 3,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        test_fraction: float = 0.2,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.crop_scale = crop_scale
        super().__init__(root=root, **kwargs)
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels is 3 for colour or 1 for grey, but it is {in_channels}.")
        if not 0 <= test_fraction < 1:
            raise ValueError(f"test_fraction is a share of every class in [0, 1), but it is {test_fraction}.")
        self.in_channels = in_channels
        self.image_size = (image_size[0], image_size[1])
        self.mean = tuple(mean or ((0.485, 0.456, 0.406) if in_channels == 3 else (0.449,)))
        self.std = tuple(std or ((0.229, 0.224, 0.225) if in_channels == 3 else (0.226,)))
        if not len(self.mean) == len(self.std) == in_channels:
            raise ValueError(
                f"mean and std have one number per channel ({in_channels}), but are {self.mean}, {self.std}."
            )
        if not self.root.is_dir():
            raise FileNotFoundError(f"The folder of images {self.root} is not there: --data.root names it.")
        train = self.root / "train" if (self.root / "train").is_dir() else self.root
        self.class_names = subfolders(train)
        if len(self.class_names) < 2:
            raise ValueError(
                f"{train} holds {len(self.class_names)} class folders, but a classifier needs two or more: "
                f"expected {train}/<class>/<image>."
            )
        self._files = {"train": scan(train, self.class_names)}
        for split in ("val", "test"):
            if train != self.root and (self.root / split).is_dir():
                self._files[split] = scan(self.root / split, self.class_names)
        if "test" not in self._files:
            paths, targets = self._files["train"]
            test = held_out(targets, self.num_classes, test_fraction, seed=0x666F6C646572)  # "folder"
            for split, chosen in (("train", ~test), ("test", test)):
                index = chosen.nonzero()[:, 0]
                self._files[split] = [paths[i] for i in index.tolist()], targets[index]
        self.train_counts = torch.bincount(self._files["train"][1], minlength=self.num_classes).tolist()

    @property
    def official_val(self) -> bool:
        """Whether there is a folder ``val``."""
        return "val" in self._files

    def load(self, split: Split) -> FileImages:
        """The files of a part."""
        paths, targets = self._files[split]
        augment = None if self.crop_scale is None else RandomFit(self.image_size, self.crop_scale)
        return FileImages(paths, targets, self.eval_transform(), augment, self.in_channels)

    def eval_transform(self) -> Fit:
        """Scale and cut out the centre, or stretch."""
        return Fit(self.image_size, None if self.crop_scale is None else round(max(self.image_size) * 8 / 7))

    def usual_augment(self) -> list[Augmentation | Mixing]:
        """Mirror."""
        return [] if self.crop_scale is None else [RandomFlip()]
