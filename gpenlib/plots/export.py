"""Figures of notebook 01: operators, run-time weights, parity, and where the forms differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gpenlib import plots as style
from gpenlib.images import Image
from gpenlib.plots import Row

# What the files of the stage hold, and their colours in every figure here (not those of the dtypes).
LABELS = {
    "training.onnx": "training form, dynamo exporter",
    "deploy.onnx": "deploy form, dynamo exporter",
    "deploy_torchscript_exporter.onnx": "deploy form, TorchScript exporter",
    "deploy.pt": "deploy form, TorchScript file",
}
COLOURS = dict(zip(LABELS, (style.BASELINE_COLOUR, style.ACCENT, style.SECOND, "#332288"), strict=True))
MICRO = 1e6


def label_of(file: str) -> str:
    """Return what a file of the stage holds, in words; unknown files keep their name."""
    return LABELS.get(file, style.shorten(file, 28))


def _in_order(files: Mapping[str, Any]) -> list[str]:
    """Return file names in the order of ``LABELS``, unknown ones last."""
    return [*(name for name in LABELS if name in files), *sorted(files.keys() - LABELS.keys())]


def operator_figure(graphs: Mapping[str, Row], kinds: int = 14) -> Figure:
    """Draw how often each operator stands in each graph, the most frequent ``kinds`` apart."""
    files = _in_order(graphs)
    table = pd.DataFrame({file: graphs[file]["operators"] for file in files}).fillna(0).astype(int)
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    shown, rest = table[:kinds], table[kinds:]
    if len(rest):
        shown = pd.concat([shown, rest.sum().to_frame(f"{len(rest)} others").T])
    figure, axis = style.panels(1, 10.0, 4.8)
    width = 0.84 / len(files)
    for place, file in enumerate(files):
        left = np.arange(len(shown)) + (place - (len(files) - 1) / 2) * width
        label = f"{label_of(file)}: {graphs[file]['nodes']} nodes"
        bars = axis.bar(left, shown[file], width, color=COLOURS.get(file), label=label)
        axis.bar_label(bars, [str(count or "") for count in shown[file]], fontsize=7, padding=1)
    style.name_columns(axis, list(shown.index), rotation=35, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    least, most = (end((graphs[file]["nodes"], label_of(file)) for file in files) for end in (min, max))
    title = f"Most nodes, {most[0]}: {most[1]}; fewest, {least[0]}: {least[1]}"
    style.label(axis, title, y="nodes", fontsize=11)
    style.legend_below(figure, axis, ncols=2)
    return figure


def convolution_figure(graphs: Mapping[str, Row]) -> Figure:
    """Draw how many convolutions have constant weights, and how many compute them at run time."""
    files = _in_order(graphs)
    figure, axis = style.panels(1, height=1.3 + 0.45 * len(files))
    style.name_rows(axis, [label_of(file) for file in files])
    before = np.zeros(len(files))
    for key, colour, label in (
        ("constant_convolutions", "#44AA99", "constant weights"),
        ("runtime_convolutions", "#882255", "weights computed at run time"),
    ):
        counts = [graphs[file][key] for file in files]
        bars = axis.barh(range(len(files)), counts, 0.6, before, color=colour, label=label)
        texts = [str(count or "") for count in counts]
        axis.bar_label(bars, texts, label_type="center", color="white", fontweight="bold")
        before += counts
    axis.set_xlim(0, 1.03 * before.max())
    computed = " → ".join(dict.fromkeys(str(graphs[file]["runtime_convolutions"]) for file in files))
    title = f"Convolutions that compute their weights anew in every call: {computed} of {before.max():.0f}"
    style.label(axis, title, "convolutions", fontsize=11)
    style.legend_below(figure, ncols=2, fontsize=10)
    return figure


def parity_figure(parity: Mapping[str, Mapping[str, Row]], tolerance: float) -> Figure:
    """Draw the largest difference from the training form, ``relative`` by file and batch."""
    files = _in_order(parity)
    batches = sorted({batch for file in files for batch in parity[file]}, key=int)
    figure, axis = style.panels(1, height=1.7 + 0.42 * len(files))
    style.name_rows(axis, [label_of(file) for file in files])
    for place, batch in enumerate(batches):
        rows = [row for row, file in enumerate(files) if batch in parity[file]]
        values = [parity[files[row]][batch]["relative"] for row in rows]
        lane = np.array(rows) + (place - (len(batches) - 1) / 2) * 0.26
        colours = [COLOURS.get(files[row], style.BASELINE_COLOUR) for row in rows]
        # An exact match has no place on a logarithmic axis; it is drawn at float32's precision.
        shown = np.maximum(values, np.finfo(np.float32).eps)
        axis.hlines(lane, 1e-8, shown, color=colours, linewidth=2.2, alpha=0.55)
        marker = "osD^"[place % 4]
        axis.scatter(shown, lane, c=colours, marker=marker, s=52, zorder=3)
        axis.scatter([], [], c=style.BASELINE_COLOUR, marker=marker, s=52, label=f"batch {batch}")
        for x, y, value in zip(shown, lane, values, strict=True):
            style.note(axis, f"{value:.1e}" if value else "0", (x, y), (8, 0), fontsize=8)
    axis.axvline(tolerance, color="black", linestyle="--", linewidth=1.4, label=f"tolerance {tolerance:.0e}")
    axis.set(xscale="log", xlim=(1e-7, tolerance * 5))
    worst = max(row["relative"] for rows in parity.values() for row in rows.values())
    title = f"Every file against the training form, on faces: {worst:.1e} at most"
    style.label(axis, title, "largest difference / standard deviation of the output")
    style.legend_below(figure, ncols=len(batches) + 1, fontsize=10)
    return figure


def difference_figure(
    pictures: Mapping[str, Image], differences: Mapping[str, NDArray[np.floating]]
) -> Figure:
    """Show uint8 pictures by title, and absolute differences [H, W] in network units by file on one scale."""
    top = max(float(difference.max()) for difference in differences.values()) * MICRO or 1.0
    titles = [
        f"{label_of(file)}\nlargest {difference.max() * MICRO:.1f}e-6".replace(", ", ",\n", 1)
        for file, difference in differences.items()
    ]
    figure, axes = style.picture_grid(
        [[*pictures.values(), *(difference * MICRO for difference in differences.values())]],
        [[*(style.shorten(title, 20) for title in pictures), *titles]],
        width=min(2.75 * (len(pictures) + len(differences)), style.WIDEST),
        height=2.9, cmap="magma", vmin=0, vmax=top,
    )  # fmt: skip
    panels = list(axes[0, len(pictures) :])
    bar = figure.colorbar(panels[-1].images[0], ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("|difference| × 1e6\n[network units; black to white is 2]", fontsize=9)
    return figure
