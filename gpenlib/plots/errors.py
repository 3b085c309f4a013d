"""Figures of notebook 05: what each precision costs against fp32; where, for whom, in which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from gpenlib import plots as style
from gpenlib.errors.compare import ZOOM_SIDE
from gpenlib.plots import Region, Row

if TYPE_CHECKING:
    from gpenlib.errors.compare import FaceErrors

Placed = tuple[float, Row]  # a place on the axis, and what stands there
BESIDE: Any = {"loc": "upper left", "bbox_to_anchor": (1.005, 1), "fontsize": 9, "frameon": False}
DOTS: Any = {"edgecolors": "white", "zorder": 3}

# Columns of the notebook's tables, see ``gpenlib.plots.table``.
DROP = {"drop": ("drop", "{:+.4f}"), "drop_low": ("from", "{:+.4f}"), "drop_high": ("to", "{:+.4f}")}
LOSSES = {
    "executed_precision": ("executed as", "{}"),
    "psnr": ("PSNR [dB]", "{:.3f}"),
    "psnr_drop": ("drop [dB]", "{:+.3f}"),
    "worst_psnr_drop": ("largest drop [dB]", "{:+.3f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ssim_drop": ("SSIM drop", "{:+.4f}"),
    "psnr_to_fp32": ("PSNR to fp32 [dB]", "{:.1f}"),
    "colour_shift_to_fp32": ("colour shift [ΔE]", "{:.2f}"),
    "bias": ("bias [levels]", "{:+.2f}"),
    "ms_per_image": ("ms per image", "{:.1f}"),
}
VERDICTS = DROP | {"verdict": ("verdict", "{}")}
ANSWERS = {
    "psnr": ("PSNR [dB]", "{:.3f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "delta_e2000": ("ΔE 2000", "{:.2f}"),
    "chroma_error": ("chroma error", "{:.2f}"),
}
GROUPS = {name: (name, "{}") for name in ("trait", "group", "dtype", "faces")}
GROUPS |= {"fp32": ("fp32 [dB]", "{:.2f}")} | VERDICTS | {"drop": ("drop [dB]", "{:+.3f}")}
LAYERS = {
    "layer": ("layer", "{}"),
    "output_psnr_alone": ("picture, alone [dB]", "{:.1f}"),
    "output_psnr_without": ("picture, without [dB]", "{:.1f}"),
    "isolated_sqnr_db": ("SQNR isolated [dB]", "{:.1f}"),
    "sqnr_db": ("SQNR accumulated [dB]", "{:.1f}"),
    "cosine": ("cosine accumulated", "{:.4f}"),
    "clipped_share": ("clipped", "{:.1e}"),
    "saturation": ("saturated", "{:.1e}"),
}
RUNS = {
    "images": ("images", "{:.0f}"),
    "value": ("value", "{:.4f}"),
    **{name: (name, "{:+.2g}") for name in ("difference", "low", "high")},
    "verdict": ("verdict", "{}"),
}


def _by_dtype(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of every dtype but fp32, in the order of the dtypes."""
    return style.grouped(rows, "dtype", [dtype for dtype in style.DTYPE_COLOURS if dtype != "fp32"])


def _spread(count: int, width: float) -> list[float]:
    """Return places side by side around the middle of a group."""
    return np.linspace(-width / 2, width / 2, count).tolist() if count > 1 else [0.0]


def _dots(axis: Axes, groups: Mapping[str, Sequence[Row]], key: str) -> None:
    """Draw every image as a dot, spread sideways in the order of the images."""
    for place, (dtype, members) in enumerate(groups.items()):
        across = place + np.array(_spread(len(members), 0.32))
        values = [row[key] for row in members]
        axis.scatter(across, values, s=16, color=style.DTYPE_COLOURS[dtype], linewidths=0.4, **DOTS)
    axis.axhline(0, color=style.INK, linewidth=1)
    axis.grid(axis="x", visible=False)


