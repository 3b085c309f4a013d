"""Block diagram of a GPEN, drawn from its configuration."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gpenlib.architecture.config import STYLE_DIM, GpenConfig
from gpenlib.plots.style import new_figure

# Paul Tol's "muted" scheme (colour-blind safe), apart from the colours of the dtypes.
PART_COLOURS = {"encoder": "#332288", "mapping": "#999933", "decoder": "#44AA99"}
RGB_COLOUR = "#AA4499"
INK = "#333333"

# Columns of the block diagram: left edge and width of each kind of box.
ENCODER, MAPPING, DECODER, TO_RGB = (0.0, 2.9), (3.45, 1.95), (5.85, 3.4), (10.55, 1.3)
STYLE_BUS = 9.9
BOX_HEIGHT = 0.64


def block_diagram(config: GpenConfig) -> Figure:
    """Draw the network: encoder down the left, latent path at the bottom, decoder and ToRGB up the right.

    Parameters
    ----------
    config : GpenConfig
        Any size from 32 to 2048 px, super-resolution forms included.
    """
    levels = range(2, config.log_out + 1)
    figure, axes = new_figure(width=11.0, height=2.3 + 0.56 * len(levels))
    axis = axes[0, 0]
    axis.set_axis_off()
    axis.set_xlim(-1.1, 11.9)
    axis.set_ylim(-2.25, len(levels) + 0.15)
    for level in levels:
        _draw_level(axis, config, level)
    _draw_latent_path(axis, config)
    top = len(levels) - 1
    start = config.log_in - 2
    _arrow(axis, (1.45, start + 0.95), (1.45, start + BOX_HEIGHT / 2), INK)
    into = f"image, 3 × {config.in_size} × {config.in_size}"
    axis.text(1.55, start + 0.66, into, fontsize=8.5, va="center")
    middle = TO_RGB[0] + TO_RGB[1] / 2
    _arrow(axis, (middle, top + BOX_HEIGHT / 2), (middle, top + 0.95), RGB_COLOUR)
    out = f"restored, 3 × {config.out_size} × {config.out_size}"
    axis.text(middle - 0.1, top + 0.66, out, fontsize=8.5, ha="right", va="center")
    width = f"channel multiplier {config.channel_multiplier}, narrow {config.narrow:g}"
    axis.set_title(f"GPEN, {config.in_size} px in, {config.out_size} px out ({width})", loc="left")
    kinds = {
        "features": INK,
        "encoder features, concatenated as noise": PART_COLOURS["encoder"],
        "latent w: style of every modulated convolution": PART_COLOURS["mapping"],
        "RGB image, growing by ×2": RGB_COLOUR,
    }
    handles = [Line2D([], [], color=colour, lw=1.8, label=label) for label, colour in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    return figure


def _draw_level(axis: Axes, config: GpenConfig, level: int) -> None:
    """Draw encoder stage, skip arrow, decoder level and ToRGB of one resolution."""
    y, side, width = level - 2, 2**level, config.channels(2**level)
    centre, lower = y + 0.12, y - 0.14
    axis.text(-0.12, y, f"{side} px", ha="right", va="center", fontsize=9.5, weight="bold", color=INK)
    decoder_left, decoder_right = DECODER[0], sum(DECODER)
    if side <= config.in_size:
        index = config.log_in - level
        how = "conv 1×1" if index == 0 else "blur, conv 3×3 ↓2"
        _box(axis, ENCODER, y, f"ecd{index}:  {width} channels", how, PART_COLOURS["encoder"])
        _arrow(axis, (sum(ENCODER), y), (decoder_left, y), PART_COLOURS["encoder"])
    else:
        axis.text(
            decoder_left - 0.15, y, "no encoder feature:\nnoise in training, zeros in eval",
            ha="right", va="center", fontsize=8, color="#777777",
        )  # fmt: skip
    if side < config.in_size:
        _arrow(axis, (1.45, y + 1 - BOX_HEIGHT / 2), (1.45, y + BOX_HEIGHT / 2), INK)
    first = 2 * level - 6
    name = "conv1" if level == 2 else f"convs.{first}–{first + 1}"
    how = "modulated conv 3×3" if level == 2 else "modulated conv 3×3 ↑2, then 3×3"
    _box(axis, DECODER, y, f"{name}:  {width} + {width} channels", how, PART_COLOURS["decoder"])
    to_rgb = "to_rgb1" if level == 2 else f"to_rgbs.{level - 3}"
    _box(axis, TO_RGB, y, to_rgb, "1×1 → RGB", RGB_COLOUR)
    _arrow(axis, (decoder_right, centre), (TO_RGB[0], centre), INK)
    for x in (decoder_right, TO_RGB[0]):
        _arrow(axis, (STYLE_BUS, lower), (x, lower), PART_COLOURS["mapping"])
    axis.plot([STYLE_BUS], [lower], "o", color=PART_COLOURS["mapping"], ms=4.5)
    if level < config.log_out:
        middle = DECODER[0] + DECODER[1] / 2
        _arrow(axis, (middle, y + BOX_HEIGHT / 2), (middle, y + 1 - BOX_HEIGHT / 2), INK)
        middle = TO_RGB[0] + TO_RGB[1] / 2
        _arrow(axis, (middle, y + BOX_HEIGHT / 2), (middle, y + 1 - BOX_HEIGHT / 2), RGB_COLOUR)


def _draw_latent_path(axis: Axes, config: GpenConfig) -> None:
    """Draw projection, mapping network, learned constant, and the bus that carries w up."""
    y, colour = -1.1, PART_COLOURS["mapping"]
    flat, bottom = config.channels(4) * 16, -1.85
    _box(axis, ENCODER, y, "final_linear", f"{flat} → {STYLE_DIM}", colour)
    _box(axis, MAPPING, y, "mapping network", f"8 × ({STYLE_DIM} → {STYLE_DIM})", colour)
    _box(axis, DECODER, y, "learned constant", f"{config.channels(4)} × 4 × 4", PART_COLOURS["decoder"])
    _arrow(axis, (1.45, -BOX_HEIGHT / 2), (1.45, y + BOX_HEIGHT / 2), INK)
    _arrow(axis, (sum(ENCODER), y), (MAPPING[0], y), colour)
    axis.text(sum(ENCODER) + 0.24, y + 0.09, "z", fontsize=10, style="italic", ha="center", va="bottom")
    middle = DECODER[0] + DECODER[1] / 2
    _arrow(axis, (middle, y + BOX_HEIGHT / 2), (middle, -BOX_HEIGHT / 2), INK)
    out, top = MAPPING[0] + MAPPING[1] / 2, config.log_out - 2 - 0.14
    heights = [y - BOX_HEIGHT / 2, bottom, bottom, top]
    axis.plot([out, out, STYLE_BUS, STYLE_BUS], heights, color=colour, lw=1.8)
    axis.text(STYLE_BUS + 0.12, y, "w", fontsize=10, style="italic", va="center")


def _box(axis: Axes, column: tuple[float, float], y: float, name: str, detail: str, colour: str) -> None:
    """Draw a rounded box with a bold name above a line of detail."""
    left, width = column
    patch = FancyBboxPatch(
        (left, y - BOX_HEIGHT / 2), width, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.09",
        facecolor=f"{colour}22", edgecolor=colour, linewidth=1.3,
    )  # fmt: skip
    axis.add_patch(patch)
    middle = left + width / 2
    axis.text(middle, y + 0.13, name, ha="center", va="center", fontsize=8.5, weight="bold", color=INK)
    axis.text(middle, y - 0.15, detail, ha="center", va="center", fontsize=8, color=INK)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw a straight arrow that touches both points."""
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, color=colour, linewidth=1.4
        )
    )
