"""Pascal VOC 2012 and the Semantic Boundaries Dataset (SBD), which has labels for more of VOC's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
import torch
from scipy.io.matlab import MatReadError
from torch import Tensor

from hem.datamodules.masks import VOID, Files, MaskDataset, paired

_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def voc_color(label: int) -> tuple[int, int, int]:
    """Return the colour of a label in VOC's development kit: its bits are dealt to red, green and blue.

    Example:
        >>> voc_color(0), voc_color(1), voc_color(15), voc_color(20)
        ((0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128))
    """
    red, green, blue = (
        sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue


class VOC(MaskDataset):
    """Pascal VOC 2012: 20 classes and background; with SBD the 10,582 training images called ``trainaug``.

    Layout: ``VOCdevkit/VOC2012/{JPEGImages,SegmentationClass}`` and the lists
    ``ImageSets/Segmentation/{train,val}.txt`` there; for SBD beside it ``benchmark_RELEASE/dataset/cls/*.mat`` and
    its ``train.txt`` and ``val.txt``. The labels of the official test part are not public, so the official
    validation part (1,449 images) is the test part, and a share of the training part is for validation.

    Source: Everingham et al., IJCV 2010; Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011.

    Args:
        sbd: Whether to train on SBD's images as well: those of its two lists and of VOC's ``train``, without those of
            VOC's ``val``. If both have a mask, it is VOC's.
    """

    name = "voc"
    title = "Pascal VOC 2012"
    source = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (and SBD, benchmark.tgz)"
    place = "VOCdevkit/VOC2012"
    class_names = _NAMES
    palette = tuple(voc_color(c) for c in range(21))
    image_size = (512, 512)

    def __init__(self, sbd: bool = True) -> None:
        self.sbd = sbd
        self.name = "voc_sbd" if sbd else "voc"

    def files(self, root: Path, split: str) -> Files:
        """Return the paths of the images of a part and of their masks."""
        folder = self.folder(root)
        own = self._list(folder / "ImageSets" / "Segmentation" / f"{'val' if split == 'test' else split}.txt")
        if split != "train" or not self.sbd:
            return self._pairs(folder, own, {})
        release = root / "benchmark_RELEASE" / "dataset"
        held_out = self._list(folder / "ImageSets" / "Segmentation" / "val.txt")
        more = (self._list(release / "train.txt") | self._list(release / "val.txt")) - own - held_out
        return self._pairs(folder, own | more, {name: release / "cls" / f"{name}.mat" for name in more})

    def _list(self, path: Path) -> set[str]:
        if not path.is_file():
            raise self.missing(path)
        return set(path.read_text().split())

    def _pairs(self, folder: Path, names: set[str], masks: dict[str, Path]) -> Files:
        images = [folder / "JPEGImages" / f"{name}.jpg" for name in sorted(names)]
        own = folder / "SegmentationClass"
        return paired(images, lambda image: masks.get(image.stem, own / f"{image.stem}.png"))

    def read_mask(self, path: str) -> Tensor:
        """Read the classes of a mask, VOC's palette PNG or SBD's .mat file, (H, W) uint8.

        Raises:
            ValueError: The file cannot be read, or a value is no class.
        """
        if not path.endswith(".mat"):
            return super().read_mask(path)
        try:
            values = scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0]
        except (OSError, KeyError, ValueError, IndexError, TypeError, MatReadError) as error:
            raise ValueError(f"{path} is not a readable mask of SBD: {error}.") from error
        mask = torch.from_numpy(values.astype(np.int64))
        if bool((wrong := (mask != VOID) & ((mask < 0) | (mask > 20))).any()):
            value = int(mask[wrong][0])
            raise ValueError(
                f"Expected masks of {self.title} to hold 0 to 20 or 255 (void), got the value {value} in {path}."
            )
        return mask.to(torch.uint8)
