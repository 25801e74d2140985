"""What a difference between two losses is worth: paired by seed, with an interval, tests and a correction.

Runs of one seed share the held-out samples, the order of the images and their augmentation, and begin from the same
weights, so two losses are compared seed by seed: d_k = x_k - y_k. Studies have three to five seeds, and that
decides the test:

* The paired t-test (Student 1908) takes the d_k as normal, which nobody can check on five numbers. It is the one
  that can find anything with three to five seeds, so it gives interval and verdict.
* The exact sign-flip test (Fisher 1935, section 21) takes them as symmetric around 0 and nothing else: of all 2^n
  ways to give |d_k| signs, the share whose mean is at least as far from 0. It cannot go below 2 / 2^n: 0.25 with
  three seeds, 0.0625 with five, so it cannot reach 0.05 before six seeds. It stands beside the t-test as a check.
  Wilcoxon's signed ranks have the same bound and use less of the numbers.

Many comparisons in a table are corrected by Holm's method (1979), which holds whatever depends on what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
FEWEST = 3  # seeds
MOST_EXACT = 20  # seeds: beyond, 2^n sign flips are too many


class Comparison(NamedTuple):
    """A loss against the baseline, on one figure."""

    seeds: int
    difference: float  #: mean of x_k - y_k
    low: float  #: its confidence interval, 95 %
    high: float
    p: float  #: of the paired t-test, two-sided
    p_signs: float  #: of the exact sign-flip test, two-sided


def compare(x: Sequence[float], y: Sequence[float]) -> Comparison:
    """Compare two losses seed by seed.

    Args:
        x: A figure of one loss, one value for each seed.
        y: The baseline's, of the same seeds.

    Returns:
        Interval and p-values, NaN for fewer than three seeds. Where all differences are 0, p is 1; where they are
        all the same and not 0, there is no spread to test by, and p is NaN.

    Raises:
        ValueError: If the numbers of seeds differ.

    Example:
        >>> compare([3.0, 4.0, 6.0], [1.0, 2.0, 3.0]).difference
        2.3333333333333335
    """
    if len(x) != len(y):
        raise ValueError(
            f"A paired comparison needs as many values of one loss as of the other, got {len(x)} and {len(y)}."
        )
    values = np.asarray([x, y], dtype=float)
    d = values[0] - values[1]
    n = len(d)
    mean = float(d.mean()) if n else math.nan
    if n < FEWEST or not np.isfinite(d).all():
        return Comparison(n, mean, math.nan, math.nan, math.nan, math.nan)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    # figures were rounded to float32 on their way: that leaves a trace of a spread between equal differences
    rounding = 2 * float(np.finfo(np.float32).eps) * float(np.abs(values).max())
    if error <= rounding:
        p = 1.0 if abs(mean) <= rounding else math.nan
        return Comparison(n, mean, mean, mean, p, sign_flips(d))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Comparison(n, mean, mean - half, mean + half, p, sign_flips(d))


def sign_flips(d: Sequence[float] | np.ndarray) -> float:
    """The exact sign-flip test of mean 0: the share of sign patterns with a mean as far from 0 as that of ``d``.

    Args:
        d: Differences, n of them; beyond 20 the answer is NaN.

    Example:
        >>> sign_flips([1.0, 2.0, 3.0])
        0.25
    """
    d = np.asarray(d, dtype=float)
    n = len(d)
    if not 0 < n <= MOST_EXACT:
        return math.nan
    sums = np.zeros(1)
    for size in np.abs(d):
        sums = np.concatenate([sums + size, sums - size])
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-12 * np.abs(d).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number: p_(i) -> max_{j <= i} min(1, (m - j + 1) p_(j)), in the order given.

    Args:
        p: The p-values of one table; NaN is no test, stays NaN and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    corrected = [math.nan] * len(p)
    tested = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    largest = 0.0
    for rank, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        corrected[i] = largest
    return corrected


def verdict(comparison: Comparison, p: float, higher: bool | None) -> str:
    """Return what a comparison says, in words.

    Args:
        comparison: The comparison.
        p: Its p-value, corrected.
        higher: Whether more is better; None: neither.

    Example:
        >>> verdict(Comparison(5, 1.2, 0.8, 1.6, 0.001, 0.06), 0.004, higher=True)
        'better'
    """
    if comparison.seeds < FEWEST:
        return "too few seeds"
    if not math.isfinite(comparison.difference):
        return "not a number in some seed"
    if math.isnan(p):
        return "no spread to test by"
    if p >= LEVEL:
        return "not significant"
    if higher is None:
        return "more" if comparison.difference > 0 else "less"
    return "better" if (comparison.difference > 0) == higher else "worse"