def drops_figure(rows: Sequence[Row], table: Sequence[Row] = ()) -> Figure:
    """Plot ``psnr_drop`` and ``ssim_drop`` of every image as dots and their means as bars with intervals.

    The ends of the intervals, ``psnr_drop_low`` and so on, come from the ``table`` of 05_errors.
    """
    figure, axes = style.new_figure(1, 2, width=10.0, height=3.8)
    groups = _by_dtype(rows)
    by_dtype = {row["dtype"]: row for row in table}
    for axis, name, unit, digits in zip(axes[0], ("PSNR", "SSIM"), (" dB", ""), (3, 4), strict=True):
        key = f"{name.lower()}_drop"
        means = [float(np.mean([row[key] for row in members])) for members in groups.values()]
        axis.bar(range(len(groups)), means, 0.62, color=[style.DTYPE_COLOURS[d] for d in groups], alpha=0.45)
        _dots(axis, groups, key)
        for place, dtype in enumerate(groups):
            row = by_dtype.get(dtype, {})
            ends = [row.get(f"{key}_{end}") for end in ("low", "high")]
            if None not in ends:
                lengths = [[abs(row[key] - end)] for end in ends]
                axis.errorbar(place, row[key], lengths, color=style.INK, fmt="none", elinewidth=2, capsize=7,
                              capthick=2, zorder=4)  # fmt: skip
        labels = [f"{dtype}\n{mean:+.{digits}f}{unit}" for dtype, mean in zip(groups, means, strict=True)]
        axis.set_xticks(range(len(groups)), labels)
        axis.set_title(f"{name} lost against fp32, and the mean")
        axis.set_ylabel(f"{name}, fp32 minus dtype{' [dB]' if unit else ''}")
    return figure


def agreement_figure(rows: Sequence[Row]) -> Figure:
    """Plot each image's PSNR in every dtype against its PSNR in fp32 (rows needed), and the difference."""
    figure, axes = style.new_figure(1, 2, width=10.5, height=4.2)
    scatter, drops = axes[0]
    reference = {row["name"]: row["psnr"] for row in rows if row["dtype"] == "fp32"}
    low, high = min(row["psnr"] for row in rows), max(row["psnr"] for row in rows)
    room = 0.06 * (high - low) or 1.0
    style.equal_axes(scatter, [low - room, high + room], "equal to fp32")
    drops.axhline(0, color=style.BASELINE_COLOUR, linewidth=1.2)
    for (dtype, members), marker in zip(_by_dtype(rows).items(), "os^D", strict=False):
        look = {"color": style.DTYPE_COLOURS[dtype], "s": 28, "alpha": 0.8, "marker": marker, "label": dtype}
        expected = [reference[row["name"]] for row in members]
        scatter.scatter(expected, [row["psnr"] for row in members], **look, **DOTS)
        drops.scatter(expected, [-row["psnr_drop"] for row in members], **look, **DOTS)
    scatter.set(title="PSNR of every image", xlabel="fp32 [dB]", ylabel="dtype [dB]")
    scatter.legend(fontsize=8.5, loc="upper left", frameon=False)
    drops.set(title="The same, fp32 taken away", xlabel="PSNR in fp32 [dB]", ylabel="dtype minus fp32 [dB]")
    return figure


def colour_figure(rows: Sequence[Row]) -> Figure:
    """Plot per dtype the shift of the mean colour against fp32 (CIELAB) and the mean difference."""
    figure, axes = style.new_figure(1, 2, width=10.0, height=3.8)
    groups = _by_dtype(rows)
    panels = (
        ("colour_shift_to_fp32", "Shift of the mean colour", "ΔE 1976 to fp32"),
        ("bias", "Mean signed difference (veil)", "dtype minus fp32 [grey levels]"),
    )
    for axis, (key, title, label) in zip(axes[0], panels, strict=True):
        boxes = axis.boxplot(
            [[row[key] for row in members] for members in groups.values()],
            positions=range(len(groups)), widths=0.5, showfliers=False, patch_artist=True,
            medianprops={"color": style.INK, "linewidth": 1.8},
        )  # fmt: skip
        for box, dtype in zip(boxes["boxes"], groups, strict=True):
            box.set(facecolor=f"{style.DTYPE_COLOURS[dtype]}40", edgecolor=style.DTYPE_COLOURS[dtype])
        _dots(axis, groups, key)
        axis.set_xticks(range(len(groups)), list(groups))
        axis.set(title=title, ylabel=label)
    axes[0, 0].set_ylim(bottom=0)
    return figure


