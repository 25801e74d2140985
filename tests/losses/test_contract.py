"""What holds for every loss, and for those of some trait: the contract that makes them drop-ins."""

import copy
import inspect
import itertools
import pickle
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hem.losses import LOSSES, evaluate, functional
from tests.losses.reference import TRAITS, own_arguments

C = 4
SHAPES = {"NC": (12, C), "NCd": (6, C, 5), "NCdd": (3, C, 3, 4)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def build(name: str, **arguments) -> nn.Module:
    return LOSSES[name](**own_arguments(name, C) | arguments)


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, ignored: int | None = None):
    """Logits of the shape, and labels of which a fifth is ignored."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(C, shape[:1] + shape[2:], generator=generator)
    if ignored is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = ignored
    return logits, labels


def weights(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=dtype)


def gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, target).sum(), logits)[0]


def assert_same(loss: nn.Module, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], **tolerance) -> None:
    torch.testing.assert_close(loss(*left), loss(*right), **tolerance)


every_loss = pytest.mark.parametrize("name", LOSSES)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def test_every_loss_has_its_traits():
    assert TRAITS.keys() == LOSSES.keys()


@every_loss
@every_shape
@pytest.mark.parametrize("dtype", DTYPES)
def test_none_has_the_targets_shape_and_sum_and_mean_follow_from_it(name, shape, dtype):
    logits, target = batch(shape, dtype, ignored=-100)
    w = weights(dtype)
    losses, total, mean = (build(name, weight=w, reduction=r)(logits, target) for r in ("none", "sum", "mean"))
    assert losses.shape == (target.shape if TRAITS[name].per_sample else (C,))
    assert losses.dtype == total.dtype == mean.dtype == dtype
    losses, total, mean, w = losses.double(), total.double(), mean.double(), w.double()
    assert (losses >= 0).all()
    labelled = target != -100
    sample_weight = torch.where(labelled, w[target.clamp(min=0)], 0.0)
    if name == "class_balanced":
        sample_weight *= functional.effective_number_weights(**own_arguments(name, C))[target.clamp(min=0)]
    divisor = {
        "weight": sample_weight.sum(),
        "weight with error": (sample_weight * (losses > 0)).sum() if TRAITS[name].per_sample else None,
        "samples": labelled.sum(),
        "classes": w.sum(),
    }[TRAITS[name].mean_over]
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(total, losses.sum(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mean, losses.sum() / divisor, rtol=tolerance, atol=tolerance)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_sample_without_a_batch_axis(name, dtype):
    logits, target = batch((1, C), dtype)
    for reduction in ("none", "mean", "sum"):
        loss = build(name, reduction=reduction)
        alone, batched = loss(logits[0], target[0]), loss(logits, target)
        assert alone.shape == (() if TRAITS[name].per_sample or reduction != "none" else (C,))
        torch.testing.assert_close(alone, batched.squeeze(0) if reduction == "none" else batched)
        q = F.one_hot(target, C).to(dtype)
        torch.testing.assert_close(loss(logits[0], q[0]), loss(logits, q).reshape(alone.shape))


@every_loss
@every_shape
@pytest.mark.parametrize("weighted", [False, True])
def test_one_hot_probabilities_are_labels(name, shape, weighted):
    logits, target = batch(shape)
    q = F.one_hot(target, C).movedim(-1, 1).double()
    for reduction in ("none", "mean", "sum"):
        if weighted and reduction == "mean" and not TRAITS[name].soft_weights:
            continue
        loss = build(name, weight=weights() if weighted else None, reduction=reduction)
        torch.testing.assert_close(loss(logits, q), loss(logits, target))
        torch.testing.assert_close(gradient(loss, logits, q), gradient(loss, logits, target))


@every_loss
def test_probabilities_give_the_expected_cost(name):
    if not TRAITS[name].per_sample:
        pytest.skip("its cost is no sum over samples")
    logits, target = batch(SHAPES["NCd"])
    loss = build(name, weight=weights(), reduction="none")
    other = (target + 1) % C
    q = 0.75 * F.one_hot(target, C).movedim(-1, 1).double() + 0.25 * F.one_hot(other, C).movedim(-1, 1)
    expected = 0.75 * loss(logits, target) + 0.25 * loss(logits, other)
    torch.testing.assert_close(loss(logits, q), expected)


@every_loss
@every_shape
@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_ignored_samples_count_for_nothing(name, shape, ignore_index):
    """They give 0 with a gradient of exactly 0, and leave the others as they would be alone."""
    logits, target = batch(shape, ignored=ignore_index)
    labelled = target != ignore_index
    assert 0 < labelled.sum() < target.numel()
    for reduction in ("none", "mean", "sum"):
        loss = build(name, ignore_index=ignore_index, reduction=reduction)
        rest = logits.movedim(1, -1)[labelled], target[labelled]
        value, slope = loss(logits, target), gradient(loss, logits, target).movedim(1, -1)
        if reduction == "none" and TRAITS[name].per_sample:
            assert (value[~labelled] == 0).all()
            value = value[labelled]
        torch.testing.assert_close(value, loss(*rest))
        assert (slope[~labelled] == 0).all()
        torch.testing.assert_close(slope[labelled], gradient(loss, *rest))


@every_loss
@every_shape
@pytest.mark.parametrize("soft", [False, True])
def test_samples_are_independent_of_how_they_are_arranged(name, shape, soft):
    """(N, C, d1, ...) is (N d1 ..., C), and a permuted batch gives permuted losses."""
    logits, target = batch(shape)
    target = F.one_hot(target, C).movedim(-1, 1).double().roll(1, 1) * 0.5 + 0.125 if soft else target
    flat_logits = logits.movedim(1, -1).reshape(-1, C)
    flat_target = target.movedim(1, -1).reshape(-1, C) if soft else target.reshape(-1)
    order = torch.randperm(len(flat_logits), generator=torch.Generator().manual_seed(0))
    for reduction in ("none", "mean", "sum"):
        loss = build(name, weight=weights(), reduction=reduction)
        losses, flat = loss(logits, target), loss(flat_logits, flat_target)
        permuted = loss(flat_logits[order], flat_target[order])
        if reduction == "none" and TRAITS[name].per_sample:
            losses, flat_permuted = losses.reshape(-1), flat[order]
        else:
            flat_permuted = flat
        torch.testing.assert_close(losses, flat)
        torch.testing.assert_close(permuted, flat_permuted)


@every_loss
@every_shape
def test_classes_have_no_order(name, shape):
    """Logits, labels, weights and counts with their classes permuted together give the same loss."""
    logits, target = batch(shape)
    order = torch.tensor([2, 0, 3, 1])  # new class i is old class order[i]
    own, new = own_arguments(name, C), {}
    if own:
        new = {"class_counts": [own["class_counts"][i] for i in order]}
    before = LOSSES[name](weight=weights(), **own)(logits, target)
    after = LOSSES[name](weight=weights()[order], **new)(logits[:, order], order.argsort()[target])
    torch.testing.assert_close(before, after)


@every_loss
@every_shape
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_computed_in_float32(name, shape, dtype, tolerance):
    """The only difference to float32 is the rounding of the result, and of the gradient."""
    if name == "ce":
        pytest.skip("torch's own computes in half precision on a CPU")
    logits, target = batch(shape, dtype, ignored=-100)
    loss = build(name, weight=weights(torch.float32))
    torch.testing.assert_close(loss(logits, target), loss(logits.float(), target).to(dtype))
    half, single = gradient(loss, logits, target), gradient(loss, logits.float(), target)
    torch.testing.assert_close(half.float(), single, rtol=tolerance, atol=tolerance * single.abs().max().item())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite_in_value_and_gradient(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0, 1], [-1e4, 1e4, 1e4, 0], [0, 0, 1, 0], [-1e4] * 4], dtype=dtype)
    for target in (torch.tensor([0, 0, 1, 3]), torch.full((4, C), 0.25, dtype=dtype)):
        assert build(name)(logits.float(), target).isfinite()
        assert gradient(build(name), logits, target).isfinite().all()


@every_loss
def test_nothing_labelled_gives_zero_with_zero_gradient(name):
    """By the function, also for cross-entropy, whose module is torch's own and gives NaN."""
    function, own = getattr(functional, f"{name}_loss"), own_arguments(name, C)
    for shape in (*SHAPES.values(), (0, C), (0, C, 2)):
        logits = torch.randn(shape, requires_grad=True)
        target = torch.full(shape[:1] + shape[2:], -100)
        loss = function(logits, target, **own)
        loss.backward()
        assert loss == 0
        assert logits.grad is not None
        assert (logits.grad == 0).all()


