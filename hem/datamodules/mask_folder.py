"""One's own images and masks, in folders."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

from hem.datamodules.images import SUFFIXES, image_files
from hem.datamodules.masks import VOID, Color, Files, MaskDataset, paired


class MaskFolder(MaskDataset):
    """One's own images and masks: ``<root>/train/images/*`` with ``<root>/train/masks/<same name>.png``.

    ``test`` lies beside ``train``; ``val`` as well, or a share of ``train`` is taken. A mask is a grey or palette
    PNG with the index of a class in each pixel, 0..C-1, or ``void``.

    Args:
        class_names: Name of each class.
        image_size: Height and width in pixels to which images are brought.
        palette: RGB of each class; None: as many hues.
        void: The value of pixels without a label.
        has_val: Whether there is a ``val`` folder.

    Raises:
        ValueError: If ``palette`` has another length than ``class_names``, or ``void`` is a class.
    """

    name = "mask_folder"
    title = "the folder"
    source = "where you keep it"

    def __init__(
        self,
        class_names: Sequence[str],
        image_size: tuple[int, int] = (512, 512),
        palette: Sequence[Color] | None = None,
        void: int = VOID,
        has_val: bool = False,
    ) -> None:
        count = len(class_names)
        if palette is not None and len(palette) != count:
            raise ValueError(f"palette is one colour per class, but it has {len(palette)} for {count} classes.")
        if not count <= void <= 255:
            raise ValueError(f"void is a value that is no class, {count} to 255, but it is {void}.")
        self.class_names = tuple(class_names)
        self.image_size = (image_size[0], image_size[1])
        self.palette = hues(count) if palette is None else [(r, g, b) for r, g, b in palette]
        self.labels = {**{c: c for c in range(count)}, void: VOID}
        self.official_val = has_val

    def files(self, root: Path, split: str) -> Files:
        """The images of a part and their masks."""
        folder = root / split / "images"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Expected images in {folder} and their masks in {folder.with_name('masks')}, but there is no such "
                "folder: --data.root is the folder that holds train and test."
            )
        images = [Path(path) for path in image_files(folder)]
        if not images:
            raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}).")
        masks = folder.with_name("masks")
        return paired(images, lambda image: masks / image.relative_to(folder).with_suffix(".png"))


def hues(count: int) -> list[Color]:
    """As many colours that are told apart: hues around the circle, bright and dark in turn.

    Example:
        >>> hues(3)
        [(242, 61, 61), (36, 145, 36), (61, 61, 242)]
    """
    colors = []
    for c in range(count):
        red, green, blue = colorsys.hsv_to_rgb(c / count, 0.75, 0.57 if c % 2 else 0.95)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors
