"""How sure a difference is: bootstrap intervals over faces, and the word for what they show.

Faces are drawn with replacement; the two precisions of a face stay together, because their difference is
what is drawn. Intervals are bias-corrected and accelerated (BCa; Efron 1987), percentiles where those
are not defined. They speak of faces like those measured; with fewer than about twenty they are too narrow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["drop", "gain", "no difference shown", "too few images"]
FEWEST = 5
CONFIDENCE = 0.95
RESAMPLES = 9999
RANK_RESAMPLES = 1999  # ranking every resample takes longer
BATCH = 500  # resamples held in memory at once
SEED = 0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes
    ----------
    value : float
    low, high : float or None
        Ends of the 95 % interval; None below :data:`FEWEST` faces.
    count : int
        Number of faces.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False if there is none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> Verdict:
        """Read the value as a loss: it is a drop, or a gain, only if the interval excludes zero."""
        if self.low is None:
            return "too few images"
        if not self.excludes_zero:
            return "no difference shown"
        return "drop" if self.value > 0 else "gain"


def mean_loss(losses: Sequence[float] | Floats, seed: int = SEED) -> Estimate:
    """Return the mean of paired differences with its bootstrap interval.

    Parameters
    ----------
    losses : sequence of float
        One per face: fp32's score minus this precision's, or any other signed difference.
    seed : int
        The same seed gives the same interval.

    Raises
    ------
    ValueError
        If there are none, or one is not finite.
    """
    values = _finite(losses)
    low, high = _interval((values,), np.mean, RESAMPLES, seed)
    return Estimate(float(values.mean()), low, high, len(values))


def rank_correlation(x: Sequence[float] | Floats, y: Sequence[float] | Floats, seed: int = SEED) -> Estimate:
    """Return Spearman's rank correlation of two properties of the same faces, with its bootstrap interval.

    If one of them does not vary, there is no order to compare: the correlation is given as 0.

    Raises
    ------
    ValueError
        If the lengths differ, there are no values, or one is not finite.
    """
    first, second = _finite(x), _finite(y)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values of one property and {len(second)} of the other")
    low, high = _interval((first, second), _spearman, RANK_RESAMPLES, seed)
    return Estimate(float(_spearman(first, second)), low, high, len(first))


def _interval(
    data: tuple[Floats, ...], statistic: Callable[..., Any], resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Return the ends of the interval, or None twice if there are too few faces."""
    if len(data[0]) < FEWEST:
        return None, None
    if any(np.ptp(values) == 0 for values in data):  # every resample gives the same
        value = float(statistic(*data))
        return value, value
    from scipy import stats  # takes a second to load, which no other stage should wait for

    ends: tuple[float, float] = (np.nan, np.nan)
    for method in ("BCa", "percentile"):  # BCa is undefined if all resamples lie on one side
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                data, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=BATCH,
                confidence_level=CONFIDENCE, method=method, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        ends = float(found.low), float(found.high)
        if np.isfinite(ends).all():
            break
    return ends


def _spearman(x: Floats, y: Floats, axis: int = -1) -> Any:
    """Return rank correlations along ``axis``; 0 where ranks do not vary."""
    from scipy import stats

    a, b = stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis)
    a, b = a - a.mean(axis=axis, keepdims=True), b - b.mean(axis=axis, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    return np.divide((a * b).sum(axis=axis), scale, out=np.zeros_like(scale), where=scale > 0)


def _finite(values: Sequence[float] | Floats) -> Floats:
    """Return the values as an array; raise unless there are some and all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{array.shape} values, expected at least one and all finite")
    return array
