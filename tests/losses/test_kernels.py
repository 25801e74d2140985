"""The fused kernels: against the mathematics in float64, bits where bits are promised, and the edges.

Tests that take the fixture ``kernel`` are about the fused backend of this machine: C on a CPU, Triton on a
GPU. Without a GPU the Triton kernel takes them in its interpreter: :func:`test_triton_in_its_interpreter`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hem.losses import HEMLoss, kernels
from hem.losses.kernels import choice
from hem.losses.margin import hem_loss, hem_plus_loss, multi_margin_loss
from tests.processes import Processes

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
FUSED = "triton" if INTERPRETED or DEVICE == "cuda" else "c"

# Sums round at 1e-16 in float64, at 1e-7 in float32; of half precisions only the stored gradient rounds.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 2e-6, "atol": 1e-6},
    torch.float16: {"rtol": 1e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-6},
}
# Odd sizes, two classes, one, several axes; then, too slow for the interpreter, many classes, more pixels
# than a tile, and tiles of the least width.
SHAPES = [(7, 5), (33, 2), (3, 1), (3, 4, 1), (2, 3, 5), (2, 4, 2, 3, 2)]
SHAPES += [] if INTERPRETED else [(4, 1000), (2, 6, 37, 41), (1, 700, 3, 25)]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The fused backend, which this machine must have for the test to mean something."""
    monkeypatch.setenv("HEM_KERNEL", FUSED)
    choice.available.cache_clear()
    if kernels.backend(torch.zeros(1, 2, device=DEVICE)) != FUSED:
        pytest.skip("no compiler here" if FUSED == "c" else "no Triton here")
    yield FUSED
    choice.available.cache_clear()


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the plain formula is what runs."""
    monkeypatch.setenv("HEM_KERNEL", "plain")
    choice.available.cache_clear()


def logits_and_target(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of which some samples are separated, some are not; a fifth of the labels is to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    if logits.numel():
        logits.scatter_add_(
            1, target.unsqueeze(1), 3 * torch.rand(target.shape, generator=generator).unsqueeze(1).double()
        )
        target[torch.rand(target.shape, generator=generator) < 0.2] = -100
    return logits.to(DEVICE, dtype), target.to(DEVICE)


def reference(
    logits: Tensor, target: Tensor, margin: float | Tensor, weight: Tensor | None, high: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, masses and the derivative of each loss by its logits, written out in float64."""
    z = logits.detach().double().cpu().movedim(1, -1)
    losses, masses, slopes = [], [], []
    for row, y in zip(z.reshape(-1, z.shape[-1]), target.flatten().tolist(), strict=True):
        slope, loss, mass = torch.zeros_like(row), 0.0, 0.0
        if y != -100:
            w = 1.0 if weight is None else float(weight[y])
            error = (row - row[y] + (float(margin[y]) if isinstance(margin, Tensor) else margin)).clamp(min=0)
            error[y] = 0
            kept = (error > 0) & (error >= error.mean()) if high else error > 0
            divisor = int(kept.sum()) if high else len(row)
            if kept.any():
                loss = w * float(error[kept].sum()) / divisor
                slope[kept] = w / divisor
                slope[y] = -w * int(kept.sum()) / divisor
            mass = (w if loss else 0.0) if high else 1.0
        losses.append(loss)
        masses.append(mass)
        slopes.append(slope)
    loss, mass = (torch.tensor(x, dtype=torch.float64).reshape(target.shape) for x in (losses, masses))
    return loss, mass, torch.stack(slopes).reshape(z.shape).movedim(-1, 1)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("high", "weighted"), [(True, False), (True, True), (False, True)])
