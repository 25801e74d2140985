"""Data module of a stream of tasks for continual learning: groups of classes, or permuted pixels."""

import copy
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hem.datamodules.augment import Augmentation, Mixing
from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import Fit, Images, MemoryImages
from hem.datamodules.loader import Loader, RawBatch, read
from hem.datamodules.longtail import Subset
from hem.datamodules.splits import Split
from hem.rng import key as key_of
from hem.rng import permutation

Scenario = Literal["class", "task", "domain", "permuted"]
CLASSES, PIXELS = 0x636C617373, 0x706978656C  # RNG stream ids


class PermutedImages(MemoryImages):
    """Images under several permutations of their pixels; image n of N under permutation t has the position t N + n.

    All channels are permuted alike. Only the original images are in memory.

    Args:
        images: The original images.
        orders: (T, H W) int64, each row a permutation: pixel p of a permuted image is pixel ``orders[t, p]``.

    Example:
        >>> one = MemoryImages(torch.tensor([[[[1, 2, 3]]]]).byte(), torch.tensor([7]))
        >>> images = PermutedImages(one, torch.tensor([[0, 1, 2], [2, 0, 1]]))
        >>> len(images), images[1][0].tolist()
        (2, [[[3, 1, 2]]])
    """

    def __init__(self, images: MemoryImages, orders: Tensor) -> None:
        super().__init__(images.images, images.targets, images.name)
        self.orders = orders
        self.targets = self.targets.repeat(len(orders))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.take(torch.tensor([index]))
        return image[0], int(target)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (N, C, H, W) at positions ``index`` (N,), and their targets (N,)."""
        count = len(self.images)
        pixels = self.images[index % count]
        order = self.orders[(index // count).to(self.orders.device)].to(pixels.device)
        shuffled = pixels.flatten(2).gather(2, order[:, None].expand(-1, pixels.shape[1], -1))
        return shuffled.view(pixels.shape), self.targets[index]

    def to(self, device: torch.device) -> "PermutedImages":
        """Return the images on another device."""
        targets = self.targets[: len(self.images)]
        return PermutedImages(MemoryImages(self.images, targets, self.name).to(device), self.orders.to(device))


class ContinualDataModule(ImageDataModule):
    """A data set as a stream of tasks, trained one after another within one ``fit``.

    The stream has T tasks of E epochs: the trainer's ``max_epochs`` is E T, and its
    ``reload_dataloaders_every_n_epochs`` 1. (With fewer epochs than tasks, each of the first tasks has one.)

    * ``class``: the classes are dealt to T groups of nearly equal size; a network tells all of them apart.
    * ``task``: the same, but the task of an image is known to the network, also in the test.
    * ``domain``: the same groups, but the label is the position of a class within its group: K = C / T labels.
    * ``permuted``: every task has all classes; the first has the original images, each other one the pixels
      of all images in an order of its own. It needs images in memory, and has no usual augmentation.

    Every sample has a number (``batch.index``), its position n in the data set or, for ``permuted``, t N + n.
    :meth:`task_of` returns its task.

    ``class_counts`` are those of the whole stream; each image counts once, also under ``permuted``.

    Source: the scenarios as in van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", Nature
    Machine Intelligence 4, 2022; permuted pixels: Goodfellow et al., "An empirical investigation of
    catastrophic forgetting in gradient-based neural networks", ICLR 2014.

    Args:
        data: The data set. Its batch size, validation part, seeds and augmentation are ignored for those given here.
        tasks: Number of tasks T.
        scenario: ``"class"``, ``"task"``, ``"domain"`` or ``"permuted"``, see above.
        order_seed: Seed of the order of the classes, None: by label; and of the permutations, None: as 0.
        root: As of :class:`ImageDataModule`; None: that of ``data``.
        augment: As of :class:`ImageDataModule`.
        subset: As of :class:`ImageDataModule`; None: that of ``data``.
        **kwargs: As of :class:`ImageDataModule`.

    Raises:
        ValueError: There are more tasks than classes or fewer than one, groups have different sizes under ``domain``,
            or the scenario is unknown.

    Example:
        >>> from hem.datamodules import DigitsDataModule
        >>> data = ContinualDataModule(DigitsDataModule(), tasks=5)
        >>> [data.classes(task).tolist() for task in range(5)]
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
        >>> images, index = data.part("test")
        >>> data.task_of(index, "test").bincount().tolist()
        [72, 72, 72, 72, 71]
    """

    def __init__(
        self,
        data: ImageDataModule,
        tasks: int = 5,
        scenario: Scenario = "class",
        order_seed: int | None = None,
        root: str | None = None,
        augment: list[Augmentation | Mixing] | None = None,
        subset: Subset | None = None,
        **kwargs: object,
    ) -> None:
        if scenario not in get_args(Scenario):
            raise ValueError(f"Expected scenario to be one of {', '.join(get_args(Scenario))}, got {scenario!r}.")
        if tasks < 1:
            raise ValueError(f"Expected tasks to be a number of tasks, 1 or more, got {tasks}.")
        count = data.num_classes
        if scenario != "permuted" and tasks > count:
            raise ValueError(
                f"Expected at least as many classes as tasks, {tasks}, got {count} of {data.title}: take at most "
                f"{count} tasks, or the scenario permuted."
            )
        if scenario == "domain" and count % tasks:
            raise ValueError(
                f"Expected equally many classes for each task under the scenario domain, got {count} classes of "
                f"{data.title} for {tasks} tasks: take a divisor of {count}."
            )
        self.whole = data
        self.tasks = tasks
        self.scenario = scenario
        self.order_seed = order_seed
        self.cumulative = False  # whether training is on all tasks so far, as in joint training
        order = torch.arange(count) if order_seed is None else permutation(count, CLASSES, order_seed)
        self.groups = [order] * tasks if scenario == "permuted" else list(order.tensor_split(tasks))
        self.name = f"{data.name}_{scenario}"
        self.title = data.title
        self.source = data.source
        self.in_channels, self.image_size = data.in_channels, data.image_size
        self.mean, self.std = data.mean, data.std
        self.class_names: tuple[str, ...] = tuple(data.class_names)
        if scenario == "domain":
            self.class_names = tuple(
                "/".join(data.class_names[int(group[k])] for group in self.groups) for k in range(count // tasks)
            )
        super().__init__(root=root, augment=augment, subset=subset, **kwargs)  # type: ignore[arg-type]
        data.root = self.root = data.root if root is None else self.root
        data.subset = self.subset = data.subset if subset is None else self.subset
        data.val_fraction, data.split_seed = self.val_fraction, self.split_seed

    # Facts of the stream.

    @property
    def train_counts(self) -> list[int]:  # type: ignore[override]
        """Images of each class in the official training part."""
        return self._by_label(list(self.whole.train_counts))

    @property
    def class_counts(self) -> list[int]:
        """Images of each class in the training part of the whole stream."""
        return self._by_label(self.whole.class_counts)

    def _by_label(self, counts: list[int]) -> list[int]:
        if self.scenario != "domain":
            return counts
        return [sum(counts[int(group[k])] for group in self.groups) for k in range(self.num_classes)]

    @property
    def official_val(self) -> bool:  # type: ignore[override]
        """Whether the data set has a validation part of its own."""
        return self.whole.official_val

    def classes(self, task: int) -> Tensor:
        """Return the classes of a task, (K,) int64, ascending."""
        if self.scenario in ("domain", "permuted"):
            return torch.arange(self.num_classes)
        return self.groups[task].sort().values

    def seen(self, task: int) -> Tensor:
        """Return the classes of a task and of all tasks before it, (K,) int64, ascending."""
        seen: Tensor = torch.unique(torch.cat([self.classes(t) for t in range(task + 1)]))
        return seen

    def usual_augment(self) -> list[Augmentation | Mixing]:
        """Return the usual augmentation of the data set; none for permuted pixels."""
        return [] if self.scenario == "permuted" else self.whole.usual_augment()

    def eval_transform(self) -> Fit:
        """Return the transform of the data set."""
        return self.whole.eval_transform()

    # Images and parts.

    def fetch(self) -> None:
        """Download the data set."""
        self.whole.fetch()

    def load(self, split: Split) -> Images:
        """Return an official part of the data set with the labels and pixels of the stream."""
        images = self.whole.images(split)
        if self.scenario == "domain":
            label = torch.empty(self.whole.num_classes, dtype=torch.int64)
            for group in self.groups:
                label[group] = torch.arange(len(group))
            targets, images = label[images.targets], copy.copy(images)
            images.targets = targets
        elif self.scenario == "permuted":
            if not isinstance(images, MemoryImages):
                raise ValueError(
                    f"Expected images in memory for permuted pixels, got images in files of {self.title}: take another "
                    "scenario or a smaller data set."
                )
            height, width = self.image_size
            orders = [torch.arange(height * width)]
            orders += [permutation(height * width, PIXELS, self.order_seed or 0, t) for t in range(1, self.tasks)]
            images = PermutedImages(images, torch.stack(orders))
        return images

    def check_labels(self, images: Images, split: Split) -> None:
        """Do nothing: the data set has checked them."""

    def part(self, part: Split) -> tuple[Images, Tensor]:
        """Return the images of an official part, and the numbers of the samples of a part, over all tasks."""
        whole, index = self.whole.part(part)
        split: Split = "test" if part == "test" else "val" if part == "val" and self.official_val else "train"
        if self.scenario == "permuted":
            index = torch.cat([index + t * len(whole) for t in range(self.tasks)])
        return self.images(split), index

    def task_of(self, index: Tensor, part: Split = "train") -> Tensor:
        """Return the task of each sample.

        Args:
            index: Numbers of samples, (N,) int64, on any device.
            part: The part that they belong to.

        Returns:
            Tasks in 0..T-1, (N,) int64, on the device of ``index``.
        """
        split: Split = "train" if part == "val" and not self.official_val else part
        targets = self.whole.images(split).targets
        if self.scenario == "permuted":
            return index // len(targets)
        task = torch.empty(self.whole.num_classes, dtype=torch.int64)
        for t, group in enumerate(self.groups):
            task[group] = t
        return task[targets.cpu()[index.cpu()]].to(index.device)

    def part_of(self, part: Split, tasks: Iterable[int]) -> Tensor:
        """Return the numbers of the samples of some tasks, (N,) int64, ascending.

        Raises:
            ValueError: A task has no training or test sample.
        """
        _, index = self.part(part)
        task = self.task_of(index, part)
        wanted = torch.tensor(list(tasks))
        if part != "val" and len(empty := wanted[~torch.isin(wanted, task)]):
            raise ValueError(
                f"Expected {part} samples for every task, got none of {self.title} for task {int(empty[0]) + 1} "
                f"(classes {self.groups[int(empty[0])].tolist()}): take fewer tasks or another subset."
            )
        return index[torch.isin(task, wanted)]

    def fetched(self, index: Tensor, *words: int) -> RawBatch:
        """Return training samples by number, augmented as a function of seed and words; without words unchanged."""
        images = self.placed(self.images("train"))
        index = index.to(images.device or "cpu")
        return read(images, (index, key_of(self.seed, *words, index) if words else None, len(index)))

    # The current task.

    @property
    def epochs_per_task(self) -> int:
        """Epochs per task E = max_epochs / T; 1 if there are fewer epochs than tasks.

        Raises:
            ValueError: ``max_epochs`` is no multiple of T.
        """
        epochs = self.trainer.max_epochs if self.trainer is not None else self.tasks
        if epochs is None or epochs < 0 or (epochs > self.tasks and epochs % self.tasks):
            raise ValueError(
                f"Expected equally many epochs for each of the {self.tasks} tasks, got max_epochs {epochs}: set "
                f"trainer.max_epochs to a multiple of {self.tasks}."
            )
        return max(1, epochs // self.tasks)

    @property
    def current_task(self) -> int:
        """The task that the trainer's current epoch belongs to, from 0."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        return min(epoch // self.epochs_per_task, self.tasks - 1)

    def setup(self, stage: str) -> None:
        """Read the parts that the stage needs; training needs the test part, which is evaluated after every task."""
        super().setup(stage)
        if stage != "fit":
            return
        self.images("test")
        trainer: Any = self.trainer
        if trainer is not None and self.epochs_per_task and trainer.reload_dataloaders_every_n_epochs != 1:
            raise ValueError(
                "Expected loaders that are made anew for each task, got reload_dataloaders_every_n_epochs "
                f"{trainer.reload_dataloaders_every_n_epochs}: set trainer.reload_dataloaders_every_n_epochs to 1."
            )

    def train_dataloader(self) -> Loader:
        """Return a loader of the training part of the current task (or of all tasks so far), shuffled and augmented."""
        first = 0 if self.cumulative else self.current_task
        index = self.part_of("train", range(first, self.current_task + 1))
        return self.loader(self.images("train"), index, training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return a loader of the validation part, during training of the tasks so far, else of all tasks."""
        if self.val_fraction == 0 and not self.official_val:
            return []
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        images, _ = self.part("val")
        return self.loader(images, self.part_of("val", range(self.current_task + 1 if fitting else self.tasks)))