@every_loss
def test_nan_is_reported_where_it_is_labelled_and_kept_out_where_it_is_ignored(name):
    function, own = getattr(functional, f"{name}_loss"), own_arguments(name, C)
    clean, target = batch(SHAPES["NC"])
    for place in (target[1].item(), (target[1].item() + 1) % C):
        logits = clean.clone()
        logits[1, place] = torch.nan
        assert function(logits, target, **own).isnan()
        assert function(logits, F.one_hot(target, C).double(), **own).isnan()
    for ignored in (target.clone(), F.one_hot(target, C).double()):
        ignored[1] = 0 if ignored.is_floating_point() else -100
        spoilt = clean.clone()
        spoilt[1] = torch.nan
        spoilt.requires_grad_()
        loss = function(spoilt, ignored, **own)
        loss.backward()
        assert spoilt.grad is not None
        torch.testing.assert_close(loss, function(clean, ignored, **own))
        assert (spoilt.grad[1] == 0).all()
        assert spoilt.grad.isfinite().all()


@every_loss
def test_a_row_of_zero_probabilities_is_an_ignored_label(name):
    """Also where labels are smoothed; in training, where torch's own cross-entropy is evaluated by the function."""
    logits, labels = batch(SHAPES["NCd"], ignored=-100)
    labelled = labels != -100
    assert not labelled.all()
    q = torch.where(labelled[..., None], F.one_hot(labels.clamp(min=0), C), 0).movedim(-1, 1).double()
    for reduction, smoothing in itertools.product(("none", "mean", "sum"), (0.0, 0.1)):
        loss = partial(evaluate, build(name, reduction=reduction, label_smoothing=smoothing))
        torch.testing.assert_close(loss(logits, q), loss(logits, labels))
        torch.testing.assert_close(gradient(loss, logits, q), gradient(loss, logits, labels))


