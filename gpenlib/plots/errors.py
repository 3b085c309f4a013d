"""Figures of notebook 05: what each precision costs against fp32; where, for whom, in which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
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
    """Plot PSNR and SSIM lost per image as dots, means as bars, with intervals of the stage's ``table``."""
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
                look: Any = {"fmt": "none", "elinewidth": 2, "capsize": 7, "capthick": 2, "zorder": 4}
                axis.errorbar(place, row[key], lengths, color=style.INK, **look)
        labels = [f"{dtype}\n{mean:+.{digits}f}{unit}" for dtype, mean in zip(groups, means, strict=True)]
        axis.set_xticks(range(len(groups)), labels)
        axis.set_title(f"{name} lost against fp32, and the mean")
        axis.set_ylabel(f"{name}, fp32 minus dtype{' [dB]' if unit else ''}")
    return figure


def agreement_figure(rows: Sequence[Row]) -> Figure:
    """Plot each image's PSNR in every dtype against its PSNR in fp32 (rows needed), and the difference."""
    figure, scatter, drops = style.panels(2, 10.5, 4.2)
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


SCALE = "absolute difference from fp32, largest of the three channels [grey levels of 255]"


def _scale(faces: Sequence[FaceErrors]) -> dict[str, Any]:
    """Return colour map and norm for all errors; the brightest colour is at least 1 grey level."""
    worst = [np.percentile(error, 99.9) for face in faces for error in face.errors.values()]
    return {"norm": Normalize(0, max(1.0, float(np.ceil(max(worst))))), "cmap": "inferno"}


def _scale_bar(figure: Figure, scale: Mapping[str, Any], label: str, **options: Any) -> None:
    """Put the colour bar of error maps below them."""
    bar = figure.colorbar(ScalarMappable(**scale), location="bottom", extend="max", **options)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    bar.set_label(label)


def _title(error: np.ndarray) -> str:
    return f"mean {error.mean():.2f}, largest {error.max()}"


def error_maps_figure(
    faces: Sequence[FaceErrors], photographs: Sequence[str] = (), region: Region = style.EYE
) -> Figure:
    """Show fp32's output, every dtype's error map, and a part of both enlarged, for about three faces."""
    count = 1 + len(faces[0].errors)  # of pictures; a whole one takes two columns, an enlarged part one
    scale = _scale(faces)
    heights = style.face_sizes([face.name for face in faces], photographs)
    figure = style.empty_figure(1.0 + 2.76 * count, 1.2 + 2.2 * sum(heights))
    figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.add_gridspec(2 * len(faces), 3 * count, height_ratios=np.repeat(heights, 2))
    named = ""
    for place, face in enumerate(faces):
        top = 2 * place
        whole, above, below = (
            [figure.add_subplot(grid[rows, start + i * step : start + (i + 1) * step]) for i in range(count)]
            for rows, start, step in (
                (slice(top, top + 2), 0, 2), (top, 2 * count, 1), (top + 1, 2 * count, 1),
            )
        )  # fmt: skip
        style.show_image(whole[0], face.expected, f"{style.face_title(face.name, photographs)}\nfp32")
        below[0].set_visible(False)  # fp32 has no error
        for axis, axis_zoom, (dtype, error) in zip(whole[1:], below[1:], face.errors.items(), strict=True):
            style.show_image(axis, error, f"{dtype}\n{_title(error)}", **scale)
            style.show_zoom(axis_zoom, error, region, **scale)
        for axis in whole:
            style.mark_region(axis, face.expected.shape[0], region)
        pictures = {"fp32": face.expected, **face.outputs}
        part = region.called(face.name, photographs)
        for axis, (dtype, picture) in zip(above, pictures.items(), strict=True):
            style.show_zoom(axis, picture, region, f"{part}\n{dtype}" if part != named else "")
        named = part
    label = f"{SCALE};\nshown {255 / scale['norm'].vmax:.0f} times amplified"
    _scale_bar(figure, scale, label, ax=figure.axes, shrink=0.5, aspect=45)
    return figure


