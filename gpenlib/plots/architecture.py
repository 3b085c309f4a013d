"""Figures of notebook 00: the block diagram, cost, memory, feature maps, the growing image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from gpenlib import plots as style
from gpenlib.architecture.model import STYLE_DIM, GpenConfig
from gpenlib.images import Image

if TYPE_CHECKING:
    from gpenlib.architecture.inspect import BlockCost, LiveActivations, TotalCost

MIB = 2**20
# Paul Tol's "muted" scheme (colour-blind safe), apart from the colours of the dtypes.
PART_COLOURS = {"encoder": "#332288", "mapping": "#999933", "decoder": "#44AA99"}
RGB_COLOUR = "#AA4499"
SHAPE = {  # of a network, in words
    "in_size": "side of the input [px]", "out_size": "side of the output [px]",
    "channel_multiplier": "factor on the channels from 64 px up (channel multiplier)",
    "narrow": "factor on all channels (narrow)",
}  # fmt: skip
BLOCKS = {  # columns of the notebook's table, see ``gpenlib.plots.table``
    "name": ("block", "{}"),
    "operation": ("operation", "{}"),
    "resolution": ("side [px]", "{:.0f}"),
    "channels": ("channels", "{:.0f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "gflops": ("GFLOPs", "{:.3f}"),
    "weights": ("weights [MiB]", "{:.3f}"),
    "output": ("output [MiB]", "{:.3f}"),
}


def cost_bars(stages: Sequence[BlockCost]) -> Figure:
    """Draw parameters and GFLOPs of every stage as horizontal bars, in the order of the forward pass."""
    figure, axes = style.new_figure(1, 2, width=10.0, height=1.4 + 0.27 * len(stages))
    panels = (
        ("Parameters", "millions", "M", [stage.parameters / 1e6 for stage in stages]),
        ("Arithmetic, one image", "GFLOPs (2 per multiply-accumulate)", "GFLOPs", [s.gflops for s in stages]),
    )
    for axis, (title, label, unit, values) in zip(axes[0], panels, strict=True):
        style.name_rows(axis, [stage.name for stage in stages])
        bars = axis.barh(range(len(stages)), values, 0.72, color=[PART_COLOURS[s.part] for s in stages])
        axis.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8.5)
        style.label(axis, f"{title}: {sum(values):.1f} {unit} in total", label)
        axis.margins(x=0.12)
    axes[0, 1].tick_params(labelleft=False)
    style.legend_below(figure, handles=[Patch(color=c, label=p) for p, c in PART_COLOURS.items()], ncols=3)
    return figure


def _short(value: float) -> str:
    """Write a bar's value with about three digits; next to nothing is written as such."""
    if value < 0.005:
        return "< 0.01" if value else "0"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def memory_timeline(steps: Sequence[LiveActivations], eager_bytes: int) -> Figure:
    """Draw the live activation memory along one forward pass; the title tells the peak of eager PyTorch."""
    figure, axis = style.panels(1, 10.0, 3.6)
    edges = np.cumsum([0.0, *(2.5 if step.part == "encoder" else 1.0 for step in steps)])  # few steps each
    skip = np.array([step.skip_bytes for step in steps]) / MIB
    total = np.array([step.total_bytes for step in steps]) / MIB
    look: Any = {"fill": True, "color": PART_COLOURS["encoder"], "alpha": 0.85}
    axis.stairs(skip, edges, label="encoder features waiting", **look)
    axis.stairs(total, edges, baseline=skip, fill=True, color="#DDCC77", label="working set")
    axis.stairs(total, edges, baseline=None, color=style.INK, lw=1.0)
    peak = int(total.argmax())
    text = f"peak {total[peak]:.0f} MiB in {steps[peak].name}"
    style.note(axis, text, (edges[peak + 1], total[peak]), (0, 5), ha="right", va="bottom")
    _stage_ticks(axis, steps, edges)
    axis.set(xlim=(0, edges[-1]), ylim=(0, total[peak] * 1.22))
    title = f"At least {total[peak]:.0f} MiB of activations live at once; PyTorch in eager mode holds "
    title += f"{eager_bytes / MIB:.0f} MiB"
    style.label(axis, title, "resolution of the stage in pixels", "MiB, float32, batch 1")
    style.legend_below(figure, axis, ncols=2)
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
    switch = edges[[part for part, _ in stages].index("decoder")]
    axis.axvline(switch, color=style.INK, lw=1.2)
    for part, offset, side in (("encoder", -5, "right"), ("decoder", 5, "left")):
        place: Any = {"xycoords": ("data", "axes fraction"), "ha": side, "va": "top"}
        style.note(axis, part, (switch, 0.97), (offset, 0), color=PART_COLOURS[part], **place)


