"""Attacks reach the optimum where it is known, stay in their ball, and leave the network as it was."""

import builtins
import sys
from functools import partial

import pytest
import torch
from torch import nn

from hem.attacks import (
    OBJECTIVES,
    attacking,
    autoattack,
    check_eps,
    dlr,
    loss_objective,
    margin,
    mifpe,
    objective_of,
    pgd,
    project,
    random_start,
    square,
    zero_gradients,
)
from hem.checks import check_pixels
from hem.losses import LOSSES, HEMLoss


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def two_classes(weight):
    """A linear network whose margin z_1 - z_0 has the gradient ``weight``."""
    return lambda x: torch.stack((torch.zeros(len(x)), x.flatten(1) @ weight), 1)


def tiny_net(classes=5, size=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * (size - 2) ** 2, classes)
        return nn.Sequential(*layers)


def labelled(net, n=24, size=6, seed=0):
    """Random images with the labels that the network gives them."""
    input = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    with attacking(net), torch.no_grad():
        return input, net(input).argmax(1)


# -- objectives


def test_objectives_by_hand():
    logits, target = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.0, 5.0, 4.0, 1.0]]), torch.tensor([0, 2])
    assert margin(logits, target).tolist() == [-1.0, 1.0]
    assert dlr(logits, target).tolist() == pytest.approx([-1 / 2, 1 / 4])
    # the gaps are 1 and 1: with T = 2 the logits are doubled
    torch.testing.assert_close(mifpe(logits, target, 2.0), nn.CrossEntropyLoss(reduction="none")(2 * logits, target))


@pytest.mark.parametrize("name", ["dlr", "mifpe"])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scale_of_logits_does_not_matter(name, factor, generator):
    logits = torch.randn(8, 6, generator=generator)
    target = torch.arange(8) % 6
    torch.testing.assert_close(OBJECTIVES[name](factor * logits, target), OBJECTIVES[name](logits, target))


@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e30])
def test_mifpe_is_finite(gap):
    logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(mifpe(logits, torch.tensor([0])).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 0] < 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "dice"])
def test_every_loss_is_an_objective_of_samples(name, generator):
    counts = (
        {"class_counts": [9, 5, 3, 2]}
        if name in ("hem_plus", "logit_adjusted", "ldam", "class_balanced", "balanced_softmax")
        else {}
    )
    criterion = LOSSES[name](**counts)
    logits, target = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    objective = loss_objective(criterion)
    values = objective(logits, target)
    assert values.shape == (6,)
    changed = logits.clone()
    changed[0] = torch.tensor([-3.0, 2.0, 0.0, 1.0])
    others = objective(changed, target)
    assert others[0] != values[0]
    assert torch.equal(others[1:], values[1:])
    assert criterion.reduction == "mean"


def test_dice_as_an_objective_is_the_loss_of_the_batch(generator):
    logits, target = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    criterion = LOSSES["dice"]()
    torch.testing.assert_close(loss_objective(criterion)(logits, target).sum(), criterion(logits, target))


def test_dlr_needs_four_classes():
    with pytest.raises(ValueError, match="needs 4 classes, got 3: use the objective 'margin'"):
        dlr(torch.zeros(1, 3), torch.tensor([0]))


# -- the ball


@pytest.mark.parametrize("eps", [0.1, 1.0, 3.0, 20.0])
def test_projection_is_the_nearest_point(eps, generator):
    """Against the definition: no allowed point is nearer; ⟨point - p, q - p⟩ <= 0 for all allowed q."""
    center = torch.rand(16, 50, generator=generator)
    point = center + 2 * torch.randn(16, 50, generator=generator)
    nearest = project(point, center, eps, "l2")
    assert ((nearest - center).norm(dim=1) <= eps * (1 + 1e-5)).all()
    for _ in range(20):
        other = torch.rand(16, 50, generator=generator)
        away = other - center
        other = center + away * (eps / away.norm(dim=1, keepdim=True)).clamp_max(1)
        assert (((point - nearest) * (other - nearest)).sum(1) <= 1e-3).all()
    torch.testing.assert_close(project(nearest, center, eps, "l2"), nearest, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["margin", "mifpe"])
