"""Conformal sets: coverage within its binomial interval, scores by loops, and what is asked of too few samples."""

import io
import pickle

import pytest
import torch
from scipy.stats import binom

from hem.calibration import PredictionSets, Temperature, calibrate, conformal, nonconformity


def sample(n, seed, classes=20, temperature=0.6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator).double()
    target = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)
    return logits, target


def test_scores_by_loops():
    p = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    found = {score: nonconformity(p, score, penalty=0.1, free=2) for score in ("lac", "aps", "raps")}
    for i, row in enumerate(p.tolist()):
        for j, own in enumerate(row):
            larger = [other for other in row if other >= own]
            assert found["lac"][i, j].item() == pytest.approx(1 - own, abs=1e-6)
            assert found["aps"][i, j].item() == pytest.approx(sum(larger), abs=1e-6)
            expected = sum(larger) + 0.1 * max(len(larger) - 2, 0)
            assert found["raps"][i, j].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_coverage_is_within_its_binomial_interval(score, coverage):
    """Over many draws of calibration and test samples, as the guarantee says."""
    covered = []
    for seed in range(20):
        sets = conformal(*sample(500, 2 * seed), coverage, score)
        logits, target = sample(100, 2 * seed + 1)
        covered.append(sets(logits)[torch.arange(100), target])
    hits, n = int(torch.cat(covered).sum()), 2000
    # the threshold, of 500 samples each, adds its own spread of coverage (1 - coverage) / 500 a draw
    low, high = binom.interval(0.999, n, coverage)
    slack = 2 * (coverage * (1 - coverage) / 500 / 20) ** 0.5 * n
    assert low - slack <= hits <= high + slack + n / 501


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_sums_close_to_one_are_told_apart(score, dtype):
    """Of the very samples that the threshold came from, as many are covered as asked for, also where scores tie."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(100, (300,), generator=generator)
    sure = torch.randn(300, 100, generator=generator).to(dtype)
    sure[torch.arange(300), torch.where(torch.rand(300, generator=generator) < 0.8, target, 0)] += 25
    tied = torch.tensor([[2.0, 0.71, 0.1]], dtype=dtype).repeat(100, 1)
    for logits, labels in ((sure, target), (tied, (torch.arange(100) >= 80).long())):
        sets = conformal(logits, labels, 0.9, score)
        covered = sets(logits)[torch.arange(len(labels)), labels]
        assert covered.double().mean() >= 0.9
        worst = nonconformity(logits.double().softmax(1), score)
        assert torch.equal(sets(logits), (worst <= sets.threshold).scatter(1, logits.argmax(1, keepdim=True), True))


def test_sure_networks_give_small_sets():
    logits, target = sample(2000, 0, temperature=0.2)
    sets = conformal(logits, target, 0.9, probabilities=calibrate(logits, target))
    sizes = sets(logits).sum(1)
    margin = logits.topk(2, 1).values.diff(dim=1).abs().squeeze(1)
    assert (sizes >= 1).all()
    assert sizes[margin > margin.median()].double().mean() < sizes[margin < margin.median()].double().mean()


def test_the_most_probable_class_is_in_every_set():
    logits = torch.tensor([[3.0, 0.0, 0.0]]).repeat(100, 1)
    sets = conformal(logits, torch.zeros(100).long(), 0.5, "lac", probabilities=Temperature(5.0))
    assert sets(torch.tensor([[0.0, 0.1, 0.0]])).tolist() == [[False, True, False]]


def test_sets_travel():
    logits, target = sample(200, 0)
    sets = conformal(logits, target, 0.9, "raps", probabilities=calibrate(logits, target))
    expected = sets(logits)
    assert torch.equal(pickle.loads(pickle.dumps(sets))(logits), expected)
    file = io.BytesIO()
    torch.save(sets.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"_extra_state", "probabilities.temperature"}
    again = PredictionSets(Temperature(), 0.0, 0.9, sets.score)
    again.load_state_dict(state)
    assert torch.equal(again(logits), expected)


def test_arrays_are_taken():
    logits, target = sample(200, 0)
    sets = conformal(logits.numpy(), target.numpy(), 0.9)
    assert torch.equal(sets(logits.numpy()), conformal(logits, target, 0.9)(logits))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coverage": 1.0}, "Expected a coverage between 0 and 1, got 1.0"),
        ({"coverage": 0.99}, "Expected at least 99 samples for a coverage of 0.99, got 50"),
        ({"score": "best"}, "Expected score as one of lac, aps, raps, got 'best'"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(ValueError, match=words):
        conformal(*sample(50, 0), **arguments)
