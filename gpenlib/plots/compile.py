"""Figures of notebook 03: what each dtype costs, int8's ranges and rounding, and the performance test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gpenlib import plots as style
from gpenlib.infer.performance import slower
from gpenlib.metrics import PSNR_CEILING
from gpenlib.plots import Row
from gpenlib.settings import REFERENCE

MOVING = ("element-wise", "concatenation", "depthwise filter", "rounding and layout")  # kinds
MIB = 2**20
MOST_NAMED = 14  # points that have a name: more would run out of the figure
OPERATORS = {"Conv": ("#117733", "o"), "ConvTranspose": ("#AA4499", "s")}  # not the colours of the dtypes
FORMS = {  # of a layer: colour, marker
    "rounded": ("#117733", "o"), "transposed": ("#AA4499", "s"), "wide": ("#999933", "D"),
    "joined": ("#332288", "o"), "halves": ("#CC6677", "v"),
}  # fmt: skip
MODES = {  # of calibration: colour, line
    "max": ("#000000", "-"), "percentile": ("#999933", "--"),
    "kl_divergence": ("#CC79A7", ":"), "mse": ("#332288", "-."),
}  # fmt: skip
KIND_COLOURS = {
    "convolution": "#332288", "transposed convolution": "#AA4499", "depthwise filter": "#88CCEE",
    "element-wise": "#DDCC77", "concatenation": "#CC6677", "linear": "#117733",
    "rounding and layout": "#999933", "other": "#BBBBBB",
}  # fmt: skip


def change(drop: float) -> str:
    """Return a loss of PSNR in words: one below zero is a gain."""
    return f"{abs(drop):.3f} dB {'lost' if drop > -0.0005 else 'gained'}"


def unless_zero(rows: Sequence[Row], key: str, title: Any) -> dict[str, Any]:
    """Return a column of a table, or none where it would hold zeros only."""
    return {key: title} if any(row[key] for row in rows) else {}


def artefact_rows(artefacts: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return a row per dtype for the figures and the table of artefacts, from the manifests' metrics."""
    return [
        {
            "dtype": dtype, "model_bytes": made["model_bytes"], "mib": made["model_bytes"] / MIB,
            "backend": made["backend"], "chosen": made["backend_reason"],
            "executed": made["executed_precision"],
            "convolutions": ", ".join(f"{n} × {k}" for k, n in sorted(made["executed_convolutions"].items())),
            "quantised": sum(made.get("quantisation", {}).get("quantised", {}).values()),
            "psnr_mean": made["parity"]["mean"]["psnr"], "psnr_worst": made["parity"]["worst"]["psnr"],
        }
        for dtype, made in artefacts.items()
    ]  # fmt: skip


def latency_figure(rows: Sequence[Row]) -> Figure:
    """Draw the median latency per dtype, with whiskers, from rows of ``interleaved_latency``."""
    batch, repeats = rows[0]["batch_size"], len(rows[0]["times_ms"])
    times = {row["dtype"]: row["median_ms"] for row in rows}
    fastest = min(times, key=times.__getitem__)
    title = f"{fastest} is {times.get(REFERENCE, times[fastest]) / times[fastest]:.1f} times as fast as fp32"
    title = title if fastest != REFERENCE else "Nothing is faster than fp32 here"
    unit = f"ms per call, batch {batch}: median of {repeats} calls, whiskers 10th to 90th percentile"
    figure, axis = style.panels(1, height=1.0 + 0.48 * len(rows))
    style.label(axis, title, unit)
    names = [f"{row['dtype']}\nran in {row['executed_precision']}" for row in rows]
    style.name_rows(axis, names, fontsize=8.5)
    for place, row in enumerate(rows):
        low, median, high = (row[f"{name}_ms"] for name in ("p10", "median", "p90"))
        axis.barh(place, median, 0.62, color=style.DTYPE_COLOURS[row["dtype"]], alpha=0.85)
        lengths = [[median - low], [high - median]]
        axis.errorbar(median, place, xerr=lengths, ecolor="black", capsize=4, linewidth=1.3)
        style.note(axis, f"{median:.1f}", (high, place), (7, 0))
    axis.set_xlim(0, max(row["p90_ms"] for row in rows) * 1.12)
    return figure


