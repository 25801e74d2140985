"""Decode image files, in the same way for training, ``hem.load`` and masks.

============ ============================================== ==================================================
the file has as an image                                    as a mask
============ ============================================== ==================================================
orientation  EXIF's is applied: the image stands upright    as for images; so a mask is drawn on the upright image
bit depth    1 bit: black and white; 2 to 8 bits as they    the stored integers, whatever their depth: one-bit
             are shown; more (16 bits, floating point) is   masks hold 0 and 1, 16-bit ones may exceed 255, which
             refused, since nothing says which value is     is refused where it is no class; floating point is
             white                                          refused
palette      the colours of its entries                     the numbers of its entries
alpha        laid on white                                  refused by data sets whose masks are indices
CMYK         Pillow's conversion, without colour profiles   refused, as colours are
several      the first image alone (GIF, TIFF pages, MPO)   the first image alone
============ ============================================== ==================================================

8-bit RGB and grey files come through unchanged; colour becomes grey by ITU-R BT.601's luma, as Pillow has it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Source = str | Path | Image.Image

# what Pillow raises of a file that is damaged or is no image
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_SPREAD = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies grey levels of 2 and 4 bits


def decode_image(source: Source, channels: int = 3) -> Image.Image:
    """The image in a file, or a PIL image, by the rules above.

    Args:
        source: A path or a PIL image.
        channels: 3 for RGB, 1 for grey.

    Returns:
        A PIL image of mode ``RGB`` or ``L``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or its pixels have more than 8 bits; the sentence has its path.

    Example:
        >>> decode_image(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    with _opened(source, "image") as image:
        _refuse_depth(image)
        image = _upright(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB" if channels == 3 else "L")


def decode_mask(source: Source) -> np.ndarray:
    """The integers that a mask holds, by the rules above.

    Args:
        source: A path or a PIL image.

    Returns:
        (H, W), uint8 or int64, of a grey or palette image; (H, W, 2) uint8 of one with alpha; (H, W, 3) uint8 of a
        colour one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or holds floating-point numbers; the sentence has its path.

    Example:
        >>> decode_mask(Image.new("1", (3, 1), 1)).tolist()
        [[1, 1, 1]]
    """
    with _opened(source, "mask") as image:
        spread = max((_SPREAD.get(raw[:3], 1) for raw in _raw_modes(image)), default=1)
        image = _upright(image)
        if image.mode[0] == "F":
            raise ValueError("its pixels are floating-point numbers; save it with integers")
        if image.mode[0] == "I":
            return np.array(image).astype(np.int64)
        if image.mode in ("1", "L", "P"):
            return np.array(image).astype(np.uint8) // np.uint8(spread)
        return np.array(image if image.mode in ("LA", "PA") else image.convert("RGB"))


def size_of(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright image in a file, from its header.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    with _opened(path, "image") as image:
        # Pillow itself turns TIFF images
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def header_fault(path: str, *, mask: bool = False) -> str | None:
    """Why a file cannot be used, as far as its header and its end say, in a few words; None: it can.

    Args:
        path: The file.
        mask: Whether it is a mask, whose integers may have any depth.
    """
    try:
        with Image.open(path) as image:
            if not mask:
                _refuse_depth(image)
            if not _ends(path, image.format):
                image.load()  # cut off, or with something behind its end
    except _DAMAGE as error:
        return _reason(error, path)
    return None


def _ends(path: str, kind: str | None) -> bool:
    """Whether a file ends as its kind does; True for kinds that have no mark there."""
    mark = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}.get(kind or "", b"")
    with open(path, "rb") as file:
        file.seek(-len(mark), os.SEEK_END)
        return file.read() == mark


def refuse_faults(
    paths: Sequence[str], fault_of: Callable[[str], str | None], where: Path, option: str | None = None
) -> None:
    """Refuse files that cannot be used: all of them at once, by name.

    Args:
        paths: The files.
        fault_of: Why one cannot be used; None: it can.
        where: The folder below which they lie.
        option: The option that leaves files out; None: there is none.

    Raises:
        ValueError: There are such files.
    """
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:  # they wait for the disk, mostly
        found = zip(paths, pool.map(fault_of, paths), strict=True)
        faults = {os.path.relpath(path, where): fault for path, fault in found if fault is not None}
    if faults:
        listing = "; ".join(f"{name} ({fault})" for name, fault in faults.items())
        leave = "" if option is None else f", or leave them out by {option} {json.dumps(list(faults))!r}"
        raise ValueError(
            f"Expected files in {where} that can be used, got {len(faults)} of {len(paths)} that cannot: {listing}. "
            f"Mend or remove them{leave}."
        )


def _reason(error: BaseException, path: str) -> str:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    return "no kind of image that can be read" if isinstance(error, UnidentifiedImageError) else str(error)


@contextmanager
def _opened(source: Source, what: str) -> Iterator[Image.Image]:
    name = "The image" if isinstance(source, Image.Image) else source
    try:
        if isinstance(source, Image.Image):
            yield source
        else:
            with Image.open(source) as image:
                yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"The {what} {name} is not there.") from None
    except _DAMAGE as error:
        raise ValueError(f"{name} is not a readable {what}: {error}.") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # turns TIFF images, whose orientation is not to be applied twice
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _refuse_depth(image: Image.Image) -> None:
    deep = any(";16" in raw for raw in _raw_modes(image)) or any(
        tile[0].startswith("ppm") and tile[3][-1] > 255 for tile in _tiles(image)
    )
    if image.mode[0] in "IF" or deep:
        raise ValueError(
            f"its pixels have more than 8 bits (mode {image.mode}), and nothing says which value is white; scale "
            "them to 0..255 and save it with 8"
        )


def _tiles(image: Image.Image) -> list[Any]:
    """How Pillow is about to decode a file: codec, extents, offset, arguments."""
    return list(getattr(image, "tile", None) or ())


def _raw_modes(image: Image.Image) -> list[str]:
    """The forms in which a file stores its pixels, such as ``RGB;16B``, before they are decoded."""
    arguments = [tile[3] for tile in _tiles(image)]
    return [str(each[0]) if isinstance(each, tuple) and each else str(each) for each in arguments]
