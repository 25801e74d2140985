"""Stateless random numbers: hashes of integer keys.

A generator hands out numbers in the order in which it is asked, so shuffling in four workers, on two devices
or after a restart gives other numbers. Here a number is a function of its *key*, the words that name it
(seed, epoch, index of the sample, ...), and of its place in the row of numbers drawn with that key. Nothing
is carried from one draw to the next.
"""

import math

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # the odd integer next to 2^64 / golden ratio, as a signed 64-bit number
START = 0x243F6A8885A308D3  # the first 64 bits of pi - 3: where every key begins


def _mix(word: Tensor) -> Tensor:
    """A bijection of 64-bit words in which every bit of the result depends on every bit of ``word``.

    SplitMix64's finaliser on int64, whose products wrap modulo 2^64 as the unsigned ones do; ``>>`` copies
    the sign, so the copies are masked away.

    Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (variant 13 of
    Stafford).
    """
    word = (word ^ ((word >> 30) & 0x3FFFFFFFF)) * (0xBF58476D1CE4E5B9 - 2**64)
    word = (word ^ ((word >> 27) & 0x1FFFFFFFFF)) * (0x94D049BB133111EB - 2**64)
    return word ^ ((word >> 31) & 0x1FFFFFFFF)


def key(*words: int | Tensor) -> Tensor:
    """The key named by some words: ``k <- mix(k + GAMMA * (word + 1))``, word after word.

    For fixed other words two different words never give the same key, since each step is a bijection.

    Args:
        words: Integers, or int64 tensors that broadcast against each other.

    Returns:
        int64 tensor of the words' broadcast shape, on the device of the last tensor among them.

    Example:
        >>> key(0, 7, torch.arange(3)).tolist() == [key(0, 7, i).item() for i in range(3)]
        True
    """
    state = torch.tensor(START)
    for word in words:
        if isinstance(word, Tensor):
            state = state.to(word.device)
        else:
            word = (word + 2**63) % 2**64 - 2**63  # any Python integer, as a signed 64-bit word
        state = _mix(state + (torch.as_tensor(word, device=state.device) + 1) * GAMMA)
    return state


def uniform(key: Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, 1) for every key: the top 24 bits of ``mix(key + GAMMA * j)``, j = 1..count.

    Args:
        key: (N,) int64, from :func:`key`.
        count: How many numbers each key gives.

    Returns:
        (N, count) float32: multiples of 2^-24, all of them equally likely.

    Example:
        >>> draws = uniform(key(0, torch.arange(10_000)), 2)
        >>> draws.shape, round(draws.mean().item(), 2), bool((draws < 1).all())
        (torch.Size([10000, 2]), 0.5, True)
    """
    place = torch.arange(1, count + 1, device=key.device) * GAMMA
    bits = _mix(key.unsqueeze(-1) + place)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def normal(key: Tensor, count: int) -> Tensor:
    """``count`` numbers of the standard normal distribution for every key, by its inverse.

    Args:
        key: (N,) int64, from :func:`key`.
        count: How many numbers each key gives.

    Returns:
        (N, count) float32. :func:`uniform` is moved by half of its step, off 0, where the inverse is infinite.

    Example:
        >>> draws = normal(key(0, torch.arange(10_000)), 2)
        >>> round(draws.mean().item(), 1) + 0.0, round(draws.std().item(), 1)
        (0.0, 1.0)
    """
    return torch.erfinv(2 * uniform(key, count) - (1 - 2.0**-24)) * math.sqrt(2)


def integers(key: Tensor, high: int) -> Tensor:
    """One integer in 0..high-1 for every key, each equally likely (to within high / 2^62).

    Example:
        >>> integers(key(0, torch.arange(1000)), 3).unique().tolist()
        [0, 1, 2]
    """
    return (_mix(key + GAMMA) & (2**62 - 1)) % high


def permutation(n: int, *words: int) -> Tensor:
    """The numbers 0..n-1 in an order that is a function of the words alone: sorted by their hash.

    Example:
        >>> permutation(5, 0, 1).sort().values.tolist()
        [0, 1, 2, 3, 4]
        >>> bool((permutation(99, 0, 1) == permutation(99, 0, 2)).all())
        False
    """
    return torch.argsort(key(*words, torch.arange(n)))


def some(count: int | None, of: int, *words: int) -> Tensor:
    """Some of the numbers 0..of-1, ascending, chosen as a function of the words; None: all of them.

    Example:
        >>> some(2, 5, 0).tolist(), some(9, 3, 0).tolist(), some(None, 2).tolist()
        ([0, 1], [0, 1, 2], [0, 1])
    """
    return torch.arange(of) if count is None or count >= of else permutation(of, *words)[:count].sort().values


def seed_of(*words: int) -> int:
    """A seed for a generator of torch that is a function of some words.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return int(key(*words)) & (2**62 - 1)