def test_values_and_gradients_are_those_of_the_formula(kernel, shape, dtype, high, weighted):
    logits, target = logits_and_target(*shape, dtype=dtype)
    weight = torch.rand(shape[1], dtype=torch.float64, device=DEVICE) + 0.5 if weighted else None
    margin = torch.rand(shape[1], dtype=torch.float64, device=DEVICE) + 0.1 if weighted else 0.7
    if dtype != torch.float64:
        weight, margin = (v.float() if isinstance(v, Tensor) else v for v in (weight, margin))
    loss, mass, slope = reference(logits, target, margin, weight, high)
    upstream = torch.rand(target.shape, dtype=torch.float64)
    for reduction in ("none", "sum", "mean"):
        z = logits.clone().requires_grad_()
        value, total = kernels.margin_loss(z, target, weight, margin=margin, high=high, reduction=reduction)
        g = upstream if reduction == "none" else upstream.flatten()[0]
        divisor = max(mass.sum(), 1e-30) if reduction == "mean" else 1.0
        value.backward(g.to(value))
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        assert value.dtype == total.dtype == compute
        assert not total.requires_grad
        assert z.grad is not None
        assert z.grad.dtype == dtype
        expected = slope * (g.unsqueeze(1) if reduction == "none" else g) / divisor
        torch.testing.assert_close(
            value.double().cpu(), loss if reduction == "none" else loss.sum() / divisor, **TOLERANCE[compute]
        )
        torch.testing.assert_close(total.double().cpu(), mass.sum(), **TOLERANCE[compute])
        torch.testing.assert_close(z.grad.double().cpu(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_read_and_written_as_torch_does(kernel, dtype):
    """With logits (0, x), label 0 and no margin the loss is x; the gradient is the upstream one, rounded."""
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts off what a GPU rounds")
    x = torch.arange(2**16 if kernel == "c" else 2**9).to(torch.uint16).view(dtype).to(DEVICE)
    logits = torch.stack([torch.zeros_like(x), x], 1).requires_grad_()
    target = torch.zeros(len(x), dtype=torch.int64, device=DEVICE)
    loss, _ = kernels.margin_loss(logits, target, margin=0.0, reduction="none")
    torch.testing.assert_close(loss, x.float().relu(), rtol=0, atol=0, equal_nan=True)
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(len(x), generator=generator) * 2 ** torch.empty(len(x)).uniform_(
        -40, 20, generator=generator
    )
    upstream = torch.where(torch.arange(len(x)) % 7 == 0, (upstream.to(dtype).float() * (1 + 2.0**-11)), upstream)
    (grad,) = torch.autograd.grad(loss, logits, upstream.to(loss))
    pushed = x > 0
    assert torch.equal(grad[pushed, 1], upstream.to(grad)[pushed])
    assert torch.equal(grad[pushed, 0], -upstream.to(grad)[pushed])


@pytest.mark.parametrize("shape", [(64, 8), (600, 32), (2, 8, 50, 31)][: 1 if INTERPRETED else 3], ids=str)
@pytest.mark.parametrize("loss", [hem_loss, multi_margin_loss], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_ties_are_decided_as_the_plain_formula_decides_them(kernel, monkeypatch, shape, loss, dtype):
    """Whole logits: all sums are exact, errors equal their mean, and the same ones must be kept."""
    logits, target = logits_and_target(*shape)
    logits = logits.round().to(dtype).requires_grad_()
    values, grads = [], []
    for _ in range(2):
        values.append(loss(logits, target, margin=1.0, reduction="none"))
        grads += torch.autograd.grad(values[-1].sum(), logits)
        plain(monkeypatch)
    error = (logits - logits.gather(1, target.clamp(min=0).unsqueeze(1)) + 1).relu().detach()
    error = error.scatter(1, target.clamp(min=0).unsqueeze(1), 0)
    assert (error == error.sum(1, keepdim=True) / shape[1])[error > 0].any(), "no ties in this test"
    assert torch.equal(grads[0] != 0, grads[1] != 0)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(values[0], values[1], **tolerance)
    torch.testing.assert_close(grads[0], grads[1], **tolerance)


@pytest.mark.parametrize("shape", [(12, 6), (2, 6, 5, 70)], ids=str)
def test_nan_shows_where_it_is_labelled_and_nowhere_else(kernel, shape):
    logits, target = logits_and_target(*shape)
    flat = target.flatten()
    flat[0], flat[1], flat[2] = 3, -100, 3
    clean = logits.clone().requires_grad_()
    hem_loss(clean, target, reduction="sum").backward()
    dirty = logits.movedim(1, -1).clone(memory_format=torch.contiguous_format)
    rows = dirty.view(-1, 6)  # the memory of `dirty`
    rows[0, 3] = rows[1, 2] = rows[2, 5] = torch.nan  # the target's logit, an ignored sample's, another class's
    dirty = dirty.movedim(-1, 1).contiguous().requires_grad_()
    loss = hem_loss(dirty, target, reduction="none")
    assert loss.flatten()[[0, 2]].isnan().all()
    assert loss.flatten()[1] == 0
    assert not loss.flatten()[3:].isnan().any()
    assert hem_loss(dirty, target).isnan()
    loss.sum().backward()
    grad = dirty.grad.movedim(1, -1).reshape(-1, 6)
    assert grad[0].isnan().any()
    assert grad[2].isnan().any()
    assert (grad[1] == 0).all()
    assert torch.equal(grad[3:], clean.grad.movedim(1, -1).reshape(-1, 6)[3:])


def test_infinite_logits(kernel):
    """A class masked by -inf is no competitor; a competitor at +inf is an infinite error, not a NaN."""
    inf = torch.inf
    logits = torch.tensor([[1.0, 1.0, -inf], [0.0, inf, 0.0], [inf, 0.0, 0.0]], device=DEVICE, requires_grad=True)
    loss = hem_loss(logits, torch.tensor([0, 0, 0], device=DEVICE), reduction="none")
    assert loss.tolist() == [0.5, inf, 0.0]
    loss.sum().backward()
    assert logits.grad.tolist() == [[-1, 1, 0], [-1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pixels", [(), (2, 3)], ids=["rows", "pixels"])
def test_errors_that_overflow_when_summed_are_not_left_out(kernel, monkeypatch, pixels, dtype):
    """A label masked by the dtype's least number, as language models mask: wholly wrong, not learnt.

    Beside it a sample with a NaN, which is no reason to leave them out, and one with errors of another size.
    """
    large = 0.6 * torch.finfo(dtype).max
    rows = torch.tensor(
        [[torch.finfo(dtype).min, 1.0, 2.0, 0.0], [0.0, torch.nan, 0.0, 0.0], [0.0, large, large, large / 2]],
        dtype=dtype,
        device=DEVICE,
    )
    logits = rows.view(3, 4, *(1,) * len(pixels)).repeat(1, 1, *pixels)
    if pixels:  # samples of one image, which share a tile
        logits[0], logits[1:] = torch.stack((rows, rows), 1).permute(2, 1, 0), 0.0
    logits.requires_grad_()
    target = torch.zeros((3, *pixels), dtype=torch.int64, device=DEVICE)
    for way in (kernel, "plain"):
        if way == "plain":
            plain(monkeypatch)
        (gradient,) = torch.autograd.grad(hem_loss(logits, target, reduction="sum"), logits)
        gradient = gradient[0].movedim(0, -1)[0] if pixels else gradient
        assert gradient[0].tolist() == pytest.approx([-1, 1 / 3, 1 / 3, 1 / 3]), way
        assert gradient[2].tolist() == [-1, 0.5, 0.5, 0], way


def test_kernels_read_no_tensor_that_has_no_memory_of_its_own(kernel):
    """Subclasses and lazily negated views go through the formula, a target elsewhere is refused before it is read."""

    class Own(Tensor):
        pass

    logits, target = logits_and_target(4, 3)
    value = hem_loss(logits.to(DEVICE), target.to(DEVICE))
    assert kernels.backend(logits.to(DEVICE), target.to(DEVICE).as_subclass(Own)) == "plain"
    assert kernels.backend(logits.to(DEVICE), logits[0].to(DEVICE).as_subclass(Own)) == "plain"
    assert torch.allclose(hem_loss(torch._neg_view(-logits.to(DEVICE)), target.to(DEVICE)), value)
    with pytest.raises(ValueError, match=r"on the device of input, .*, got it on meta: use target.to"):
        hem_loss(logits.to(DEVICE), target.to("meta"))


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0), (4, 1), (2, 1, 3)], ids=str)
def test_nothing_to_push_gives_zero(kernel, shape):
    logits, target = logits_and_target(*shape)
    logits.requires_grad_()
    loss = hem_loss(logits, target)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_means_zero_whatever_is_upstream(kernel):
    logits, target = logits_and_target(6, 4)
    logits.requires_grad_()
    target[:] = 2
    loss = hem_loss(logits, target, ignore_index=2)
    assert loss == 0
    (loss * torch.inf).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded", "strided target"])
def test_memory_layouts(kernel, layout):
    logits, target = logits_and_target(3, 6, 9, 8)
    if layout == "channels_last":
        z = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        z = torch.cat([logits, logits], 1)[:, :6]
    elif layout == "transposed":
        z = logits.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "expanded":
        z = logits[:1].expand(3, -1, -1, -1)
        logits = z.clone()
    else:
        z, target = logits, torch.stack([target, target], -1)[..., 0]
    z, logits = z.detach().requires_grad_(), logits.detach().clone().requires_grad_()
    loss, expected = hem_loss(z, target), hem_loss(logits, target.contiguous())
    torch.testing.assert_close(loss, expected)
    grad, expected_grad = (torch.autograd.grad(a, b)[0] for a, b in ((loss, z), (expected, logits)))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=0)
    if layout == "channels_last":
        assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wrong", [4, -1, 2**40])
@pytest.mark.parametrize("shape", [(50, 4), (2, 4, 30, 40)], ids=str)
def test_a_label_that_is_no_class_is_named(kernel, shape, wrong):
    logits, target = logits_and_target(*shape)
    target.view(-1)[17], target.view(-1)[40] = wrong, 5
    if kernel == "triton":
        assert hem_loss(logits, target).isnan()
        return
    with pytest.raises(
        ValueError, match=f"Expected labels from 0 to 3 .*, got label {wrong}: set ignore_index={wrong}"
    ):
        hem_loss(logits, target)


def test_the_gradient_is_the_derivative_and_can_be_differentiated_again(kernel):
    logits, target = logits_and_target(5, 4, dtype=torch.float64)
    logits.requires_grad_()

    def loss(z: Tensor) -> Tensor:
        return hem_plus_loss(z, target, class_counts=[30, 20, 10, 5], m=20.0, reduction="none")

    assert torch.autograd.gradcheck(loss, logits, check_grad_dtypes=True)
    assert torch.autograd.gradgradcheck(lambda z: loss(z).square(), logits)
    (grad,) = torch.autograd.grad(hem_loss(logits, target).square(), logits, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), logits)[0].abs().sum() > 0


