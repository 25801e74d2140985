"""Base class of data modules of labelled images: parts, loaders, and augmentation on the device."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from hem.datamodules.augment import Augmentation, Mixing, check, mix
from hem.datamodules.evaluation import EvaluationSet
from hem.datamodules.images import Fit, Images, unlabelled
from hem.datamodules.loader import Batch, Batches, Loader, RawBatch
from hem.datamodules.longtail import Sampling, Subset, repeats
from hem.datamodules.splits import Split, held_out, held_out_counts
from hem.rng import key as key_of
from hem.rng import permutation


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images in a train, a validation and a test part.

    A subclass for a data set defines its facts as class attributes, and :meth:`load`.

    * The validation part is cut from the official training part: floor(f n + 1/2) of the n samples of each
      class (but not all), chosen by ``split_seed``. So ``class_counts`` is known without reading the data.
      ``val_fraction=0`` means no validation: the test part does not take its place.
    * The order of samples is a function of (seed, epoch), augmentation a function of (seed, epoch, index).
    * ``batch_size`` counts the samples of a step over all processes; see :class:`~hem.datamodules.Batches`.
    * Tasks get a :class:`Batch`, made in :meth:`on_after_batch_transfer` on the device.

    Args:
        root: Folder of the data sets, each in its official layout; ``None``: the environment's ``HEM_DATA``,
            else ``data``.
        batch_size: Samples per training step, over all processes.
        val_fraction: Share of the official training part that is held out for validation, in [0, 1).
        split_seed: Chooses the validation part.
        seed: Chooses order and augmentation.
        num_workers: Processes that decode image files; images in memory need none.
        augment: Augmentation of training images, in this order; ``None``: the usual one of the data set, ``[]``: none.
        download: Download missing files, if the data set's host offers them.
        eval_batch_size: Samples per step of evaluation, over all processes; ``None``: ``batch_size``.
        subset: Selection from the training part without the validation part.
        sampling: Draws the samples of each epoch; ``None``: each of them once, shuffled.
        predict_folder: Folder of images for ``predict`` in place of the test part, converted to the data set's size and
            channels.
        on_device: Keep images that are in memory on the accelerator if they take less than a quarter of its free
            memory.

    Raises:
        ValueError: An argument is out of its range.
    """

    # `name`, which Lightning declares, is used in tables and file names
    title: str  #: used in messages
    source: str  #: URL of the data
    class_names: Sequence[str]
    train_counts: Sequence[int]  #: images of each class in the official training part
    in_channels: int
    image_size: tuple[int, int]  #: height and width in pixels
    official_val: bool = False  #: whether there is an official validation part; else it is cut from the training part
    split_by_name: bool = False  #: whether files are assigned to parts by their names
    own: bool = False  #: whether it is a user's own folder, whose files may change, not a published list of files
    mean: tuple[float, ...]  #: of the official training part per channel, pixels in [0, 1]
    std: tuple[float, ...]
    usual: tuple[Augmentation, ...] = ()  #: the augmentation of the literature's recipes
    shorter: int | None = None  #: pixels to which an evaluation scales the shorter side; None: it stretches

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        augment: list[Augmentation | Mixing] | None = None,
        download: bool = False,
        eval_batch_size: int | None = None,
        subset: Subset | None = None,
        sampling: Sampling | None = None,
        predict_folder: str | None = None,
        on_device: bool = True,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for argument, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ValueError(f"Expected {argument} to be a number of images, 1 or more, got {size}.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"Expected val_fraction to be a share of the training part in [0, 1), got {val_fraction}.")
        if num_workers < 0:
            raise ValueError(f"Expected num_workers to be a number of processes, 0 or more, got {num_workers}.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if num_workers > cores:
            rank_zero_warn(f"num_workers is {num_workers}, but there are {cores} processor cores: {cores} will work.")
        self.root = Path(root or os.environ.get("HEM_DATA") or "data").expanduser()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed, self.seed = val_fraction, split_seed, seed
        self.num_workers = min(num_workers, cores)
        self.augment, self.mixing = check(self.usual_augment() if augment is None else augment)
        self.download = download
        self.subset, self.sampling = subset, sampling
        self.predict_folder, self.on_device = predict_folder, on_device
        self.evaluation_sets: list[EvaluationSet] = []
        self._images: dict[str, Images] = {}
        self._training: Loader | None = None
        self._position: dict[str, int] | None = None

    def __str__(self) -> str:
        """Return the name of the class and the data set. Lightning's own reads the data, and the parser calls it."""
        return f"{type(self).__name__}({self.title})"

    # Facts of a data set.

    @abstractmethod
    def load(self, split: Split) -> Images:
        """Read the official part ``train`` or ``test`` (or ``val``, see :attr:`official_val`) from the disk.

        Raises:
            FileNotFoundError: It is missing; the message says where it was searched and how to get it.
            ValueError: A file is damaged; the message has its name.
        """

    def fetch(self) -> None:
        """Download missing files into :attr:`root`, if the data set offers that; else :meth:`load` raises an error."""

    def missing(self, split: Split, path: Path) -> FileNotFoundError:
        """Return the error for a part that is missing."""
        bring = f"get it from {self.source} into {self.root}"
        if type(self).fetch is not ImageDataModule.fetch:
            bring = f"pass --data.download true, or {bring}"
        return FileNotFoundError(
            f"The {split} part of {self.title} is missing: {path} is not there. To mend it, {bring}; "
            f"data that lies elsewhere is found by --data.root or the environment's HEM_DATA."
        )

    def usual_augment(self) -> list[Augmentation | Mixing]:
        """Return the usual augmentation in the literature, :attr:`usual`."""
        return list(self.usual)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Images of each class in the training part, after the validation split and the subset."""
        counts = list(self.train_counts)
        if not self.official_val:
            counts = [n - held for n, held in zip(counts, held_out_counts(counts, self.val_fraction), strict=True)]
        return counts if self.subset is None else self.subset.counts(counts)

    # Parts and loaders.

    def images(self, split: Split) -> Images:
        """Return an official part, which is read once."""
        if split not in self._images:
            images = self.load(split)
            if len(images) == 0:
                raise ValueError(f"Expected images in the {split} part of {self.title} in {self.root}, got none.")
            self.check_labels(images, split)
            self._images[split] = images
        return self._images[split]

    def check_labels(self, images: Images, split: Split) -> None:
        """Raise an error for labels that are no class; warn if the training part is not the official one."""
        if bool((wrong := (images.targets < 0) | (images.targets >= self.num_classes)).any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"Expected labels of {self.title} in 0 to {self.num_classes - 1}, got {int(images.targets[at])} for "
                f"{images.name_of(at)}."
            )
        counts = torch.bincount(images.targets, minlength=self.num_classes).tolist()
        if split == "train" and counts != list(self.train_counts):
            rank_zero_warn(
                f"The training part of {self.title} in {self.root} is not the official one: it has {len(images)} "
                f"images, not {sum(self.train_counts)}, or others per class. class_counts are the official ones."
            )

    def replace(self, split: Split, images: Images) -> None:
        """Replace the images of an official part by as many others in the same order."""
        self._images[split] = images

    def part(self, part: Split) -> tuple[Images, Tensor]:
        """Return the images of an official part, and the positions in it of a part's samples, (N,) int64, ascending.

        The parts ``train`` and ``val`` are disjoint selections from one official part (unless there are two).
        """
        if part == "test" or (part == "val" and self.official_val):
            images = self.images(part)
            return images, torch.arange(len(images))
        images = self.images("train")
        targets = images.targets.cpu()
        held = torch.zeros(len(targets), dtype=torch.bool) if self.official_val else self.validation(images)
        if part == "val":
            return images, held.nonzero()[:, 0]
        index = (~held).nonzero()[:, 0]
        if self.subset is not None:
            index = index[self.subset.select(targets[index])].sort().values
        return images, index

    def names(self, part: Split) -> list[str] | None:
        """Return the paths of a part's files relative to the root, in the order of samples; None: it has no files."""
        images, index = self.part(part)
        if images.paths is None:
            return None
        return [os.path.relpath(images.paths[i], self.root) for i in index.tolist()]

    def record(self) -> dict[str, Any]:
        """Return the record of the data that a run keeps, without the lists of files: :meth:`facts`."""
        return self.facts()

    def facts(self) -> dict[str, Any]:
        """Return what the inputs and outputs of a network trained on this data mean, as values of JSON.

        ``shorter`` is that of :class:`~hem.datamodules.images.Fit`; it is omitted if another transform is used.
        """
        transform = self.eval_transform()
        return {
            "class_names": list(self.class_names),
            "in_channels": self.in_channels,
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            **({"shorter": transform.shorter} if type(transform) is Fit else {}),
        }

    def validation(self, images: Images) -> Tensor:
        """Return which images of the official training part are held out, (N,) bool, a function of their positions."""
        return held_out(images.targets.cpu(), self.num_classes, self.val_fraction, self.split_seed)

    def order(self, index: Tensor, epoch: int) -> Tensor:
        """Return the training samples ``index`` (N,) in the order of an epoch, (N,).

        Each of them once, or as :attr:`sampling` draws them. Repeat k of sample i is encoded as i + k * len(images),
        which gives it another augmentation.
        """
        if self.sampling is None:
            return index[permutation(len(index), self.seed, epoch)]
        images = self.images("train")
        drawn = index[self.sampling.draw(images.targets.cpu()[index], self.seed, epoch)]
        return drawn + len(images) * repeats(drawn)

    def loader(self, images: Images, index: Tensor, *, training: bool = False, once: bool = False) -> Loader:
        """Return a loader of some images for this process, in order; for training shuffled and augmented.

        Args:
            images: The images, for example of :meth:`part`.
            index: Positions of the samples in ``images``, (N,) int64.
            training: Shuffle, augment, and drop the incomplete last batch.
            once: Iterate once: worker processes end after the first epoch.
        """
        trainer, images = self.trainer, self.placed(images)
        shuffled = training and not getattr(trainer, "overfit_batches", 0)  # the same batches in every epoch
        batches = Batches(
            partial(self.order, index) if shuffled else lambda epoch: index,
            len(index),
            self.batch_size if training else self.eval_batch_size,
            training=training,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
            device=images.device,
        )
        drawn = bool(self.augment or self.mixing) or not images.batched  # otherwise no key is needed
        made = Loader(
            images,
            batches,
            seed=self.seed if training and drawn else None,
            partners=index if training and self.mixing else None,
            workers=self.num_workers,
            once=once,
        )
        if training:
            self._training = made
            if self._position is not None:
                made.load_state_dict(self._position)
                self._position = None
        return made

    def placed(self, images: Images) -> Images:
        """Return the images on the accelerator if they are in memory and small enough, see ``on_device``."""
        if self.trainer is None or not self.on_device:
            return images
        placed = images.placed(self.trainer.strategy.root_device)  # one copy for training and validation
        self._images = {split: placed if known is images else known for split, known in self._images.items()}
        return placed

    # Lightning's hooks.

    def state_dict(self) -> dict[str, int]:
        """Return the position within the epoch.

        Lightning 2.6 loses the loader's state if a scheduler asked for the number of steps before it was restored.
        """
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Set the position at which the next epoch begins."""
        if self._training is None:
            self._position = state_dict
        else:
            self._training.load_state_dict(state_dict)

    def prepare_data(self) -> None:
        """Download missing files, on one process."""
        if not self.download:
            return
        try:
            self.fetch()
        except (OSError, RuntimeError) as error:
            sentence = f"{self.title} could not be downloaded ({error}): get it from {self.source} into {self.root}."
            raise ConnectionError(sentence) from error

    def setup(self, stage: str) -> None:
        """Read the parts that the stage needs, so that missing data is an error at once."""
        if stage in ("fit", "validate"):
            self.images("val" if stage == "validate" and self.official_val else "train")
            if self.val_fraction == 0 and not self.official_val:
                if stage == "validate":
                    raise ValueError(
                        "Expected a validation part, got none for val_fraction 0: set it, or test instead."
                    )
                if self.trainer is not None:
                    self.trainer.limit_val_batches = 0  # otherwise Lightning warns of an empty list of loaders
            elif len(self.part("val")[1]) == 0:
                raise ValueError(
                    f"Expected images to validate on, got none: val_fraction {self.val_fraction:g} of "
                    f"{len(self.images('train'))} training images of {self.num_classes} classes leaves none. Take a "
                    "larger val_fraction, or 0 to train without validation."
                )
        elif stage == "test":
            self.images("test")
        else:
            self.predict_images()

    def train_dataloader(self) -> Loader:
        """Return a loader of the training part, shuffled and augmented."""
        return self.loader(*self.part("train"), training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return a loader of the validation part, or an empty list if there is none."""
        if self.val_fraction == 0 and not self.official_val:
            return []
        return self.loader(*self.part("val"))

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return a loader for each of :attr:`evaluation_sets`, which a task sets; by default one for the test part."""
        loaders = [self.loader(each.images, each.index, once=True) for each in self.evaluation_sets]
        return loaders or self.loader(*self.part("test"))

    def predict_dataloader(self) -> Loader:
        """Return a loader of :meth:`predict_images`."""
        images = self.predict_images()
        return self.loader(images, torch.arange(len(images)))

    def predict_images(self) -> Images:
        """Return the images of ``predict_folder``, else the test part."""
        if self.predict_folder is None:
            return self.images("test")
        if "predict" not in self._images:
            folder = Path(self.predict_folder).expanduser()
            self._images["predict"] = unlabelled(folder, "predict_folder", self.eval_transform(), self.in_channels)
        return self._images["predict"]

    def eval_transform(self) -> Fit:
        """Return the transform that brings a PIL image of any size to that of the data set."""
        return Fit(self.image_size, self.shorter)

    def name_of(self, index: int) -> str:
        """Return the name of a sample of ``predict_dataloader``: its path, or a name such as ``mnist/test/00012``."""
        return self.predict_images().name_of(index)

    def on_after_batch_transfer(self, batch: RawBatch | Batch, dataloader_idx: int) -> Batch:
        """Scale pixels from 0..255 to [0, 1] on the device and, in training, augment them."""
        if not isinstance(batch, RawBatch):
            return batch
        pixels = batch.input.dtype == torch.uint8  # not features
        input, target = batch.input.float().div_(255) if pixels else batch.input, batch.target
        if batch.key is not None:
            for stream, augment in enumerate(self.augment):
                input = augment(input, key_of(batch.key, stream))
            if len(input) > batch.size:
                labels = F.one_hot(target, self.num_classes).float()
                input, target = mix(self.mixing, input, labels, batch.key[: batch.size], len(self.augment))
        batch = Batch(input, target, batch.index[: len(input)])
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)
