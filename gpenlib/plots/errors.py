"""Figures of notebook 05: what each precision costs against fp32, where in the face, and in which colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from gpenlib.errors.compare import ZOOM_SIDE, FaceErrors
from gpenlib.plots import (
    ACCENT,
    BASELINE_COLOUR,
    DTYPE_COLOURS,
    EYE,
    RC,
    Region,
    mark_region,
    new_figure,
    show_image,
    show_zoom,
)
from gpenlib.plots.infer import shorten

# ----------------------------------------------------------------------
# Figures of notebook 05: what each precision costs against fp32, where in the face, and in which colour.

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


# ----------------------------------------------------------------------
# Figures of notebook 05: losses by skin tone, brightness and colourfulness of the face.


TITLES = {
    "ita": "Skin tone (ITA)", "lightness": "Brightness (mean L*)", "colourfulness": "Colourfulness",
}  # fmt: skip
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000"}
WIDTHS = {"ita": 1.7, "lightness": 1.0, "colourfulness": 1.0}  # skin tones have twice the groups
GROUP_SPREAD = 0.45  # width over which the dtypes of one group are spread


def groups_figure(groups: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot per group of faces what each dtype loses, with its interval, over fp32's own score.

    Parameters
    ----------
    groups : sequence of mapping
        Of 05_errors: ``trait``, ``group``, ``dtype``, ``score``, ``faces``, ``fp32``, ``drop``, ``drop_low``,
        ``drop_high``. Groups without an interval (too few faces) get hollow marks.
    score : str
        Which score's rows are drawn.
    """
    rows = [row for row in groups if row["score"] == score]
    traits = [trait for trait in TITLES if any(row["trait"] == trait for row in rows)]
    figure, axes = new_figure(2, len(traits), width=12.5, height=6.2)
    axes[0, 0].get_gridspec().set_width_ratios([WIDTHS[trait] for trait in traits])
    for column, trait in enumerate(traits):
        own = [row for row in rows if row["trait"] == trait]
        names = list(dict.fromkeys(row["group"] for row in own))
        counts = {row["group"]: row["faces"] for row in own}
        _draw_drops(axes[0, column], own, names)
        _draw_level(axes[1, column], own, names)
        axes[0, column].set_title(TITLES[trait])
        labels = [f"{name.replace(' ', chr(10))}\n({counts[name]})" for name in names]
        for axis in axes[:, column]:
            axis.set_xticks(range(len(names)), labels, fontsize=8.5)
            axis.set_xlim(-0.6, len(names) - 0.4)
            axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(f"drop against fp32, {SCORES[score]}\n(positive is worse)")
    axes[1, 0].set_ylabel(f"fp32, {SCORES[score]}")
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=len(texts), frameon=False, fontsize=9,
        title="mean and 95 % interval; hollow: fewer than five faces, no interval; (number of faces)",
        title_fontsize=9,
    )  # fmt: skip
    return figure


