"""A buffer is a uniform sample of what was presented, whatever the order, or an equal share of every group."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from hem.datamodules import ContinualDataModule, DigitsDataModule
from hem.strategies import ReplayBuffer


def present(buffer: ReplayBuffer, count: int, pieces: int, groups: int = 1) -> None:
    for part in torch.arange(count).tensor_split(pieces):
        buffer.add(part, part % groups)


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_reservoir_is_uniform(pieces):
    """Over 800 seeds each of 40 samples, early or late, is kept equally often: chi-square."""
    kept: Counter[int] = Counter()
    for seed in range(800):
        buffer = ReplayBuffer(5, seed=seed)
        present(buffer, 40, pieces)
        assert len(set(buffer.index.tolist())) == 5
        kept.update(buffer.index.tolist())
    assert chisquare([kept[i] for i in range(40)]).pvalue > 1e-3


def test_a_reservoir_is_uniform_at_every_time():
    """Not only at the end: after 10 of 40 samples as well; and pairs are kept as often as they should."""
    early: Counter[int] = Counter()
    pairs = 0
    for seed in range(800):
        buffer = ReplayBuffer(5, seed=seed)
        buffer.add(torch.arange(10), torch.zeros(10).long())
        early.update(buffer.index.tolist())
        buffer.add(torch.arange(10, 40), torch.zeros(30).long())
        pairs += {0, 39} <= set(buffer.index.tolist())
    assert chisquare([early[i] for i in range(10)]).pvalue > 1e-3
    expected = 800 * (5 / 40) * (4 / 39)
    assert abs(pairs - expected) < 4 * expected**0.5


@pytest.mark.parametrize("balanced", [False, True])
def test_order_and_pieces_do_not_matter(balanced):
    whole, pieces, backwards = (ReplayBuffer(12, balanced=balanced, seed=3) for _ in range(3))
    present(whole, 100, 1, groups=5)
    present(pieces, 100, 9, groups=5)
    reverse = torch.arange(100).flip(0)
    backwards.add(reverse, reverse % 5)
    assert set(whole.index.tolist()) == set(pieces.index.tolist()) == set(backwards.index.tolist())
    other = ReplayBuffer(12, balanced=balanced, seed=4)
    present(other, 100, 1, groups=5)
    assert set(other.index.tolist()) != set(whole.index.tolist())


@pytest.mark.parametrize(
    ("sizes", "size", "shares"),
    [
        ([50, 50, 50, 50], 20, [5, 5, 5, 5]),
        ([50, 50, 50], 20, [7, 7, 6]),  # the remainder to some of them
        ([2, 50, 50], 20, [2, 9, 9]),  # what one lacks, the others have
        ([3, 4], 20, [3, 4]),
    ],
)
def test_a_balanced_memory(sizes, size, shares):
    buffer = ReplayBuffer(size, balanced=True, seed=1)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    buffer.add(torch.arange(len(group)), group)
    assert sorted(torch.bincount(buffer.group).tolist()) == sorted(shares)
    assert torch.equal(group[buffer.index], buffer.group)
    if sizes[0] == 2:
        assert (buffer.group == 0).sum() == 2


def test_no_size_is_everything():
    buffer = ReplayBuffer(None)
    present(buffer, 30, 4)
    assert buffer.index.tolist() == list(range(30))


def test_draws_go_through_the_memory_again_and_again():
    buffer = ReplayBuffer(7, seed=2)
    present(buffer, 50, 1)
    draws = torch.cat([buffer.draw(4, epoch=3, step=step) for step in range(7)])
    for start in (0, 7, 14, 21):
        assert sorted(draws[start : start + 7].tolist()) == list(range(7))
    assert not torch.equal(draws[:7], draws[7:14])
    assert len(buffer.draw(20, 0, 0)) == 20  # more than it holds
    assert torch.equal(buffer.draw(20, 1, 2), buffer.draw(20, 1, 2))
    assert not torch.equal(buffer.draw(20, 1, 2), buffer.draw(20, 1, 2, stream=1))


def test_logits_stay_with_their_samples():
    buffer = ReplayBuffer(6, seed=0)
    for part in torch.arange(60).split(9):
        buffer.add(part, part, 0, logits=part[:, None] * torch.ones(3))
    assert buffer.logits is not None
    assert torch.equal(buffer.logits[:, 0].long(), buffer.index)
    again = ReplayBuffer(6)
    again.load_state_dict(buffer.state_dict())
    assert torch.equal(again.logits, buffer.logits)
    assert torch.equal(again.key, buffer.key)


def test_a_reservoir_of_a_stream_has_its_class_shares():
    """The validation part is cut off by hashes of (seed, position), too: once the buffer took what that left.

    With the same seed for both, the samples with the smallest hashes of each class were in the validation part,
    and the reservoir lacked whole classes.
    """
    kept = torch.zeros(10)
    for seed in range(40):
        data = ContinualDataModule(DigitsDataModule(), seed=seed, split_seed=seed)
        targets = data.images("train").targets
        buffer = ReplayBuffer(50, seed=seed)
        for task in range(5):
            index = data.part_of("train", [task])
            buffer.add(index, targets[index])
        kept += torch.bincount(buffer.group, minlength=10)
    expected = torch.tensor(data.class_counts) / sum(data.class_counts) * kept.sum()
    assert chisquare(kept.numpy(), expected.numpy()).pvalue > 1e-3