# Error maps: one scale for all, on which this percentile of the errors gets the brightest colour.
BRIGHTEST = 99.9
SCALE = "absolute difference from fp32, largest of the three channels [grey levels of 255]"


def _scale(faces: Sequence[FaceErrors]) -> dict[str, Any]:
    """Return colour map and norm for all errors; the brightest colour is at least 1 grey level."""
    worst = [np.percentile(error, BRIGHTEST) for face in faces for error in face.errors.values()]
    return {"norm": Normalize(0, max(1.0, float(np.ceil(max(worst))))), "cmap": "inferno"}


def _scale_bar(figure: Figure, scale: Mapping[str, Any], label: str, **options: Any) -> None:
    """Put the colour bar of error maps below them."""
    bar = figure.colorbar(ScalarMappable(**scale), location="bottom", extend="max", **options)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    bar.set_label(label)


def _title(error: np.ndarray) -> str:
    return f"mean {error.mean():.2f}, largest {error.max()}"


def error_maps_figure(faces: Sequence[FaceErrors], region: Region = style.EYE) -> Figure:
    """Show per face fp32's output, every dtype's error map on one scale, and an enlarged part of both.

    One strip per face, all over the same dtypes; about three are readable.
    """
    count = 1 + len(faces[0].errors)  # of pictures; a whole one takes two columns, an enlarged part one
    scale = _scale(faces)
    figure = style.empty_figure(1.0 + 2.76 * count, 1.2 + 2.2 * len(faces))
    figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.add_gridspec(2 * len(faces), 3 * count)
    for place, face in enumerate(faces):
        top = 2 * place
        whole, above, below = (
            [figure.add_subplot(grid[rows, start + i * step : start + (i + 1) * step]) for i in range(count)]
            for rows, start, step in (
                (slice(top, top + 2), 0, 2), (top, 2 * count, 1), (top + 1, 2 * count, 1),
            )
        )  # fmt: skip
        style.show_image(whole[0], face.expected, f"{style.shorten(face.name)}\nfp32")
        below[0].set_visible(False)  # fp32 has no error
        for axis, axis_zoom, (dtype, error) in zip(whole[1:], below[1:], face.errors.items(), strict=True):
            style.show_image(axis, error, f"{dtype}\n{_title(error)}", **scale)
            style.show_zoom(axis_zoom, error, region, **scale)
        for axis in whole:
            style.mark_region(axis, face.expected.shape[0], region)
        pictures = {"fp32": face.expected, **face.outputs}
        for axis, (dtype, picture) in zip(above, pictures.items(), strict=True):
            style.show_zoom(axis, picture, region, f"{region.name}\n{dtype}" if place == 0 else "")
    label = f"{SCALE};\nshown {255 / scale['norm'].vmax:.0f} times amplified"
    _scale_bar(figure, scale, label, ax=figure.axes, shrink=0.5, aspect=45)
    return figure


def worst_figure(faces: Sequence[FaceErrors], dtype: str) -> Figure:
    """Show the faces on which a dtype loses most: input, fp32, dtype, error, and its worst part enlarged.

    One strip per face, with ``source``; up to about six are readable.
    """
    scale = _scale([replace(face, errors={dtype: face.errors[dtype]}) for face in faces])
    figure, axes = style.new_figure(len(faces), 7, width=14.0, height=0.9 + 2.1 * len(faces))
    figure.set_layout_engine("constrained", h_pad=0.08)
    for row, face in zip(axes, faces, strict=True):
        first = face is faces[0]
        output, error = face.outputs[dtype], face.errors[dtype]
        region = Region("largest error", *face.hotspots[dtype], ZOOM_SIDE, style.ACCENT)
        source = face.expected[:0] if face.source is None else face.source
        pictures = {"input": source, "fp32": face.expected, dtype: output}
        for axis, (name, picture) in zip(row, pictures.items(), strict=False):
            style.show_image(axis, picture, name if first else "")
        style.show_image(row[3], error, f"error: {_title(error)}", **scale)
        for axis in row[1:4]:
            style.mark_region(axis, error.shape[0], region)
        for axis, name in zip(row[4:6], ("fp32", dtype), strict=True):
            style.show_zoom(axis, pictures[name], region, f"{name}, enlarged" if first else "")
        style.show_zoom(row[6], error, region, "error, enlarged" if first else "", **scale)
        row[0].set_ylabel(f"{style.shorten(face.name)}\n{face.role}", fontsize=9)
    _scale_bar(figure, scale, SCALE, ax=axes, shrink=0.4, aspect=45)
    return figure


