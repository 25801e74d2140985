"""Batches and loaders: the samples of each step, their order and their distribution over processes."""

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hem.datamodules.images import Images, stack
from hem.rng import integers
from hem.rng import key as key_of


class Batch(NamedTuple):
    """A batch as tasks get it: ``input, target, *_ = batch``."""

    input: Tensor  # (N, C, H, W) float32 in [0, 1], not normalised
    target: Tensor  # class indices (N,) or (N, H, W), int64; or class probabilities (N, K) if labels are mixed
    index: Tensor  # type: ignore[assignment]  # (N,) int64: the place in its split; it hides tuple.index


class RawBatch(NamedTuple):
    """A batch as a :class:`Loader` yields it: stored images, and the keys of their augmentation."""

    input: Tensor  # (M, C, H, W) uint8; M = N, or 2 N if the samples are followed by partners for mixing
    target: Tensor  # (M,) int64, or masks (M, H, W) uint8
    index: Tensor  # type: ignore[assignment]  # (M,) int64; it hides tuple.index
    key: Tensor | None  # (M,) int64, a function of (seed, epoch, index); ``None``: no augmentation
    size: int  # N


# a batch to be fetched: index (M,), key (M,) or None, N
Request: TypeAlias = tuple[Tensor, Tensor | None, int]
PARTNER = -1  # random stream that chooses partners; augmentations have the streams 0, 1, ...


