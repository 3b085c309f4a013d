"""Figures of notebook 00 (but the block diagram): cost, memory, feature maps, the growing image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from gpenlib.architecture.cost import BlockCost, TotalCost
from gpenlib.architecture.memory import LiveActivations
from gpenlib.images import Image
from gpenlib.plots.diagram import INK, PART_COLOURS, RGB_COLOUR
from gpenlib.plots.style import new_figure, show_image

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
