"""Figures of notebook 03: size, latency and parity per dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gpenlib.plots import BASELINE_COLOUR, DTYPE_COLOURS, new_figure

# ----------------------------------------------------------------------
# Figures of notebook 03: size, latency and parity per dtype.

Row = Mapping[str, Any]
MIB = 2**20


def size_figure(rows: Sequence[Row]) -> Figure:
    """Draw the size of the model file per dtype.

    Parameters
    ----------
    rows : sequence of mappings
        ``dtype`` and ``model_bytes``.
    """
    figure, axes = new_figure(width=9.0, height=0.9 + 0.42 * len(rows))
    axis = axes[0, 0]
    sizes = [row["model_bytes"] / MIB for row in rows]
    bars = axis.barh([row["dtype"] for row in rows], sizes, 0.62, color=_colours(rows))
    axis.bar_label(bars, [f"{size:.1f}" for size in sizes], padding=4, fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)
    axis.set_title("Size of the model file", loc="left")
    axis.set_xlabel("MiB")
    return figure


def latency_figure(rows: Sequence[Row]) -> Figure:
    """Draw the median latency per dtype with whiskers from the 10th to the 90th percentile.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`gpenlib.infer.benchmark.interleaved_latency` gives them.
    """
    figure, axes = new_figure(width=9.0, height=1.0 + 0.48 * len(rows))
    axis = axes[0, 0]
    names = [f"{row['dtype']}\nran in {row['executed_precision']}" for row in rows]
    medians = [row["median_ms"] for row in rows]
    whiskers = [
        [row["median_ms"] - row["p10_ms"] for row in rows],
        [row["p90_ms"] - row["median_ms"] for row in rows],
    ]
    axis.barh(names, medians, 0.62, color=_colours(rows), alpha=0.85)
    axis.errorbar(medians, names, xerr=whiskers, fmt="none", ecolor="black", capsize=4, linewidth=1.3)
    for place, row in enumerate(rows):
        text = f"{row['median_ms']:.1f}"
        axis.annotate(
            text, (row["p90_ms"], place), (7, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8.5)
    axis.set_xlim(0, max(row["p90_ms"] for row in rows) * 1.12)
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)
    batch, repeats = rows[0]["batch_size"], len(rows[0]["times_ms"])
    title = f"Latency, batch {batch}: median of {repeats} calls, whiskers 10th to 90th percentile"
    axis.set_title(title, loc="left")
    axis.set_xlabel("ms per call")
    return figure


def parity_figure(rows: Sequence[Row], limits: Mapping[str, float]) -> Figure:
    """Draw the PSNR of each artefact against the float network: mean and worst face.

    Parameters
    ----------
    rows : sequence of mappings
        ``dtype``, ``psnr_mean``, ``psnr_worst`` in dB (data range 2); None stands for equal outputs.
    limits : mapping of dtype to float
        Below this PSNR an artefact is refused.
    """
    figure, axes = new_figure(width=9.0, height=1.5 + 0.45 * len(rows))
    axis = axes[0, 0]
    for place, row in enumerate(rows):
        colour, limit = DTYPE_COLOURS[row["dtype"]], limits[row["dtype"]]
        axis.plot([limit, limit], [place - 0.28, place + 0.28], color="black", linewidth=2.2)
        if row["psnr_worst"] is None:
            axis.annotate("equal outputs", (limit, place), (8, 0), textcoords="offset points", va="center")
            continue
        axis.hlines(place, row["psnr_worst"], row["psnr_mean"], color=colour, linewidth=2.5)
        axis.plot(row["psnr_worst"], place, "o", color="white", mec=colour, mew=2, ms=9)
        axis.plot(row["psnr_mean"], place, "o", color=colour, ms=9)
        text = f"{row['psnr_mean']:.1f} (worst {row['psnr_worst']:.1f})"
        place_of_text = (max(row["psnr_mean"], limit), place)
        axis.annotate(text, place_of_text, (11, 0), textcoords="offset points", va="center", fontsize=9)
    axis.plot([], [], "o", color=BASELINE_COLOUR, ms=9, label="mean")
    axis.plot([], [], "o", color="white", mec=BASELINE_COLOUR, mew=2, ms=9, label="worst face")
    axis.plot([], [], "|", color="black", ms=13, mew=2.2, label="refused below")
    axis.set_yticks(range(len(rows)), [row["dtype"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.3 * max([*limits.values(), *(row["psnr_mean"] or 0 for row in rows)]))
    axis.grid(axis="y", visible=False)
    axis.set_title("PSNR against the float network, on faces that calibration did not see", loc="left")
    axis.set_xlabel("dB (data range 2)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _colours(rows: Sequence[Row]) -> list[str]:
    """Return the colour of each row's dtype."""
    return [DTYPE_COLOURS[row["dtype"]] for row in rows]


