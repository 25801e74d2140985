"""Metrics of probabilities: equal to scikit-learn's and to loops, over batches, and by the textbook at the edges."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from hem.metrics import (
    BrierScore,
    CalibrationError,
    NegativeLogLikelihood,
    brier_score,
    calibration_error,
    negative_log_likelihood,
    reliability,
)

METRICS = [
    (NegativeLogLikelihood(), negative_log_likelihood),
    (BrierScore(), brier_score),
    (CalibrationError(), calibration_error),
    (CalibrationError(bins=7, binning="mass"), lambda z, y: calibration_error(z, y, 7, "mass")),
]


def sample(n=500, classes=5, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    target = torch.where(
        torch.rand(n, generator=generator) < 0.6,
        logits.argmax(1),
        torch.randint(classes, (n,), generator=generator),
    )
    return logits, target


def error_by_loops(confidence, correct, edges):
    """The textbook's: bins open below and closed above."""
    total = 0.0
    for low, high in pairwise(edges):
        inside = [(c, r) for c, r in zip(confidence, correct, strict=True) if low < c <= high]
        if inside:
            mean = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_likelihood_and_brier_are_scikit_learns():
    logits, target = sample()
    p = logits.double().softmax(1).numpy()
    assert negative_log_likelihood(logits, target).item() == pytest.approx(log_loss(target, p, labels=range(5)))
    reference = brier_score_loss(target, p, labels=range(5), scale_by_half=False)
    assert brier_score(logits, target).item() == pytest.approx(reference)


def test_likelihood_of_what_float32_rounds_to_zero():
    logits = torch.tensor([[200.0, 0.0]])
    assert negative_log_likelihood(logits, torch.tensor([1])).item() == pytest.approx(200)
    assert negative_log_likelihood(logits, torch.tensor([0])).item() == pytest.approx(np.exp(-200))


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("binning", ["width", "mass"])
def test_calibration_error_is_the_textbooks(bins, binning):
    logits, target = sample()
    p = logits.double().softmax(1)
    confidence, correct = p.amax(1).numpy(), (p.argmax(1) == target).double().numpy()
    edges = np.linspace(0, 1, bins + 1) if binning == "width" else np.quantile(confidence, np.linspace(0, 1, bins + 1))
    edges[0] = -np.inf  # the least confidence is in the first bin
    expected = error_by_loops(confidence, correct, edges)
    assert calibration_error(logits, target, bins, binning).item() == pytest.approx(expected)


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_reliability_is_scikit_learns(binning, strategy):
    logits, target = sample()
    p = logits.double().softmax(1)
    confidence, correct = p.amax(1), p.argmax(1) == target
    accuracy, mean = calibration_curve(correct.numpy(), confidence.numpy(), n_bins=8, strategy=strategy)
    found = reliability(confidence, correct, 8, binning)
    there = found.size > 0
    np.testing.assert_allclose(found.accuracy[there], accuracy)
    np.testing.assert_allclose(found.confidence[there], mean)
    assert found.size.sum() == 500


def test_confidences_of_exactly_one_are_in_the_last_bin():
    """torchmetrics gives them a bin of their own: half of these are a little surer than right, half a little less."""
    confidence = torch.tensor([1.0] * 50 + [0.94] * 50, dtype=torch.float64)
    correct = torch.tensor([True] * 47 + [False] * 3 + [True] * 50)
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    target = (~correct).long()
    expected = error_by_loops(confidence.tolist(), correct.tolist(), np.linspace(0, 1, 16))
    assert calibration_error(logits, target).item() == pytest.approx(expected)
    assert expected == pytest.approx(0.0, abs=1e-9)
    theirs = MulticlassCalibrationError(2, n_bins=15)(logits.exp().float(), target)
    assert theirs.item() == pytest.approx(0.06, abs=1e-6)


