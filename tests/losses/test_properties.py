"""Properties that single losses have by their formulas, and torch's transformations of all of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hem.losses import LOSSES, HEMLoss, functional, margin
from hem.losses.functional import hem_loss, hem_plus_loss
from tests.losses.reference import own_arguments

C = 6  # more than 4: class probabilities then take the margin losses' way of one sort
every_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch.compiler.reset()


def batch(*shape: int, soft: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(C, shape[:1] + shape[2:], generator=generator)
    if soft:
        return logits, torch.randn(shape, generator=generator).softmax(1)
    target.view(-1)[0] = -100
    return logits, target


def build(name: str) -> nn.Module:
    return LOSSES[name](**own_arguments(name, C))


def gradient(loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, target).sum(), logits)[0]


# HEM


def test_hems_gradient_does_not_depend_on_the_size_of_errors_or_of_c():
    """For every active sample Σ_j |∂l/∂z_j| = 2: 1 is pushed down on the kept classes, 1 up on the target."""
    for num_classes in (2, 10, 1000):
        logits = torch.randn(64, num_classes, generator=torch.Generator().manual_seed(0)) * 5
        target = torch.arange(64) % num_classes
        losses = hem_loss(logits, target, reduction="none")
        slope = gradient(HEMLoss(reduction="sum"), logits, target)
        active = losses > 0
        assert active.any()
        torch.testing.assert_close(slope.abs().sum(1), 2.0 * active)
        torch.testing.assert_close(slope.gather(1, target[:, None])[:, 0], -1.0 * active)


def test_only_the_margin_over_the_scale_matters():
    logits, target = batch(16, C)
    scaled = hem_loss(8 * logits, target, margin=8 * 0.5)
    torch.testing.assert_close(scaled, 8 * hem_loss(logits, target, margin=0.5))


def test_kept_errors_are_the_high_ones():
    """HEM's loss per sample lies between the mean and the largest of the positive errors."""
    logits, target = batch(200, C)
    target[0] = 0
    error = (logits - logits.gather(1, target[:, None]) + 0.5).relu().scatter(1, target[:, None], 0.0)
    losses = hem_loss(logits, target, reduction="none")
    assert (losses <= error.amax(1) + 1e-6).all()
    assert (losses >= error.sum(1) / (error > 0).sum(1).clamp(min=1) - 1e-6).all()


def test_hem_grows_with_the_margin():
    logits, target = batch(50, C)
    losses = torch.stack([hem_loss(logits, target, margin=m, reduction="sum") for m in (0.0, 0.2, 0.5, 1, 5)])
    assert (losses.diff() > 0).all()


def test_hem_plus_is_hem_where_classes_are_equally_large():
    logits, target = batch(30, C, 2)
    for competitor in (False, True):
        plus = hem_plus_loss(logits, target, class_counts=[500] * C, competitor=competitor)
        torch.testing.assert_close(plus, hem_loss(logits, target, margin=math.sqrt(2000 / (C * 500))))


def test_one_class_has_no_competitor():
    assert hem_loss(torch.randn(5, 1), torch.zeros(5, dtype=torch.long)) == 0


def test_infinite_logits_of_masked_classes():
    """A class that a model rules out with -inf costs nothing and gets no gradient, unless it is the label."""
    logits, target = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0])
    assert hem_loss(logits, target) == 0.5
    assert gradient(HEMLoss(), logits, target).tolist() == [[-1.0, 1.0, 0.0]]
    assert hem_loss(logits, torch.tensor([2])) == torch.inf


def test_counts_survive_half_precision():
    """As floats, which a sum of one-hot labels gives, they would overflow: their margins would become 0."""
    logits, target = batch(4, C)
    counts = torch.tensor([1e5, 2e5, 50.0, 10.0, 20.0, 30.0])
    loss = LOSSES["hem_plus"](class_counts=counts)
    assert loss.half()(logits, target) == LOSSES["hem_plus"](class_counts=counts.long())(logits, target)


def test_one_vs_rest_of_a_class_masked_by_minus_infinity():
    """log(1 + e^-inf) is 0, and so is what a share of 0 makes of an infinite cost."""
    logits, target = torch.tensor([[1.0, 2.0, -torch.inf, 0.0]]), torch.tensor([0])
    loss = LOSSES["one_vs_rest"]()
    assert loss(logits, target) == loss(logits[:, [0, 1, 3]], target)
    assert gradient(loss, logits, target)[0, 2] == 0
    assert gradient(loss, logits, target).isfinite().all()