def cost_growth(
    totals: Sequence[TotalCost], eager_bytes: Sequence[int], others: Mapping[str, TotalCost]
) -> Figure:
    """Draw what a family of ascending sizes costs, its peaks in eager mode, and single ``others`` by name."""
    figure, axes = style.new_figure(1, 3, width=10.0, height=3.6)
    sizes = [total.config.out_size for total in totals]
    ticks = sorted({*sizes, *(total.config.out_size for total in others.values())})
    panels: tuple[tuple[str, str, Callable[[TotalCost], float]], ...] = (
        ("Parameters", "millions", lambda total: total.parameters / 1e6),
        ("Arithmetic", "GFLOPs", lambda total: total.gflops),
        ("Peak activations", "MiB", lambda total: total.peak_activation_bytes / MIB),
    )
    family, eager = "full width (multiplier 2, narrow 1)", "full width, PyTorch eager mode"
    for axis, (title, unit, cost) in zip(axes[0], panels, strict=True):
        lines = [(family, PART_COLOURS["decoder"], "o-", sizes, [cost(total) for total in totals])]
        for name, other in others.items():
            lines.append((name, RGB_COLOUR, "D", [other.config.out_size], [cost(other)]))
        if unit == "MiB":
            lines.append((eager, style.INK, "o-", sizes, [size / MIB for size in eager_bytes]))
        for name, colour, form, across, values in lines:
            axis.plot(across, values, form, color=colour, lw=1.8, ms=7 if form == "D" else 5.5, label=name)
            offset, side = (7, "bottom") if name == eager else (-8, "top")
            for point in zip(across, values, strict=True):
                text = f"{point[1]:.1f}" if point[1] < 100 else f"{point[1]:.0f}"
                style.note(axis, text, point, (0, offset), ha="center", va=side, fontsize=8.5)
        drawn = [value for *_, values in lines for value in values]
        ends = 10 ** floor(log10(min(drawn) / 1.5)), 10 ** ceil(log10(1.5 * max(drawn)))
        axis.set(xscale="log", yscale="log", ylim=ends, xlim=(ticks[0] * 0.75, ticks[-1] * 1.35))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        growth = cost(totals[-1]) / cost(totals[0])
        told = f"{title}: × {growth:.1f}\nfrom {sizes[0]} to {sizes[-1]} px" if len(totals) > 1 else title
        style.label(axis, told, "image side in pixels", unit, fontsize=10.5)
    style.legend_below(figure, axes[0, 2], ncols=3)
    return figure


def feature_grid(
    encoder: Mapping[int, NDArray[np.floating]], decoder: Mapping[int, NDArray[np.floating]]
) -> Figure:
    """Show channels of encoder and decoder by side in pixels, float [K, side, side], each on an own scale."""
    sides = sorted(decoder, reverse=True)
    count = max(len(maps) for maps in (*encoder.values(), *decoder.values()))
    cell, parts = min(10.0 / len(sides), 1.3), {"encoder": encoder, "decoder": decoder}
    grid = [
        [next(iter(maps.get(side, ())[row : row + 1]), None) for side in sides]
        for maps in parts.values()
        for row in range(count)
    ]
    above, below = ([f"{part}\n{side} px" for side in sides] for part in parts)
    titles = [above, *[[]] * (count - 1), below]
    figure, axes = style.picture_grid(
        grid, titles, width=cell * len(sides), height=cell * 2 * count + 0.6,
        cmap="viridis", interpolation="nearest",
    )  # fmt: skip
    for line, part in zip(axes[::count], parts, strict=True):
        for axis in line:
            axis.title.set_color(PART_COLOURS[part])
    return figure


