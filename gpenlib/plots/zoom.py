"""Parts of a face to enlarge, and how figures show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gpenlib.plots.style import ACCENT, SECOND, show_image


@dataclass(frozen=True)
class Region:
    """A square part of a face picture; places and side are parts of the picture's side, from the top left."""

    name: str
    x: float  # of the centre
    y: float
    side: float
    colour: str

    def corner(self, size: int) -> tuple[float, float]:
        """Return the top left corner in the pixel coordinates of an image of side ``size``."""
        return (self.x - self.side / 2) * size - 0.5, (self.y - self.side / 2) * size - 0.5


# Places in FFHQ layout, in which GPEN was trained: eyes at 0.47 of the height, mouth at 0.72.
EYE = Region("eye", 0.375, 0.46, 0.26, ACCENT)
MOUTH = Region("mouth", 0.5, 0.715, 0.26, SECOND)


def show_zoom(axis: Axes, image: NDArray[Any], region: Region, title: str = "", **options: Any) -> None:
    """Show only ``region`` of an image, framed in its colour; pixels stay visible as squares."""
    show_image(axis, image, title, **options)
    left, top = region.corner(image.shape[0])
    side = region.side * image.shape[0]
    axis.set_xlim(left, left + side)
    axis.set_ylim(top + side, top)
    for spine in axis.spines.values():
        spine.set(visible=True, edgecolor=region.colour, linewidth=1.6)


def mark_region(axis: Axes, size: int, region: Region) -> None:
    """Frame ``region`` in an image of side ``size``."""
    side = region.side * size
    axis.add_patch(
        Rectangle(region.corner(size), side, side, fill=False, edgecolor=region.colour, linewidth=1.3)
    )
