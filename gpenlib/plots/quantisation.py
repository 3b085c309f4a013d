"""Figures of notebook 03 about int8: ranges, thresholds, sensitivity, and the time of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gpenlib.plots.style import BASELINE_COLOUR, DTYPE_COLOURS, new_figure

Row = Mapping[str, Any]
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
