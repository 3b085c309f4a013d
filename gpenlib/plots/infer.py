"""Figures of notebook 04: faces with zoom, score distributions, best and worst, latency, colour, detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from gpenlib.images import Image
from gpenlib.infer.scoring import Face
from gpenlib.plots import (
    BASELINE_COLOUR,
    DTYPE_COLOURS,
    EYE,
    MOUTH,
    RC,
    Region,
    mark_region,
    new_figure,
    show_image,
    show_zoom,
)

Row = Mapping[str, Any]

REGIONS = (EYE, MOUTH)
INK = "#333333"
COLUMNS = ("input", "output", "truth")
SCORES = {"psnr": "PSNR against the truth [dB]", "ssim": "SSIM against the truth"}
BINS = 14
FILLED = 0.72  # part of a histogram's height that the bars take; the legend stands above


def strips_figure(faces: Sequence[Face], regions: tuple[Region, Region] = REGIONS) -> Figure:
    """Show input, output and truth of each face, and two enlarged parts of all three.

    Parameters
    ----------
    faces : sequence of Face
        One strip each; about three are readable.
    regions : (Region, Region)
        The parts that are enlarged, in FFHQ layout.
    """
    with plt.rc_context(RC):
        figure = plt.figure(figsize=(11.0, 2.75 * len(faces)), layout="constrained")
    plt.close(figure)
    for strip, face in zip(figure.subfigures(len(faces), 1, squeeze=False)[:, 0], faces, strict=True):
        strip.suptitle(_scores_text(face), x=0.005, ha="left", fontsize=9.5)
        whole, parts = strip.subfigures(1, 2, width_ratios=(1.7, 1))
        for axis, name, image in zip(whole.subplots(1, 3), COLUMNS, _pictures(face), strict=True):
            show_image(axis, image, name, interpolation="antialiased")
            for region in regions:
                mark_region(axis, image.shape[0], region)
        grid = parts.subplots(2, 3)
        for axes, region in zip(grid, regions, strict=True):
            axes[0].set_ylabel(region.name, fontsize=9)
            for axis, image in zip(axes, _pictures(face), strict=True):
                show_zoom(axis, image, region)
        for axis, name in zip(grid[0], COLUMNS, strict=True):
            axis.set_title(name, fontsize=9)
    return figure


def distribution_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot histograms of PSNR and SSIM of the outputs, with those of the do-nothing input beside them.

    Parameters
    ----------
    rows : sequence of mapping
        With ``psnr``, ``ssim``, ``psnr_input`` and ``ssim_input``.
    dtype : str
        Names the outputs and chooses their colour.
    """
    figure, axes = new_figure(1, 2, width=10.0, height=3.5)
    for axis, (key, label) in zip(axes[0], SCORES.items(), strict=True):
        kinds = ((f"{key}_input", "input (do nothing)", BASELINE_COLOUR), (key, dtype, DTYPE_COLOURS[dtype]))
        bins = _common_bins([row[name] for row in rows for name, _, _ in kinds])
        for name, kind, colour in kinds:
            values = [row[name] for row in rows]
            mean = float(np.mean(values))
            text = f"{kind}, mean {mean:.2f} dB" if key == "psnr" else f"{kind}, mean {mean:.3f}"
            axis.hist(values, bins=bins, color=colour, alpha=0.35)
            axis.hist(values, bins=bins, color=colour, histtype="step", linewidth=1.6)
            axis.axvline(mean, ymax=FILLED, color=colour, linewidth=2, linestyle="--", label=text)
        axis.set(title=label.split(" [")[0], xlabel=label, ylabel="images")
        axis.yaxis.get_major_locator().set_params(integer=True)
        _legend_above_bars(axis)
    return figure


