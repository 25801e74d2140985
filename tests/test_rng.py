import pytest
import torch

from hem.rng import GAMMA, integers, key, permutation, uniform

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """SplitMix64's next output with Python's unbounded integers, as its authors print it."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_key_is_the_documented_chain_of_splitmix():
    words = (3, 2**40, -1)
    state = 0x243F6A8885A308D3
    for word in words:
        state = splitmix(state + (word + 1) * (GAMMA & MASK))
    assert key(*words).item() & MASK == state


def test_splitmix_known_outputs():
    # the generator's first outputs from state 1234567, as listed for the reference implementation
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567 + i * (GAMMA & MASK)) for i in (1, 2, 3)] == expected


def test_keys_of_distinct_words_are_distinct():
    keys = key(torch.arange(4)[:, None, None], torch.arange(50)[:, None], torch.arange(1000))
    assert keys.unique().numel() == 4 * 50 * 1000


def test_seeds_beyond_64_bits_are_words_modulo_2_64():
    assert key(2**64 + 5) == key(5)
    assert key(2**63).dtype == torch.int64


def test_uniform_is_uniform_and_its_numbers_independent():
    draws = uniform(key(0, 1, torch.arange(200_000)), 3).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    n = len(draws)
    for column in draws.T:
        counts = torch.histc(column, 100, 0, 1)
        chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
        assert 99 - 5 * (2 * 99) ** 0.5 < chi2 < 99 + 5 * (2 * 99) ** 0.5  # chi-squared, 99 degrees of freedom
    correlation = torch.corrcoef(torch.cat([draws.T, draws.roll(1, 0).T])) - torch.eye(6)
    assert correlation.abs().max() < 5 / n**0.5  # neither places nor neighbouring samples know of each other


@pytest.mark.parametrize("words", [(0, 1), (1, 0)])
def test_neighbouring_seeds_and_epochs_are_independent(words):
    index = torch.arange(100_000)
    a, b = uniform(key(0, 0, index), 1)[:, 0], uniform(key(*words, index), 1)[:, 0]
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 5 / 100_000**0.5


def test_a_number_depends_on_its_key_alone():
    keys = key(0, torch.arange(100))
    chosen = torch.tensor([7, 99, 3])
    assert torch.equal(uniform(keys, 4)[chosen], uniform(keys[chosen], 4))
    assert torch.equal(uniform(keys, 4)[:, :2], uniform(keys, 2))


def test_integers_reach_all_values_equally():
    counts = torch.bincount(integers(key(0, torch.arange(60_000)), 6), minlength=6).double()
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 30  # chi-squared, 5 degrees of freedom


def test_permutation_is_a_function_of_its_words():
    assert torch.equal(permutation(1000, 3, 4).sort().values, torch.arange(1000))
    assert torch.equal(permutation(1000, 3, 4), permutation(1000, 3, 4))
    assert not torch.equal(permutation(1000, 3, 4), permutation(1000, 4, 3))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    permutation(10, 0)
    assert torch.equal(torch.get_rng_state(), before)