# Losses by skin tone, brightness and colourfulness of the face.
TITLES = {"ita": "Skin tone (ITA)", "lightness": "Brightness (mean L*)", "colourfulness": "Colourfulness"}
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000", "chroma_error": "chroma error"}


def groups_figure(groups: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot per group of faces what each dtype loses in one score, with its interval, over fp32's own score.

    Groups without an interval (too few faces) get hollow marks.
    """
    traits = style.grouped([row for row in groups if row["score"] == score], "trait", TITLES)
    widths = [1.7 if trait == "ita" else 1.0 for trait in traits]  # skin tones have twice the groups
    figure, axes = style.new_figure(2, len(traits), width=12.5, height=6.2, width_ratios=widths)
    for (drops, level), (trait, rows) in zip(axes.T, traits.items(), strict=True):
        members = style.grouped(rows, "group")
        names = list(members)
        dtypes = style.grouped(rows, "dtype", style.DTYPE_COLOURS)
        for shift, (dtype, of_dtype) in zip(_spread(len(dtypes), 0.45), dtypes.items(), strict=True):
            places = [names.index(row["group"]) + shift for row in of_dtype]
            _marks(drops, places, of_dtype, "drop", ("drop_low", "drop_high"), dtype)
        drops.axhline(0, color=style.INK, linewidth=1)
        drops.set_title(TITLES[trait])
        values = [of_group[-1]["fp32"] for of_group in members.values()]
        level.plot(range(len(names)), values, "o", color=style.DTYPE_COLOURS["fp32"], markersize=7)
        for place, value in enumerate(values):
            style.note(level, f"{value:.4g}", (place, value), (0, 7), ha="center", va="bottom", fontsize=8.5)
        room = np.ptp(values) or 0.05 * abs(values[0]) or 1.0
        level.set_ylim(min(values) - 0.3 * room, max(values) + 0.4 * room)
        labels = [f"{name}\n({group[0]['faces']})".replace(" ", "\n") for name, group in members.items()]
        for axis in (drops, level):
            axis.set_xticks(range(len(names)), labels, fontsize=8.5)
            axis.set_xlim(-0.6, len(names) - 0.4)
            axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(f"drop against fp32, {SCORES[score]}\n(positive is worse)")
    axes[1, 0].set_ylabel(f"fp32, {SCORES[score]}")
    title = "mean and 95 % interval; hollow: fewer than five faces, no interval; (number of faces)"
    style.legend_below(figure, axes[0, 0], ncols=len(style.DTYPE_COLOURS), title=title, title_fontsize=9)
    return figure


def trends_figure(trends: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot the rank correlation of each dtype's drop in one score with each trait, with its interval."""
    rows = [row for row in trends if row["score"] == score]
    traits = list(style.grouped(rows, "trait", TITLES))
    figure, axes = style.new_figure(width=8.5, height=1.4 + 0.75 * max(1, len(traits)))
    axis = axes[0, 0]
    style.name_rows(axis, [TITLES[trait] for trait in traits])
    dtypes = style.grouped(rows, "dtype", style.DTYPE_COLOURS)
    for shift, (dtype, members) in zip(_spread(len(dtypes), 0.45), dtypes.items(), strict=True):
        heights = [traits.index(row["trait"]) + shift for row in members]
        _marks(axis, heights, members, "correlation", ("low", "high"), dtype, along="x")
    axis.axvline(0, color=style.INK, linewidth=1)
    axis.set_xlim(-1.02, 1.02)
    axis.set(title=f"Does the drop in {SCORES[score].split(' [')[0]} follow a property of the face?")
    axis.set_xlabel("Spearman's rank correlation (positive: loses more where there is more of it)")
    axis.legend(**{**BESIDE, "loc": "center left", "bbox_to_anchor": (1.01, 0.5)})
    return figure


def _marks(
    axis: Axes, places: Sequence[float], rows: Sequence[Row], key: str, ends: tuple[str, str], dtype: str,
    along: str = "y",
) -> None:  # fmt: skip
    """Draw one dtype's values along an axis with their intervals; hollow where there is none."""
    colour = style.DTYPE_COLOURS[dtype]
    label: str | None = dtype  # of the first kind that is drawn
    for sure in (True, False):
        known = [all(row[end] is not None for end in ends) == sure for row in rows]
        marks = list(compress(zip(places, rows, strict=True), known))
        if not marks:
            continue
        across, values = [place for place, _ in marks], [row[key] for _, row in marks]
        lengths = [[abs(row[key] - row[end]) if sure else 0.0 for _, row in marks] for end in ends]
        points = {"x": across, "y": values} if along == "y" else {"x": values, "y": across}
        look: Any = {**points, f"{along}err": lengths, "mfc": colour if sure else "white"}
        axis.errorbar(
            **look, fmt="o", color=colour, ms=6, elinewidth=1.6, capsize=3 if sure else 0, label=label
        )
        label = None


# Single layers: where int8 and fp16 hurt along the depth, and what heals it.
EQUAL_DB = 199.0  # from here on maps are equal, and not drawn
ISOLATED, SATURATED = style.DTYPE_COLOURS["fp32"], style.ACCENT
NAMED = 5  # weakest layers that are named in the figure
SLOT = 0.76  # width that the maps of one stage share
SHORTEST_SHARE = 1e-7  # lower end of the axis of shares
RANK: Any = {"ha": "center", "va": "bottom", "weight": "bold"}
LOST_AT = 2.0  # dB; where outputs that are not finite are drawn


def depth_figure(rows: Sequence[Row]) -> Figure:
    """Draw along the depth of the network how far int8 is from float, and what is clipped.

    Rows are those of the layer errors in graph order. One column per stage of the network; its maps are drawn
    from left to right. Maps that are equal (200 dB) are left out.
    """
    stages = style.grouped(rows, "module")
    figure, axes = style.new_figure(3, 1, width=12.5, height=9.6, height_ratios=[2.2, 1.3, 1.1])
    noise, output, clipped = axes[:, 0]
    placed = [
        (column + SLOT * ((index + 0.5) / len(members) - 0.5), row)
        for column, members in enumerate(stages.values())
        for index, row in enumerate(members)
    ]
    quantised = [(x, row) for x, row in placed if row["quantised"]]
    _draw_noise(noise, placed, quantised)
    _draw_output(output, quantised)
    _draw_clipped(clipped, quantised)
    decoder = next((i for i, name in enumerate(stages) if name.startswith("generator")), 0)
    runs = _runs(stages, decoder)
    for axis in axes[:, 0]:
        for _, first, final in runs[1::2]:  # every other resolution is shaded
            axis.axvspan(first - 0.5, final + 0.5, color=ISOLATED, alpha=0.06, linewidth=0, zorder=0)
        if decoder:
            axis.axvline(decoder - 0.5, color=style.INK, linewidth=1.2)
        axis.set_xlim(-0.6, len(stages) - 0.4)
        axis.set_xticks(range(len(stages)), [""] * len(stages))
        axis.grid(axis="x", visible=False)
        axis.legend(**BESIDE)
    above: Any = {"transform": noise.get_xaxis_transform()}
    for size, first, final in runs:
        text = f"{size} px" if final > first else f"{size}"
        look = {"ha": "center", "va": "bottom", "fontsize": 8.5, "color": style.BASELINE_COLOUR}
        noise.text((first + final) / 2, 1.01, text, **above, **look)
    for text, offset, side in (("encoder", -0.6, "right"), ("decoder", -0.4, "left")) if decoder else ():
        noise.text(decoder + offset, 0.985, text, ha=side, va="top", fontsize=9.5, color=style.INK, **above)
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8.5}
    clipped.set_xticks(range(len(stages)), map(_short, stages), **slanted)
    for members, label in zip(stages.values(), clipped.get_xticklabels(), strict=True):
        in_float = any(row["layer"] for row in members) and not any(row["quantised"] for row in members)
        label.set_color(style.BASELINE_COLOUR if in_float else style.INK)
    clipped.set_xlabel("stage of the network, in the order of computation (grey: all in float)")
    return figure