def parity_figure(rows: Sequence[Row], limits: Mapping[str, float]) -> Figure:
    """Draw ``psnr_mean`` and ``psnr_worst`` against the float network (None: equal), and the limits."""
    margins = {row["dtype"]: row["psnr_worst"] - limits[row["dtype"]] for row in rows if row["psnr_worst"]}
    least = min(margins, key=margins.__getitem__, default="")
    title = "All outputs are equal"
    if least:
        title = f"Every precision clears its limit by at least {int(margins[least])} dB ({least}, worst)"
        title = title if margins[least] >= 0 else f"{least} is below the limit by {-margins[least]:.1f} dB"
    unit = "PSNR of unrounded outputs to the float network's, on faces that calibration did not see [dB]"
    figure, axis = style.panels(1, height=1.5 + 0.42 * len(rows))
    style.name_rows(axis, [row["dtype"] for row in rows])
    style.label(axis, title, unit)
    for place, row in enumerate(rows):
        colour, limit = style.DTYPE_COLOURS[row["dtype"]], limits[row["dtype"]]
        axis.plot([limit, limit], [place - 0.28, place + 0.28], color="black", linewidth=2.2)
        if row["psnr_worst"] is None:
            style.note(axis, "equal outputs", (limit, place), (8, 0), fontsize=10)
            continue
        worst, mean = row["psnr_worst"], row["psnr_mean"]  # no mean: some face's outputs are equal
        axis.hlines(place, worst, mean or worst, color=colour, linewidth=2.5)
        axis.plot(worst, place, "o", color="white", mec=colour, mew=2, ms=9)
        if mean:
            axis.plot(mean, place, "o", color=colour, ms=9)
        reached = f"{mean:.1f}" if mean else "some equal"
        style.note(axis, f"{reached} (worst {worst:.1f})", (max(mean or worst, limit), place), (11, 0))
    axis.plot([], [], "o", color=style.BASELINE_COLOUR, ms=9, label="mean")
    axis.plot([], [], "o", color="white", mec=style.BASELINE_COLOUR, mew=2, ms=9, label="worst face")
    axis.plot([], [], "|", color="black", ms=13, mew=2.2, label="refused below")
    axis.set_xlim(0, 1.3 * axis.dataLim.x1)
    style.legend_below(figure, ncols=3, fontsize=10)
    return figure


def forms_figure(rows: Sequence[Row], gain: float) -> Figure:
    """Draw each form's time over that of the layer's first; one is taken that is faster by ``gain``."""
    layers = style.grouped(rows, "layer")
    figure, axis = style.panels(1, height=1.4 + 0.34 * len(layers))
    ratios = {name: [row["ms"] / forms[0]["ms"] for row in forms] for name, forms in layers.items()}
    for place, (name, forms) in enumerate(layers.items()):
        for row, ratio in zip(forms, ratios[name], strict=True):
            colour, marker = FORMS[row["form"]]
            face = colour if row["chosen"] else "none"
            axis.plot(ratio, place, marker, color=colour, mfc=face, mec=colour, mew=1.8, ms=8)
    style.name_rows(axis, [style.short_layer(name) for name in layers])
    axis.axvline(1, color=style.BASELINE_COLOUR, linewidth=1, zorder=0)
    axis.axvline(1 / gain, color=style.INK, ls="--", lw=1, zorder=0, label="taken below")
    best, least = min(((name, min(each)) for name, each in ratios.items()), key=lambda pair: pair[1])
    saved = f"the best saves {1 - least:.1%} on {style.short_layer(best)}" if least < 1 else "all take longer"
    changed = sum(not forms[0]["chosen"] for forms in layers.values())
    title = f"Clearly faster in another form: {changed} of {len(layers)} large layers"
    title = title if changed else f"No other form is clearly faster ({saved}): the first is kept"
    style.label(axis, title, "time of the layer alone, as a share of its first form's; filled: taken")
    for form in dict.fromkeys(row["form"] for row in rows):
        colour, marker = FORMS[form]
        axis.plot([], [], marker, color=colour, mfc="none", mew=1.8, ms=8, label=form)
    style.legend_below(figure, ncols=6)
    return figure


