"""The statistics of reports against scipy's on given numbers, plain enumeration, and a computation by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hem.report.statistics import (
    LEVEL,
    Comparison,
    compare,
    critical_difference,
    detectable,
    holm,
    level_within,
    mean_relative_change,
    power,
    probability_of_improvement,
    seeds_needed,
    sign_flips,
    verdict,
)

HEM = [99.30, 99.21, 99.41, 99.27, 99.38]
CE = [99.36, 99.35, 99.37, 99.40, 99.31]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_paired_t(n):
    """Interval and p-value are those of scipy's paired t-test."""
    found = compare(HEM[:n], CE[:n])
    expected = stats.ttest_rel(HEM[:n], CE[:n])
    interval = expected.confidence_interval(0.95)
    assert found.seeds == n
    assert found.difference == pytest.approx(np.mean(HEM[:n]) - np.mean(CE[:n]))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_sign_flips(n):
    """The share is that of a plain loop, and scipy's exact permutation test."""
    d = np.random.default_rng(n).normal(0.5, 1, n)
    sums = [sum(s * x for s, x in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=n)]
    plain = sum(abs(total) >= abs(d.sum()) - 1e-12 for total in sums) / 2**n
    reference = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(d) == pytest.approx(plain)
    assert sign_flips(d) == pytest.approx(reference.pvalue)


