"""What the strategies add to the loss, against plain loops in float64; and what is in the joined batches."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hem.losses import HEMLoss
from hem.strategies import EWC, SI, DERPlusPlus, LwF, Replay, Samples
from hem.strategies.distillation import distillation
from hem.strategies.replay import joined

CLASSES, FEATURES = 4, 3
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.rand(40, FEATURES, generator=RANDOM, dtype=torch.float64)
TARGETS = torch.randint(CLASSES, (40,), generator=RANDOM)


class Learner:
    """What a strategy sees of a task: a linear network on 40 samples, in one process."""

    def __init__(self, criterion: nn.Module | None = None) -> None:
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(FEATURES, CLASSES)).double()
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.num_classes = CLASSES
        self.current, self.current_epoch, self.step = 1, 2, 0
        self.steps_per_epoch, self.batch_size, self.processes = 4, 8, (0, 1)

    def __call__(self, input):
        return self.net(input)

    def loss_of(self, logits, target, index):
        return self.criterion(logits, target)

    def heads(self, task):
        return [torch.arange(2)]

    def task_samples(self):
        return torch.arange(40)

    def groups(self, index):
        return TARGETS[index]

    def replayed(self, index, draw=0):
        return Samples(IMAGES[index], TARGETS[index], index)

    def sample_gradients(self, count, chunk):
        for i in range(count):
            loss = self.criterion(self.net(IMAGES[i : i + 1]), TARGETS[i : i + 1])
            gradients = torch.autograd.grad(loss, list(self.net.parameters()))
            yield dict(zip(("0.weight", "0.bias"), (g[None] for g in gradients), strict=True))


def batch(*numbers: int) -> Samples:
    index = torch.tensor(numbers)
    return Samples(IMAGES[index], TARGETS[index], index)


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_distillation():
    """KL of the old from the new probabilities, for each head, by its formula."""
    new, old = (torch.randn(6, 5, generator=RANDOM, dtype=torch.float64) for _ in range(2))
    heads = [torch.tensor([0, 3]), torch.tensor([1, 2, 4])]
    expected = 0.0
    for head in heads:
        p, q = (probabilities(z.numpy()[:, head] / 2.5) for z in (old, new))
        expected += (p * (np.log(p) - np.log(q))).sum() / 6
    assert distillation(new, old, heads, 2.5).item() == pytest.approx(expected, rel=1e-12)
    assert distillation(old, old, heads, 2.5).item() == pytest.approx(0, abs=1e-15)


def test_lwf():
    """Nothing in the first task; then the old network's answers for the old classes, at the given weight."""
    learner, strategy = Learner(), LwF(strength=3.0, temperature=2.0)
    given = batch(1, 2, 3)
    assert torch.equal(strategy.loss(learner, given), learner.criterion(learner.net(given.input), given.target))
    strategy.end_task(learner)
    old = learner.net(given.input).detach()
    with torch.no_grad():
        learner.net[0].weight += 0.5 * torch.randn(CLASSES, FEATURES, generator=RANDOM, dtype=torch.float64)
    logits = learner.net(given.input)
    expected = learner.criterion(logits, given.target) + 3 * distillation(logits, old, [torch.arange(2)], 2.0)
    assert strategy.loss(learner, given).item() == pytest.approx(expected.item(), rel=1e-12)
    again = LwF(strength=3.0)
    again.load_state_dict(strategy.state_dict())
    assert again.loss(learner, given).item() == strategy.loss(learner, given).item()


def test_lwf_has_little_to_hold_on_to_under_small_logits():
    """What the docstring warns of: at T = 2 the distance of logits of HEM's size is a hundredth of CE's or less."""
    new, old = torch.randn(50, 5, generator=RANDOM), torch.randn(50, 5, generator=RANDOM)
    heads = [torch.arange(5)]
    large, small = (distillation(s * new, s * old, heads, 2.0).item() for s in (5.0, 0.2))
    assert small < large / 100
    assert distillation(0.2 * new, 0.2 * old, heads, 2.0 * 0.2 / 5).item() == pytest.approx(large, rel=1e-4)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), HEMLoss(margin=0.5)])
