"""The figures of a classifier against plain numpy."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hem.losses import DiceLoss, HEMLoss
from hem.modules import AdversarialTask, ClassificationTask, LongTailTask
from hem.modules.classification import logit_margin

CLASSES = 7


def figures(logits: np.ndarray, target: np.ndarray, loss: nn.Module, batch_size: int = 16) -> dict[str, float]:
    """What ``test`` reports of logits, handed through a network that does nothing."""
    task = ClassificationTask(nn.Flatten(), loss, num_classes=CLASSES, class_names=[f"c{k}" for k in range(CLASSES)])
    data = TensorDataset(torch.from_numpy(logits).float()[:, :, None, None], torch.from_numpy(target))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(task, DataLoader(data, batch_size=batch_size), verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in trainer.callback_metrics.items()}


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """90 samples: the first two batches perfect, the rest half wrong; the last class absent."""
    random = np.random.default_rng(0)
    target = random.integers(0, CLASSES - 1, 90)
    logits = random.normal(size=(90, CLASSES))
    logits[np.arange(32), target[:32]] += 10
    logits[np.arange(32, 90), target[32:]] += 0.7
    return logits.astype(np.float32), target


def test_accuracies(sample):
    """Also where the first batches are perfect, which once made torchmetrics share top-5's state with the classes."""
    logits, target = sample
    got = figures(logits, target, HEMLoss())
    order = np.argsort(-logits, axis=1)
    assert got["accuracy"] == pytest.approx((order[:, 0] == target).mean(), abs=1e-6)
    assert got["accuracy_top5"] == pytest.approx((order[:, :5] == target[:, None]).any(1).mean(), abs=1e-6)
    assert 0.3 < got["accuracy"] < got["accuracy_top5"] < 1
    for k in range(CLASSES - 1):
        expected = (order[target == k, 0] == k).mean()
        assert got[f"class_accuracy/c{k}"] == pytest.approx(expected, abs=1e-6)
    assert len({got[f"class_accuracy/c{k}"] for k in range(CLASSES - 1)}) > 2


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_calibration_error(sample, scale):
    """Expected calibration error over 15 equal bins; logits within [0, 1] are logits, too, not probabilities."""
    logits, target = sample
    logits = scale * (logits - logits.min())
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == target
    bins = np.ceil(confidence * 15)
    expected = sum(
        (bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in np.unique(bins)
    )
    assert figures(logits, target, HEMLoss())["calibration_error"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ClassificationTask, {}),
        (LongTailTask, {"class_counts": [200, 100, 50, 20, 10, 5, 2]}),
        (AdversarialTask, {"linf": [], "l2": []}),
    ],
)
def test_a_class_without_a_sample_has_no_accuracy(sample, kind, options):
    """Its key is not there, where 0 would say that all of it was wrong."""
    logits, target = sample
    assert CLASSES - 1 not in target
    task = kind(nn.Flatten(), HEMLoss(), num_classes=CLASSES, **options)
    data = TensorDataset(torch.from_numpy(logits)[:, :, None, None], torch.from_numpy(target))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(task, DataLoader(data, batch_size=30), verbose=False)
    classes = {key for key in trainer.callback_metrics if key.startswith("test/class_accuracy/")}
    assert classes == {f"test/class_accuracy/{k}" for k in range(CLASSES - 1)}
    assert not any(value.isnan() for value in trainer.callback_metrics.values())


def test_loss_and_logits(sample):
    """Means over all samples, whatever the batches: HEM by its formula, the share with error, the margins."""
    logits, target = sample
    losses, margins = [], []
    for z, y in zip(logits.astype(np.float64), target, strict=True):
        error = np.maximum(0, z - z[y] + 0.5)
        error[y] = 0
        kept = error[(error >= error.sum() / CLASSES) & (error > 0)]
        losses.append(kept.mean() if len(kept) else 0.0)
        margins.append(z[y] - np.delete(z, y).max())
    for batch_size in (16, 90):
        got = figures(logits, target, HEMLoss(margin=0.5), batch_size)
        assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert got["active"] == pytest.approx((np.array(losses) > 0).mean(), abs=1e-6)
        assert got["logit_margin"] == pytest.approx(np.mean(margins), rel=1e-4)
        assert got["max_logit"] == pytest.approx(logits.max(1).mean(), rel=1e-5)
    assert 0.1 < (np.array(losses) > 0).mean() < 0.9


def test_loss_that_is_no_mean_over_samples(sample):
    """Dice has a value per batch; there is no share of samples with error."""
    got = figures(*sample, DiceLoss(), batch_size=90)
    expected = DiceLoss()(*map(torch.from_numpy, sample))
    assert got["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert "active" not in got


def test_logit_margin_of_ties():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    assert logit_margin(logits, torch.tensor([0, 0])).tolist() == [0.0, -2.0]


def test_few_classes_have_no_top5():
    task = ClassificationTask(nn.Flatten(), HEMLoss(), num_classes=5)
    assert not [key for key in task.configure_metrics("test")["plain"] if "top5" in key]
