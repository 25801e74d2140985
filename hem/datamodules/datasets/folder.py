"""A user's own images, in one sub-folder per class."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hem.datamodules.augment import RandomFlip
from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import (
    OTHER_SUFFIXES,
    SUFFIXES,
    FileImages,
    Images,
    RandomFit,
    height_and_width,
    hidden,
    image_files,
    subfolders,
)
from hem.datamodules.splits import Split, held_out_by_name
from hem.decoder import header_fault, refuse_faults

# usual names of the parts' folders, in any case
PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def parts(root: Path) -> dict[Split, Path]:
    """Return the folders of the parts in a folder, by their usual names :data:`PARTS`.

    Raises:
        ValueError: Two folders are named as the same part.
    """
    found: dict[Split, Path] = {}
    for part, names in PARTS.items():
        own = [name for name in subfolders(root) if name.lower() in names]
        if len(own) > 1:
            raise ValueError(
                f"Expected one folder for the {part} part in {root}, got {' and '.join(own)}: merge them, or move one "
                "of them elsewhere."
            )
        if own:
            found[part] = root / own[0]
    return found


def own_images(folder: Path) -> bool:
    """Return whether a folder itself contains images."""
    return any(path.suffix.lower() in SUFFIXES and not hidden(path.name) for path in folder.iterdir())


def class_parts(root: Path) -> dict[Split, Path]:
    """Return the folders of the parts in a folder of images, with the classes' folders in them; empty: no parts.

    A folder with the name of a part is a class if it contains images itself and there is no ``train``.

    Raises:
        ValueError: The layout is unknown; the message says what was found and what is expected.
    """
    found = parts(root)
    if "train" in found:
        if others := sorted(set(subfolders(root)) - {folder.name for folder in found.values()}):
            rank_zero_warn(
                f"{root} holds {', '.join(folder.name for folder in found.values())}, and beside them "
                f"{', '.join(others)}, which are not read: the parts are called train, val and test."
            )
        return found
    names = [folder.name for folder in found.values() if subfolders(folder) and not own_images(folder)]
    if len(found) == len(subfolders(root)):  # other names of parts could be classes
        names = [folder.name for folder in found.values()]
    if names:
        raise ValueError(
            f"Expected {root}/train/<class>/<image>, or {root}/<class>/<image> without parts, got {', '.join(names)} "
            f"without train among {', '.join(subfolders(root))}: name the folder of the training part train, or give "
            "the folder that holds the classes as --data.root."
        )
    if found:
        rank_zero_warn(
            f"{', '.join(folder.name for folder in found.values())} in {root} is taken for a class, since there is no "
            "train and it holds images itself: the parts would be train/<class>, val/<class> and test/<class>."
        )
    return {}


def scan(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """List the image files under ``folder/<class>``, by class and sorted, and their targets.

    Args:
        folder: Parent of the classes' folders.
        classes: Names of the classes, in the order of the targets.

    Returns:
        The N paths, and the targets (N,) int64.

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
            raise ValueError(
                f"The class folder {folder / name} holds no image ({', '.join(SUFFIXES)}): delete it, or "
                "put some there."
            )
        paths += found
        targets += [target] * len(found)
    return paths, torch.tensor(targets)


