"""Selective prediction: equal to loops and scikit-learn, whatever the order of equal scores."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from hem.metrics import Selective, aurc, error_auroc, risk_coverage
from hem.rejection import LOGIT_SCORES


def test_curve_by_loops():
    generator = torch.Generator().manual_seed(0)
    scores, correct = torch.randn(200, generator=generator), torch.rand(200, generator=generator) < 0.8
    order = sorted(range(200), key=lambda i: scores[i].item())
    risks = [sum(not correct[i] for i in order[:k]) / k for k in range(1, 201)]
    coverage, risk = risk_coverage(scores, correct)
    assert risk.tolist() == pytest.approx(risks)
    assert coverage.tolist() == pytest.approx([k / 200 for k in range(1, 201)])
    assert aurc(scores, correct) == pytest.approx(sum(risks) / 200)
    assert error_auroc(scores, correct) == pytest.approx(roc_auc_score(~correct, scores))


def test_equal_scores_have_no_order():
    """The mean over all orders of the tied samples."""
    scores = torch.tensor([0.0, 1.0, 1.0, 2.0])
    orders = [torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True])]
    assert aurc(scores, orders[0]) == aurc(scores, orders[1])
    apart = [aurc(torch.arange(4.0), correct) for correct in orders]
    assert aurc(scores, orders[0]) == pytest.approx(sum(apart) / 2)


def test_all_right_is_no_risk():
    scores, right = torch.arange(3.0), torch.ones(3, dtype=torch.bool)
    assert aurc(scores, right) == 0
    assert torch.tensor(error_auroc(scores, right)).isnan()


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_metric_over_batches(name):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(100, 4, generator=generator), torch.randint(4, (100,), generator=generator)
    metric = Selective(LOGIT_SCORES[name])
    for z, y in zip(logits.split(30), target.split(30), strict=True):
        metric.update(z, y)
    scores, correct = LOGIT_SCORES[name](logits.double()), logits.argmax(1) == target
    found = metric.compute()
    assert found["aurc"].item() == pytest.approx(aurc(scores, correct))
    assert found["error_auroc"].item() == pytest.approx(error_auroc(scores, correct))


@pytest.mark.parametrize(
    ("scores", "correct", "words"),
    [
        (torch.zeros(0), torch.zeros(0), r"one or more samples, got shapes \(0,\)"),
        (torch.zeros(2), torch.zeros(3), r"got shapes \(2,\) and \(3,\)"),
        (torch.tensor([torch.nan, 0.0]), torch.zeros(2), "got NaN in 1 of them"),
    ],
)
def test_mistakes(scores, correct, words):
    with pytest.raises(ValueError, match=words):
        aurc(scores, correct)
