"""What the figures share: types, strips of rows, checks of a pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
STRIP = 64  # rows


def strips(height: int) -> Iterator[slice]:
    """Yield slices of some rows each: what is computed in between stays in the processor's cache."""
    for start in range(0, height, STRIP):
        yield slice(start, min(start + STRIP, height))


def check_pair(a: Array, b: Array, data_range: float | None) -> float:
    """Validate a pair of images and return the width of their value range."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"images differ in kind: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if data_range is not None:
        return float(data_range)
    if a.dtype != np.uint8:
        raise ValueError(f"data_range is required for {a.dtype} images (2.0 for values in [-1, 1])")
    return 255.0
