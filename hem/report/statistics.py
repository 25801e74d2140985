"""What a difference between two losses is worth: intervals, tests, corrections, power, and answers over all tasks.

Runs of one seed share the held-out samples, the order of the images and their augmentation, and begin from the same
weights, so two losses are compared seed by seed: d_k = x_k - y_k. Studies have three to five seeds, and that
decides the test:

* The paired t-test (Student 1908) takes the d_k as normal, which nobody can check on five numbers. It is the one
  that can find anything with three to five seeds, so it gives interval and verdict.
* The exact sign-flip test (Fisher 1935, section 21) takes them as symmetric around 0 and nothing else: of all 2^n
  ways to give |d_k| signs, the share whose mean is at least as far from 0. It cannot go below 2 / 2^n: 0.25 with
  three seeds, 0.0625 with five, so it cannot reach 0.05 before six seeds. It stands beside the t-test as a check.
  Wilcoxon's signed ranks have the same bound and use less of the numbers.

A study asks one question of each task: do losses differ from the baseline in its primary metric? Holm's method (1979)
corrects over the losses within the task, whatever depends on what; :func:`level_within` over the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
FEWEST = 3  # seeds


class Comparison(NamedTuple):
    """A loss against the baseline, in one metric."""

    seeds: int
    difference: float  #: mean of x_k - y_k
    low: float  #: its confidence interval, 95 %
    high: float
    p: float  #: of the paired t-test, two-sided
    p_signs: float  #: of the sign-flip test, two-sided


def compare(x: Sequence[float], y: Sequence[float]) -> Comparison:
    """Compare two losses seed by seed.

    Args:
        x: A metric of one loss, one value for each seed.
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
            f"Expected as many values of one loss as of the other, to pair them, got {len(x)} and {len(y)}."
        )
    values = np.asarray([x, y], dtype=float)
    d = values[0] - values[1]
    mean = float(d.mean()) if len(d) else math.nan
    if len(d) < FEWEST or not np.isfinite(d).all():
        return Comparison(len(d), mean, math.nan, math.nan, math.nan, math.nan)
    # metrics were rounded to float32 on their way: that leaves a trace of a spread between equal differences
    rounding = 2 * float(np.finfo(np.float32).eps) * float(np.abs(values).max())
    if float(d.std(ddof=1)) / math.sqrt(len(d)) <= rounding:
        p = 1.0 if abs(mean) <= rounding else math.nan
        return Comparison(len(d), mean, mean, mean, p, sign_flips(d))
    test = stats.ttest_1samp(d, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Comparison(len(d), mean, float(low), float(high), float(test.pvalue), sign_flips(d))


def sign_flips(d: Sequence[float] | np.ndarray) -> float:
    """The sign-flip test of mean 0: the share of sign patterns with a mean as far from 0 as that of ``d``.

    Exact up to 13 differences, beyond of 9999 patterns that a fixed seed draws.

    Example:
        >>> sign_flips([1.0, 2.0, 3.0])
        0.25
    """
    return float(stats.permutation_test((d,), np.mean, permutation_type="samples", vectorized=True, rng=0).pvalue)


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


def level_within(smallest: Sequence[float]) -> float:
    """The level that each task of a study is tested at, so that a study of pure noise finds something in 5 % at most.

    With T tasks, R of which hold a finding, R / T of 0.05: 0.05 itself where there is one task, or all hold a finding.
    R is the largest number of which as many of the tasks' smallest corrected p-values are at most R / T of 0.05
    (Benjamini & Hochberg 1995); where it is 0, nothing is found at the 1 / T of 0.05 that is returned.

    Args:
        smallest: The smallest of the corrected p-values of each task; NaN is no test and does not count.

    Example:
        >>> level_within([0.01, 0.02, 0.9, 0.8]), level_within([0.02, 0.9, 0.8, 0.9])
        (0.025, 0.0125)

    Source: Benjamini & Bogomolov, "Selective inference on multiple families of hypotheses", JRSS B 2014.
    """
    p = np.sort([value for value in smallest if not math.isnan(value)])
    passed = np.flatnonzero(p <= LEVEL * np.arange(1, len(p) + 1) / max(len(p), 1))
    return float(LEVEL * (passed.max() + 1 if len(passed) else 1) / max(len(p), 1))


def verdict(comparison: Comparison, p: float, higher: bool | None, level: float = LEVEL) -> str:
    """Return what a comparison says, in words.

    Args:
        comparison: The comparison.
        p: Its p-value, corrected.
        higher: Whether more is better; None: neither.
        level: What p is to be at most.

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
    if p > level:
        return "not significant"
    if higher is None:
        return "more" if comparison.difference > 0 else "less"
    return "better" if (comparison.difference > 0) == higher else "worse"


# -- power ---------------------------------------------------------------------------------------------------------


def power(effect: float, seeds: int, level: float = LEVEL) -> float:
    """The probability that the paired, two-sided t-test finds a difference.

    P(abs(T) > t_{1 - level / 2, n - 1}) for T of the noncentral t distribution with n - 1 degrees of freedom, centred
    on effect sqrt(n).

    Args:
        effect: The difference, in standard deviations of the paired differences.
        seeds: n.
        level: Of the test.

    Example:
        >>> round(power(2.0, 5), 2)
        0.91
    """
    bound = stats.t.isf(level / 2, seeds - 1)
    centre = effect * math.sqrt(seeds)
    return float(stats.nct.sf(bound, seeds - 1, centre) + stats.nct.sf(bound, seeds - 1, -centre))


def detectable(
    differences: Sequence[float], comparisons: int = 1, target: float = POWER, level: float = LEVEL
) -> float:
    """The smallest difference that as many seeds, with the same spread, find with a probability of 80 %.

    Args:
        differences: Of two losses, seed by seed.
        comparisons: Of as many losses with the baseline, of which this is one: the level is divided by them, which is
            the first step of Holm's method.
        target: The probability.
        level: Of the study's test.

    Returns:
        In the unit of the differences; NaN for fewer than three seeds or no spread.

    Example:
        >>> round(detectable([0.1, 0.3, 0.2, 0.1, 0.3]), 3)
        0.168
    """
    n, spread = len(differences), float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    if n < FEWEST or not 0 < spread < math.inf:
        return math.nan
    most = 1.0
    while power(most, n, level / comparisons) < target:
        most *= 2
    return spread * float(optimize.brentq(lambda effect: power(effect, n, level / comparisons) - target, 0, most))


def seeds_needed(
    differences: Sequence[float], difference: float | None = None, comparisons: int = 1, target: float = POWER,
    level: float = LEVEL,
) -> int:  # fmt: skip
    """The seeds that find a difference with a probability of 80 %, given the spread of some, as of a pilot.

    Args:
        differences: Of two losses, seed by seed; two or more.
        difference: What is to be found, in the same unit; None: the mean of the differences.
        comparisons: Of as many losses with the baseline, of which this is one: the level is divided by them.
        target: The probability.
        level: Of the study's test.

    Returns:
        Three or more.

    Raises:
        ValueError: The differences have no spread, or there is no difference to be found.

    Example:
        >>> seeds_needed([0.1, -0.2, 0.3], difference=0.1), seeds_needed([0.1, -0.2, 0.3], difference=0.3)
        (52, 8)
    """
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    wanted = float(np.mean(differences)) if difference is None else difference
    if not 0 < spread < math.inf or not 0 < abs(wanted) < math.inf:
        raise ValueError(
            f"Expected two or more finite differences that vary, and a difference to be found that is not 0, got "
            f"{list(differences)} and {wanted}: run a pilot of three seeds or more, or name the difference."
        )
    effect, level = abs(wanted) / spread, level / comparisons
    normal = ((stats.norm.isf(level / 2) + stats.norm.ppf(target)) / effect) ** 2  # with a known spread, fewer would do
    seeds = max(FEWEST, int(normal))
    while power(effect, seeds, level) < target:
        seeds += 1
    return seeds


# -- over tasks ----------------------------------------------------------------------------------------------------

Pair = tuple[np.ndarray, np.ndarray]  # a loss and the baseline in one task, a value for each seed; more is better


class Estimate(NamedTuple):
    """A number over all tasks, with its 95 % interval."""

    value: float
    low: float
    high: float


def _bootstrap(samples: Sequence[np.ndarray], statistic: Any) -> Estimate:
    """Resample each sample by itself: stratified by task."""
    found = stats.bootstrap(samples, statistic, vectorized=True, method="percentile", confidence_level=1 - LEVEL, rng=0)
    low, high = found.confidence_interval
    return Estimate(float(statistic(*samples)), float(low), float(high))


def mean_relative_change(pairs: Sequence[Pair]) -> Estimate:
    """The change against the baseline's mean in percent, seed by seed, mean over the seeds and then over the tasks.

    Args:
        pairs: Of each task, two seeds or more; the baseline's means are not 0.

    Example:
        >>> mean_relative_change([(np.array([1.1, 1.3]), np.array([1.0, 1.0]))]).value
        20.0...
    """
    changes = [100 * (x - y) / abs(y.mean()) for x, y in pairs]
    return _bootstrap(changes, lambda *each, axis=-1: sum(change.mean(axis) for change in each) / len(each))


def probability_of_improvement(pairs: Sequence[Pair]) -> Estimate:
    """The probability that a run of the loss beats one of the baseline in the same task: mean over the tasks.

    Of all pairs of runs of a task, ties count half: Mann and Whitney's U / (n m).

    Args:
        pairs: Of each task, two seeds or more.

    Example:
        >>> probability_of_improvement([(np.array([1.0, 3.0]), np.array([2.0, 0.0]))]).value
        0.75

    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021.
    """

    def statistic(*samples: np.ndarray, axis: int = -1) -> Any:
        wins = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in zip(samples[::2], samples[1::2], strict=True)]
        return sum(0.5 + each.mean((-1, -2)) / 2 for each in wins) / len(wins)

    return _bootstrap([sample for pair in pairs for sample in pair], statistic)


def critical_difference(losses: int, tasks: int) -> float:
    """How far mean ranks are apart at least that Nemenyi's test tells apart: q sqrt(k (k + 1) / (6 N)).

    q is the studentized range of k losses with infinitely many degrees of freedom, over sqrt(2).

    Example:
        >>> round(critical_difference(losses=4, tasks=14), 2)
        1.25

    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006, section 3.2.2.
    """
    q = stats.studentized_range.isf(LEVEL, losses, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(losses * (losses + 1) / (6 * tasks)))
