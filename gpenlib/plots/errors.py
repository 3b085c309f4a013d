"""Figures of notebook 05: what each precision costs against fp32, where in the face, and in which colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpenlib.errors.gallery import ZOOM_SIDE, FaceErrors
from gpenlib.plots.infer import shorten
from gpenlib.plots.style import ACCENT, BASELINE_COLOUR, DTYPE_COLOURS, RC, new_figure, show_image
from gpenlib.plots.zoom import EYE, Region, mark_region, show_zoom

Row = Mapping[str, Any]

INK = "#333333"
ERROR_COLOURS = "inferno"
SPREAD = 0.32  # width over which the dots of one dtype are spread
SHOWN_SHARE = 99.9  # percentile of the errors that gets the brightest colour


def drops_figure(rows: Sequence[Row], table: Sequence[Row] = ()) -> Figure:
    """Plot what each dtype loses against fp32: the mean as a bar with its interval, every image as a dot.

    Parameters
    ----------
    rows : sequence of mapping
        With ``dtype``, ``psnr_drop`` (dB) and ``ssim_drop``; positive is worse. fp32's own are left out.
    table : sequence of mapping, optional
        Of 05_errors: the ends of the intervals, ``psnr_drop_low`` and so on, by ``dtype``.
    """
    figure, axes = new_figure(1, 2, width=10.0, height=3.8)
    groups = _by_dtype(rows)
    for axis, key, name, unit in zip(
        axes[0], ("psnr_drop", "ssim_drop"), ("PSNR", "SSIM"), (" dB", ""), strict=True
    ):
        means = [float(np.mean([row[key] for row in own])) for own in groups.values()]
        axis.bar(range(len(groups)), means, width=0.62, color=_colours(groups), alpha=0.45)
        _dots(axis, groups, key)
        _intervals(axis, groups, key, table)
        axis.axhline(0, color=INK, linewidth=1)
        digits = 3 if key == "psnr_drop" else 4
        labels = [f"{dtype}\nmean {m:+.{digits}f}{unit}" for dtype, m in zip(groups, means, strict=True)]
        axis.set_xticks(range(len(groups)), labels)
        axis.grid(axis="x", visible=False)
        axis.set(title=f"{name} lost against fp32", ylabel=f"fp32 minus dtype{' [dB]' if unit else ''}")
    return figure


def agreement_figure(rows: Sequence[Row]) -> Figure:
    """Plot each image's PSNR in every dtype against its PSNR in fp32, and the difference.

    Parameters
    ----------
    rows : sequence of mapping
        With ``dtype``, ``name``, ``psnr`` and ``psnr_drop``; fp32's rows must be among them.
    """
    figure, axes = new_figure(1, 2, width=10.5, height=4.2)
    scatter, drops = axes[0]
    reference = {row["name"]: row["psnr"] for row in rows if row["dtype"] == "fp32"}
    low, high = min(row["psnr"] for row in rows), max(row["psnr"] for row in rows)
    room = 0.06 * (high - low) or 1.0
    ends = [low - room, high + room]
    scatter.plot(ends, ends, color=BASELINE_COLOUR, linewidth=1.2, label="equal to fp32")
    drops.axhline(0, color=BASELINE_COLOUR, linewidth=1.2)
    for (dtype, own), marker in zip(_by_dtype(rows).items(), "os^D", strict=False):
        style = {"color": DTYPE_COLOURS[dtype], "s": 28, "alpha": 0.8, "marker": marker}
        expected = [reference[row["name"]] for row in own]
        scatter.scatter(expected, [row["psnr"] for row in own], label=dtype, edgecolors="white", **style)
        drops.scatter(expected, [-row["psnr_drop"] for row in own], label=dtype, edgecolors="white", **style)
    scatter.set(title="PSNR of every image", xlabel="fp32 [dB]", ylabel="dtype [dB]", xlim=ends, ylim=ends)
    scatter.set_aspect("equal")
    scatter.legend(fontsize=8.5, loc="upper left", frameon=False)
    drops.set(title="The same, fp32 taken away", xlabel="PSNR in fp32 [dB]", ylabel="dtype minus fp32 [dB]")
    return figure


def colour_figure(rows: Sequence[Row]) -> Figure:
    """Plot the shift of the mean colour against fp32 and the mean signed difference, per dtype.

    Parameters
    ----------
    rows : sequence of mapping
        With ``dtype``, ``colour_shift_to_fp32`` (CIELAB distance) and ``bias`` (grey levels).
    """
    figure, axes = new_figure(1, 2, width=10.0, height=3.8)
    groups = _by_dtype(rows)
    panels = (
        ("colour_shift_to_fp32", "Shift of the mean colour", "ΔE 1976 to fp32"),
        ("bias", "Mean signed difference (veil)", "dtype minus fp32 [grey levels]"),
    )
    for axis, (key, title, label) in zip(axes[0], panels, strict=True):
        boxes = axis.boxplot(
            [[row[key] for row in own] for own in groups.values()],
            positions=range(len(groups)), widths=0.5, showfliers=False, patch_artist=True,
            medianprops={"color": INK, "linewidth": 1.8},
        )  # fmt: skip
        for box, colour in zip(boxes["boxes"], _colours(groups), strict=True):
            box.set(facecolor=f"{colour}40", edgecolor=colour)
        _dots(axis, groups, key)
        axis.axhline(0, color=INK, linewidth=1)
        axis.set_xticks(range(len(groups)), list(groups))
        axis.grid(axis="x", visible=False)
        axis.set(title=title, ylabel=label)
    axes[0, 0].set_ylim(bottom=0)
    return figure


def error_maps_figure(faces: Sequence[FaceErrors], region: Region = EYE) -> Figure:
    """Show per face fp32's output, every dtype's error map on one scale, and an enlarged part of both.

    Parameters
    ----------
    faces : sequence of FaceErrors
        One strip each, over the same dtypes; about three are readable.
    region : Region
        The part that is enlarged.
    """
    dtypes = list(faces[0].errors)
    brightest = _brightest(faces)
    norm = Normalize(0, brightest)
    columns = 2 * (1 + len(dtypes))  # each whole picture takes two columns, each enlarged part one
    with plt.rc_context(RC):
        figure = plt.figure(
            figsize=(1.0 + 0.92 * 1.5 * columns, 0.9 + 2.05 * len(faces)), layout="constrained"
        )
    plt.close(figure)
    grid = figure.add_gridspec(2 * len(faces), columns + 1 + len(dtypes))
    every: list[Axes] = []
    for place, face in enumerate(faces):
        top = 2 * place
        wholes = [figure.add_subplot(grid[top : top + 2, 2 * i : 2 * i + 2]) for i in range(1 + len(dtypes))]
        above = [figure.add_subplot(grid[top, columns + i]) for i in range(1 + len(dtypes))]
        below = [figure.add_subplot(grid[top + 1, columns + i]) for i in range(1, 1 + len(dtypes))]
        _draw_whole(wholes, face, norm, region)
        _draw_parts(above, below, face, norm, region, titles=place == 0)
        every += [*wholes, *above, *below]
    bar = figure.colorbar(
        ScalarMappable(norm, ERROR_COLOURS), ax=every, location="bottom", shrink=0.5, aspect=45, extend="max"
    )
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    factor = 255 / brightest
    bar.set_label(
        f"absolute difference from fp32, largest of the three channels [grey levels of 255]; "
        f"shown {factor:.0f} times amplified"
    )
    return figure


def worst_figure(faces: Sequence[FaceErrors], dtype: str) -> Figure:
    """Show the faces on which a dtype loses most: input, fp32, dtype, error, and its worst part enlarged.

    Parameters
    ----------
    faces : sequence of FaceErrors
        One strip each, with ``source``; up to about six are readable.
    dtype : str
        One of the dtypes in ``outputs``.
    """
    brightest = _brightest([replace(face, errors={dtype: face.errors[dtype]}) for face in faces])
    norm = Normalize(0, brightest)
    figure, axes = new_figure(len(faces), 7, width=14.0, height=0.9 + 2.1 * len(faces))
    figure.set_layout_engine("constrained", h_pad=0.08)
    for place, (row, face) in enumerate(zip(axes, faces, strict=True)):
        output, error = face.outputs[dtype], face.errors[dtype]
        region = Region("largest error", *face.hotspots[dtype], ZOOM_SIDE, ACCENT)
        pictures = {"fp32": face.expected, dtype: output}
        source = face.expected[:0] if face.source is None else face.source
        first = place == 0
        for axis, (name, picture) in zip(row, {"input": source, **pictures}.items(), strict=False):
            show_image(axis, picture, name if first else "", interpolation="antialiased")
        title = f"error: mean {error.mean():.2f}, largest {error.max()}"
        show_image(row[3], error, title, norm=norm, cmap=ERROR_COLOURS, interpolation="antialiased")
        for axis in row[1:4]:
            mark_region(axis, error.shape[0], region)
        for axis, (name, picture) in zip(row[4:6], pictures.items(), strict=True):
            show_zoom(axis, picture, region, f"{name}, enlarged" if first else "")
        show_zoom(row[6], error, region, "error, enlarged" if first else "", norm=norm, cmap=ERROR_COLOURS)
        row[0].set_ylabel(f"{shorten(face.name)}\n{face.role}", fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(norm, ERROR_COLOURS), ax=axes, location="bottom", shrink=0.4, aspect=45, extend="max"
    )
    bar.set_label("absolute difference from fp32, largest of the three channels [grey levels of 255]")
    return figure


def _draw_whole(axes: Sequence[Axes], face: FaceErrors, norm: Normalize, region: Region) -> None:
    """Draw fp32's output and the whole error maps."""
    show_image(axes[0], face.expected, f"{shorten(face.name)}: fp32", interpolation="antialiased")
    mark_region(axes[0], face.expected.shape[0], region)
    for axis, (dtype, error) in zip(axes[1:], face.errors.items(), strict=True):
        title = f"{dtype}: mean {error.mean():.2f}, largest {error.max()}"
        show_image(axis, error, title, norm=norm, cmap=ERROR_COLOURS, interpolation="antialiased")
        mark_region(axis, error.shape[0], region)


