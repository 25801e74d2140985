"""What all data modules share: the split, the loaders, and augmentation on the device."""

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

    A data set is a subclass: its facts as class attributes, and :meth:`load`.

    * The validation part is cut from the official training part: floor(f n + 1/2) of the n samples of each
      class (but not all), chosen by ``split_seed``. So ``class_counts`` is known before the data is.
      ``val_fraction=0`` means no validation: the test part is not put in its place.
    * The order of an epoch is a function of (seed, epoch), augmentation a function of (seed, epoch, index).
    * ``batch_size`` counts the samples of a step over all processes; see :class:`~hem.datamodules.Batches`.
    * Tasks receive a :class:`Batch`, made in :meth:`on_after_batch_transfer` on the batch's device.

    Args:
        root: Folder of the data sets, each in its official layout; ``None``: the environment's ``HEM_DATA``,
            else ``data``.
        batch_size: Samples per training step, over all processes.
        val_fraction: Share of the official training part that is held out for validation, in [0, 1).
        split_seed: Chooses the validation part.
        seed: Chooses order and augmentation.
        num_workers: Processes that decode image files; images in memory need none.
        augment: What training images go through, in this order; ``None``: the data set's usual ones, ``[]``:
            nothing.
        download: Fetch what is missing, where the data set's host offers it.
        eval_batch_size: Samples per step of evaluation, over all processes; ``None``: ``batch_size``.
        subset: Selection from the training part, after the validation part was cut off.
        sampling: Draws the samples of each epoch; ``None``: each of them once, shuffled.
        predict_folder: Folder of images for ``predict``, in place of the test part; brought to the data
            set's form.
        on_device: Keep images that live in memory on the accelerator where they take less than a quarter of
            its free memory.

    Raises:
        ValueError: An argument is out of its range.
    """

    # name (Lightning declares it): in tables and file names
    title: str  #: in sentences
    source: str  #: where the data can be had
    class_names: Sequence[str]
    train_counts: Sequence[int]  #: images of each class in the official training part
    in_channels: int
    image_size: tuple[int, int]  #: height and width in pixels
    official_val: bool = False  #: whether there is a validation part of its own; else it is cut from the training part
    split_by_name: bool = False  #: whether a part is cut off by the names of files: of one's own folders, which change
    own: bool = False  #: whether it is one's own folder, whose files come and go, rather than a published list
    mean: tuple[float, ...]  #: of the official training part per channel, pixels in [0, 1]
    std: tuple[float, ...]
    usual: tuple[Augmentation, ...] = ()  #: the augmentation of the literature's recipes
    shorter: int | None = None  #: to how many pixels an evaluation scales the shorter side; None: it stretches

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
                raise ValueError(f"{argument} is a number of images, 1 or more, but it is {size}.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is a share of the training part in [0, 1), but it is {val_fraction}.")
        if num_workers < 0:
            raise ValueError(f"num_workers is a number of processes, 0 or more, but it is {num_workers}.")
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
        """The class and the data set; Lightning's own description reads the data, and the parser asks for one."""
        return f"{type(self).__name__}({self.title})"

    # The facts of a data set.

    @abstractmethod
    def load(self, split: Split) -> Images:
        """Read the official part ``train`` or ``test`` (or ``val``, see :attr:`official_val`) from the disk.

        Raises:
            FileNotFoundError: It is not there; the sentence says where it was looked for and what brings it.
            ValueError: A file is damaged; the sentence has its name.
        """

    def fetch(self) -> None:
        """Download what is missing into :attr:`root`; where that cannot be, :meth:`load` says so."""

    def missing(self, split: Split, path: Path) -> FileNotFoundError:
        """The error of a part that is not there."""
        bring = f"get it from {self.source} into {self.root}"
        if type(self).fetch is not ImageDataModule.fetch:
            bring = f"pass --data.download true, or {bring}"
        return FileNotFoundError(
            f"The {split} part of {self.title} is missing: {path} is not there. To mend it, {bring}; "
            f"data that lies elsewhere is found by --data.root or the environment's HEM_DATA."
        )

    def usual_augment(self) -> list[Augmentation | Mixing]:
        """The augmentation of the literature's recipes, :attr:`usual`."""
        return list(self.usual)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Images of each class in the training part, behind the validation split and the subset."""
        counts = list(self.train_counts)
        if not self.official_val:
            counts = [n - held for n, held in zip(counts, held_out_counts(counts, self.val_fraction), strict=True)]
        return counts if self.subset is None else self.subset.counts(counts)

    # Parts and loaders.

    def images(self, split: Split) -> Images:
        """An official part, read once."""
        if split not in self._images:
            images = self.load(split)
            if len(images) == 0:
                raise ValueError(f"The {split} part of {self.title} in {self.root} holds no image.")
            self.check_labels(images, split)
            self._images[split] = images
        return self._images[split]

    def check_labels(self, images: Images, split: Split) -> None:
        """Refuse labels that are no class; say so where the training part is not the official one."""
        if bool((wrong := (images.targets < 0) | (images.targets >= self.num_classes)).any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"{images.name_of(at)}: labels of {self.title} are 0 to {self.num_classes - 1}, "
                f"but this one is {int(images.targets[at])}."
            )
        counts = torch.bincount(images.targets, minlength=self.num_classes).tolist()
        if split == "train" and counts != list(self.train_counts):
            rank_zero_warn(
                f"The training part of {self.title} in {self.root} is not the official one: it has {len(images)} "
                f"images, not {sum(self.train_counts)}, or others per class. class_counts are the official ones."
            )

    def replace(self, split: Split, images: Images) -> None:
        """Put other images in the place of an official part: as many, in the same order."""
        self._images[split] = images

    def part(self, part: Split) -> tuple[Images, Tensor]:
        """The images among which a part lies, and the positions of its samples, (N,) int64, ascending.

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
        """The paths of a part's files below the root, in the order of the samples; None: they are not files."""
        images, index = self.part(part)
        if images.paths is None:
            return None
        return [os.path.relpath(images.paths[i], self.root) for i in index.tolist()]

    def record(self) -> dict[str, Any]:
        """What a run keeps of its data, beside the lists of its files: :meth:`facts`."""
        return self.facts()

    def facts(self) -> dict[str, Any]:
        """What the outputs of a network mean that is trained on this data, and what images it takes: as JSON has it.

        ``shorter`` is that of :class:`~hem.datamodules.images.Fit`; it is left out where another transform is used.
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
        """Which images of the official training part are held out, (N,) bool: by position, for its list is fixed."""
        return held_out(images.targets.cpu(), self.num_classes, self.val_fraction, self.split_seed)

    def order(self, index: Tensor, epoch: int) -> Tensor:
        """The training samples ``index`` (N,) in the order in which they come in an epoch, (N,).

        Each once, or as :attr:`sampling` draws them. Repeat k of sample i is encoded i + k * len(images), its own
        augmentation key.
        """
        if self.sampling is None:
            return index[permutation(len(index), self.seed, epoch)]
        images = self.images("train")
        drawn = index[self.sampling.draw(images.targets.cpu()[index], self.seed, epoch)]
        return drawn + len(images) * repeats(drawn)

    def loader(self, images: Images, index: Tensor, *, training: bool = False, once: bool = False) -> Loader:
        """Batches of some of the images for this process, in order; for training shuffled and augmented.

        Args:
            images: Where they are, for example from :meth:`part`.
            index: (N,) int64, which ones.
            training: Shuffle, augment, and leave the incomplete last batch out.
            once: They are gone through once: processes that decode files end with them.
        """
        trainer, images = self.trainer, self.placed(images)
        shuffled = training and not getattr(trainer, "overfit_batches", 0)  # then the same batches every time
        batches = Batches(
            partial(self.order, index) if shuffled else lambda epoch: index,
            len(index),
            self.batch_size if training else self.eval_batch_size,
            training=training,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
            device=images.device,
        )
        drawn = bool(self.augment or self.mixing) or not images.batched  # else no key is needed
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
        """The images on the accelerator, when they are in memory and small beside it."""
        if self.trainer is None or not self.on_device:
            return images
        placed = images.placed(self.trainer.strategy.root_device)  # training and validation share one copy
        self._images = {split: placed if known is images else known for split, known in self._images.items()}
        return placed

    # Lightning's hooks.

    def state_dict(self) -> dict[str, int]:
        """Return the position within the epoch.

        Lightning 2.6 forgets the loader's own where a schedule asked for the number of steps before it was restored.
        """
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin at a position, once."""
        if self._training is None:
            self._position = state_dict
        else:
            self._training.load_state_dict(state_dict)

    def prepare_data(self) -> None:
        """Download, on one process alone."""
        if not self.download:
            return
        try:
            self.fetch()
        except (OSError, RuntimeError) as error:
            sentence = f"{self.title} could not be downloaded ({error}): get it from {self.source} into {self.root}."
            raise ConnectionError(sentence) from error

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that a missing data set is known at once."""
        if stage in ("fit", "validate"):
            self.images("val" if stage == "validate" and self.official_val else "train")
            if self.val_fraction == 0 and not self.official_val:
                if stage == "validate":
                    raise ValueError("There is no validation part, since val_fraction is 0: set it, or test instead.")
                if self.trainer is not None:
                    self.trainer.limit_val_batches = 0  # or Lightning warns that the list of loaders is empty
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
        """The training part, shuffled and augmented."""
        return self.loader(*self.part("train"), training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """The validation part; an empty list where there is none."""
        if self.val_fraction == 0 and not self.official_val:
            return []
        return self.loader(*self.part("val"))

    def test_dataloader(self) -> Loader | list[Loader]:
        """A loader for each of :attr:`evaluation_sets`, which a task sets; by default one for the test part."""
        loaders = [self.loader(each.images, each.index, once=True) for each in self.evaluation_sets]
        return loaders or self.loader(*self.part("test"))

    def predict_dataloader(self) -> Loader:
        """The images of ``predict_folder``, else the test part."""
        images = self.predict_images()
        return self.loader(images, torch.arange(len(images)))

    def predict_images(self) -> Images:
        """What ``predict`` goes through."""
        if self.predict_folder is None:
            return self.images("test")
        if "predict" not in self._images:
            folder = Path(self.predict_folder).expanduser()
            self._images["predict"] = unlabelled(folder, "predict_folder", self.eval_transform(), self.in_channels)
        return self._images["predict"]

    def eval_transform(self) -> Fit:
        """How an image of any size becomes one of this data set."""
        return Fit(self.image_size, self.shorter)

    def name_of(self, index: int) -> str:
        """The name of a sample of ``predict_dataloader``: its path, or such as ``mnist/test/00012``."""
        return self.predict_images().name_of(index)

    def on_after_batch_transfer(self, batch: RawBatch | Batch, dataloader_idx: int) -> Batch:
        """On the device: pixels from 0..255 to [0, 1], and for training the augmentation."""
        if not isinstance(batch, RawBatch):
            return batch
        pixels = batch.input.dtype == torch.uint8  # and not features
        input, target = batch.input.float().div_(255) if pixels else batch.input, batch.target
        if batch.key is not None:
            for stream, augment in enumerate(self.augment):
                input = augment(input, key_of(batch.key, stream))
            if len(input) > batch.size:
                labels = F.one_hot(target, self.num_classes).float()
                input, target = mix(self.mixing, input, labels, batch.key[: batch.size], len(self.augment))
        batch = Batch(input, target, batch.index[: len(input)])
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)
