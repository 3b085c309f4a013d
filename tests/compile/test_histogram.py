"""Thresholds against brute force on the raw values, and constant memory."""

import numpy as np
import pytest

from gpenlib.compile.calibrate import LEVELS, MODES, MagnitudeHistogram, candidate_thresholds, kl_divergence


def heavy_tailed(count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Mostly small values and a few large ones, as activations are."""
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=count) * rng.choice([0.3, 1.0, 3.0], size=count)).astype(np.float32)


def filled(values: np.ndarray, parts: int = 1) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for part in np.array_split(values, parts):
        histogram.update(part)
    return histogram


def quantisation_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / LEVELS
    restored = np.clip(np.rint(values / step), -LEVELS, LEVELS) * step
    return float(np.square(restored - values).mean())


def test_max_is_the_exact_largest_magnitude() -> None:
    values = heavy_tailed()
    assert filled(values, parts=7).threshold("max") == np.abs(values).max()


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9])
def test_percentile_agrees_with_sorting(percentile: float) -> None:
    values = heavy_tailed(20_011)  # no percentile falls between two values
    histogram = filled(values, parts=5)
    exact = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert abs(histogram.threshold("percentile", percentile) - exact) <= histogram.limit / 4096


def test_mse_agrees_with_trying_every_candidate_on_the_raw_values() -> None:
    values = heavy_tailed()
    candidates = candidate_thresholds(float(np.abs(values).max()))
    errors = [quantisation_error(values, float(t)) for t in candidates]
    found = filled(values).threshold("mse")
    assert quantisation_error(values, found) <= min(errors) * 1.01
    assert found < np.abs(values).max()  # clipping pays on a heavy tail


def test_kl_divergence_agrees_with_a_plain_loop() -> None:
    values = heavy_tailed()
    histogram = filled(values)
    counts, width = histogram.counts, histogram.limit / 4096
    best = (np.inf, 0.0)
    for threshold in candidate_thresholds(histogram.largest):
        used = min(max(int(np.ceil(threshold / width - 1e-9)), LEVELS + 1), len(counts))
        reference = counts[:used].copy()
        reference[-1] += counts[used:].sum()
        spread = np.zeros(used)
        for level in range(LEVELS + 1):
            bins = [b for b in range(used) if b * (LEVELS + 1) // used == level and counts[b] > 0]
            for b in bins:
                spread[b] = sum(counts[c] for c in bins) / len(bins)
        divergence = kl_divergence(reference, spread)
        if divergence < best[0]:
            best = (divergence, used * width)
    assert histogram.threshold("kl_divergence") == pytest.approx(min(best[1], histogram.largest))


def test_kl_divergence_of_equal_distributions_is_zero_and_of_others_positive() -> None:
    p = np.array([1.0, 2.0, 3.0])
    assert kl_divergence(p, 10 * p) == pytest.approx(0.0)
    exact = sum(a / 6 * np.log((a / 6) / (1 / 3)) for a in p)
    assert kl_divergence(p, np.ones(3)) == pytest.approx(exact)


def test_uniform_values_are_not_clipped_much() -> None:
    values = np.random.default_rng(1).uniform(-1, 1, 50_000).astype(np.float32)
    assert filled(values).threshold("mse") > 0.97


def test_order_and_growth_do_not_matter() -> None:
    values = heavy_tailed()
    ascending = filled(values[np.argsort(np.abs(values))], parts=50)
    shuffled = filled(values, parts=3)
    assert ascending.counts.sum() == shuffled.counts.sum() == len(values)
    assert len(ascending.counts) == 4096
    for mode in MODES:
        assert ascending.threshold(mode) == pytest.approx(shuffled.threshold(mode), rel=0.05)


def test_clipped_share_counts_what_lies_above() -> None:
    values = np.array([0.1] * 90 + [1.0] * 10, np.float32)
    assert filled(values).clipped_share(0.5) == pytest.approx(0.1)


def test_errors_name_the_value() -> None:
    histogram = filled(np.zeros(8, np.float32))
    with pytest.raises(ValueError, match="zero"):
        histogram.threshold("max")
    histogram.update(np.ones(8, np.float32))
    assert histogram.counts.sum() == 16
    with pytest.raises(ValueError, match="did you mean 'mse'"):
        histogram.threshold("mze")
    with pytest.raises(ValueError, match="percentile=0"):
        histogram.threshold("percentile", 0)
    with pytest.raises(ValueError, match="bins=7"):
        MagnitudeHistogram(7)


def test_summary_holds_every_value_and_mode() -> None:
    histogram = filled(heavy_tailed())
    summary = histogram.summary()
    assert len(summary["counts"]) == 128
    assert sum(summary["counts"]) == histogram.counts.sum()
    assert summary["thresholds"] == {mode: histogram.threshold(mode) for mode in MODES}