def test_equal_confidences_are_in_one_bin_in_whatever_order():
    confidence = torch.tensor([0.5] * 60 + [0.9] * 40)
    correct = torch.arange(100) % 3 == 0
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    one, other = (reliability(confidence[i], correct[i], 4, "mass") for i in (torch.arange(100), shuffled))
    torch.testing.assert_close(one, other, equal_nan=True)
    assert sorted(one.size.tolist()) == [0, 0, 40, 60]


@pytest.mark.parametrize(("metric", "function"), METRICS)
def test_batches_are_the_whole(metric, function):
    logits, target = sample()
    metric.reset()
    for z, y in zip(logits.split(77), target.split(77), strict=True):
        metric.update(z, y)
    assert metric.compute().item() == pytest.approx(function(logits, target).item(), abs=1e-12)
    metric.reset()
    metric.update(logits[:0], target[:0])
    assert metric.compute().isnan()


@pytest.mark.parametrize(("metric", "function"), METRICS)
def test_processes_are_joined(metric, function):
    """As torchmetrics joins states: sums are added, lists put behind each other."""
    logits, target = sample()
    metric.reset()
    other = metric.clone()
    metric.update(logits[:200], target[:200])
    other.update(logits[200:], target[200:])
    states = [{name: getattr(each, name) for name in each._defaults} for each in (metric, other)]
    joined = metric.clone()
    for name, how in joined._reductions.items():
        parts = [state[name] for state in states]
        parts = [torch.cat(part) if isinstance(part, list) else part for part in parts]
        setattr(joined, name, torch.cat(parts) if getattr(how, "__name__", "") == "dim_zero_cat" else sum(parts))
    joined._update_count = 1
    assert joined.compute().item() == pytest.approx(function(logits, target).item(), abs=1e-12)


@pytest.mark.parametrize("function", [negative_log_likelihood, brier_score, calibration_error])
def test_pixels_are_samples(function):
    logits, target = sample(60)
    maps = logits.reshape(3, 4, 5, 5).movedim(-1, 1)
    labels = target.reshape(3, 4, 5).clone()
    assert function(maps, labels).item() == pytest.approx(function(logits, target).item())
    labels[0] = 255
    assert function(maps, labels, ignore_index=255).item() == pytest.approx(function(logits[20:], target[20:]).item())
    assert function(maps, torch.full_like(labels, 255), ignore_index=255).isnan()


@pytest.mark.parametrize(
    ("logits", "target", "kind", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "Expected class indices, got torch.float32"),
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), TypeError, "floating point, got torch.int64"),
        (torch.zeros(2, 3), torch.zeros(3).long(), ValueError, r"got \(2, 3\) and \(3,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "Expected labels from 0 to 2, got 0 to 3"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), ValueError, "NaN in 2 samples"),
    ],
)
def test_mistakes(logits, target, kind, words):
    with pytest.raises(kind, match=words):
        brier_score(logits, target)


def test_mistakes_of_bins():
    with pytest.raises(ValueError, match="Expected bins as a number, 1 or more, got 0"):
        CalibrationError(bins=0)
    with pytest.raises(ValueError, match="Expected binning as 'width' or 'mass', got 'size'"):
        CalibrationError(binning="size")
    with pytest.raises(ValueError, match="Expected confidences from 0 to 1, got -1 to 2"):
        reliability(torch.tensor([-1.0, 2.0]), torch.tensor([True, False]))


@pytest.mark.parametrize("function", [negative_log_likelihood, brier_score, calibration_error])
def test_weights_are_repeats(function):
    logits, target = sample()
    weight = torch.tensor([1, 2, 0, 1, 3])
    times = weight[target]
    repeated = function(logits.repeat_interleave(times, 0), target.repeat_interleave(times))
    assert function(logits, target, weight=weight.tolist()).item() == pytest.approx(repeated.item())
    with pytest.raises(ValueError, match=r"for each of 5 classes, got shape \(2,\)"):
        function(logits, target, weight=[1.0, 2.0])
