"""Every function against the reference in plain Python, against torch, smp and hand-made cases."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hem.losses import LOSSES, effective_number_weights, functional
from tests.losses.reference import loss_and_gradient, own_arguments

FUNCTIONS = {name: getattr(functional, f"{name}_loss") for name in LOSSES}
VARIANTS = [
    *((name, {}) for name in LOSSES),
    ("hem", {"margin": 0.0}),
    ("hem", {"margin": 1.25}),
    ("hem_plus", {"m": 500.0, "competitor": True}),
    ("multi_margin", {"margin": 0.3, "p": 2}),
    ("logit_norm", {"tau": 0.5}),
    ("logit_adjusted", {"tau": 0.4}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5}),
    ("ldam", {"max_m": 0.1, "s": 5.0}),
    ("class_balanced", {"beta": 0.9}),
]


def value_and_gradient(name: str, logits: Tensor, target: Tensor, **arguments) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = FUNCTIONS[name](logits, target, **arguments)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=lambda v: v if isinstance(v, str) else str(v))
def test_agrees_with_the_reference(name, own):
    """Value and gradient in float64: labels and probabilities, with and without weights, every reduction."""
    generator = torch.Generator().manual_seed(7)
    own = own_arguments(name, 5) | own
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (9,), generator=generator)
    labels[4] = -100
    probabilities = torch.rand(9, 5, generator=generator, dtype=torch.float64)
    probabilities *= torch.rand(9, 5, generator=generator) < 0.6
    probabilities = probabilities / probabilities.sum(1, keepdim=True).clamp(min=1e-9)
    probabilities[2] = 0  # a sample without a label
    for target, w, reduction in itertools.product((labels, probabilities), (None, weight), ("none", "mean", "sum")):
        value, gradient = value_and_gradient(name, logits, target, weight=w, reduction=reduction, **own)
        w_list = None if w is None else w.tolist()
        expected = loss_and_gradient(name, logits.tolist(), target.tolist(), w_list, -100, reduction, **own)
        torch.testing.assert_close(value, torch.tensor(expected[0], dtype=torch.float64), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradient, torch.tensor(expected[1], dtype=torch.float64), rtol=1e-7, atol=1e-9)


DENSE = [
    ("hem", {}),
    ("hem", {"margin": 0.0}),
    ("hem_plus", {}),
    ("hem_plus", {"competitor": True}),
    ("multi_margin", {}),
]


@pytest.mark.parametrize("num_classes", [6, 40])
@pytest.mark.parametrize(("name", "own"), DENSE, ids=lambda v: v if isinstance(v, str) else str(v))
def test_margin_losses_of_probabilities_for_all_classes_agree_with_the_reference(name, own, num_classes):
    """Smoothed labels, whose losses come from one sort: value and gradient, with ties and equal logits among them."""
    generator = torch.Generator().manual_seed(num_classes)
    own = own_arguments(name, num_classes) | own
    logits = torch.randn(9, num_classes, generator=generator, dtype=torch.float64)
    logits[:4] = (logits[:4] * 4).round() / 4  # errors of exactly 0, the margin being 0.5
    logits[4] = 1.5
    smoothed = torch.rand(9, num_classes, generator=generator, dtype=torch.float64) + 0.01
    smoothed[2] = 0
    weight = torch.rand(num_classes, generator=generator, dtype=torch.float64)
    for w, reduction in itertools.product((None, weight), ("none", "mean", "sum")):
        value, gradient = value_and_gradient(name, logits, smoothed, weight=w, reduction=reduction, **own)
        w_list = None if w is None else w.tolist()
        expected = loss_and_gradient(name, logits.tolist(), smoothed.tolist(), w_list, -100, reduction, **own)
        torch.testing.assert_close(value, torch.tensor(expected[0], dtype=torch.float64), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradient, torch.tensor(expected[1], dtype=torch.float64), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_hem_of_probabilities_in_float32_keeps_its_digits(offset):
    """Whatever the logits have in common; in float64 the rounded logits are the truth."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 100, generator=generator) + offset
    logits[0] = offset
    q = torch.rand(16, 100, generator=generator)
    value, gradient = value_and_gradient("hem", logits, q, reduction="none")
    expected = value_and_gradient("hem", logits.double(), q.double(), reduction="none")
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-5)


