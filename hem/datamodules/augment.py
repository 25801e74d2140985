"""Augmentation of whole batches, on the batch's device.

The change of a sample is a function of its key alone (see :mod:`hem.rng`): it depends neither on the other samples of
the batch, nor on the number of processes or workers, nor on the state of any generator.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from scipy.stats import beta
from torch import Tensor
from torch.nn import functional as F

from hem.rng import integers, uniform
from hem.rng import key as key_of


def _check_probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"Expected {name} to be a probability in [0, 1], got {value}.")
    return value


class Augmentation(ABC):
    """Base class of random changes of single images."""

    @abstractmethod
    def __call__(self, input: Tensor, key: Tensor) -> Tensor:
        """Change every image by random numbers of its key.

        Args:
            input: (N, C, H, W) float in [0, 1].
            key: (N,) int64, one key per image; draw with :func:`hem.rng.uniform`.

        Returns:
            (N, C, H, W) float in [0, 1].
        """


class Mixing(ABC):
    """Base class of random mixtures of two images and their labels; the partner is any sample of the training part."""

    @abstractmethod
    def __call__(self, input: Tensor, partner: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Mix every image with its partner.

        Args:
            input: (N, C, H, W) float in [0, 1].
            partner: (N, C, H, W) float in [0, 1], augmented as it would be on its own in this epoch.
            key: (N,) int64, one key per image.

        Returns:
            The mixture, (N, C, H, W), and the share of ``input`` in it, (N,) in [0, 1].
        """


class RandomCrop(Augmentation):
    """Pad on every side, and crop to the original size at a random position.

    Source: He et al., "Deep residual learning", CVPR 2016, section 4.2 (4 pixels of zeros on CIFAR-10).

    Args:
        padding: Pixels added on each side.
        mode: Padding mode: ``constant`` (black) or ``reflect`` (the image mirrored).

    Example:
        >>> RandomCrop(1)(torch.ones(2, 1, 3, 3), torch.tensor([3, 4])).shape
        torch.Size([2, 1, 3, 3])
    """

    def __init__(self, padding: int = 4, mode: Literal["constant", "reflect"] = "constant") -> None:
        if padding < 0:
            raise ValueError(f"Expected padding to be a number of pixels, 0 or more, got {padding}.")
        self.padding = padding
        self.mode = mode

    def __call__(self, input: Tensor, key: Tensor) -> Tensor:
        """Crop every image."""
        height, width = input.shape[-2:]
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(
                f"Expected padding smaller than the image for reflection, got {self.padding} for {height} x {width} "
                "pixels: lower it, or set mode to constant."
            )
        padded = F.pad(input, (self.padding,) * 4, mode=self.mode)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, places, places, H, W)
        place = (uniform(key, 2) * (2 * self.padding + 1)).long()
        return windows[torch.arange(len(input), device=input.device), :, place[:, 0], place[:, 1]]


