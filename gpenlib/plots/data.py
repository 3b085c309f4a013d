"""Figures of notebook 02: pairs, colours, the split, and what the scores see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gpenlib.images import Image, resize
from gpenlib.plots import BASELINE_COLOUR, SECOND, new_figure, show_image

Row = Mapping[str, Any]

SUBSET_COLOURS = {"evaluation": "#332288", "calibration": SECOND}  # not those of the dtypes
SUBSET_MARKERS = {"evaluation": "o", "calibration": "s"}


def pairs_figure(inputs: Sequence[Image], truths: Sequence[Image], names: Sequence[str]) -> Figure:
    """Show what the network is given above what it should answer.

    Parameters
    ----------
    inputs, truths : sequences of uint8 RGB [H, W, 3]
        One column each; about eight are readable.
    names : sequence of str
        Titles of the columns.
    """
    columns = len(inputs)
    figure, axes = new_figure(2, columns, width=1.55 * columns + 0.4, height=3.35)
    for column, (given, truth, name) in enumerate(zip(inputs, truths, names, strict=True)):
        show_image(axes[0, column], given, shorten(name), interpolation="antialiased")
        show_image(axes[1, column], truth, interpolation="antialiased")
    for axis, text in zip(axes[:, 0], ("input", "truth"), strict=True):
        axis.set_ylabel(f"{text}\n{_side(inputs if text == 'input' else truths)}")
    return figure


def tasks_figure(rows: Sequence[Row]) -> Figure:
    """Show the truth and what every task makes of it, one line per task.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`gpenlib.data.statistics.task_examples` gives them: ``task``, ``seed``, ``given``, ``truth``,
        ``psnr``.
    """
    tasks = {row["task"]: [r for r in rows if r["task"] == row["task"]] for row in rows}
    columns = 1 + max(len(own) for own in tasks.values())
    figure, axes = new_figure(len(tasks), columns, width=2.05 * columns, height=2.3 * len(tasks))
    for line, (task, own) in zip(axes, tasks.items(), strict=True):
        show_image(line[0], own[0]["truth"], "truth", interpolation="antialiased")
        line[0].set_ylabel(task, fontsize=11)
        for axis, row in zip(line[1:], own, strict=False):
            drawn = "nothing drawn" if row["seed"] is None else f"seed {row['seed']}"
            show_image(axis, row["given"], f"{drawn}, {row['psnr']:.1f} dB", interpolation="antialiased")
            axis.spines[:].set(visible=True, color=BASELINE_COLOUR, linewidth=0.6)  # ends white masks
        for axis in line[1 + len(own) :]:
            axis.set_visible(False)
    return figure


def split_figure(
    evaluation: Sequence[Image], calibration: Sequence[Image], totals: tuple[int, int], side: int = 64
) -> Figure:
    """Show the evaluation and the calibration images as two strips of thumbnails.

    Parameters
    ----------
    evaluation, calibration : sequences of uint8 RGB [H, W, 3]
        The first images of each set, in order; calibration may be empty.
    totals : (int, int)
        How many images each set has in all; those not shown are counted in the title.
    side : int
        Of a thumbnail, in pixels.
    """
    length = max(len(evaluation), len(calibration), 8)
    width = 11.0
    figure, axes = new_figure(2, 1, width=width, height=2 * (width / length + 0.35))
    sets = (("evaluation", evaluation), ("calibration", calibration))
    for axis, (subset, images), total in zip(axes[:, 0], sets, totals, strict=True):
        strip = np.full((side, length * side, 3), 255, dtype=np.uint8)
        for position, image in enumerate(images):
            strip[:, position * side : (position + 1) * side] = resize(image, side)
        more = f" (the first {len(images)} shown)" if total > len(images) else ""
        show_image(axis, strip, interpolation="antialiased")
        axis.set_title(f"{subset}: {total} images{more}", fontsize=9, loc="left")
        if images:
            frame = Rectangle((-0.5, -0.5), len(images) * side, side, fill=False, linewidth=4, clip_on=False)
            frame.set_edgecolor(SUBSET_COLOURS[subset])
            axis.add_patch(frame)
    return figure


def colour_figure(rows: Sequence[Row]) -> Figure:
    """Plot mean colours in the CIELAB plane, lightness and chroma of two sets.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`gpenlib.data.statistics.colour_statistics` gives them, with ``subset`` either
        ``"evaluation"`` or ``"calibration"``.
    """
    figure, axes = new_figure(1, 3, width=11.5, height=3.8)
    plane, lightness, chroma = axes[0]
    plane.axhline(0, color=BASELINE_COLOUR, linewidth=0.8)
    plane.axvline(0, color=BASELINE_COLOUR, linewidth=0.8)
    for subset, chosen in _by_subset(rows).items():
        fill = np.array([[row["red_mean"], row["green_mean"], row["blue_mean"]] for row in chosen]) / 255
        plane.scatter(
            [row["lab_a"] for row in chosen],
            [row["lab_b"] for row in chosen],
            c=fill,
            marker=SUBSET_MARKERS[subset],
            edgecolors=SUBSET_COLOURS[subset],
            linewidths=1.3,
            s=45,
            zorder=3 if subset == "evaluation" else 2,
            label=f"{subset} ({len(chosen)})",
        )
    plane.set(title="Mean colour of each image", xlabel="CIELAB a  (green - red)")
    plane.set(ylabel="CIELAB b  (blue - yellow)")
    plane.set_aspect("equal", adjustable="datalim")
    plane.legend(fontsize=8)
    _histograms(lightness, rows, "lightness")
    lightness.set(title="Mean lightness", xlabel="CIELAB L  [0, 100]", ylabel="part of the images")
    _histograms(chroma, rows, "chroma")
    chroma.set(title="Mean chroma (0 is grey)", xlabel="CIELAB chroma", ylabel="part of the images")
    return figure


def baseline_figure(scores: Sequence[Row], colours: Sequence[Row]) -> Figure:
    """Plot PSNR and SSIM of the unchanged input against the chroma of the truth.

    Parameters
    ----------
    scores : sequence of mappings
        With ``psnr`` and ``ssim``, as :func:`gpenlib.data.statistics.baseline_scores` gives them.
    colours : sequence of mappings
        With ``chroma``, for the same images in the same order.
    """
    figure, axes = new_figure(1, 2, width=9.0, height=3.4)
    chroma = [row["chroma"] for row in colours]
    for axis, key, unit in zip(axes[0], ("psnr", "ssim"), (" [dB]", ""), strict=True):
        axis.scatter(chroma, [row[key] for row in scores], color=BASELINE_COLOUR, s=36)
        axis.set(xlabel="mean CIELAB chroma of the truth", ylabel=f"{key.upper()} of the input{unit}")
        axis.set_title(f"Doing nothing: {key.upper()}")
    axes[0, 1].set_ylim(0, 1.02)
    return figure


def answers_figure(answers: Mapping[str, Image], scores: Mapping[str, Row]) -> Figure:
    """Show a truth and wrong answers with their scores.

    Parameters
    ----------
    answers : mapping of name to uint8 RGB [H, W, 3]
        As :func:`gpenlib.data.statistics.wrong_answers` gives them.
    scores : mapping of name to row
        ``psnr``, ``ssim`` and ``colour_shift``; an answer without a row is the truth.
    """
    figure, axes = new_figure(1, len(answers), width=2.7 * len(answers), height=3.5)
    for axis, (name, image) in zip(axes[0], answers.items(), strict=True):
        text = name
        if name in scores:
            row = scores[name]
            text += f"\nPSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}"
            text += f"\ncolour shift {row['colour_shift']:.1f}"
        show_image(axis, image, text, interpolation="antialiased")
    return figure


def shorten(name: str, length: int = 18) -> str:
    """Return a name with its middle left out if it is longer than ``length``."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _histograms(axis: Axes, rows: Sequence[Row], key: str) -> None:
    """Draw one histogram per subset over common bins, each summing to 1."""
    values = np.array([row[key] for row in rows])
    bins = np.linspace(values.min() - 0.5, values.max() + 0.5, 13).tolist()
    for subset, chosen in _by_subset(rows).items():
        own = np.array([row[key] for row in chosen])
        weights = np.full(len(own), 1 / len(own))
        colour = SUBSET_COLOURS[subset]
        axis.hist(own, bins=bins, weights=weights, color=colour, alpha=0.25)
        axis.hist(own, bins=bins, weights=weights, color=colour, histtype="step", linewidth=2, label=subset)
    axis.legend(fontsize=8)


def _by_subset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each subset that has any."""
    chosen = {subset: [row for row in rows if row["subset"] == subset] for subset in SUBSET_COLOURS}
    return {subset: found for subset, found in chosen.items() if found}


def _side(images: Sequence[Image]) -> str:
    """Return the size of the first image in words."""
    return f"{images[0].shape[1]} x {images[0].shape[0]}"
