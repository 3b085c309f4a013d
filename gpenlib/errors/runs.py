"""Compare the results of several runs: other weights, another calibration, another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpenlib.errors.compare import SCORES
from gpenlib.errors.statistics import mean_loss

Row = Mapping[str, Any]
FIRST = "first run"
DIFFERENT = "different faces: no paired test"
ABSENT = "not in this run"
NOT_IN_FIRST = "not in the first run"


def compare_results(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every run's scores beside the first one's, by dtype.

    Parameters
    ----------
    results : mapping of run to mapping
        Results of 05_errors: ``table``, ``rows`` and ``facts``, whose ``faces_digest`` tells whether two runs
        restored the same pictures. The first run is what the others are compared with.

    Returns
    -------
    list of dict
        One row per dtype, score and run: ``dtype``, ``score``, ``run``, ``images``, ``value`` (mean score),
        ``difference`` (minus the first run's), ``low``, ``high`` (ends of the 95 % interval of the mean
        difference, paired face by face) and ``verdict``: ``"better"`` or ``"worse"`` only where the interval
        leaves out zero, else ``"no difference shown"`` or ``"too few images"``; without a test
        :data:`FIRST`, :data:`DIFFERENT`, :data:`ABSENT` or :data:`NOT_IN_FIRST`. What cannot be given, and
        the first run's difference from itself, is None.

    Raises
    ------
    ValueError
        If there are fewer than two runs.
    """
    if len(results) < 2:
        raise ValueError(f"runs {list(results)}: two or more are needed for a comparison")
    first = next(iter(results))
    dtypes = list(dict.fromkeys(row["dtype"] for found in results.values() for row in found["table"]))
    return [
        {"dtype": dtype, "score": score, "run": run, **_compared(results[first], found, dtype, score)}
        for dtype in dtypes
        for score in SCORES
        for run, found in results.items()
    ]


def same_faces(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two results are about the same pictures, in the same order."""
    return bool(a["facts"]["faces_digest"] == b["facts"]["faces_digest"])


def _compared(first: Mapping[str, Any], found: Mapping[str, Any], dtype: str, score: str) -> dict[str, Any]:
    """Return what one run has in one dtype and score, and how it differs from the first."""
    own, theirs = _own(found, dtype), _own(first, dtype)
    empty = {"images": None, "value": None, "difference": None, "low": None, "high": None}
    if own is None:
        return {**empty, "verdict": ABSENT}
    known = {**empty, "images": own["images"], "value": own[score]}
    if found is first:
        return {**known, "verdict": FIRST}
    if theirs is None:
        return {**known, "verdict": NOT_IN_FIRST}
    known["difference"] = own[score] - theirs[score]
    if not same_faces(first, found):
        return {**known, "verdict": DIFFERENT}
    before = {row["name"]: row[score] for row in first["rows"] if row["dtype"] == dtype}
    after = [(row["name"], row[score]) for row in found["rows"] if row["dtype"] == dtype]
    return {**known, **_tested([value - before[name] for name, value in after], SCORES[score])}


def _tested(differences: Sequence[float], more_is_better: bool) -> dict[str, Any]:
    """Return the interval of the mean difference and what it shows."""
    estimate = mean_loss(differences)
    verdict: str = estimate.verdict
    if estimate.excludes_zero:
        verdict = "better" if (estimate.value > 0) == more_is_better else "worse"
    return {"low": estimate.low, "high": estimate.high, "verdict": verdict}


def _own(found: Mapping[str, Any], dtype: str) -> Row | None:
    """Return the table row of a dtype, if the run has it."""
    return next((row for row in found["table"] if row["dtype"] == dtype), None)
