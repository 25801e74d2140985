"""Images with masks: what a data set of them says about itself, and its pairs of files, decoded and cropped."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, Transform, query_size
from torchvision.transforms.v2 import functional as TF

from hem.datamodules.decoder import decode_mask
from hem.datamodules.images import NO_TARGET, FileImages, Images
from hem.runs.files import write_atomically

VOID = 255  # the label of pixels without one, in every mask of this package
HELD_OUT = 254  # the label of pixels of classes that are held out as unknown
_WRONG = 253  # what a value that is no class becomes before it is refused
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Files = list[tuple[str, str]]  # an image and its mask
Color = tuple[int, int, int]


class Counts(NamedTuple):
    """How often each of C classes is seen in the training masks, at the size in which they are stored."""

    pixels: list[int]  #: pixels of the class
    images: list[int]  #: images that have a pixel of it
    pixels_of_images: list[int]  #: all pixels of those images, void ones included
    total: int  #: all pixels of all images

    def frequencies(self) -> list[float]:
        """The share of each class in the images that have it, as median-frequency balancing takes it.

        Example:
            >>> Counts([30, 5], [2, 1], [40, 20], 40).frequencies()
            [0.75, 0.25]
        """
        return [n / max(whole, 1) for n, whole in zip(self.pixels, self.pixels_of_images, strict=True)]


class MaskDataset(ABC):
    """A data set of images with masks, in its official layout: facts, files, and how a mask is read.

    Masks hold the classes 0..C-1 and :data:`VOID`, 255, where nothing is labelled; another value is an error.
    """

    name: str  #: in file names
    title: str  #: in sentences
    source: str  #: where it can be had
    class_names: Sequence[str]
    palette: Sequence[Color]  #: RGB of each class; void is black
    image_size: tuple[int, int]  #: height and width in pixels to which images are brought
    mean: tuple[float, ...] = _IMAGENET_MEAN  #: of each channel, pixels in [0, 1]
    std: tuple[float, ...] = _IMAGENET_STD
    official_val: bool = False  #: whether there is a validation part beside the training and test parts
    counts: Counts | None = None  #: of the official training part, where they are known without reading it
    labels: Mapping[int, int] | None = None  #: from a mask's values to classes or VOID; None: they are classes

    own: bool = False  #: whether it is one's own folder, whose files come and go, rather than published lists

    @abstractmethod
    def files(self, root: Path, split: str) -> Files:
        """The images and masks of the part ``train``, ``val`` or ``test`` under ``root``, sorted.

        Raises:
            FileNotFoundError: The part, or the mask of an image, is not there.
        """

    def folder(self, root: Path) -> Path:
        """Where the data set lies, and what is counted once is kept."""
        return root

    def has_val(self, root: Path) -> bool:
        """Whether there is a validation part; only one's own folder has to be looked at for that."""
        return self.official_val

    def read_mask(self, path: str) -> Tensor:
        """The classes in a mask file: (H, W) uint8, 0..C-1 or :data:`VOID`.

        Raises:
            ValueError: The file cannot be read, has colours in place of indices, or a value that is no class.
        """
        values = decode_mask(path)
        if values.ndim != 2:
            raise ValueError(
                f"{path} has {values.shape[2]} colour channels, but a mask of {self.title} has one, with the index "
                "of a class in each pixel: save it as a grey or palette PNG."
            )
        classes = self._table[torch.from_numpy(values).int().clamp(-1, 256)]
        if bool((wrong := classes == _WRONG).any()):
            value = int(values[wrong.numpy()][0])
            known = f"0 to {len(self.class_names) - 1} or {VOID} (void)"
            if self.labels is not None:
                known = ", ".join(map(str, sorted(self.labels)))
            raise ValueError(f"{path} holds the value {value}, but masks of {self.title} hold {known}.")
        return classes

    @property
    def _table(self) -> Tensor:
        table = torch.full((258,), _WRONG, dtype=torch.uint8)  # -1 and 256: all that a byte does not hold
        labels = self.labels or {**{c: c for c in range(len(self.class_names))}, VOID: VOID}
        for value, label in labels.items():
            table[value] = label
        return table

    def missing(self, path: Path) -> FileNotFoundError:
        """The error of a part that is not there."""
        return FileNotFoundError(
            f"{self.title} is missing: {path} is not there. Get it from {self.source}; data that lies elsewhere is "
            "found by --data.root or the environment's HEM_DATA."
        )

    def _state(self, masks: Sequence[str]) -> str:
        """What the counts hang on: the masks' names, sizes and times of change, and what their values mean."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for mask in masks:
            found = os.stat(mask)
            digest.update(f"\n{mask} {found.st_size} {found.st_mtime_ns}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def count(self, root: Path) -> Counts:
        """The classes' counts in the training part: the known ones, or counted once and kept beside the data."""
        if self.counts is not None:
            return self.counts
        kept = self.folder(root) / f"{self.name}_counts.json"
        masks = [mask for _, mask in self.files(root, "train")]
        known = {"masks": len(masks), "classes": list(self.class_names), "state": self._state(masks)}
        with suppress(OSError, ValueError, KeyError, TypeError):  # not there, of an older release, or damaged
            record = json.loads(kept.read_text())
            if {key: record[key] for key in known} == known:
                return Counts(**record["counts"])
        counts = count_classes(map(self.read_mask, masks), len(self.class_names))
        record = {**known, "counts": counts._asdict()}
        with suppress(OSError):  # a folder that cannot be written is counted again next time
            write_atomically(kept, json.dumps(record) + "\n")
        return counts


