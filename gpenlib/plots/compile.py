"""Figures of notebook 03: size, latency, parity per dtype, and the int8 layers one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gpenlib.plots.style import BASELINE_COLOUR, DTYPE_COLOURS, new_figure

Row = Mapping[str, Any]
MIB = 2**20
OPERATOR_COLOURS = {"Conv": "#117733", "ConvTranspose": "#AA4499"}  # not those of the dtypes
LABEL_PLACES = {
    "fp32": (9, 7),
    "bf16": (9, 7),
    "fp16": (9, 7),
    "int8": (-8, -19),
    "int8_bf16": (9, -16),
}  # points; bf16 is near int8
MODE_COLOURS = {"max": "#000000", "percentile": "#E69F00", "kl_divergence": "#CC79A7", "mse": "#0072B2"}
MODE_STYLES = {"max": "-", "percentile": "--", "kl_divergence": ":", "mse": "-."}
SHOWN_HISTOGRAMS = 6
OPERATOR_MARKERS = {"Conv": "o", "ConvTranspose": "s"}


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


def tradeoff_figure(rows: Sequence[Row]) -> Figure:
    """Draw the latency against the PSNR to the float network, one point per dtype.

    Parameters
    ----------
    rows : sequence of mappings
        ``dtype``, ``median_ms``, ``p10_ms``, ``p90_ms``, ``psnr_mean`` and ``psnr_worst`` (dB). A row whose
        PSNR is None (equal outputs) has no place on the axis and is left out.
    """
    figure, axes = new_figure(width=7.2, height=4.0)
    axis = axes[0, 0]
    shown = [row for row in rows if row["psnr_mean"] is not None]
    for row in shown:
        colour, x, y = DTYPE_COLOURS[row["dtype"]], row["median_ms"], row["psnr_mean"]
        axis.hlines(y, row["p10_ms"], row["p90_ms"], color=colour, linewidth=1.6, alpha=0.7)
        axis.vlines(x, row["psnr_worst"], y, color=colour, linewidth=1.6, alpha=0.7)
        axis.plot(x, y, "o", color=colour, ms=11)
        place = LABEL_PLACES[row["dtype"]]
        axis.annotate(row["dtype"], (x, y), place, textcoords="offset points", color=colour, weight="bold")
    axis.set_xlim(0, 1.15 * max((row["p90_ms"] for row in rows), default=1.0))
    axis.set_ylim(0, 1.15 * max((row["psnr_mean"] for row in shown), default=1.0))
    axis.set_title("Fast and true: up and to the left is better", loc="left")
    axis.set_xlabel("ms per call (line: 10th to 90th percentile)")
    axis.set_ylabel("PSNR against the float network [dB]\n(line: down to the worst face)")
    return figure


def layer_figure(layers: Sequence[Row]) -> Figure:
    """Draw activation range, weight ranges and weight SQNR of every quantised layer, in graph order.

    Parameters
    ----------
    layers : sequence of mappings
        ``name``, ``operator``, ``activation_range``, ``weight_scale_min``, ``weight_scale_max``,
        ``weight_sqnr_db``, as the artefact's manifest gives them under ``layers``.
    """
    figure, axes = new_figure(3, 1, width=11.0, height=8.2)
    activation, weight, sqnr = axes[:, 0]
    for operator, colour in OPERATOR_COLOURS.items():
        places = [i for i, layer in enumerate(layers) if layer["operator"] == operator]
        if not places:
            continue
        chosen = [layers[i] for i in places]
        ranges = [layer["activation_range"] for layer in chosen]
        activation.vlines(places, 0, ranges, color=colour, linewidth=2, alpha=0.5)
        style = {"marker": OPERATOR_MARKERS[operator], "color": colour, "linestyle": "none", "ms": 6.5}
        activation.plot(places, ranges, label=operator, **style)
        low = np.array([layer["weight_scale_min"] for layer in chosen]) * 127
        high = np.array([layer["weight_scale_max"] for layer in chosen]) * 127
        weight.vlines(places, low, high, color=colour, linewidth=6, alpha=0.45)
        weight.plot(places, high, **style)
        weight.plot(places, low, **style, fillstyle="none")
        sqnr.plot(places, [layer["weight_sqnr_db"] for layer in chosen], **style)
    activation.set_title(
        "Activation range: largest magnitude that int8 represents at the layer's input", loc="left"
    )
    activation.set(ylabel="network units", ylim=(0, None))
    activation.legend(loc="upper right", ncols=2, frameon=False)
    weight.set_title(
        "Weight range per output channel: widest (filled) and narrowest (open) channel", loc="left"
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


def _colours(rows: Sequence[Row]) -> list[str]:
    """Return the colour of each row's dtype."""
    return [DTYPE_COLOURS[row["dtype"]] for row in rows]


def calibration_figure(layers: Sequence[Row], histograms: Mapping[str, Row], chosen: str) -> Figure:
    """Draw calibration histograms with the clipping threshold of every mode.

    Parameters
    ----------
    layers : sequence of mapping
        ``layers`` of an int8 artefact's manifest: ``name`` and ``tensor``.
    histograms : mapping
        By tensor: ``limit``, ``counts``, ``thresholds`` (by calibration mode). The layers whose modes differ
        most are shown.
    chosen : str
        The mode that the artefact uses.

    Returns
    -------
    Figure
    """

    def spread(layer: Row) -> float:
        limits = histograms[layer["tensor"]]["thresholds"].values()
        return max(limits) / min(limits)

    shown = sorted(layers, key=spread, reverse=True)[:SHOWN_HISTOGRAMS]
    figure, axes = new_figure(-(-len(shown) // 3), min(len(shown), 3), 11.0, 2.5 * -(-len(shown) // 3) + 0.6)
    for axis, layer in zip(axes.flat, shown, strict=False):
        histogram = histograms[layer["tensor"]]
        edges = np.linspace(0.0, histogram["limit"], len(histogram["counts"]) + 1)
        share = np.asarray(histogram["counts"]) / sum(histogram["counts"])
        axis.stairs(share, edges, fill=True, color=BASELINE_COLOUR, alpha=0.45)
        for mode, limit in histogram["thresholds"].items():
            label = f"{mode} (used)" if mode == chosen else mode
            axis.axvline(limit, color=MODE_COLOURS[mode], linestyle=MODE_STYLES[mode], lw=1.6, label=label)
        axis.set_yscale("log")
        axis.set_xlim(0, 1.05 * max(histogram["thresholds"].values()))
        axis.set_title(layer["name"], loc="left")
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