def _short(path: str) -> str:
    """Return a module path without what all have in common."""
    return path.removeprefix("generator.").removesuffix(".conv")


def _runs(stages: Mapping[str, Sequence[Row]], decoder: int) -> list[tuple[int, int, int]]:
    """Return (resolution, first, last column) of neighbours of one resolution, both in encoder or decoder."""
    runs: list[tuple[int, int, int]] = []
    for column, members in enumerate(stages.values()):
        side = members[-1]["shape"][1]
        if runs and runs[-1][0] == side and column != decoder:
            runs[-1] = (side, runs[-1][1], column)
        else:
            runs.append((side, column, column))
    return runs


def _plot(axis: Axes, points: Sequence[tuple[float, float]], look: str, **options: Any) -> None:
    """Plot points, of which there may be none."""
    axis.plot([x for x, _ in points], [y for _, y in points], look, **options)


def _draw_noise(axis: Axes, placed: Sequence[Placed], quantised: Sequence[Placed]) -> None:
    """Draw SQNR, accumulated of every map and isolated of the quantised layers; name the weakest."""
    colour = style.DTYPE_COLOURS["int8"]
    shown = [(x, row) for x, row in placed if row["sqnr_db"] < EQUAL_DB]
    _plot(axis, [(x, row["sqnr_db"]) for x, row in shown], "-", color=colour, lw=1, alpha=0.6)
    for kind, text, marker, size, face in (
        ("int8", "after a layer in int8", "o", 7, colour),
        ("float", "after a convolution in float", "o", 6, "white"),
        ("other", "any other map", ".", 4, colour),
    ):
        points = [(x, row["sqnr_db"]) for x, row in shown if _kind(row) == kind]
        _plot(axis, points, marker, ms=size, mfc=face, color=colour, label=f"accumulated, {text}")
    alone = [(x, row["isolated_sqnr_db"]) for x, row in quantised]
    _plot(axis, alone, "D:", color=ISOLATED, ms=5.5, lw=1, label="isolated: this layer alone in int8")
    heights = [row["sqnr_db"] for _, row in shown] + [y for _, y in alone]
    room = 0.12 * (max(heights) - min(heights)) + 1
    axis.set_ylim(min(heights) - room, max(heights) + room)
    lines = ["weakest alone:"]
    weakest = sorted(quantised, key=lambda pair: pair[1]["isolated_sqnr_db"])[:NAMED]
    for rank, (x, row) in enumerate(weakest, start=1):
        score = row["isolated_sqnr_db"]
        lines.append(f"{rank}  {_short(row['module'])}, {score:.1f} dB")
        style.note(axis, str(rank), (x, score), (0, 8), color=ISOLATED, **RANK)
    _write_beside(axis, lines, ISOLATED)
    title = "Feature maps against the float network (higher is better)"
    style.label(axis, title, y="SQNR [dB]", pad=20)