def trends_figure(trends: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot the rank correlation of each dtype's drop with each trait, with its interval.

    Parameters
    ----------
    trends : sequence of mapping
        Of 05_errors: ``trait``, ``dtype``, ``score``, ``correlation``, ``low``, ``high``.
    score : str
        Which score's rows are drawn.
    """
    rows = [row for row in trends if row["score"] == score]
    traits = [trait for trait in TITLES if any(row["trait"] == trait for row in rows)]
    figure, axes = new_figure(width=8.5, height=1.4 + 0.75 * max(1, len(traits)))
    axis = axes[0, 0]
    dtypes = _dtypes(rows)
    for place, shift in zip(dtypes, _shifts(len(dtypes)), strict=True):
        own = {row["trait"]: row for row in rows if row["dtype"] == place}
        heights = [traits.index(trait) + shift for trait in own]
        _marks(axis, heights, list(own.values()), "correlation", ("low", "high"), place, flat=True)
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(traits)), [TITLES[trait] for trait in traits])
    axis.set_ylim(len(traits) - 0.5, -0.5)
    axis.set_xlim(-1.02, 1.02)
    axis.grid(axis="y", visible=False)
    axis.set(title=f"Does the drop in {SCORES[score].split(' [')[0]} follow a property of the face?")
    axis.set_xlabel("Spearman's rank correlation (positive: loses more where there is more of it)")
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_drops(axis: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draw the mean drop of every group and dtype with its interval."""
    dtypes = _dtypes(rows)
    for dtype, shift in zip(dtypes, _shifts(len(dtypes)), strict=True):
        own = [row for row in rows if row["dtype"] == dtype]
        places = [names.index(row["group"]) + shift for row in own]
        _marks(axis, places, own, "drop", ("drop_low", "drop_high"), dtype)
    axis.axhline(0, color=INK, linewidth=1)


def _draw_level(axis: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draw fp32's mean score of every group."""
    level = {row["group"]: row["fp32"] for row in rows}
    values = [level[name] for name in names]
    axis.plot(range(len(names)), values, "o", color=DTYPE_COLOURS["fp32"], markersize=7)
    for place, value in enumerate(values):
        axis.annotate(
            f"{value:.4g}", (place, value), (0, 7), textcoords="offset points", ha="center", fontsize=8.5
        )
    room = np.ptp(values) or 0.05 * abs(values[0]) or 1.0
    axis.set_ylim(min(values) - 0.3 * room, max(values) + 0.4 * room)


def _marks(
    axis: Axes,
    places: Sequence[float],
    rows: Sequence[Row],
    key: str,
    ends: tuple[str, str],
    dtype: str,
    flat: bool = False,
) -> None:
    """Draw one dtype's figures with their intervals; hollow where there is none. ``flat``: along x."""
    colour = DTYPE_COLOURS[dtype]
    labelled = False
    for sure in (True, False):
        chosen = [(place, row) for place, row in zip(places, rows, strict=True) if _sure(row, ends) == sure]
        if not chosen:
            continue
        values = [row[key] for _, row in chosen]
        across = [place for place, _ in chosen]
        lengths = [[abs(row[key] - row[end]) if sure else 0.0 for _, row in chosen] for end in ends]
        x, y = (values, across) if flat else (across, values)
        axis.errorbar(
            x, y, xerr=lengths if flat else None, yerr=None if flat else lengths,
            fmt="o", color=colour, markersize=6,
            markerfacecolor=colour if sure else "white", elinewidth=1.6, capsize=3 if sure else 0,
            label=None if labelled else dtype,
        )  # fmt: skip
        labelled = True


def _sure(row: Row, ends: tuple[str, str]) -> bool:
    return all(row[end] is not None for end in ends)


def _dtypes(rows: Sequence[Row]) -> list[str]:
    """Return the dtypes of the rows in their usual order."""
    return [dtype for dtype in DTYPE_COLOURS if any(row["dtype"] == dtype for row in rows)]


def _shifts(count: int) -> list[float]:
    """Return the places of the dtypes beside the middle of their group."""
    return list(np.linspace(-GROUP_SPREAD / 2, GROUP_SPREAD / 2, count)) if count > 1 else [0.0]


# ----------------------------------------------------------------------
# Figures of notebook 05 about single layers: where int8 and fp16 hurt along the depth, and what heals it.


EQUAL_DB = 199.0  # from here on maps are equal, and not drawn
BAND_COLOUR = "#0072B2"
ISOLATED, SATURATED = "#0072B2", ACCENT
NAMED = 5  # weakest layers that are named in the figure
SLOT = 0.76  # width that the maps of one stage share
SHORTEST_SHARE = 1e-7  # lower end of the axis of shares
LOST_AT = 2.0  # dB; where outputs that are not finite are drawn
FORMS = {"original": ("s", "--", "#882255"), "deploy": ("o", "-", DTYPE_COLOURS["fp16"])}


def depth_figure(rows: Sequence[Row]) -> Figure:
    """Draw along the depth of the network how far int8 is from float, and what is clipped.

    Parameters
    ----------
    rows : sequence of mapping
        Of :func:`gpenlib.errors.healing.analyse_layers`, in graph order. One column per stage of the
        network; its maps are drawn from left to right. Maps that are equal (200 dB) are left out.
    """
    stages = list(dict.fromkeys(row["module"] for row in rows))
    figure, axes = new_figure(3, 1, width=12.5, height=9.6)
    axes[0, 0].get_gridspec().set_height_ratios([2.2, 1.3, 1.1])
    noise, output, clipped = axes[:, 0]
    placed = list(_placed(rows, stages))
    _draw_noise(noise, placed)
    _draw_output(output, placed)
    _draw_clipped(clipped, placed)
    for axis in axes[:, 0]:
        _bands(axis, rows, stages)
        axis.set_xlim(-0.6, len(stages) - 0.4)
        axis.set_xticks(range(len(stages)), [""] * len(stages))
        axis.grid(axis="x", visible=False)
        axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), fontsize=9, frameon=False)
    labels = [_short(name) for name in stages]
    clipped.set_xticks(range(len(stages)), labels, rotation=60, ha="right", rotation_mode="anchor")
    clipped.tick_params(axis="x", labelsize=8.5)
    in_float = {row["module"] for row in rows if row["layer"]} - {
        row["module"] for row in rows if row["quantised"]
    }
    for name, label in zip(stages, clipped.get_xticklabels(), strict=True):
        label.set_color(BASELINE_COLOUR if name in in_float else INK)
    clipped.set_xlabel("stage of the network, in the order of computation (grey: all in float)")
    _resolutions(noise, rows, stages)
    return figure


