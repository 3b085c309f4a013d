"""Figures of notebook 01: operators, run-time weights, parity, and where the forms differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gpenlib.images import Image
from gpenlib.plots import ACCENT, BASELINE_COLOUR, SECOND, new_figure, show_image

Graphs = Mapping[str, Mapping[str, Any]]

# What the files of the stage hold, and their colours in every figure here (not those of the dtypes).
LABELS = {
    "training.onnx": "training form, dynamo exporter",
    "deploy.onnx": "deploy form, dynamo exporter",
    "deploy_torchscript_exporter.onnx": "deploy form, TorchScript-based exporter",
    "deploy.pt": "deploy form, TorchScript file",
}
COLOURS = {
    "training.onnx": BASELINE_COLOUR,
    "deploy.onnx": ACCENT,
    "deploy_torchscript_exporter.onnx": SECOND,
    "deploy.pt": "#332288",
}
BATCH_MARKERS = ("o", "s", "D", "^")
MICRO = 1e6


def operator_figure(graphs: Graphs, kinds: int = 14) -> Figure:
    """Draw how often each kind of operator stands in each graph, as grouped bars.

    Parameters
    ----------
    graphs : mapping of file name to graph summary
        As ``stages.export`` gives them under ``graphs``; ``operators`` is used.
    kinds : int
        Operators with a bar group of their own, the most frequent over all graphs; the others are added up.
    """
    files = _in_order(graphs)
    total: Counter[str] = Counter()
    for file in files:
        total.update(graphs[file]["operators"])
    shown = [name for name, _ in total.most_common(kinds)]
    rest = len(total) - len(shown)
    names = [*shown, f"{rest} others"] if rest else shown
    figure, axes = new_figure(width=11.5, height=4.2)
    axis = axes[0, 0]
    width = 0.84 / len(files)
    for place, file in enumerate(files):
        operators = graphs[file]["operators"]
        counts = [operators.get(name, 0) for name in shown]
        if rest:
            counts.append(sum(operators.values()) - sum(counts))
        left = np.arange(len(names)) + (place - (len(files) - 1) / 2) * width
        label = f"{label_of(file)}: {graphs[file]['nodes']} nodes"
        bars = axis.bar(left, counts, width, color=COLOURS.get(file), label=label)
        axis.bar_label(bars, [str(count or "") for count in counts], fontsize=7, padding=1)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_title("Operators in the exported graphs", loc="left")
    axis.set_ylabel("nodes")
    axis.legend(loc="upper right", frameon=False)
    return figure


def convolution_figure(graphs: Graphs) -> Figure:
    """Draw how many convolutions have constant weights, and how many compute them at run time.

    Parameters
    ----------
    graphs : mapping of file name to graph summary
        ``constant_convolutions`` and ``runtime_convolutions`` are used.
    """
    files = _in_order(graphs)
    figure, axes = new_figure(width=9.0, height=1.3 + 0.45 * len(files))
    axis = axes[0, 0]
    names = [label_of(file) for file in files]
    constant = [graphs[file]["constant_convolutions"] for file in files]
    computed = [graphs[file]["runtime_convolutions"] for file in files]
    below = axis.barh(names, constant, 0.6, color="#44AA99", label="constant weights")
    above = axis.barh(names, computed, 0.6, constant, color="#882255", label="weights computed at run time")
    for bars, counts in ((below, constant), (above, computed)):
        texts = [str(count or "") for count in counts]
        axis.bar_label(bars, texts, label_type="center", color="white", fontweight="bold")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.03 * max(map(sum, zip(constant, computed, strict=True))))
    axis.set_title("Convolutions by where their weights come from", loc="left")
    axis.set_xlabel("convolutions")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def parity_figure(parity: Mapping[str, Mapping[str, Mapping[str, float]]], tolerance: float) -> Figure:
    """Draw the largest difference from the training form, per file and batch size.

    Parameters
    ----------
    parity : mapping of file name to mapping of batch size to figures
        As ``stages.export`` gives it; ``relative`` (largest difference over the reference's standard
        deviation) is used.
    tolerance : float
        What the stage allows, drawn as a line.
    """
    files = _in_order(parity)
    batches = sorted({batch for file in files for batch in parity[file]}, key=int)
    figure, axes = new_figure(width=9.0, height=1.7 + 0.42 * len(files))
    axis = axes[0, 0]
    for place, batch in enumerate(batches):
        rows = [row for row, file in enumerate(files) if batch in parity[file]]
        values = [parity[files[row]][batch]["relative"] for row in rows]
        lane = np.array(rows) + (place - (len(batches) - 1) / 2) * 0.26
        colours = [COLOURS.get(files[row], BASELINE_COLOUR) for row in rows]
        # An exact match has no place on a logarithmic axis; it is drawn at float32's precision.
        shown = np.maximum(values, np.finfo(np.float32).eps)
        axis.hlines(lane, 1e-8, shown, color=colours, linewidth=2.2, alpha=0.55)
        marker = BATCH_MARKERS[place % len(BATCH_MARKERS)]
        axis.scatter(shown, lane, c=colours, marker=marker, s=52, zorder=3)
        axis.scatter([], [], c=BASELINE_COLOUR, marker=marker, s=52, label=f"batch {batch}")
        for x, y, value in zip(shown, lane, values, strict=True):
            text = f"{value:.1e}" if value else "0"
            axis.annotate(text, (x, y), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axis.axvline(tolerance, color="black", linestyle="--", linewidth=1.4, label=f"tolerance {tolerance:.0e}")
    axis.set_xscale("log")
    axis.set_xlim(1e-7, tolerance * 5)
    axis.set_yticks(range(len(files)), [label_of(file) for file in files])
    axis.set_ylim(len(files) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.set_title("Exported files against the training form in PyTorch, on faces", loc="left")
    axis.set_xlabel("largest difference / standard deviation of the output")
    figure.legend(loc="outside lower center", ncols=len(batches) + 1, frameon=False)
    return figure


def difference_figure(
    pictures: Mapping[str, Image], differences: Mapping[str, NDArray[np.floating]]
) -> Figure:
    """Show pictures, and beside them the absolute differences of files on one common scale.

    Parameters
    ----------
    pictures : mapping of title to uint8 RGB [H, W, 3]
    differences : mapping of file name to float [H, W]
        Absolute differences in network units, where black to white is 2.
    """
    columns = len(pictures) + len(differences)
    figure, axes = new_figure(1, columns, width=2.75 * columns, height=3.2)
    for axis, (title, picture) in zip(axes[0], pictures.items(), strict=False):
        show_image(axis, picture, title, interpolation="antialiased")
    top = max(float(difference.max()) for difference in differences.values()) * MICRO or 1.0
    shown: Any = None
    panels: Sequence[Axes] = axes[0, len(pictures) :]
    for axis, (file, difference) in zip(panels, differences.items(), strict=True):
        title = f"{label_of(file)}\nlargest {difference.max() * MICRO:.2f} × 1e-6"
        show_image(axis, difference * MICRO, title.replace(", ", ",\n", 1), cmap="magma", vmin=0, vmax=top)
        shown = axis.images[0]
    bar = figure.colorbar(shown, ax=list(panels), shrink=0.8, pad=0.02)
    bar.set_label("|difference| × 1e6 (black to white is 2)", fontsize=9)
    return figure


def label_of(file: str) -> str:
    """Return what a file of the stage holds, in words; unknown files keep their name."""
    return LABELS.get(file, file)


def _in_order(files: Mapping[str, Any]) -> list[str]:
    """Return file names in the order of ``LABELS``, unknown ones last."""
    known = list(LABELS)
    return sorted(files, key=lambda name: (known.index(name) if name in known else len(known), name))
