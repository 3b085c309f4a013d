"""Figures of notebook 06: losses, samples over time, and looks into the latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpenlib import plots as style
from gpenlib.images import Image
from gpenlib.train.trainer import LogRow, beginning_and_end, series, smooth

BLUE = "#332288"
TERM_COLOURS = {"real_logit": "#44AA99", "fake_logit": style.SECOND}
LOGITS = {"real_logit": "training faces", "fake_logit": "generated", "held_out_logit": "held-out faces"}
PANELS = (  # title, unit, logged terms with their legend texts
    ("content: distance to the truth", "pixels in [-1, 1]", {"content": ""}),
    ("held-out faces (averaged weights)", "PSNR [dB]", {"held_out_psnr": ""}),
    ("adversarial (generator)", "softplus(-D(fake))", {"adversarial": ""}),
    ("feature matching", "L1 of D's features", {"feature_matching": ""}),
    ("identity", "1 - cosine", {"identity": ""}),
    ("detail: what lacks of 75 %", "share of the truth's", {"detail": ""}),
    ("harm: worse than the input", "dB", {"harm": ""}),
    ("chroma beyond the truth's", "L1 on smooth luma", {"chroma_excess": ""}),
    ("contrast of chroma", "weighted L1", {"chroma_contrast": ""}),
    ("discriminator", "loss (2 ln 2: cannot tell)", {"discriminator": ""}),
    ("what the discriminator says", "mean logit", LOGITS),
    ("R1: slope of D at real faces", "squared gradient", {"r1": ""}),
    ("path length", "mean |J'y|", {"path_length": ""}),
)


def losses_figure(rows: Sequence[LogRow], title: str = "") -> Figure:
    """Plot every logged term over the steps, from ``read_log``: the values, light, and their moving mean."""
    logged = {name for row in rows for name in row}
    panels = [panel for panel in PANELS if logged & panel[2].keys()]
    figure, axes = style.panel_grid(len(panels), 3, 10.0, 2.4)
    for axis, (heading, unit, terms) in zip(axes.flat, panels, strict=False):
        for name in (term for term in terms if term in logged):
            steps, values = series(rows, name)
            look: Any = {"color": TERM_COLOURS.get(name, BLUE), "label": terms[name]}
            if len(values) < 0.5 * len(rows):  # few points, as of evaluations, are marked and not smoothed
                axis.plot(steps, values, marker="o", markersize=3, linewidth=1.2, **look)
            else:
                axis.plot(steps, values, color=look["color"], alpha=0.25, linewidth=0.8)
                axis.plot(steps, smooth(values), linewidth=1.8, **look)
        shown = [row[name] for row in rows for name in terms if name in row]
        if "content" in terms and min(shown) < 0:  # no distance is, its logarithm may be
            unit = "dB of the square"
        axis.set(title=heading, ylabel=unit, xlabel="step", xlim=(0, rows[-1]["step"] * 1.02))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if min(shown) > 0 and max(shown) > 30 * min(shown):
            axis.set_yscale("log")
        if len(terms) > 1:
            low, high = axis.get_ylim()  # above the curves is room for what names them
            axis.set_ylim(low, high + 0.55 * (high - low))
            axis.legend(fontsize=8, loc="upper left")
    if "content" in logged:  # an adversarial loss tells nothing of how good the faces are
        first, last = beginning_and_end(rows, "content")
        title = f"{title}: {PANELS[0][0]} {first:.3g} → {last:.3g}"
    figure.suptitle(title, fontsize=12)
    return figure


def samples_figure(pictures: Mapping[int, Image], row_titles: Sequence[str] = (), title: str = "") -> Figure:
    """Show a training's pictures by step; ``row_titles`` name the rows inside each."""
    height, width = next(iter(pictures.values())).shape[:2]
    line = 4.6 * height / width + 0.3  # two sheets beside each other: those of few faces show them large
    figure, axes = style.panel_grid(len(pictures), 2, style.WIDEST, line, 0.4)
    for axis, (step, picture) in zip(axes.flat, pictures.items(), strict=False):
        style.show_image(axis, picture, f"step {step}", interpolation="nearest")
        side = height / max(1, len(row_titles))
        axis.set_yticks([(row + 0.5) * side for row in range(len(row_titles))], row_titles)
        axis.tick_params(axis="y", length=0)
    figure.suptitle(style.shorten(title, 40), fontsize=12)
    return figure


def interpolation_figure(images: Any) -> Figure:
    """Show walks between two latents, uint8 RGB [R, C, S, S, 3]: one row each, its ends left and right."""
    rows, columns = images.shape[:2]
    titles = [[f"{share:.2f}" for share in np.linspace(0, 1, columns)]]
    each = min(1.25, 9.8 / columns, max(0.8, images.shape[3] / 80))  # pictures of few pixels are small
    size = (each * columns + 0.2, (each + 0.03) * rows + 0.35)
    figure, _ = style.picture_grid(images, titles, (), *size, interpolation="nearest")
    figure.supxlabel("share of the second latent", fontsize=9)
    return figure


def mixing_figure(left: Any, top: Any, mixed: Any, coarse: str = "", fine: str = "") -> Figure:
    """Show mixed styles, uint8 RGB [R, C, S, S, 3], coarse ones from the ``left``, fine ones from the top."""
    pictures = [[None, *top], *([source, *row] for source, row in zip(left, mixed, strict=True))]
    each = min(1.3, 9.6 / len(pictures[0]))
    size = (each * len(pictures[0]) + 0.4, each * len(pictures) + 0.5)
    figure, axes = style.picture_grid(pictures, (), (), *size, interpolation="nearest")
    for sources, colour in ((axes[0, 1:], style.SECOND), (axes[1:, 0], BLUE)):
        for axis in sources:
            axis.spines[:].set(visible=True, color=colour, linewidth=2.5)
    figure.suptitle(f"fine styles {fine} from the top".replace("  ", " "), fontsize=10, color="#8A5D00")
    figure.supylabel(f"coarse styles {coarse} from the left".replace("  ", " "), fontsize=10, color=BLUE)
    return figure
