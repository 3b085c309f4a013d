"""Figures: rows in, a matplotlib Figure out; here what all share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gpenlib.files import front_end_is_live
from gpenlib.images import Image, resize
from gpenlib.infer.scoring import Face

# ----------------------------------------------------------------------
# Shared look of every figure: colours per dtype, sizes, helpers for face grids.

# Okabe-Ito: distinguishable with every common colour-vision deficiency.
DTYPE_COLOURS = {
    "fp32": "#0072B2", "bf16": "#56B4E9", "fp16": "#009E73", "int8": "#D55E00", "int8_bf16": "#E69F00",
}  # fmt: skip
BASELINE_COLOUR = "#7F7F7F"  # the do-nothing input
ACCENT = "#CC79A7"
SECOND = "#E69F00"

RC: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def new_figure(
    rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.4
) -> tuple[Figure, Any]:
    """Return a constrained-layout figure and its axes (array of [rows, columns], never squeezed)."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False
        )
    plt.close(figure)  # the notebook shows the returned object once; pyplot must not show it again
    return figure, axes


def show_image(axis: Axes, image: Any, title: str = "", **options: Any) -> None:
    """Show one image without ticks or grid."""
    axis.imshow(image, **{"interpolation": "nearest", **options})
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


# ----------------------------------------------------------------------
# Parts of a face to enlarge, and how figures show them.


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


# ----------------------------------------------------------------------
# Interactive parts, only in a live front end: a headless notebook must never create a widget.

DISPLAY_SIDE = 512


def wipe(before: Image, after: Image, share: float) -> Image:
    """Return ``after`` on the left ``share`` of the width and ``before`` on the rest, with a line between.

    Parameters
    ----------
    before, after : uint8 [S, S, 3]
    share : float
        In [0, 1].
    """
    place = round(share * before.shape[1])
    joined = before.copy()
    joined[:, :place] = after[:, :place]
    if 0 < place < before.shape[1]:
        joined[:, place - 1 : place + 1] = 255
    return joined


def before_after(faces: Sequence[Face]) -> Any | None:
    """Return a slider that wipes from the input to the output of a chosen face; None without front end.

    Parameters
    ----------
    faces : sequence of Face
        At least one.
    """
    if not front_end_is_live():
        return None
    import ipywidgets

    by_name = {f"{face.role} {face.name}".strip(): face for face in faces}
    face = ipywidgets.Dropdown(options=list(by_name), description="face")
    share = ipywidgets.FloatSlider(value=0.5, min=0.0, max=1.0, step=0.01, description="restored")
    picture = ipywidgets.Image(format="png", width=DISPLAY_SIDE, height=DISPLAY_SIDE)

    def redraw(_: Any = None) -> None:
        shown = by_name[face.value]
        before, after = (resize(image, DISPLAY_SIDE) for image in (shown.source, shown.output))
        picture.value = _png(wipe(before, after, share.value))

    face.observe(redraw, "value")
    share.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([ipywidgets.HBox([face, share]), picture])


def _png(image: Image) -> bytes:
    """Encode an RGB image as PNG bytes."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, image, format="png")
    return buffer.getvalue()
