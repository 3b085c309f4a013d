"""Intervals: known cases, coverage, and what is called a drop."""

import math

import numpy as np
import pytest
from scipy import stats

from gpenlib.errors.compare import FEWEST, mean_loss, rank_correlation


def sample(mean, count=30, seed=0):
    values = np.random.default_rng(seed).normal(size=count)
    return mean + 0.1 * (values - values.mean()) / values.std(ddof=1)


def test_interval_is_near_that_of_students_t():
    values = sample(0.3)
    found = mean_loss(values)
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert found.value == pytest.approx(0.3)
    assert found.low == pytest.approx(low, abs=0.004) and found.high == pytest.approx(high, abs=0.004)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """95 of 100 for 40 skewed values; a bootstrap of that few covers a little less."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = mean_loss(random.exponential(1.0, 40))
        held += found.low < 1 < found.high
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [(0.2, "drop"), (-0.2, "gain"), (0.01, "no difference shown"), (0.0, "no difference shown")],
)
def test_verdicts(mean, verdict):
    assert mean_loss(sample(mean)).verdict == verdict


def test_too_few_faces_have_no_interval():
    few = mean_loss([1.0] * (FEWEST - 1))
    assert (few.value, few.low, few.high, few.verdict) == (1.0, None, None, "too few images")
    assert not few.excludes_zero
    assert mean_loss([1.0, 1.1, 1.2, 0.9, 1.0]).verdict == "drop"


def test_equal_differences_are_an_interval_of_no_width():
    zero, some = mean_loss([0.0] * 8), mean_loss([0.25] * 8)
    assert (zero.low, zero.high, zero.verdict) == (0, 0, "no difference shown")
    assert (some.low, some.high, some.verdict) == (0.25, 0.25, "drop")


def test_nearly_equal_differences_have_a_finite_interval():
    found = mean_loss([0.0] * 30 + [0.1])
    assert 0 <= found.low <= found.value <= found.high < 0.1


def test_the_same_seed_gives_the_same_interval():
    values = sample(0.02, 12)
    assert mean_loss(values) == mean_loss(values)
    assert mean_loss(values).low != mean_loss(values, seed=1).low


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf] * 6])
def test_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        mean_loss(values)


def test_rank_correlation_is_spearmans():
    random = np.random.default_rng(1)
    x = random.integers(0, 10, 40).astype(float)  # with ties
    y = x + random.normal(0, 3, 40)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 <= found.low < found.value < found.high <= 1 and found.excludes_zero
    assert rank_correlation(np.exp(x), y).value == pytest.approx(found.value)


def test_no_correlation_is_not_shown():
    random = np.random.default_rng(2)
    assert not rank_correlation(random.normal(size=50), random.normal(size=50)).excludes_zero


def test_a_property_that_does_not_vary_correlates_with_nothing():
    found = rank_correlation([3.0] * 8, list(range(8)))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_correlated_lists_must_be_of_one_length():
    with pytest.raises(ValueError, match="3 values .* and 2"):
        rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0])
