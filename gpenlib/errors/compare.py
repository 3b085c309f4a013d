"""Compare the outputs of several precisions on the same faces."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpenlib.errors.statistics import mean_loss
from gpenlib.images import Image
from gpenlib.infer.scoring import BASELINES, in_parallel
from gpenlib.metrics import finite_psnr
from gpenlib.progress import progress

Row = Mapping[str, Any]
Reader = Callable[[str], Image]

# Scores against the truth, and whether more is better; a drop is a loss of quality in either case.
SCORES = {"psnr": True, "ssim": True, "delta_e2000": False, "chroma_error": False}
PLAIN = ("psnr_float", "ssim_float", "psnr_truncated", "ssim_truncated", "colourfulness")
REFERENCE = "fp32"


def compare_outputs(
    dtype: str,
    rows: Sequence[Row],
    reference_rows: Sequence[Row],
    read: Reader,
    read_reference: Reader,
) -> list[dict[str, Any]]:
    """Return one row per face: scores, differences from fp32's scores, distance from fp32's pixels.

    Parameters
    ----------
    dtype : str
    rows, reference_rows : sequences of mapping
        Results of 04_infer for ``dtype`` and for fp32, over the same faces in the same order.
    read, read_reference : callable
        Name of a face -> restored image, uint8 [S, S, 3]; called from several threads.

    Returns
    -------
    list of dict
        ``dtype``, ``name``, the scores against the truth (:data:`SCORES`, :data:`PLAIN`) and those of the
        baselines (``<score>_input``, ``<score>_chroma_baseline``); ``<score>_drop`` (what this dtype loses
        against fp32; positive is worse for every score); ``psnr_to_fp32`` (dB; equal images count as
        100), ``colour_shift_to_fp32`` (CIELAB distance of image means), ``largest_error`` (grey levels),
        ``bias`` (mean signed difference in grey levels), ``ms``.

    Raises
    ------
    ValueError
        If the two lists are not about the same faces.
    """
    names = [row["name"] for row in rows]
    reference_names = [row["name"] for row in reference_rows]
    if names != reference_names:
        differing = sorted(set(names) ^ set(reference_names)) or ["their order"]
        raise ValueError(f"{dtype} and fp32 were run on different faces: {', '.join(differing[:5])}")
    pairs = zip(rows, reference_rows, strict=True)
    jobs = (partial(_compare_face, dtype, row, other, read, read_reference) for row, other in pairs)
    return list(progress(in_parallel(jobs), total=len(rows), desc=f"compare {dtype}", unit="image"))


def summarise_comparison(
    rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row per dtype: means over the faces, intervals of the drops, and how it was run.

    Beside the means: ``<score>_drop_low``, ``<score>_drop_high`` (95 % bootstrap interval of the mean, None
    below five faces) and ``<score>_verdict``: ``"drop"`` or ``"gain"`` only where the interval excludes zero,
    else ``"no difference shown"``, or ``"too few images"``; fp32's is ``"reference"``.
    """
    baselines = [f"{score}_{baseline}" for baseline in BASELINES for score in SCORES]
    means = (*SCORES, *PLAIN, *baselines, "psnr_to_fp32", "colour_shift_to_fp32", "bias")
    table = []
    for dtype, result in results.items():
        own = [row for row in rows if row["dtype"] == dtype]
        table.append(
            {
                "dtype": dtype,
                "backend": result["backend"],
                "executed_precision": result["executed_precision"],
                "images": len(own),
                **{name: statistics.fmean(row[name] for row in own) for name in means},
                **_drops(dtype, own),
                "worst_psnr_drop": max(row["psnr_drop"] for row in own),
                "largest_error": max(row["largest_error"] for row in own),
                "ms_per_image": result["ms_per_image"],
            }
        )
    return table


def error_map(output: Image, expected: Image) -> np.ndarray:
    """Return the largest absolute difference over the channels, in grey levels, int [H, W]."""
    return np.abs(output.astype(np.int16) - expected).max(axis=2)


def _compare_face(
    dtype: str, row: Row, reference: Row, read: Reader, read_reference: Reader
) -> dict[str, Any]:
    """Return the row of one face."""
    output, expected = read(row["name"]), read_reference(row["name"])
    difference = output.astype(np.int16) - expected
    drops = {
        f"{score}_drop": (reference[score] - row[score]) * (1 if more_is_better else -1)
        for score, more_is_better in SCORES.items()
    }
    colour = ("lightness", "lab_a", "lab_b")
    return {
        "dtype": dtype,
        "name": row["name"],
        **{name: row[name] for name in (*SCORES, *PLAIN)},
        **{f"{score}_{baseline}": row[f"{score}_{baseline}"] for baseline in BASELINES for score in SCORES},
        **drops,
        "psnr_to_fp32": finite_psnr(output, expected),
        "colour_shift_to_fp32": math.dist([row[c] for c in colour], [reference[c] for c in colour]),
        "largest_error": int(np.abs(difference).max()),
        "bias": float(difference.mean()),
        "ms": row["ms"],
    }


def _drops(dtype: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the mean drop of every score with its interval and verdict."""
    found: dict[str, Any] = {}
    for score in SCORES:
        estimate = mean_loss([row[f"{score}_drop"] for row in rows])
        found |= {
            f"{score}_drop": estimate.value,
            f"{score}_drop_low": estimate.low,
            f"{score}_drop_high": estimate.high,
            f"{score}_verdict": "reference" if dtype == REFERENCE else estimate.verdict,
        }
    return found