@pytest.mark.parametrize("eps", [0.05, 0.5])
def test_attacks_stay_within_eps_and_the_pixels(norm, objective, eps):
    net = tiny_net()
    input, target = labelled(net)
    found = pgd(net, input, target, eps, norm=norm, objective=objective, steps=7, early_stop=False)
    length = (found - input).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    assert length.max() <= eps + 1e-6
    assert length.min() > 0.5 * eps
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("eps", "norm", "message"),
    [
        (8, "linf", "Expected an L-inf eps in .0, 1., as pixels are, got 8: for 8/255 write 0.03137"),
        (-0.1, "linf", "got -0.1"),
        (float("nan"), "linf", "got nan"),
        (7, "l2", r"Expected an L2 eps in \[0, 6\]"),
        (0.1, "l1", "Expected the norm 'linf' or 'l2', got 'l1'"),
    ],
)
def test_eps_is_in_pixels(eps, norm, message):
    with pytest.raises(ValueError, match=message):
        pgd(tiny_net(), torch.rand(1, 1, 6, 6), torch.tensor([0]), eps, norm=norm)
    with pytest.raises(ValueError, match=message):
        check_eps(eps, norm, 36)


# -- PGD


@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_linear_network_linf(eps, generator):
    """The optimum of ⟨w, δ⟩ in L-inf: every coordinate goes eps in the direction of its weight, or to the wall."""
    weight, input = torch.randn(30, generator=generator), torch.rand(8, 30, generator=generator)
    found = pgd(two_classes(weight), input, torch.zeros(8, dtype=torch.long), eps, early_stop=False)
    torch.testing.assert_close(found, (input + eps * weight.sign()).clamp(0, 1))


@pytest.mark.parametrize("eps", [0.05, 1.5])
@pytest.mark.parametrize("objective", ["margin", "mifpe"])
def test_linear_network_l2(eps, objective, generator):
    """The optimum in L2 and the box: clamp(c w) with the c that makes its length eps, found here by bisection."""
    weight, input = torch.randn(30, generator=generator), torch.rand(8, 30, generator=generator)
    low, high = torch.zeros(8, 1), torch.full((8, 1), 100.0)
    for _ in range(60):
        middle = (low + high) / 2
        short = ((input + middle * weight).clamp(0, 1) - input).norm(dim=1, keepdim=True) < eps
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    best = ((input + low * weight).clamp(0, 1) - input) @ weight
    found = pgd(
        two_classes(weight), input, torch.zeros(8, dtype=torch.long), eps,
        norm="l2", objective=objective, steps=100, schedule="linear", early_stop=False,
    )  # fmt: skip
    torch.testing.assert_close((found - input) @ weight, best, rtol=2e-4, atol=0)


def test_margin_breaks_what_the_loss_cannot_see(generator):
    """HEM with every margin met has no gradient: the attack on it finds nothing, the attack on the margin all."""
    weight = torch.randn(30, generator=generator)
    weight /= weight.abs().sum()
    input = 0.4 + 0.2 * torch.rand(16, 30, generator=generator)
    middle = (input @ weight).median()
    target = (input @ weight > middle).long()

    def net(x):
        score = 1000 * (x @ weight - middle)
        return torch.stack((-score, score), 1)

    loss = HEMLoss(margin=1e-3)
    input, target = (each[net(input)[:, 0].abs() > 1] for each in (input, target))
    assert len(target) >= 8
    assert zero_gradients(net, input, target, loss).all()
    assert not zero_gradients(net, input, target, "margin").any()

    # from the image itself, for a random start might cross the border by chance
    broken = {}
    for objective in (loss, "margin"):
        found = pgd(net, input, target, 0.15, objective=objective, start=input, steps=40)
        broken[objective] = (net(found).argmax(1) != target).float().mean()
    assert broken[loss] == 0
    assert broken["margin"] == 1