def test_hem_of_probabilities_for_all_classes_at_the_edges():
    """NaN shows, -inf masks a class without a probability, and errors that overflow when summed are kept."""
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(4, 8, generator=generator) + 0.01
    logits = torch.randn(4, 8, generator=generator)
    logits[0, 3] = torch.nan
    logits[1, 2], q[1, 2] = -torch.inf, 0.0
    logits[2, 5] = torch.finfo(torch.float32).min
    logits.requires_grad_()
    loss = functional.hem_loss(logits, q, reduction="none")
    assert loss[0].isnan()
    kept = [0, 1, 3, 4, 5, 6, 7]
    alone = sum(q[1, c] * functional.hem_loss(logits[1:2], torch.tensor([c]), reduction="sum") for c in kept)
    torch.testing.assert_close(loss[1], alone)
    assert loss[1:].isfinite().all()
    loss[1:].sum().backward()
    assert logits.grad[1:].isfinite().all()
    assert logits.grad[1, 2] == 0
    assert logits.grad[2, 5] < 0, "the class masked by the least number is wholly wrong, not learnt"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["random", "ties", "large", "large ties", "far"])
def test_hem_in_float32_is_the_reference_to_1e_6(kind, seed):
    """Random shapes, margins and ignored targets; errors that equal their mean; logits up to 1e4.

    "far": logits near 1e4 whose gaps are small. z_j - z_y is exact there, z_y - μ would be off by 5e-4.
    """
    generator = torch.Generator().manual_seed(1000 * seed + len(kind))
    n, num_classes = (int(torch.randint(1, top, (), generator=generator)) for top in (40, 30))
    top = 1e4 if "large" in kind else 2.0
    if "ties" in kind:  # multiples of 1/2 are exact, so that an error can equal the mean error
        steps = torch.randint(-4, 5, (n, num_classes), generator=generator) / 2
        logits, margin = steps + torch.randint(-int(top), int(top) + 1, (n, 1), generator=generator), 0.5
    else:
        logits = top * (2 * torch.rand(n, num_classes, generator=generator) - 1)
        margin = float(torch.rand((), generator=generator))
        logits = logits + 1e4 if kind == "far" else logits
    target = torch.randint(num_classes, (n,), generator=generator)
    target[torch.rand(n, generator=generator) < 0.2] = 255
    value, gradient = value_and_gradient("hem", logits, target, ignore_index=255, margin=margin)
    expected = loss_and_gradient("hem", logits.tolist(), target.tolist(), None, 255, margin=margin)
    torch.testing.assert_close(value.double(), torch.tensor(expected[0]).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), torch.tensor(expected[1]).double(), rtol=1e-6, atol=1e-6)


def test_the_ties_of_the_test_above_are_ties():
    """An error at the mean error is kept: (0, 1, 2, 1) has mean 1."""
    logits = torch.tensor([[0.0, 0.5, 1.5, 0.5]])
    value, gradient = value_and_gradient("hem", logits, torch.tensor([0]), margin=0.5)
    assert value == pytest.approx(4 / 3)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1 / 3, 1 / 3, 1 / 3]]))


