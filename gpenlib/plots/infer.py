"""Figures of notebook 04: faces with zoom, score distributions, best and worst, latency, colour, detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from torch.nn import Module

from gpenlib import plots as style
from gpenlib.images import Image
from gpenlib.infer.performance import timing_doubts
from gpenlib.infer.scoring import in_pytorch
from gpenlib.plots import Region, Row
from gpenlib.plots.before_after import BeforeAfter, before_after
from gpenlib.settings import REFERENCE

if TYPE_CHECKING:
    from gpenlib.infer.scoring import Face

SCORES = {"psnr": "PSNR against the truth [dB]", "ssim": "SSIM against the truth"}
DO_NOTHING = "unchanged input"
FILLED = 0.72  # part of a histogram's height that the bars take; the legend stands above
DOTS: Any = {"s": 32, "edgecolors": "white", "alpha": 0.85}
MEAN_LINE: Any = {"color": style.INK, "linewidth": 1.5, "linestyle": "--"}
LEGEND: Any = {"fontsize": 8.5, "frameon": False}
DETAIL = """Left: the variance of the Laplacian, large for sharp pictures and for noisy ones: an input above
its output may just be noise; outputs far below the line are blurred. Middle: how much of the truth's fine
detail is there, whatever lies over it (the slope of a line from the truth's detail, finer than about 2
pixels, to the picture's); points below the line lost detail that the input had. Right: what is hardly
degraded has little to gain, and faces below zero were better left alone."""


def first_look(source: Image, truth: Image, network: Module) -> Figure:
    """Show what the network makes of one input in PyTorch, before anything is compiled."""
    output = in_pytorch(network, source)
    titles = [f"input, {source.shape[0]} px", "output (PyTorch, fp32)", "truth"]
    return style.picture_grid([[source, output, truth]], [titles], width=8.4, height=3.1)[0]


def strips_figure(
    faces: Sequence[Face],
    photographs: Sequence[str] = (),
    regions: tuple[Region, Region] = (style.EYE, style.MOUTH),
) -> Figure:
    """Show input, output and truth of each face, and two enlarged parts of all three; about three strips."""
    figure = style.empty_figure(10.0, 2.5 * len(faces))
    for strip, face in zip(figure.subfigures(len(faces), 1, squeeze=False)[:, 0], faces, strict=True):
        row = face.row
        text = (
            f"{face.role + ': ' if face.role else ''}{style.face_title(face.name, photographs, 32)}  ·  "
            f"PSNR {row['psnr']:.2f} dB (input {row['psnr_input']:.2f}), "
            f"SSIM {row['ssim']:.3f} (input {row['ssim_input']:.3f})"
        )
        strip.suptitle(text, x=0.005, ha="left", fontsize=9.5, weight="bold")
        whole, parts = strip.subfigures(1, 2, width_ratios=(1.7, 1))
        pictures = {"input": face.source, "output": face.output, "truth": face.truth}
        for axis, (name, image) in zip(whole.subplots(1, 3), pictures.items(), strict=True):
            style.show_image(axis, image, name)
            for region in regions:
                style.mark_region(axis, image.shape[0], region)
        for line, region in zip(parts.subplots(2, 3), regions, strict=True):
            line[0].set_ylabel(region.called(face.name, photographs), fontsize=9)
            for axis, (name, image) in zip(line, pictures.items(), strict=True):
                style.show_zoom(axis, image, region, name if region is regions[0] else "")
    return figure


def under_divider(faces: Sequence[Face], dtype: str, fp32: Sequence[Image]) -> BeforeAfter:
    """Return the faces to wipe between input, fp32's output (in the order of the faces), output and truth."""
    pictures = {
        f"{face.role + ': ' if face.role else ''}{face.name}": {
            "input": face.source, REFERENCE: exact, dtype: face.output, "truth": face.truth,
        }
        for face, exact in zip(faces, fp32, strict=True)
    }  # fmt: skip
    return before_after(pictures, right=dtype)


def chroma_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot PSNR against colourfulness for factors on the chroma of the outputs."""
    figure, axis = style.panels(1, 10.0, 3.8)
    best = max(rows, key=lambda row: row["psnr"])
    shares, psnr = ([row[name] for row in rows] for name in ("colourfulness", "psnr"))
    axis.plot([100 * share for share in shares], psnr, "o-", color=style.DTYPE_COLOURS[dtype], markersize=6)
    for row in rows:
        share = row["colourfulness"]
        side = "center" if abs(share - 1) > 0.1 else "left" if share >= 1 else "right"  # beside the line
        style.note(axis, f"{row['factor']:g}", (100 * share, row["psnr"]), (0, 7), va="baseline", ha=side)
    axis.axvline(100, color=style.BASELINE_COLOUR, linewidth=1, linestyle=":")
    axis.margins(0.08, 0.18)
    one = next(row for row in rows if row["factor"] == 1)
    title = f"PSNR is highest at chroma {best['factor']:g}; at 1 there is "
    title += f"{one['colourfulness']:.0%} of the truth's colour"
    style.label(axis, title, "colourfulness, % of the truth's", "PSNR [dB]")
    return figure


def extremes_figure(best: Sequence[Face], worst: Sequence[Face], photographs: Sequence[str] = ()) -> Figure:
    """Show the best and the worst faces side by side with their scores; up to four each are readable."""
    columns = len(best) + len(worst)
    each = min(2.0 if columns < 4 else 1.45, 9.0 / columns)
    figure = style.empty_figure(1.0 + each * columns, 1.0 + 3 * each)
    kinds = {kind: faces for kind, faces in (("best", best), ("worst", worst)) if faces}
    widths = [len(faces) for faces in kinds.values()]
    panels = figure.subfigures(1, len(kinds), squeeze=False, width_ratios=widths)[0]
    for panel, (kind, faces) in zip(panels, kinds.items(), strict=True):
        none = photographs and not {face.name for face in faces} & {*photographs}
        title = f"{kind} {len(faces)}" if len(faces) > 1 else kind
        title += f" {style.SAMPLES}" if none and len(faces) > 2 else ""  # for which few are too narrow
        panel.suptitle(title, fontsize=11, weight="bold")
        grid = panel.subplots(3, len(faces), squeeze=False)
        for column, face in zip(grid.T, faces, strict=True):
            for axis, image in zip(column, (face.source, face.output, face.truth), strict=True):
                style.show_image(axis, image)
            scores = f"{face.row['psnr']:.2f} dB, {face.row['ssim']:.3f}"
            column[0].set_title(f"{style.face_title(face.name, photographs)}\n{scores}", fontsize=8.5)
        for axis, name in zip(grid[:, 0], ("input", "output", "truth"), strict=True):
            axis.set_ylabel(name, fontsize=9)
    return figure


def distribution_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot histograms of PSNR and SSIM of the outputs, with those of the do-nothing input beside them."""
    figures: dict[str, Row] = {}
    for names in ((f"{key}_input", key) for key in SCORES):
        both = style.columns(rows, *names)
        for name, values in zip(names, both, strict=True):
            counts, edges = np.histogram(values, _common_bins(both))
            figures[name] = {"counts": counts, "edges": edges, "mean": float(np.mean(values))}
    return merged_figure(figures, (dtype, style.DTYPE_COLOURS[dtype]))


def merged_figure(figures: Mapping[str, Row], output: tuple[str, str] = ("output", style.ACCENT)) -> Figure:
    """Plot what :func:`distribution_figure` does from counts between edges, of any number of faces."""
    figure, axes = style.new_figure(1, 2, width=10.0, height=3.5)
    for axis, (key, label) in zip(axes[0], SCORES.items(), strict=True):
        kinds = {f"{key}_input": (DO_NOTHING, style.BASELINE_COLOUR), key: output}
        digits, more = (2 if key == "psnr" else 3), figures[key]["mean"] - figures[f"{key}_input"]["mean"]
        for one, (kind, colour) in ((figures[name], look) for name, look in kinds.items()):
            line: Any = {"color": colour, "linewidth": 1.8}
            axis.stairs(one["counts"], one["edges"], fill=True, color=colour, alpha=0.35)
            axis.stairs(one["counts"], one["edges"], **line)
            name = f"{kind}, mean {one['mean']:.{digits}f}"
            axis.axvline(one["mean"], ymax=FILLED, linestyle="--", label=name, **line)
        axis.set(title=f"{key.upper()}: {style.signed(more, digits)} over the input's", xlabel=label)
        _count_faces(axis)
    return figure


def latency_figure(rows: Sequence[Row], dtype: str, where: str) -> Figure:
    """Plot ``ms`` (an image's share of its batch's time) as a histogram and in the order of the run."""
    times = np.array([row["ms"] for row in rows])
    low, median, high = np.percentile(times, (10, 50, 90)).tolist()
    figure, histogram, course = style.panels(2, 10.0, 3.3)
    colour = style.DTYPE_COLOURS[dtype]
    histogram.hist(times, bins=_common_bins(times), color=colour, alpha=0.55, edgecolor="white")
    histogram.axvline(median, ymax=FILLED, color=style.INK, linewidth=2, label=f"median {median:.1f} ms")
    text = f"90 of 100 below {high:.1f} ms"
    histogram.axvline(high, ymax=FILLED, color=style.INK, linewidth=1.5, linestyle=":", label=text)
    histogram.set(title=f"Latency, {dtype}: {where}", xlabel="ms per image")
    _count_faces(histogram)
    course.plot(np.arange(1, len(times) + 1), times, "o-", color=colour, markersize=4, linewidth=1)
    course.axhline(median, color=style.INK, linewidth=2)
    halves = times[: (len(times) + 1) // 2], times[-max(1, len(times) // 2) :]
    early, late = (float(np.median(half)) for half in halves)
    doubts = timing_doubts([dict(label=dtype, median_ms=late, p10_ms=low, p90_ms=high)], {dtype: early})
    steady = f"Second half of the run: {style.minus(f'{late / early - 1:+.0%}')}"
    course.set_title(f"Timed on a busy machine:\n{doubts[0]}" if doubts else steady)
    course.set(xlabel="image, in the order of the run", ylabel="ms per image")
    course.xaxis.set_major_locator(MaxNLocator(integer=True))
    course.set_ylim(0, 1.15 * times.max())
    return figure


def _common_bins(values: Sequence[float] | NDArray[Any]) -> list[float]:
    """Return bin edges over all values; a single value gets a narrow range around it."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.02 * (high - low) or 0.01 * abs(high) or 0.01
    return np.linspace(low - room, high + room, 15).tolist()


def _count_faces(axis: Axes) -> None:
    """Label the height of a histogram, and put the legend over the bars, with room made for it."""
    axis.set_ylabel("images")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(0, axis.get_ylim()[1] / FILLED)
    axis.legend(loc="upper left", **LEGEND)


def colourfulness_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot the colourfulness of output against truth, and the distance of their mean colours."""
    figure, scatter, shifts = style.panels(2, 9.5, 3.9)
    truth, output, shift = style.columns(rows, "colourfulness_truth", "colourfulness", "colour_shift")
    limit = 1.08 * max(truth.max(), output.max())
    style.equal_axes(scatter, [0, limit], "as colourful as the truth")
    scatter.scatter(truth, output, color=style.DTYPE_COLOURS[dtype], **DOTS)
    ratio = output.mean() / truth.mean() if truth.mean() > 0 else float("nan")
    middle = np.median(output / np.maximum(truth, 1e-9))
    scatter.set(title=f"Of the truth's colour: median {middle:.0%}, in sum {ratio:.0%}")
    scatter.set(xlabel="colourfulness of the truth (Hasler, Süsstrunk)")
    scatter.set(ylabel=f"colourfulness of the output, {dtype}")
    scatter.legend(loc="upper left", **LEGEND)
    shifts.scatter(truth, shift, color=style.DTYPE_COLOURS[dtype], **DOTS)
    shifts.axhline(shift.mean(), label="mean", **MEAN_LINE)
    shifts.set(title=f"Mean colours lie ΔE {shift.mean():.1f} apart", xlabel="colourfulness of the truth")
    shifts.set(ylabel="ΔE 1976 of output and truth", xlim=(0, limit), ylim=(0, 1.2 * max(shift.max(), 1)))
    shifts.legend(loc="upper right", **LEGEND)
    return figure


def detail_figure(rows: Sequence[Row], dtype: str) -> Figure:
    """Plot sharpness against the truth's, detail against the input's, gain against the input's quality."""
    figure, scatter, details, gains = style.panels(3, 10.0, 3.6)
    colour = style.DTYPE_COLOURS[dtype]
    sharpness = style.columns(rows, "sharpness_truth", "sharpness_input", "sharpness")
    truth, source, output = sharpness = np.maximum(sharpness, 1.0)  # for logarithms
    scatter.set(xscale="log", yscale="log")
    style.equal_axes(scatter, [sharpness.min() / 1.3, sharpness.max() * 1.3], "as sharp as the truth")
    scatter.scatter(truth, source, s=30, facecolors="none", edgecolors=style.INK, alpha=0.6, label="input")
    scatter.scatter(truth, output, color=colour, label=f"output, {dtype}", **DOTS)
    for line in (scatter.xaxis, scatter.yaxis):
        line.set_major_locator(LogLocator(subs=(1, 3)))
        line.set_major_formatter("{x:g}")
        line.set_minor_formatter(NullFormatter())
    scatter.set(title=f"Sharpness: {np.median(output / truth):.0%} of the truth's")
    scatter.set(xlabel="truth (variance of the Laplacian)", ylabel="input and output (same variance)")
    before, after = style.columns(rows, "detail_input", "detail")
    ends = [min(0.0, before.min(), after.min()), 1.08 * max(1.0, before.max(), after.max())]
    style.equal_axes(details, ends, "as much as in the input")
    details.scatter(before, after, color=colour, **DOTS)
    details.set(title=f"True detail: {np.median(before):.0%} → {np.median(after):.0%}")
    details.set(xlabel="input, share of the truth's", ylabel=f"output, {dtype}, share of the truth's")
    details.xaxis.set_major_formatter(PercentFormatter(1.0))
    details.yaxis.set_major_formatter(PercentFormatter(1.0))
    start, end = style.columns(rows, "psnr_input", "psnr")
    gain = end - start
    gains.scatter(start, gain, color=colour, **DOTS)
    gains.axhline(0, color=style.BASELINE_COLOUR, linewidth=1.2)
    gains.axhline(gain.mean(), label=f"mean {gain.mean():+.2f} dB", **MEAN_LINE)
    gains.set(title=f"Gain: {np.mean(gain < 0):.0%} of the faces lose")
    gains.set(xlabel="PSNR of the input [dB]", ylabel="PSNR of the output over it [dB]")
    for axis in (scatter, details, gains):
        axis.legend(loc="best", **LEGEND)
    return figure