class RandomFlip(Augmentation):
    """Flip horizontally with probability ``p``.

    Args:
        p: Probability of a flip.

    Example:
        >>> RandomFlip(1.0)(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([0]))
        tensor([[[[1., 0.]]]])
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = _check_probability("p", p)

    def __call__(self, input: Tensor, key: Tensor) -> Tensor:
        """Flip some images."""
        flip = uniform(key, 1)[:, 0] < self.p
        return torch.where(flip[:, None, None, None], input.flip(-1), input)


class Cutout(Augmentation):
    """Set a square to black; its centre is uniform in the image, so part of it may lie outside.

    Source: DeVries & Taylor, "Improved regularization of CNNs with cutout", 2017 (16 pixels on CIFAR-10, 8
    on CIFAR-100).

    Args:
        size: Side of the square in pixels.
        p: Probability that an image gets a square.

    Example:
        >>> int(Cutout(2)(torch.ones(1, 1, 8, 8), torch.tensor([5])).sum()) >= 60
        True
    """

    def __init__(self, size: int = 16, p: float = 1.0) -> None:
        if size < 1:
            raise ValueError(f"Expected size to be the side of a square in pixels, 1 or more, got {size}.")
        self.size = size
        self.p = _check_probability("p", p)

    def __call__(self, input: Tensor, key: Tensor) -> Tensor:
        """Set a square of every image, or of some, to black."""
        height, width = input.shape[-2:]
        draw = uniform(key, 3)
        top = (draw[:, 0] * height).long() - self.size // 2
        left = (draw[:, 1] * width).long() - self.size // 2
        hole = _box(input, top, left, top + self.size, left + self.size) & (draw[:, 2] < self.p)[:, None, None, None]
        return input.masked_fill(hole, 0.0)


class RandomErasing(Augmentation):
    """Replace a rectangle of random area and aspect ratio by a constant.

    The first of ``attempts`` random rectangles that fits into the image is used; if none fits, the image is unchanged.

    Source: Zhong et al., "Random erasing data augmentation", AAAI 2020, algorithm 1.

    Args:
        p: Probability that an image loses a rectangle.
        scale: Smallest and largest area, as a share of the image's.
        ratio: Smallest and largest height / width.
        value: Value of the rectangle's pixels, in [0, 1].
        attempts: Number of rectangles that are tried.

    Example:
        >>> RandomErasing(p=0.0)(torch.ones(1, 1, 8, 8), torch.tensor([5])).min()
        tensor(1.)
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0.0,
        attempts: int = 10,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"Expected scale to be a range of shares of the area within (0, 1], got {tuple(scale)}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"Expected ratio to be a range of positive numbers, got {tuple(ratio)}.")
        self.p = _check_probability("p", p)
        self.scale = scale
        self.ratio = ratio
        self.value = value
        self.attempts = attempts

    def __call__(self, input: Tensor, key: Tensor) -> Tensor:
        """Replace a rectangle of some images."""
        height, width = input.shape[-2:]
        draw = uniform(key, 3 + 2 * self.attempts)
        area = (self.scale[0] + draw[:, 3::2] * (self.scale[1] - self.scale[0])) * height * width
        low, high = torch.tensor(self.ratio).log().tolist()
        aspect = (low + draw[:, 4::2] * (high - low)).exp()
        h = (area * aspect).sqrt().round().long()
        w = (area / aspect).sqrt().round().long()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)
        h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
        top = (draw[:, 0] * (height - h + 1)).long()
        left = (draw[:, 1] * (width - w + 1)).long()
        chosen = (draw[:, 2] < self.p) & fits.any(1)
        hole = _box(input, top, left, top + h, left + w) & chosen[:, None, None, None]
        return input.masked_fill(hole, self.value)


class MixUp(Mixing):
    """Blend two images and their labels: ``lam x + (1 - lam) x'`` with lam ~ Beta(alpha, alpha).

    Source: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018, equation 1 (alpha 0.2 on
    ImageNet, 1 on CIFAR).

    Args:
        alpha: Parameter of the Beta distribution, > 0; small values make even mixtures rare.
        p: Probability that a sample is mixed at all.

    Example:
        >>> mixed, share = MixUp()(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([1]))
        >>> bool((mixed == share).all())
        True
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        self.quantile = _BetaQuantile(alpha)
        self.p = _check_probability("p", p)

    def __call__(self, input: Tensor, partner: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Blend every image with its partner."""
        draw = uniform(key, 2)
        share = torch.where(draw[:, 1] < self.p, self.quantile(draw[:, 0]), 1.0)
        return torch.lerp(partner, input, share[:, None, None, None]), share