@every_loss
@pytest.mark.parametrize("smallest", [-torch.inf, torch.finfo(torch.float64).min])
def test_one_hot_probabilities_are_labels_beside_a_masked_class(name, smallest):
    logits, target = batch(SHAPES["NCd"])
    logits[:, 3], target = smallest, target % 3
    q = F.one_hot(target, C).movedim(-1, 1).double()
    function, own = getattr(functional, f"{name}_loss"), own_arguments(name, C)
    for reduction in ("none", "mean", "sum"):
        loss = partial(function, reduction=reduction, **own)
        value, slope = loss(logits, target), gradient(loss, logits, target)
        assert value.isfinite().all() == (name != "logit_norm" or smallest != -torch.inf)  # whose length is infinite
        torch.testing.assert_close(loss(logits, q), value, equal_nan=True)
        torch.testing.assert_close(gradient(loss, logits, q), slope, equal_nan=True)


@every_loss
@pytest.mark.parametrize("size", [1e19, 1e36])
def test_huge_logits_in_float32_are_those_in_float64(name, size):
    """With equal largest ones, the label among them or not; as labels, as one-hot and as mixed probabilities."""
    logits = size * torch.tensor([[1.0, 1.0, 0.0, 0.5], [0.0, 1.0, 1.0, -1.0], [0.5, -0.5, 0.0, -1.0]])
    labels = torch.tensor([1, 0, 0])
    one_hot = F.one_hot(labels, C).float()
    for target in (labels, one_hot, 0.75 * one_hot + 0.25 * one_hot.roll(1, 1)):
        exact = target.double() if target.is_floating_point() else target
        for reduction in ("none", "mean"):
            loss = build(name, reduction=reduction)
            value, slope = loss(logits, target), gradient(loss, logits, target)
            torch.testing.assert_close(value.double(), loss(logits.double(), exact), rtol=1e-5, atol=1e-5)
            expected = gradient(loss, logits.double(), exact)
            torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@every_loss
def test_weights_of_zero_give_zero_with_zero_gradient(name):
    function, own = getattr(functional, f"{name}_loss"), own_arguments(name, C)
    logits, target = batch(SHAPES["NC"])
    for y, reduction in itertools.product((target, F.one_hot(target, C).double()), ("none", "mean", "sum")):
        loss = partial(function, weight=torch.zeros(C), reduction=reduction, **own)
        assert (loss(logits, y) == 0).all()
        assert (gradient(loss, logits, y) == 0).all()


@every_loss
def test_shift_and_scale(name):
    logits, target = batch(SHAPES["NCdd"])
    loss = build(name)
    for trait, other in (("shift", logits + 3), ("scale", logits * 3)):
        same = torch.allclose(loss(other, target), loss(logits, target), rtol=1e-6)
        assert same == getattr(TRAITS[name], trait), trait


@every_loss
def test_which_losses_let_go_of_what_is_learnt(name):
    target = torch.arange(C)
    logits = 8 * torch.eye(C, dtype=torch.float64)
    value, slope = build(name)(logits, target), gradient(build(name), logits, target)
    assert bool((value == 0) & (slope == 0).all()) == TRAITS[name].zero


