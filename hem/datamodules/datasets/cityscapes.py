"""Cityscapes, street scenes from 50 cities. Source: Cordts et al., CVPR 2016."""

from __future__ import annotations

from pathlib import Path

from hem.datamodules.masks import VOID, Color, Files, MaskDataset, paired

# name: (label id, colour), in the order of train ids, from the official cityscapesScripts
_CLASSES: dict[str, tuple[int, Color]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
# the licence plate has id -1, 255 in the files
_LABELS = {
    **dict.fromkeys([*range(34), 255], VOID),
    **{label: train_id for train_id, (label, _) in enumerate(_CLASSES.values())},
}


class Cityscapes(MaskDataset):
    """Cityscapes' fine annotations: 19 classes, 2,975 training images of 1024 x 2048 pixels.

    Layout: ``cityscapes/leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` with
    ``cityscapes/gtFine/{train,val}/<city>/*_gtFine_labelIds.png``, whose label ids 0..33 become the 19 train ids
    here; the other ids are void. The labels of the official test part are not public, so the official validation part
    (500 images) is the test part, and a share of the training part is for validation.
    """

    name = "cityscapes"
    title = "Cityscapes"
    source = "https://www.cityscapes-dataset.com (gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip)"
    place = "cityscapes"
    class_names = tuple(_CLASSES)
    palette = tuple(color for _, color in _CLASSES.values())
    image_size = (1024, 2048)
    labels = _LABELS

    def files(self, root: Path, split: str) -> Files:
        """Return the paths of the images of a part, of all cities, and of their masks."""
        part = "val" if split == "test" else split
        folder = self.folder(root) / "leftImg8bit" / part
        if not folder.is_dir():
            raise self.missing(folder)
        masks = self.folder(root) / "gtFine" / part
        ending = "_leftImg8bit.png"
        images = sorted(folder.glob(f"*/*{ending}"))
        return paired(
            images, lambda image: masks / image.parent.name / f"{image.name.removesuffix(ending)}_gtFine_labelIds.png"
        )
