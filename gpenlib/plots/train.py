"""Figures of notebook 06: losses, samples over time, and looks into the latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpenlib.images import Image
from gpenlib.plots import new_figure, show_image
from gpenlib.train.trainer import LogRow, series, smooth

COLUMNS = 3
LOG_FROM = 30  # a panel whose largest value is so many times its smallest has a logarithmic axis
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


@dataclass(frozen=True)
class Panel:
    """One small panel: logged terms with their legend texts."""

    title: str
    unit: str
    terms: Mapping[str, str]


PANELS = (
    Panel("content: distance to the truth", "pixels in [-1, 1]", {"content": ""}),
    Panel("held-out faces (averaged weights)", "PSNR [dB]", {"held_out_psnr": ""}),
    Panel("adversarial (generator)", "softplus(-D(fake))", {"adversarial": ""}),
    Panel("feature matching", "L1 of D's features", {"feature_matching": ""}),
    Panel("identity", "1 - cosine", {"identity": ""}),
    Panel("discriminator", "loss (2 ln 2: cannot tell)", {"discriminator": ""}),
    Panel(
        "what the discriminator says",
        "mean logit",
        {"real_logit": "training faces", "fake_logit": "generated", "held_out_logit": "held-out faces"},
    ),
    Panel("R1: slope of D at real faces", "squared gradient", {"r1": ""}),
    Panel("path length", "mean |J'y|", {"path_length": ""}),
)
TERM_COLOURS = {"real_logit": GREEN, "fake_logit": ORANGE}


def losses_figure(rows: Sequence[LogRow], title: str = "") -> Figure:
    """Plot every logged term over the steps: the values, light, and their moving mean.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`gpenlib.train.log.read_log` gives them; terms that were not logged get no panel.
    title : str
        Over all panels.
    """
    logged = {name for row in rows for name in row}
    panels = [panel for panel in PANELS if logged & panel.terms.keys()]
    lines = -(-len(panels) // COLUMNS)
    figure, axes = new_figure(lines, COLUMNS, width=11.5, height=2.5 * lines)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, text in panel.terms.items():
            if name in logged:
                _curve(axis, rows, name, text)
        axis.set_title(panel.title)
        axis.set_ylabel(panel.unit)
        axis.set_xlabel("step")
        axis.set_xlim(0, rows[-1]["step"] * 1.02)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        shown = [row[name] for row in rows for name in panel.terms if name in row]
        if min(shown) > 0 and max(shown) > LOG_FROM * min(shown):
            axis.set_yscale("log")
        if len(panel.terms) > 1:
            axis.legend(fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=12)
    return figure


def samples_figure(pictures: Mapping[int, Image], row_titles: Sequence[str] = (), title: str = "") -> Figure:
    """Show the pictures that a training wrote, one below the other.

    Parameters
    ----------
    pictures : mapping of step to uint8 RGB [H, W, 3]
        All of one size; about four are readable.
    row_titles : sequence of str
        What the rows of faces inside each picture are, from the top; named beside each picture.
    title : str
        Over all pictures.
    """
    first = next(iter(pictures.values()))
    height, width = first.shape[:2]
    inches = min(8.0, 3.0 * width / height)
    each = inches * height / width
    figure, axes = new_figure(len(pictures), 1, width=inches + 1.2, height=(each + 0.3) * len(pictures))
    for axis, (step, picture) in zip(axes[:, 0], pictures.items(), strict=True):
        show_image(axis, picture, f"step {step}")
        if row_titles:
            side = height / len(row_titles)
            axis.set_yticks([(row + 0.5) * side for row in range(len(row_titles))], row_titles)
            axis.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=12)
    return figure


def interpolation_figure(images: Any) -> Figure:
    """Show walks between two latents.

    Parameters
    ----------
    images : uint8 RGB [R, C, S, S, 3]
        One row per walk; the first and the last column are its ends.
    """
    rows, columns = images.shape[:2]
    figure, axes = new_figure(rows, columns, width=1.25 * columns + 0.2, height=1.28 * rows + 0.35)
    for line, walk in zip(axes, images, strict=True):
        for axis, image in zip(line, walk, strict=True):
            show_image(axis, image)
    for column, axis in enumerate(axes[0]):
        axis.set_title(f"{column / (columns - 1):.2f}", fontsize=9)
    figure.supxlabel("share of the second latent", fontsize=9)
    return figure


def mixing_figure(left: Any, top: Any, mixed: Any, coarse: str = "", fine: str = "") -> Figure:
    """Show a grid of mixed styles with its sources along the left and the top.

    Parameters
    ----------
    left : uint8 RGB [R, S, S, 3]
        Faces that give the coarse styles of their row.
    top : uint8 RGB [C, S, S, 3]
        Faces that give the fine styles of their column.
    mixed : uint8 RGB [R, C, S, S, 3]
    coarse, fine : str
        Which layers those are, such as ``"4 to 8 px"``.
    """
    rows, columns = mixed.shape[:2]
    figure, axes = new_figure(
        rows + 1, columns + 1, width=1.3 * (columns + 1) + 0.4, height=1.3 * (rows + 1) + 0.5
    )
    axes[0, 0].set_visible(False)
    for axis, image in zip(axes[0, 1:], top, strict=True):
        _framed(axis, image, ORANGE)
    for line, source, mixtures in zip(axes[1:], left, mixed, strict=True):
        _framed(line[0], source, BLUE)
        for axis, image in zip(line[1:], mixtures, strict=True):
            show_image(axis, image)
    figure.suptitle(f"fine styles {fine} from the top".replace("  ", " "), fontsize=10, color="#8A5D00")
    figure.supylabel(f"coarse styles {coarse} from the left".replace("  ", " "), fontsize=10, color=BLUE)
    return figure


def _curve(axis: Axes, rows: Sequence[LogRow], name: str, text: str) -> None:
    """Draw one term; few points, as of evaluations, are marked and not smoothed."""
    steps, values = series(rows, name)
    colour = TERM_COLOURS.get(name, BLUE)
    if len(values) < 0.5 * len(rows):
        axis.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=1.2, label=text)
        return
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth(values), color=colour, linewidth=1.8, label=text)


def _framed(axis: Axes, image: Image, colour: str) -> None:
    show_image(axis, image)
    axis.spines[:].set(visible=True, color=colour, linewidth=2.5)
