"""Small data sets with masks, in their official layouts."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from hem.datamodules.datasets.camvid import CamVidOriginal

# of one's own folders: what the parts may be called
PART_NAMES = [("train", "val", "test"), ("Training", "valid", "TEST"), ("training", "Validation", "testing")]
RANDOM = np.random.default_rng(0)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pair(image: Path, mask: Path, values: np.ndarray, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """An image whose red is the mask's value, so that pairs can be told apart; the mask is returned.

    Green and blue are noise: in flat images the features of neighbours tie, and which one of them is the largest is a
    matter of rounding, which differs between batch sizes, memory formats and processors.
    """
    random = np.random.default_rng(zlib.crc32(image.name.encode()))  # whatever was written before
    blocks = random.choice(values, size=(-(-size[0] // 8), -(-size[1] // 8))).astype(np.uint8)
    array = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
    save(image, np.dstack([array, random.integers(256, size=(*size, 2), dtype=np.uint8)]))
    if mask.suffix == ".mat":
        mask.parent.mkdir(parents=True, exist_ok=True)
        record = np.zeros((1, 1), dtype=[("Boundaries", object), ("Segmentation", object)])
        record["Segmentation"][0, 0] = array
        savemat(mask, {"GTcls": record})
    else:
        save(mask, array)
    return array


def camvid_tree(root: Path, n: int = 6) -> None:
    for part in ("train", "val", "test"):
        for i in range(n):
            folder = root / "CamVid"
            pair(folder / part / f"{i}.png", folder / f"{part}annot" / f"{i}.png", np.arange(12))


def camvid_original_tree(root: Path) -> None:
    """Two stills of each part; every colour is there."""
    colors = np.array([*CamVidOriginal.palette, (0, 0, 0)], dtype=np.uint8)
    for stem in ("0001TP_006690", "0016E5_07980", "0016E5_07959", "0016E5_08159", "Seq05VD_f00000", "0001TP_008550"):
        save(root / "CamVid" / "701_StillsRaw_full" / f"{stem}.png", RANDOM.integers(256, size=(8, 16, 3)).astype("u1"))
        save(
            root / "CamVid" / "LabeledApproved_full" / f"{stem}_L.png",
            colors[np.arange(32).reshape(4, 8)].repeat(2, 0).repeat(2, 1),
        )


def cityscapes_tree(root: Path, n: int = 4) -> None:
    """Label ids 0 to 33, and 255 for the licence plate."""
    for part, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt")):
        for i in range(n):
            stem = f"{city}_{i:06d}_000019"
            pair(
                root / "cityscapes" / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png",
                root / "cityscapes" / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png",
                np.array([*range(34), 255]),
            )


def voc_tree(root: Path) -> None:
    """Six images of VOC in two lists, four of SBD, of which one is in VOC's train and one in its val."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    lists = {"train": ["v1", "v2", "v3"], "val": ["v4", "v5", "v6"]}
    values = np.array([0, 1, 15, 20, 255])
    for part, names in lists.items():
        listing = voc / "ImageSets" / "Segmentation" / f"{part}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names) + "\n")
        for k, name in enumerate(names):
            size = (24 + 8 * k, 32)
            pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png", values, size)
    for name in ("s1", "s2"):
        pair(voc / "JPEGImages" / f"{name}.jpg", sbd / "cls" / f"{name}.mat", np.arange(21))
    (sbd / "train.txt").write_text("s1\nv1\nv4\n")
    (sbd / "val.txt").write_text("s2\n")


def mask_folder_tree(root: Path, n: int = 6, classes: int = 2, parts: tuple[str, ...] = ("train", "test")) -> None:
    for part in parts:
        for i in range(n):
            values = np.array([*range(classes), 255])
            pair(root / part / "images" / f"{i}.png", root / part / "masks" / f"{i}.png", values)
