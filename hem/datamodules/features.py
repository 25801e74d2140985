"""Features of images under a frozen encoder, computed once and kept in a memory-mapped file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hem.datamodules.images import FileImages, Images, MemoryImages
from hem.datamodules.loader import Batches, Loader
from hem.runs.files import atomic_file


class FeatureImages(Images):
    """Features of images under an encoder: vectors (D,) float32 in place of pixels.

    They are computed on first access, by one process while the others wait, and kept in ``<folder>/<name>_<key>.npy``,
    where the key is a hash of the images and of the encoder, so that other pixels or weights have another file. All
    processes share the file, which is mapped into memory.

    Args:
        images: The images.
        encode: From uint8 images (N, C, H, W) to features (N, D); called on first access.
        identity: Returns what else the features depend on, such as the tensors of the encoder, as bytes; called on
            first access.
        folder: Folder of the file.
        batch_size: Images per call of ``encode``.
        workers: Processes that decode files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> pixels = MemoryImages(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), torch.tensor([0, 1, 0]), "toy/train")
        >>> with TemporaryDirectory() as folder:
        ...     set = FeatureImages(pixels, lambda batch: batch.flatten(1).float().mean(1, True), lambda: [b""], folder)
        ...     set.take(torch.tensor([2, 0]))
        Features of toy/train: 3 images ... 3 x 1 in ...
        (tensor([[7.],
                [7.]]), tensor([0, 0]))
    """

    batched = True

    def __init__(
        self,
        images: Images,
        encode: Callable[[Tensor], Tensor],
        identity: Callable[[], Sequence[bytes]],
        folder: str | Path,
        batch_size: int = 256,
        workers: int = 0,
    ) -> None:
        self.source = images
        self.targets = images.targets.cpu()
        self.encode = encode
        self.identity = identity
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.workers = workers

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], int(self.targets[index])

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (N, D) at positions ``index`` (N,), and their targets (N,)."""
        return self.features[index.cpu()], self.targets[index.cpu()]

    def name_of(self, index: int) -> str:
        """Return the name of an image."""
        return self.source.name_of(index)

    @cached_property
    def features(self) -> Tensor:
        """All features (N, D), mapped into memory."""
        path = self.folder / f"{self.place.replace('/', '_')}_{self.key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                self._compute(path)
        return torch.from_numpy(np.load(path, mmap_mode="c"))  # c: copy on write

    @property
    def place(self) -> str:
        """The common folder of the images, or the name of their set."""
        if self.source.paths is not None:
            return os.path.commonpath({os.path.dirname(path) for path in self.source.paths})
        return self.source.name_of(0).rpartition("/")[0] or "images"

    @property
    def key(self) -> str:
        """Hash of the images and of the encoder."""
        found = hashlib.blake2b(digest_size=8)
        if isinstance(self.source, MemoryImages):
            found.update(self.source.images.cpu().contiguous().numpy().data)
        elif isinstance(self.source, FileImages):
            for path in self.source.paths:
                found.update(f"{path} {os.path.getsize(path)} {os.path.getmtime(path)}\n".encode())
            # the same files are other images at another size
            found.update(repr((self.source.transform, self.source.channels)).encode())
        else:
            for image in range(len(self)):
                found.update(self.source[image][0].contiguous().numpy().data)
        for part in self.identity():
            found.update(part)
        return found.hexdigest()

    def _compute(self, path: Path) -> None:
        """Encode all images in order, and write the file atomically."""
        count, began = len(self), time.monotonic()
        how = "once, without their random crops" if getattr(self.source, "augment", None) else "once"
        print(f"Features of {self.place}: {count} images are encoded {how} ...", end=" ", flush=True)
        order = torch.arange(count)
        batches = Batches(lambda epoch: order, count, self.batch_size, training=False)
        for stopped in path.parent.glob(f".{path.name}.*"):  # of killed processes: this one holds the lock
            stopped.unlink()
        width = 0
        with atomic_file(path) as file:  # not through a mapping: on a full disk that is a bus error
            for batch in Loader(self.source, batches, workers=self.workers):
                features = self.encode(batch.input).float().cpu().numpy()
                if not width:
                    width = features.shape[1]
                    header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(features.astype("<f4", copy=False).tobytes())
        print(f"{count} x {width} in {time.monotonic() - began:.0f} s: {path}")
