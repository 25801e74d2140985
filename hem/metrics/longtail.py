"""Accuracy of many-shot, medium-shot and few-shot classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hem.metrics import catalog
from hem.metrics.accuracy import ClassCounts

SHOTS = ("many", "medium", "few")


def shots(class_counts: Sequence[int], many: int = 100, few: int = 20) -> list[str]:
    """Return the group of each class by its training samples: ``many`` above, ``few`` below, else ``medium``.

    Example:
        >>> shots([101, 100, 20, 19])
        ['many', 'medium', 'medium', 'few']
    """
    return ["many" if n > many else "few" if n < few else "medium" for n in class_counts]


def shot_accuracies(right: Tensor, seen: Tensor, groups: Sequence[str]) -> dict[str, Tensor]:
    """Return the metrics of a long tail from counts per class.

    With a_j = right_j / seen_j: ``accuracy`` = sum_j right_j / sum_j seen_j; ``balanced_accuracy``, the mean of a_j
    over the classes; ``many_shot_accuracy``, ``medium_shot_accuracy`` and ``few_shot_accuracy``, the mean over the
    classes of a group, where it has any; ``worst_class_accuracy``, the least a_j. Classes without a test sample are
    left out of the means.

    Args:
        right: Rightly classified test samples of each class, (C).
        seen: Test samples of each class, (C).
        groups: ``many``, ``medium`` or ``few`` for each class, as :func:`shots` gives them.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, section 4 (groups).

    Example:
        >>> found = shot_accuracies(torch.tensor([9, 3]), torch.tensor([9, 6]), ["many", "few"])
        >>> {name: round(value.item(), 2) for name, value in found.items()}
        {'accuracy': 0.8, 'balanced_accuracy': 0.75, 'worst_class_accuracy': 0.5, 'many_shot_accuracy': 1.0,
         'few_shot_accuracy': 0.5}
    """
    there = seen > 0
    each = right.double() / seen
    found = {
        catalog.ACCURACY.path: right.sum().double() / seen.sum(),
        catalog.BALANCED_ACCURACY.path: each[there].mean(),
        catalog.WORST_CLASS_ACCURACY.path: each[there].min(),
    }
    for shot in SHOTS:
        group = there & torch.tensor([own == shot for own in groups], device=seen.device)
        if group.any():
            found[catalog.SHOT_ACCURACY.key(shot=shot)] = each[group].mean()
    return found


class ShotAccuracy(ClassCounts):
    """:func:`shot_accuracies` over batches and processes.

    Args:
        groups: ``many``, ``medium`` or ``few`` for each class, as :func:`shots` gives them.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        super().__init__(len(groups))
        self.groups = groups
        self.counts = (torch.empty(0), torch.empty(0))  # right and seen of each class, (C) each, as last computed

    def compute(self) -> dict[str, Tensor]:
        """The accuracies, by their names."""
        self.counts = self.right, self.seen
        return shot_accuracies(self.right, self.seen, self.groups)
