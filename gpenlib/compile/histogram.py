"""Histograms of activation magnitudes and the clipping thresholds drawn from them.

Quantisation is symmetric s8, so only magnitudes matter: 127 levels between 0 and the threshold. One
histogram serves every mode. Its memory is fixed: when a larger value arrives, neighbouring bins merge and
the range doubles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpenlib.run import choice_error

LEVELS = 127  # symmetric s8
BINS = 4096
CANDIDATES = 256  # thresholds that mse and kl_divergence try
SMALLEST_SHARE = 1 / 32  # of the largest magnitude; below it a bin is no longer narrower than a level
MODES = ("max", "percentile", "kl_divergence", "mse")
Counts = NDArray[np.float64]


class MagnitudeHistogram:
    """Histogram of ``|x|`` over any number of arrays, in constant memory.

    Attributes
    ----------
    counts : float64 [bins]
    limit : float
        Upper edge of the last bin; 0 before the first value.
    largest : float
        The exact largest magnitude.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 2 * LEVELS or bins % 2:
            raise ValueError(f"bins={bins}: must be even and at least {2 * LEVELS}")
        self.counts: Counts = np.zeros(bins)
        self.limit = 0.0
        self.largest = 0.0

    def update(self, values: NDArray[np.float32]) -> None:
        """Add an array of any shape; values must be finite."""
        magnitudes = torch.from_numpy(np.ascontiguousarray(values)).abs().flatten()
        top = float(magnitudes.max())
        self.largest = max(self.largest, top)
        if self.limit == 0.0:
            self.limit = top
        if self.limit == 0.0:  # all zeros so far; any range will do for them later
            self.counts[0] += magnitudes.numel()
            return
        while top > self.limit:
            self._double()
        self.counts += torch.histc(magnitudes, len(self.counts), 0.0, self.limit).double().numpy()

    def _double(self) -> None:
        half = len(self.counts) // 2
        merged = self.counts.reshape(half, 2).sum(axis=1)
        self.counts = np.concatenate([merged, np.zeros(half)])
        self.limit *= 2

    @property
    def centres(self) -> Counts:
        """Centres of the bins, [bins]."""
        return bin_centres(len(self.counts), self.limit)

    def threshold(self, mode: str, percentile: float = 99.99) -> float:
        """Return the largest magnitude that stays representable under ``mode``.

        Parameters
        ----------
        mode : {"max", "percentile", "kl_divergence", "mse"}
            ``"max"`` clips nothing; ``"percentile"`` clips the given share; ``"kl_divergence"`` keeps the
            most information (Migacz, TensorRT, 2017); ``"mse"`` minimises the mean square error of rounding
            and clipping together.
        percentile : float
            Share in per cent that ``"percentile"`` keeps, in (0, 100].

        Raises
        ------
        ValueError
            If the mode is unknown, the percentile out of range, or nothing but zeros was seen.
        """
        if mode not in MODES:
            raise ValueError(choice_error("calibrate_mode", mode, MODES))
        if not self.largest > 0:
            raise ValueError("no value other than zero was seen")
        if mode == "percentile":
            return min(percentile_threshold(self.counts, self.limit, percentile), self.largest)
        if mode == "mse":
            return mse_threshold(self.counts, self.limit, self.largest)
        if mode == "kl_divergence":
            return min(kl_threshold(self.counts, self.limit, self.largest), self.largest)
        return self.largest

    def summary(self, percentile: float = 99.99, bins: int = 128) -> dict[str, Any]:
        """Return what a report needs: ``limit``, coarse ``counts`` [bins], ``thresholds`` by mode."""
        return {
            "limit": self.limit,
            "counts": self.counts.reshape(bins, -1).sum(axis=1).tolist(),
            "thresholds": {mode: self.threshold(mode, percentile) for mode in MODES},
        }

    def clipped_share(self, threshold: float) -> float:
        """Return the share of values in bins that lie wholly above ``threshold``."""
        lower_edges = self.centres - 0.5 * self.limit / len(self.counts)
        return float(self.counts[lower_edges >= threshold].sum() / max(self.counts.sum(), 1.0))


def bin_centres(bins: int, limit: float) -> Counts:
    """Return the centres of ``bins`` equal bins between 0 and ``limit``."""
    return (np.arange(bins, dtype=np.float64) + 0.5) * (limit / bins)


def percentile_threshold(counts: Counts, limit: float, percentile: float) -> float:
    """Return the upper edge of the first bin by which ``percentile`` per cent of the values lie."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile}: must be in (0, 100]")
    cumulative = np.cumsum(counts)
    place = int(np.searchsorted(cumulative, cumulative[-1] * percentile / 100.0))
    return (min(place, len(counts) - 1) + 1) * limit / len(counts)


def candidate_thresholds(largest: float) -> Counts:
    """Return the thresholds to try, from a share of ``largest`` up to it."""
    return np.linspace(SMALLEST_SHARE, 1.0, CANDIDATES) * largest


def mse_threshold(counts: Counts, limit: float, largest: float) -> float:
    """Return the candidate with the least mean square error of quantised bin centres."""
    centres = bin_centres(len(counts), limit)
    candidates = candidate_thresholds(largest)
    steps = candidates[:, None] / LEVELS  # [T, 1]
    restored = np.minimum(np.rint(centres / steps), LEVELS) * steps  # [T, bins]
    return float(candidates[np.argmin(np.square(restored - centres) @ counts)])


def kl_threshold(counts: Counts, limit: float, largest: float) -> float:
    """Return the candidate whose quantised distribution loses the least information.

    The reference is the histogram below the threshold with everything above it added to its last bin; the
    candidate spreads the content of each of 128 levels evenly over its non-empty bins.
    """
    best, best_threshold = np.inf, largest
    width = limit / len(counts)
    for threshold in candidate_thresholds(largest):
        used = int(np.ceil(threshold / width - 1e-9))
        used = min(max(used, LEVELS + 1), len(counts))
        inside = counts[:used]
        reference = inside.copy()
        reference[-1] += counts[used:].sum()
        groups = (np.arange(used) * (LEVELS + 1)) // used  # [used] level of each bin
        filled = inside > 0
        totals = np.bincount(groups, weights=inside, minlength=LEVELS + 1)
        sizes = np.bincount(groups, weights=filled, minlength=LEVELS + 1)
        spread = np.where(filled, totals[groups] / np.maximum(sizes[groups], 1), 0.0)
        divergence = kl_divergence(reference, spread)
        if divergence < best:
            best, best_threshold = divergence, used * width
    return float(best_threshold)


def kl_divergence(reference: Counts, candidate: Counts, floor: float = 1e-9) -> float:
    """Return KL(reference || candidate) in nats, both normalised; empty candidate bins count as ``floor``."""
    p = reference / reference.sum()
    q = candidate / max(candidate.sum(), floor)
    mask = p > 0
    return float(np.sum(p[mask] * np.log(p[mask] / np.maximum(q[mask], floor))))
