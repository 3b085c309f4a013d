"""Scores of any number of faces from the sums of parts: means, deviations, histograms, intervals."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpenlib.cluster.sources import Store
from gpenlib.errors.compare import CONFIDENCE, RESAMPLES
from gpenlib.errors.report import scores_page
from gpenlib.infer.scoring import MEANS

SUMMARY, FAILURES, REPORT = "summary.json", "failures.jsonl", "report.html"
BINS = 100  # of a histogram
BLOCKS = 1024  # neighbouring faces that are drawn together for an interval; up to so many are drawn alone
DRAWN = 500  # resamples that are held in memory at once
ROWS = 65_536  # of a table that are held in memory at once


class Moments:
    """Count, exact sum, mean and variance of a figure, whose values come some at a time."""

    def __init__(self) -> None:
        self.count, self.least, self.most = 0, np.inf, -np.inf
        self._mantissas = Counter[int]()  # by exponent: the sum is exact, in whatever order it is made
        self._mean = self._squares = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add values (Chan, Golub and LeVeque 1979)."""
        if not values.size:
            return
        fractions, exponents = np.frexp(values)
        mantissas = np.ldexp(fractions, 53).astype(np.int64)
        for exponent in np.unique(exponents).tolist():
            some = mantissas[exponents == exponent]
            high, low = some >> 26, some & ((1 << 26) - 1)  # so that no sum overflows
            self._mantissas[exponent] += (int(high.sum()) << 26) + int(low.sum())
        before, mean = self.count, statistics.fmean(values)
        self.count += len(values)
        step = mean - self._mean
        self._squares += float(((values - mean) ** 2).sum())
        self._squares += step * step * before * len(values) / self.count
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        self._mean = self.mean

    @property
    def mean(self) -> float:
        """The mean, as :func:`statistics.fmean` rounds it."""
        exact = sum((Fraction(m) * Fraction(2) ** (e - 53) for e, m in self._mantissas.items()), Fraction(0))
        return float(exact) / self.count

    @property
    def deviation(self) -> float:
        """The standard deviation of a sample; 0 of a single value."""
        return float(np.sqrt(self._squares / max(1, self.count - 1)))


class Blocks:
    """Sums of neighbouring faces, from which the intervals of all means are drawn together."""

    def __init__(self, total: int, figures: int) -> None:
        self._total, self._seen, count = total, 0, min(BLOCKS, total)
        self.sums, self.counts = np.zeros((figures, count)), np.zeros(count)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add the next faces, float64 [figures, N]."""
        more = values.shape[1]
        places = np.arange(self._seen, self._seen + more) * len(self.counts) // self._total
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        self.sums[:, places[starts]] += np.add.reduceat(values, starts, axis=1)
        self.counts[places[starts]] += np.diff(starts, append=more)
        self._seen += more

    def intervals(self, seed: int = 0) -> NDArray[np.float64]:
        """Return the percentile intervals of the means, [figures, 2]; the same seed gives the same ones."""
        rng, count = np.random.default_rng(seed), len(self.counts)
        means = []
        for _ in range(0, RESAMPLES, DRAWN):  # how often each block is drawn says all of a draw
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=DRAWN).astype(np.float64)
            means.append(self.sums @ drawn.T / (drawn @ self.counts))
        outside = 50 * (1 - CONFIDENCE)
        return np.asarray(np.percentile(np.hstack(means), [outside, 100 - outside], axis=1).T)


def tables_of_parts(store: Store, parts: Iterable[str], columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows of parts as tables, some at a time."""
    from pyarrow import parquet

    for part in parts:
        with store.system.open(part, "rb") as file:
            yield from parquet.ParquetFile(file).iter_batches(ROWS, columns=[*columns])


def failures_in(table: Any) -> list[dict[str, Any]]:
    """Return name, source and reason of the rows that failed."""
    some = table.filter(table["failure"].is_valid()).select(["name", "source", "failure"])
    return list(some.to_pylist())


def write_summary(store: Store, summary: Mapping[str, Any], failures: Iterable[Mapping[str, Any]]) -> None:
    """Write ``summary.json``, and ``failures.jsonl``, a line for each."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in failures)
    store.write(FAILURES, "".join(lines).encode())
    store.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def merge_parts(store: Store, parts: Sequence[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the sums of parts, each read twice; write ``summary.json``, ``failures.jsonl``, ``report.html``.

    Returns ``images``, ``failures`` and ``figures``: by name ``mean`` (as :func:`statistics.fmean` has it),
    ``deviation``, ``low`` and ``high`` (95 % interval of the mean), ``least``, ``most``, and ``counts`` of
    faces between ``edges``; a figure and that of its input have the same edges. ``about`` says on the page
    what was done.
    """
    moments, failed = {name: Moments() for name in MEANS}, list[dict[str, Any]]()
    for table in tables_of_parts(store, parts, ["name", "source", "failure", *MEANS]):
        whole = table.filter(table["failure"].is_null())
        for name, values in zip(MEANS, _values(whole), strict=True):
            moments[name].add(values)
        failed += failures_in(table)
    summary: dict[str, Any] = {"images": moments["psnr"].count, "failures": len(failed), "figures": {}}
    if summary["images"]:
        summary["figures"] = _figures(store, parts, moments)
    write_summary(store, summary, failed)
    if summary["images"]:
        store.write(REPORT, scores_page(summary, about).encode())
    return summary


def _figures(store: Store, parts: Sequence[str], moments: Mapping[str, Moments]) -> dict[str, Any]:
    """Return what is known of every figure, with histograms and intervals from a second reading."""
    edges = {}
    for name in MEANS:
        base = name.removesuffix("_input")
        pair = [moments[n] for n in (base, f"{base}_input") if n in moments]
        ends = min(m.least for m in pair), max(m.most for m in pair)
        edges[name] = np.histogram_bin_edges((), BINS, ends)
    counts = {name: np.zeros(BINS, np.int64) for name in MEANS}
    blocks = Blocks(moments["psnr"].count, len(MEANS))
    for table in tables_of_parts(store, parts, ["failure", *MEANS]):
        values = _values(table.filter(table["failure"].is_null()))
        if values.shape[1]:
            blocks.add(values)
        for name, some in zip(MEANS, values, strict=True):
            counts[name] += np.histogram(some, edges[name])[0]
    known = {}
    for name, (low, high) in zip(MEANS, blocks.intervals().tolist(), strict=True):
        m = moments[name]
        told = {"mean": m.mean, "deviation": m.deviation, "low": low, "high": high}
        told |= {"least": m.least, "most": m.most}
        known[name] = told | {"edges": edges[name].tolist(), "counts": counts[name].tolist()}
    return known


def _values(table: Any) -> NDArray[np.float64]:
    """Return the figures of whole rows, float64 [figures, N]."""
    return np.stack([table[name].to_numpy(zero_copy_only=False) for name in MEANS])
