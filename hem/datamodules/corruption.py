"""Corrupted versions of a test part, computed batch by batch or read from the official files.

They are arguments of :class:`~hem.modules.CorruptionTask`. The data set is the task's own data module, which has the
channels, size, loaders and the order of the images.
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
    extra: bool = False  # whether it is left out of the headline means


CLEAN = Condition("clean", 0)


class Pass(NamedTuple):
    """An iteration over some images, in which every batch is evaluated under each of the conditions."""

    images: EvaluationSet
    conditions: list[Condition]


class CorruptedImages(ABC):
    """Base class of a test part under corruptions of five severities.

    Args:
        corruptions: Names of corruptions; ``None``: all.
        severities: Some of 1 to 5; ``None``: all.
        images: Number of images, the same ones under every condition; ``None``: all.
        seed: Seed of the choice of images; not a run's seed, so that all networks get the same images.

    Raises:
        ValueError: A severity is not in 1 to 5, a name is repeated, or ``images`` is below 1.
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
                raise ValueError(f"Expected {argument} to be one or more, each once, got {values}: null takes all.")
        if images is not None and images < 1:
            raise ValueError(f"Expected images to be a number of images, 1 or more, got {images}: null takes all.")
        self.corruptions = corruptions
        self.images = images
        self.seed = seed

    @abstractmethod
    def conditions(self, known: ImageDataModule) -> list[Condition]:
        """Return the conditions, corruption by corruption, without the clean images.

        Args:
            known: The data set.

        Raises:
            FileNotFoundError: The files are missing; the message says where they were searched.
            ValueError: There is no such corruption.
        """

    @abstractmethod
    def passes(self, known: ImageDataModule) -> list[Pass]:
        """Return iterations over the images that cover the clean images and every condition once.

        Args:
            known: The data set, whose loaders split the images among processes.
        """

    def apply(self, input: Tensor, index: Tensor, condition: Condition) -> Tensor:
        """Return the images of a batch under a condition.

        Args:
            input: (N, C, H, W) float in [0, 1].
            index: Positions of the images in the test part, (N,) int64.
            condition: A condition of the pass that the batch belongs to.

        Returns:
            (N, C, H, W) float in [0, 1].
        """
        return input

    def examined(self, name: str, images: Images) -> EvaluationSet:
        """Return the chosen images of a set for evaluation."""
        return EvaluationSet(name, "corruption", images, some(self.images, len(images), self.seed))


class ComputedCorruptions(CorruptedImages):
    """Corruptions computed on the batch's device, a function of (seed, corruption, severity, image).

    The constants are those of the official set of the nearest image size, see :mod:`hem.corruptions`. Accuracies are
    close but not equal to those on the official files, which have other random numbers, photographs of frost (see
    ``frost``) and, for ImageNet-C, JPEG compression.

    Args:
        corruptions: Keys of :data:`hem.corruptions.CORRUPTIONS`; ``None``: all 19.
        severities: Some of 1 to 5; ``None``: all.
        images: Number of images, the same ones under every condition; ``None``: all.
        seed: Seed of the choice of images and of the corruptions; not a run's seed, so that all networks get the same
            images.
        frost: Folder of the authors' photographs of frost; ``None``: a generated texture replaces them.

    Raises:
        ValueError: There is no such corruption or severity, or ``images`` is below 1.

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
        """Return the conditions, corruption by corruption."""
        if self.frost is not None and "frost" in self.names:
            self._photographs = hem.corruptions.frost_photographs(self.frost, known.image_size)
        return [
            Condition(name, severity, name in hem.corruptions.EXTRA)
            for name in self.names
            for severity in self.severities
        ]

    def passes(self, known: ImageDataModule) -> list[Pass]:
        """Return one pass over the clean images with all conditions, so that files are decoded once."""
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