class CutMix(Mixing):
    """Paste a rectangle of the partner over the image, and mix the labels by the visible areas.

    The rectangle has the image's aspect ratio and the area ``1 - lam``, lam ~ Beta(alpha, alpha); its centre is uniform
    in the image, and it is clipped to the image before areas are computed.

    Source: Yun et al., "CutMix", ICCV 2019, equations 1 and 2.

    Args:
        alpha: Parameter of the Beta distribution, > 0.
        p: Probability that a sample is mixed at all.

    Example:
        >>> mixed, share = CutMix()(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.tensor([1]))
        >>> bool(mixed.mean() == share)
        True
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        self.quantile = _BetaQuantile(alpha)
        self.p = _check_probability("p", p)

    def __call__(self, input: Tensor, partner: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Paste a part of the partner over every image."""
        height, width = input.shape[-2:]
        draw = uniform(key, 4)
        side = (1 - self.quantile(draw[:, 0])).sqrt()
        h, w = (side * height).long(), (side * width).long()
        top = (draw[:, 1] * height).long() - h // 2
        left = (draw[:, 2] * width).long() - w // 2
        box = _box(input, top, left, top + h, left + w) & (draw[:, 3] < self.p)[:, None, None, None]
        return torch.where(box, partner, input), 1 - box.float().mean((1, 2, 3))


def _box(input: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Return a mask (N, 1, H, W) of the pixels with top <= row < bottom and left <= column < right."""
    row = torch.arange(input.shape[-2], device=input.device)
    column = torch.arange(input.shape[-1], device=input.device)
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return rows[:, None, :, None] & columns[:, None, None, :]


class _BetaQuantile:
    """Quantile function of Beta(alpha, alpha), interpolated in a table of 4,097 values."""

    def __init__(self, alpha: float) -> None:
        if not alpha > 0:
            raise ValueError(f"Expected alpha, the parameter of a Beta distribution, to be positive, got {alpha}.")
        self.table = torch.tensor(beta.ppf(torch.linspace(0, 1, 4097).numpy(), alpha, alpha), dtype=torch.float32)

    def __call__(self, u: Tensor) -> Tensor:
        self.table = self.table.to(u.device)
        place = u * 4096
        below = place.long()
        return torch.lerp(self.table[below], self.table[below + 1], place - below)


def check(augment: Sequence[Augmentation | Mixing]) -> tuple[list[Augmentation], list[Mixing]]:
    """Split a list of augmentations into those of single images and the mixtures after them.

    Raises:
        TypeError: An element is neither.
        ValueError: An augmentation of single images comes after a mixture.
    """
    singles = [step for step in augment if isinstance(step, Augmentation)]
    mixtures = [step for step in augment if isinstance(step, Mixing)]
    for step in augment:
        if not isinstance(step, Augmentation | Mixing):
            raise TypeError(f"Expected Augmentation and Mixing objects in augment, got {type(step).__name__}.")
    if list(augment) != [*singles, *mixtures]:
        raise ValueError(
            "Expected mixtures (MixUp, CutMix) at the end of augment, got "
            f"{[type(step).__name__ for step in augment]}: put augmentations of single images before them."
        )
    return singles, mixtures


def mix(
    mixtures: Sequence[Mixing], input: Tensor, target: Tensor, key: Tensor, stream: int = 0
) -> tuple[Tensor, Tensor]:
    """Mix the first half of a batch with the second, by one of several mixtures with equal probability.

    Args:
        mixtures: The mixtures to choose from.
        input: (2 N, C, H, W), samples and then their partners.
        target: (2 N, K) class probabilities.
        key: (N,) int64, one key per sample.
        stream: First stream of random numbers that is not used elsewhere.

    Returns:
        Images (N, C, H, W) and class probabilities (N, K).
    """
    own, partner = input.chunk(2)
    choice = integers(key_of(key, stream), len(mixtures))
    mixed, share = own, torch.ones(len(own), device=own.device)
    for i, each in enumerate(mixtures):
        candidate, part = each(own, partner, key_of(key, stream + 1 + i))
        mixed = torch.where((choice == i)[:, None, None, None], candidate, mixed)
        share = torch.where(choice == i, part, share)
    first, second = target.chunk(2)
    return mixed, torch.lerp(second, first, share[:, None])