@every_loss
def test_module_is_function(name):
    """Same arguments, same order, same defaults; three of cross-entropy first, the fourth, of modules alone, last."""
    function = getattr(functional, f"{name}_loss")
    ours, theirs = inspect.signature(function), inspect.signature(LOSSES[name])
    assert list(ours.parameters)[:5] == ["input", "target", "weight", "ignore_index", "reduction"]
    if name != "ce":
        assert list(theirs.parameters) == [*list(ours.parameters)[2:], "label_smoothing"]
        for key, parameter in list(theirs.parameters.items())[:-1]:
            default = ours.parameters[key].default
            assert parameter.default == (None if key == "class_counts" else default)
        get_type_hints(LOSSES[name].__init__)  # what a command line parser reads
    logits, target = batch(SHAPES["NCd"], ignored=-7)
    expected = function(logits, target, weights(), -7, "sum", **own_arguments(name, C))
    assert build(name, weight=weights(), ignore_index=-7, reduction="sum")(logits, target) == expected


@every_loss
@every_shape
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_label_smoothing_spreads_the_target(name, shape, weighted, ignore_index):
    """(1 - ε) of the label and ε / C of every class, ignored samples apart; of probabilities likewise."""
    if name == "ce":
        pytest.skip("torch's own, compared with torch elsewhere")
    weight = {"weight": weights()} if weighted else {}
    smoothing = build(name, label_smoothing=0.2, ignore_index=ignore_index, **weight)
    plain = build(name, **weight)
    logits, labels = batch(shape, ignored=ignore_index)
    labelled = labels != ignore_index
    assert not labelled.all()
    one_hot = F.one_hot(torch.where(labelled, labels, 0), C).movedim(-1, 1).double()
    spread = torch.where(labelled.unsqueeze(1), 0.8 * one_hot + 0.2 / C, 0.0)
    torch.testing.assert_close(smoothing(logits, labels), plain(logits, spread))
    torch.testing.assert_close(gradient(smoothing, logits, labels), gradient(plain, logits, spread))
    mixed = one_hot.roll(1, 1) * 0.3 + one_hot * 0.7
    torch.testing.assert_close(smoothing(logits, mixed), plain(logits, 0.8 * mixed + 0.2 / C))
    assert "label_smoothing=0.2" in repr(smoothing)
    with pytest.raises(ValueError, match=r"Expected label_smoothing to be a number in \[0, 1\], got 1.5"):
        build(name, label_smoothing=1.5)


def test_smoothed_cross_entropy_relatives_are_torchs():
    """Without weights: focal with γ = 0 is torch's own with the same argument."""
    logits, labels = batch(SHAPES["NC"], ignored=-100)
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(LOSSES["focal"](gamma=0.0, label_smoothing=0.1)(logits, labels), expected)


@every_loss
def test_weight_as_a_list(name):
    if name == "ce":
        pytest.skip("torch's own takes tensors only")
    logits, target = batch(SHAPES["NC"], torch.float32)
    as_list, as_tensor = (build(name, weight=w) for w in ([1, 2, 3, 4.5], torch.tensor([1, 2, 3, 4.5])))
    assert as_list(logits, target) == as_tensor(logits, target)
    with pytest.raises(ValueError, match=r"one factor per class, shape \(C,\), got shape \(1, 2\)"):
        build(name, weight=[[1.0, 2.0]])


LABELS = torch.tensor([0, 1])
NO_TENSORS = {
    "two heads": ((torch.zeros(2, 3), torch.zeros(2, 3)), LABELS, "input as a tensor, got tuple: take the logits out"),
    "a dictionary": ({"out": torch.zeros(2, 3)}, LABELS, "input as a tensor, got dict: take the logits out of it"),
    "an output": (SimpleNamespace(logits=torch.zeros(2, 3)), LABELS, "got SimpleNamespace: use input.logits"),
    "arrays": (np.zeros((2, 3), np.float32), LABELS.numpy(), r"input .*got ndarray: use torch.as_tensor\(input\)"),
    "array of labels": (torch.zeros(2, 3), LABELS.numpy(), r"target .*got ndarray: use torch.as_tensor\(target\)"),
    "list of labels": (torch.zeros(2, 3), [0, 1], r"target .*got list: use torch.as_tensor\(target\)"),
    "no labels": (torch.zeros(2, 3), None, "target as a tensor, got NoneType: give the labels"),
}