def _short(path: str) -> str:
    """Return a module path without what all have in common."""
    return path.removeprefix("generator.").removesuffix(".conv")


def _placed(rows: Sequence[Row], stages: Sequence[str]) -> Iterator[tuple[float, Row]]:
    """Yield every row with its place on the axis."""
    for column, name in enumerate(stages):
        own = [row for row in rows if row["module"] == name]
        for index, row in enumerate(own):
            yield column + SLOT * ((index + 0.5) / len(own) - 0.5), row


def _draw_noise(axis: Axes, placed: Sequence[tuple[float, Row]]) -> None:
    """Draw SQNR: accumulated of every map, isolated of the quantised layers; name the weakest."""
    colour = DTYPE_COLOURS["int8"]
    shown = [(x, row) for x, row in placed if row["sqnr_db"] < EQUAL_DB]
    axis.plot([x for x, _ in shown], [row["sqnr_db"] for _, row in shown], "-", color=colour, lw=1, alpha=0.6)
    kinds: dict[str, tuple[dict[str, Any], Any]] = {
        "accumulated, after a layer in int8": ({"marker": "o", "ms": 7}, lambda row: row["quantised"]),
        "accumulated, after a convolution in float": (
            {"marker": "o", "ms": 6, "mfc": "white"},
            lambda row: row["layer"] and not row["quantised"],
        ),
        "accumulated, any other map": ({"marker": ".", "ms": 4}, lambda row: not row["layer"]),
    }
    for label, (style, chosen) in kinds.items():
        points = [(x, row["sqnr_db"]) for x, row in shown if chosen(row)]
        axis.plot(*_columns(points), linestyle="none", color=colour, label=label, **style)
    quantised = [(x, row) for x, row in placed if row["quantised"]]
    points = [(x, row["isolated_sqnr_db"]) for x, row in quantised]
    axis.plot(
        *_columns(points), "D:", color=ISOLATED, ms=5.5, lw=1, label="isolated: this layer alone in int8"
    )
    heights = [row["sqnr_db"] for _, row in shown] + [y for _, y in points]
    room = 0.12 * (max(heights) - min(heights)) + 1
    axis.set_ylim(min(heights) - room, max(heights) + room)
    _name_weakest(axis, quantised)
    axis.set_ylabel("SQNR [dB]")
    axis.set_title("Feature maps against the float network (higher is better)", loc="left", pad=20)


def _name_weakest(axis: Axes, quantised: Sequence[tuple[float, Row]]) -> None:
    """Mark the layers of lowest isolated SQNR with numbers and name them beside the plot."""
    weakest = sorted(quantised, key=lambda pair: pair[1]["isolated_sqnr_db"])[:NAMED]
    lines = ["weakest alone:"]
    for rank, (x, row) in enumerate(weakest, start=1):
        score = row["isolated_sqnr_db"]
        lines.append(f"{rank}  {_short(row['module'])}, {score:.1f} dB")
        axis.annotate(
            str(rank), (x, score), xytext=(0, 8), textcoords="offset points", ha="center",
            fontsize=9, fontweight="bold", color=ISOLATED,
        )  # fmt: skip
    axis.text(
        1.012, 0.02, "\n".join(lines), transform=axis.transAxes, fontsize=9, color=ISOLATED, va="bottom"
    )


