"""Figures of notebook 00 (but the block diagram): cost, memory, feature maps, the growing image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from gpenlib.architecture.inspect import BlockCost, LiveActivations, TotalCost
from gpenlib.architecture.model import STYLE_DIM, GpenConfig
from gpenlib.images import Image
from gpenlib.plots import new_figure, show_image

# ----------------------------------------------------------------------
# Figures of notebook 00 (but the block diagram): cost, memory, feature maps, the growing image.

MIB = 2**20
STEP_WIDTHS = {"encoder": 2.5, "decoder": 1.0}  # of the memory timeline: encoder stages have few steps


def cost_bars(stages: Sequence[BlockCost]) -> Figure:
    """Draw parameters and GFLOPs of every stage as horizontal bars, in the order of the forward pass."""
    figure, axes = new_figure(1, 2, width=10.5, height=1.2 + 0.27 * len(stages))
    names = [stage.name for stage in stages]
    colours = [PART_COLOURS[stage.part] for stage in stages]
    panels = (
        ("Parameters", "millions", "M", [stage.parameters / 1e6 for stage in stages]),
        ("Arithmetic, one image", "GFLOPs (2 per multiply-accumulate)", "GFLOPs", [s.gflops for s in stages]),
    )
    for column, (title, label, unit, values) in enumerate(panels):
        axis = axes[0, column]
        bars = axis.barh(names, values, color=colours, height=0.72)
        axis.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8.5)
        axis.set_title(f"{title}: {sum(values):.1f} {unit} in total", loc="left")
        axis.set_xlabel(label)
        axis.set_axisbelow(True)
        axis.invert_yaxis()
        axis.margins(x=0.12, y=0.01)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0, labelleft=column == 0)
    handles = [Patch(color=colour, label=part) for part, colour in PART_COLOURS.items()]
    axes[0, 1].legend(handles=handles, loc="center right", bbox_to_anchor=(1.0, 0.62), frameon=False)
    return figure


def _short(value: float) -> str:
    """Write a bar's value with about three digits; next to nothing is written as such."""
    if value < 0.005:
        return "< 0.01" if value else "0"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def memory_timeline(steps: Sequence[LiveActivations], eager_bytes: int) -> Figure:
    """Draw the live activation memory along one forward pass, and the peaks.

    Parameters
    ----------
    steps : sequence of LiveActivations
        In execution order.
    eager_bytes : int
        Peak of PyTorch in eager mode, for comparison.
    """
    figure, axes = new_figure(width=10.5, height=3.9)
    axis = axes[0, 0]
    edges = np.cumsum([0.0, *(STEP_WIDTHS[step.part] for step in steps)])
    skip = np.array([step.skip_bytes for step in steps]) / MIB
    total = np.array([step.total_bytes for step in steps]) / MIB
    waiting = PART_COLOURS["encoder"]
    axis.stairs(skip, edges, fill=True, color=waiting, label="encoder features waiting", alpha=0.85)
    axis.stairs(total, edges, baseline=skip, fill=True, color="#DDCC77", label="working set")
    axis.stairs(total, edges, baseline=None, color=INK, lw=1.0)
    peak = int(total.argmax())
    axis.annotate(
        f"peak {total[peak]:.0f} MiB in {steps[peak].name}", (edges[peak + 1], total[peak]), (0, 5),
        textcoords="offset points", ha="right", va="bottom", fontsize=9,
    )  # fmt: skip
    eager = eager_bytes / MIB
    axis.axhline(eager, color=RGB_COLOUR, ls="--", lw=1.4)
    _stage_ticks(axis, steps, edges)
    text = f"PyTorch in eager mode peaks at {eager:.0f} MiB"
    axis.text(edges[-1], eager, text, color=RGB_COLOUR, ha="right", va="bottom", fontsize=9)
    axis.set_xlim(0, edges[-1])
    axis.set_ylim(0, eager * 1.14)
    axis.set_ylabel("MiB, float32, batch 1")
    axis.set_title("Activations alive during each operation of one inference", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.68, 0.82), frameon=False)
    return figure


