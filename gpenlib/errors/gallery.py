"""Choose faces whose errors are worth looking at, and get their outputs and error maps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpenlib.errors.compare import error_map
from gpenlib.images import Image
from gpenlib.infer.gallery import best_median_worst

ROLES = {"best": "loses most", "median": "median loss", "worst": "loses least"}  # a high drop ranks first


@dataclass(frozen=True)
class FaceErrors:
    """One face restored in several precisions.

    Attributes
    ----------
    name : str
    role : str
        Why it is shown.
    expected : uint8 [S, S, 3]
        fp32's output.
    outputs : mapping of dtype to uint8 [S, S, 3]
        The other precisions' outputs.
    errors : mapping of dtype to int [S, S]
        Absolute difference from ``expected`` in grey levels, the largest of the three channels.
    """

    name: str
    role: str
    expected: Image
    outputs: Mapping[str, Image]
    errors: Mapping[str, NDArray[np.int16]]


def faces_by_loss(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """Return the dtype that loses most on average, and the faces on which it loses most, typically, least.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of 05_errors: ``dtype``, ``name``, ``psnr_drop``. Those of fp32 are passed over.

    Returns
    -------
    (str, dict of name to role)
        No face twice; fewer than three if there are fewer.

    Raises
    ------
    ValueError
        If there is nothing but fp32.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["dtype"] != "fp32":
            groups.setdefault(row["dtype"], []).append(row)
    if not groups:
        raise ValueError("no rows of another dtype than fp32")
    dtype = max(groups, key=lambda name: statistics.fmean(row["psnr_drop"] for row in groups[name]))
    own = groups[dtype]
    chosen = best_median_worst(own, "psnr_drop")
    return dtype, {own[index]["name"]: ROLES[role] for index, role in chosen.items()}


def open_face_errors(
    faces: Mapping[str, str], readers: Mapping[str, Callable[[str], Image]]
) -> list[FaceErrors]:
    """Return outputs and error maps of the faces, in that order.

    Parameters
    ----------
    faces : mapping of name to role
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3]; ``"fp32"`` must be among them.
    """
    found = []
    for name, role in faces.items():
        expected = readers["fp32"](name)
        outputs = {dtype: read(name) for dtype, read in readers.items() if dtype != "fp32"}
        errors = {dtype: error_map(output, expected) for dtype, output in outputs.items()}
        found.append(FaceErrors(name, role, expected, outputs, errors))
    return found