def test_hem_by_hand():
    """Two active samples of different size, one that is separated, one that is ignored."""
    logits = torch.tensor([[1.0, 1.0, 2.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    target = torch.tensor([0, 0, 0, -100])
    # errors (0, .5, 1.5) thr 2/3 -> 1.5; errors (0, 3.5, .5) thr 4/3 -> 3.5; none; ignored
    value, gradient = value_and_gradient("hem", logits, target)
    assert value == 2.5
    expected = torch.tensor([[-0.5, 0.0, 0.5], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(gradient, expected)
    losses, _ = value_and_gradient("hem", logits, target, reduction="none")
    assert losses.tolist() == [1.5, 3.5, 0.0, 0.0]
    # weights: class 0 only, so they cancel in the mean, and count in the sum
    weight = torch.tensor([2.0, 1.0, 1.0])
    assert functional.hem_loss(logits, target, weight) == 2.5
    assert functional.hem_loss(logits, target, weight, reduction="sum") == 10


def test_hem_weighs_only_samples_that_carry_error():
    logits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
    target, weight = torch.tensor([0, 0, 1]), torch.tensor([3.0, 100.0])
    # sample 2 carries no error: its weight of 100 must not count
    assert functional.hem_loss(logits, target, weight) == (3 * 0.5 + 3 * 1.5) / 6


def test_hem_is_the_hinge_of_active_samples_for_two_classes():
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    hinge = (0.5 - (logits[:, 0] - logits[:, 1])).clamp(min=0)
    loss = functional.hem_loss(logits, torch.zeros(50, dtype=torch.long))
    torch.testing.assert_close(loss, hinge[hinge > 0].mean())


def test_hem_with_probabilities_by_hand():
    """A mixed sample: 3/4 of the loss of class 0 and 1/4 of that of class 1; it carries error as a whole."""
    logits, q = (
        torch.tensor([[1.0, 0.0, 0.0], [9.0, 0.0, 0.0]]),
        torch.tensor([[0.75, 0.25, 0.0], [1.0, 0, 0]]),
    )
    # class 0: separated. class 1: errors (1.5, 0, .5) thr 2/3 -> 1.5
    assert functional.hem_loss(logits, q, reduction="none").tolist() == [0.375, 0.0]
    assert functional.hem_loss(logits, q) == 0.375


def test_margins():
    assert functional.auto_margin([6000] * 10) == pytest.approx(0.18257, abs=1e-5)
    logits, target = torch.zeros(1, 2), torch.tensor([1])
    assert functional.hem_loss(logits, target, margin="auto", class_counts=[400, 100]) == pytest.approx(2.0)
    # √(2000 / (2 · 10)) = 10 for the target's class, √(2000 / (2 · 1000)) = 1 for the competitor's
    assert functional.hem_plus_loss(logits, target, class_counts=[1000, 10]) == pytest.approx(10.0)
    assert functional.hem_plus_loss(logits, target, class_counts=[1000, 10], competitor=True) == pytest.approx(1.0)
    balanced = functional.hem_plus_loss(logits, target, class_counts=[250, 250])
    assert balanced == functional.hem_loss(logits, target, margin="auto", class_counts=[250, 250])


def test_effective_number_weights():
    weight = effective_number_weights([5000, 500, 50], beta=0.999)
    assert weight.sum().item() == pytest.approx(3)
    effective = torch.tensor([(1 - 0.999**n) / 0.001 for n in (5000, 500, 50)])
    torch.testing.assert_close(weight * effective, (weight * effective)[:1].expand(3))
    assert effective_number_weights([3, 9, 1], beta=0.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("p", "margin"), [(1, 1.0), (2, 1.0), (1, 0.2), (2, 0.2)])
def test_multi_margin_is_torchs(p, margin, weighted, reduction):
    logits, target = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 6
    weight = torch.linspace(0.1, 3, 6) if weighted else None
    arguments = {"weight": weight, "reduction": reduction, "p": p, "margin": margin}
    value, gradient = value_and_gradient("multi_margin", logits, target, **arguments)
    logits = logits.requires_grad_()
    expected = F.multi_margin_loss(logits, target, **arguments)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


SHIFTED = {
    "ce": (lambda z: z, None),
    "logit_norm": (lambda z: z / (z.norm(dim=1, keepdim=True) + 1e-7) / 0.04, None),
    "logit_adjusted": (lambda z: z + (torch.tensor([60.0, 30.0, 10.0]) / 100).log().view(3, 1), None),
    "balanced_softmax": (lambda z: z + torch.tensor([60.0, 30.0, 10.0]).log().view(3, 1), None),
    "class_balanced": (lambda z: z, effective_number_weights([60, 30, 10])),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SHIFTED)
def test_relatives_of_cross_entropy_are_torchs_on_shifted_logits(name, weighted, soft, reduction):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 7, generator=generator)
    target = torch.randint(3, (4, 7), generator=generator)
    target[0, :3] = 1 if soft else -100
    target = torch.rand(4, 3, 7, generator=generator).softmax(1) if soft else target
    weight = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    shift, own_weight = SHIFTED[name]
    own = {} if name in ("ce", "logit_norm") else {"class_counts": [60, 30, 10]}
    full = weight if own_weight is None else own_weight * (1 if weight is None else weight)
    value, gradient = value_and_gradient(name, logits, target, weight=weight, reduction=reduction, **own)
    logits = logits.requires_grad_()
    expected = F.cross_entropy(shift(logits), target, full, reduction=reduction)
    if soft and reduction == "mean" and full is not None and name != "ce":
        # torch divides the mean over probabilities by N; here it is by Σ q w, as for labels
        expected = expected * target[:, 0].numel() / (target * full.view(3, 1)).sum()
    torch.testing.assert_close(value, expected.detach())
    theirs = torch.autograd.grad(expected.sum(), logits)[0]
    torch.testing.assert_close(gradient, theirs, rtol=2e-5, atol=1e-4)  # 1 / τ = 25 enlarges what is rounded


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_ce_is_torchs_with_every_argument(label_smoothing, soft):
    generator = torch.Generator().manual_seed(3)
    logits, weight = torch.randn(8, 4, generator=generator), torch.tensor([0.5, 1.0, 2.0, 0.0])
    target = torch.rand(8, 4, generator=generator) if soft else torch.tensor([0, 1, 2, 3, -1, 0, 1, -1])
    arguments = {"weight": weight, "ignore_index": -1, "label_smoothing": label_smoothing}
    for reduction in ("none", "mean", "sum"):
        mine = functional.ce_loss(logits, target, reduction=reduction, **arguments)
        torch.testing.assert_close(mine, F.cross_entropy(logits, target, reduction=reduction, **arguments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # smp's dependencies on import
@pytest.mark.parametrize("ignore_index", [None, 255, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_dice_is_smps(weighted, ignore_index):
    smp_losses = pytest.importorskip("segmentation_models_pytorch.losses")
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 5, 8, 6, generator=generator)
    target = torch.randint(4, (2, 8, 6), generator=generator)  # class 4 is absent
    if ignore_index is not None:
        target[torch.rand(2, 8, 6, generator=generator) < 0.3] = ignore_index
    weights = [1.0, 2.0, 0.5, 0.1, 3.0] if weighted else None
    theirs = smp_losses.DiceLoss("multiclass", from_logits=True, ignore_index=ignore_index, class_weights=weights)
    value, gradient = value_and_gradient(
        "dice",
        logits,
        target,
        weight=torch.tensor(weights) if weights else None,
        ignore_index=-100 if ignore_index is None else ignore_index,
    )
    logits = logits.requires_grad_()
    expected = theirs(logits, target)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name, soft):
    """Analytic gradients against differences, in float64, on logits away from the kinks."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (2, 2), generator=generator)
    if soft:
        target = 0.9 * F.one_hot(target, 4).movedim(-1, 1).double() + 0.025
    else:
        target[1, 1] = -100
    own, weight = own_arguments(name, 4), torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda z, reduction=reduction: FUNCTIONS[name](z, target, weight, reduction=reduction, **own),
            logits,
            fast_mode=True,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_dtype_is_that_of_torchs_cross_entropy(name, reduction, dtype):
    logits, target, own = torch.randn(4, 3, dtype=dtype), torch.tensor([0, 1, 2, 0]), own_arguments(name, 3)
    like = F.cross_entropy(logits, target, reduction=reduction)
    assert FUNCTIONS[name](logits, target, reduction=reduction, **own).dtype == like.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        like = F.cross_entropy(logits, target, reduction=reduction)
        assert FUNCTIONS[name](logits, target, reduction=reduction, **own).dtype == like.dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_any_integer_dtype(name, dtype):
    logits, target, own = torch.randn(4, 3), torch.tensor([0, 1, 2, 100]), own_arguments(name, 3)
    loss = FUNCTIONS[name](logits, target.to(dtype), ignore_index=100, **own)
    assert loss == FUNCTIONS[name](logits, target, ignore_index=100, **own)


LOGITS, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
BAD_INPUT = {
    "input is integer": (TypeError, "floating-point logits as input, got torch.int64", (LOGITS.long(), LABELS)),
    "input has no axes": (ValueError, r"\(C\), \(N, C\).*got \(\)", (torch.tensor(1.0), LABELS)),
    "no classes": (ValueError, r"C >= 1, got \(4, 0\)", (torch.zeros(4, 0), LABELS)),
    "target too short": (ValueError, r"\(4,\).*\(4, 3\).*got shape \(3,\)", (LOGITS, LABELS[:3])),
    "target has another axis": (ValueError, r"got shape \(4, 1\)", (LOGITS, LABELS[:, None])),
    "float labels": (
        TypeError,
        r"Expected integer target.*got torch.float32.*target.long\(\)",
        (LOGITS, LABELS.float()),
    ),
    "bool labels": (TypeError, "Expected integer target.*got torch.bool", (LOGITS, LABELS.bool())),
    "integer one-hot": (
        TypeError,
        r"Expected floating-point target.*got torch.int64.*\(4,\)",
        (LOGITS, F.one_hot(LABELS)),
    ),
    "label too large": (ValueError, "labels from 0 to 2.*got label 7: set ignore_index=7", (LOGITS, LABELS + 7)),
    "label negative": (ValueError, "got label -1: set ignore_index=-1", (LOGITS, LABELS - 1)),
    "negative probability": (ValueError, "class probabilities >= 0 as target, got -1", (LOGITS, LOGITS - 1)),
    "weight too short": (ValueError, r"\(3,\).*got shape \(2,\)", (LOGITS, LABELS, torch.ones(2))),
    "reduction": (ValueError, "one of none, mean, sum, got 'avg'", (LOGITS, LABELS, None, -100, "avg")),
}


def test_one_logit_for_two_labels():
    """A binary problem with one output, as BCEWithLogitsLoss takes it, is told what it needs."""
    with pytest.raises(
        ValueError, match=r"label 0, the only class of input of shape \(4, 1\), got label 1.*two for a binary"
    ):
        FUNCTIONS["hem"](torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_subclasses_and_under_counting_modes_are_checked(name):
    """Masks of torchvision are a subclass; what counts operations is no tracer."""

    class Own(Tensor):
        pass

    logits, wrong = torch.zeros(2, 3), torch.tensor([0, 9])
    loss = FUNCTIONS[name]
    with pytest.raises(ValueError, match="got label 9"):
        loss(logits, wrong.as_subclass(Own), **own_arguments(name, 3))
    with FlopCounterMode(display=False), pytest.raises(ValueError, match="got label 9"):
        loss(logits, wrong, **own_arguments(name, 3))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_its_sentence(case, name):
    error, words, arguments = BAD_INPUT[case]
    with pytest.raises(error, match=words):
        FUNCTIONS[name](*arguments, **own_arguments(name, 3))


BAD_ARGUMENTS = [
    ("hem", {"margin": -0.1}, ValueError, "Expected margin to be a number >= 0, got -0.1"),
    ("hem", {"margin": math.nan}, ValueError, "Expected margin to be"),
    ("hem", {"margin": "large"}, TypeError, "Expected margin to be a number >= 0, got 'large'"),
    ("hem", {"margin": "auto"}, ValueError, "Expected class_counts, the number of .*, got None: give them"),
    ("hem_plus", {"m": 0.0}, ValueError, "Expected m to be a number > 0"),
    ("hem_plus", {"competitor": 1}, TypeError, "Expected competitor to be True or False"),
    ("hem_plus", {"class_counts": None}, ValueError, "Expected class_counts"),
    ("hem_plus", {"class_counts": [3, 0, 5]}, ValueError, r"positive class_counts, got none for the classes \[1\]"),
    ("hem_plus", {"class_counts": [[1, 2, 3]]}, ValueError, r"one number per class, got shape \(1, 3\): give a list"),
    ("hem_plus", {"class_counts": {"cat": 3, "dog": 4}}, TypeError, r"class_counts as a list or tensor.* got \{'cat'"),
    ("multi_margin", {"p": 3}, ValueError, "Expected p to be 1 or 2, got 3"),
    ("logit_norm", {"tau": 0.0}, ValueError, "Expected tau to be a number > 0"),
    ("logit_adjusted", {"tau": -1.0}, ValueError, "Expected tau to be a number > 0"),
    ("focal", {"gamma": -1.0}, ValueError, "Expected gamma to be a number >= 0"),
    ("ldam", {"max_m": -0.5}, ValueError, "Expected max_m to be a number >= 0"),
    ("ldam", {"s": 0.0}, ValueError, "Expected s to be a number > 0"),
    ("class_balanced", {"beta": 1.0}, ValueError, r"Expected beta to be a number in \[0, 1\)"),
]


@pytest.mark.parametrize(("name", "own", "error", "words"), BAD_ARGUMENTS)
def test_bad_own_arguments_get_their_sentence_in_function_and_module(name, own, error, words):
    own = own_arguments(name, 3) | own
    with pytest.raises(error, match=words):
        FUNCTIONS[name](LOGITS, LABELS, **own)
    with pytest.raises(error, match=words):
        LOSSES[name](**own)


@pytest.mark.parametrize("name", [name for name in LOSSES if own_arguments(name, 3)])
def test_counts_of_another_number_of_classes(name):
    with pytest.raises(ValueError, match="Expected class_counts of 3 classes, one for each logit of input, got 4"):
        FUNCTIONS[name](LOGITS, LABELS, class_counts=[1, 2, 3, 4])
