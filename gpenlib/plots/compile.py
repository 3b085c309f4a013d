"""Figures of notebook 03: what each dtype costs, int8's ranges and rounding, and the performance test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from gpenlib import plots as style
from gpenlib.metrics import PSNR_CEILING
from gpenlib.plots import Row

MOVING = ("element-wise", "concatenation", "depthwise filter", "rounding and layout")  # kinds
MIB = 2**20
OPERATORS = {"Conv": ("#117733", "o"), "ConvTranspose": ("#AA4499", "s")}  # not the colours of the dtypes
MODES = {  # of calibration: colour, line
    "max": ("#000000", "-"), "percentile": ("#999933", "--"),
    "kl_divergence": ("#CC79A7", ":"), "mse": ("#332288", "-."),
}  # fmt: skip
KIND_COLOURS = {
    "convolution": "#332288", "transposed convolution": "#AA4499", "depthwise filter": "#88CCEE",
    "element-wise": "#DDCC77", "concatenation": "#CC6677", "linear": "#117733",
    "rounding and layout": "#999933", "other": "#BBBBBB",
}  # fmt: skip


def _dtype_lines(rows: Sequence[Row], height: float, title: str, unit: str) -> tuple[Figure, Axes]:
    """Return a figure with one named line per row's dtype."""
    figure, axis = style.panels(1, height=height)
    style.name_rows(axis, [row["dtype"] for row in rows])
    style.label(axis, title, unit)
    return figure, axis


