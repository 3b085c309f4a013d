"""Figure of the performance test: throughput against latency, and memory, per combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gpenlib.plots.style import BASELINE_COLOUR, new_figure

Row = Mapping[str, Any]
Box = tuple[float, float, float, float]
BATCH_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito
INSTANCE_MARKERS = ("o", "s", "^", "D", "v", "P")
SHORTEST = 2.8  # inches, as those below
SPEED_INCHES = 6.2  # width of the left axes
HEAD_AND_FOOT = 1.15  # titles above and labels below the axes
LABEL_INCHES = (0.72, 0.17)  # room of one name


def performance_figure(rows: Sequence[Row]) -> Figure:
    """Draw throughput against latency, and beside it the peak memory, of every combination.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`gpenlib.infer.performance.performance_test` gives them; 1 to about 12.
    """
    height = max(SHORTEST, 1.6 + 0.3 * len(rows))
    figure, axes = new_figure(1, 2, width=11.0, height=height)
    speed, memory = axes[0]
    colours = _colours(rows)
    _draw_speed(speed, rows, colours, height)
    _draw_memory(memory, rows, colours)
    speed.get_gridspec().set_width_ratios([1.75, 1])
    first = rows[0]
    figure.suptitle(
        f"{first['dtype']} on {first['backend']}, {first['device']}"
        " (combinations: batch size × instances × threads per instance)",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _colours(rows: Sequence[Row]) -> list[str]:
    """Return the colour of each row's batch size."""
    sizes = sorted({row["batch_size"] for row in rows})
    return [BATCH_COLOURS[sizes.index(row["batch_size"]) % len(BATCH_COLOURS)] for row in rows]


def _name(row: Row) -> str:
    """Return such as ``4 × 2 × 1``, with an asterisk where there are more threads than cores."""
    name = f"{row['batch_size']} × {row['instances']} × {row['threads']}"
    return f"{name} *" if row["oversubscribed"] else name


def _draw_speed(axis: Axes, rows: Sequence[Row], colours: Sequence[str], height: float) -> None:
    """Draw one marker per combination, with lines on to the 95th and 99th percentile."""
    counts = sorted({row["instances"] for row in rows})
    for row, colour in zip(rows, colours, strict=True):
        y = row["images_per_s"]
        marker = INSTANCE_MARKERS[counts.index(row["instances"]) % len(INSTANCE_MARKERS)]
        axis.hlines(y, row["p50_ms"], row["p95_ms"], color=colour, linewidth=3, alpha=0.55)
        axis.hlines(y, row["p95_ms"], row["p99_ms"], color=colour, linewidth=1)
        axis.plot(row["p99_ms"], y, "|", color=colour, ms=7)
        axis.plot(row["p50_ms"], y, marker, color=colour, ms=8, mec="white", mew=0.7, zorder=3)
    axis.set_xlim(0, 1.08 * max(row["p99_ms"] for row in rows))
    axis.set_ylim(0, 1.2 * max(row["images_per_s"] for row in rows))
    _label(axis, rows, colours, height)
    axis.set_title("Throughput against latency: up and to the left is better", loc="left")
    axis.set_xlabel("latency of a call [ms]")
    axis.set_ylabel("images / s")
    p99 = "p99" if all(row["enough_for_p99"] for row in rows) else "p99 (of fewer than 100 calls)"
    grey: Any = {"color": BASELINE_COLOUR}
    handles = [
        Line2D([], [], marker="o", linestyle="none", ms=8, label="p50", **grey),
        Line2D([], [], linewidth=3, alpha=0.55, label="to p95", **grey),
        Line2D([], [], linewidth=1, marker="|", label=f"to {p99}", **grey),
    ]
    axis.legend(handles=handles, loc="lower left", ncols=3, fontsize=9)


def _label(axis: Axes, rows: Sequence[Row], colours: Sequence[str], height: float) -> None:
    """Name every combination beside its marker, where neither a marker, a line nor a name stands yet."""
    right, top = axis.get_xlim()[1], axis.get_ylim()[1]
    wide, high = LABEL_INCHES[0] / SPEED_INCHES, LABEL_INCHES[1] / (height - HEAD_AND_FOOT)
    spots = [(row["p50_ms"] / right, row["images_per_s"] / top) for row in rows]
    taken = [
        (x - high / 3, y - high / 3, row["p99_ms"] / right, y + high / 3)
        for (x, y), row in zip(spots, rows, strict=True)
    ]  # boxes (left, bottom, right, top) in fractions of the axes
    for place in sorted(range(len(rows)), key=lambda place: spots[place]):
        x, y = spots[place]
        box = next(
            (box for box in _boxes_around(x, y, wide, high) if not _overlaps(box, taken)),
            (x, y, x + wide, y + high),
        )
        taken.append(box)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        line = {"arrowstyle": "-", "color": colours[place], "alpha": 0.6, "linewidth": 0.8, "shrinkA": 0}
        axis.annotate(
            _name(rows[place]), (x, y), centre, xycoords="axes fraction", textcoords="axes fraction",
            ha="center", va="center", fontsize=9, color=colours[place], annotation_clip=False,
            arrowprops=line if abs(centre[1] - y) > 1.5 * high else None,
        )  # fmt: skip


def _boxes_around(x: float, y: float, wide: float, high: float) -> list[Box]:
    """Return the boxes that a name may fill, nearest first, inside the axes."""
    centres = [
        (x + across * wide, y + up * high)
        for up, across in product((1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6), (0.3, -0.2, 0.9, -0.8))
    ]
    boxes = [(cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2) for cx, cy in centres]
    return [box for box in boxes if box[0] > 0 and box[1] > 0 and box[2] < 1 and box[3] < 1]


def _overlaps(box: Box, taken: Sequence[Box]) -> bool:
    """Return whether a box has a point in common with any of the others."""
    left, bottom, right, top = box
    return any(left < c and a < right and bottom < d and b < top for a, b, c, d in taken)


def _draw_memory(axis: Axes, rows: Sequence[Row], colours: Sequence[str]) -> None:
    """Draw peak memory as bars: what the process had before in grey, what the model added in colour."""
    places = np.arange(len(rows))
    base = [row["base_memory_mib"] for row in rows]
    added = [row["peak_memory_mib"] - row["base_memory_mib"] for row in rows]
    axis.barh(places, base, 0.62, color=BASELINE_COLOUR, alpha=0.5, label="before loading")
    bars = axis.barh(places, added, 0.62, left=base, color=list(colours), alpha=0.85)
    axis.bar_label(bars, [f"{row['peak_memory_mib']:.0f}" for row in rows], padding=4, fontsize=9)
    axis.set_yticks(places, [_name(row) for row in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1.2 * max(row["peak_memory_mib"] for row in rows))
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)
    axis.set_title("Peak memory (grey: before loading)", loc="left")
    note = "   (*: more threads than cores)" if any(row["oversubscribed"] for row in rows) else ""
    axis.set_xlabel(f"MiB{note}")