@pytest.mark.parametrize("case", NO_TENSORS)
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ce"])  # torch's own has its own words
def test_what_is_no_tensor_gets_its_sentence(name, case):
    logits, target, words = NO_TENSORS[case]
    for smoothing in (0.0, 0.1):
        with pytest.raises(TypeError, match=words):
            LOSSES[name](label_smoothing=smoothing, **own_arguments(name, 3))(logits, target)


def test_arguments_of_other_kinds():
    logits, target = batch(SHAPES["NC"], torch.float32, ignored=1)
    plain = LOSSES["hem"](margin=0.5, ignore_index=1)
    for margin in (np.float32(0.5), np.float16(0.5), Fraction(1, 2)):
        loss = LOSSES["hem"](margin=margin, ignore_index=np.int64(1))
        assert repr(loss) == repr(plain)
        assert loss(logits, target) == plain(logits, target)
    with pytest.raises(TypeError, match="Expected ignore_index as an integer, got None: leave it out"):
        LOSSES["hem"](ignore_index=None)
    with pytest.raises(
        TypeError, match=r"Expected weight as a list or tensor of one number per class, got \{0: 1\.0\}: give"
    ):
        LOSSES["focal"](weight={0: 1.0})
    with pytest.raises(ValueError, match=r"got shape \(\): a margin is given by its name, margin=2\."):
        LOSSES["multi_margin"](2)
    with pytest.raises(ValueError, match=r"got shape \(\): give a list of them\."):
        LOSSES["logit_norm"](0.5)


@every_loss
def test_copies_pickles_moves_and_stays_out_of_checkpoints(name):
    loss = build(name, weight=weights())
    logits, target = batch(SHAPES["NC"])
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss).to("cpu")):
        assert twin(logits, target) == loss(logits, target)
        assert repr(twin) == repr(loss)
    if name != "ce":  # torch's own saves its weight
        assert not loss.state_dict()
    moved = copy.deepcopy(loss).to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())
    half = copy.deepcopy(loss).half()  # counts are integers and survive it
    if name != "ce":  # torch's own refuses weights of another dtype than the logits
        torch.testing.assert_close(half(logits, target), loss(logits, target))


@every_loss
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_without_memory(name, dtype, soft):
    """Shapes and dtypes on the meta device, where models too large for one machine are laid out."""
    logits, target = batch(SHAPES["NC"])
    target = torch.rand(logits.shape).to(dtype) if soft else target
    loss = build(name)
    value = loss.to("meta")(logits.to("meta", dtype).requires_grad_(), target.to("meta"))
    value.backward()
    assert value.is_meta
    assert (value.shape, value.dtype) == ((), dtype)


@every_loss
def test_a_loss_made_on_the_meta_device_keeps_its_constants(name):
    """As FSDP makes a model: laid out without memory, which ``to_empty`` then gives without values."""
    if name == "ce":
        pytest.skip("torch's own is made of tensors, and loses them")
    logits, target = batch(SHAPES["NC"])
    values = weights().tolist()
    expected = build(name, weight=values)(logits, target)
    with torch.device("meta"):
        loss = build(name, weight=values)
    assert loss.to_empty(device="cpu")(logits, target) == expected


@every_loss
def test_a_move_to_where_it_is_touches_nothing(name):
    """Between forward and backward, and of constants that are one tensor."""
    loss = build(name, weight=weights())
    logits, target = batch(SHAPES["NC"])
    value = loss(logits.requires_grad_(), target)
    loss.to("cpu")
    value.backward()
    assert logits.grad is not None
    if "class_counts" in own_arguments(name, C):
        both = torch.tensor([4.0, 3.0, 2.0, 1.5])
        twin = LOSSES[name](weight=both, class_counts=both)
        expected = twin(logits, target)
        assert twin.to(torch.float64)(logits, target) == expected


def test_repr_tells_the_arguments():
    text = repr(LOSSES["hem_plus"](weight=[1.0, 2.0], class_counts=[40, 10]))
    assert text == (
        "HEMPlusLoss(weight=[1.0, 2.0], ignore_index=-100, reduction='mean', class_counts=[40, 10], "
        "m=2000.0, competitor=False)"
    )


@every_loss
def test_help_lists_every_argument(name):
    """Of functions and modules, with what is returned and raised."""
    function, module = getattr(functional, f"{name}_loss"), LOSSES[name]
    documented = [(function, inspect.signature(function))] + [(module, inspect.signature(module))] * (name != "ce")
    for thing, signature in documented:
        doc = inspect.getdoc(thing) or ""
        for argument in signature.parameters:
            assert f"\n    {argument}: " in doc, (thing, argument)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in (inspect.getdoc(function) or "")
