"""Tasks: how a truth image becomes the network's input."""

from __future__ import annotations

from collections.abc import Callable

from gpenlib.images import Image, resize, to_grey
from gpenlib.run import choice_error

DEGRADATIONS: dict[str, Callable[[Image], Image]] = {"color": to_grey}
TASKS = tuple(DEGRADATIONS)


def make_pair(image: Image, task: str, in_size: int, out_size: int | None = None) -> tuple[Image, Image]:
    """Return (input, truth) for one image.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    task : {"color"}
        ``"color"``: OpenCV grey in three equal channels, as the vendor's card says.
    in_size, out_size : int
        Sides in pixels; ``out_size`` defaults to ``in_size``. Resizing is bilinear.

    Returns
    -------
    (uint8 [in_size, in_size, 3], uint8 [out_size, out_size, 3])

    Raises
    ------
    ValueError
        If the task is unknown.
    """
    if task not in DEGRADATIONS:
        raise ValueError(choice_error("task", task, TASKS))
    truth = resize(image, out_size or in_size)
    return resize(DEGRADATIONS[task](truth), in_size), truth