def growing_image(grown: Mapping[int, Image], added: Mapping[int, Image]) -> Figure:
    """Show the RGB skip image at every side in pixels, and what each level added, uint8 [side, side, 3]."""
    sides = sorted(grown)
    return style.picture_grid(
        [[grown[side] for side in sides], [added[side] for side in sides]],
        [[f"{side} px" for side in sides]], ["image so far", "added by this level\n(own scale, grey is 0)"],
        width=10.0, height=min(2 * 9.8 / len(sides) + 0.15, 5.5), interpolation="nearest",
    )[0]  # fmt: skip


def before_and_after(image: Image, output: Image) -> Figure:
    """Show what goes into the network and what comes out."""
    titles = [f"input, {image.shape[0]} px", f"output, {output.shape[0]} px"]
    return style.picture_grid([[image, output]], [titles], width=6.4, height=3.5)[0]


# Columns of the block diagram: left edge and width of each kind of box.
ENCODER, MAPPING, DECODER, TO_RGB = (0.0, 2.9), (3.45, 1.95), (5.85, 3.4), (10.55, 1.3)
STYLE_BUS = 9.9
BOX_HEIGHT = 0.64


def block_diagram(config: GpenConfig) -> Figure:
    """Draw any GPEN: encoder down the left, latent path at the bottom, decoder and ToRGB up the right."""
    levels = range(2, config.log_out + 1)
    figure, axis = style.panels(1, 10.0, 2.3 + 0.56 * len(levels))
    axis.set_axis_off()
    axis.set(xlim=(-1.1, 11.9), ylim=(-2.25, len(levels) + 0.15))
    for level in levels:
        _draw_level(axis, config, level)
    _draw_latent_path(axis, config)
    start, top = config.log_in - 2, len(levels) - 1
    _arrow(axis, (1.45, start + 0.95), (1.45, start + BOX_HEIGHT / 2), style.INK)
    image = f"image, 3 × {config.in_size} × {config.in_size}"
    axis.text(1.55, start + 0.66, image, fontsize=8.5, va="center")
    middle = TO_RGB[0] + TO_RGB[1] / 2
    _arrow(axis, (middle, top + BOX_HEIGHT / 2), (middle, top + 0.95), RGB_COLOUR)
    out = f"restored, 3 × {config.out_size} × {config.out_size}"
    axis.text(middle - 0.1, top + 0.66, out, fontsize=8.5, ha="right", va="center")
    width = f"channel multiplier {config.channel_multiplier}, narrow {config.narrow:g}"
    axis.set_title(f"GPEN, {config.in_size} px in, {config.out_size} px out ({width})", loc="left")
    for text, colour in (
        ("features", style.INK),
        ("encoder features, concatenated as noise", PART_COLOURS["encoder"]),
        ("latent w: style of every modulated convolution", PART_COLOURS["mapping"]),
        ("RGB image, growing by ×2", RGB_COLOUR),
    ):
        axis.plot([], [], color=colour, lw=1.8, label=text)
    style.legend_below(figure, axis, ncols=4, fontsize=8.5)
    return figure