def count_classes(masks: Iterable[Tensor], num_classes: int) -> Counts:
    """Count the pixels and images of each class.

    Args:
        masks: Each (H, W) uint8; values from ``num_classes`` on are void.
        num_classes: C.

    Example:
        >>> count_classes([torch.tensor([[0, 0], [1, 255]], dtype=torch.uint8), torch.zeros(1, 2).byte()], 2)
        Counts(pixels=[4, 1], images=[2, 1], pixels_of_images=[6, 4], total=6)
    """
    pixels, images, whole = (torch.zeros(num_classes, dtype=torch.int64) for _ in range(3))
    total = 0
    for mask in masks:
        found = torch.bincount(mask.flatten(), minlength=256)[:num_classes]
        pixels += found
        images += found > 0
        whole += (found > 0) * mask.numel()
        total += mask.numel()
    return Counts(pixels.tolist(), images.tolist(), whole.tolist(), total)


def paired(images: Iterable[Path], mask_of: Callable[[Path], Path]) -> Files:
    """Each image with its mask, in the images' order.

    Raises:
        FileNotFoundError: An image has no mask.
    """
    files = [(image, mask_of(image)) for image in images]
    present = {folder: set(os.listdir(folder)) for folder in {mask.parent for _, mask in files} if folder.is_dir()}
    for image, mask in files:
        if mask.name not in present.get(mask.parent, ()):
            raise FileNotFoundError(f"The image {image} has no mask: {mask} is not there.")
    return [(str(image), str(mask)) for image, mask in files]