def test_a_gradient_with_a_graph_keeps_the_digits_of_small_shares(kernel):
    """A sample's share of the mean, here 1e-6, which float16 rounds to 6e-8, before a loss scale enlarges it."""
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float16, device=DEVICE, requires_grad=True)
    weight = torch.tensor([1e-6, 1.0], device=DEVICE)
    scale = torch.tensor(65536.0, device=DEVICE, requires_grad=True)
    loss = kernels.margin_loss(logits, torch.tensor([0, 1], device=DEVICE), weight, margin=0.5)[0] * scale
    for graph in (True, False):
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=graph, retain_graph=True)
        assert gradient[0].tolist() == pytest.approx([-0.065536, 0.065536], rel=1e-3)


def test_a_gradient_with_a_graph_is_the_gradient(kernel):
    """In half precision under a loss scale that is infinite there, and of ignored samples whatever is upstream."""
    logits, target = logits_and_target(64, 5)
    half = logits.half().to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE, torch.float16):
        loss = hem_loss(half, target.to(DEVICE)) * 65536
    (without,) = torch.autograd.grad(loss, half, retain_graph=True)
    (graph,) = torch.autograd.grad(loss, half, create_graph=True)
    assert without.isfinite().all()
    assert torch.equal(graph, without)
    z = logits.to(DEVICE).requires_grad_()
    losses = hem_loss(z, target.to(DEVICE), reduction="none")
    assert (target < 0).any()
    (slope,) = torch.autograd.grad(losses.sqrt().sum(), z, create_graph=True)  # whose derivative at 0 is infinite
    assert (slope[target.to(DEVICE) < 0] == 0).all()


