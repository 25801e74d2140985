"""Temperature and vector scaling: the least likelihood by other means, what has no minimum, and how modules travel."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

import hem
from hem.calibration import MarginScaling, Temperature, VectorScaling, calibrate
from hem.metrics import calibration_error, negative_log_likelihood


def sample(n=2000, classes=6, temperature=0.2, seed=0):
    """Logits whose true probabilities are softmax(z / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator).double()
    target = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)
    return logits, target


def nll(logits, target, temperature):
    return F.cross_entropy(logits / temperature, target).item()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_minimum_by_other_means(scale):
    logits, target = sample()
    found = calibrate(scale * logits, target).temperature.item()
    other = minimize_scalar(lambda u: nll(logits, target, 2.0**u), bounds=(-8, 4), options={"xatol": 1e-10})
    assert found == pytest.approx(scale * 2.0**other.x, rel=1e-6)
    assert found / scale == pytest.approx(0.2, rel=0.05)  # that of the truth


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier of scikit-learn whose inputs are its logits."""

    def __init__(self):
        self.classes_ = torch.arange(6).numpy()  # with the sign of a fitted one

    def fit(self, logits, target):
        return self

    def decision_function(self, logits):
        return logits

    def predict(self, logits):
        return logits.argmax(1)


@pytest.mark.skipif(
    "temperature" not in (CalibratedClassifierCV.__doc__ or ""),
    reason="scikit-learn before 1.8 has no temperature scaling",
)
def test_scikit_learns_probabilities():
    logits, target = sample()
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits()), method="temperature").fit(logits.numpy(), target.numpy())
    ours = calibrate(logits, target)(logits)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.predict_proba(logits.numpy())), rtol=1e-3, atol=1e-4)
    assert (
        nll(logits, target, calibrate(logits, target).temperature.double()) <= log_loss(theirs, logits, target) + 1e-9
    )


def log_loss(classifier, logits, target):
    p = torch.from_numpy(classifier.predict_proba(logits.numpy()))
    return F.nll_loss(p.log(), target).item()


def test_decisions_and_the_order_of_the_largest_logit_stay():
    logits, target = sample()
    scaled = calibrate(logits, target).scaled(logits)
    assert torch.equal(scaled.argsort(1), logits.argsort(1))
    assert torch.equal(scaled.amax(1).argsort(), logits.amax(1).argsort())


def test_samples_of_other_logits_are_calibrated():
    fitted, held = sample(seed=0), sample(seed=1)
    before = calibration_error(*held)
    probabilities = calibrate(*fitted)
    after = calibration_error(probabilities.scaled(held[0]), held[1])
    assert before > 0.2
    assert after < 0.03
    assert negative_log_likelihood(probabilities.scaled(held[0]), held[1]) < negative_log_likelihood(*held)


def test_where_all_are_right_one_error_is_supposed():
    """Without it the likelihood only grows with 1 / T."""
    logits = torch.tensor([[1.0, 0.0]]).repeat(98, 1)
    p = calibrate(logits, torch.zeros(98).long())(logits)
    assert p[0, 0].item() == pytest.approx(99 / 100)  # (N + 1) / (N + 2)
    more = torch.cat([logits, torch.tensor([[1.0, 0.0]])])
    wrong = calibrate(more, torch.tensor([0] * 98 + [1]))(more)
    assert wrong[0, 0].item() == pytest.approx(98 / 99)  # one error that is there: nothing is supposed


def test_of_several_classes_all_right():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(5, (300,), generator=generator)
    logits = F.one_hot(target, 5) * 2.0 + torch.rand(300, 5, generator=generator)
    share = calibrate(logits, target)(logits).amax(1).mean().item()
    assert 0.99 < share < 0.999


@pytest.mark.parametrize("bad", ["shuffled", "constant", "inverted"])
def test_logits_that_tell_nothing(bad):
    logits, target = sample()
    logits = {"shuffled": -logits.roll(1, 0), "constant": torch.zeros_like(logits), "inverted": -logits}[bad]
    if bad == "shuffled":  # on the wrong side of chance
        logits = logits - logits.mean() - F.one_hot(target, 6) * 1e-1
    with pytest.raises(ValueError, match="no temperature makes them probabilities"):
        calibrate(logits, target)


def test_pixels_and_what_has_no_label():
    logits, target = sample(600)
    maps, labels = logits.reshape(3, 20, 10, 6).movedim(-1, 1), target.reshape(3, 20, 10).clone()
    labels[0] = 255
    found = calibrate(maps, labels, ignore_index=255)
    assert found.temperature.item() == pytest.approx(calibrate(logits[200:], target[200:]).temperature.item())
    assert found(maps).shape == maps.shape
    torch.testing.assert_close(found(maps).sum(1), torch.ones(3, 20, 10).double())
    assert found(logits[0]).sum().item() == pytest.approx(1)


def test_weights_are_repeats():
    logits, target = sample()
    weight = torch.tensor([1, 2, 3, 1, 0, 5])
    repeated = weight[target]
    several = calibrate(logits.repeat_interleave(repeated, 0), target.repeat_interleave(repeated))
    one = calibrate(logits, target, weight=weight.tolist())
    assert one.temperature.item() == pytest.approx(several.temperature.item(), rel=1e-6)


def test_classes_that_a_sample_cannot_have():
    logits, target = sample()
    wide = torch.full((2000, 9), -torch.inf, dtype=torch.float64)
    wide[:, [0, 2, 3, 5, 7, 8]] = logits
    found = calibrate(wide, torch.tensor([0, 2, 3, 5, 7, 8])[target])
    assert found.temperature.item() == pytest.approx(calibrate(logits, target).temperature.item(), rel=1e-6)
    assert found(wide)[:, 1].abs().max() == 0


def test_order_and_precision_of_the_samples_do_not_matter():
    logits, target = sample(seed=3)
    logits = logits.float()
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    one, other = calibrate(logits, target), calibrate(logits[order], target[order])
    assert one.temperature.item() == pytest.approx(other.temperature.item(), rel=1e-6)
    half = calibrate(logits.bfloat16(), target)
    assert half.temperature.item() == pytest.approx(one.temperature.item(), rel=1e-2)


@pytest.mark.parametrize("method", ["temperature", "margin", "vector"])
def test_arrays_and_lists_are_taken(method):
    logits, target = sample(200)
    expected = calibrate(logits, target, method)(logits)
    for change in (torch.Tensor.numpy, torch.Tensor.tolist):
        found = calibrate(change(logits), change(target), method)
        torch.testing.assert_close(found(change(logits)).double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match=r"Expected logits in floating point, got torch\.int64"):
        calibrate([[1, 0], [0, 1]], [0, 1])


def test_vector_scaling_mends_what_one_number_cannot():
    """One class's logits are too large: against a minimum by Newton's method of torch, and of other samples."""
    true, target = sample(4000)
    bent = true.clone()
    bent[:, 0] = 2 * true[:, 0] + 0.5
    one, several = calibrate(bent, target), calibrate(bent, target, "vector")
    held, label = sample(4000, seed=1)
    held[:, 0] = 2 * held[:, 0] + 0.5
    gain = negative_log_likelihood(one.scaled(held), label) - negative_log_likelihood(several.scaled(held), label)
    assert gain > 0.02
    assert several.weight[0].item() == pytest.approx(several.weight[1:].mean().item() / 2, rel=0.1)
    assert several.bias.sum().item() == pytest.approx(0, abs=1e-5)

    free = torch.cat([several.weight.double(), several.bias.double()]).requires_grad_()
    F.cross_entropy(bent * free[:6] + free[6:], target).backward()
    assert free.grad.abs().max() < 2e-3  # at the minimum, up to the prior worth one sample


def test_margin_scaling_mends_what_one_number_cannot():
    """The margin of the largest logit is longer than the rivals' distances say; no decision changes."""
    true, target = sample(4000)
    bent = MarginScaling(1.0, 0.5).scaled(true)
    one, two = calibrate(bent, target), calibrate(bent, target, "margin")
    assert two.temperature.item() == pytest.approx(0.2, rel=0.1)
    assert two.margin_temperature.item() == pytest.approx(0.4, rel=0.1)
    held, label = sample(4000, seed=1)
    bent = MarginScaling(1.0, 0.5).scaled(held)
    gain = negative_log_likelihood(one.scaled(bent), label) - negative_log_likelihood(two.scaled(bent), label)
    assert gain > 0.005
    assert torch.equal(two.scaled(bent).argsort(1), held.argsort(1))