def test_probabilities_cost_as_many_evaluations_as_a_sample_has_classes(monkeypatch):
    """Mixed samples have two, and a thousand classes must not make it a thousand."""
    calls = 0
    plain = margin._margin_errors

    def counted(*arguments, **own):
        nonlocal calls
        calls += 1
        return plain(*arguments, **own)

    monkeypatch.setattr(margin, "_margin_errors", counted)
    labels = torch.randint(1000, (8, 2), generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(labels, 1000).double()
    functional.hem_plus_loss(  # float64 and the competitor's margin: always the plain formula
        torch.randn(8, 1000).double(), one_hot.mean(1), class_counts=[1] * 1000, competitor=True
    )
    assert calls == 2


# The others


def test_softmax_of_a_far_better_class_keeps_its_precision():
    """-log p = e^-20 and (1 - p) = e^-20: nothing is rounded to 0 on the way."""
    logits, target = torch.tensor([[20.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    tiny = torch.tensor(-20.0, dtype=torch.float64).exp()
    torch.testing.assert_close(functional.focal_loss(logits, target, gamma=1.0), tiny**2, rtol=1e-6, atol=0)
    ovr = functional.one_vs_rest_loss(torch.tensor([[1e4, 1.0]]), target)
    torch.testing.assert_close(ovr, F.softplus(torch.tensor(1.0)))
    ovr = functional.one_vs_rest_loss(torch.tensor([[0.0, 21.0]], dtype=torch.float64), target)
    assert ovr.item() == pytest.approx(math.log(2) + math.log1p(math.exp(21)), rel=1e-14)


def test_focal_has_a_gradient_at_certainty():
    logits = torch.tensor([[200.0, 0.0]])
    for gamma in (0.0, 0.5, 1.0, 2.0):
        loss = LOSSES["focal"](gamma=gamma)
        for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0]])):
            assert gradient(loss, logits, target).isfinite().all()


def test_logit_norm_of_logits_whose_squares_overflow():
    logits, target = batch(6, C)
    logits = logits.double()
    for soft in (target, F.one_hot(target.clamp(min=0), C).double()):
        near, far = (functional.logit_norm_loss(size * logits, soft) for size in (1e3, 1e306))
        torch.testing.assert_close(far, near)


def test_dice_is_zero_for_perfect_regions_and_one_for_wrong_ones():
    target = torch.tensor([0, 1, 2, 3])
    right = 1e3 * F.one_hot(target).float()
    assert functional.dice_loss(right, target) == 0
    assert functional.dice_loss(right, target.roll(1)) == 1


def test_ldam_lowers_the_rarest_class_by_max_m():
    logits, target = torch.tensor([[0.5, 0.0], [0.0, 0.25]], dtype=torch.float64), torch.tensor([0, 1])
    expected = F.cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.float64), target)
    # n_j^(-1/4) is 1 for one sample and 1/2 for sixteen
    torch.testing.assert_close(functional.ldam_loss(logits, target, class_counts=[1, 16]), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_ldam_keeps_its_margin_whatever_the_logits_have_in_common(soft):
    logits, target = torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.0, 0.25]]), torch.tensor([1, 2])
    target = F.one_hot(target, 3).float() if soft else target
    near, far = (functional.ldam_loss(logits + offset, target, class_counts=[9, 4, 1]) for offset in (0.0, 1e6))
    assert near > 10
    torch.testing.assert_close(far, near)


# torch's transformations


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_vmap_of_grad(name, soft):
    """Gradients of several batches at once, and of the samples of one batch."""
    loss = build(name)
    logits, target = batch(6, C, soft=soft)
    stacks = torch.stack((logits, logits.roll(1, 0))), torch.stack((target, target))
    slopes = torch.func.vmap(torch.func.grad(loss))(*stacks)
    expected = torch.stack([gradient(loss, *pair) for pair in zip(*stacks, strict=True)])
    torch.testing.assert_close(slopes, expected)
    logits, target = logits[1:], target[1:]
    slopes = torch.func.vmap(torch.func.grad(loss))(logits, target)
    expected = torch.stack([gradient(loss, *pair) for pair in zip(logits, target, strict=True)])
    torch.testing.assert_close(slopes, expected)


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_compiles_without_a_graph_break(name, soft):
    loss = build(name)
    logits, target = batch(6, C, 3, soft=soft)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager" if name == "hem" else "eager")
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
    torch.testing.assert_close(gradient(compiled, logits, target), gradient(loss, logits, target))


@pytest.mark.parametrize("name", [name for name in LOSSES if own_arguments(name, C)])
def test_functions_compile_with_counts_in_a_list(name):
    function, own = getattr(functional, f"{name}_loss"), own_arguments(name, C)
    logits, target = batch(6, C)
    compiled = torch.compile(lambda z, y: function(z, y, **own), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, target), function(logits, target, **own))


