"""Accuracy over all samples and per class; NaN where there is no sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import ClasswiseWrapper, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from hem.metrics.catalog import ACCURACY, ACCURACY_TOP5, CLASS_ACCURACY
from hem.metrics.samples import wide


def collection(metrics: Mapping[str, Metric], variant: str = "") -> MetricCollection:
    """Return a collection of metrics by their paths in the catalogue, prefixed by the variant.

    Not in groups that share their state: torchmetrics merges metrics whose first batches agree, such as top-5 accuracy
    and that of a perfect class.
    """
    return MetricCollection(dict(metrics), prefix=f"{variant}/" if variant else None, compute_groups=False)


class Accuracy(Metric):
    """Accuracy over the labelled samples; NaN where there is none, for which torchmetrics gives 0.

    Args:
        ignore_index: The label of what has none.

    Example:
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> accuracy.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    right: Tensor
    samples: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("right", "samples"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch: logits (N, C, ...), class indices (N, ...) or class probabilities (N, C, ...)."""
        label = target.argmax(1) if target.is_floating_point() else target
        labelled = label != self.ignore_index
        self.right = self.right + ((logits.argmax(1) == label) & labelled).sum()
        self.samples = self.samples + labelled.sum()

    def compute(self) -> Tensor:
        """The accuracy, a scalar."""
        return wide(self.right) / wide(self.samples)


class ClassCounts(Metric):
    """Rightly classified samples and all samples of each class: the base of what is measured class by class.

    Its states have C numbers. Those of torchmetrics come from a confusion matrix of C x C for each batch: half a
    gigabyte for the 8,142 species of iNaturalist.

    Args:
        num_classes: C.
        ignore_index: The label of what has none.
    """

    right: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("right", "seen"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, decided: Tensor, target: Tensor) -> None:
        """Take a batch: logits (N, C) or decided classes (N), and class indices (N) or probabilities (N, C)."""
        decided, label = (each.argmax(1) if each.is_floating_point() else each for each in (decided, target))
        labelled = label != self.ignore_index
        hit = labelled & (decided == label)
        self.right = self.right + label[hit].bincount(minlength=len(self.right))
        self.seen = self.seen + label[labelled].bincount(minlength=len(self.seen))


class ClassAccuracy(ClassCounts):
    """Accuracy per class, (C,); NaN for a class without samples.

    torchmetrics has 0 there, which reads as a class of which everything is wrong.

    Args:
        num_classes: C.

    Example:
        >>> accuracy = ClassAccuracy(3)
        >>> accuracy.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        >>> accuracy.compute()
        tensor([0.5000, 1.0000,    nan])
    """

    def compute(self) -> Tensor:
        """The accuracy per class."""
        return self.right / self.seen


def accuracies(num_classes: int, class_names: Sequence[str]) -> dict[str, Metric]:
    """Return ``accuracy``, ``accuracy_top5`` and ``class_accuracy/<name>``, NaN for classes without a sample.

    Args:
        num_classes: Number of classes; with five or fewer there is no top-5.
        class_names: Name of each class.
    """
    of_class = ClasswiseWrapper(ClassAccuracy(num_classes), list(class_names), CLASS_ACCURACY.path.format(name=""))
    metrics: dict[str, Metric] = {ACCURACY.path: Accuracy(), "class_accuracy": of_class}
    if num_classes > 5:
        metrics[ACCURACY_TOP5.path] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    return metrics