def _draw_level(axis: Axes, config: GpenConfig, level: int) -> None:
    """Draw encoder stage, skip arrow, decoder level and ToRGB of one resolution."""
    y, side, width = level - 2, 2**level, config.channels(2**level)
    upper, lower, half = y + 0.12, y - 0.14, BOX_HEIGHT / 2
    axis.text(-0.12, y, f"{side} px", ha="right", va="center", fontsize=9.5, weight="bold", color=style.INK)
    left, right = DECODER[0], sum(DECODER)
    if side <= config.in_size:
        index = config.log_in - level
        how = "conv 1×1" if index == 0 else "blur, conv 3×3 ↓2"
        _box(axis, ENCODER, y, f"ecd{index}:  {width} channels", how, PART_COLOURS["encoder"])
        _arrow(axis, (sum(ENCODER), y), (left, y), PART_COLOURS["encoder"])
    else:
        text = "no encoder feature:\nnoise in training, zeros in eval"
        axis.text(left - 0.15, y, text, ha="right", va="center", fontsize=8, color="#777777")
    if side < config.in_size:
        _arrow(axis, (1.45, y + 1 - half), (1.45, y + half), style.INK)
    first = 2 * level - 6
    name = "conv1" if level == 2 else f"convs.{first}–{first + 1}"
    how = "modulated conv 3×3" if level == 2 else "modulated conv 3×3 ↑2, then 3×3"
    _box(axis, DECODER, y, f"{name}:  {width} + {width} channels", how, PART_COLOURS["decoder"])
    _box(axis, TO_RGB, y, "to_rgb1" if level == 2 else f"to_rgbs.{level - 3}", "1×1 → RGB", RGB_COLOUR)
    _arrow(axis, (right, upper), (TO_RGB[0], upper), style.INK)
    for x in (right, TO_RGB[0]):
        _arrow(axis, (STYLE_BUS, lower), (x, lower), PART_COLOURS["mapping"])
    axis.plot([STYLE_BUS], [lower], "o", color=PART_COLOURS["mapping"], ms=4.5)
    if level < config.log_out:
        for (start, across), colour in ((DECODER, style.INK), (TO_RGB, RGB_COLOUR)):
            _arrow(axis, (start + across / 2, y + half), (start + across / 2, y + 1 - half), colour)


def _draw_latent_path(axis: Axes, config: GpenConfig) -> None:
    """Draw projection, mapping network, learned constant, and the bus that carries w up."""
    y, half, colour, width = -1.1, BOX_HEIGHT / 2, PART_COLOURS["mapping"], config.channels(4)
    _box(axis, ENCODER, y, "final_linear", f"{width * 16} → {STYLE_DIM}", colour)
    _box(axis, MAPPING, y, "mapping network", f"8 × ({STYLE_DIM} → {STYLE_DIM})", colour)
    _box(axis, DECODER, y, "learned constant", f"{width} × 4 × 4", PART_COLOURS["decoder"])
    _arrow(axis, (1.45, -half), (1.45, y + half), style.INK)
    _arrow(axis, (sum(ENCODER), y), (MAPPING[0], y), colour)
    axis.text(sum(ENCODER) + 0.24, y + 0.09, "z", fontsize=10, style="italic", ha="center", va="bottom")
    middle, out = DECODER[0] + DECODER[1] / 2, MAPPING[0] + MAPPING[1] / 2
    _arrow(axis, (middle, y + half), (middle, -half), style.INK)
    heights = [y - half, -1.85, -1.85, config.log_out - 2 - 0.14]
    axis.plot([out, out, STYLE_BUS, STYLE_BUS], heights, color=colour, lw=1.8)
    axis.text(STYLE_BUS + 0.12, y, "w", fontsize=10, style="italic", va="center")


def _box(axis: Axes, column: tuple[float, float], y: float, name: str, detail: str, colour: str) -> None:
    """Draw a rounded box with a bold name above a line of detail."""
    left, width = column
    look: Any = {"boxstyle": "round,pad=0,rounding_size=0.09", "fc": f"{colour}22", "ec": colour, "lw": 1.3}
    axis.add_patch(FancyBboxPatch((left, y - BOX_HEIGHT / 2), width, BOX_HEIGHT, **look))
    centred: Any = {"ha": "center", "va": "center", "color": style.INK}
    axis.text(left + width / 2, y + 0.13, name, fontsize=8.5, weight="bold", **centred)
    axis.text(left + width / 2, y - 0.15, detail, fontsize=8, **centred)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw a straight arrow that touches both points."""
    look: Any = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0, "lw": 1.4}
    axis.add_patch(FancyArrowPatch(start, end, color=colour, **look))
