"""Score one restored face against its truth, beside its baselines; many faces on all processors."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from gpenlib.images import FloatArray, Image, from_levels, resize, to_levels
from gpenlib.infer.chroma import Chroma, coloured_with
from gpenlib.metrics import (
    SsimReference,
    chroma_error,
    colourfulness,
    delta_e2000,
    detail,
    finite_psnr,
    mean_colour,
    sharpness,
    to_lab,
)

SCORES = ("psnr", "ssim", "delta_e2000", "chroma_error", "colour_shift")
BASELINES = ("input", "chroma_baseline")
MEANS = (
    *SCORES,
    *(f"{score}_{baseline}" for baseline in BASELINES for score in SCORES),
    "psnr_truncated", "ssim_truncated", "psnr_float", "ssim_float", "colourfulness",
    "colourfulness_truth", "sharpness", "sharpness_input", "sharpness_truth", "detail", "detail_input",
    "lightness", "lab_a", "lab_b",
)  # fmt: skip
MOST_THREADS = 8
Result = TypeVar("Result")


def score(source: Image, truth: Image, output: FloatArray, chroma: Chroma) -> dict[str, float]:
    """Return the figures of one image, those of :data:`MEANS`.

    Parameters
    ----------
    source : uint8 [H, W, 3]
        The network's input.
    truth : uint8 [S, S, 3]
    output : float32 [3, S, S]
        The network's answer, nominally in [-1, 1].
    chroma : (a, b)
        Chroma of the data set, for the baseline of that name.

    Returns
    -------
    dict
        ``psnr`` (dB), ``ssim``, ``delta_e2000``, ``chroma_error`` and ``colour_shift`` judge the rounded
        output; ``*_input`` judge the input as if it were the answer (doing nothing),
        ``*_chroma_baseline`` the input coloured evenly with ``chroma``. ``psnr_truncated`` and
        ``ssim_truncated`` follow the vendor's uint8 convention, ``psnr_float`` and ``ssim_float`` judge
        the output without any rounding, but clipped as every picture is. ``colourfulness*``,
        ``sharpness*`` and ``detail*`` are as in :mod:`gpenlib.metrics`. ``lightness``, ``lab_a``
        and ``lab_b`` are the mean CIELAB colour of the output. PSNR of equal images is given as 100 dB, so
        that means stay finite.
    """
    unrounded = to_levels(output[None])[0]
    rounded, truncated = from_levels(unrounded), from_levels(unrounded, "truncate")
    baseline = resize(source, (truth.shape[1], truth.shape[0]))
    reference, truth_lab = SsimReference(truth), to_lab(truth)
    truth_colour = mean_colour(truth_lab)
    answers = {"": rounded, "_input": baseline, "_chroma_baseline": coloured_with(baseline, chroma)}
    row: dict[str, float] = {}
    for suffix, answer in answers.items():
        lab = to_lab(answer)
        colour = mean_colour(lab)
        row[f"psnr{suffix}"] = finite_psnr(answer, truth)
        row[f"ssim{suffix}"] = reference.score(answer)
        row[f"delta_e2000{suffix}"] = delta_e2000(lab, truth_lab)
        row[f"chroma_error{suffix}"] = chroma_error(lab, truth_lab)
        row[f"colour_shift{suffix}"] = float(np.linalg.norm(colour - truth_colour))
        if not suffix:
            row |= {name: float(v) for name, v in zip(("lightness", "lab_a", "lab_b"), colour, strict=True)}
    return row | {
        "psnr_truncated": finite_psnr(truncated, truth),
        "ssim_truncated": reference.score(truncated),
        # Grey levels in [0, 255]: the same as [-1, 1] with data range 2, but SSIM needs its zero at black
        "psnr_float": finite_psnr(unrounded, truth.astype(np.float32), 255.0),
        "ssim_float": reference.score(unrounded),
        "colourfulness": colourfulness(rounded),
        "colourfulness_truth": colourfulness(truth),
        "sharpness": sharpness(rounded),
        "sharpness_input": sharpness(baseline),
        "sharpness_truth": sharpness(truth),
        "detail": detail(rounded, truth),
        "detail_input": detail(baseline, truth),
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return ``<figure>_mean`` over all rows, and the median ``ms_per_image`` if they hold times."""
    means = {f"{name}_mean": statistics.fmean(row[name] for row in rows) for name in MEANS}
    if all("ms" in row for row in rows):
        means["ms_per_image"] = statistics.median(row["ms"] for row in rows)
    return means


def in_parallel(jobs: Iterable[Callable[[], Result]], threads: int | None = None) -> Iterator[Result]:
    """Run jobs on threads, a few at a time, and yield their results in order.

    The next few are only fetched when those before are done: memory stays flat however many there are,
    and work that the iterable does itself, such as a timed call, never runs beside a job.

    Parameters
    ----------
    jobs : iterable of callable
        Without arguments; NumPy and OpenCV release Python's lock in all that takes long here.
    threads : int, optional
        Defaults to the processors this process may use, at most 8.
    """
    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    remaining = iter(jobs)
    with ThreadPoolExecutor(threads) as pool:
        while few := list(islice(remaining, 4 * threads)):
            yield from pool.map(lambda job: job(), few)
