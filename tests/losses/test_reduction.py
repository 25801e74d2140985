"""A loss on many devices, or in many micro-batches, has the gradient of one big batch."""

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hem.losses import LOSSES, Accumulation, DiceLoss, HEMLoss, SumLoss, accumulate, evaluate, global_mean
from hem.losses.reduction import all_sum, ratio, reduce
from tests.losses.reference import own_arguments
from tests.processes import Processes

C = 4
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
RATIOS = [name for name in LOSSES if name != "dice"]

# Two processes


def scenarios() -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """The parts of one batch, one for each of two processes: features and targets."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (16,), generator=generator)
    labels[[1, 12, 13]] = -100
    separated = torch.cat((features[:11], 30 * F.one_hot(labels[11:].clamp(min=0), C)))
    unlabelled = labels.clone()
    unlabelled[11:] = -100
    q = torch.rand(16, C, generator=generator, dtype=torch.float64).softmax(1)

    def parts(features: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return list(features.split([11, 5])), list(target.split([11, 5]))

    return {
        "uneven": parts(features, labels),
        "one process carries no error": parts(separated, labels),
        "one process has no label": parts(features, unlabelled),
        "no process has a label": parts(features, torch.full_like(labels, -100)),
        "probabilities": parts(features, q),
    }


def model() -> nn.Linear:
    """Near the identity, so that features are logits."""
    net = nn.Linear(C, C, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.eye(C) + 0.01 * torch.arange(C * C).view(C, C))
        net.bias.zero_()
    return net


def gradients(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def two_processes_against_one(folder: str) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    reductions = 0
    all_reduce = dist.all_reduce

    def counted(*arguments, **own):
        nonlocal reductions
        reductions += 1
        return all_reduce(*arguments, **own)

    dist.all_reduce = counted
    alone, net = model(), nn.parallel.DistributedDataParallel(model())
    settings = ((WEIGHT, "mean"), (None, "sum"))
    for name, (weight, reduction) in itertools.product(LOSSES, settings):
        loss = LOSSES[name](weight=weight, reduction=reduction, **own_arguments(name, C))
        for case, (features, targets) in scenarios().items():
            alone.zero_grad()
            net.zero_grad()
            expected = evaluate(loss, alone(torch.cat(features)), torch.cat(targets))
            expected.backward()
            with global_mean():
                reductions = 0
                value = evaluate(loss, net(features[rank]), targets[rank])
                assert reductions == 1, f"{name}: {reductions} reductions"
            value.backward()
            what = f"{name}, weight {weight is not None}, {reduction}, {case}: "
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9, msg=lambda m, what=what: what + m)
            torch.testing.assert_close(
                gradients(net), gradients(alone), rtol=1e-6, atol=1e-9, msg=lambda m, what=what: what + m
            )
            reductions = 0
            evaluate(loss, alone(features[rank]), targets[rank])  # no scope: nothing is communicated
            assert reductions == 0
    micro_batches_of_two_processes_against_one(rank, net, alone)
    dist.destroy_process_group()


def micro_batches_of_two_processes_against_one(
    rank: int, net: nn.parallel.DistributedDataParallel, alone: nn.Module
) -> None:
    """Both scopes at once: two processes with two micro-batches each."""
    for name, (features, targets) in itertools.product(RATIOS, scenarios().values()):
        loss = LOSSES[name](weight=WEIGHT, **own_arguments(name, C))
        step = Accumulation()
        alone.zero_grad()
        net.zero_grad()
        evaluate(loss, alone(torch.cat(features)), torch.cat(targets)).backward()
        for last, part in enumerate((slice(0, 2), slice(2, None))):
            with global_mean(), accumulate(step):
                if last:
                    evaluate(loss, net(features[rank][part]), targets[rank][part]).backward()
                else:
                    with net.no_sync():
                        evaluate(loss, net(features[rank][part]), targets[rank][part]).backward()
        torch.testing.assert_close(gradients(net) * step.factor(), gradients(alone), rtol=1e-6, atol=1e-9)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path):
    """Every loss, by DDP itself; parts of uneven size, with ignored samples, without error, without label."""
    done = Processes(two_processes_against_one, str(tmp_path), ranks=2).wait()
    assert done.code == 0, done.err


def test_one_process_alone_is_left_alone():
    logits, target = torch.randn(6, C), torch.arange(6) % C
    with global_mean():
        assert HEMLoss()(logits, target) == HEMLoss()(logits, target)
        x = torch.ones(3)
        assert all_sum(x) is x


# Micro-batches


@pytest.mark.parametrize("divided_by", [1, 4])
@pytest.mark.parametrize("case", ["labels", "first without label", "none with label", "probabilities"])
@pytest.mark.parametrize("name", RATIOS)
def test_micro_batches_have_the_gradient_of_the_whole(name, case, divided_by):
    """Uneven ones, whose first may have nothing to say; divided by what Lightning divides by."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(13, C, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (13,), generator=generator)
    target[5] = -100
    if case == "first without label":
        target[:4] = -100
    elif case == "none with label":
        target[:] = -100
    elif case == "probabilities":
        target = torch.rand(13, C, generator=generator, dtype=torch.float64).softmax(1)
    loss, step = LOSSES[name](weight=WEIGHT, **own_arguments(name, C)), Accumulation()
    logits.requires_grad_()
    expected = torch.autograd.grad(evaluate(loss, logits, target), logits)[0]
    for _ in range(2):  # the second time after a reset
        slope = torch.zeros_like(logits)
        for part in (slice(0, 4), slice(4, 11), slice(11, 13)):
            with accumulate(step):
                value = evaluate(loss, logits[part], target[part])
            torch.testing.assert_close(value, evaluate(loss, logits[part], target[part]))
            slope += torch.autograd.grad(value / divided_by, logits)[0]
        torch.testing.assert_close(slope * step.factor(divided_by), expected)
        step.reset()