def test_ewc(criterion):
    """Squared gradients of single samples; a penalty of its own for each of two tasks."""
    learner, strategy = Learner(criterion), EWC(strength=7.0, samples=10)
    expected_penalty = 0.0
    fishers, anchors = [], []
    for shift in (0.3, -0.2):
        figures = strategy.end_task(learner)
        fisher = {name: np.zeros(p.shape) for name, p in learner.net.named_parameters()}
        for i in range(10):
            learner.net.zero_grad()
            criterion(learner.net(IMAGES[i : i + 1]), TARGETS[i : i + 1]).backward()
            for name, p in learner.net.named_parameters():
                fisher[name] += p.grad.numpy() ** 2 / 10
        total = sum(f.sum() for f in fisher.values())
        assert figures["importance"] == pytest.approx(total / (CLASSES * FEATURES + CLASSES))
        fishers.append(fisher)
        anchors.append({name: p.detach().numpy().copy() for name, p in learner.net.named_parameters()})
        with torch.no_grad():
            for p in learner.net.parameters():
                p += shift
    for fisher, anchor in zip(fishers, anchors, strict=True):
        for name, p in learner.net.named_parameters():
            expected_penalty += 7 / 2 * (fisher[name] * (p.detach().numpy() - anchor[name]) ** 2).sum()
    given = batch(20, 21)
    plain = criterion(learner.net(given.input), given.target).item()
    assert expected_penalty > 0
    assert strategy.loss(learner, given).item() == pytest.approx(plain + expected_penalty, rel=1e-10)


def test_importances_vanish_where_all_samples_clear_the_margin():
    learner, strategy = Learner(HEMLoss(margin=0.0)), EWC(samples=10)
    learner.net = nn.Sequential(nn.Linear(FEATURES, CLASSES)).double()
    learner.sample_gradients = lambda count, chunk: iter(
        [dict(zip(("0.weight", "0.bias"), (torch.zeros(10, *p.shape) for p in learner.net.parameters()), strict=True))]
    )
    assert strategy.end_task(learner) == {"importance": 0.0}


def test_si():
    """Two tasks of plain SGD, the path integral and the importances in loops beside it."""
    learner, strategy = Learner(), SI(strength=0.7, damping=0.01)
    weight = learner.net[0].weight
    learner.net[0].bias.requires_grad_(False)
    w = weight.detach().numpy().copy()
    importance, anchor = np.zeros_like(w), w.copy()
    rate, bias = 0.5, learner.net[0].bias.detach().numpy()
    for task in range(2):
        strategy.begin_task(learner)
        path, start = np.zeros_like(w), w.copy()
        for step in range(5):
            numbers = [(7 * step + task + i) % 40 for i in range(6)]
            given = batch(*numbers)
            weight.grad = None
            strategy.loss(learner, given).backward()
            strategy.before_step(learner)
            with torch.no_grad():
                weight -= rate * weight.grad
            strategy.after_step(learner)

            x, y = given.input.numpy(), given.target.numpy()
            p = probabilities(x @ w.T + bias)
            p[np.arange(6), y] -= 1
            gradient = p.T @ x / 6
            step_taken = -rate * (gradient + 2 * 0.7 * importance * (w - anchor))
            path -= gradient * step_taken
            w = w + step_taken
            assert np.allclose(weight.detach().numpy(), w, rtol=1e-9)
        importance = importance + np.maximum(path, 0) / ((w - start) ** 2 + 0.01)
        anchor = w.copy()
        figures = strategy.end_task(learner)
        assert np.allclose(strategy.importance["0.weight"].numpy(), importance, rtol=1e-9)
        assert figures["importance"] == pytest.approx(importance.mean())
    assert importance.max() > 0


