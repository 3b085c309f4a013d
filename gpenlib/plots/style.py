"""Shared look of every figure: colours per dtype, sizes, helpers for face grids."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