def _stage_ticks(axis: Axes, steps: Sequence[LiveActivations], edges: NDArray[np.floating]) -> None:
    """Mark where each stage begins, name it by its resolution, and separate encoder from decoder."""
    stages = [(step.part, step.side) for step in steps]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    borders = np.array([*edges[starts], edges[-1]])
    names = [str(stages[start][1]) for start in starts]
    axis.set_xticks((borders[:-1] + borders[1:]) / 2, names, fontsize=8.5)
    axis.xaxis.set_minor_locator(FixedLocator(borders.tolist()))
    axis.tick_params(axis="x", which="major", length=0)
    axis.grid(axis="x", visible=False)
    axis.grid(axis="x", which="minor", visible=True, alpha=0.25)
    axis.set_axisbelow(True)
    switch = next(i for i, (part, _) in enumerate(stages) if part == "decoder")
    axis.axvline(edges[switch], color=INK, lw=1.2)
    for text, offset, side in (("encoder", -5, "right"), ("decoder", 5, "left")):
        axis.annotate(
            text, (edges[switch], 0.97), (offset, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha=side, va="top", fontsize=9, color=PART_COLOURS[text],
        )  # fmt: skip
    axis.set_xlabel("resolution of the stage in pixels")


def cost_growth(
    totals: Sequence[TotalCost], eager_bytes: Sequence[int], others: Mapping[str, TotalCost]
) -> Figure:
    """Draw parameters, GFLOPs and peak activation memory against the size, on logarithmic axes.

    Parameters
    ----------
    totals : sequence of TotalCost
        Networks of one family, sizes ascending.
    eager_bytes : sequence of int
        Their peaks in PyTorch's eager mode.
    others : mapping of str to TotalCost
        Single networks outside the family, by the name the legend gives them.
    """
    figure, axes = new_figure(1, 3, width=11.0, height=3.6)
    sizes = [total.config.out_size for total in totals]
    ticks = sorted({*sizes, *(total.config.out_size for total in others.values())})
    colour = PART_COLOURS["decoder"]
    panels = (
        ("Parameters", "millions", [total.parameters / 1e6 for total in totals]),
        ("Arithmetic, one image", "GFLOPs", [total.gflops for total in totals]),
        ("Peak activations, one image", "MiB", [total.peak_activation_bytes / MIB for total in totals]),
    )
    for axis, (title, unit, values) in zip(axes[0], panels, strict=True):
        _line(axis, sizes, values, colour, "full width (multiplier 2, narrow 1)", above=False)
        axis.set_title(title, loc="left")
        axis.set_ylabel(unit)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("image side in pixels")
        axis.set_xlim(ticks[0] * 0.75, ticks[-1] * 1.35)
    eager = [size / MIB for size in eager_bytes]
    _line(axes[0, 2], sizes, eager, INK, "the same, PyTorch eager mode", above=True)
    for name, other in others.items():
        points = (other.parameters / 1e6, other.gflops, other.peak_activation_bytes / MIB)
        for axis, value in zip(axes[0], points, strict=True):
            axis.plot([other.config.out_size], [value], "D", color=RGB_COLOUR, ms=7, label=name)
            _value(axis, other.config.out_size, value, above=False)
    axes[0, 0].set_ylim(10, 200)
    axes[0, 1].set_ylim(10, 1000)
    lowest = min(total.peak_activation_bytes for total in (*totals, *others.values())) / MIB
    axes[0, 2].set_ylim(lowest / 2.5, max(eager) * 2.5)
    handles, labels = axes[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def _line(
    axis: Axes, sizes: Sequence[int], values: Sequence[float], colour: str, label: str, above: bool
) -> None:
    """Draw one series with its values written at the points."""
    axis.plot(sizes, values, "o-", color=colour, lw=1.8, ms=5.5, label=label)
    for size, value in zip(sizes, values, strict=True):
        _value(axis, size, value, above)


def _value(axis: Axes, size: int, value: float, above: bool) -> None:
    """Write a value above or below its point."""
    text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    offset, side = ((0, 7), "bottom") if above else ((0, -8), "top")
    axis.annotate(text, (size, value), offset, textcoords="offset points", ha="center", va=side, fontsize=8.5)


def feature_grid(
    encoder: Mapping[int, NDArray[np.floating]], decoder: Mapping[int, NDArray[np.floating]]
) -> Figure:
    """Show channels of encoder and decoder side by side for each resolution.

    Parameters
    ----------
    encoder, decoder : mapping of int to float array
        By side in pixels: the channels to show, [K, side, side], best first. Each is scaled to its own range.
    """
    sides = sorted(decoder, reverse=True)
    count = max(len(maps) for maps in (*encoder.values(), *decoder.values()))
    cell = min(11.2 / len(sides), 1.3)
    figure, axes = new_figure(2 * count, len(sides), width=cell * len(sides), height=cell * 2 * count + 0.3)
    for half, (name, maps) in enumerate((("encoder", encoder), ("decoder", decoder))):
        for column, side in enumerate(sides):
            for row in range(count):
                axis = axes[half * count + row, column]
                shown = maps.get(side)
                if shown is None or row >= len(shown):
                    axis.set_axis_off()
                    continue
                title = f"{name} {side} px" if row == 0 else ""
                show_image(axis, shown[row], title, cmap="viridis")
                axis.title.set_color(PART_COLOURS[name])
    return figure


def growing_image(grown: Mapping[int, Image], added: Mapping[int, Image]) -> Figure:
    """Show the RGB skip image at every resolution, and what each level added to it.

    Parameters
    ----------
    grown, added : mapping of int to Image
        By side in pixels: uint8 [side, side, 3].
    """
    sides = sorted(grown)
    figure, axes = new_figure(2, len(sides), width=11.2, height=2 * 11.0 / len(sides) + 0.15)
    for column, side in enumerate(sides):
        show_image(axes[0, column], grown[side], f"{side} px")
        show_image(axes[1, column], added[side], "")
    for row, label in enumerate(("image so far", "added by this level\n(own scale, grey is 0)")):
        axes[row, 0].set_ylabel(label, fontsize=9)
    return figure


def before_and_after(image: Image, output: Image) -> Figure:
    """Show what goes into the network and what comes out."""
    figure, axes = new_figure(1, 2, width=6.4, height=3.5)
    show_image(axes[0, 0], image, f"input, {image.shape[0]} px", interpolation="auto")
    show_image(axes[0, 1], output, f"output, {output.shape[0]} px", interpolation="auto")
    return figure


# ----------------------------------------------------------------------
# Block diagram of a GPEN, drawn from its configuration.

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
