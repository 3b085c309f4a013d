"""Everything that 05_errors finds out, from the results and the saved images of 04_infer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack
from gpenlib.errors.compare import REFERENCE, Reader, compare_outputs, summarise_comparison
from gpenlib.errors.groups import face_traits, group_losses, trends
from gpenlib.errors.perceptual import perceptual_rows


def analyse(
    results: Mapping[str, Mapping[str, Any]],
    readers: Mapping[str, Reader],
    pack: Pack,
    files: Mapping[str, Path | None] | None = None,
    features_are_inception: bool = False,
) -> dict[str, Any]:
    """Compare every dtype with fp32 on the same faces.

    Parameters
    ----------
    results : mapping of dtype to mapping
        Results of 04_infer; fp32's must be among them.
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3].
    pack : Pack
        The faces, with truths.
    files : mapping, optional
        ``lpips_weights`` and ``features_file`` of :func:`gpenlib.errors.perceptual.perceptual_rows`.
    features_are_inception : bool
        As there.

    Returns
    -------
    dict of lists of rows
        ``table`` (one per dtype), ``rows`` (one per dtype and face), ``traits`` (one per face), ``groups``
        (one per group of faces, dtype and score), ``trends`` (one per trait, dtype and score) and
        ``perceptual`` (one per metric and dtype). ``chroma_baseline`` says where that colour came from.

    Raises
    ------
    ValueError
        If dtypes were run on different faces, or a given file cannot be used.
    """
    reference = results[REFERENCE]
    rows: list[dict[str, Any]] = []
    for dtype, result in results.items():
        rows += compare_outputs(dtype, result["rows"], reference["rows"], readers[dtype], readers[REFERENCE])
    traits = face_traits(pack)
    return {
        "table": summarise_comparison(rows, results),
        "rows": rows,
        "traits": traits,
        "groups": group_losses(rows, traits),
        "trends": trends(rows, traits),
        "perceptual": perceptual_rows(
            pack, readers, **(files or {}), features_are_inception=features_are_inception
        ),
        "chroma_baseline": reference["chroma_baseline"],
    }
