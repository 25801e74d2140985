"""The statistics of reports against scipy's on given numbers, plain enumeration, and a computation by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hem.statistics import Comparison, compare, holm, sign_flips, verdict

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


def test_too_many_seeds_for_all_signs():
    assert math.isnan(sign_flips(np.ones(21)))
    assert math.isnan(sign_flips([]))


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
    with pytest.raises(ValueError, match="as many values of one loss as of the other, got 2 and 3"):
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
        (1.0, 0.05, True, "not significant"),
    ],
)
def test_verdict(difference, p, higher, words):
    assert verdict(Comparison(5, difference, 0, 0, p, p), p, higher) == words
