"""Figures of notebook 05 about single layers: where int8 and fp16 hurt along the depth, and what heals it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from gpenlib.plots.style import ACCENT, BASELINE_COLOUR, DTYPE_COLOURS, new_figure

Row = Mapping[str, Any]

INK = "#333333"
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
