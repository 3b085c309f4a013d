"""Choose faces whose errors are worth looking at, and get their outputs and error maps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.errors.compare import error_map
from gpenlib.images import Image
from gpenlib.infer.gallery import best_median_worst, rank
from gpenlib.run import choice_error

ROLES = {"best": "loses most", "median": "median loss", "worst": "loses least"}  # a high drop ranks first
ZOOM_SIDE = 0.26  # part of the side that is enlarged


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
    hotspots : mapping of dtype to (x, y)
        Where the error is largest, see :func:`hotspot`.
    source : uint8 [H, W, 3] or None
        The network's input, if it was asked for.
    """

    name: str
    role: str
    expected: Image
    outputs: Mapping[str, Image]
    errors: Mapping[str, NDArray[np.int16]]
    hotspots: Mapping[str, tuple[float, float]]
    source: Image | None = None


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


def worst_faces(rows: Sequence[Mapping[str, Any]], dtype: str, count: int) -> dict[str, str]:
    """Return the faces on which a dtype loses most PSNR against fp32, the worst first.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of 05_errors: ``dtype``, ``name``, ``psnr_drop``.
    dtype : str
    count : int
        At most this many; fewer if there are fewer faces.

    Returns
    -------
    dict of name to role
        The role says the place and the loss, such as ``"1: +0.120 dB"``.

    Raises
    ------
    ValueError
        If there are no rows of ``dtype``, or ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    own = [row for row in rows if row["dtype"] == dtype]
    if not own:
        raise ValueError(choice_error("dtype", dtype, sorted({row["dtype"] for row in rows})))
    chosen = rank(own, "best", count, "psnr_drop")
    return {
        own[index]["name"]: f"{place}: {own[index]['psnr_drop']:+.3f} dB"
        for place, index in enumerate(chosen, 1)
    }


def hotspot(error: NDArray[np.int16], side: float = ZOOM_SIDE) -> tuple[float, float]:
    """Return the centre (x, y) of the square that holds most error, as parts of the picture's side.

    Parameters
    ----------
    error : int [S, S]
    side : float
        Side of the square as part of the picture's; it lies within the picture.
    """
    pixels = max(1, round(side * error.shape[0]))
    # Squares inside the picture only: the filter's value at the anchor (0, 0) sums down and right of it
    sums = cv2.boxFilter(error.astype(np.float32), -1, (pixels, pixels), anchor=(0, 0), normalize=False)
    inside = sums[: error.shape[0] - pixels + 1, : error.shape[1] - pixels + 1]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return (float(left) + pixels / 2) / error.shape[1], (float(top) + pixels / 2) / error.shape[0]


def open_face_errors(
    faces: Mapping[str, str],
    readers: Mapping[str, Callable[[str], Image]],
    read_source: Callable[[str], Image] | None = None,
) -> list[FaceErrors]:
    """Return outputs and error maps of the faces, in that order.

    Parameters
    ----------
    faces : mapping of name to role
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3]; ``"fp32"`` must be among them.
    read_source : callable, optional
        Name of a face -> the network's input.
    """
    found = []
    for name, role in faces.items():
        expected = readers["fp32"](name)
        outputs = {dtype: read(name) for dtype, read in readers.items() if dtype != "fp32"}
        errors = {dtype: error_map(output, expected) for dtype, output in outputs.items()}
        source = read_source(name) if read_source else None
        hotspots = {dtype: hotspot(error) for dtype, error in errors.items()}
        found.append(FaceErrors(name, role, expected, outputs, errors, hotspots, source))
    return found