# ----------------------------------------------------------------------
# Figures of notebook 03 about int8: ranges, thresholds, sensitivity, and the time of every layer.

OPERATOR_COLOURS = {"Conv": "#117733", "ConvTranspose": "#AA4499"}  # not those of the dtypes
OPERATOR_MARKERS = {"Conv": "o", "ConvTranspose": "s"}
SHOWN_HISTOGRAMS = 6
SHOWN_LAYERS = 16
MODE_COLOURS = {"max": "#000000", "percentile": "#E69F00", "kl_divergence": "#CC79A7", "mse": "#0072B2"}
MODE_STYLES = {"max": "-", "percentile": "--", "kl_divergence": ":", "mse": "-."}
KIND_COLOURS = {
    "convolution": "#332288", "transposed convolution": "#AA4499", "depthwise filter": "#88CCEE",
    "element-wise": "#DDCC77", "concatenation": "#CC6677", "linear": "#117733",
    "rounding and layout": "#999933", "other": "#BBBBBB",
}  # fmt: skip


def layer_figure(layers: Sequence[Row]) -> Figure:
    """Draw activation range, weight ranges and weight SQNR of every quantised layer, in graph order.

    Parameters
    ----------
    layers : sequence of mappings
        ``name``, ``operator``, ``activation_ranges`` (two of a layer in halves: decoder and encoder
        features), ``weight_scale_min``, ``weight_scale_max``,
        ``weight_sqnr_db``, as the artefact's manifest gives them under ``layers``.
    """
    figure, axes = new_figure(3, 1, width=11.0, height=8.2)
    activation, weight, sqnr = axes[:, 0]
    for operator, colour in OPERATOR_COLOURS.items():
        places = [i for i, layer in enumerate(layers) if layer["operator"] == operator]
        if not places:
            continue
        chosen = [layers[i] for i in places]
        ranges = [layer["activation_ranges"][0] for layer in chosen]
        activation.vlines(places, 0, ranges, color=colour, linewidth=2, alpha=0.5)
        style = {"marker": OPERATOR_MARKERS[operator], "color": colour, "linestyle": "none", "ms": 6.5}
        activation.plot(places, ranges, label=operator, **style)
        skips = [(place, layers[place]["activation_ranges"][1:]) for place in places]
        skips = [(place, others[0]) for place, others in skips if others]
        if skips:
            activation.plot(*zip(*skips, strict=True), label=f"{operator}, skip", **style, fillstyle="none")
        low = np.array([layer["weight_scale_min"] for layer in chosen]) * 127
        high = np.array([layer["weight_scale_max"] for layer in chosen]) * 127
        weight.vlines(places, low, high, color=colour, linewidth=6, alpha=0.45)
        weight.plot(places, high, **style)
        weight.plot(places, low, **style, fillstyle="none")
        sqnr.plot(places, [layer["weight_sqnr_db"] for layer in chosen], **style)
    activation.set_title(
        "Activation range: largest magnitude that int8 represents at the layer's input (open: skip half)",
        loc="left",
    )
    activation.set(ylabel="network units", ylim=(0, None))
    activation.legend(loc="upper right", ncols=4, frameon=False)
    weight.set_title(
        "Weight range that int8 represents: widest (filled) and narrowest (open) output channel", loc="left"
    )
    weight.set(ylabel="largest magnitude", yscale="log")
    weight.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    weight.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    weight.yaxis.set_minor_formatter(NullFormatter())
    sqnr.set_title("Weights: signal to quantisation noise", loc="left")
    noise = [layer["weight_sqnr_db"] for layer in layers]
    sqnr.set(ylabel="SQNR [dB]", ylim=(min(30, min(noise) - 3), max(noise) + 3))
    for axis in (activation, weight):
        _layer_axis(axis, layers, named=False)
    _layer_axis(sqnr, layers, named=True)
    return figure


