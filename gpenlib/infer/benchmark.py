"""Latency of a runtime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from gpenlib.infer.runtime import Runtime


def interleaved_times(
    calls: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1, lead_in: int = 0
) -> dict[str, list[float]]:
    """Return ``repeats`` times in ms per labelled call, taken in turns.

    Turns alternate between forward and reverse order, so that no call always follows the same other one.

    Parameters
    ----------
    calls : mapping of label to callable
    repeats : int
    warm_up : int
        Turns that are not timed.
    lead_in : int
        Calls that are not timed before each one that is. Where the calls belong to several libraries, the
        threads of the one before may still be spinning, and the caches hold its data.

    Raises
    ------
    ValueError
        If ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    times: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(warm_up + repeats):
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for label in order:
            for _ in range(lead_in):
                calls[label]()
            started = time.perf_counter()
            calls[label]()
            if turn >= warm_up:
                times[label].append((time.perf_counter() - started) * 1000)
    return times


def interleaved_latency(
    runtimes: Mapping[str, Runtime], repeats: int = 15, warm_up: int = 2, batch_size: int = 1
) -> list[dict[str, Any]]:
    """Time several runtimes in turn, so that noise on the machine hits all alike.

    Parameters
    ----------
    runtimes : mapping of label to Runtime
    repeats : int
        Timed calls each.
    warm_up : int
        Untimed calls each, before.
    batch_size : int

    Returns
    -------
    list of dict
        ``label``, ``backend``, ``dtype``, ``executed_precision``, ``batch_size``, ``median_ms``, ``p10_ms``,
        ``p90_ms`` (per call), and ``times_ms``.
    """
    rng = np.random.default_rng(0)
    batches = {
        label: rng.uniform(-1, 1, (batch_size, 3, runtime.in_size, runtime.in_size)).astype(np.float32)
        for label, runtime in runtimes.items()
    }
    times = interleaved_times(
        {label: partial(runtime, batches[label]) for label, runtime in runtimes.items()}, repeats, warm_up
    )
    return [
        {
            "label": label,
            "backend": runtime.backend,
            "dtype": runtime.dtype,
            "executed_precision": runtime.executed_precision,
            "batch_size": batch_size,
            "median_ms": statistics.median(times[label]),
            "p10_ms": float(np.percentile(times[label], 10)),
            "p90_ms": float(np.percentile(times[label], 90)),
            "times_ms": times[label],
        }
        for label, runtime in runtimes.items()
    ]