@pytest.mark.parametrize(("n", "least"), [(3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_sign_flips_have_a_least_value(n, least):
    """2 / 2^n: what the report says of three and five seeds. Wilcoxon's signed ranks have the same."""
    d = np.arange(1.0, n + 1)
    assert sign_flips(d) == least
    assert stats.wilcoxon(d, method="exact").pvalue == pytest.approx(least)


def test_many_seeds_are_drawn_the_same_each_time():
    d = np.random.default_rng(0).normal(0.5, 1, 25)
    assert sign_flips(d) == sign_flips(d)
    assert sign_flips(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_few_seeds_are_not_tested():
    for n in (0, 1, 2):
        found = compare(HEM[:n], CE[:n])
        assert math.isnan(found.p)
        assert math.isnan(found.low)
        assert verdict(found, found.p, True) == "too few seeds"


def test_no_spread():
    """Equal losses do not differ; a difference without spread cannot be tested, also where rounding leaves one."""
    same = compare(CE, CE)
    assert (same.difference, same.p, same.p_signs) == (0, 1, 1)
    assert verdict(same, same.p, True) == "not significant"
    moved = compare([x + 0.1 for x in CE], CE)
    assert math.isnan(moved.p)
    assert verdict(moved, moved.p, True) == "no spread to test by"
    none = compare([1.0, 2.0, math.nan], [1.0, 2.0, 3.0])
    assert math.isnan(none.p)
    assert verdict(none, none.p, True) == "not a number in some seed"
    # three samples of 360 more in each seed, as float32 has it
    x, y = (np.float32(np.array(right) / 360).astype(float) for right in ([347, 345, 351], [344, 342, 348]))
    assert math.isnan(compare(x, y).p)
    assert compare(x, np.nextafter(np.float32(x), np.float32(2)).astype(float)).p == 1


def test_different_numbers_of_seeds():
    with pytest.raises(ValueError, match="as many values of one loss as of the other, to pair them, got 2 and 3"):
        compare([1, 2], [1, 2, 3])


def test_holm_by_hand():
    """Four p-values: 0.01 x 4, then 0.02 x 3, 0.03 x 2 (lifted to 0.06), 0.5 x 1."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    found = holm([math.nan, 0.01, 0.04])
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.02, 0.04])


def test_holm_properties():
    """Never below the p-value, never above Bonferroni's, in the p-values' order, whatever their order is."""
    p = np.random.default_rng(0).uniform(0, 0.2, 30)
    found = np.array(holm(p.tolist()))
    assert (found >= p).all()
    assert (found <= np.minimum(1, 30 * p) + 1e-12).all()
    assert (np.diff(found[p.argsort()]) >= 0).all()
    order = np.random.default_rng(1).permutation(30)
    assert holm(p[order].tolist()) == pytest.approx(found[order])


@pytest.mark.parametrize(
    ("difference", "p", "higher", "words"),
    [
        (1.0, 0.01, True, "better"),
        (1.0, 0.01, False, "worse"),
        (-1.0, 0.01, False, "better"),
        (-1.0, 0.01, True, "worse"),
        (1.0, 0.01, None, "more"),
        (-1.0, 0.01, None, "less"),
        (1.0, 0.051, True, "not significant"),
    ],
)
def test_verdict(difference, p, higher, words):
    assert verdict(Comparison(5, difference, 0, 0, p, p), p, higher) == words


def test_level_within_by_hand():
    """Tasks' smallest p-values against 1/4, 2/4, 3/4 and 4/4 of 0.05; the last that passes counts."""
    assert level_within([0.03, 0.9, 0.001, 0.035]) == pytest.approx(0.75 * LEVEL)  # 0.03 and 0.035 pass with the third
    assert level_within([0.013, 0.03, 0.04, 0.9]) == pytest.approx(0.25 * LEVEL)
    assert level_within([0.04]) == LEVEL
    assert level_within([0.04, math.nan]) == LEVEL
    assert level_within([math.nan]) == level_within([]) == LEVEL


def pure_noise(studies, tasks, losses, seeds, shared, rng):
    """p-values (studies, tasks, losses) of losses that do not differ; examinations of one run share its noise."""
    common = shared * rng.normal(size=(studies, 1, losses + 1, seeds))
    runs = common + rng.normal(size=(studies, tasks, losses + 1, seeds))
    return stats.ttest_rel(runs[:, :, 1:], runs[:, :, :1], axis=-1).pvalue


@pytest.mark.parametrize(
    ("tasks", "losses", "seeds", "shared"), [(1, 4, 3, 0), (5, 1, 3, 0), (6, 5, 5, 0), (5, 2, 3, 2)]
)
def test_a_study_of_pure_noise_finds_nothing(tasks, losses, seeds, shared):
    """In 95 of 100 studies or more; each task at 0.05 by itself would find something in 1 - 0.95^5 = 23 of 100."""
    p = pure_noise(3000, tasks, losses, seeds, shared, np.random.default_rng(0))
    found = alone = 0
    for study in p.tolist():
        smallest = [min(holm(task)) for task in study]
        found += min(smallest) <= level_within(smallest)
        alone += min(smallest) <= LEVEL
    assert found / len(p) <= LEVEL + 3 * math.sqrt(LEVEL / len(p))  # independent tasks: exactly 0.05, and chance
    if tasks >= 5 and not shared:
        assert alone / len(p) > 3 * LEVEL


@pytest.mark.parametrize("seeds", [3, 5, 12])
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.5])  # far larger ones are NaN there
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_power_is_that_of_statsmodels(effect, seeds, level):
    reference = pytest.importorskip("statsmodels.stats.power").TTestPower()
    assert power(effect, seeds, level) == pytest.approx(reference.power(effect, seeds, level), abs=1e-6)


def test_power_by_simulation():
    """Of 20000 studies, the share that the t-test finds."""
    d = np.random.default_rng(0).normal(1.2, 1, (20_000, 5))
    assert power(1.2, 5) == pytest.approx((stats.ttest_1samp(d, 0, axis=1).pvalue < LEVEL).mean(), abs=0.015)


@pytest.mark.parametrize("comparisons", [1, 3, 35])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_what_seeds_can_show(seeds, comparisons):
    """The difference has a power of 80 %, and needs as many seeds; a smaller one needs more."""
    d = np.random.default_rng(seeds).normal(0, 0.2, seeds)
    least = detectable(d, comparisons)
    assert power(least / d.std(ddof=1), seeds, LEVEL / comparisons) == pytest.approx(0.8)
    assert seeds_needed(d, 1.0001 * least, comparisons) <= seeds
    assert seeds_needed(d, -1.0001 * least, comparisons) <= seeds
    assert seeds_needed(d, 0.9 * least, comparisons) > seeds


def test_seeds_needed_of_statsmodels():
    reference = pytest.importorskip("statsmodels.stats.power").TTestPower()
    d = [0.4, -0.2, 0.1, 0.5]
    for difference in (0.05, 0.1, 0.4):
        exact = reference.solve_power(effect_size=difference / np.std(d, ddof=1), alpha=LEVEL, power=0.8)
        assert seeds_needed(d, difference) == math.ceil(exact)
    assert seeds_needed(d) == seeds_needed(d, np.mean(d))
    assert seeds_needed(d, 1e-4) > 1e6  # no endless loop


@pytest.mark.parametrize(
    ("differences", "difference"), [([0.1], 0.1), ([0.1, 0.1], 0.1), ([0.1, 0.2], 0.0), ([0.1, -0.1 + 1e-12], None)]
)
def test_nothing_to_plan_by(differences, difference):
    with pytest.raises(ValueError, match="run a pilot of three seeds or more"):
        seeds_needed(differences, difference)  # the last a tie but for rounding
    assert math.isnan(detectable(differences))


def pairs(tasks, seeds, gain, rng):
    return [(10 * t + gain + rng.normal(size=seeds), 10 * t + rng.normal(size=seeds)) for t in range(1, tasks + 1)]


def test_mean_relative_change():
    """The value by hand; the interval by a plain loop that draws seeds anew within each task."""
    found, rng = pairs(4, 5, 1.0, np.random.default_rng(0)), np.random.default_rng(1)
    estimate = mean_relative_change(found)
    by_hand = [100 * (x.mean() - y.mean()) / y.mean() for x, y in found]
    assert estimate.value == pytest.approx(np.mean(by_hand))
    drawn = []
    for _ in range(4000):
        index = rng.integers(0, 5, (4, 5))
        drawn.append(np.mean([100 * (x[i] - y[i]).mean() / y.mean() for i, (x, y) in zip(index, found, strict=True)]))
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=0.05)


def test_probability_of_improvement():
    """Mann and Whitney's U over the number of pairs, mean over the tasks; ties count half."""
    found = pairs(4, 5, 0.5, np.random.default_rng(0))
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / 25 for x, y in found])
    estimate = probability_of_improvement(found)
    assert estimate.value == pytest.approx(expected)
    assert estimate.low < expected < estimate.high
    same = np.array([1.0, 2.0, 3.0])
    assert probability_of_improvement([(same, same)]).value == 0.5
    assert probability_of_improvement([(same + 5, same)]) == (1, 1, 1)


def test_critical_difference():
    """Demšar's table 5a, of q for two to ten classifiers."""
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for losses, q in enumerate(table, 2):
        assert critical_difference(losses, 6) == pytest.approx(q * math.sqrt(losses * (losses + 1) / 36), abs=1e-3)