def layer_figure(layers: Sequence[Row]) -> Figure:
    """Draw activation range, weight ranges and weight SQNR of every quantised layer, in graph order."""
    table = pd.DataFrame(layers)
    figure, axes = style.new_figure(3, 1, width=10.0, height=8.2)
    activation, weight, sqnr = axes[:, 0]
    for operator, (colour, marker) in OPERATORS.items():
        members = table[table["operator"] == operator]
        if members.empty:
            continue
        places, ranges = members.index, members["activation_ranges"].str[0]
        look: Any = {"marker": marker, "color": colour, "linestyle": "none", "ms": 6.5}
        activation.vlines(places, 0, ranges, color=colour, linewidth=2, alpha=0.5)
        activation.plot(places, ranges, label=operator, **look)
        skips = members["activation_ranges"].str[1].dropna()  # of layers in halves
        if len(skips):
            activation.plot(skips.index, skips, label=f"{operator}, skip", **look, fillstyle="none")
        low, high = 127 * members["weight_scale_min"], 127 * members["weight_scale_max"]
        weight.vlines(places, low, high, color=colour, linewidth=6, alpha=0.45)
        weight.plot(places, high, **look)
        weight.plot(places, low, **look, fillstyle="none")
        sqnr.plot(places, members["weight_sqnr_db"], **look)
    title = "Activation range: largest magnitude that int8 represents at the layer's input (open: skip half)"
    style.label(activation, title, y="network units")
    activation.set_ylim(0, 1.25 * activation.get_ylim()[1])
    activation.legend(loc="upper right", ncols=4, frameon=False)
    title = "Weight range that int8 represents: widest (filled) and narrowest (open) output channel"
    style.label(weight, title, y="largest magnitude")
    weight.set_yscale("log")
    weight.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    weight.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    weight.yaxis.set_minor_formatter(NullFormatter())
    style.label(sqnr, "Weights: signal to quantisation noise", y="SQNR [dB]")
    sqnr.set_ylim(min(30, table["weight_sqnr_db"].min() - 3), table["weight_sqnr_db"].max() + 3)
    for axis in axes[:, 0]:
        axis.set_xlim(-0.7, len(layers) - 0.3)
        axis.set_xticks(range(len(layers)), [""] * len(layers))
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    sqnr.set_xticks(table.index, map(style.short_layer, table["name"]), **slanted)
    return figure


def calibration_figure(layers: Sequence[Row], histograms: Mapping[str, Row], chosen: str) -> Figure:
    """Draw the six inputs on which calibration modes differ most, with thresholds; ``chosen`` is the mode."""
    inputs = [
        (layer["name"] + half, histograms[tensor])
        for layer in layers
        for half, tensor in zip(("", ", skip half"), layer["tensors"], strict=False)
        if tensor in histograms
    ]
    spreads = [max(each["thresholds"].values()) / min(each["thresholds"].values()) for _, each in inputs]
    shown = [inputs[place] for place in np.argsort(np.negative(spreads), kind="stable")[:6]]
    figure, axes = style.panel_grid(len(shown), min(len(shown), 3), 10.0, 2.4, 0.6)
    for axis, (name, histogram) in zip(axes.flat, shown, strict=False):
        edges = np.linspace(0.0, histogram["limit"], len(histogram["counts"]) + 1)
        share = np.asarray(histogram["counts"]) / sum(histogram["counts"])
        axis.stairs(share, edges, fill=True, color=style.BASELINE_COLOUR, alpha=0.45)
        for mode, limit in histogram["thresholds"].items():
            colour, line = MODES[mode]
            label = f"{mode} (used)" if mode == chosen else mode
            axis.axvline(limit, color=colour, linestyle=line, lw=1.6, label=label)
        axis.set(yscale="log", xlim=(0, 1.05 * max(histogram["thresholds"].values())))
        axis.set_title(style.short_layer(name), loc="left", fontsize=9.5)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of values")
    for axis in axes[-1]:
        axis.set_xlabel("magnitude of the layer's input")
    if shown:
        name, limits = style.short_layer(shown[0][0]), shown[0][1]["thresholds"]
        mode = min(limits, key=limits.__getitem__)
        title = f"At {name} the modes differ most: {mode} clips at {limits[mode] / max(limits.values()):.0%}"
        figure.suptitle(f"{title} of the largest value", x=0.01, ha="left", fontsize=11)
    style.legend_below(figure, axes[0, 0], ncols=len(MODES))
    return figure