def _kind(row: Row) -> str:
    """Return what wrote a map: a layer in int8, a convolution in float, or another operation."""
    return "int8" if row["quantised"] else "float" if row["layer"] else "other"


def _write_beside(axis: Axes, lines: Sequence[str], colour: str) -> None:
    """Write lines to the right of a panel, from its lower end."""
    axis.text(1.012, 0.02, "\n".join(lines), transform=axis.transAxes, fontsize=9, color=colour, va="bottom")


def _draw_output(axis: Axes, quantised: Sequence[Placed]) -> None:
    """Draw what each layer does to the picture."""
    for key, colour, marker, label in (
        ("output_psnr_alone", ISOLATED, "D", "only this layer in int8"),
        ("output_psnr_without", style.DTYPE_COLOURS["int8"], "o", "all but this layer in int8"),
    ):
        _plot(axis, [(x, row[key]) for x, row in quantised], marker, color=colour, ms=6, label=label)
    axis.margins(y=0.18)
    title = "The picture against the float network's (low diamond: sensitive layer)"
    style.label(axis, title, y="PSNR [dB]")


def _draw_clipped(axis: Axes, quantised: Sequence[Placed]) -> None:
    """Draw the shares of clipped inputs and of outermost codes; none at all stands on the lower edge."""
    for key, colour, marker, label in (
        ("clipped_share", style.INK, "v", "clipped (beyond the range)"),
        ("saturation", SATURATED, "^", "codes -128 and 127"),
    ):
        points = [(x, row[key]) for x, row in quantised if row[key] > 0]
        _plot(axis, points, marker, color=colour, ms=6, label=label)
        none = [(x, SHORTEST_SHARE) for x, row in quantised if row[key] == 0]
        _plot(axis, none, marker, color=colour, ms=5, mfc="none", alpha=0.6, clip_on=False)
    top = max(1e-2, 3 * max((row["saturation"] for _, row in quantised), default=0))
    axis.set(yscale="log", ylim=(SHORTEST_SHARE, top))
    style.label(axis, "Inputs of the quantised layers (hollow, on the edge: none)", y="share of values")