def extremes_figure(best: Sequence[Face], worst: Sequence[Face]) -> Figure:
    """Show the best and the worst faces side by side: input, output, truth, with their scores.

    Parameters
    ----------
    best, worst : sequences of Face
        Columns from left to right; up to four each are readable.
    """
    columns = len(best) + len(worst)
    with plt.rc_context(RC):
        figure = plt.figure(figsize=(1.0 + 1.45 * columns, 5.3), layout="constrained")
    plt.close(figure)
    groups = [(f"best {len(best)}", best), (f"worst {len(worst)}", worst)]
    groups = [group for group in groups if group[1]]
    panels = figure.subfigures(1, len(groups), squeeze=False, width_ratios=[len(g[1]) for g in groups])[0]
    for panel, (title, faces) in zip(panels, groups, strict=True):
        panel.suptitle(title, fontsize=11, weight="bold")
        grid = panel.subplots(3, len(faces), squeeze=False)
        for column, face in enumerate(faces):
            heading = f"{shorten(face.name)}\n{face.row['psnr']:.2f} dB, {face.row['ssim']:.3f}"
            for axis, image in zip(grid[:, column], _pictures(face), strict=True):
                show_image(axis, image, interpolation="antialiased")
            grid[0, column].set_title(heading, fontsize=8.5)
        for axis, name in zip(grid[:, 0], COLUMNS, strict=True):
            axis.set_ylabel(name, fontsize=9)
    return figure


def latency_figure(rows: Sequence[Row], dtype: str, where: str) -> Figure:
    """Plot the time per image as a histogram and in the order of the run.

    Parameters
    ----------
    rows : sequence of mapping
        With ``ms``: an image's share of the time of its batch.
    dtype : str
    where : str
        What ran, for the title: backend, device, batch size.
    """
    times = np.array([row["ms"] for row in rows])
    median, high = float(np.median(times)), float(np.percentile(times, 90))
    figure, axes = new_figure(1, 2, width=10.0, height=3.3)
    histogram, course = axes[0]
    colour = DTYPE_COLOURS[dtype]
    histogram.hist(times, bins=_common_bins(times), color=colour, alpha=0.55, edgecolor="white")
    histogram.axvline(median, ymax=FILLED, color=INK, linewidth=2, label=f"median {median:.1f} ms")
    text = f"90 of 100 below {high:.1f} ms"
    histogram.axvline(high, ymax=FILLED, color=INK, linewidth=1.5, linestyle=":", label=text)
    histogram.set(title=f"Latency, {dtype}: {where}", xlabel="ms per image", ylabel="images")
    histogram.yaxis.get_major_locator().set_params(integer=True)
    _legend_above_bars(histogram)
    course.plot(np.arange(1, len(times) + 1), times, "o-", color=colour, markersize=4, linewidth=1)
    course.axhline(median, color=INK, linewidth=2)
    course.set(title="In the order of the run", xlabel="image", ylabel="ms per image")
    course.xaxis.get_major_locator().set_params(integer=True)
    course.set_ylim(0, 1.15 * times.max())
    return figure