def test_small_and_large_logits():
    """Saturated softmax hides the gradient of cross-entropy; MIFPE, DLR and the margin do not care."""
    net = tiny_net()
    input, target = labelled(net, 64)
    huge = nn.Sequential(net, Scale(1e4))
    left = {}
    for name in OBJECTIVES:
        found = pgd(huge, input, target, 0.1, objective=name, start=input, steps=20)
        with attacking(net):
            left[name] = (net(found).argmax(1) == target).float().mean().item()
    assert left["ce"] > 0.9
    assert max(left["margin"], left["dlr"], left["mifpe"]) < 0.5


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return self.factor * logits


def test_more_is_never_weaker():
    """Worst over restarts: a broken sample stays broken, so more restarts can only break more."""
    net = tiny_net()
    input, target = labelled(net, 48)
    held = []
    for restarts in (1, 2, 5):
        found = pgd(net, input, target, 0.15, steps=2, restarts=restarts)
        with attacking(net):
            held.append(net(found).argmax(1) == target)
    assert not (held[1] & ~held[0]).any()
    assert not (held[2] & ~held[1]).any()
    assert 0 < held[2].sum() < held[0].sum() < 48


def test_where_the_objective_is_flat_no_step_is_taken():
    """The images stay at their random starts, as they would after all steps; the others are attacked as ever."""
    weight, calls = torch.randn(36, 5, generator=torch.Generator().manual_seed(2)), []

    def net(x):
        return x.flatten(1) @ weight

    def counting(x):
        calls.append(len(x))
        return net(x)

    def half_flat(logits, target):  # nothing to climb for class 4
        return margin(logits, target) * (target != 4)

    input = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    target = net(input).argmax(1)
    found = pgd(counting, input, target, 0.05, steps=10, restarts=2, objective=half_flat)
    flat = target == 4
    assert 0 < flat.sum() < 32
    assert max(calls[2:12]) <= 32 - flat.sum(), "after the first step only the others take part"
    alone = pgd(net, input, target, 0.05, steps=10, restarts=2, objective=margin)
    torch.testing.assert_close(found[~flat], alone[~flat])
    starts = pgd(net, input, target, 0.05, steps=10, restarts=2, objective=half_flat, early_stop=False)
    kept = flat & (net(found).argmax(1) == target)  # a random point may itself be misclassified, and ends the search
    assert kept.sum() > 5
    torch.testing.assert_close(found[kept], starts[kept])


def test_what_is_misclassified_already_is_left_alone():
    net = tiny_net()
    input, target = labelled(net)
    target = (target + 1) % 5
    assert torch.equal(pgd(net, input, target, 0.1), input)


def test_eps_zero_changes_nothing():
    net = tiny_net()
    input, target = labelled(net)
    for norm in ("linf", "l2"):
        assert torch.equal(pgd(net, input, target, 0, norm=norm, early_stop=False), input)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_image_starts_where_its_own_number_says(norm):
    """However images are put into batches, and whichever others are broken before the restart."""
    net = tiny_net()
    input, target = labelled(net)
    numbers = torch.arange(len(input)) * 7
    options = {"steps": 3, "restarts": 2, "norm": norm}
    whole = pgd(net, input, target, 0.02, seed=numbers, **options)
    order = torch.randperm(len(input))
    for some in order.split(5):
        assert torch.equal(pgd(net, input[some], target[some], 0.02, seed=numbers[some], **options), whole[some])
    assert not torch.equal(pgd(net, input, target, 0.02, seed=numbers + 1, **options), whole)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_fill_the_ball_evenly(norm):
    """A step of length 0: coordinates of a uniform ball have known second moments, eps²/3 and eps²/(d + 2)."""
    center = torch.full((4000, 1, 3, 3), 0.5, dtype=torch.float64)
    start = random_start(center, 0.2, norm, torch.arange(4000))
    moved = (start - center).flatten(1)
    assert (moved.abs().max() if norm == "linf" else moved.norm(dim=1).max()) <= 0.2 + 1e-6
    moment = 0.2**2 / (3 if norm == "linf" else 11)
    torch.testing.assert_close(moved.square().mean().item(), moment, rtol=0.03, atol=0)
    assert moved.mean(0).abs().max() < 5 * (moment / 4000) ** 0.5
    assert torch.corrcoef(moved.T).fill_diagonal_(0).abs().max() < 0.08