def test_margin_scaling_by_loops():
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    found = MarginScaling(0.5, 2.0).scaled(logits)
    for n in range(5):
        for d in range(3):
            ordered = sorted(logits[n, :, d].tolist(), reverse=True)
            for c in range(4):
                z = logits[n, c, d].item()
                expected = ordered[1] / 0.5 + (z - ordered[1]) / 2 if z == ordered[0] else z / 0.5
                assert found[n, c, d].item() == pytest.approx(expected)
    torch.testing.assert_close(MarginScaling(0.5, 0.5)(logits), Temperature(0.5)(logits))


def test_margin_scaling_where_one_temperature_is_right_and_where_all_are():
    logits, target = sample(4000)
    wide = torch.cat([logits, torch.full((4000, 2), -torch.inf)], 1)
    for z in (logits, wide):
        found = calibrate(z, target, "margin")
        assert found.margin_temperature.item() == pytest.approx(found.temperature.item(), rel=0.1)
        assert found(z).isfinite().all()
    right = calibrate(logits, logits.argmax(1), "margin")
    assert 0 < right.margin_temperature.item() < 0.2
    assert torch.equal(right.scaled(logits).argmax(1), logits.argmax(1))


def test_vector_scaling_of_a_class_without_samples_is_finite():
    logits, target = sample(500)
    kept = target != 2
    found = calibrate(logits[kept], target[kept], "vector")
    assert found.weight.isfinite().all()
    assert found.bias.abs().max() < 20
    assert found(logits)[:, 2].mean() < calibrate(logits[kept], target[kept])(logits)[:, 2].mean() / 2