class FolderDataModule(ImageDataModule):
    """A user's own images: ``<root>/train/<class>/*``, optionally with ``val`` and ``test`` beside ``train``.

    The names ``training``, ``valid``, ``validation`` and ``testing`` are accepted as well, in any case. Without
    ``train`` the class folders are directly in the root. Hidden files and folders are ignored.

    Without ``test`` a fixed share of the images is the test part; without ``val``, ``val_fraction`` of the others is
    the validation part. A file is assigned to its part by a hash of its path relative to the training folder (for
    validation with ``split_seed``), so adding or removing files moves no other one; the shares are met on average, not
    in each class. (A class that would be held out as a whole keeps one image to train on.) A run keeps a record of the
    parts, see :mod:`hem.runs.data`.

    The folder is listed and the header of each file read when the module is built. On decoding see :mod:`hem.decoder`.

    Args:
        root: The folder.
        image_size: Height and width in pixels to which images are scaled; one number for both.
        in_channels: 3 for colour, 1 for grey.
        crop_scale: Range of the area of random crops, as a share of the image's, for training, with random flips; in an
            evaluation the shorter side is scaled to 8/7 of the longer one of ``image_size`` before a centre crop.
            ``None``: images are stretched to ``image_size``, without crops and flips.
        test_fraction: Share of the images for the test part if there is no ``test``, in [0, 1).
        mean: Per channel, pixels in [0, 1]; ``None``: ImageNet's.
        std: Per channel; ``None``: ImageNet's.
        skip: Files to leave out, by their paths relative to the root, such as ``train/cat/7.png``.
        record: The ``data.json`` of a run, whose classes are used with ``predict_folder``, so that the folder itself is
            not needed; ``predict`` passes that of the run.
        **kwargs: As of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: The folder, or a class's folder in one of the parts, is missing.
        ValueError: The layout is another one, a class folder holds no image, a folder in one part is no class of
            ``train``, or files cannot be read as images, all of which are named.
    """

    name = "folder"
    title = "the folder"
    source = "where you keep them"
    own = True

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] = (224, 224),
        in_channels: int = 3,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        test_fraction: float = 0.2,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        skip: list[str] | None = None,
        record: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.crop_scale = crop_scale
        self.usual = () if crop_scale is None else (RandomFlip(),)
        super().__init__(root=root, **kwargs)
        if in_channels not in (1, 3):
            raise ValueError(f"Expected in_channels to be 3 for colour or 1 for grey, got {in_channels}.")
        if not 0 <= test_fraction < 1:
            raise ValueError(f"Expected test_fraction to be a share of the images in [0, 1), got {test_fraction}.")
        self.in_channels = in_channels
        self.image_size = height_and_width(image_size)
        self.shorter = None if crop_scale is None else round(max(self.image_size) * 8 / 7)
        self.mean = tuple(mean or ((0.485, 0.456, 0.406) if in_channels == 3 else (0.449,)))
        self.std = tuple(std or ((0.229, 0.224, 0.225) if in_channels == 3 else (0.226,)))
        if not len(self.mean) == len(self.std) == in_channels:
            raise ValueError(
                f"Expected one number per channel ({in_channels}) in mean and std, got {self.mean} and {self.std}."
            )
        self._files: dict[Split, tuple[list[str], Tensor]] = {}
        self._drawn = False
        self._recorded = {} if record is None or self.predict_folder is None else json.loads(Path(record).read_bytes())
        if self._recorded:
            self.class_names = self._recorded["class_names"]
            return
        if not self.root.is_dir():
            raise FileNotFoundError(f"The folder of images {self.root} is not there: --data.root names it.")
        folders = class_parts(self.root)
        self._train = folders.setdefault("train", self.root)
        self.class_names = subfolders(self._train)
        if len(self.class_names) < 2:
            inner = [self._train / name for name in self.class_names if len(subfolders(self._train / name)) > 1]
            if inner and not own_images(inner[0]):
                mend = f"give {inner[0]} as --data.root" if self._train == self.root else f"move them to {self._train}"
                raise ValueError(
                    f"Expected {self._train}/<class>/<image>, got the folders one level below, in {inner[0].name} "
                    f"({', '.join(subfolders(inner[0])[:9])}): {mend}."
                )
            raise ValueError(
                f"Expected two class folders or more, {self._train}/<class>/<image>, got "
                f"{', '.join(self.class_names) or 'none'}."
            )
        for part, folder in folders.items():
            self._files[part] = scan(folder, self.class_names)
        self._leave_out(set(skip or ()))
        if others := [path for folder in folders.values() for path in image_files(folder, OTHER_SUFFIXES)]:
            rank_zero_warn(
                f"{self.root} holds {len(others)} images of other kinds, such as {others[0]}, which are not read: save "
                f"them in one of {', '.join(SUFFIXES)}."
            )
        files = [path for paths, _ in self._files.values() for path in paths]
        refuse_faults(files, header_fault, self.root, "--data.skip")
        self._drawn = "test" not in self._files
        if self._drawn:
            paths, targets = self._files["train"]
            test = held_out_by_name(self._names(paths), targets, test_fraction, seed=0x666F6C646572)  # "folder"
            for part, chosen in (("train", ~test), ("test", test)):
                index = chosen.nonzero()[:, 0]
                self._files[part] = [paths[i] for i in index.tolist()], targets[index]
        self.train_counts = torch.bincount(self._files["train"][1], minlength=self.num_classes).tolist()

    def _leave_out(self, skip: set[str]) -> None:
        """Remove files from the lists, by their paths relative to the root."""
        for part, (paths, targets) in self._files.items():
            names = [Path(path).relative_to(self.root).as_posix() for path in paths] if skip else []
            out = torch.tensor([name in skip for name in names], dtype=torch.bool)
            if not bool(out.any()):
                continue
            for label in torch.bincount(targets[out]).nonzero()[:, 0].tolist():
                if bool(out[targets == label].all()):
                    raise ValueError(
                        f"skip leaves no {part} image of the class {self.class_names[label]}: leave out fewer, or move "
                        "the class elsewhere."
                    )
            kept = (~out).nonzero()[:, 0]
            self._files[part] = [paths[i] for i in kept.tolist()], targets[kept]
            skip = skip - set(names)
        if skip:
            raise ValueError(f"skip names {min(skip)}, but {self.root / min(skip)} is no image that was found.")

    def _names(self, paths: Sequence[str]) -> list[str]:
        """Return paths relative to the training folder, such as ``cat/7.png``, which the split depends on."""
        return [Path(path).relative_to(self._train).as_posix() for path in paths]

    @property
    def official_val(self) -> bool:  # type: ignore[override]
        """Whether there is a folder ``val``, so that no share of ``train`` is held out."""
        return "val" in self._files

    @property
    def split_by_name(self) -> bool:  # type: ignore[override]
        """Whether ``test`` or ``val`` is missing."""
        return self._drawn or not self.official_val

    @property
    def class_counts(self) -> list[int]:
        """Images of each class in the training part, after the validation split and the subset."""
        if self._recorded:
            if "class_counts" not in self._recorded:  # an older record; a loss that needs it says so
                raise AttributeError("The record of the run has no class_counts.")
            return list(self._recorded["class_counts"])
        counts = list(self.train_counts)
        if not self.official_val:
            paths, targets = self._files["train"]
            counts = torch.bincount(targets[~self._held_out(paths, targets)], minlength=self.num_classes).tolist()
        return counts if self.subset is None else self.subset.counts(counts)

    def record(self) -> dict[str, Any]:
        """Return the record of the data, with the images of each class, which losses may need."""
        return {**super().record(), "class_counts": self.class_counts}

    def validation(self, images: Images) -> Tensor:
        """Return which training images are held out for validation, by the hash of their names, (N,) bool."""
        return self._held_out(images.paths or (), images.targets)

    def _held_out(self, paths: Sequence[str], targets: Tensor) -> Tensor:
        return held_out_by_name(self._names(paths), targets, self.val_fraction, self.split_seed)

    def load(self, split: Split) -> FileImages:
        """Return the files of a part.

        Raises:
            ValueError: The classes are those of a record, so the folder was not read.
        """
        if self._recorded:
            raise ValueError(f"record is for predict_folder alone: leave it out to use the {split} part.")
        paths, targets = self._files[split]
        augment = None if self.crop_scale is None else RandomFit(self.image_size, self.crop_scale)
        return FileImages(paths, targets, self.eval_transform(), augment, self.in_channels)