def test_a_function_of_the_seed_alone():
    net = tiny_net()
    input, target = labelled(net)
    options = {"steps": 3, "early_stop": False}
    first = pgd(net, input, target, 0.1, seed=1, **options)
    state = torch.random.get_rng_state()
    torch.rand(7)
    assert torch.equal(pgd(net, input, target, 0.1, seed=1, **options), first)
    assert not torch.equal(pgd(net, input, target, 0.1, seed=2, **options), first)
    torch.random.set_rng_state(state)
    pgd(net, input, target, 0.1, **options)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_network_stays_as_it_was():
    """Gradients, BatchNorm statistics and modes, also of a network that is half in training mode."""
    net = tiny_net()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    input, target = labelled(net, 6)
    pgd(net, input, target, 0.1, steps=2)
    square(net, input, target, 0.1, queries=5)
    autoattack(net, input[:2], target[:2], 0.2, num_classes=5)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert [None if p.grad is None else p.grad.unique().tolist() for p in net.parameters()] == [None] * 4 + [
        [1.0],
        None,
    ]


def test_inside_inference_mode():
    net = tiny_net()
    input, target = labelled(net)
    with torch.inference_mode():
        inside = pgd(net, input.clone(), target.clone(), 0.1, steps=3)
        blind = zero_gradients(net, input.clone(), target.clone(), "ce")
    assert torch.equal(inside, pgd(net, input, target, 0.1, steps=3))
    assert not blind.any()


def test_nan_gradients_do_not_count_as_success():
    class Broken(nn.Module):
        def forward(self, x):
            logits = torch.stack((x.sum((1, 2, 3)), torch.zeros(len(x))), 1)
            return logits + 0 * (x - x).sum((1, 2, 3)).abs().sqrt()[:, None]  # the root's slope at 0: 0 · inf

    input = torch.rand(4, 1, 3, 3) + 0.1
    input = input.clamp(0, 1)
    found = pgd(Broken(), input, torch.zeros(4, dtype=torch.long), 0.01, steps=3)
    assert found.isfinite().all()


def test_unknown_objective():
    with pytest.raises(ValueError, match=r"Unknown objective 'cw'\. Available: ce, margin, dlr, mifpe"):
        objective_of("cw")


def test_counts():
    with pytest.raises(ValueError, match="Expected at least 1 step and 1 restart, got 0 and 1"):
        pgd(tiny_net(), torch.rand(1, 1, 6, 6), torch.tensor([0]), 0.1, steps=0)


# -- AutoAttack


class Rounding(nn.Module):
    """Pixels of two values; the gradient of rounding is zero."""

    def forward(self, input):
        return input.round()


@pytest.mark.parametrize(("norm", "eps", "left"), [("linf", 0.1, 2), ("l2", 3.0, 0)])
def test_autoattack_equals_a_direct_call(norm, eps, left):
    """Square's 5,000 queries for what is left take most of the time, so few images and one case with survivors."""
    import pyautoattack

    net = tiny_net(classes=4).eval()
    input, target = labelled(net, 6)
    target[0] = (target[0] + 1) % 4  # one is wrong from the start
    found = autoattack(net, input, target, eps, norm=norm, num_classes=4, seed=3, batch_size=4)
    direct = pyautoattack.AutoAttack(net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=3)
    direct.apgd_targeted.n_target_classes = direct.fab.n_target_classes = 3
    points, labels = direct.run_standard_evaluation(input, target, batch_size=4)
    assert torch.equal(found.input, points)
    assert torch.equal(found.robust["square"], labels == target)
    assert list(found.robust) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.robust["square"].sum() == left


