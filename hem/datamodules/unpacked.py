"""Unpacked copies of packed image files, memory-mapped and thus shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from hem.datamodules.images import MemoryImages
from hem.runs.files import atomic_file

FOLDER = ".hem"  # of the copies, relative to the root of the data


def mapped(path: Path) -> Tensor:
    """Map the bytes of a file into memory, (N,) uint8; writes go to private copies of the pages."""
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0).byte()


def unpacked(
    root: Path,
    name: str,
    sources: Sequence[Path],
    read: Callable[[], tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int, int],
) -> MemoryImages:
    """Return the images of packed files from an unpacked copy in ``<root>/.hem``, which is written if missing.

    The copy consists of N labels and N images, a byte per value. Its name depends on sizes and modification times of
    the files. If it cannot be written (a full or read-only disk), a message is printed and the images are in the memory
    of each process.

    Args:
        root: Folder of the data sets.
        name: Name of the images, such as ``cifar10/train``.
        sources: Paths of the packed files.
        read: Unpacks them, to contiguous images (N, C, H, W) uint8 and labels (N,) int64.
        shape: Shape (C, H, W) of an image.
    """
    facts = [f"{path.name} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in sources]
    key = hashlib.blake2b("\n".join(facts).encode(), digest_size=8).hexdigest()
    copy = root / FOLDER / f"{name.replace('/', '_')}_{key}"
    each = 1 + math.prod(shape)
    if not copy.is_file() or copy.stat().st_size % each:
        images, labels = read()
        own = MemoryImages(torch.from_numpy(images), torch.from_numpy(labels), name)
        if len(own) == 0 or not 0 <= int(own.targets.min()) <= int(own.targets.max()) <= 255:
            return own  # the check of labels raises an error later
        try:
            with atomic_file(copy) as file:
                file.write(own.targets.byte().numpy().data)
                file.write(own.images.numpy().data)
        except OSError as error:
            rank_zero_only(print)(f"{name}: each process reads it for itself, for {copy} cannot be written ({error}).")
            return own
    content = mapped(copy)
    count = len(content) // each
    return MemoryImages(content[count:].view(count, *shape), content[:count], name)
