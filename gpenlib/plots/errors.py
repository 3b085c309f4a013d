"""Figures of notebook 05: what each precision costs against fp32; where, for whom, in which layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from gpenlib import plots as style
from gpenlib.errors.compare import TRAITS, ZOOM_SIDE, left_out, standing
from gpenlib.plots import Region, Row

if TYPE_CHECKING:
    from gpenlib.errors.compare import FaceErrors

BESIDE: Any = {"loc": "upper left", "bbox_to_anchor": (1.005, 1), "fontsize": 9, "frameon": False}
DOTS: Any = {"edgecolors": "white", "zorder": 3}

# Columns of the notebook's tables, see ``gpenlib.plots.table``.
# Those whose digits differ by score hold texts of ``in_words``; "{!s}" puts them right as numbers.
PRECISION = {"dtype": "precision"}
SCORED = PRECISION | {"score": "score"}
LOSSES = {
    "psnr_drop": ("loss of PSNR [dB]", "{:+z.3f}"), "worst_psnr_drop": ("largest loss [dB]", "{:+z.3f}"),
    "latency_ms": ("ms per image", "{:.1f}"), "psnr": ("PSNR [dB]", "{:.3f}"), "ssim": ("SSIM", "{:.4f}"),
    "ssim_drop": ("loss of SSIM", "{:+z.5f}"), "psnr_to_fp32": ("PSNR to fp32 [dB]", "{!s}"),
    "colour_shift_to_fp32": ("colour shift [ΔE]", "{:.2f}"), "executed_precision": ("executed as", "{}"),
}  # fmt: skip
LOST = {"drop": ("mean loss", "{!s}"), "drop_low": ("from", "{!s}"), "drop_high": ("to", "{!s}")}
VERDICTS = LOST | {"verdict": ("verdict", "{}")}
ANSWERS = {
    "psnr": ("PSNR [dB]", "{:.3f}"), "ssim": ("SSIM", "{:.4f}"),
    "delta_e2000": ("ΔE 2000", "{:.3f}"), "chroma_error": ("chroma error", "{:.3f}"),
}  # fmt: skip
RUNS = {
    "images": ("images", "{:.0f}"), "value": ("value", "{:.4f}"), "difference": ("difference", "{!s}"),
    "low": ("from", "{!s}"), "high": ("to", "{!s}"), "verdict": ("verdict", "{}"),
}  # fmt: skip
SIGNED = ("drop", "drop_low", "drop_high", "difference", "low", "high")
LOSS_DIGITS = {"psnr": 3, "ssim": 5, "delta_e2000": 3, "chroma_error": 3}


def in_words(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows of one score each as tables show them: names instead of keys, losses in fixed decimals."""
    losses = [{k: style.signed(row.get(k), LOSS_DIGITS[row["score"]]) for k in SIGNED} for row in rows]
    return [{**row, "score": SCORES[row["score"]], **lost} for row, lost in zip(rows, losses, strict=True)]


