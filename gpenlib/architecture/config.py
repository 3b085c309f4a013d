"""Configuration of a GPEN network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

STYLE_DIM = 512
MAPPING_LAYERS = 8
MIN_SIZE, MAX_SIZE = 32, 2048


@dataclass(frozen=True)
class GpenConfig:
    """Shape of a GPEN generator or discriminator.

    Parameters
    ----------
    in_size : int
        Side of the square input image in pixels: a power of two in [32, 2048].
    out_size : int
        Side of the output image in pixels: a power of two, at least ``in_size``. Larger than
        ``in_size`` gives the super-resolution form (``FullGenerator_SR`` of the original code).
    channel_multiplier : int
        Width factor of the levels of 64 px and above (StyleGAN2's name).
    narrow : float
        Width factor of every level; 1.0 is the full network, 0.5 the published 256-px one.

    Raises
    ------
    ValueError
        If a size is not a power of two in range, ``out_size < in_size``, or a width is not positive.

    Notes
    -----
    Fixed by the original: style dimension 512, 8 mapping layers, FIR taps (1, 3, 3, 1).
    """

    in_size: int = 512
    out_size: int = 512
    channel_multiplier: int = 2
    narrow: float = 1.0

    def __post_init__(self) -> None:
        for name in ("in_size", "out_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or not MIN_SIZE <= size <= MAX_SIZE or size & (size - 1):
                raise ValueError(f"{name}={size!r}: must be a power of two from {MIN_SIZE} to {MAX_SIZE}")
        if self.out_size < self.in_size:
            raise ValueError(f"out_size={self.out_size} is smaller than in_size={self.in_size}")
        if not isinstance(self.channel_multiplier, int) or self.channel_multiplier < 1:
            raise ValueError(f"channel_multiplier={self.channel_multiplier!r}: must be an integer >= 1")
        if not self.narrow > 0 or self.channels(self.out_size) < 1:
            raise ValueError(f"narrow={self.narrow!r}: leaves a level without channels")

    def channels(self, size: int) -> int:
        """Return the number of feature channels at ``size`` pixels (``channels`` in gpen_model.py)."""
        width = 512 if size <= 32 else 16384 // size * self.channel_multiplier
        return int(width * self.narrow)

    @property
    def log_in(self) -> int:
        """Base-2 logarithm of ``in_size``."""
        return int(math.log2(self.in_size))

    @property
    def log_out(self) -> int:
        """Base-2 logarithm of ``out_size``."""
        return int(math.log2(self.out_size))

    @property
    def num_latents(self) -> int:
        """Number of style inputs of the decoder: one per convolution and one for the last ToRGB."""
        return 2 * self.log_out - 2

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary, for manifests."""
        return asdict(self)