@dataclass(eq=False)
class Batches(Sampler[Tensor]):
    """The part of one process of the batches of an epoch.

    ``batch_size`` counts the samples of one step over *all* processes: every batch of the epoch is formed
    first and then cut into equal parts, one per process. So a run takes the same steps on one device and on
    eight.

    Training batches are full; the remainder of the epoch (fewer than ``batch_size`` samples, different ones in each
    epoch) is dropped, since a smaller batch would weigh its samples differently and one of size 1 breaks batch
    normalisation. A data set smaller than ``batch_size`` is one batch.

    Evaluation takes every sample once, in order: ceil(n / batch_size) batches whose sizes differ by at most one, so
    that all processes have the same number of batches (collectives do not hang) and no sample is repeated.

    Args:
        order: From the epoch to the indices of its samples in order; as many in each epoch.
        length: Number of indices of an epoch.
        batch_size: Samples per step over all processes.
        training: Whether all batches are full.
        rank: Rank of this process.
        world: Number of processes.
        device: Device of the indices.

    Raises:
        ValueError: A process would get no sample, or the processes parts of different sizes.

    Example:
        >>> second = Batches(lambda epoch: torch.arange(10), 10, 4, training=False, rank=1, world=2)
        >>> [batch.tolist() for batch in second]
        [[2, 3], [6], [9]]
    """

    order: Callable[[int], Tensor]
    length: int
    batch_size: int
    _: KW_ONLY
    training: bool
    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.training and self.batch_size % self.world:
            raise ValueError(
                "Expected batch_size, the samples of a step over all processes, to be a multiple of their number, got "
                f"{self.batch_size} for {self.world} processes: take "
                f"{max(1, self.batch_size // self.world) * self.world}."
            )
        if self.length == 0:
            raise ValueError("Expected samples to go through, got none: take a larger share of the data, or more data.")
        if self.length < self.world:
            raise ValueError(
                f"Expected at least one sample for each of {self.world} processes, got {self.length}: use at most "
                f"{self.length} processes."
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next; Lightning calls it before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.training:
            return max(1, self.length // self.batch_size)
        return min(math.ceil(self.length / self.batch_size), self.length // self.world)

    def __iter__(self) -> Iterator[Tensor]:
        order = self.order(self.epoch).to(self.device)
        if self.training:
            order = order[: len(self) * self.batch_size]
        for batch in order.tensor_split(len(self)):
            yield batch.tensor_split(self.world)[self.rank]


class Loader:
    """Data loader that yields a :class:`RawBatch` for each entry of :class:`Batches`.

    A batch of images in memory is one indexing operation on their device, without workers. Files are read by torch's
    DataLoader. Lightning saves the position within the epoch, so a run that was stopped within an epoch resumes with
    the next batch.

    Args:
        images: The images.
        batches: Batches of indices into the images.
        seed: Seed of the augmentation; ``None``: no augmentation.
        partners: Indices from which a partner for mixing is drawn for each sample; ``None``: no mixing.
        workers: Processes that decode files.
        once: Whether the workers end with the epoch.
    """

    def __init__(
        self,
        images: Images,
        batches: Batches,
        *,
        seed: int | None = None,
        partners: Tensor | None = None,
        workers: int = 0,
        once: bool = False,
    ) -> None:
        self.images = images
        self.sampler = batches  # Lightning looks for set_epoch under this name,
        self.batch_sampler = None  # and needs this one, too
        self.seed = seed
        self.partners = None if partners is None else partners.to(batches.device)
        self.workers = workers
        self.once = once
        self._resume: dict[str, int] | None = None
        self._position = 0
        self._files: DataLoader[RawBatch | Exception] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[RawBatch]:
        # A generator, so it starts with the first batch, when the epoch has been set.
        resume, self._resume = self._resume, None
        start = resume["position"] if resume and resume["epoch"] == self.sampler.epoch else 0
        self._position = start
        for batch in self._fetch(self._requests(start)):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the number of its batches that were yielded."""
        return {"epoch": self.sampler.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the saved epoch after the batches that were yielded, any other epoch at its start."""
        self._resume = dict(state)

    def _requests(self, start: int) -> Iterator[Request]:
        """Yield indices, keys and the number of samples of every batch from a position on."""
        parts = list(islice(self.sampler, start, None))
        count = len(self.images)  # larger indices are repeats of a sample, with other keys: see ImageDataModule.order
        if self.seed is None or not parts:
            yield from ((index % count, None, len(index)) for index in parts)
            return
        # all keys of the epoch at once: hashing takes many small operations for any number of keys
        sizes = [len(index) for index in parts]
        whole = torch.cat(parts)
        key = key_of(self.seed, self.sampler.epoch, whole)
        parts = list((whole % count).split_with_sizes(sizes))
        if self.partners is None:
            yield from zip(parts, key.split_with_sizes(sizes), sizes, strict=True)
            return
        partner = self.partners[integers(key_of(key, PARTNER), len(self.partners))]
        partner_key = key_of(self.seed, self.sampler.epoch, partner)
        parted = (each.split_with_sizes(sizes) for each in (key, partner, partner_key))
        for index, k, other, other_key, size in zip(parts, *parted, sizes, strict=True):
            yield torch.cat([index, other]), torch.cat([k, other_key]), size

    def _fetch(self, requests: Iterator[Request]) -> Iterator[RawBatch]:
        if self.images.batched:
            for request in requests:
                yield read(self.images, request)
            return
        if self._files is None:
            self._files = DataLoader(
                _Decoder(self.images),
                sampler=_Requests(),
                batch_size=None,  # an item is a whole batch
                num_workers=self.workers,
                collate_fn=_as_it_is,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_leave_signals_to_the_run,
                persistent_workers=self.workers > 0 and not self.once,
                generator=torch.Generator(),  # else workers draw their seeds from the global generator in each epoch
            )
        cast(_Requests, self._files.sampler).pending = requests
        for batch in self._files:
            if isinstance(batch, Exception):
                raise batch
            yield batch


def read(images: Images, request: Request) -> RawBatch:
    """Fetch the batch of a request in this process.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged.
    """
    index, key, size = request
    if images.batched:
        return RawBatch(*images.take(index), index, key, size)
    batch = _Decoder(images)[request]
    if isinstance(batch, Exception):
        raise batch
    return batch


def _leave_signals_to_the_run(worker: int) -> None:
    """Let a worker outlive the signal that all processes of a job get: the run still wants the batches of its step.

    A second SIGTERM ends it, as the loader and Python send it to what has not ended by itself.
    """
    signal.signal(signal.SIGTERM, _outlived)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _outlived(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


class _Requests(Sampler[Request]):
    """Batch sampler that hands the requests of each epoch to a persistent DataLoader."""

    pending: Iterator[Request]

    def __iter__(self) -> Iterator[Request]:
        return self.pending


class _Decoder(Dataset[RawBatch | Exception]):
    """Dataset that makes a batch of a request, and returns errors, which a worker would bury in a traceback."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, request: Request) -> RawBatch | Exception:
        index, key, size = request
        try:
            if key is None:
                items = [self.images[i] for i in index.tolist()]
            else:
                items = [self.images.augmented(i, k) for i, k in zip(index.tolist(), key.tolist(), strict=True)]
        except (OSError, ValueError) as error:
            return error
        return RawBatch(*stack(items), index, key, size)


def _as_it_is(batch: Any) -> Any:
    return batch