def colourfulness_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot the colourfulness of output against truth, and the distance of their mean colours.

    Parameters
    ----------
    rows : sequence of mapping
        With ``colourfulness``, ``colourfulness_truth`` and ``colour_shift``.
    dtype : str
    """
    figure, axes = new_figure(1, 2, width=9.5, height=3.9)
    scatter, shifts = axes[0]
    truth = np.array([row["colourfulness_truth"] for row in rows])
    output = np.array([row["colourfulness"] for row in rows])
    limit = 1.08 * max(truth.max(), output.max())
    scatter.plot(
        [0, limit], [0, limit], color=BASELINE_COLOUR, linewidth=1.2, label="as colourful as the truth"
    )
    scatter.scatter(truth, output, color=DTYPE_COLOURS[dtype], s=32, alpha=0.85, edgecolors="white")
    ratio = output.mean() / truth.mean() if truth.mean() > 0 else float("nan")
    scatter.set(title=f"Colourfulness: {ratio:.0%} of the truth's")
    scatter.set(xlabel="truth (Hasler and Süsstrunk)", ylabel=f"output, {dtype}")
    scatter.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    scatter.legend(fontsize=8.5, loc="upper left", frameon=False)
    shift = np.array([row["colour_shift"] for row in rows])
    shifts.scatter(truth, shift, color=DTYPE_COLOURS[dtype], s=32, alpha=0.85, edgecolors="white")
    shifts.axhline(shift.mean(), color=INK, linewidth=1.5, linestyle="--", label=f"mean {shift.mean():.1f}")
    shifts.set(title="Distance of the mean colours", xlabel="colourfulness of the truth")
    shifts.set(ylabel="ΔE 1976 of output and truth")
    shifts.set_xlim(0, limit)
    shifts.set_ylim(0, 1.2 * max(shift.max(), 1))
    shifts.legend(fontsize=8.5, loc="upper right", frameon=False)
    return figure


def detail_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot sharpness against the truth's, detail against the input's, gain against the input's quality.

    Parameters
    ----------
    rows : sequence of mapping
        With ``sharpness``, ``sharpness_input``, ``sharpness_truth``, ``detail``, ``detail_input``, ``psnr``
        and ``psnr_input``.
    dtype : str
    """
    figure, axes = new_figure(1, 3, width=13.5, height=4.1)
    scatter, details, gains = axes[0]
    colour = DTYPE_COLOURS[dtype]
    names = ("sharpness_truth", "sharpness_input", "sharpness")
    truth, given, output = (np.maximum([row[name] for row in rows], 1.0) for name in names)  # for logarithms
    ends = [min(map(np.min, (truth, given, output))) / 1.3, max(map(np.max, (truth, given, output))) * 1.3]
    scatter.plot(ends, ends, color=BASELINE_COLOUR, linewidth=1.2, label="as sharp as the truth")
    scatter.scatter(truth, given, s=30, facecolors="none", edgecolors=INK, alpha=0.6, label="input")
    scatter.scatter(
        truth, output, s=32, color=colour, edgecolors="white", alpha=0.85, label=f"output, {dtype}"
    )
    scatter.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    scatter.set(title=f"Sharpness: {np.median(output / truth):.0%} of the truth's (median)")
    scatter.set(xlabel="truth (variance of the Laplacian)", ylabel="input and output")
    scatter.legend(fontsize=8.5, loc="best", frameon=False)
    before, after = (np.array([row[name] for row in rows]) for name in ("detail_input", "detail"))
    ends = [min(0.0, before.min(), after.min()), 1.08 * max(1.0, before.max(), after.max())]
    details.plot(ends, ends, color=BASELINE_COLOUR, linewidth=1.2, label="as much as in the input")
    details.scatter(before, after, s=32, color=colour, edgecolors="white", alpha=0.85)
    details.set(xlim=ends, ylim=ends, aspect="equal")
    details.set(title=f"True detail: {np.median(before):.0%} → {np.median(after):.0%} (medians)")
    details.set(xlabel="input, share of the truth's", ylabel=f"output, {dtype}")
    details.xaxis.set_major_formatter(PercentFormatter(1.0))
    details.yaxis.set_major_formatter(PercentFormatter(1.0))
    details.legend(fontsize=8.5, loc="best", frameon=False)
    start = np.array([row["psnr_input"] for row in rows])
    gain = np.array([row["psnr"] for row in rows]) - start
    gains.scatter(start, gain, color=colour, s=32, alpha=0.85, edgecolors="white")
    gains.axhline(0, color=BASELINE_COLOUR, linewidth=1.2)
    gains.axhline(gain.mean(), color=INK, linewidth=1.5, linestyle="--", label=f"mean {gain.mean():+.2f} dB")
    gains.set(title=f"Gain over the input; {np.mean(gain < 0):.0%} of the faces lose")
    gains.set(xlabel="PSNR of the input [dB]", ylabel="PSNR of the output over it [dB]")
    gains.legend(fontsize=8.5, loc="best", frameon=False)
    return figure


def shorten(name: str, length: int = 16) -> str:
    """Return a name with its middle left out if it is longer than ``length``."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def _pictures(face: Face) -> tuple[Image, Image, Image]:
    return face.source, face.output, face.truth


def _scores_text(face: Face) -> str:
    """Return the heading of a strip: role, name, scores with the baseline beside each."""
    row, role = face.row, f"{face.role}: " if face.role else ""
    return (
        f"{role}{face.name}     PSNR {row['psnr']:.2f} dB (input {row['psnr_input']:.2f})     "
        f"SSIM {row['ssim']:.3f} (input {row['ssim_input']:.3f})"
    )


def _common_bins(values: Sequence[float] | NDArray[Any]) -> list[float]:
    """Return bin edges over all values; a single value gets a narrow range around it."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.02 * (high - low) or 0.01 * abs(high) or 0.01
    return np.linspace(low - room, high + room, BINS + 1).tolist()


def _legend_above_bars(axis: Axes) -> None:
    """Put the legend over the bars, with room made for it."""
    axis.set_ylim(0, axis.get_ylim()[1] / FILLED)
    axis.legend(fontsize=8.5, loc="upper left", frameon=False)