def healing_figure(steps: Sequence[Row]) -> Figure:
    """Draw ``psnr`` over ``in_float``, how many layers are in float; ``name`` is what a step adds."""
    figure, axes = style.new_figure(width=10.5, height=4.4)
    axis = axes[0, 0]
    counts = [step["in_float"] for step in steps]
    scores = [step["psnr"] for step in steps]
    axis.plot(counts, scores, "o-", color=style.DTYPE_COLOURS["int8"], ms=8)
    for step in steps:
        name = "all in int8" if step["name"] is None else f"+ {_short(step['name'])}"
        text = f"{name}\n{step['psnr']:.1f} dB"
        style.note(axis, text, (step["in_float"], step["psnr"]), (6, -6), va="top")
    room = max(scores) - min(scores) or 1.0
    axis.set_ylim(min(scores) - 0.28 * room, max(scores) + 0.08 * room)
    axis.set_xlim(-0.25, max(counts) + 1.15)
    axis.set_xticks(counts)
    title = "The most sensitive layers left in float, one after another"
    style.label(axis, title, "layers in float", "PSNR against the float network [dB]")
    return figure


def half_stress_figure(rows: Sequence[Row]) -> Figure:
    """Draw how both formulations bear styles of any size in fp16, from rows of ``stress_half``.

    Outputs that are not finite are crosses on the lower edge; what first left the range of fp16 is named.
    """
    figure, axes = style.new_figure(width=10.5, height=4.6)
    axis = axes[0, 0]
    factors = [row["factor"] for row in rows]
    lines = ["first tensor out of fp16's range:"]
    for form, label, look, colour in (
        ("original", "original formulation", "s--", "#882255"),
        ("deploy", "deploy form", "o-", style.DTYPE_COLOURS["fp16"]),
    ):
        scores = [row[f"{form}_psnr"] for row in rows]
        points = [(x, score) for x, score in zip(factors, scores, strict=True) if score is not None]
        _plot(axis, points, look, color=colour, ms=7, label=label)
        dead = [(x, LOST_AT) for x, score in zip(factors, scores, strict=True) if score is None]
        _plot(axis, dead, "X", color=colour, ms=11, label=f"{label}: NaN or infinity" if dead else None)
        for row, score in zip(rows, scores, strict=True):
            if row[f"{form}_overflow"] is None:
                continue
            module, _, operator = row[f"{form}_overflow"].partition(": ")
            point = (row["factor"], LOST_AT if score is None else score)
            style.note(axis, str(len(lines)), point, (0, 9), color=colour, fontsize=10, **RANK)
            text = f"{module.removeprefix('Gpen.')},\n    {operator.removeprefix('aten.')}"
            lines.append(f"{len(lines)}  {text}")
    if len(lines) > 1:
        _write_beside(axis, lines, style.INK)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(factors))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(min(factors) / 5, max(factors) * 5)
    lowest = min(row[f"{form}_psnr"] or 0.0 for row in rows for form in ("original", "deploy"))
    axis.set_ylim(lowest - 5 if lowest < 0 else 0, 105)
    style.label(
        axis, "fp16 when styles are larger or smaller than trained",
        "factor on the styles of all demodulated layers", "PSNR against float32, same styles [dB]",
    )  # fmt: skip
    axis.legend(**{**BESIDE, "fontsize": 10})
    return figure