def worst_figure(faces: Sequence[FaceErrors], dtype: str, photographs: Sequence[str] = ()) -> Figure:
    """Show input, fp32, dtype, error, and its worst part enlarged, for up to six faces with ``source``."""
    scale = _scale([replace(face, errors={dtype: face.errors[dtype]}) for face in faces])
    sizes = style.face_sizes([face.name for face in faces], photographs)
    height = 0.9 + 2.1 * sum(sizes)
    figure, axes = style.new_figure(len(faces), 7, width=14.0, height=height, height_ratios=sizes)
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
        row[0].set_ylabel(f"{style.face_title(face.name, photographs)}\n{face.role}", fontsize=9)
    _scale_bar(figure, scale, SCALE, ax=axes, shrink=0.4, aspect=45)
    return figure


# Losses by skin tone, brightness and colourfulness of the face.
TITLES = {"ita": "Skin tone (ITA)", "lightness": "Brightness (mean L*)", "colourfulness": "Colourfulness"}
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000", "chroma_error": "chroma error"}


def groups_figure(groups: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot what each dtype loses per group of faces; hollow marks have no interval, for want of faces."""
    traits = style.grouped([row for row in groups if row["score"] == score], "trait", TITLES)
    widths = [1.7 if trait == "ita" else 1.0 for trait in traits]  # skin tones have twice the groups
    figure, axes = style.new_figure(2, len(traits), width=12.5, height=6.2, width_ratios=widths)
    for (drops, level), (trait, rows) in zip(axes.T, traits.items(), strict=True):
        members = style.grouped(rows, "group")
        _marks(drops, rows, "group", list(members), "drop", ("drop_low", "drop_high"), "y")
        drops.axhline(0, color=style.INK, linewidth=1)
        drops.set_title(TITLES[trait])
        values = [of_group[-1]["fp32"] for of_group in members.values()]
        level.plot(range(len(values)), values, "o", color=style.DTYPE_COLOURS["fp32"], markersize=7)
        for place, value in enumerate(values):
            style.note(level, f"{value:.4g}", (place, value), (0, 7), ha="center", va="bottom", fontsize=8.5)
        room = np.ptp(values) or 0.05 * abs(values[0]) or 1.0
        level.set_ylim(min(values) - 0.3 * room, max(values) + 0.4 * room)
        labels = [f"{name}\n({group[0]['faces']})".replace(" ", "\n") for name, group in members.items()]
        for axis in (drops, level):
            style.name_columns(axis, labels, fontsize=8.5)
    axes[0, 0].set_ylabel(f"drop against fp32, {SCORES[score]}\n(positive is worse)")
    axes[1, 0].set_ylabel(f"fp32, {SCORES[score]}")
    title = "mean and 95 % interval; hollow: fewer than five faces, no interval; (number of faces)"
    style.legend_below(figure, axes[0, 0], ncols=len(style.DTYPE_COLOURS), title=title, title_fontsize=9)
    return figure


def trends_figure(trends: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot the rank correlation of each dtype's drop in one score with each trait, with its interval."""
    rows = [row for row in trends if row["score"] == score]
    traits = list(style.grouped(rows, "trait", TITLES))
    figure, axis = style.panels(1, 8.5, 1.4 + 0.75 * max(1, len(traits)))
    style.name_rows(axis, [TITLES[trait] for trait in traits])
    _marks(axis, rows, "trait", traits, "correlation", ("low", "high"), "x")
    axis.axvline(0, color=style.INK, linewidth=1)
    title = f"Does the drop in {SCORES[score].split(' [')[0]} follow a property of the face?"
    axis.set(xlim=(-1.02, 1.02), title=title)
    axis.set_xlabel("Spearman's rank correlation (positive: loses more where there is more of it)")
    axis.legend(**{**BESIDE, "loc": "center left", "bbox_to_anchor": (1.01, 0.5)})
    return figure


def _marks(
    axis: Axes, rows: Sequence[Row], by: str, names: Sequence[str], key: str, ends: Sequence[str], along: str
) -> None:
    """Draw every dtype's values at the places of the groups' names; hollow, without interval, if unsure."""
    dtypes = style.grouped(rows, "dtype", style.DTYPE_COLOURS)
    for shift, (dtype, members) in zip(_spread(len(dtypes), 0.45), dtypes.items(), strict=True):
        colour = style.DTYPE_COLOURS[dtype]
        label: str | None = dtype  # of the first marks that are drawn
        for sure in (True, False):
            marks = [row for row in members if all(row[end] is not None for end in ends) == sure]
            if not marks:
                continue
            points = [names.index(row[by]) + shift for row in marks], [row[key] for row in marks]
            lengths = [[abs(row[key] - row[end]) if sure else 0.0 for row in marks] for end in ends]
            look: Any = {"ms": 6, "mfc": colour if sure else "white", "capsize": 3 if sure else 0}
            look |= {f"{along}err": lengths, "elinewidth": 1.6, "color": colour, "label": label}
            axis.errorbar(*(points if along == "y" else points[::-1]), marker="o", linestyle="none", **look)
            label = None


# Single layers: where int8 and fp16 hurt along the depth, and what heals it.
ISOLATED = "#332288"
RANK: Any = {"ha": "center", "va": "bottom", "weight": "bold"}


def depth_figure(rows: Sequence[Row]) -> Figure:
    """Draw how far int8 is from float in each stage of the network, from rows in graph order."""
    maps = pd.DataFrame(rows)
    stages = maps.groupby("module", sort=False)
    maps["x"] = stages.ngroup() + 0.76 * (
        (stages.cumcount() + 0.5) / stages["module"].transform("size") - 0.5
    )
    figure, axes = style.new_figure(3, 1, width=12.5, height=9.6, height_ratios=[2.2, 1.3, 1.1])
    noise, output, clipped = axes[:, 0]
    _draw_noise(noise, maps)
    quantised = maps[maps["quantised"]]
    _draw_layers(output, clipped, quantised)
    names = maps["module"].unique().tolist()
    sides = [shape[1] for shape in stages["shape"].last()]
    decoder = next((i for i, name in enumerate(names) if name.startswith("generator")), 0)
    runs = [  # stages of one resolution beside each other, all in the encoder or all in the decoder
        (side, list(columns))
        for (side, _), columns in groupby(range(len(sides)), lambda column: (sides[column], column < decoder))
    ]
    for axis in axes[:, 0]:
        for _, columns in runs[1::2]:  # every other resolution is shaded
            ends = columns[0] - 0.5, columns[-1] + 0.5
            axis.axvspan(*ends, color=ISOLATED, alpha=0.06, linewidth=0, zorder=0)
        if decoder:
            axis.axvline(decoder - 0.5, color=style.INK, linewidth=1.2)
        style.name_columns(axis, [""] * len(names))
        axis.legend(**BESIDE)
    above: Any = {"transform": noise.get_xaxis_transform()}
    for side, columns in runs:
        text = f"{side} px" if len(columns) > 1 else f"{side}"
        look = {"ha": "center", "va": "bottom", "fontsize": 8.5, "color": style.BASELINE_COLOUR}
        noise.text((columns[0] + columns[-1]) / 2, 1.01, text, **above, **look)
    for text, offset, end in (("encoder", -0.6, "right"), ("decoder", -0.4, "left")) if decoder else ():
        noise.text(decoder + offset, 0.985, text, ha=end, va="top", fontsize=9.5, color=style.INK, **above)
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8.5}
    clipped.set_xticks(range(len(names)), map(_short, names), **slanted)
    in_float = stages["layer"].any() & ~stages["quantised"].any()
    for grey, label in zip(in_float, clipped.get_xticklabels(), strict=True):
        label.set_color(style.BASELINE_COLOUR if grey else style.INK)
    clipped.set_xlabel("stage of the network, in the order of computation (grey: all in float)")
    return figure