def _by_dtype(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of every dtype but fp32 and copies of others, in the order of the dtypes."""
    hidden = {"fp32", *left_out(rows)[0]}
    return style.grouped(rows, "dtype", [dtype for dtype in style.DTYPE_COLOURS if dtype not in hidden])


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
    for axis, name, unit in zip(axes[0], ("PSNR", "SSIM"), (" dB", ""), strict=True):
        key, digits = f"{name.lower()}_drop", LOSS_DIGITS[name.lower()]
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
        labels = [f"{d}\n{style.signed(m, digits)}{unit}" for d, m in zip(groups, means, strict=True)]
        axis.set_xticks(range(len(groups)), labels)
        most, loss = max(zip(groups, means, strict=True), key=lambda pair: pair[1])
        title = f"{most} loses most {name}: {loss:.{digits}f}{unit}" if loss > 0 else f"None loses {name}"
        axis.set(title=title, ylabel=f"loss of {name}{' [dB]' if unit else ''}")
    return figure


def colour_figure(rows: Sequence[Row]) -> Figure:
    """Plot per dtype the shift of the mean colour against fp32 (CIELAB) and the mean difference."""
    figure, axes = style.new_figure(1, 2, width=10.0, height=3.8)
    groups = _by_dtype(rows)
    panels = (
        ("colour_shift_to_fp32", "Mean colour moves most in {}: ΔE {:.2f}", "shift of mean colour [ΔE 1976]"),
        ("bias", "The widest veil is that of {}: {:+.2f} levels", "mean difference to fp32 [grey levels]"),
    )
    for axis, (key, title, label) in zip(axes[0], panels, strict=True):
        means = {dtype: float(np.mean([row[key] for row in members])) for dtype, members in groups.items()}
        most, mean = max(means.items(), key=lambda pair: abs(pair[1]))
        widest = max(abs(row[key]) for members in groups.values() for row in members)
        if key == "bias" and widest < 0.5:  # rounds to the same grey level
            title = f"No precision leaves a visible veil: {widest:.2f} levels at most"
        boxes = axis.boxplot(
            [[row[key] for row in members] for members in groups.values()], positions=range(len(groups)),
            widths=0.5, showfliers=False, patch_artist=True, medianprops={"color": style.INK, "lw": 1.8},
        )  # fmt: skip
        for box, dtype in zip(boxes["boxes"], groups, strict=True):
            box.set(facecolor=f"{style.DTYPE_COLOURS[dtype]}40", edgecolor=style.DTYPE_COLOURS[dtype])
        _dots(axis, groups, key)
        axis.set_xticks(range(len(groups)), list(groups))
        axis.set(title=title.format(most, mean).replace(" -", " −"), ylabel=label)
    axes[0, 0].set_ylim(bottom=0)
    return figure


FEW_LEVELS = 8


def _scale(faces: Sequence[FaceErrors]) -> dict[str, Any]:
    """Return colour map and norm for all errors: a colour per grey level, as far as eyes tell them apart."""
    worst = [np.percentile(error, 99.9) for face in faces for error in face.errors.values()]
    top = max(1, int(np.ceil(max(worst))))
    edges = np.arange(0, top + 1 + (step := -(-top // FEW_LEVELS)), step) - 0.5
    return {"norm": BoundaryNorm(edges, 256, extend="max"), "cmap": "inferno"}


def _scale_bar(figure: Figure, scale: Mapping[str, Any], **options: Any) -> None:
    """Put the colour bar of error maps below them."""
    edges = scale["norm"].boundaries
    bar = figure.colorbar(ScalarMappable(**scale), location="bottom", **options)
    ends = [(int(low + 0.5), int(high - 0.5)) for low, high in itertools.pairwise(edges)]
    names = [f"{low}" if low == high else f"{low}–{high}" for low, high in ends]
    bar.set_ticks((edges[:-1] + edges[1:]) / 2, labels=names)
    bar.ax.tick_params(which="minor", length=0)
    bar.set_label("difference from fp32, largest of the channels [grey levels of 255]")


def _title(error: np.ndarray) -> str:
    return f"mean {error.mean():.2f}, max {error.max()}"


def error_maps_figure(
    faces: Sequence[FaceErrors], photographs: Sequence[str] = (), region: Region = style.EYE
) -> Figure:
    """Show fp32's output and every dtype's error map, whole and a part enlarged, for about three faces."""
    count, scale = 1 + len(faces[0].errors), _scale(faces)
    heights = np.repeat(style.face_sizes([face.name for face in faces], photographs), 2)
    side = min(1.8, (style.WIDEST - 0.4) / count)
    size = max(5.5, count * side + 0.4), 1.0 + (side + 0.2) * sum(heights)
    figure, axes = style.new_figure(2 * len(faces), count, *size, height_ratios=heights)
    figure.set_layout_engine("constrained", h_pad=0.08)
    for (above, below), face in zip(axes.reshape(-1, 2, count), faces, strict=True):
        style.show_image(above[0], face.expected, "fp32")
        style.show_zoom(below[0], face.expected, region)
        for axis, zoom, (dtype, error) in zip(above[1:], below[1:], face.errors.items(), strict=True):
            style.show_image(axis, error, f"{dtype}\n{_title(error)}", **scale)
            style.show_zoom(zoom, error, region, **scale)
        for axis in above:
            style.mark_region(axis, face.expected.shape[0], region)
        above[0].set_ylabel(style.face_title(face.name, photographs), fontsize=9)
        below[0].set_ylabel(region.called(face.name, photographs), fontsize=9)
    _scale_bar(figure, scale, ax=figure.axes, shrink=0.8, aspect=50)
    return figure


def worst_figure(faces: Sequence[FaceErrors], dtype: str, photographs: Sequence[str] = ()) -> Figure:
    """Show input, fp32, dtype, error, and its worst part enlarged, for up to six faces with ``source``."""
    scale = _scale([replace(face, errors={dtype: face.errors[dtype]}) for face in faces])
    sizes = style.face_sizes([face.name for face in faces], photographs)
    height = 0.9 + 1.5 * sum(sizes)
    figure, axes = style.new_figure(len(faces), 7, width=10.0, height=height, height_ratios=sizes)
    figure.set_layout_engine("constrained", h_pad=0.08)
    for row, face in zip(axes, faces, strict=True):
        first = face is faces[0]
        output, error = face.outputs[dtype], face.errors[dtype]
        region = Region("largest error", *face.hotspots[dtype], ZOOM_SIDE, style.ACCENT)
        source = face.expected[:0] if face.source is None else face.source
        pictures = {"input": source, "fp32": face.expected, dtype: output}
        for axis, (name, picture) in zip(row, pictures.items(), strict=False):
            style.show_image(axis, picture, name if first else "")
        style.show_image(row[3], error, _title(error), **scale)
        for axis in row[1:4]:
            style.mark_region(axis, error.shape[0], region)
        for axis, name in zip(row[4:6], ("fp32", dtype), strict=True):
            style.show_zoom(axis, pictures[name], region, f"{name}, enlarged" if first else "")
        style.show_zoom(row[6], error, region, "error, enlarged" if first else "", **scale)
        row[0].set_ylabel(f"{style.face_title(face.name, photographs)}\n{face.role}", fontsize=7.5)
    _scale_bar(figure, scale, ax=axes, shrink=0.4, aspect=45)
    return figure


# Losses by skin tone, brightness and colourfulness of the face.
TITLES = {"ita": "Skin tone (ITA)", "lightness": "Brightness (mean L*)", "colourfulness": "Colourfulness"}
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000", "chroma_error": "chroma error"}


def groups_figure(groups: Sequence[Row], score: str = "psnr") -> Figure:
    """Plot what each dtype loses per group of faces; hollow marks have no interval, for want of faces."""
    traits = style.grouped([row for row in groups if row["score"] == score], "trait", TITLES)
    widths = [1.7 if trait == "ita" else 1.0 for trait in traits]  # skin tones have twice the groups
    figure, axes = style.new_figure(2, len(traits), width=10.0, height=6.2, width_ratios=widths)
    for (drops, level), (trait, rows) in zip(axes.T, traits.items(), strict=True):
        members = style.grouped(rows, "group")
        _marks(drops, rows, "group", list(members), "drop", ("drop_low", "drop_high"), "y")
        drops.axhline(0, color=style.INK, linewidth=1)
        drops.set_title(TITLES[trait])
        values = [of_group[-1]["fp32"] for of_group in members.values()]
        level.plot(range(len(values)), values, "o", color=style.DTYPE_COLOURS["fp32"], markersize=7)
        for place, value in enumerate(values):
            style.note(level, f"{value:#.4g}", (place, value), (0, 7), ha="center", va="bottom", fontsize=8.5)
        room = np.ptp(values) or 0.05 * abs(values[0]) or 1.0
        level.set_ylim(min(values) - 0.3 * room, max(values) + 0.4 * room)
        labels = [f"{name}\n({group[0]['faces']})".replace(" ", "\n") for name, group in members.items()]
        for axis in (drops, level):
            style.name_columns(axis, labels, fontsize=8.5)
    axes[0, 0].set_ylabel(f"loss against fp32, {SCORES[score]}\n(positive is worse)")
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
    stands = standing(rows)
    name, more = SCORES[score].split(" [")[0], f", and {len(stands) - 1} more" if len(stands) > 1 else ""
    title = f"No precision's loss in {name} is shown to follow a property of the face"
    if stands:
        first, rho = stands[0], style.minus(f"{stands[0]['correlation']:+.2f}")
        title = f"{first['dtype']}'s loss in {name} follows {TRAITS[first['trait']]}, ρ = {rho}"
    axis.set(xlim=(-1.02, 1.02), title=title + more)
    axis.set_xlabel("Spearman's rank correlation (positive: loses more where there is more of it)")
    axis.legend(**{**BESIDE, "loc": "center left", "bbox_to_anchor": (1.01, 0.5)})
    return figure


def _marks(
    axis: Axes, rows: Sequence[Row], by: str, names: Sequence[str], key: str, ends: Sequence[str], along: str
) -> None:
    """Draw values at the places of groups; hollow are trends that are not shown, groups without interval."""
    dtypes = style.grouped(rows, "dtype", style.DTYPE_COLOURS)
    for shift, (dtype, members) in zip(_spread(len(dtypes), 0.45), dtypes.items(), strict=True):
        colour = style.DTYPE_COLOURS[dtype]
        label: str | None = dtype  # of the first marks that are drawn
        for sure in (True, False):
            marks = [row for row in members if row.get("shown", row[ends[0]] is not None) == sure]
            if not marks:
                continue
            points = [names.index(row[by]) + shift for row in marks], [row[key] for row in marks]
            lengths = [
                [abs(row[key] - (np.nan if row[e] is None else row[e])) for row in marks] for e in ends
            ]
            look: Any = {"ms": 6, "mfc": colour if sure else "white", "capsize": 3}
            look |= {f"{along}err": lengths, "elinewidth": 1.6, "color": colour, "label": label}
            axis.errorbar(*(points if along == "y" else points[::-1]), marker="o", linestyle="none", **look)
            label = None


# Single layers: where int8 and fp16 hurt along the depth.
ISOLATED = "#332288"
EQUAL_SQNR = 199  # dB: maps that are equal have 200
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
RANK: Any = {"ha": "center", "va": "bottom", "weight": "bold"}


def depth_figure(rows: Sequence[Row]) -> Figure:
    """Draw what int8 does along the network, from rows in graph order: to the maps, and to the picture."""
    maps = pd.DataFrame(rows)
    maps["x"] = maps.groupby("module", sort=False).ngroup()
    stages = maps.groupby("module", sort=False)
    quantised = maps[maps["quantised"]]
    names = maps["module"].unique().tolist()
    figure, axes = style.new_figure(2, 1, width=10.0, height=6.4, height_ratios=[1.5, 1])
    noise, output = axes[:, 0]
    colour = style.DTYPE_COLOURS["int8"]
    noise.plot(
        quantised["x"], quantised["sqnr_db"], "o-", color=colour, ms=5, lw=1, label="all layers in int8"
    )
    rgb = stages.tail(1).query("module.str.contains('rgb') and sqnr_db < @EQUAL_SQNR")  # not beside diamonds
    noise.plot(rgb["x"], rgb["sqnr_db"], "o", color=colour, ms=5, mfc="none", label="the picture so far")
    look: Any = {"color": ISOLATED, "ms": 6}
    noise.plot(quantised["x"], quantised["isolated_sqnr_db"], "D", **look, label="this layer alone in int8")
    weakest, worst = (
        quantised.sort_values(key, kind="stable").iloc[0].to_dict()
        for key in ("isolated_sqnr_db", "output_psnr_alone")
    )
    name = style.short_layer
    title = f"Alone, {name(weakest['module'])} is the noisiest: {weakest['isolated_sqnr_db']:.0f} dB"
    style.label(noise, title, y="signal to noise of the map [dB]", pad=18)
    noise.legend(loc="lower left", ncols=3, fontsize=9)
    output.plot(quantised["x"], quantised["output_psnr_alone"], "D", **look)
    title = f"{name(worst['module'])} costs the picture most: {worst['output_psnr_alone']:.0f} dB"
    style.label(output, title, y="PSNR of the picture [dB]")
    _name_stages(axes[:, 0], names, [shape[1] for shape in stages["shape"].last()])
    in_float = stages["layer"].any() & ~stages["quantised"].any()
    for grey, label in zip(in_float, output.get_xticklabels(), strict=True):
        label.set_color(style.BASELINE_COLOUR if grey else style.INK)
    output.set_xlabel("stage of the network, in the order of computation (grey: all in float)")
    for axis in axes[:, 0]:
        axis.margins(y=0.15)
    return figure


def _name_stages(axes: Sequence[Axes], names: Sequence[str], sides: Sequence[int]) -> None:
    """Name the stages under the last panel; shade every other resolution, and part encoder and decoder."""
    decoder = next((i for i, name in enumerate(names) if name.startswith("generator")), 0)
    # Runs are stages of one resolution beside each other, all in the encoder or all in the decoder
    keys = [(side, column < decoder) for column, side in enumerate(sides)]
    runs = [(key[0], list(run)) for key, run in itertools.groupby(range(len(sides)), keys.__getitem__)]
    for axis in axes:
        style.name_columns(axis, [""] * len(names))
        for _, columns in runs[1::2]:
            ends = columns[0] - 0.5, columns[-1] + 0.5
            axis.axvspan(*ends, color=ISOLATED, alpha=0.06, linewidth=0, zorder=0)
        if decoder:
            axis.axvline(decoder - 0.5, color=style.INK, linewidth=1.2)
    look: Any = {"transform": axes[0].get_xaxis_transform(), "fontsize": 8.5, "color": "#666666"}
    for side, columns in runs:
        text = f"{side} px" if len(columns) > 1 else f"{side}"
        axes[0].text((columns[0] + columns[-1]) / 2, 1.01, text, ha="center", va="bottom", **look)
    for text, offset, end in (("encoder", -0.6, "right"), ("decoder", -0.4, "left")) if decoder else ():
        axes[0].text(decoder + offset, 0.98, text, ha=end, va="top", **look)
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8.5}
    axes[-1].set_xticks(range(len(names)), map(style.short_layer, names), **slanted)


def half_stress_figure(rows: Sequence[Row]) -> Figure:
    """Draw how both formulations bear styles of any size in fp16; crosses are outputs that are not finite."""
    figure, axis = style.panels(1, 10.0, 4.6)
    factors = [row["factor"] for row in rows]
    lines, bears = ["first tensor out of fp16's range:"], list[str]()
    for form, label, look, colour in (
        ("original", "original formulation", "s--", "#882255"),
        ("deploy", "deploy form", "o-", style.DTYPE_COLOURS["fp16"]),
    ):
        scores = pd.Series([row[f"{form}_psnr"] for row in rows], factors, dtype=float)
        alive, dead = scores.dropna(), scores[scores.isna()].fillna(2.0)
        broken = " and ".join("10" + f"{np.log10(factor):.0f}".translate(RAISED) for factor in dead.index)
        bears.insert(0, f"{label} " + (f"breaks at {broken}" if broken else f"holds {alive.min():.0f} dB"))
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
        beside: Any = {"transform": axis.transAxes, "fontsize": 9, "color": style.INK, "va": "bottom"}
        axis.text(1.012, 0.02, "\n".join(lines), **beside)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(factors))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(min(factors) / 5, max(factors) * 5)
    lowest = min(row[f"{form}_psnr"] or 0.0 for row in rows for form in ("original", "deploy"))
    axis.set_ylim(lowest - 5 if lowest < 0 else 0, 105)
    across = "factor on the styles of all demodulated layers"
    style.label(axis, f"fp16: {'; '.join(bears)}", across, "PSNR against float32, same styles [dB]")
    axis.legend(**{**BESIDE, "fontsize": 10})
    return figure
