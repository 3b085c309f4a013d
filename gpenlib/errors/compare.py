"""Compare the outputs of several precisions on the same faces."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpenlib.images import Image
from gpenlib.metrics import colour_shift, finite_psnr

SCORES = ("psnr", "ssim")


def compare_outputs(
    dtype: str,
    rows: Sequence[Mapping[str, Any]],
    reference_rows: Sequence[Mapping[str, Any]],
    read: Callable[[str], Image],
    read_reference: Callable[[str], Image],
) -> list[dict[str, Any]]:
    """Return one row per face: scores, differences from fp32's scores, distance from fp32's pixels.

    Parameters
    ----------
    dtype : str
    rows, reference_rows : sequences of mapping
        Results of 04_infer for ``dtype`` and for fp32, over the same faces in the same order.
    read, read_reference : callable
        Name of a face -> restored image, uint8 [S, S, 3].

    Returns
    -------
    list of dict
        ``dtype``, ``name``, ``psnr``, ``ssim`` (against truth), ``psnr_input``, ``ssim_input``,
        ``psnr_drop`` (dB) and ``ssim_drop`` (fp32 minus this; positive is worse), ``psnr_to_fp32`` (dB;
        equal images count as 100), ``colour_shift_to_fp32`` (CIELAB distance of image means),
        ``largest_error`` (grey levels), ``bias`` (mean signed difference in grey levels), ``ms``.

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
    compared = []
    for row, reference in zip(rows, reference_rows, strict=True):
        output, expected = read(row["name"]), read_reference(row["name"])
        difference = output.astype(np.int16) - expected
        compared.append(
            {
                "dtype": dtype,
                "name": row["name"],
                **{score: row[score] for score in SCORES},
                **{f"{score}_input": row[f"{score}_input"] for score in SCORES},
                **{f"{score}_drop": reference[score] - row[score] for score in SCORES},
                "psnr_to_fp32": finite_psnr(output, expected),
                "colour_shift_to_fp32": colour_shift(output, expected),
                "largest_error": int(np.abs(difference).max()),
                "bias": float(difference.mean()),
                "ms": row["ms"],
            }
        )
    return compared


def summarise_comparison(
    rows: Sequence[Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row per dtype: means over the faces, and how it was run."""
    means = (*SCORES, *(f"{s}_drop" for s in SCORES), "psnr_to_fp32", "colour_shift_to_fp32", "bias")
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
                "worst_psnr_drop": max(row["psnr_drop"] for row in own),
                "largest_error": max(row["largest_error"] for row in own),
                "psnr_input": result["psnr_input_mean"],
                "ssim_input": result["ssim_input_mean"],
                "ms_per_image": result["ms_per_image"],
            }
        )
    return table


def error_map(output: Image, expected: Image) -> np.ndarray:
    """Return the largest absolute difference over the channels, in grey levels, int [H, W]."""
    return np.abs(output.astype(np.int16) - expected).max(axis=2)