def test_autoattack_tells_that_square_breaks_what_others_do_not(caplog):
    """A network that rounds its input has no gradient; the library compares Square with the attacks before it."""
    import pyautoattack

    net = tiny_net(classes=4).eval()
    rounded = nn.Sequential(Rounding(), net)
    input, target = labelled(rounded, 6)
    found = autoattack(rounded, input, target, 0.3, num_classes=4, seed=3)
    direct = pyautoattack.AutoAttack(rounded, norm="Linf", eps=0.3, seed=3)
    direct.apgd_targeted.n_target_classes = direct.fab.n_target_classes = 3
    caplog.clear()
    direct.run_standard_evaluation(input, target)
    said = [record.getMessage() for record in caplog.records if record.funcName == "check_square_sr"]
    assert [flag for flag in found.flags if flag.startswith("Square Attack has decreased")] == said
    assert said


def test_autoattack_keeps_the_generators():
    net = tiny_net(classes=4)
    input, target = labelled(net, 2)
    state, tracer = torch.random.get_rng_state(), sys.gettrace()
    autoattack(net, input, target, 0.3, num_classes=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.gettrace() is tracer


def test_autoattack_needs_four_classes():
    with pytest.raises(ValueError, match="needs 4 classes, got 3: use pgd"):
        autoattack(tiny_net(3), torch.rand(1, 1, 6, 6), torch.tensor([0]), 0.1, num_classes=3)


def test_autoattack_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyautoattack"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'hem-loss\[attack\]'"):
        square(tiny_net(), torch.rand(1, 1, 6, 6), torch.tensor([0]), 0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_breaks_and_stays_within_eps(norm):
    net = tiny_net()
    input, target = labelled(net)
    eps = 0.4 if norm == "linf" else 1.5
    found = square(net, input, target, eps, norm=norm, queries=200)
    length = (found - input).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    assert length.max() <= eps + 1e-5
    with attacking(net):
        assert (net(found).argmax(1) == target).float().mean() < 0.5


@pytest.mark.parametrize("attack", [pgd, square, partial(autoattack, num_classes=4)])
def test_pixels_outside_the_box_are_refused(attack):
    """As a wrong eps is: bytes that were not divided, normalised images, NaN."""
    for images, sentence in (
        (255 * torch.rand(2, 1, 6, 6), "divide bytes by 255"),
        (4 * torch.rand(2, 1, 6, 6) - 2, "leave normalisation to the network"),
        (torch.full((2, 1, 6, 6), torch.nan), "got nan"),
    ):
        with pytest.raises(ValueError, match=rf"Expected pixels in \[0, 1\].*{sentence}"):
            attack(tiny_net(), images, torch.tensor([0, 1]), 0.1)
    with pytest.raises(TypeError, match=r"Expected floating-point images in \[0, 1\], got torch.uint8"):
        attack(tiny_net(), torch.zeros(2, 1, 6, 6).byte(), torch.tensor([0, 1]), 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=rf"Expected images of single precision to attack, got {dtype}"):
            attack(tiny_net().to(dtype), torch.zeros(2, 1, 6, 6, dtype=dtype), torch.tensor([0, 1]), 0.1)


def test_pixels_are_not_looked_at_while_torch_traces():
    def looked_at(images):
        check_pixels(images)
        return images + 1

    outside = torch.full((2, 2), 7.0)
    assert torch.equal(torch.func.vmap(looked_at)(outside), outside + 1)
    assert torch.export.export(torch.nn.Identity(), (outside,)) is not None
    check_pixels(torch.full((2, 2), 1.0005).bfloat16())
    check_pixels(torch.empty(0))
