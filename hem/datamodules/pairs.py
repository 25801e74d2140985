"""Pairs of an image and its mask: decoding, resizing, augmentation and cropping."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, Transform, query_size
from torchvision.transforms.v2 import functional as TF

from hem.datamodules.images import NO_TARGET, FileImages, Images
from hem.datamodules.masks import HELD_OUT, VOID, Files, MaskDataset


class Shape(ABC):
    """Base class of transforms that bring image and mask to one size by scaling, and padding at the right and bottom.

    Args:
        size: Height and width of the result in pixels.
    """

    before_augmentation: bool  #: whether training images are resized before augmentation

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    @abstractmethod
    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size to which an image of a size is scaled before it is padded."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a PIL image as a tensor (C, H, W) uint8 of the one size."""
        return self.image(TF.pil_to_tensor(image))

    def image(self, image: Tensor) -> Tensor:
        """Bring an image (C, H, W) to the one size, bilinear and antialiased; padding is black."""
        height, width = self.scaled((image.shape[-2], image.shape[-1]))
        image = torch.as_tensor(TF.resize(image, [height, width], antialias=True))
        return F.pad(image, (0, self.size[1] - width, 0, self.size[0] - height))

    def mask(self, mask: Tensor) -> Tensor:
        """Bring a mask (H, W) to the one size; padding is void."""
        height, width = self.scaled((mask.shape[0], mask.shape[1]))
        mask = nearest(mask, (height, width))
        return F.pad(mask, (0, self.size[1] - width, 0, self.size[0] - height), value=VOID)

    def back(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring a mask of the one size back to the size (height, width) of its file."""
        height, width = self.scaled(size)
        return nearest(mask[:height, :width], size)


class Stretch(Shape):
    """Bring image and mask to one size by scaling each side."""

    before_augmentation = True  # then all images have one size

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the one size."""
        return self.size


class Pad(Shape):
    """Bring image and mask to one size by padding at the right and bottom; larger ones are scaled down to fit."""

    before_augmentation = False  # random crops should not contain padding

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size to which an image of a size is scaled before it is padded.

        Example:
            >>> Pad((100, 100)).scaled((50, 80)), Pad((100, 100)).scaled((100, 400))
            ((50, 80), (25, 100))
        """
        factor = min(1.0, self.size[0] / size[0], self.size[1] / size[1])
        return max(1, round(factor * size[0])), max(1, round(factor * size[1]))


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale a mask (H, W) to another size by the nearest neighbour.

    Example:
        >>> nearest(torch.tensor([[1, 2]]), (2, 4))
        tensor([[1, 1, 2, 2],
                [1, 1, 2, 2]])
    """
    if tuple(mask.shape) == tuple(size):
        return mask
    return torch.as_tensor(TF.resize(mask[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0])


def random_crop(
    image: Tensor, mask: Tensor, size: tuple[int, int], max_share: float = 1.0, attempts: int = 10
) -> tuple[Tensor, Tensor]:
    """Return a random crop of image and mask, by torch's CPU generator; smaller ones are padded on random sides.

    Of up to ``attempts`` crops the first is taken that has a labelled pixel and in which no class covers more than
    ``max_share`` of the labelled pixels; if there is none, the last crop.

    Args:
        image: (C, H, W) uint8.
        mask: (H, W) uint8, void pixels with the label :data:`VOID`.
        size: Height and width of the crop.
        max_share: In (0, 1]; 0.75 is usual for street scenes, 1 only rejects crops without a label.
        attempts: Number of crops that are tried.
    """
    height, width = size
    if (more := max(0, height - mask.shape[0])) + (wider := max(0, width - mask.shape[1])):
        top, left = int(torch.randint(more + 1, ())), int(torch.randint(wider + 1, ()))
        margin = (left, wider - left, top, more - top)
        image, mask = F.pad(image, margin), F.pad(mask, margin, value=VOID)
    for _ in range(attempts):
        top = int(torch.randint(mask.shape[0] - height + 1, ()))
        left = int(torch.randint(mask.shape[1] - width + 1, ()))
        part = mask[top : top + height, left : left + width]
        found = torch.bincount(part.flatten(), minlength=256)[:HELD_OUT]
        if 0 < int(found.max()) <= max_share * int(found.sum()):
            break
    return image[:, top : top + height, left : left + width], part


class RandomScale(Transform):  # type: ignore[misc]  # torchvision has no types
    """Scale image and mask by one random factor, uniform in a range.

    Args:
        scale: Smallest and largest factor of the sides, > 0.

    Raises:
        ValueError: If the range is not one of positive factors.

    Example:
        >>> image = tv_tensors.Image(torch.zeros(3, 10, 20, dtype=torch.uint8))
        >>> [tuple(x.shape) for x in RandomScale((2.0, 2.0))(image, tv_tensors.Mask(image[0]))]
        [(3, 20, 40), (20, 40)]
    """

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"Expected scale to be a range of factors above 0, got {list(scale)}.")
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor; torchvision calls this once for image and mask."""
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * float(torch.rand(()))
        return {"size": [max(1, round(factor * side)) for side in query_size(flat_inputs)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale one of the two: bilinear and antialiased, nearest for a mask."""
        return self._call_kernel(TF.resize, inpt, size=params["size"], antialias=True)


@dataclass(eq=False)
class Pairs(Images):
    """Images with masks in files, decoded one by one, or all at once into memory.

    For training, image and mask are augmented together, under a state of torch's CPU generator that is a function of
    the sample's key, and then cropped by :func:`random_crop`.

    Augmentations are transforms of ``torchvision.transforms.v2``, which distinguish images from masks. They fill a mask
    with 0 outside of it; to make this void, 1 is added to the labels before (255, void, becomes 0) and subtracted
    afterwards.

    Args:
        dataset: Reads the masks.
        files: The paths of images and masks.
        shape: Brings them to one size.
        remap: Maps classes of the data set to those of the task, (256,) uint8.
        augment: The augmentations, in this order.
        crop_size: Height and width of training images.
        max_share: See :func:`random_crop`.
        in_memory: Whether to decode all of them into memory.
    """

    dataset: MaskDataset
    files: Files
    shape: Shape
    remap: Tensor
    augment: Sequence[nn.Module]
    crop_size: tuple[int, int]
    max_share: float
    in_memory: bool

    def __post_init__(self) -> None:
        self.paths, self.masks = [image for image, _ in self.files], [mask for _, mask in self.files]
        # one class for all images, for the validation split, which is by class
        self.targets = torch.zeros(len(self.files), dtype=torch.int64)
        self.images = FileImages(self.paths, self.targets + NO_TARGET, TF.pil_to_tensor)
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        if self.in_memory:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self._kept = list(pool.map(self._decode, range(len(self.files))))

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        image, _ = self.images[index]
        mask = self.dataset.read_mask(self.masks[index])
        if image.shape[1:] != mask.shape:
            height, width = image.shape[1:]
            mend = "mend the pair or leave it out"
            if (width, height) == mask.shape:
                mend = "draw the mask on the upright image, as its EXIF orientation says, or leave the pair out"
            raise ValueError(
                f"Expected an image and its mask of one size, got {self.name_of(index)} of {height} x {width} and "
                f"{self.masks[index]} of {mask.shape[0]} x {mask.shape[1]}: {mend}."
            )
        mask = self.remap[mask.int()]
        return (self.shape.image(image), self.shape.mask(mask)) if self.shape.before_augmentation else (image, mask)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        return self._decode(index) if self._kept is None else self._kept[index]

    # the target is a mask, not a class
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, mask = self._read(index)
        return self.shape.image(image), self.shape.mask(mask)

    def augmented(self, index: int, key: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the pair at a position, augmented and cropped as a function of the key."""
        image, mask = self._read(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # torch.manual_seed would seed the accelerators too
            image, mask = tv_tensors.Image(image), tv_tensors.Mask(mask + 1)
            for change in self.augment:
                image, mask = change(image, mask)
            return random_crop(torch.as_tensor(image), torch.as_tensor(mask) - 1, self.crop_size, self.max_share)

    def name_of(self, index: int) -> str:
        """Return the path of the image."""
        return self.images.name_of(index)