def sensitivity_figure(measured: Row) -> Figure:
    """Draw what rounding a layer alone costs (the 16 worst), and what leaving the first so many heals."""
    shown, colour, budget = measured["ranking"][:16], style.DTYPE_COLOURS["int8"], measured["max_drop_db"]
    figure, left, right = style.panels(2, 10.0, max(3.0, 1.3 + 0.24 * len(shown)))
    scores = [row["psnr"] for row in shown]
    style.name_rows(left, [style.short_layer(row["name"]) for row in shown], fontsize=8.5)
    left.hlines(range(len(shown)), scores, max(scores), color=colour, alpha=0.35, linewidth=1.5)
    left.plot(scores, range(len(shown)), "o", color=colour, ms=7)
    left.margins(x=0.08)
    title = f"{style.short_layer(shown[0]['name'])} alone costs most"
    style.label(left, title, "int8 there alone: PSNR of unrounded outputs\nto fp32's, calibration faces [dB]")
    counts, drops = ([row[key] for row in measured["steps"]] for key in ("excluded", "drop_db"))
    right.plot(counts, drops, "o-", color=colour)
    right.axhline(0, color=style.BASELINE_COLOUR, linewidth=1)
    said = change(drops[0]) if drops[0] >= 0.0005 else "no loss shown"  # on so few, a gain is luck
    title = f"All in int8: {said} on {measured['images']} calibration faces"
    style.label(right, title, "layers left in float, the most sensitive first", "PSNR lost to the truth [dB]")
    if budget < 4 * max(map(abs, drops)):
        right.axhline(budget, color=style.INK, ls="--", lw=1.2, label=f"budget: {budget:g} dB lost")
        right.legend(loc="best", frameon=False)
    right.set_xticks(counts)
    return figure


def times_note(times: Mapping[str, Sequence[Row]], latency: Sequence[Row]) -> str:
    """Say what profiling costs, and what layers that only move data take, from the measured times."""
    sums = {dtype: sum(row["ms"] for row in rows) for dtype, rows in times.items() if rows}
    ratios = [sums[row["dtype"]] / row["median_ms"] for row in latency if row["dtype"] in sums]
    if not ratios:
        return "no dtype ran on a backend whose layers are timed"
    moved = {dtype: sum(row["ms"] for row in times[dtype] if row["kind"] in MOVING) for dtype in sums}
    each = ", ".join(f"{dtype} {ms:.1f} ms of {sums[dtype]:.1f}" for dtype, ms in moved.items())
    span = " to ".join(dict.fromkeys(f"{end(ratios):.1f}" for end in (min, max)))
    return f"Layers of a profiled call add up to {span} times the latency above.\nMoving data takes {each}."