def _short(path: str) -> str:
    """Return a module path without what all have in common."""
    return path.removeprefix("generator.").removesuffix(".conv")


def _draw_noise(axis: Axes, maps: pd.DataFrame) -> None:
    """Draw SQNR, accumulated of every map and isolated of the quantised layers; name the weakest."""
    colour = style.DTYPE_COLOURS["int8"]
    shown, alone = maps[maps["sqnr_db"] < 199], maps[maps["quantised"]]  # maps of 200 dB are equal
    axis.plot(shown["x"], shown["sqnr_db"], "-", color=colour, lw=1, alpha=0.6)
    for chosen, text, marker, size, face in (
        (shown["quantised"], "after a layer in int8", "o", 7, colour),
        (shown["layer"].notna() & ~shown["quantised"], "after a convolution in float", "o", 6, "white"),
        (shown["layer"].isna(), "any other map", ".", 4, colour),
    ):
        look: Any = {"ms": size, "mfc": face, "color": colour, "label": f"accumulated, {text}"}
        axis.plot(shown["x"][chosen], shown["sqnr_db"][chosen], marker, **look)
    look = {"color": ISOLATED, "ms": 5.5, "lw": 1, "label": "isolated: this layer alone in int8"}
    axis.plot(alone["x"], alone["isolated_sqnr_db"], "D:", **look)
    heights = np.array([*shown["sqnr_db"], *alone["isolated_sqnr_db"]])
    room = 0.12 * np.ptp(heights) + 1
    axis.set_ylim(heights.min() - room, heights.max() + room)
    lines = ["weakest alone:"]
    weakest = alone.sort_values("isolated_sqnr_db", kind="stable")[:5]
    for x, name, score in zip(weakest["x"], weakest["module"], weakest["isolated_sqnr_db"], strict=True):
        style.note(axis, str(len(lines)), (x, score), (0, 8), color=ISOLATED, **RANK)
        lines.append(f"{len(lines)}  {_short(name)}, {score:.1f} dB")
    _write_beside(axis, lines, ISOLATED)
    style.label(axis, "Feature maps against the float network (higher is better)", y="SQNR [dB]", pad=20)