def _draw_output(axis: Axes, placed: Sequence[tuple[float, Row]]) -> None:
    """Draw what each layer does to the picture."""
    quantised = [(x, row) for x, row in placed if row["quantised"]]
    for key, colour, marker, label in (
        ("output_psnr_alone", ISOLATED, "D", "only this layer in int8"),
        ("output_psnr_without", DTYPE_COLOURS["int8"], "o", "all but this layer in int8"),
    ):
        points = [(x, row[key]) for x, row in quantised]
        axis.plot(*_columns(points), marker, color=colour, ms=6, label=label)
    axis.margins(y=0.18)
    axis.set_ylabel("PSNR [dB]")
    axis.set_title("The picture against the float network's (low diamond: sensitive layer)", loc="left")


def _draw_clipped(axis: Axes, placed: Sequence[tuple[float, Row]]) -> None:
    """Draw the shares of clipped inputs and of outermost codes; none at all stands on the lower edge."""
    quantised = [(x, row) for x, row in placed if row["quantised"]]
    for key, colour, marker, label in (
        ("clipped_share", INK, "v", "clipped (beyond the range)"),
        ("saturation", SATURATED, "^", "codes -128 and 127"),
    ):
        points = [(x, row[key]) for x, row in quantised if row[key] > 0]
        axis.plot(*_columns(points), marker, color=colour, ms=6, label=label)
        none = [(x, SHORTEST_SHARE) for x, row in quantised if row[key] == 0]
        axis.plot(*_columns(none), marker, color=colour, ms=5, mfc="none", alpha=0.6, clip_on=False)
    axis.set_yscale("log")
    axis.set_ylim(SHORTEST_SHARE, max(1e-2, 3 * max((row["saturation"] for _, row in quantised), default=0)))
    axis.set_ylabel("share of values")
    axis.set_title("Inputs of the quantised layers (hollow, on the edge: none)", loc="left")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the x and the y of points."""
    return [x for x, _ in points], [y for _, y in points]


def _runs(rows: Sequence[Row], stages: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return (resolution, first column, last column) of neighbouring stages that end in one resolution."""
    last = {row["module"]: row["shape"][1] for row in rows}
    runs: list[tuple[int, int, int]] = []
    for column, name in enumerate(stages):
        starts_decoder = name.startswith("generator") and not stages[column - 1].startswith("generator")
        if runs and runs[-1][0] == last[name] and not starts_decoder:
            runs[-1] = (last[name], runs[-1][1], column)
        else:
            runs.append((last[name], column, column))
    return runs


def _bands(axis: Axes, rows: Sequence[Row], stages: Sequence[str]) -> None:
    """Shade every other resolution and mark where the decoder begins."""
    for index, (_, first, final) in enumerate(_runs(rows, stages)):
        if index % 2:
            axis.axvspan(first - 0.5, final + 0.5, color=BAND_COLOUR, alpha=0.06, linewidth=0, zorder=0)
    decoder = next((i for i, name in enumerate(stages) if name.startswith("generator")), None)
    if decoder:
        axis.axvline(decoder - 0.5, color=INK, linewidth=1.2)


def _resolutions(axis: Axes, rows: Sequence[Row], stages: Sequence[str]) -> None:
    """Write the resolutions above the bands, and encoder and decoder above those."""
    transform = axis.get_xaxis_transform()
    for size, first, final in _runs(rows, stages):
        name = f"{size} px" if final > first else f"{size}"
        axis.text((first + final) / 2, 1.01, name, transform=transform, ha="center", va="bottom",
                  fontsize=8.5, color=BASELINE_COLOUR)  # fmt: skip
    decoder = next((i for i, name in enumerate(stages) if name.startswith("generator")), None)
    if decoder:
        style: dict[str, Any] = {"transform": transform, "va": "top", "fontsize": 9.5, "color": INK}
        axis.text(decoder - 0.6, 0.985, "encoder", ha="right", **style)
        axis.text(decoder - 0.4, 0.985, "decoder", ha="left", **style)