@pytest.mark.parametrize("name", ["hem", "hem_plus", "multi_margin"])
def test_the_graph_of_probabilities_does_not_grow_with_the_classes(name):
    """One sort, not a pass for each class: for a thousand of them the compiler would never end."""
    nodes = {}
    for num_classes in (8, 800):
        loss = LOSSES[name](**own_arguments(name, num_classes))
        graph = make_fx(loss)(torch.randn(2, num_classes), torch.ones(2, num_classes) / num_classes)
        nodes[num_classes] = len(graph.graph.nodes)
    assert nodes[8] == nodes[800]


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_traces_with_make_fx_and_with_fake_tensors(name, soft):
    """What sharding planners and compilers do: no value may be looked at."""
    loss = build(name)
    logits, target = batch(6, C, soft=soft)
    traced = make_fx(lambda z: gradient(loss, z, target))(logits)
    torch.testing.assert_close(traced(logits), gradient(loss, logits, target))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(logits).requires_grad_()
        result = loss(fake, mode.from_tensor(target))
        result.sum().backward()
    assert (result.shape, fake.grad.shape) == (loss(logits, target).shape, logits.shape)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward derivatives use it
@every_loss
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch does so for its own losses, too
def test_linearizes(name):
    loss = build(name)
    logits, target = batch(6, C)
    direction = torch.randn(6, C, generator=torch.Generator().manual_seed(1))
    value, slope = torch.func.linearize(lambda z: loss(z, target), logits)
    torch.testing.assert_close(value, loss(logits, target))
    torch.testing.assert_close(slope(direction), (gradient(loss, logits, target) * direction).sum())


@every_loss
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradients_of_many_upstream_ones_at_once(name, reduction):
    """As jacobians and hessians are computed with ``vectorize=True``."""
    loss = LOSSES[name](reduction=reduction, **own_arguments(name, C))
    logits, target = batch(6, C)
    logits.requires_grad_()
    value = loss(logits, target)
    upstream = torch.randn(3, *value.shape, generator=torch.Generator().manual_seed(1))
    (together,) = torch.autograd.grad(value, logits, upstream, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(value, logits, u, retain_graph=True)[0] for u in upstream]
    torch.testing.assert_close(together, torch.stack(apart))


@every_loss
def test_a_gradient_can_be_penalised(name):
    """Its graph is there also where the logits are the leaves and the loss is piecewise linear."""
    loss = build(name)
    logits, target = batch(6, C)
    for z in (logits, logits.expand(2, 6, C)[0].T.contiguous().T):  # and in no layout that a kernel reads
        z = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(z, target), z, create_graph=True)
        slope.pow(2).sum().backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()


@pytest.mark.slow  # inductor calls a C++ compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_hem_compiles_with_the_default_backend():
    loss = HEMLoss(weight=[1.0, 2.0, 0.5, 3.0, 1.5, 2.5])
    logits, target = batch(6, C, 3)
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
    torch.testing.assert_close(gradient(compiled, logits, target), gradient(loss, logits, target))


@every_loss
def test_exports(name):
    loss = build(name)
    logits, target = batch(6, C)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(loss, (logits, target), dynamic_shapes=({0: rows}, {0: rows}))
    torch.testing.assert_close(program.module()(logits[1:], target[1:]), loss(logits[1:], target[1:]))


@every_loss
def test_second_derivatives(name):
    """Losses are differentiable twice where torch is: needed by gradient penalties."""
    loss = build(name)
    logits, target = (x[1:3].double() if x.is_floating_point() else x[1:3] for x in batch(6, C))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), logits.requires_grad_(), fast_mode=True)


@every_loss
def test_second_derivatives_where_all_logits_are_zero(name):
    """As an untrained layer gives them, where a length has none."""
    loss = build(name)
    logits = torch.zeros(2, C, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(logits, torch.tensor([0, 1])), logits, create_graph=True)
    assert slope.any()
    assert torch.autograd.grad(slope.square().sum(), logits)[0].isfinite().all()


@every_loss
def test_layout_of_memory_does_not_matter(name):
    loss = build(name)
    logits, target = batch(2, C, 5, 6)
    channels_last = logits.to(memory_format=torch.channels_last)
    strided = torch.stack((logits, logits), -1)[..., 0]
    for other in (channels_last, strided):
        torch.testing.assert_close(loss(other, target), loss(logits, target))
        torch.testing.assert_close(gradient(loss, other, target), gradient(loss, logits, target))


@every_loss
def test_backward_scales_with_what_follows_the_loss(name):
    """The loss is not always the last operation."""
    loss = build(name)
    logits, target = batch(6, C)
    slope = gradient(loss, logits, target)
    logits.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(3 * loss(logits, target) + 1, logits)[0], 3 * slope)