def times_figure(times: Mapping[str, Sequence[Row]], quantised: Sequence[Row] = ()) -> Figure:
    """Draw where the time goes, from ``layer_times``: by kind per dtype, and the slowest layers.

    What prepares the input of a ``quantised`` layer is named after the layer, not after the tensor.
    """
    if not times:  # PyTorch's backends have no profile
        figure, axis = style.panels(1, height=1.2)
        axis.set_axis_off()
        axis.set_title("Time by kind of operation: no dtype ran on a backend whose layers are timed")
        return figure
    last, rows = list(times.items())[-1]
    shown = rows[:16]
    heights = [1.1 + 0.42 * len(times), 0.8 + 0.26 * len(shown)]
    figure, axes = style.new_figure(2, 1, width=10.0, height=sum(heights) + 0.5, height_ratios=heights)
    figure.set_layout_engine("constrained", h_pad=0.1)  # between a unit and the title below it
    above, below = axes[:, 0]
    style.name_rows(above, list(times))
    starts = np.zeros(len(times))
    for kind, colour in KIND_COLOURS.items():
        widths = [sum(row["ms"] for row in rows if row["kind"] == kind) for rows in times.values()]
        if any(widths):
            above.barh(range(len(times)), widths, 0.62, left=starts, color=colour, label=kind)
        starts += widths
    for place, total in enumerate(starts):
        style.note(above, f"{total:.1f}", (total, place), (5, 0))
    above.margins(x=0.06)
    heads = {}
    for dtype, layers in times.items():
        kinds = pd.DataFrame(layers).groupby("kind")["ms"].sum()
        heads[dtype] = f"{kinds.filter(like='convolution').sum() / kinds.sum():.0%} of {dtype}"
    title = f"Convolutions take {', '.join(heads.values())}"
    style.label(above, title if len(title) < 100 else "Time by kind of operation", "ms, sum over all layers")
    read = {tensor: layer["name"] for layer in quantised for tensor in layer["tensors"]}
    named = {f"{t}_quantised": f"{n}, {'skip ' * t.endswith('.skip')}input" for t, n in read.items()}
    paths = [style.short_layer(str(named.get(row["name"], row["name"]))) for row in shown]
    names = [f"{style.shorten(p, 32)}  ({row['precision']})" for p, row in zip(paths, shown, strict=True)]
    style.name_rows(below, names, fontsize=8)
    colours = [KIND_COLOURS[row["kind"]] for row in shown]
    below.barh(range(len(shown)), [row["ms"] for row in shown], 0.7, color=colours)
    part = sum(row["ms"] for row in shown) / sum(row["ms"] for row in rows)
    title = f"The {len(shown)} slowest layers of {last} take {part:.0%} of it (in brackets: computed in)"
    style.label(below, title, "ms")
    style.legend_below(figure, above, ncols=4)
    return figure


def best_within(rows: Sequence[Row], max_drop_db: float) -> Row:
    """Return the best row as it was built of those as fast as the fastest that loses at most so much."""
    built = {row["dtype"]: row for row in reversed(rows)}  # the first row of each dtype
    acceptable = [row for row in reversed(built.values()) if row["psnr_drop"] <= max_drop_db]
    least = min(acceptable, key=lambda row: row["median_ms"])["times_ms"]
    equal = (row for row in acceptable if not slower(row["times_ms"], least))
    return min(equal, key=lambda row: row["psnr_drop"])


def draws_note(rows: Sequence[Row]) -> str:
    """Say how far the loss depends on which images calibrate."""
    drawn = [row for row in rows if row.get("draw")]
    first = next((row for row in rows if drawn and row["dtype"] == drawn[0]["dtype"]), None)
    if first is None:
        return "Whether other calibration images would do as well was not tried: there are no more."
    losses = sorted(f"{row['psnr_drop']:+.3f}" for row in drawn)
    told = f"{first['dtype']} loses {first['psnr_drop']:+.3f} dB as it was built, and {' and '.join(losses)}"
    return f"{told} dB with other draws of the calibration images (hollow in the figure)."


