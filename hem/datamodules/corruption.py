"""Corrupted versions of a known test part: computed here batch by batch, or read from the official files.

Both are objects that a :class:`~hem.modules.CorruptionTask` is given. Their data set is the task's own data
module, which brings channels, size, loaders and the order of the images.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

import hem.corruptions
from hem.datamodules.base import ImageDataModule
from hem.datamodules.evaluation import EvaluationSet
from hem.datamodules.images import Images
from hem.names import check_name
from hem.rng import key as key_of
from hem.rng import some


class Condition(NamedTuple):
    """A corruption at a severity."""

    corruption: str
    severity: int  # 1 to 5; 0 for the clean images
    extra: bool = False  # not among those that the headline figures are means over


CLEAN = Condition("clean", 0)


class Pass(NamedTuple):
    """A way once through some images: every batch is seen under each of the conditions."""

    images: EvaluationSet
    conditions: list[Condition]


class CorruptedImages(ABC):
    """The test part of a data set under corruptions, five severities of each.

    Args:
        corruptions: Their names; ``None``: all.
        severities: Some of 1 to 5; ``None``: all.
        images: So many images alone, the same under every condition; ``None``: all.
        seed: Chooses those images. It is no run's seed: all networks shall see the same images.

    Raises:
        ValueError: A severity is none, one is named twice, or fewer than one image is asked for.
    """

    def __init__(
        self,
        corruptions: list[str] | None = None,
        severities: list[int] | None = None,
        images: int | None = None,
        seed: int = 0,
    ) -> None:
        self.severities = list(hem.corruptions.SEVERITIES) if severities is None else severities
        for severity in self.severities:
            hem.corruptions.check_severity(severity)
        for argument, values in (("corruptions", corruptions), ("severities", severities)):
            if values is not None and (not values or len(set(values)) != len(values)):
                raise ValueError(f"{argument} names one or more, each once, but it is {values}: null takes all.")
        if images is not None and images < 1:
            raise ValueError(f"images is a number of images, 1 or more, but it is {images}: null takes all.")
        self.corruptions = corruptions
        self.images = images
        self.seed = seed

    @abstractmethod
    def conditions(self, known: ImageDataModule) -> list[Condition]:
        """The conditions, corruption by corruption, without the clean images.

        Args:
            known: The data set.

        Raises:
            FileNotFoundError: Its files are not there; the sentence says where they were looked for.
            ValueError: There is no such corruption.
        """

    @abstractmethod
    def passes(self, known: ImageDataModule) -> list[Pass]:
        """The ways through the images that show the clean ones and every condition once.

        Args:
            known: The data set; its loaders give each process its part.
        """

    def apply(self, input: Tensor, index: Tensor, condition: Condition) -> Tensor:
        """The images of a batch under a condition.

        Args:
            input: (N, C, H, W) float in [0, 1].
            index: (N,) int64, their places in the test part.
            condition: One of those of their pass.

        Returns:
            (N, C, H, W) float in [0, 1].
        """
        return input

    def examined(self, name: str, images: Images) -> EvaluationSet:
        """The chosen ones of some images."""
        return EvaluationSet(name, "corruption", images, some(self.images, len(images), self.seed))


class ComputedCorruptions(CorruptedImages):
    """Corruptions computed on the batch's device, as a function of (seed, corruption, severity, image).

    The constants are those of the official set of the nearest image size, see :mod:`hem.corruptions`. The
    figures are close to those of the official files, not equal: the random numbers are others, the frost is
    (unless photographs are given), and ImageNet-C is stored in JPEG files.

    Args:
        corruptions: Keys of :data:`hem.corruptions.CORRUPTIONS`; ``None``: all 19.
        severities: Some of 1 to 5; ``None``: all.
        images: So many images alone, the same under every condition; ``None``: all.
        seed: Chooses those images and the random numbers. It is no run's seed: all networks shall see the
            same images.
        frost: Folder of the authors' photographs of frost; ``None``: a texture stands in for them.

    Raises:
        ValueError: There is no such corruption or severity, or fewer than one image is asked for.

    Example:
        >>> from hem.datamodules import MNISTDataModule
        >>> corrupted = ComputedCorruptions(["fog", "saturate"], [1, 5])
        >>> [(c.corruption, c.severity, c.extra) for c in corrupted.conditions(MNISTDataModule())]
        [('fog', 1, False), ('fog', 5, False), ('saturate', 1, True), ('saturate', 5, True)]
    """

    def __init__(
        self,
        corruptions: list[str] | None = None,
        severities: list[int] | None = None,
        images: int | None = None,
        seed: int = 0,
        frost: str | None = None,
    ) -> None:
        super().__init__(corruptions, severities, images, seed)
        self.names = list(hem.corruptions.CORRUPTIONS) if corruptions is None else corruptions
        for name in self.names:
            check_name(name, hem.corruptions.CORRUPTIONS, "corruption")
        self.frost = frost
        self._photographs: list[Tensor] | None = None

    def conditions(self, known: ImageDataModule) -> list[Condition]:
        """The conditions, corruption by corruption."""
        if self.frost is not None and "frost" in self.names:
            self._photographs = hem.corruptions.frost_photographs(self.frost, known.image_size)
        return [
            Condition(name, severity, name in hem.corruptions.EXTRA)
            for name in self.names
            for severity in self.severities
        ]

    def passes(self, known: ImageDataModule) -> list[Pass]:
        """One way through the clean images, on which everything is computed: files are decoded once."""
        return [Pass(self.examined("clean", known.images("test")), [CLEAN, *self.conditions(known)])]

    def apply(self, input: Tensor, index: Tensor, condition: Condition) -> Tensor:
        """Corrupt a batch."""
        if condition == CLEAN:
            return input
        name, severity, _ = condition
        key = key_of(self.seed, list(hem.corruptions.CORRUPTIONS).index(name), severity, index)
        return hem.corruptions.corrupt(input.float(), name, severity, key, photographs=self._photographs).to(
            input.dtype
        )
