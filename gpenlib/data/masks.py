"""Masks for the task ``inpaint``: free-form strokes and boxes, painted white."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.data.degradations import Range, check_ranges
from gpenlib.images import Image

Mask = NDArray[np.uint8]
WHITE = 255


@dataclass(frozen=True)
class StrokesAndBoxes:
    """Ranges of the masks; calling it with an image and a generator paints the masked pixels white.

    A part of the picture to be masked is drawn, then strokes and boxes are added at random places until that
    part is masked. Strokes are those of free-form inpainting (Yu et al., ICCV 2019): random walks that turn
    sharply back and forth, with round ends, in parts of the side. GPEN's own masks were not published; its
    paper shows such strokes, painted white. Lengths are parts of the picture's side.

    Attributes
    ----------
    share : (float, float)
        Part of the pixels that is masked: never less than the lower end, and more than the upper end by no
        more than one shape.
    boxes : float
        Part of the shapes that are boxes.
    box : (float, float)
        Width and height of a box.
    width : (float, float)
        Width of a stroke.
    step : (float, float)
        Length of one straight piece of a stroke.
    pieces : (int, int)
        How many pieces a stroke has, both ends included.

    Raises
    ------
    ValueError
        If a range is empty or outside what is possible.
    """

    share: Range = (0.05, 0.30)
    boxes: float = 0.4
    box: Range = (0.10, 0.35)
    width: Range = (12 / 256, 40 / 256)
    step: Range = (0.05, 0.25)
    pieces: tuple[int, int] = (4, 12)

    def __post_init__(self) -> None:
        limits = {
            "share": (1e-4, 0.9),
            "box": (0.01, 1.0),
            "width": (0.005, 1.0),
            "step": (0.0, 1.0),
            "pieces": (1, 1000),
        }
        check_ranges(self, limits)
        if not 0 <= self.boxes <= 1:
            raise ValueError(f"boxes={self.boxes}: must lie in 0 to 1")

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Paint a random mask over one picture.

        Parameters
        ----------
        image : uint8 RGB [H, W, 3]
            It is not changed.
        rng : numpy.random.Generator

        Returns
        -------
        uint8 RGB [H, W, 3]
            Equal to ``image`` outside the mask, white inside.
        """
        masked = image.copy()
        masked[self.mask(image.shape[0], image.shape[1], rng) > 0] = WHITE
        return masked

    def mask(self, height: int, width: int, rng: np.random.Generator) -> Mask:
        """Draw a mask, uint8 [height, width]: 255 where the picture is hidden, 0 elsewhere."""
        mask = np.zeros((height, width), dtype=np.uint8)
        wanted = rng.uniform(*self.share) * mask.size
        while cv2.countNonZero(mask) < wanted:
            if rng.random() < self.boxes:
                self._add_box(mask, rng)
            else:
                self._add_stroke(mask, rng, wanted)
        return mask

    def _add_box(self, mask: Mask, rng: np.random.Generator) -> None:
        """Add a box that lies inside the picture."""
        sides = np.maximum(1, np.rint(rng.uniform(*self.box, size=2) * mask.shape)).astype(int)
        top, left = rng.integers(0, np.array(mask.shape) - sides + 1)
        mask[top : top + sides[0], left : left + sides[1]] = WHITE

    def _add_stroke(self, mask: Mask, rng: np.random.Generator, wanted: float) -> None:
        """Add one stroke, piece by piece; it ends early where the wanted number of pixels is masked."""
        height, width = mask.shape
        side = max(height, width)
        thickness = max(1, round(rng.uniform(*self.width) * side))
        bend = 2 * math.pi / 5 + rng.uniform(-1, 1, size=2) * 2 * math.pi / 15  # Yu et al., algorithm 1
        x, y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        direction = rng.uniform(0, 2 * math.pi)
        for piece in range(int(rng.integers(self.pieces[0], self.pieces[1] + 1))):
            angle = direction + (bend[0] if piece % 2 else 2 * math.pi - bend[1])
            step = rng.uniform(*self.step) * side
            start = (round(x), round(y))
            x = float(np.clip(x + step * math.cos(angle), 0, width - 1))
            y = float(np.clip(y + step * math.sin(angle), 0, height - 1))
            # Thick lines have round ends
            cv2.line(mask, start, (round(x), round(y)), WHITE, thickness)
            if cv2.countNonZero(mask) >= wanted:
                return