def pareto_figure(rows: Sequence[Row], recommended: str | None = None, max_drop_db: float = 0.0) -> Figure:
    """Draw latency against the loss of quality of every dtype, calibration ``mode`` and ``draw``.

    The ``recommended`` dtype is ringed, and what loses more than ``max_drop_db`` lies in the shade (0: none).
    Other draws of calibration images are hollow and have no name; modes close together have one.
    """
    figure, left, right = style.panels(2, 10.0, 4.4)
    most = max((row["psnr_to_fp32"] for row in rows if row["psnr_to_fp32"] < PSNR_CEILING), default=60.0)
    least = min(row["psnr_to_fp32"] for row in rows)
    equal = most + max(0.12 * (most - least), 3.0)  # equal pictures stand on a line of their own
    chosen = next((row for row in rows if row["dtype"] == recommended), None)
    for axis, key in ((left, "psnr_drop"), (right, "psnr_to_fp32")):
        for row in rows:
            colour, place = style.DTYPE_COLOURS[row["dtype"]], min(row[key], equal)
            if row.get("draw"):
                axis.plot(row["median_ms"], place, "o", color=colour, ms=7, mfc="none", alpha=0.7)
                continue
            axis.hlines(place, row["p10_ms"], row["p90_ms"], color=colour, alpha=0.35, linewidth=1.5)
            rank = list(style.DTYPE_COLOURS).index(row["dtype"])  # smaller and on top: none hides another
            axis.plot(row["median_ms"], place, "o", color=colour, ms=16 - 2.7 * rank, mew=0, zorder=3 + rank)
            if row is chosen:
                axis.plot(row["median_ms"], place, "o", ms=20, mfc="none", mec=style.INK, mew=1.8)
        axis.set_xlim(left=0)
        axis.margins(y=0.12)
        if key == "psnr_drop":
            axis.axhline(0, color=style.BASELINE_COLOUR, linewidth=1)
            axis.invert_yaxis()
            if max_drop_db:
                below, top = max(axis.get_ylim()[0], 1.3 * max_drop_db), min(0.0, *(row[key] for row in rows))
                axis.set_ylim(below, top - 0.1 * (below - top))  # room for the markers
                axis.axhspan(max_drop_db, below, color="#888888", alpha=0.15, linewidth=0)
                text = f"beyond the budget of {max_drop_db:g} dB"
                style.note(axis, text, (0, max_drop_db), (4, -7), fontsize=8)
        points, near = [], 0.07 * abs(float(np.subtract(*axis.get_ylim())))  # the height of a label
        named = sorted((row for row in rows if not row.get("draw")), key=lambda row: row[key])
        for dtype, members in style.grouped(named, "dtype").items():
            cuts = np.flatnonzero(np.diff([row[key] for row in members]) > near) + 1
            for group in np.split(np.array(members, object), cuts):
                modes = [row["mode"] for row in group if row["mode"]]
                text = ", ".join([dtype, *(modes if len(modes) < 3 else [f"{len(modes)} modes"])])
                text += " ◎" * any(row is chosen for row in group)
                place = min(np.mean([row[key] for row in group]), equal)
                points.append((group[0]["median_ms"], place, text, style.DTYPE_COLOURS[dtype]))
        style.label_points(axis, points)
    if least < PSNR_CEILING and any(row["psnr_to_fp32"] >= PSNR_CEILING for row in rows):
        right.axhline(equal, color=style.BASELINE_COLOUR, linewidth=1, linestyle=":")
        style.note(right, "equal to fp32", (0, equal), (4, -7), fontsize=8)
        right.set_yticks([tick for tick in right.get_yticks() if least - 5 <= tick <= most])
    time = "ms per call (line: 10th to 90th percentile)"
    style.label(left, "Against the truth: up and left is better", time, "loss of PSNR [dB]")
    style.label(right, "Against fp32's pictures", time, "PSNR [dB]")
    if chosen is not None:
        title = f"◎ {chosen['dtype']}: {chosen['median_ms']:.1f} ms, {change(chosen['psnr_drop'])}"
        modes = [row for row in rows if row["dtype"] == recommended and not row.get("draw")]
        best = max(modes, key=lambda row: row["psnr_to_fp32"])  # PSNR gains may be clipped colours
        if (closer := best["psnr_to_fp32"] - chosen["psnr_to_fp32"]) > 0.1:
            title += f" (built with {chosen['mode']}: {best['mode']} comes {closer:.1f} dB closer to fp32)"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Draw PSNR against time of the runs of a sweep; those that none beats in both are joined and named."""
    figure, axes = style.new_figure(1, 1, 9.0, 4.4)
    axis, front = axes[0, 0], sorted((row for row in rows if row["best"]), key=lambda row: row["ms"])
    for dtype, members in style.grouped(rows, "dtype", style.DTYPE_COLOURS).items():
        ms, psnr = style.columns(members, "ms", "psnr")
        axis.plot(ms, psnr, "o", color=style.DTYPE_COLOURS[dtype], ms=8, mec="white", label=dtype)
    ms, psnr = style.columns(front, "ms", "psnr")
    axis.plot(ms, psnr, color=style.BASELINE_COLOUR, drawstyle="steps-post", linewidth=1, zorder=1)
    axis.set_xlim(left=0)
    axis.margins(y=0.15)
    colours = [style.DTYPE_COLOURS[row["dtype"]] for row in front]
    names = [style.shorten(row["label"], 30) for row in front]
    style.label_points(axis, list(zip(ms, psnr, names, colours, strict=True))[:MOST_NAMED])
    title = "Up and left is better: none beats those on the line in both"
    style.label(axis, title, "ms per face", "PSNR [dB]")
    style.legend_below(figure, axis, ncols=5)
    return figure


def performance_figure(rows: Sequence[Row]) -> Figure:
    """Draw throughput and latency of every combination in ``performance_test``; the title names the best."""
    figure, speed, wait = style.panels(2, 10.0, max(2.2, 1.3 + 0.3 * len(rows)))
    colour, grey = style.DTYPE_COLOURS[rows[0]["dtype"]], style.BASELINE_COLOUR
    names = [f"{row['batch_size']} × {row['instances']} × {row['threads']}" for row in rows]
    style.name_rows(speed, [n + " *" * row["oversubscribed"] for n, row in zip(names, rows, strict=True)])
    style.name_rows(wait, [""] * len(rows))
    bars = speed.barh(range(len(rows)), [row["images_per_s"] for row in rows], 0.6, color=colour, alpha=0.85)
    speed.bar_label(bars, fmt="%.1f", padding=4, fontsize=9)
    speed.margins(x=0.15)
    for place, row in enumerate(rows):
        wait.hlines(place, row["p50_ms"], row["p95_ms"], color=colour, linewidth=3, alpha=0.5)
        wait.hlines(place, row["p95_ms"], row["p99_ms"], color=colour, linewidth=1)
        wait.plot(row["p50_ms"], place, "o", color=colour, ms=7)
    few = "" if all(row["enough_for_p99"] for row in rows) else " (of fewer than 100 calls)"
    wait.plot([], [], "o", color=grey, label="median")
    wait.plot([], [], color=grey, linewidth=3, alpha=0.5, label="to p95")
    wait.plot([], [], color=grey, linewidth=1, label=f"to p99{few}")
    wait.set_xlim(left=0)
    best = max(range(len(rows)), key=lambda place: rows[place]["images_per_s"])
    where = f"{rows[0]['dtype']} on {rows[0]['backend']}, {rows[0]['device']}"
    figure.suptitle(f"{where}: most images per second at {names[best]} (batch × instances × threads)", x=0.01,
                    ha="left", fontsize=11)  # fmt: skip
    unit = "images / s" + "   (*: more threads than cores)" * any(row["oversubscribed"] for row in rows)
    style.label(speed, "Throughput", unit)
    style.label(wait, "Latency of a call", "ms")
    style.legend_below(figure, wait, ncols=3)
    return figure
