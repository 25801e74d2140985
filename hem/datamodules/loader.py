"""Batches: which samples, in which order, on which process."""

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hem.datamodules.images import Images, stack
from hem.rng import integers
from hem.rng import key as key_of


class Batch(NamedTuple):
    """What reaches a task: ``input, target, *_ = batch``."""

    input: Tensor  # (N, C, H, W) float32 in [0, 1], not normalised
    target: Tensor  # (N,) or (N, H, W) class indices, int64; or (N, K) class probabilities where labels are mixed
    index: Tensor  # type: ignore[assignment]  # (N,) int64: the place in its split; it hides tuple.index


class RawBatch(NamedTuple):
    """What a :class:`Loader` yields: images as they are stored, and the randomness that belongs to them."""

    input: Tensor  # (M, C, H, W) uint8; M = N, or 2 N where partners to be mixed with follow the samples
    target: Tensor  # (M,) int64; or (M, H, W) uint8 where every pixel has a label
    index: Tensor  # type: ignore[assignment]  # (M,) int64; it hides tuple.index
    key: Tensor | None  # (M,) int64, a function of (seed, epoch, index); ``None``: no augmentation
    size: int  # N


# a batch before it is fetched: index (M,), key (M,) or None, N
Request: TypeAlias = tuple[Tensor, Tensor | None, int]
PARTNER = -1  # the stream of random numbers that chooses partners; augmentations have 0, 1, ...


@dataclass(eq=False)
class Batches(Sampler[Tensor]):
    """The batches of an epoch, as far as one process works on them.

    ``batch_size`` counts the samples of one step over *all* processes: every batch of the epoch is formed
    first and then cut into equal parts, one per process. So a run does the same steps on one device and on
    eight.

    Training batches are full; the remainder of the epoch (fewer than ``batch_size`` samples, other ones in
    each epoch) is left out, for a batch of another size weighs its samples differently and one of size 1
    breaks batch normalisation. A data set smaller than ``batch_size`` is one batch.

    Evaluation takes every sample once, in order: ceil(n / batch_size) batches whose sizes differ by at most
    one, so that each process has as many batches as the others (collectives do not hang) and no sample is
    repeated to fill one up.

    Args:
        order: From the epoch to the samples' indices in the order in which they come; the same number in
            each epoch.
        length: That number.
        batch_size: Samples per step over all processes.
        training: Full batches alone.
        rank: This process, 0 <= rank < world.
        world: Number of processes.
        device: Where the indices are put.

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
                f"batch_size counts the samples of a step over all processes and must be a multiple of their number, "
                f"but it is {self.batch_size} with {self.world} processes; "
                f"take {max(1, self.batch_size // self.world) * self.world}."
            )
        if self.length == 0:
            raise ValueError("Expected samples to go through, got none: take a larger share of the data, or more data.")
        if self.length < self.world:
            raise ValueError(
                f"There are {self.length} samples for {self.world} processes: use at most {self.length} of them."
            )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; Lightning does so before each."""
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
    """Yields a :class:`RawBatch` for each entry of a :class:`Batches`; what a Trainer iterates over.

    Images in memory are taken by one indexing per batch, without workers and on the device where they lie.
    Files are read through torch's DataLoader. Either way the position within the epoch is a state that
    Lightning saves, so that a run stopped in the middle of an epoch goes on with the next batch.

    Args:
        images: Where the indices point.
        batches: The indices.
        seed: The seed of the augmentation; ``None`` for none.
        partners: Indices from which each sample gets a partner to be mixed with; ``None`` for none.
        workers: Processes that decode files.
        once: Whether they end with the epoch.
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
        self.sampler = batches  # under this name Lightning finds set_epoch,
        self.batch_sampler = None  # and beside it asks for this one
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
        # A generator: nothing happens before the first batch is asked for; by then the epoch is set
        resume, self._resume = self._resume, None
        start = resume["position"] if resume and resume["epoch"] == self.sampler.epoch else 0
        self._position = start
        for batch in self._fetch(self._requests(start)):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given out."""
        return {"epoch": self.sampler.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the state's epoch behind the batches that were given out, any other at its start."""
        self._resume = dict(state)

    def _requests(self, start: int) -> Iterator[Request]:
        """Indices, keys and the number of samples of every batch from a position on."""
        parts = list(islice(self.sampler, start, None))
        count = len(self.images)  # beyond it are repeats of a sample, with keys of their own: see ImageDataModule.order
        if self.seed is None or not parts:
            yield from ((index % count, None, len(index)) for index in parts)
            return
        # all keys of the epoch at once: hashing is many small operations, whatever the number of keys
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
                persistent_workers=self.workers > 0 and not self.once,
                generator=torch.Generator(),  # or each epoch's workers draw their seed from the global one
            )
        cast(_Requests, self._files.sampler).pending = requests
        for batch in self._files:
            if isinstance(batch, Exception):
                raise batch
            yield batch


def read(images: Images, request: Request) -> RawBatch:
    """The batch of a request, fetched by this process.

    Raises:
        OSError: A file is gone.
        ValueError: A file is damaged.
    """
    index, key, size = request
    if images.batched:
        return RawBatch(*images.take(index), index, key, size)
    batch = _Decoder(images)[request]
    if isinstance(batch, Exception):
        raise batch
    return batch


class _Requests(Sampler[Request]):
    """The requests of the epoch, handed to a DataLoader that outlives it."""

    pending: Iterator[Request]

    def __iter__(self) -> Iterator[Request]:
        return self.pending


class _Decoder(Dataset[RawBatch | Exception]):
    """Makes a batch of a request. Errors are returned: a worker that raises buries them in a traceback."""

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