def _layer_axis(axis: Axes, layers: Sequence[Row], named: bool) -> None:
    """Put one tick per layer under an axis, with the module paths if ``named``."""
    axis.set_xlim(-0.7, len(layers) - 0.3)
    if named:
        names = [layer["name"] for layer in layers]
        axis.set_xticks(
            range(len(layers)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8
        )
    else:
        axis.set_xticks(range(len(layers)))
        axis.xaxis.set_major_formatter(NullFormatter())
    axis.set_axisbelow(True)


def calibration_figure(layers: Sequence[Row], histograms: Mapping[str, Row], chosen: str) -> Figure:
    """Draw calibration histograms with the clipping threshold of every mode.

    Parameters
    ----------
    layers : sequence of mapping
        ``layers`` of an int8 artefact's manifest: ``name`` and ``tensors``.
    histograms : mapping
        By tensor: ``limit``, ``counts``, ``thresholds`` (by calibration mode). The inputs on which modes
        differ most are shown.
    chosen : str
        The mode that the artefact uses.

    Returns
    -------
    Figure
    """

    def spread(item: tuple[str, str]) -> float:
        limits = histograms[item[1]]["thresholds"].values()
        return max(limits) / min(limits)

    inputs = [
        (layer["name"] + half, tensor)
        for layer in layers
        for half, tensor in zip(("", ", skip half"), layer["tensors"], strict=False)
        if tensor in histograms
    ]
    shown = sorted(inputs, key=spread, reverse=True)[:SHOWN_HISTOGRAMS]
    figure, axes = new_figure(-(-len(shown) // 3), min(len(shown), 3), 11.0, 2.5 * -(-len(shown) // 3) + 0.6)
    for axis, (name, tensor) in zip(axes.flat, shown, strict=False):
        histogram = histograms[tensor]
        edges = np.linspace(0.0, histogram["limit"], len(histogram["counts"]) + 1)
        share = np.asarray(histogram["counts"]) / sum(histogram["counts"])
        axis.stairs(share, edges, fill=True, color=BASELINE_COLOUR, alpha=0.45)
        for mode, limit in histogram["thresholds"].items():
            label = f"{mode} (used)" if mode == chosen else mode
            axis.axvline(limit, color=MODE_COLOURS[mode], linestyle=MODE_STYLES[mode], lw=1.6, label=label)
        axis.set_yscale("log")
        axis.set_xlim(0, 1.05 * max(histogram["thresholds"].values()))
        axis.set_title(name, loc="left")
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("share of values")
    for axis in axes[-1]:
        axis.set_xlabel("magnitude of the layer's input")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(MODE_COLOURS)
    )
    return figure


def sensitivity_figure(ranking: Sequence[Row], steps: Sequence[Row], max_drop_db: float) -> Figure:
    """Draw what rounding each layer alone costs, and what leaving the first so many in float heals.

    Parameters
    ----------
    ranking : sequence of mapping
        ``name``, ``psnr`` (output against the float network, dB), the most sensitive first.
    steps : sequence of mapping
        ``excluded`` (how many of the ranking stay in float) and ``psnr`` (all others rounded, against the
        float network), ``drop_db`` (loss of PSNR against the truth).
    max_drop_db : float
        The budget, drawn as a line.
    """
    figure, axes = new_figure(1, 2, width=11.0, height=1.4 + 0.23 * min(len(ranking), 32))
    left, right = axes[0]
    shown = ranking[:32]
    names = [row["name"] for row in shown]
    worst = min(row["psnr"] for row in ranking)
    top = max(row["psnr"] for row in shown) + 2
    left.barh(
        names,
        [top - row["psnr"] for row in shown],
        0.7,
        left=[row["psnr"] for row in shown],
        color=DTYPE_COLOURS["int8"],
    )
    left.invert_yaxis()
    left.set_xlim(top, worst - 2)
    left.tick_params(axis="y", labelsize=8)
    left.grid(axis="y", visible=False)
    left.set_title("This layer alone in int8 (longer bar: more sensitive)", loc="left")
    left.set_xlabel("PSNR of the output against the float network [dB]")
    counts = [row["excluded"] for row in steps]
    right.plot(counts, [row["drop_db"] for row in steps], "o-", color=DTYPE_COLOURS["int8"])
    right.axhline(
        max_drop_db, color="black", linestyle="--", linewidth=1.2, label=f"budget {max_drop_db:g} dB"
    )
    right.axhline(0, color=BASELINE_COLOUR, linewidth=1)
    right.set_xticks(counts)
    right.set_title("The first so many of them left in float", loc="left")
    right.set_xlabel("layers left in float, in the order of the ranking")
    right.set_ylabel("loss of PSNR against the truth [dB]")
    right.legend(loc="upper right")
    return figure


def times_figure(times: Mapping[str, Sequence[Row]]) -> Figure:
    """Draw where the time goes: by kind of operation for every dtype, and the slowest layers of the last.

    Parameters
    ----------
    times : mapping of dtype to rows of :func:`gpenlib.infer.layer_times.layer_times`
    """
    figure, axes = new_figure(2, 1, width=11.0, height=2.2 + 0.42 * len(times) + 0.26 * SHOWN_LAYERS)
    above, below = axes[:, 0]
    axes[0, 0].get_gridspec().set_height_ratios([1.1 + 0.42 * len(times), 0.8 + 0.26 * SHOWN_LAYERS])
    starts = dict.fromkeys(times, 0.0)
    for kind, colour in KIND_COLOURS.items():
        widths = [sum(row["ms"] for row in rows if row["kind"] == kind) for rows in times.values()]
        if any(widths):
            above.barh(list(times), widths, 0.62, left=list(starts.values()), color=colour, label=kind)
        starts = {dtype: starts[dtype] + width for dtype, width in zip(starts, widths, strict=True)}
    for place, total in enumerate(starts.values()):
        above.annotate(
            f"{total:.1f}", (total, place), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    above.invert_yaxis()
    above.margins(x=0.06)
    above.set_title("Time by kind of operation, batch 1 (sum over all layers)", loc="left")
    above.set_xlabel("ms")
    above.legend(
        loc="upper center", bbox_to_anchor=(0.45, -0.28 - 0.1 * (4 - len(times))), ncols=4, fontsize=8.5
    )
    last = list(times)[-1]
    shown = times[last][:SHOWN_LAYERS]
    labels = [f"{shortened(row['name'])}  ({row['precision']})" for row in shown]
    colours = [KIND_COLOURS[row["kind"]] for row in shown]
    below.barh(range(len(shown)), [row["ms"] for row in shown], 0.7, color=colours)
    below.set_yticks(range(len(shown)), labels, fontsize=8)
    below.invert_yaxis()
    below.set_title(f"The {len(shown)} slowest layers of {last}, and what they were computed in", loc="left")
    below.set_xlabel("ms")
    for axis in (above, below):
        axis.grid(axis="y", visible=False)
        axis.set_axisbelow(True)
    return figure


def shortened(name: str, length: int = 32) -> str:
    """Return a name with its beginning left out if it is long."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def pareto_figure(rows: Sequence[Row]) -> Figure:
    """Draw latency against quality for every dtype, and for int8 in every calibration mode.

    Parameters
    ----------
    rows : sequence of mapping
        ``dtype``, ``mode`` (None where nothing is calibrated), ``median_ms``, ``p10_ms``, ``p90_ms``,
        ``psnr_drop`` (fp32's mean PSNR against the truth minus this one's) and ``psnr_to_fp32`` (dB).
    """
    figure, axes = new_figure(1, 2, width=11.0, height=4.4)
    markers = {None: "o", "max": "s", "percentile": "D", "kl_divergence": "v", "mse": "P"}
    for axis, key in zip(axes[0], ("psnr_drop", "psnr_to_fp32"), strict=True):
        for row in rows:
            colour = DTYPE_COLOURS[row["dtype"]]
            label = row["dtype"] if row["mode"] is None else f"{row['dtype']}, {row['mode']}"
            axis.hlines(row[key], row["p10_ms"], row["p90_ms"], color=colour, alpha=0.35, linewidth=1.5)
            axis.plot(row["median_ms"], row[key], markers[row["mode"]], color=colour, ms=8, label=label,
                      markeredgecolor="white", linestyle="none")  # fmt: skip
        axis.set_xlim(left=0)
        axis.set_xlabel("ms per call (line: 10th to 90th percentile)")
    left, right = axes[0]
    left.axhline(0, color=BASELINE_COLOUR, linewidth=1)
    left.invert_yaxis()
    left.set_ylabel("loss of PSNR against the truth [dB]")
    left.set_title("Against the truth: up and to the left is better", loc="left")
    right.set_ylabel("PSNR against fp32's pictures [dB]")
    right.set_title("Against fp32 (equal pictures count as 100 dB)", loc="left")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


# ----------------------------------------------------------------------
# Figure of the performance test: throughput against latency, and memory, per combination.

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
    colours = _performance_colours(rows)
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


def _performance_colours(rows: Sequence[Row]) -> list[str]:
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
