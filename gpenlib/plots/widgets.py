"""Interactive parts, only in a live front end: a headless notebook must never create a widget."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.image

from gpenlib.images import Image, resize
from gpenlib.infer.gallery import Face
from gpenlib.progress import front_end_is_live

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