def test_the_same_bits_every_time_and_for_any_number_of_threads(kernel):
    for shape in ((300, 1000), (2, 19, 120, 130)):
        logits, target = logits_and_target(*shape)
        logits.requires_grad_()
        threads, results = torch.get_num_threads(), []
        try:
            for n in (1, 1, 2, 3, 2):
                torch.set_num_threads(n)
                loss = hem_loss(logits, target)
                results.append((loss, hem_loss(logits, target, reduction="none"), *torch.autograd.grad(loss, logits)))
        finally:
            torch.set_num_threads(threads)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.skipif(FUSED != "c", reason="the profiler of a CPU's memory")
@pytest.mark.parametrize("shape", [(512, 256), (2, 32, 64, 64)], ids=str)
def test_the_gradient_is_the_only_thing_of_the_size_of_the_logits(kernel, shape):
    logits, target = logits_and_target(*shape)
    logits.requires_grad_()
    hem_loss(logits, target).backward()  # compiles, and warms what is warmed once
    logits.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        hem_loss(logits, target).backward()
    allocated = sum(max(e.nbytes(), 0) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    assert logits.nbytes <= allocated <= logits.nbytes + 2 * 4 * target.numel() + 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_half_logits_give_float32_losses_and_half_gradients(kernel, dtype):
    torch.manual_seed(0)
    features, target = torch.randn(16, 12, device=DEVICE), torch.arange(16, device=DEVICE) % 5
    head = torch.nn.Linear(12, 5).to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        logits = head(features)
        logits.retain_grad()
        loss = HEMLoss(margin=0.5)(logits, target)
    assert (logits.dtype, loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(loss, hem_loss(logits.float(), target, margin=0.5))
    (loss * 1024).backward()  # as a gradient scaler would
    assert logits.grad.dtype == dtype
    assert head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward derivatives use it
@pytest.mark.skipif(INTERPRETED, reason="about torch, not about the kernel")
def test_where_torch_traces_or_transforms_the_plain_formula_runs(kernel):
    logits, target = logits_and_target(8, 5)
    target.clamp_(min=0)
    fused = logits.clone().requires_grad_()
    hem_loss(fused, target, reduction="sum").backward()
    seen = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.append(kernels.backend(z))
        return hem_loss(z, y, reduction="sum")

    single = torch.func.vmap(torch.func.grad(lambda z, y: loss(z[None], y[None])))(logits, target)
    torch.testing.assert_close(single, fused.grad)
    _, tangent = torch.func.jvp(lambda z: loss(z, target), (logits,), (torch.ones_like(logits),))
    torch.testing.assert_close(tangent, fused.grad.sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits, torch.ones_like(logits))
        slope = torch.autograd.forward_ad.unpack_dual(loss(dual, target)).tangent
    torch.testing.assert_close(slope, fused.grad.sum())
    assert set(seen) == {"plain"}
    assert kernels.backend(logits) == kernel
    assert kernels.backend(logits, None, torch.ones(5, requires_grad=True)) == "plain"
    assert kernels.backend(torch.zeros(2, 3, dtype=torch.int64)) == "plain"


@pytest.mark.skipif(INTERPRETED, reason="about torch, not about the kernel")
@pytest.mark.parametrize("way", ["kernel", "plain"])
@pytest.mark.parametrize("shape", [(500, 5), (2, 5, 30, 40), (8, 5)], ids=str)
def test_compiles_into_one_graph_in_which_the_kernel_runs(kernel, monkeypatch, way, shape):
    """Without a kernel, or for few logits on a CPU, the formula."""
    if way == "plain":
        plain(monkeypatch)
    torch.compiler.reset()
    logits, target = logits_and_target(*shape)
    weight, counts = torch.rand(5, device=DEVICE), [30, 20, 10, 5, 1]
    seen = []

    def graph(module, example):
        seen.extend(str(node.target) for node in module.graph.nodes)
        return module

    for layout in (torch.contiguous_format, torch.channels_last)[: len(shape) - 1]:
        z = logits.clone(memory_format=layout).requires_grad_()
        for reduction in ("mean", "sum", "none"):

            def loss(z, y, reduction=reduction):
                return hem_plus_loss(z, y, weight, reduction=reduction, class_counts=counts)

            step = torch.compile(loss, fullgraph=True, backend=graph, dynamic=False)
            expected, value = loss(z, target), step(z, target)
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
            upstream = torch.rand_like(expected)
            (slope,), (grad,) = (torch.autograd.grad(each, z, upstream) for each in (expected, value))
            torch.testing.assert_close(grad, slope)
            assert grad.stride() == slope.stride()
    few = DEVICE == "cpu" and logits.numel() < 2048
    assert any("hem.margin_loss" in name for name in seen) == (way == "kernel" and not few)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own check asks for it
@pytest.mark.skipif(INTERPRETED, reason="about torch, not about the kernel")
def test_the_operator_is_one_that_torch_can_trust(kernel):
    import hem.losses.kernels.operator  # noqa: F401 - registers it, as the first compiled loss does

    logits, target = logits_and_target(6, 5)
    numbers = (0.5, -100, True)
    torch.library.opcheck(
        torch.ops.hem.margin_loss.default, (logits.requires_grad_(), target, None, None, *numbers, "mean")
    )
    pixels, target = logits_and_target(2, 5, 3, 4)
    each = torch.rand(5, device=DEVICE)
    torch.library.opcheck(
        torch.ops.hem.margin_loss.default, (pixels.requires_grad_(), target, each, each, *numbers, "none")
    )


def test_class_probabilities_go_through_the_kernel(kernel, monkeypatch):
    logits, _ = logits_and_target(6, 5)
    target = torch.tensor([0.25, 0, 0, 0.75, 0], device=DEVICE).expand(6, 5)
    fused = hem_loss(logits, target, reduction="none")
    monkeypatch.setattr("hem.losses.margin._margin_errors", None)
    torch.testing.assert_close(hem_loss(logits, target, reduction="none"), fused)
    monkeypatch.undo()
    plain(monkeypatch)
    torch.testing.assert_close(hem_loss(logits, target, reduction="none"), fused)


def one_class_after_the_other(logits: Tensor, shares: Tensor, **own: object) -> tuple[Tensor, Tensor]:
    """Σ_c s_c l_c and its gradient by the kernel for labels, in float64."""
    z = logits.detach().double().requires_grad_()
    total = torch.zeros_like(z.select(1, 0))
    for c in range(z.shape[1]):
        target = torch.where(shares.select(1, c) != 0, c, -100)
        total = total + shares.select(1, c).double() * kernels.margin_loss(z, target, reduction="none", **own)[0]
    return total.detach(), torch.autograd.grad(total.sum(), z)[0]


SPREAD = ["even", "few", "one", "none", "equal logits", "masked logits", "far apart", "large"]


@pytest.mark.skipif(FUSED != "c", reason="about the C kernel")
@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("shape", [(70, 5), (9, 1), (3, 40), (5, 300), (2, 12, 9, 8), (2, 33, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_expected_losses_are_those_of_one_class_after_the_other(kernel, spread, shape, dtype):
    """Side by side, by sorting and one by one; with a margin, with one for each class; HEM and multi-margin."""
    logits, _ = logits_and_target(*shape, dtype=dtype)
    shares = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    if spread in ("few", "one"):
        shares = torch.where(shares < shares.topk(min(2 if spread == "few" else 1, shape[1]), 1)[0][:, -1:], 0, shares)
    elif spread == "none":
        shares[0] = 0
        logits[0] = torch.nan
    elif spread == "equal logits":
        logits = logits.round()
    elif spread == "masked logits" and shape[1] > 2:
        logits[:, 1] = -torch.inf
        shares[:, 1] = 0
    elif spread == "far apart":
        logits = logits * 30 + 1000
    elif spread == "large":
        logits = logits * 3e35  # sums of errors beyond 1e30 are not trusted to float32
    margins = torch.rand(shape[1], generator=torch.Generator().manual_seed(2), dtype=dtype)
    for margin, high in ((0.5, True), (0.5, False), (margins, True), (0.0, True)):
        z = logits.clone().requires_grad_()
        loss = kernels.expected_margin_loss(z, shares, margin=margin, high=high)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        own = {"margin": margin.double() if isinstance(margin, Tensor) else margin, "high": high}
        expected, slope = one_class_after_the_other(logits, shares, **own)
        exact = dtype == torch.float64
        torch.testing.assert_close(
            loss.double(), expected, rtol=1e-12 if exact else 3e-6, atol=1e-12 if exact else 1e-5
        )
        if spread != "equal logits" or exact:  # of which rounding decides ties with the mean
            torch.testing.assert_close(gradient.double(), slope, rtol=1e-10 if exact else 1e-5, atol=1e-5)


@pytest.mark.skipif(FUSED != "c", reason="about the C kernel")
def test_expected_losses_show_a_nan_and_keep_the_promises_of_gradients(kernel):
    for classes in (5, 80):
        logits, _ = logits_and_target(6, classes)
        shares = torch.rand(6, classes) + 0.1
        logits[2, 1] = torch.nan
        shares[3] = 0
        z = logits.requires_grad_()
        loss = kernels.expected_margin_loss(z, shares, margin=0.5)
        assert loss.isnan().tolist() == [False, False, True, False, False, False]
        assert loss[3] == 0
        infinite = torch.full((6,), torch.inf)
        (gradient,) = torch.autograd.grad(loss, z, infinite, retain_graph=True)
        assert (gradient[3] == 0).all()
        (again,) = torch.autograd.grad(loss, z, infinite, create_graph=True)
        assert torch.equal(again.isnan(), gradient.isnan())
    z = logits_and_target(4, 40, dtype=torch.float64)[0].requires_grad_()
    shares = torch.rand(4, 40, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: kernels.expected_margin_loss(z, shares, margin=0.5), z)
    assert torch.autograd.gradgradcheck(lambda z: kernels.expected_margin_loss(z, shares, margin=0.5).square(), z)


@pytest.mark.skipif(FUSED != "c", reason="about the C kernel")
def test_expected_losses_are_the_same_in_every_layout_and_for_any_number_of_threads(kernel):
    for classes in (12, 50):
        logits, _ = logits_and_target(2, classes, 40, 41)
        shares = torch.rand(logits.shape)
        threads, found = torch.get_num_threads(), []
        try:
            for n, layout in ((1, torch.contiguous_format), (2, torch.contiguous_format), (1, torch.channels_last)):
                torch.set_num_threads(n)
                z = logits.contiguous(memory_format=layout).requires_grad_()
                loss = kernels.expected_margin_loss(z, shares, margin=0.5)
                found.append((loss, torch.autograd.grad(loss.sum(), z)[0]))
        finally:
            torch.set_num_threads(threads)
        for loss, gradient in found[1:]:
            assert torch.equal(loss, found[0][0])
            assert torch.equal(gradient, found[0][1])


def test_the_loss_may_be_changed_in_place(kernel):
    """As cross-entropy's may; results that are parts of one tensor could not."""
    for reduction in ("mean", "sum"):
        logits, target = logits_and_target(6, 5)
        loss = hem_loss(logits.requires_grad_(), target, reduction=reduction)
        (expected,) = torch.autograd.grad(loss, logits, retain_graph=True)
        loss *= 2
        assert torch.equal(torch.autograd.grad(loss, logits)[0], 2 * expected)


def test_an_unknown_kernel_is_refused(monkeypatch):
    monkeypatch.setenv("HEM_KERNEL", "cuda")
    choice.available.cache_clear()
    with pytest.raises(ValueError, match="Expected HEM_KERNEL to be c, triton or plain, or not to be set, got 'cuda'"):
        kernels.backend(torch.zeros(1, 2))
    plain(monkeypatch)
    with pytest.raises(TypeError, match="Expected logits that a kernel takes"):
        kernels.margin_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), margin=0.5)
    monkeypatch.undo()
    choice.available.cache_clear()


def probed() -> None:
    """Evaluate one loss; print the backend and the value."""
    loss = hem_loss(torch.tensor([[2.0, 2.0, 3.0, 0.0]], requires_grad=True), torch.tensor([0]), margin=0.5)
    loss.backward()
    print(kernels.backend(torch.zeros(1, 2)), loss.item())


def probe(**environment: str) -> Processes:
    """A process that has loaded no kernel yet."""
    return Processes(probed, HEM_KERNEL="", **environment)


@pytest.mark.skipif(INTERPRETED, reason="about the C kernel")
def test_processes_may_compile_at_the_same_time(kernel, tmp_path):
    processes = [probe(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    assert [process.wait() for process in processes] == [(0, "c 1.0\n", "")] * 2
    assert [path.suffix for path in (tmp_path / "hem").iterdir()] == [".so"]


@pytest.mark.skipif(INTERPRETED, reason="about the C kernel")
def test_without_a_compiler_or_a_cache_the_plain_formula_runs(tmp_path):
    file = tmp_path / "file"
    file.touch()
    unable = [
        {"CC": "/no/such/compiler", "XDG_CACHE_HOME": str(tmp_path)},
        {"XDG_CACHE_HOME": str(file)},
    ]
    processes = [probe(**environment) for environment in unable]
    assert [process.wait() for process in processes] == [(0, "plain 1.0\n", "")] * 2


@pytest.mark.skipif(INTERPRETED or not find_spec("triton"), reason="no Triton here")
def test_triton_in_its_interpreter():
    """The tests above once more: the Triton kernel's logic, not its speed or its compilation for a GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # numpy, which computes there, warns of inf - inf; a GPU does not
    options = ("-q", "-W", "ignore::RuntimeWarning", "-k", "not interpreter and not unknown and not threads")
    command = [sys.executable, "-m", "pytest", *options, "tests/losses/test_kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