def healing_figure(steps: Sequence[Row]) -> Figure:
    """Draw the picture's PSNR over the number of layers that stay in float.

    Parameters
    ----------
    steps : sequence of mapping
        ``in_float``, ``name`` (which layer this step adds; None at first), ``psnr`` in dB.
    """
    figure, axes = new_figure(1, 1, width=10.5, height=4.4)
    axis = axes[0, 0]
    counts = [step["in_float"] for step in steps]
    scores = [step["psnr"] for step in steps]
    axis.plot(counts, scores, "o-", color=DTYPE_COLOURS["int8"], ms=8)
    for step in steps:
        name = "all in int8" if step["name"] is None else f"+ {_short(step['name'])}"
        axis.annotate(
            f"{name}\n{step['psnr']:.1f} dB",
            (step["in_float"], step["psnr"]),
            xytext=(6, -6),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=9,
        )
    room = max(scores) - min(scores) or 1.0
    axis.set_ylim(min(scores) - 0.28 * room, max(scores) + 0.08 * room)
    axis.set_xlim(-0.25, max(counts) + 1.15)
    axis.set_xticks(counts)
    axis.set_title("The most sensitive layers left in float, one after another", loc="left")
    axis.set_xlabel("layers in float")
    axis.set_ylabel("PSNR against the float network [dB]")
    return figure


def half_stress_figure(rows: Sequence[Row]) -> Figure:
    """Draw how both formulations bear styles of any size in fp16.

    Parameters
    ----------
    rows : sequence of mapping
        Of :func:`gpenlib.errors.half_stress.stress_half`. Outputs that are not finite are crosses on the
        lower edge; the first tensor that left the range of fp16 is named.
    """
    figure, axes = new_figure(1, 1, width=10.5, height=4.6)
    axis = axes[0, 0]
    factors = [row["factor"] for row in rows]
    for form, (marker, line, colour) in FORMS.items():
        alive = [(row["factor"], row[f"{form}_psnr"]) for row in rows if row[f"{form}_psnr"] is not None]
        label = "original formulation" if form == "original" else "deploy form"
        axis.plot(*_columns(alive), marker + line, color=colour, ms=7, label=label)
        dead = [(row["factor"], LOST_AT) for row in rows if row[f"{form}_psnr"] is None]
        axis.plot(
            *_columns(dead), "X", color=colour, ms=11, label=f"{label}: NaN or infinity" if dead else None
        )
    _name_overflows(axis, rows)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(factors))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(min(factors) / 5, max(factors) * 5)
    lowest = min((row[f"{form}_psnr"] or 0.0 for row in rows for form in FORMS), default=0.0)
    axis.set_ylim(lowest - 5 if lowest < 0 else 0, 105)
    axis.set_title("fp16 when styles are larger or smaller than trained", loc="left")
    axis.set_xlabel("factor on the styles of all demodulated layers")
    axis.set_ylabel("PSNR against float32, same styles [dB]")
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1), frameon=False)
    return figure


def _name_overflows(axis: Axes, rows: Sequence[Row]) -> None:
    """Mark the points at which something left the range of fp16 with numbers and name it beside the plot."""
    lines = ["first tensor out of fp16's range:"]
    for form, (_, _, colour) in FORMS.items():
        for row in rows:
            if row[f"{form}_overflow"] is None:
                continue
            module, _, operator = row[f"{form}_overflow"].partition(": ")
            score = row[f"{form}_psnr"]
            lines.append(
                f"{len(lines)}  {module.removeprefix('Gpen.')},\n    {operator.removeprefix('aten.')}"
            )
            axis.annotate(
                str(len(lines) - 1), (row["factor"], LOST_AT if score is None else score), xytext=(0, 9),
                textcoords="offset points", ha="center", fontsize=10, fontweight="bold", color=colour,
            )  # fmt: skip
    if len(lines) > 1:
        axis.text(1.015, 0.02, "\n".join(lines), transform=axis.transAxes, fontsize=9, va="bottom", color=INK)
