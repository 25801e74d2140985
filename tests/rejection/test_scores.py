"""Scores order as their formulas do and figures equal scikit-learn's, on scores full of ties."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from hem import rejection as scores
from hem.rejection import FORMER, KNN, LOGIT_SCORES, METRICS, ODIN, FeatureScore, Mahalanobis, ViM

LOGITS = 3 * torch.randn(200, 7, generator=torch.Generator().manual_seed(0))


def samples(seed):
    """Scores of known and unknown samples; with an odd seed most are tied."""
    random = np.random.default_rng(seed)
    known, unknown = random.normal(size=37 + seed), 0.7 + random.normal(size=53)
    if seed % 2:
        known, unknown = np.round(known), np.round(unknown)
    return torch.from_numpy(known), torch.from_numpy(unknown)


# -- scores --------------------------------------------------------------------------------------------------

REFERENCE = {
    "msp": lambda z: 1 - z.softmax(1).amax(1),
    "max_logit": lambda z: -z.amax(1),
    "energy": lambda z: -z.exp().sum(1).log(),
    "margin": lambda z: z.sort(1).values[:, -2] - z.amax(1),
    "entropy": lambda z: -(z.softmax(1) * z.softmax(1).log()).sum(1),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_score_orders_as_its_formula(name):
    found, expected = LOGIT_SCORES[name](LOGITS), REFERENCE[name](LOGITS.double())
    assert found.shape == (200,)
    assert found.dtype == torch.float32
    if name == "msp":  # log-odds of the formula
        expected = (expected / (1 - expected)).log()
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_less_confident_is_more_unknown(name):
    """The one convention: as the leading logit falls to the others, every score rises."""
    logits = torch.zeros(20, 5)
    logits[:, 2] = torch.linspace(19, 0, 20)
    assert (LOGIT_SCORES[name](logits).diff() > 0).all()


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_no_ties_near_certainty(name):
    """Float32 rounds every probability behind a gap of 17 to 1: the scores still tell them apart."""
    gaps = torch.arange(20.0, 80.0)
    logits = torch.stack([gaps, torch.zeros(60), torch.zeros(60)], 1)
    assert logits.softmax(1).amax(1).unique().numel() == 1
    assert LOGIT_SCORES[name](logits).unique().numel() == 60


@pytest.mark.parametrize("name", LOGIT_SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(name, dtype):
    logits = LOGITS.to(dtype)
    torch.testing.assert_close(LOGIT_SCORES[name](logits), LOGIT_SCORES[name](logits.float()))
    assert LOGIT_SCORES[name](LOGITS.double()).dtype == torch.float64


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_logits_of_minus_infinity_and_nan(name):
    masked = torch.cat([LOGITS, torch.full((200, 1), -torch.inf)], 1)
    torch.testing.assert_close(LOGIT_SCORES[name](masked), LOGIT_SCORES[name](LOGITS))
    assert LOGIT_SCORES[name](torch.tensor([[0.0, torch.nan, 1.0]])).isnan().all()


def test_energy_has_a_temperature():
    torch.testing.assert_close(scores.energy(LOGITS, 2.0), -2 * (LOGITS / 2).exp().sum(1).log())
    with pytest.raises(ValueError, match="above 0, got 0"):
        scores.energy(LOGITS, 0.0)


def test_unknown_name_of_a_score():
    with pytest.raises(
        ValueError, match=r"Unknown rejection score 'max_logits'; did you mean 'max_logit'\? Available: msp"
    ):
        scores.check_score("max_logits")


# -- scores of features --------------------------------------------------------------------------------------


@pytest.fixture
def fitting():
    """Features of three classes around three axes, and a linear head that tells them apart."""
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(300) % 3
    features = (4 * torch.eye(8)[target] + torch.randn(300, 8, generator=generator)).relu()
    head = nn.Linear(8, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(8)[:3])
        head.bias.zero_()
    return features, target, head


@pytest.mark.parametrize("name", [name for name, (kind, _) in FORMER.items() if issubclass(kind, FeatureScore)])
def test_feature_scores_reject_what_is_far(name, fitting):
    features, target, head = fitting
    score = FORMER[name][0]().fit(features, target, head)
    far = features.flip(1) if name != "react" else features / 10
    assert score(features).shape == (300,)
    assert scores.auroc(score(features), score(far)) > 0.9


def test_mahalanobis_is_the_distance(fitting):
    features, target, head = fitting
    means = torch.stack([features[target == c].double().mean(0) for c in range(3)])
    centred = features.double() - means[target]
    precision = torch.linalg.inv(centred.T @ centred + 1e-6 * torch.eye(8).double())
    apart = features.double()[:, None] - means
    expected = 0.5 * torch.einsum("nci,ij,ncj->nc", apart, precision, apart).amin(1)
    before = torch.get_default_dtype()
    torch.testing.assert_close(Mahalanobis().fit(features, target, head)(features).double(), expected)
    assert torch.get_default_dtype() == before


def test_what_cannot_be_fitted(fitting):
    features, target, head = fitting
    with pytest.raises(ValueError, match=r"features of every class, but 1 of 3 have none \(class 2 first\)"):
        Mahalanobis().fit(features[target < 2], target[target < 2], head)
    with pytest.raises(ValueError, match="needs a linear last layer, but this one is Sequential"):
        ViM().fit(features, target, nn.Sequential(head))
    with pytest.raises(ValueError, match="looks at 50 neighbours, but there are 49 training features"):
        KNN().fit(features[:49], target[:49], head)


def test_without_pytorch_ood(fitting, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_ood.detector", None)
    with pytest.raises(ImportError, match=r"pip install 'hem-loss\[ood\]'"):
        KNN().fit(*fitting)


def test_odin_is_its_formula():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double()
    images = torch.rand(6, 1, 4, 4).double()
    with torch.inference_mode():
        found = ODIN(temperature=10.0, eps=0.01)(net, images)
    images = images.clone().requires_grad_()
    (net(images) / 10).log_softmax(1).amax(1).sum().backward()
    moved = images.detach() + 0.01 * images.grad.sign()
    torch.testing.assert_close(found, -(net(moved) / 10).softmax(1).amax(1).detach())
    assert all(parameter.grad is not None for parameter in net.parameters())  # by the line above
    net.zero_grad()
    ODIN()(net, images.detach())
    assert all(parameter.grad is None for parameter in net.parameters())


# -- figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_figures_equal_scikit_learns(seed):
    known, unknown = samples(seed)
    is_unknown = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    score = np.r_[known, unknown]
    fpr, tpr, threshold = sk.roc_curve(is_unknown, score, drop_intermediate=False)
    back = sk.roc_curve(1 - is_unknown, -score, drop_intermediate=False)
    expected = {
        "auroc": sk.roc_auc_score(is_unknown, score),
        "aupr_out": sk.average_precision_score(is_unknown, score),
        "aupr_in": sk.average_precision_score(1 - is_unknown, -score),
        "fpr95_unknown_positive": fpr[tpr >= 0.95][0],
        "fpr95_known_positive": back[0][back[1] >= 0.95][0],
    }
    assert expected.keys() == METRICS.keys()
    for name, value in expected.items():
        assert METRICS[name](known, unknown) == pytest.approx(value, abs=1e-12), name
    curve = scores.roc(known, unknown)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-15)
    np.testing.assert_array_equal(curve.threshold, threshold)


def test_the_two_fpr_are_two():
    known, unknown = torch.arange(100.0), torch.cat([torch.zeros(10), torch.full((90,), 200.0)])
    assert scores.fpr95_unknown_positive(known, unknown) == 1.0  # to reject 95 unknown ones, all must go
    assert scores.fpr95_known_positive(known, unknown) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(4))
def test_oscr_is_its_pairs(seed):
    """The area is the chance that a known sample is right and looks less unknown than an unknown one, ties half."""
    known, unknown = samples(seed)
    correct = torch.rand(len(known), generator=torch.Generator().manual_seed(seed)) < 0.8
    less = (known[:, None] < unknown).double() + 0.5 * (known[:, None] == unknown)
    expected = (correct[:, None] * less).mean().item()
    assert scores.oscr(known, correct, unknown) == pytest.approx(expected, abs=1e-12)
    fpr, ccr = scores.oscr_curve(known, correct, unknown)
    assert (fpr[-1], ccr[-1]) == (1, correct.double().mean())
    for at in (0.0, 1.0):  # a point of the curve by its definition
        point = ((unknown <= at).double().mean(), (correct & (known <= at)).double().mean())
        assert min((fpr - point[0]).abs() + (ccr - point[1]).abs()) < 1e-12
    assert scores.oscr(known, torch.ones_like(correct), unknown) == pytest.approx(scores.auroc(known, unknown))
    assert scores.oscr(known, torch.zeros_like(correct), unknown) == 0


@pytest.mark.parametrize(("n", "keep"), [(100, 0.95), (99, 0.95), (20, 0.95), (7, 0.95), (100, 0.07), (5, 1.0)])
def test_threshold_keeps_the_share_and_no_more(n, keep):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    threshold = scores.accept_threshold(values, keep)
    assert (values <= threshold).double().mean() >= keep - 1e-12
    assert (values < threshold).double().mean() < keep


def test_detection_accuracy_counts_what_is_treated_rightly():
    accepted, rejected = 0.0, 1.0
    values = torch.tensor([accepted, accepted, accepted, rejected, rejected])
    correct = torch.tensor([True, True, False, True, False])
    assert scores.detection_accuracy(values, correct, 0.5) == pytest.approx(3 / 5)
    assert scores.detection_accuracy(values, correct, 0.5, strict=True) == pytest.approx(2 / 5)
    for strict in (False, True):
        assert scores.detection_accuracy(values, False, 0.5, strict=strict) == pytest.approx(2 / 5)


def test_arrays_and_lists_are_taken():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for name, score in LOGIT_SCORES.items():
        for other in (logits.numpy(), logits.tolist()):
            torch.testing.assert_close(score(other), score(logits), msg=name)
    known, unknown = samples(0)
    correct = known < known.median()
    threshold = scores.accept_threshold(known)
    curve = scores.roc(known, unknown)
    for change in (torch.Tensor.numpy, torch.Tensor.tolist):
        one, two, right = change(known), change(unknown), change(correct)
        assert scores.accept_threshold(one) == threshold
        assert scores.auroc(one, two) == scores.auroc(known, unknown)
        assert all(map(torch.equal, scores.roc(one, two), curve))
        assert scores.oscr(one, right, two) == scores.oscr(known, correct, unknown)
        assert scores.detection_accuracy(one, right, 0.5) == scores.detection_accuracy(known, correct, 0.5)


@pytest.mark.parametrize("metric", METRICS.values())
def test_bad_scores_are_refused(metric):
    with pytest.raises(ValueError, match="1 of 2 scores of the known samples are NaN"):
        metric(torch.tensor([0.0, torch.nan]), torch.ones(2))
    with pytest.raises(ValueError, match="as a vector of one or more"):
        metric(torch.ones(0), torch.ones(2))
    with pytest.raises(ValueError, match=r"one or more, got shape \(2, 1\)"):
        metric(torch.ones(2), torch.ones(2, 1))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 95"):
        scores.accept_threshold(torch.ones(3), 95)
    with pytest.raises(ValueError, match=r"one `correct` per known sample, got shapes \(2,\) and \(3,\)"):
        scores.oscr(torch.ones(3), torch.ones(2).bool(), torch.ones(3))