class Stretch:
    """Brings image and mask to one size by scaling each side: bilinear and antialiased; nearest for the mask.

    Args:
        size: Height and width in pixels.
    """

    before_augmentation = True  # all images have one size then

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def image(self, image: Tensor) -> Tensor:
        """The image (C, H, W) in the one size."""
        return torch.as_tensor(TF.resize(image, list(self.size), antialias=True))

    def mask(self, mask: Tensor) -> Tensor:
        """The mask (H, W) in the one size."""
        return nearest(mask, self.size)

    def back(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """A mask of the one size in the size (height, width) of its file."""
        return nearest(mask, size)


class Pad:
    """Brings image and mask to one size by void at the right and below; larger ones are scaled down to fit.

    Args:
        size: Height and width in pixels.
    """

    before_augmentation = False  # random crops had better not be cut from the margin

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of the part that is not padded, for an image of a size.

        Example:
            >>> Pad((100, 100)).scaled((50, 80)), Pad((100, 100)).scaled((100, 400))
            ((50, 80), (25, 100))
        """
        factor = min(1.0, self.size[0] / size[0], self.size[1] / size[1])
        return max(1, round(factor * size[0])), max(1, round(factor * size[1]))

    def image(self, image: Tensor) -> Tensor:
        """The image (C, H, W) in the one size, black where it is padded."""
        height, width = self.scaled((image.shape[-2], image.shape[-1]))
        image = torch.as_tensor(TF.resize(image, [height, width], antialias=True))
        return F.pad(image, (0, self.size[1] - width, 0, self.size[0] - height))

    def mask(self, mask: Tensor) -> Tensor:
        """The mask (H, W) in the one size, void where it is padded."""
        height, width = self.scaled((mask.shape[0], mask.shape[1]))
        mask = nearest(mask, (height, width))
        return F.pad(mask, (0, self.size[1] - width, 0, self.size[0] - height), value=VOID)

    def back(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """A mask of the one size in the size (height, width) of its file."""
        height, width = self.scaled(size)
        return nearest(mask[:height, :width], size)


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) scaled to another size without mixing labels.

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
    """A random part of image and mask, by torch's CPU generator; padded at random sides where they are smaller.

    Of up to ``attempts`` parts the first is taken that has a labelled pixel and in which no class covers more
    than ``max_share`` of the labelled pixels; where none has, the last one.

    Args:
        image: (C, H, W) uint8.
        mask: (H, W) uint8, void pixels with the label :data:`VOID`.
        size: Height and width of the part.
        max_share: In (0, 1]; 0.75 is usual for street scenes, 1 leaves out nothing but parts without a label.
        attempts: How many parts are looked at.
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
    """Scale image and mask by one factor, drawn evenly from a range.

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
            raise ValueError(f"scale is a range of factors above 0, but it is {list(scale)}.")
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor; torchvision calls this once for image and mask."""
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * float(torch.rand(()))
        return {"size": [max(1, round(factor * side)) for side in query_size(flat_inputs)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale one of the two: bilinear and antialiased, nearest for a mask."""
        return self._call_kernel(TF.resize, inpt, size=params["size"], antialias=True)


class Pairs(Images):
    """Images with masks in files; decoded one by one, or all of them kept in memory once they are read.

    For training, image and mask go through the same changes at random, under a state of torch's CPU generator
    that is a function of the sample's key alone, and then through :func:`random_crop`.

    The changes are torchvision's (``torchvision.transforms.v2``), which know images from masks. What they bring
    in from outside a mask gets the value 0; so that this means void, 1 is added to the labels before (255, void,
    becomes 0) and taken off again behind them.

    Args:
        dataset: Reads the masks.
        files: The pairs.
        shape: How they get one size.
        remap: (256,) uint8, from the data set's classes to those of the task.
        augment: The changes, in this order.
        crop_size: Height and width of training images.
        max_share: See :func:`random_crop`.
        in_memory: Whether to keep what is decoded.
    """

    def __init__(
        self,
        dataset: MaskDataset,
        files: Files,
        shape: Stretch | Pad,
        remap: Tensor,
        augment: Sequence[nn.Module],
        crop_size: tuple[int, int],
        max_share: float,
        in_memory: bool,
    ) -> None:
        self.dataset = dataset
        self.paths = [image for image, _ in files]
        self.masks = [mask for _, mask in files]
        # every image is of one kind: the split that cuts off a validation part looks at these
        self.targets = torch.zeros(len(files), dtype=torch.int64)
        self.images = FileImages(self.paths, self.targets + NO_TARGET, TF.pil_to_tensor)
        self.shape = shape
        self.remap = remap
        self.augment = augment
        self.crop_size = crop_size
        self.max_share = max_share
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        if in_memory:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self._kept = list(pool.map(self._decode, range(len(files))))

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        image, _ = self.images[index]
        mask = self.dataset.read_mask(self.masks[index])
        if image.shape[1:] != mask.shape:
            height, width = image.shape[1:]
            mend = "mend the pair or leave it out"
            if (width, height) == mask.shape:
                mend = "draw the mask on the upright image, as its EXIF orientation says, or leave the pair out"
            raise ValueError(
                f"An image and its mask have one size, but {self.name_of(index)} is {height} x {width} and "
                f"{self.masks[index]} {mask.shape[0]} x {mask.shape[1]}: {mend}."
            )
        mask = self.remap[mask.int()]
        return (self.shape.image(image), self.shape.mask(mask)) if self.shape.before_augmentation else (image, mask)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        return self._decode(index) if self._kept is None else self._kept[index]

    # a mask in place of a class
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, mask = self._read(index)
        return self.shape.image(image), self.shape.mask(mask)

    def augmented(self, index: int, key: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The pair at a position, changed at random as a function of the key alone."""
        image, mask = self._read(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # torch.manual_seed would reach the accelerators as well
            image, mask = tv_tensors.Image(image), tv_tensors.Mask(mask + 1)
            for change in self.augment:
                image, mask = change(image, mask)
            return random_crop(torch.as_tensor(image), torch.as_tensor(mask) - 1, self.crop_size, self.max_share)

    def name_of(self, index: int) -> str:
        """The path of the image."""
        return self.images.name_of(index)
