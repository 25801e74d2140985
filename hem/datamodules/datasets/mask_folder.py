"""A user's own images and masks, in folders."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hem.datamodules.datasets.folder import parts
from hem.datamodules.images import SUFFIXES, height_and_width, image_files, subfolders
from hem.datamodules.masks import HELD_OUT, VOID, Color, Files, MaskDataset, paired
from hem.datamodules.splits import Split
from hem.decoder import header_fault, refuse_faults, size_of


class MaskFolder(MaskDataset):
    """A user's own images and masks: ``<root>/train/images/*`` with ``<root>/train/masks/<same name>.png``.

    ``test`` is beside ``train``; so is ``val``, or else a share of ``train`` is held out, each image by the hash of its
    path alone, so that adding or removing pairs moves no other one. The names ``training``, ``valid``, ``validation``
    and ``testing`` are accepted as well, in any case. A mask is a grey or palette PNG of any depth with the value of a
    class, or ``void``, in each pixel, for the upright image, see :mod:`hem.decoder`. Headers are read when a part is
    listed.

    Args:
        class_names: Name of each class.
        image_size: Height and width in pixels to which images are resized; one number for both.
        palette: RGB of each class; None: different hues.
        void: Value of unlabelled pixels; None: 255, unless that is the value of a class.
        has_val: Whether there is a ``val`` folder; None: detect it.
        values: Value of each class in the masks, such as ``[0, 255]``; None: 0, 1, 2, ...
        skip: Images to leave out, by their paths relative to the root, such as ``train/images/7.png``.

    Raises:
        ValueError: If ``palette`` or ``values`` has another length than ``class_names``, two classes have one name or
            one value, ``void`` is a class, or there are more than 253 classes.
    """

    name = "mask_folder"
    title = "the folder"
    source = "where you keep it"
    own = True

    def __init__(
        self,
        class_names: Sequence[str],
        image_size: int | tuple[int, int] = (512, 512),
        palette: Sequence[Color] | None = None,
        void: int | None = None,
        has_val: bool | None = None,
        values: Sequence[int] | None = None,
        skip: Sequence[str] | None = None,
    ) -> None:
        count = len(class_names)
        if palette is not None and len(palette) != count:
            raise ValueError(f"Expected one colour per class in palette, got {len(palette)} for {count} classes.")
        if count > HELD_OUT - 1:
            raise ValueError(
                f"Expected at most {HELD_OUT - 1} classes, for masks are bytes in which three values have a meaning of "
                f"their own, got {count}: put classes together, by masks of fewer values."
            )
        own = list(range(count)) if values is None else list(values)
        if len(own) != count or len(set(own)) != count or not all(0 <= value <= 255 for value in own):
            raise ValueError(
                f"Expected values to be different numbers of 0 to 255, one for each of the {count} classes, got {own}."
            )
        if void is not None and (void in own or not 0 <= void <= 255):
            raise ValueError(
                f"Expected void to be a value that is no class, {count} to 255, got {void}."
                if values is None
                else f"Expected void to be a value of 0 to 255 that is none of values, {own}, got {void}."
            )
        self.class_names = tuple(class_names)
        self.image_size = height_and_width(image_size)
        self.palette = hues(count) if palette is None else [(r, g, b) for r, g, b in palette]
        self.labels = {VOID: VOID} if void is None else {void: VOID}
        self.labels |= {value: c for c, value in enumerate(own)}  # 255 is the value of a class
        self.own_val = has_val
        self.skip = set(skip or ())
        self._checked: set[str] = set()  # images whose headers, and those of their masks, were checked

    def has_val(self, root: Path) -> bool:
        """Return whether there is a folder ``val``."""
        return "val" in parts(root) if self.own_val is None and root.is_dir() else bool(self.own_val)

    def files(self, root: Path, split: str) -> Files:
        """Return the paths of the images of a part and of their masks.

        Raises:
            FileNotFoundError: The part, or the mask of an image, is missing.
            ValueError: The part is empty, or files cannot be used by their headers, all of which are named.
        """
        found = parts(root) if root.is_dir() else {}
        folder = found.get(cast(Split, split), root / split) / "images"
        if not folder.is_dir():
            there = ", ".join(subfolders(root)) if root.is_dir() else ""
            raise FileNotFoundError(
                f"Expected images in {folder} and their masks in {folder.with_name('masks')}, but there is no such "
                f"folder (there is {there or 'nothing'}): --data.root is the folder that holds train and test."
            )
        images = [Path(path) for path in image_files(folder)]
        images = [path for path in images if path.relative_to(root).as_posix() not in self.skip]
        if not images:
            raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}).")
        masks = folder.with_name("masks")
        files = paired(images, lambda image: masks / image.relative_to(folder).with_suffix(".png"))
        mask_of = dict(files)
        new = [image for image in mask_of if image not in self._checked]
        refuse_faults(new, lambda image: pair_fault(image, mask_of[image]), root, "--data.dataset.skip")
        self._checked |= set(mask_of)
        return files


def pair_fault(image: str, mask: str) -> str | None:
    """Return why an image and its mask cannot be used, by their headers; None: they can."""
    if (fault := header_fault(image)) is not None:
        return fault
    if (fault := header_fault(mask, mask=True)) is not None:
        return f"its mask: {fault}"
    sizes = size_of(image), size_of(mask)
    if sizes[0] == sizes[1]:
        return None
    turned = ", as if drawn before the image was turned, as its EXIF says" if sizes[0] == sizes[1][::-1] else ""
    return "{} x {} upright, but its mask {} x {}".format(*sizes[0], *sizes[1]) + turned


def hues(count: int) -> list[Color]:
    """Return distinct colours: hues around the circle, alternately bright and dark.

    Example:
        >>> hues(3)
        [(242, 61, 61), (36, 145, 36), (61, 61, 242)]
    """
    colors = []
    for c in range(count):
        red, green, blue = colorsys.hsv_to_rgb(c / count, 0.75, 0.57 if c % 2 else 0.95)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors
