"""How far two implementations of one network differ."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-4  # of the reference's standard deviation, as the reference figures ask


class ParityError(RuntimeError):
    """Two implementations that should agree do not; the message gives the difference."""


@dataclass(frozen=True)
class Parity:
    """Difference of a candidate output from a reference output, both in [-1, 1]."""

    max_abs: float
    mean_abs: float
    relative: float  # max_abs / standard deviation of the reference
    psnr: float  # dB, data range 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers; an infinite PSNR (equal outputs) becomes None, which JSON can hold."""
        values = asdict(self)
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def parity(reference: NDArray[Any], candidate: NDArray[Any]) -> Parity:
    """Compare two outputs of one shape.

    Raises
    ------
    ParityError
        If shapes differ or a value is not finite.
    """
    if reference.shape != candidate.shape:
        raise ParityError(f"shapes differ: {reference.shape} and {candidate.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise ParityError("an output holds NaN or infinity")
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    mean_square = float(np.square(difference).mean())
    return Parity(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        relative=float(difference.max() / max(reference.std(dtype=np.float64), 1e-12)),
        psnr=10 * math.log10(4.0 / mean_square) if mean_square else math.inf,
    )


def assert_parity(
    reference: NDArray[Any], candidate: NDArray[Any], what: str, tolerance: float = TOLERANCE
) -> Parity:
    """Return the parity, or raise ParityError if ``relative`` exceeds ``tolerance``."""
    found = parity(reference, candidate)
    if found.relative > tolerance:
        raise ParityError(
            f"{what}: largest difference is {found.relative:.2e} of the reference's standard deviation, "
            f"allowed {tolerance:.0e}"
        )
    return found
