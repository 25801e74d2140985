"""Counts of each class against torchmetrics, whose states come from a confusion matrix."""

import torch
from torchmetrics.functional.classification import multiclass_stat_scores

from hem.metrics.accuracy import ClassAccuracy
from hem.metrics.longtail import ShotAccuracy

LOGITS = torch.randn(60, 7, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(6, (60,), generator=torch.Generator().manual_seed(1))  # of the last class there is none


def test_counts_are_those_of_torchmetrics():
    counts = ClassAccuracy(7)
    for logits, target in zip(LOGITS.split(25), TARGET.split(25), strict=True):
        counts.update(logits, target)
    right, *_, seen = multiclass_stat_scores(LOGITS, TARGET, 7, average="none").unbind(1)
    assert torch.equal(counts.right, right)
    assert torch.equal(counts.seen, seen)
    assert seen[6] == 0


def test_decided_classes_probabilities_and_labels_that_are_ignored():
    counts, same = ClassAccuracy(7, ignore_index=255), ClassAccuracy(7)
    target = TARGET.clone()
    target[::3] = 255
    counts.update(LOGITS.argmax(1), target)
    keep = target != 255
    same.update(LOGITS[keep], torch.nn.functional.one_hot(TARGET[keep], 7).float())
    assert torch.equal(counts.right, same.right)
    assert torch.equal(counts.seen, same.seen)


def test_a_million_classes():
    """No state and no step has the size of C x C."""
    classes = 1_000_000
    target = torch.tensor([3, 3, classes - 1])
    for metric in (ClassAccuracy(classes), ShotAccuracy(["many"] * classes)):
        metric.update(torch.tensor([3, 4, classes - 1]), target)
        metric.compute()
        assert metric.seen[3] == 2
        assert metric.right[[3, 4, classes - 1]].tolist() == [1, 0, 1]
