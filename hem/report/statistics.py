"""Statistics of the difference between losses: confidence intervals, tests, corrections, power, summaries over tasks.

Runs of one seed share the held-out samples, the order of the images, their augmentation and the initial weights, so two
losses are compared by paired differences d_k = x_k - y_k over seeds. Studies have three to five seeds, which decides
the choice of the test:

* The paired t-test (Student 1908) assumes normal d_k, which cannot be checked on five numbers. It is the only one with
  power for three to five seeds, so it gives interval and verdict.
* The exact sign-flip test (Fisher 1935, section 21) only assumes a distribution symmetric around 0: p is the share of
  all 2^n sign patterns of |d_k| whose mean is at least as far from 0. It is at least 2 / 2^n, 0.25 for three seeds and
  0.0625 for five, so it cannot reach 0.05 with fewer than six seeds. It is shown beside the t-test as a check.
  Wilcoxon's signed-rank test has the same bound and uses less information.

The test of each task is whether losses differ from the baseline in its primary metric. Holm's method (1979) corrects
for the losses of a task under any dependence, :func:`level_within` for the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
FEWEST = 3  # number of seeds from which tests are made


class Comparison(NamedTuple):
    """A loss against the baseline, in one metric."""

    seeds: int
    difference: float  #: mean of x_k - y_k
    low: float  #: its 95 % confidence interval
    high: float
    p: float  #: p-value of the paired t-test, two-sided
    p_signs: float  #: p-value of the sign-flip test, two-sided


def compare(x: Sequence[float], y: Sequence[float]) -> Comparison:
    """Compare two losses by paired tests over seeds.

    Args:
        x: A metric of one loss, one value for each seed.
        y: The metric of the baseline, for the same seeds.

    Returns:
        Interval and p-values, NaN for fewer than three seeds. If all differences are 0, p is 1; if they are all equal
        but not 0, there is no spread to test with, and p is NaN.

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
    # metrics were rounded to float32, which leaves a small spread between equal differences
    rounding = 2 * float(np.finfo(np.float32).eps) * float(np.abs(values).max())
    if float(d.std(ddof=1)) / math.sqrt(len(d)) <= rounding:
        p = 1.0 if abs(mean) <= rounding else math.nan
        return Comparison(len(d), mean, mean, mean, p, sign_flips(d))
    test = stats.ttest_1samp(d, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Comparison(len(d), mean, float(low), float(high), float(test.pvalue), sign_flips(d))


def sign_flips(d: Sequence[float] | np.ndarray) -> float:
    """Return p of the sign-flip test, the share of sign patterns whose mean is at least as far from 0 as that of ``d``.

    It is exact for up to 13 differences, otherwise estimated from 9999 patterns drawn with a fixed seed.

    Example:
        >>> sign_flips([1.0, 2.0, 3.0])
        0.25
    """
    return float(stats.permutation_test((d,), np.mean, permutation_type="samples", vectorized=True, rng=0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number: p_(i) -> max_{j <= i} min(1, (m - j + 1) p_(j)), in the order given.

    Args:
        p: The p-values of one table; a NaN is no test: it stays NaN and is not counted.

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
    """Return the level for the test of each task, such that a study of pure noise has findings in at most 5 % of cases.

    It is 0.05 R / T for T tasks, R of which have a finding. R is the largest number such that R of the tasks' smallest
    corrected p-values are at most 0.05 R / T (Benjamini & Hochberg 1995); if there is none, the level is 0.05 / T.

    Args:
        smallest: The smallest corrected p-value of each task; a NaN is no test and is not counted.

    Example:
        >>> level_within([0.01, 0.02, 0.9, 0.8]), level_within([0.02, 0.9, 0.8, 0.9])
        (0.025, 0.0125)

    Source: Benjamini & Bogomolov, "Selective inference on multiple families of hypotheses", JRSS B 2014.
    """
    p = np.sort([value for value in smallest if not math.isnan(value)])
    passed = np.flatnonzero(p <= LEVEL * np.arange(1, len(p) + 1) / max(len(p), 1))
    return float(LEVEL * (passed.max() + 1 if len(passed) else 1) / max(len(p), 1))


def least(p: Sequence[float], untested: float = math.nan) -> float:
    """Return the smallest of the p-values that are numbers; ``untested`` if none is."""
    return min((value for value in p if not math.isnan(value)), default=untested)


def level_of(tasks: Sequence[Sequence[tuple[Sequence[float], Sequence[float]]]]) -> float:
    """Return :func:`level_within` of a study that is not over: a task that cannot be tested yet shows nothing so far.

    Args:
        tasks: For each task the pairs of :func:`compare`, one for each loss.

    Example:
        >>> level_of([[([3.0, 4.0, 6.0], [1.0, 2.0, 3.0])], [([1.0], [2.0])]])
        0.025
    """
    corrected = [holm([compare(x, y).p for x, y in pairs]) for pairs in tasks]
    return level_within([least(each, 1.0) for each in corrected])


def verdict(comparison: Comparison, p: float, higher: bool | None, level: float = LEVEL) -> str:
    """Return the verdict of a comparison as text.

    Args:
        comparison: The comparison.
        p: Its p-value, corrected.
        higher: Whether larger values are better; None: neither.
        level: Level of the test.

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
    """Return the power of the paired, two-sided t-test, the probability that it finds a difference.

    P(abs(T) > t_{1 - level / 2, n - 1}) for T of the noncentral t distribution with n - 1 degrees of freedom, centred
    on effect sqrt(n).

    Args:
        effect: The difference, in standard deviations of the paired differences.
        seeds: Number of seeds n.
        level: Level of the test.

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
    """Return the smallest difference that as many seeds with the same spread find with a probability of 80 %.

    Args:
        differences: Paired differences of two losses over seeds.
        comparisons: Number of losses that are compared with the baseline, by which the level is divided, as in the
            first step of Holm's method.
        target: The probability.
        level: Level of the study's test.

    Returns:
        The difference, in the unit of ``differences``; NaN for fewer than three seeds or no spread.

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
    """Return the number of seeds that find a difference with a probability of 80 %, given the spread in a pilot.

    Args:
        differences: Paired differences of two losses over the pilot's seeds, at least two.
        difference: The difference to find, in the same unit; None: the mean of ``differences``.
        comparisons: Number of losses that are compared with the baseline, by which the level is divided.
        target: The probability.
        level: Level of the study's test.

    Returns:
        The number of seeds, at least three.

    Raises:
        ValueError: The differences have no spread, or the difference to find is 0.

    Example:
        >>> seeds_needed([0.1, -0.2, 0.3], difference=0.1), seeds_needed([0.1, -0.2, 0.3], difference=0.3)
        (52, 8)
    """
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    wanted = float(np.mean(differences)) if difference is None else difference
    if not 0 < spread < math.inf or not 1e-9 * spread < abs(wanted) < math.inf:  # a tie, but for rounding
        raise ValueError(
            f"Expected two or more finite differences that vary, and a difference to be found that is not 0, got "
            f"{list(differences)} and {wanted}: run a pilot of three seeds or more, or name the difference."
        )
    effect, level = abs(wanted) / spread, level / comparisons
    normal = ((stats.norm.isf(level / 2) + stats.norm.ppf(target)) / effect) ** 2  # for a known spread: a bound
    seeds = max(FEWEST, int(normal))
    while power(effect, seeds, level) < target:
        seeds += 1
    return seeds


# -- over tasks ----------------------------------------------------------------------------------------------------

Pair = tuple[np.ndarray, np.ndarray]  # values of a loss and of the baseline in one task, by seed; larger is better


class Estimate(NamedTuple):
    """An estimate over all tasks, with its 95 % interval."""

    value: float
    low: float
    high: float


def _bootstrap(samples: Sequence[np.ndarray], statistic: Any) -> Estimate:
    """Return an estimate with its bootstrap interval, resampled within each task."""
    found = stats.bootstrap(samples, statistic, vectorized=True, method="percentile", confidence_level=1 - LEVEL, rng=0)
    low, high = found.confidence_interval
    return Estimate(float(statistic(*samples)), float(low), float(high))


def mean_relative_change(pairs: Sequence[Pair]) -> Estimate:
    """Return the relative change against the baseline's mean in percent, averaged over seeds and then over tasks.

    Args:
        pairs: Values of each task, for at least two seeds; the baseline's means are not 0.

    Example:
        >>> mean_relative_change([(np.array([1.1, 1.3]), np.array([1.0, 1.0]))]).value
        20.0...
    """
    changes = [100 * (x - y) / abs(y.mean()) for x, y in pairs]
    return _bootstrap(changes, lambda *each, axis=-1: sum(change.mean(axis) for change in each) / len(each))


def probability_of_improvement(pairs: Sequence[Pair]) -> Estimate:
    """Return the probability that a run of the loss is better than one of the baseline in the same task.

    It is the share of all pairs of runs of a task, where ties count half (Mann and Whitney's U / (n m)), averaged over
    tasks.

    Args:
        pairs: Values of each task, for at least two seeds.

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
    """Return the smallest significant difference of mean ranks in Nemenyi's test, q sqrt(k (k + 1) / (6 N)).

    q is the quantile of the studentized range for k losses and infinitely many degrees of freedom, divided by sqrt(2),
    and N the number of tasks.

    Example:
        >>> round(critical_difference(losses=4, tasks=14), 2)
        1.25

    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006, section 3.2.2.
    """
    q = stats.studentized_range.isf(LEVEL, losses, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(losses * (losses + 1) / (6 * tasks)))