def test_derpp():
    """The three terms by their formula, with two draws; the batch enters the buffer with its logits."""
    learner, strategy = Learner(), DERPlusPlus(size=10, alpha=0.3, beta=0.6)
    first = batch(*range(10))
    plain = learner.criterion(learner.net(first.input), first.target)
    assert torch.equal(strategy.loss(learner, first), plain)
    assert strategy.buffer.index.tolist() == list(range(10))
    stored = learner.net(first.input).detach()
    assert torch.equal(strategy.buffer.logits, stored)

    with torch.no_grad():
        learner.net[0].weight += 0.3
    buffer, given = strategy.buffer, batch(30, 31, 32)
    draws = [buffer.draw(3, learner.current_epoch, learner.step, stream) for stream in (0, 1)]
    assert draws[0].tolist() != draws[1].tolist()
    numbers = [buffer.index[d] for d in draws]
    squares = (learner.net(IMAGES[numbers[0]]) - stored[draws[0]]).square().sum() / (3 * CLASSES)
    expected = learner.criterion(learner.net(given.input), given.target) + 0.3 * squares
    expected = expected + 0.6 * learner.criterion(learner.net(IMAGES[numbers[1]]), TARGETS[numbers[1]])
    assert strategy.loss(learner, given).item() == pytest.approx(expected.item(), rel=1e-12)
    assert len(buffer) == 10


@pytest.mark.parametrize(("per_step", "count"), [("equal", 6), (2, 2), ("epoch", 4)])
def test_replay(per_step, count):
    """The loss is one mean over the batch and so many samples of the buffer."""
    learner, strategy = Learner(), Replay(size=16, per_step=per_step)
    given = batch(*range(6))
    assert torch.equal(strategy.loss(learner, given), learner.criterion(learner.net(given.input), given.target))
    assert strategy.end_task(learner) == {"memory": 16}
    seen = []
    learner.loss_of = lambda logits, target, index: seen.append((logits, target, index))
    strategy.loss(learner, given)
    logits, target, index = seen[0]
    assert index[:6].tolist() == given.index.tolist()
    assert len(index) == 6 + count
    assert set(index[6:].tolist()) <= set(strategy.buffer.index.tolist())
    assert torch.equal(target, TARGETS[index])
    assert torch.allclose(logits, learner.net(IMAGES[index]))


def test_replayed_samples_join_mixed_labels():
    mixed = Samples(IMAGES[:2], F.one_hot(TARGETS[:2], CLASSES).double(), torch.arange(2))
    target = joined(mixed, batch(5), CLASSES).target
    assert target.shape == (3, CLASSES)
    assert target[2].tolist() == F.one_hot(TARGETS[5], CLASSES).tolist()


def test_presented_counts():
    """What an epoch shows of each class beside the task's own samples, on average."""
    learner, strategy = Learner(), Replay(size=None)
    assert strategy.presented(learner).tolist() == [0] * CLASSES
    strategy.end_task(learner)
    shares = torch.bincount(TARGETS, minlength=CLASSES).double() / 40
    assert torch.allclose(strategy.presented(learner), shares * 4 * 8)
    strategy.per_step = "epoch"
    assert torch.allclose(strategy.presented(learner), shares * 40)
    strategy.per_step = 3
    assert torch.allclose(strategy.presented(learner), shares * 4 * 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Replay(size=0), "size, a number of samples, to be 1 or more, got 0"),
        (lambda: Replay(per_step=0), "per_step, a number of samples, to be 1 or more, got 0"),
        (lambda: DERPlusPlus(alpha=-1), "alpha, a weight, to be 0 or more, got -1"),
        (lambda: EWC(strength=-1), "strength, a weight, to be 0 or more, got -1"),
        (lambda: EWC(samples=0), "samples, a number of samples, to be 1 or more"),
        (lambda: SI(damping=0), "damping above 0, which keeps a division finite, got 0"),
        (lambda: LwF(temperature=0), "temperature above 0, got 0"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
