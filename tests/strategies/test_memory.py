"""A memory is a uniform sample of what was presented, whatever the order, or an equal share of every group."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from hem.datamodules import ContinualDataModule, DigitsDataModule
from hem.strategies import Memory


def present(memory: Memory, count: int, pieces: int, groups: int = 1) -> None:
    for part in torch.arange(count).tensor_split(pieces):
        memory.add(part, part % groups)


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_reservoir_is_uniform(pieces):
    """Over 800 seeds each of 40 samples, early or late, is kept equally often: chi-square."""
    kept: Counter[int] = Counter()
    for seed in range(800):
        memory = Memory(5, seed=seed)
        present(memory, 40, pieces)
        assert len(set(memory.index.tolist())) == 5
        kept.update(memory.index.tolist())
    assert chisquare([kept[i] for i in range(40)]).pvalue > 1e-3


def test_a_reservoir_is_uniform_at_every_time():
    """Not only at the end: after 10 of 40 samples as well; and pairs are kept as often as they should."""
    early: Counter[int] = Counter()
    pairs = 0
    for seed in range(800):
        memory = Memory(5, seed=seed)
        memory.add(torch.arange(10), torch.zeros(10).long())
        early.update(memory.index.tolist())
        memory.add(torch.arange(10, 40), torch.zeros(30).long())
        pairs += {0, 39} <= set(memory.index.tolist())
    assert chisquare([early[i] for i in range(10)]).pvalue > 1e-3
    expected = 800 * (5 / 40) * (4 / 39)
    assert abs(pairs - expected) < 4 * expected**0.5


@pytest.mark.parametrize("balanced", [False, True])
def test_order_and_pieces_do_not_matter(balanced):
    whole, pieces, backwards = (Memory(12, balanced=balanced, seed=3) for _ in range(3))
    present(whole, 100, 1, groups=5)
    present(pieces, 100, 9, groups=5)
    reverse = torch.arange(100).flip(0)
    backwards.add(reverse, reverse % 5)
    assert set(whole.index.tolist()) == set(pieces.index.tolist()) == set(backwards.index.tolist())
    other = Memory(12, balanced=balanced, seed=4)
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
    memory = Memory(size, balanced=True, seed=1)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    memory.add(torch.arange(len(group)), group)
    assert sorted(torch.bincount(memory.group).tolist()) == sorted(shares)
    assert torch.equal(group[memory.index], memory.group)
    if sizes[0] == 2:
        assert (memory.group == 0).sum() == 2


def test_no_size_is_everything():
    memory = Memory(None)
    present(memory, 30, 4)
    assert memory.index.tolist() == list(range(30))


def test_draws_go_through_the_memory_again_and_again():
    memory = Memory(7, seed=2)
    present(memory, 50, 1)
    draws = torch.cat([memory.draw(4, epoch=3, step=step) for step in range(7)])
    for start in (0, 7, 14, 21):
        assert sorted(draws[start : start + 7].tolist()) == list(range(7))
    assert not torch.equal(draws[:7], draws[7:14])
    assert len(memory.draw(20, 0, 0)) == 20  # more than it holds
    assert torch.equal(memory.draw(20, 1, 2), memory.draw(20, 1, 2))
    assert not torch.equal(memory.draw(20, 1, 2), memory.draw(20, 1, 2, stream=1))


def test_logits_stay_with_their_samples():
    memory = Memory(6, seed=0)
    for part in torch.arange(60).split(9):
        memory.add(part, part, 0, logits=part[:, None] * torch.ones(3))
    assert memory.logits is not None
    assert torch.equal(memory.logits[:, 0].long(), memory.index)
    again = Memory(6)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.logits, memory.logits)
    assert torch.equal(again.key, memory.key)


def test_a_reservoir_of_a_stream_has_its_class_shares():
    """The validation part is cut off by hashes of (seed, position), too: once the memory took what that left.

    With the same seed for both, the samples with the smallest hashes of each class were in the validation part,
    and the reservoir lacked whole classes.
    """
    kept = torch.zeros(10)
    for seed in range(40):
        data = ContinualDataModule(DigitsDataModule(), seed=seed, split_seed=seed)
        targets = data.images("train").targets
        memory = Memory(50, seed=seed)
        for task in range(5):
            index = data.part_of("train", [task])
            memory.add(index, targets[index])
        kept += torch.bincount(memory.group, minlength=10)
    expected = torch.tensor(data.class_counts) / sum(data.class_counts) * kept.sum()
    assert chisquare(kept.numpy(), expected.numpy()).pvalue > 1e-3
