"""Figures of notebook 03: size, latency and parity per dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from gpenlib.plots.style import BASELINE_COLOUR, DTYPE_COLOURS, new_figure

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