@pytest.mark.parametrize(
    "module", [Temperature(0.25), MarginScaling(0.25, 0.5), VectorScaling([1.0, 2.0, 3.0], [0.0, 0.5, 0.0])]
)
def test_modules_travel(module):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = module(logits)
    assert torch.equal(pickle.loads(pickle.dumps(module))(logits), expected)
    assert torch.equal(copy.deepcopy(module)(logits), expected)
    other = VectorScaling(torch.ones(3), torch.zeros(3)) if isinstance(module, VectorScaling) else type(module)()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(logits), expected)
    exported = torch.export.export(module, (logits,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(logits[:2]), expected[:2])
    assert module(logits.bfloat16()).dtype == torch.float32
    assert list(module.parameters()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "isotonic"}, "Expected method as one of temperature, margin, vector, got 'isotonic'"),
        ({"weight": [1.0, 1.0]}, r"for each of 6 classes, got shape \(2,\)"),
        ({"weight": [1.0, 1, 1, 1, 1, -1]}, "the least of them -1"),
        ({"weight": [0.0] * 6}, "got 0 for the class of each"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(ValueError, match=words):
        calibrate(*sample(), **arguments)


def test_mistakes_of_samples():
    logits, target = sample(10)
    with pytest.raises(ValueError, match="Expected labelled samples to calibrate with, got none"):
        calibrate(logits, torch.full_like(target, -100))
    for method, at, value in (("vector", (target[3] + 1) % 6, -torch.inf), ("temperature", target[3], -torch.inf),
                              ("temperature", 0, torch.inf)):  # fmt: skip
        wrong = logits.clone()
        wrong[3, at] = value
        with pytest.raises(ValueError, match="got infinite ones in 1 samples"):
            calibrate(wrong, target, method)
    with pytest.raises(ValueError, match="Expected a temperature above 0, got 0"):
        Temperature(0)


def test_from_the_package():
    """Without Lightning: tests of the rooms look at it."""
    logits, target = sample()
    assert torch.equal(hem.calibrate(logits, target)(logits), calibrate(logits, target)(logits))
