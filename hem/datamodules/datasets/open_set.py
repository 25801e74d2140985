"""Open-set splits: some classes of a data set are known, the others are held out as unknown."""

from __future__ import annotations

import torch

from hem.datamodules.base import ImageDataModule
from hem.datamodules.datasets.cifar import CIFAR10DataModule, CIFAR100DataModule
from hem.datamodules.datasets.digits import DigitsDataModule
from hem.datamodules.datasets.mnist import FashionMNISTDataModule, KMNISTDataModule, MNISTDataModule
from hem.datamodules.datasets.svhn import SVHNDataModule
from hem.datamodules.datasets.tiny_imagenet import TinyImageNetDataModule
from hem.datamodules.images import NO_TARGET, Images, MemoryImages
from hem.datamodules.splits import Split
from hem.names import check_name

WHOLE: dict[str, type[ImageDataModule]] = {
    module.name: module
    for module in (
        DigitsDataModule,
        MNISTDataModule,
        FashionMNISTDataModule,
        KMNISTDataModule,
        CIFAR10DataModule,
        CIFAR100DataModule,
        SVHNDataModule,
        TinyImageNetDataModule,
    )
}


class OpenSetDataModule(ImageDataModule):
    """Some classes of a data set, relabelled 0..K-1; the others are the unknown set ``held_out``.

    The open-set splits of the literature are lists of classes, such as five lists of 6 known classes for each of
    CIFAR-10 and SVHN. Source: Neal et al., "Open set learning with counterfactual images", ECCV 2018.

    Args:
        of: The data set: a key of :data:`WHOLE`.
        known_classes: The known classes, in the order of their new labels.
        root: As of :class:`ImageDataModule`.
        download: As of :class:`ImageDataModule`.
        **kwargs: As of :class:`ImageDataModule`.

    Raises:
        ValueError: There is no such data set or class, a class is named twice, or none is left unknown.

    Example:
        >>> data = OpenSetDataModule("mnist", [0, 1, 7], val_fraction=0)
        >>> data.num_classes, data.class_names, data.class_counts
        (3, ('0', '1', '7'), [5923, 6742, 6265])
    """

    def __init__(
        self,
        of: str,
        known_classes: list[int],
        root: str | None = None,
        download: bool = False,
        **kwargs: object,
    ) -> None:
        check_name(of, WHOLE, "data set")
        whole = WHOLE[of](root=root)
        valid = set(range(whole.num_classes))
        if len(set(known_classes)) != len(known_classes) or not set(known_classes) < valid:
            raise ValueError(
                f"Expected known_classes of {whole.title} to be some of 0 to {whole.num_classes - 1}, each once and "
                f"not all, got {known_classes}."
            )
        if len(known_classes) < 2:
            raise ValueError(f"Expected two known classes or more, got known_classes {known_classes}.")
        self.whole = whole
        self.known_classes = list(known_classes)
        self.name = f"{of}_open"
        self.title = f"{whole.title} (open-set split)"
        self.source = whole.source
        self.class_names = tuple(whole.class_names[c] for c in known_classes)
        self.train_counts = [whole.train_counts[c] for c in known_classes]
        self.in_channels, self.image_size = whole.in_channels, whole.image_size
        self.mean, self.std, self.usual = whole.mean, whole.std, whole.usual
        super().__init__(root=root, download=download, **kwargs)  # type: ignore[arg-type]

    def load(self, split: Split) -> Images:
        """Return the images of the known classes of an official part."""
        label = torch.full((self.whole.num_classes,), NO_TARGET)
        label[self.known_classes] = torch.arange(len(self.known_classes))
        images = self._whole(split)
        target = label[images.targets]
        chosen = target != NO_TARGET
        return MemoryImages(images.images[chosen], target[chosen], f"{self.name}/{split}")

    def unknown_images(self) -> Images:
        """Return the images of the other classes of the official test part, without labels."""
        images = self._whole("test")
        chosen = ~torch.isin(images.targets, torch.tensor(self.known_classes))
        targets = torch.full((int(chosen.sum()),), NO_TARGET)
        return MemoryImages(images.images[chosen], targets, f"{self.name}/held_out")

    def _whole(self, split: Split) -> MemoryImages:
        images = self.whole.load(split)
        assert isinstance(images, MemoryImages), "the sets of WHOLE lie in memory"
        return images

    def fetch(self) -> None:
        """Download the whole set."""
        self.whole.fetch()