def _write_beside(axis: Axes, lines: Sequence[str], colour: str) -> None:
    """Write lines to the right of a panel, from its lower end."""
    axis.text(1.012, 0.02, "\n".join(lines), transform=axis.transAxes, fontsize=9, color=colour, va="bottom")


def _draw_layers(output: Axes, inputs: Axes, quantised: pd.DataFrame) -> None:
    """Draw what each layer does to the picture, and shares of clipped inputs; none is on the lower edge."""
    for key, colour, marker, label in (
        ("output_psnr_alone", ISOLATED, "D", "only this layer in int8"),
        ("output_psnr_without", style.DTYPE_COLOURS["int8"], "o", "all but this layer in int8"),
    ):
        output.plot(quantised["x"], quantised[key], marker, color=colour, ms=6, label=label)
    output.margins(y=0.18)
    title = "The picture against the float network's (low diamond: sensitive layer)"
    style.label(output, title, y="PSNR [dB]")
    lowest = 1e-7
    for key, colour, marker, label in (
        ("clipped_share", style.INK, "v", "clipped (beyond the range)"),
        ("saturation", style.ACCENT, "^", "codes -128 and 127"),
    ):
        some, none = (quantised[where] for where in (quantised[key] > 0, quantised[key] == 0))
        inputs.plot(some["x"], some[key], marker, color=colour, ms=6, label=label)
        hollow: Any = {"ms": 5, "mfc": "none", "alpha": 0.6, "clip_on": False}
        inputs.plot(none["x"], np.full(len(none), lowest), marker, color=colour, **hollow)
    inputs.set(yscale="log", ylim=(lowest, max(1e-2, 3 * quantised["saturation"].max())))
    style.label(inputs, "Inputs of the quantised layers (hollow, on the edge: none)", y="share of values")


def healing_figure(steps: Sequence[Row]) -> Figure:
    """Draw ``psnr`` over ``in_float``, how many layers are in float; ``name`` is what a step adds."""
    figure, axis = style.panels(1, 10.5, 4.4)
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
    """Draw how both formulations bear styles of any size in fp16; crosses are outputs that are not finite."""
    figure, axis = style.panels(1, 10.5, 4.6)
    factors = [row["factor"] for row in rows]
    lines = ["first tensor out of fp16's range:"]
    for form, label, look, colour in (
        ("original", "original formulation", "s--", "#882255"),
        ("deploy", "deploy form", "o-", style.DTYPE_COLOURS["fp16"]),
    ):
        scores = pd.Series([row[f"{form}_psnr"] for row in rows], factors, dtype=float)
        alive, dead = scores.dropna(), scores[scores.isna()].fillna(2.0)
        axis.plot(alive.index, alive, look, color=colour, ms=7, label=label)
        lost = f"{label}: NaN or infinity" if len(dead) else None
        axis.plot(dead.index, dead, "X", color=colour, ms=11, label=lost)
        for row, point in zip(rows, scores.fillna(2.0).items(), strict=True):
            if row[f"{form}_overflow"] is None:
                continue
            module, _, operator = row[f"{form}_overflow"].partition(": ")
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
    title = "fp16 when styles are larger or smaller than trained"
    across = "factor on the styles of all demodulated layers"
    style.label(axis, title, across, "PSNR against float32, same styles [dB]")
    axis.legend(**{**BESIDE, "fontsize": 10})
    return figure