@pytest.mark.parametrize(("name", "reduction"), [("dice", "mean"), ("hem", "sum")])
def test_losses_that_are_no_ratio_get_the_mean_of_their_micro_batches(name, reduction):
    logits = torch.randn(8, C, generator=torch.Generator().manual_seed(2), requires_grad=True)
    target = torch.arange(8) % C
    loss, step = LOSSES[name](reduction=reduction), Accumulation()
    total = torch.zeros(())
    for part in (slice(0, 5), slice(5, 8)):
        with accumulate(step):
            total = total + evaluate(loss, logits[part], target[part])
    slope = torch.autograd.grad(total, logits)[0]
    means = torch.stack([evaluate(loss, logits[part], target[part]) for part in (slice(0, 5), slice(5, 8))])
    expected = torch.autograd.grad(means.mean(), logits)[0]
    torch.testing.assert_close(slope * step.factor(), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_loss_that_is_evaluated_again_in_backward_counts_once(reentrant):
    """Activation checkpointing of head and loss, as large vocabularies have it."""
    features, target = torch.randn(8, C, dtype=torch.float64, requires_grad=True), torch.arange(8) % C
    head, loss, step = nn.Linear(C, C).double(), HEMLoss(), Accumulation()
    loss(head(features), target).backward()
    whole = head.weight.grad.clone()
    head.weight.grad = None
    for part in (slice(0, 2), slice(2, 8)):
        with accumulate(step):
            checkpoint(lambda x, y: loss(head(x), y), features[part], target[part], use_reentrant=reentrant).backward()
    torch.testing.assert_close(head.weight.grad * step.factor(), whole)


def test_a_sum_of_two_means_is_refused_in_micro_batches():
    logits, target, step = torch.randn(8, C), torch.arange(8) % C, Accumulation()
    for _ in range(2):  # one mean in each
        with accumulate(step):
            SumLoss([nn.CrossEntropyLoss(), DiceLoss()])(logits, target)
    with pytest.raises(ValueError, match=r"Expected one mean in each micro-batch, .*batches to 1"), accumulate(step):
        SumLoss([nn.CrossEntropyLoss(), HEMLoss()])(logits, target)


def test_scopes_close_after_an_error():
    step = Accumulation()
    with pytest.raises(ValueError, match="boom"), accumulate(step), global_mean():
        raise ValueError("boom")
    HEMLoss()(torch.randn(2, C), torch.tensor([0, 1]))
    assert step.reference is None


# One number


def test_ratio_of_nothing_is_zero_and_nan_stays_nan():
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    empty = ratio((0 * x).sum(), torch.tensor(0.0))
    empty.backward()
    assert empty == 0
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0]
    assert ratio(torch.tensor(torch.nan), torch.tensor(2.0)).isnan()


def test_reduce():
    loss, mass = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.5, 0.0])
    assert reduce(loss, mass, "none") is loss
    assert reduce(loss, mass, "sum") == 3
    assert reduce(loss, mass, "mean") == 2


def test_evaluate_is_the_criterion():
    """Torch's cross-entropy with all its arguments, ours, and anyone's."""
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(6, C, generator=generator), torch.tensor([0, 1, 2, 3, 9, 1])
    weight = WEIGHT.float()
    for reduction in ("none", "mean", "sum"):
        criterion = nn.CrossEntropyLoss(weight, ignore_index=9, reduction=reduction, label_smoothing=0.2)
        torch.testing.assert_close(evaluate(criterion, logits, target), criterion(logits, target))

    class Own(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return input.new_tensor(42.0)

    assert evaluate(Own(), logits, target) == 42
    assert evaluate(HEMLoss(ignore_index=9), logits, target) == HEMLoss(ignore_index=9)(logits, target)
    assert evaluate(nn.CrossEntropyLoss(ignore_index=9), logits, torch.full((6,), 9)) == 0


def test_the_former_place_of_evaluate():
    with pytest.warns(DeprecationWarning, match=r"hem.losses.reduction.evaluate is now hem.losses.evaluate"):
        from hem.losses.reduction import evaluate as former
    assert former is evaluate