def artefact_rows(artefacts: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return a row per dtype for the figures and the table of artefacts, from the manifests' metrics."""
    return [
        {
            "dtype": dtype, "model_bytes": made["model_bytes"], "mib": made["model_bytes"] / MIB,
            "backend": made["backend"], "chosen": made["backend_reason"],
            "executed": made["executed_precision"],
            "convolutions": ", ".join(f"{n} × {k}" for k, n in sorted(made["executed_convolutions"].items())),
            "quantised": sum(made.get("quantisation", {}).get("quantised", {}).values()),
            "psnr_mean": made["parity"]["mean"]["psnr"], "psnr_worst": made["parity"]["worst"]["psnr"],
        }
        for dtype, made in artefacts.items()
    ]  # fmt: skip


def size_figure(rows: Sequence[Row]) -> Figure:
    """Draw the size of the model file, ``model_bytes``, per dtype."""
    figure, axis = _dtype_lines(rows, 0.9 + 0.42 * len(rows), "Size of the model file", "MiB")
    sizes = [row["model_bytes"] / MIB for row in rows]
    bars = axis.barh(range(len(rows)), sizes, 0.62, color=[style.DTYPE_COLOURS[row["dtype"]] for row in rows])
    axis.bar_label(bars, fmt="%.1f", padding=4, fontsize=9)
    axis.margins(x=0.08)
    return figure


def latency_figure(rows: Sequence[Row]) -> Figure:
    """Draw the median latency per dtype, with whiskers, from rows of ``interleaved_latency``."""
    batch, repeats = rows[0]["batch_size"], len(rows[0]["times_ms"])
    title = f"Latency, batch {batch}: median of {repeats} calls, whiskers 10th to 90th percentile"
    figure, axis = _dtype_lines(rows, 1.0 + 0.48 * len(rows), title, "ms per call")
    names = [f"{row['dtype']}\nran in {row['executed_precision']}" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8.5)
    for place, row in enumerate(rows):
        low, median, high = (row[f"{name}_ms"] for name in ("p10", "median", "p90"))
        axis.barh(place, median, 0.62, color=style.DTYPE_COLOURS[row["dtype"]], alpha=0.85)
        lengths = [[median - low], [high - median]]
        axis.errorbar(median, place, xerr=lengths, ecolor="black", capsize=4, linewidth=1.3)
        style.note(axis, f"{median:.1f}", (high, place), (7, 0))
    axis.set_xlim(0, max(row["p90_ms"] for row in rows) * 1.12)
    return figure


def parity_figure(rows: Sequence[Row], limits: Mapping[str, float]) -> Figure:
    """Draw ``psnr_mean`` and ``psnr_worst`` against the float network (None: equal), and the limits."""
    title = "PSNR against the float network, on faces that calibration did not see"
    figure, axis = _dtype_lines(rows, 1.5 + 0.45 * len(rows), title, "dB (data range 2)")
    for place, row in enumerate(rows):
        colour, limit = style.DTYPE_COLOURS[row["dtype"]], limits[row["dtype"]]
        axis.plot([limit, limit], [place - 0.28, place + 0.28], color="black", linewidth=2.2)
        if row["psnr_worst"] is None:
            style.note(axis, "equal outputs", (limit, place), (8, 0), fontsize=10)
            continue
        axis.hlines(place, row["psnr_worst"], row["psnr_mean"], color=colour, linewidth=2.5)
        axis.plot(row["psnr_worst"], place, "o", color="white", mec=colour, mew=2, ms=9)
        axis.plot(row["psnr_mean"], place, "o", color=colour, ms=9)
        text = f"{row['psnr_mean']:.1f} (worst {row['psnr_worst']:.1f})"
        style.note(axis, text, (max(row["psnr_mean"], limit), place), (11, 0))
    axis.plot([], [], "o", color=style.BASELINE_COLOUR, ms=9, label="mean")
    axis.plot([], [], "o", color="white", mec=style.BASELINE_COLOUR, mew=2, ms=9, label="worst face")
    axis.plot([], [], "|", color="black", ms=13, mew=2.2, label="refused below")
    axis.set_xlim(0, 1.3 * max([*limits.values(), *(row["psnr_mean"] or 0 for row in rows)]))
    style.legend_below(figure, ncols=3, fontsize=10)
    return figure


def layer_figure(layers: Sequence[Row]) -> Figure:
    """Draw activation range, weight ranges and weight SQNR of every quantised layer, in graph order."""
    table = pd.DataFrame(layers)
    figure, axes = style.new_figure(3, 1, width=11.0, height=8.2)
    activation, weight, sqnr = axes[:, 0]
    for operator, (colour, marker) in OPERATORS.items():
        members = table[table["operator"] == operator]
        if members.empty:
            continue
        places, ranges = members.index, members["activation_ranges"].str[0]
        look: Any = {"marker": marker, "color": colour, "linestyle": "none", "ms": 6.5}
        activation.vlines(places, 0, ranges, color=colour, linewidth=2, alpha=0.5)
        activation.plot(places, ranges, label=operator, **look)
        skips = members["activation_ranges"].str[1].dropna()  # of layers in halves
        if len(skips):
            activation.plot(skips.index, skips, label=f"{operator}, skip", **look, fillstyle="none")
        low, high = 127 * members["weight_scale_min"], 127 * members["weight_scale_max"]
        weight.vlines(places, low, high, color=colour, linewidth=6, alpha=0.45)
        weight.plot(places, high, **look)
        weight.plot(places, low, **look, fillstyle="none")
        sqnr.plot(places, members["weight_sqnr_db"], **look)
    title = "Activation range: largest magnitude that int8 represents at the layer's input (open: skip half)"
    style.label(activation, title, y="network units")
    activation.set_ylim(0, 1.25 * activation.get_ylim()[1])
    activation.legend(loc="upper right", ncols=4, frameon=False)
    title = "Weight range that int8 represents: widest (filled) and narrowest (open) output channel"
    style.label(weight, title, y="largest magnitude")
    weight.set_yscale("log")
    weight.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    weight.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    weight.yaxis.set_minor_formatter(NullFormatter())
    style.label(sqnr, "Weights: signal to quantisation noise", y="SQNR [dB]")
    sqnr.set_ylim(min(30, table["weight_sqnr_db"].min() - 3), table["weight_sqnr_db"].max() + 3)
    for axis in axes[:, 0]:
        axis.set_xlim(-0.7, len(layers) - 0.3)
        axis.set_xticks(range(len(layers)), [""] * len(layers))
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    sqnr.set_xticks(table.index, table["name"], **slanted)
    return figure


def calibration_figure(layers: Sequence[Row], histograms: Mapping[str, Row], chosen: str) -> Figure:
    """Draw the six inputs on which calibration modes differ most, with thresholds; ``chosen`` is the mode."""
    inputs = [
        (layer["name"] + half, histograms[tensor])
        for layer in layers
        for half, tensor in zip(("", ", skip half"), layer["tensors"], strict=False)
        if tensor in histograms
    ]
    spreads = [max(each["thresholds"].values()) / min(each["thresholds"].values()) for _, each in inputs]
    shown = [inputs[place] for place in np.argsort(np.negative(spreads), kind="stable")[:6]]
    figure, axes = style.panel_grid(len(shown), min(len(shown), 3), 11.0, 2.5, 0.6)
    for axis, (name, histogram) in zip(axes.flat, shown, strict=False):
        edges = np.linspace(0.0, histogram["limit"], len(histogram["counts"]) + 1)
        share = np.asarray(histogram["counts"]) / sum(histogram["counts"])
        axis.stairs(share, edges, fill=True, color=style.BASELINE_COLOUR, alpha=0.45)
        for mode, limit in histogram["thresholds"].items():
            colour, line = MODES[mode]
            label = f"{mode} (used)" if mode == chosen else mode
            axis.axvline(limit, color=colour, linestyle=line, lw=1.6, label=label)
        axis.set(yscale="log", xlim=(0, 1.05 * max(histogram["thresholds"].values())))
        axis.set_title(name, loc="left")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of values")
    for axis in axes[-1]:
        axis.set_xlabel("magnitude of the layer's input")
    style.legend_below(figure, axes[0, 0], ncols=len(MODES))
    return figure


def sensitivity_figure(ranking: Sequence[Row], steps: Sequence[Row], max_drop_db: float) -> Figure:
    """Draw what rounding each layer alone costs, and what leaving the first so many in float heals."""
    shown = ranking[:32]
    figure, left, right = style.panels(2, 11.0, max(3.2, 1.4 + 0.23 * len(shown)))
    scores = np.array([row["psnr"] for row in shown])
    top = scores.max() + 2
    style.name_rows(left, [row["name"] for row in shown], fontsize=8)
    left.barh(range(len(shown)), top - scores, 0.7, left=scores, color=style.DTYPE_COLOURS["int8"])
    left.set_xlim(top, min(row["psnr"] for row in ranking) - 2)
    title = "This layer alone in int8 (longer bar: more sensitive)"
    style.label(left, title, "PSNR of the output against the float network [dB]")
    counts = [row["excluded"] for row in steps]
    right.plot(counts, [row["drop_db"] for row in steps], "o-", color=style.DTYPE_COLOURS["int8"])
    right.axhline(max_drop_db, color="black", ls="--", lw=1.2, label=f"budget {max_drop_db:g} dB")
    right.axhline(0, color=style.BASELINE_COLOUR, linewidth=1)
    right.set_xticks(counts)
    across = "layers left in float, in the order of the ranking"
    style.label(
        right, "The first so many of them left in float", across, "loss of PSNR against the truth [dB]"
    )
    right.legend(loc="upper right")
    return figure


def times_note(times: Mapping[str, Sequence[Row]], latency: Sequence[Row]) -> str:
    """Say what profiling costs, and what layers that only move data take, from the measured times."""
    sums = {dtype: sum(row["ms"] for row in rows) for dtype, rows in times.items() if rows}
    ratios = [sums[row["dtype"]] / row["median_ms"] for row in latency if row["dtype"] in sums]
    if not ratios:
        return "no dtype ran on a backend whose layers are timed"
    moved = {dtype: sum(row["ms"] for row in times[dtype] if row["kind"] in MOVING) for dtype in sums}
    each = ", ".join(f"{dtype} {ms:.1f} ms of {sums[dtype]:.1f}" for dtype, ms in moved.items())
    span = f"{min(ratios):.1f} to {max(ratios):.1f}"
    return f"Layers of a profiled call add up to {span} times the latency above.\nMoving data takes {each}."


def times_figure(times: Mapping[str, Sequence[Row]]) -> Figure:
    """Draw where the time goes, from ``layer_times``: by kind per dtype, and the slowest layers."""
    if not times:  # PyTorch's backends have no profile
        figure, axis = style.panels(1, height=1.2)
        axis.set_axis_off()
        axis.set_title("Time by kind of operation: no dtype ran on a backend whose layers are timed")
        return figure
    last, rows = list(times.items())[-1]
    shown = rows[:16]
    heights = [1.1 + 0.42 * len(times), 0.8 + 0.26 * len(shown)]
    figure, axes = style.new_figure(2, 1, width=11.0, height=sum(heights) + 0.5, height_ratios=heights)
    above, below = axes[:, 0]
    style.name_rows(above, list(times))
    starts = np.zeros(len(times))
    for kind, colour in KIND_COLOURS.items():
        widths = [sum(row["ms"] for row in rows if row["kind"] == kind) for rows in times.values()]
        if any(widths):
            above.barh(range(len(times)), widths, 0.62, left=starts, color=colour, label=kind)
        starts += widths
    for place, total in enumerate(starts):
        style.note(above, f"{total:.1f}", (total, place), (5, 0))
    above.margins(x=0.06)
    style.label(above, "Time by kind of operation, batch 1 (sum over all layers)", "ms")
    names = [f"{style.shorten(row['name'], 32)}  ({row['precision']})" for row in shown]
    style.name_rows(below, names, fontsize=8)
    colours = [KIND_COLOURS[row["kind"]] for row in shown]
    below.barh(range(len(shown)), [row["ms"] for row in shown], 0.7, color=colours)
    style.label(below, f"The {len(shown)} slowest layers of {last}, and what they were computed in", "ms")
    style.legend_below(figure, above, ncols=4)
    return figure


def pareto_figure(rows: Sequence[Row], recommended: str | None = None, max_drop_db: float = 0.0) -> Figure:
    """Draw latency against the loss of quality per dtype and calibration ``mode`` (None: not calibrated).

    The ``recommended`` dtype is ringed, and what loses more than ``max_drop_db`` lies in the shade (0: none).
    """
    figure, left, right = style.panels(2, 11.0, 4.6)
    most = max((row["psnr_to_fp32"] for row in rows if row["psnr_to_fp32"] < PSNR_CEILING), default=60.0)
    least = min(row["psnr_to_fp32"] for row in rows)
    equal = most + max(0.12 * (most - least), 3.0)  # equal pictures stand on a line of their own
    for axis, key in ((left, "psnr_drop"), (right, "psnr_to_fp32")):
        points = []
        for row in rows:
            colour, mode, place = style.DTYPE_COLOURS[row["dtype"]], row["mode"], min(row[key], equal)
            axis.hlines(place, row["p10_ms"], row["p90_ms"], color=colour, alpha=0.35, linewidth=1.5)
            axis.plot(row["median_ms"], place, "o", color=colour, ms=8, mec="white", linestyle="none")
            chosen = row["dtype"] == recommended and mode is None
            if chosen:
                axis.plot(row["median_ms"], place, "o", ms=15, mfc="none", mec=colour, mew=1.8)
            text = row["dtype"] if mode is None else f"{row['dtype']}, {mode}"
            text += " (recommended)" if chosen else ""
            points.append((row["median_ms"], place, text, colour))
        axis.set_xlim(left=0)
        axis.margins(y=0.12)
        if key == "psnr_drop":
            axis.axhline(0, color=style.BASELINE_COLOUR, linewidth=1)
            axis.invert_yaxis()
            if max_drop_db:
                below = max(axis.get_ylim()[0], 1.3 * max_drop_db)
                axis.axhspan(max_drop_db, below, color="#888888", alpha=0.15, linewidth=0)
                style.note(axis, "beyond the budget", (0, max_drop_db), (4, -7), fontsize=8)
        style.label_points(axis, points)
    if least < PSNR_CEILING and any(row["psnr_to_fp32"] >= PSNR_CEILING for row in rows):
        right.axhline(equal, color=style.BASELINE_COLOUR, linewidth=1, linestyle=":")
        style.note(right, "equal to fp32", (0, equal), (4, -7), fontsize=8)
        right.set_yticks([tick for tick in right.get_yticks() if least - 5 <= tick <= most])
    time = "ms per call (line: 10th to 90th percentile)"
    style.label(left, "Against the truth: up and left is better", time, "loss of PSNR [dB]")
    style.label(right, "Against fp32's pictures", time, "PSNR [dB]")
    return figure


BATCH_COLOURS = ("#332288", "#44AA99", "#882255", "#999933", "#AA4499", "#DDCC77")  # Tol: no dtype's
INSTANCE_MARKERS = "os^DvP"


def performance_figure(rows: Sequence[Row]) -> Figure:
    """Draw throughput against latency and the peak memory of 1 to about 12 rows of ``performance_test``."""
    height = max(2.8, 1.6 + 0.3 * len(rows))
    figure, axes = style.new_figure(1, 2, width=11.0, height=height, width_ratios=[1.75, 1])
    sizes = sorted({row["batch_size"] for row in rows})
    colours = [BATCH_COLOURS[sizes.index(row["batch_size"]) % len(BATCH_COLOURS)] for row in rows]
    names = [
        f"{row['batch_size']} × {row['instances']} × {row['threads']}{' *' if row['oversubscribed'] else ''}"
        for row in rows
    ]
    speed, memory = axes[0]
    _draw_speed(speed, rows, names, colours, height)
    # Of the peak memory, what the process had before is grey, what the model added in colour.
    style.name_rows(memory, names, fontsize=9)
    base, peak = style.columns(rows, "base_memory_mib", "peak_memory_mib")
    memory.barh(range(len(rows)), base, 0.62, color=style.BASELINE_COLOUR, alpha=0.5)
    bars = memory.barh(range(len(rows)), peak - base, 0.62, left=base, color=colours, alpha=0.85)
    memory.bar_label(bars, [f"{value:.0f}" for value in peak], padding=4, fontsize=9)
    memory.set_xlim(0, 1.2 * peak.max())
    unit = f"MiB{'   (*: more threads than cores)' if any(row['oversubscribed'] for row in rows) else ''}"
    style.label(memory, "Peak memory (grey: before loading)", unit)
    where = f"{rows[0]['dtype']} on {rows[0]['backend']}, {rows[0]['device']}"
    text = f"{where} (combinations: batch size × instances × threads per instance)"
    figure.suptitle(text, fontsize=11, x=0.01, ha="left")
    return figure


def _draw_speed(
    axis: Axes, rows: Sequence[Row], names: Sequence[str], colours: Sequence[str], height: float
) -> None:
    """Draw one marker per combination, with lines on to the 95th and 99th percentile."""
    counts = sorted({row["instances"] for row in rows})
    for row, colour in zip(rows, colours, strict=True):
        y = row["images_per_s"]
        marker = INSTANCE_MARKERS[counts.index(row["instances"]) % len(INSTANCE_MARKERS)]
        axis.hlines(y, row["p50_ms"], row["p95_ms"], color=colour, linewidth=3, alpha=0.55)
        axis.hlines(y, row["p95_ms"], row["p99_ms"], color=colour, linewidth=1)
        axis.plot(row["p99_ms"], y, "|", color=colour, ms=7)
        axis.plot(row["p50_ms"], y, marker, color=colour, ms=8, mec="white", mew=0.7, zorder=3)
    p50, p99, speed = style.columns(rows, "p50_ms", "p99_ms", "images_per_s")
    right, top = 1.08 * p99.max(), 1.2 * speed.max()
    axis.set(xlim=(0, right), ylim=(0, top))
    title = "Throughput against latency: up and to the left is better"
    style.label(axis, title, "latency of a call [ms]", "images / s")
    _name_spots(axis, names, [*zip(p50 / right, speed / top, strict=True)], p99 / right, colours, height)
    few = "" if all(row["enough_for_p99"] for row in rows) else " (of fewer than 100 calls)"
    grey: Any = {"color": style.BASELINE_COLOUR}
    axis.plot([], [], "o", ms=8, label="p50", **grey)
    axis.plot([], [], linewidth=3, alpha=0.55, label="to p95", **grey)
    axis.plot([], [], linewidth=1, marker="|", label=f"to p99{few}", **grey)
    axis.legend(loc="lower left", ncols=3, fontsize=9)


def _name_spots(
    axis: Axes, names: Sequence[str], spots: Sequence[tuple[float, float]], ends: NDArray[Any],
    colours: Sequence[str], height: float,
) -> None:  # fmt: skip
    """Name every marker beside it, where neither marker, line nor name stands yet (fractions of axes)."""
    # A name takes 0.72 x 0.17 inches; the axes are 6.2 inches wide, with 1.15 inches of titles and labels.
    wide, high = 0.72 / 6.2, 0.17 / (height - 1.15)
    taken = [(x - high / 3, y - high / 3, end, y + high / 3) for (x, y), end in zip(spots, ends, strict=True)]
    steps = list(product((1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6), (0.3, -0.2, 0.9, -0.8)))  # nearest first
    for place in sorted(range(len(names)), key=spots.__getitem__):
        x, y = spots[place]
        box = (x, y, x + wide, y + high)  # left, bottom, right, top
        for up, across in steps:
            left, bottom = x + (across - 0.5) * wide, y + (up - 0.5) * high
            tried = (left, bottom, left + wide, bottom + high)
            met = (a < tried[2] and left < c and b < tried[3] and bottom < d for a, b, c, d in taken)
            if min(left, bottom) > 0 and max(tried) < 1 and not any(met):
                box = tried
                break
        taken.append(box)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        line = {"arrowstyle": "-", "color": colours[place], "alpha": 0.6, "linewidth": 0.8, "shrinkA": 0}
        axis.annotate(
            names[place], (x, y), centre, xycoords="axes fraction", textcoords="axes fraction",
            ha="center", va="center", fontsize=9, color=colours[place], annotation_clip=False,
            arrowprops=line if abs(centre[1] - y) > 1.5 * high else None,
        )  # fmt: skip