def _draw_parts(
    above: Sequence[Axes],
    below: Sequence[Axes],
    face: FaceErrors,
    norm: Normalize,
    region: Region,
    titles: bool,
) -> None:
    """Draw the enlarged part of every output, and of every error map under it."""
    pictures = {"fp32": face.expected, **face.outputs}
    for axis, (dtype, picture) in zip(above, pictures.items(), strict=True):
        show_zoom(axis, picture, region, f"{region.name}, {dtype}" if titles else "")
    for axis, error in zip(below, face.errors.values(), strict=True):
        show_zoom(axis, error, region, norm=norm, cmap=ERROR_COLOURS)


def _brightest(faces: Sequence[FaceErrors]) -> float:
    """Return the error that gets the brightest colour: at least 1 grey level."""
    worst = [np.percentile(error, SHOWN_SHARE) for face in faces for error in face.errors.values()]
    return max(1.0, float(np.ceil(max(worst))))


def _by_dtype(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of every dtype but fp32, in the order of the dtypes."""
    groups = {dtype: [row for row in rows if row["dtype"] == dtype] for dtype in DTYPE_COLOURS}
    return {dtype: own for dtype, own in groups.items() if own and dtype != "fp32"}


def _colours(groups: Mapping[str, Any]) -> list[str]:
    return [DTYPE_COLOURS[dtype] for dtype in groups]


def _intervals(axis: Axes, groups: Mapping[str, Any], key: str, table: Sequence[Row]) -> None:
    """Draw the interval of each dtype's mean, where there is one."""
    by_dtype = {row["dtype"]: row for row in table}
    for place, dtype in enumerate(groups):
        row = by_dtype.get(dtype, {})
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        if low is not None and high is not None:
            axis.errorbar(place, row[key], [[row[key] - low], [high - row[key]]], color=INK, fmt="none",
                          elinewidth=2, capsize=7, capthick=2, zorder=4)  # fmt: skip


def _dots(axis: Axes, groups: Mapping[str, Sequence[Row]], key: str) -> None:
    """Draw every image as a dot, spread sideways in the order of the images."""
    for place, (dtype, own) in enumerate(groups.items()):
        across = np.linspace(-SPREAD / 2, SPREAD / 2, len(own)) if len(own) > 1 else np.zeros(1)
        values = [row[key] for row in own]
        axis.scatter(place + across, values, s=16, color=DTYPE_COLOURS[dtype], edgecolors="white",
                     linewidths=0.4, zorder=3)  # fmt: skip
