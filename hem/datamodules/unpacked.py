"""Images of packed files, unpacked once: into a copy that all processes of a machine share by its mapping."""

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

FOLDER = ".hem"  # below the root of the data


def mapped(path: Path) -> Tensor:
    """The bytes of a file, (N,) uint8, mapped into memory: whoever writes to them changes pages of his own."""
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0).byte()


def unpacked(
    root: Path,
    name: str,
    sources: Sequence[Path],
    read: Callable[[], tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int, int],
) -> MemoryImages:
    """Return the images of some files from the copy of them in ``<root>/.hem``, which is made if it is not there.

    The copy is N labels and N images, a byte for each value. Another size or time of a file is another copy. Where none
    can be written (a disk that is full or read-only), a sentence says so and this process keeps the images for itself.

    Args:
        root: Where the data sets lie.
        name: Of the images, such as ``cifar10/train``.
        sources: The files.
        read: Unpacks them: contiguous images (N, C, H, W) uint8 and labels (N,) int64.
        shape: (C, H, W).
    """
    facts = [f"{path.name} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in sources]
    key = hashlib.blake2b("\n".join(facts).encode(), digest_size=8).hexdigest()
    copy = root / FOLDER / f"{name.replace('/', '_')}_{key}"
    each = 1 + math.prod(shape)
    if not copy.is_file() or copy.stat().st_size % each:
        images, labels = read()
        own = MemoryImages(torch.from_numpy(images), torch.from_numpy(labels), name)
        if len(own) == 0 or not 0 <= int(own.targets.min()) <= int(own.targets.max()) <= 255:
            return own  # no part of any data set here: whoever checks them says so
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
