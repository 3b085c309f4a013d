"""Figures of notebook 02: pairs, colours, the split, and what the scores see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gpenlib import plots as style
from gpenlib.images import Image, resize
from gpenlib.plots import Row

SUBSET_COLOURS = {"evaluation": "#332288", "calibration": style.SECOND}  # not those of the dtypes


def pairs_figure(
    inputs: Sequence[Image], truths: Sequence[Image], names: Sequence[str], photographs: Sequence[str] = ()
) -> Figure:
    """Show what the network is given above what it should answer; samples stand small beside photographs."""
    large = [i for i, name in enumerate(names) if name in photographs or not photographs]
    small = [i for i in range(len(names)) if i not in large]
    side, widths = 2.4 if photographs else 1.55, [len(large), -(-len(small) // 2) / 2][: 1 + bool(small)]
    side = min(side, (style.WIDEST - 0.4) / sum(widths))
    figure = style.empty_figure(side * sum(widths) + 0.4, 2 * side + 0.3)
    parts = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for part, chosen, lines in zip(parts, (large, small), (1, 2), strict=False):
        grid = part.subplots(2 * lines, -(-len(chosen) // lines), squeeze=False)
        for place, index in enumerate(chosen):
            line, column = divmod(place, grid.shape[1])
            title = style.face_title(names[index], photographs)
            style.show_image(grid[2 * line, column], inputs[index], title)
            style.show_image(grid[2 * line + 1, column], truths[index])
        for axis in grid.flat:
            axis.set_visible(bool(axis.images))
    sides = {"input": inputs[0].shape, "truth": truths[0].shape}
    for axis, (kind, (height, width, _)) in zip(parts[0].axes[:: len(large)], sides.items(), strict=True):
        axis.set_ylabel(f"{kind}\n{width} x {height}")
    if small:
        parts[1].suptitle(style.SAMPLES, fontsize=9)
    return figure


def tasks_figure(rows: Sequence[Row]) -> Figure:
    """Show the truth and what every task makes of it, one line per task, as ``task_examples`` gives them."""

    def drawn(row: Row) -> str:
        seed = "nothing random" if row["seed"] is None else f"seed {row['seed']}"
        return f"{seed}, {row['psnr']:.1f} dB"

    tasks = style.grouped(rows, "task")
    pictures = [[examples[0]["truth"], *(row["given"] for row in examples)] for examples in tasks.values()]
    titles = [["truth", *map(drawn, examples)] for examples in tasks.values()]
    side = min(2.05, style.WIDEST / max(map(len, pictures)))
    size = side * max(map(len, pictures)), (side + 0.25) * len(tasks)
    figure, axes = style.picture_grid(pictures, titles, [style.shorten(task, 14) for task in tasks], *size)
    for axis in axes[:, 1:].flat:
        axis.spines[:].set(visible=True, color=style.BASELINE_COLOUR, linewidth=0.6)  # ends white masks
    return figure


def split_figure(
    evaluation: Sequence[Image], calibration: Sequence[Image], totals: tuple[int, int], side: int = 64
) -> Figure:
    """Show the first images of both sets as strips of thumbnails; ``totals`` counts those of each set."""
    length = max(len(evaluation), len(calibration), 8)
    figure, axes = style.new_figure(2, 1, width=10.0, height=2 * (10.0 / length + 0.35))
    sets = zip(axes[:, 0], SUBSET_COLOURS.items(), (evaluation, calibration), totals, strict=True)
    for axis, (subset, colour), images, total in sets:
        rest = np.full((side, (length - len(images)) * side, 3), 255, dtype=np.uint8)
        strip = np.hstack([*(resize(image, side) for image in images), rest])
        more = f" (the first {len(images)} shown)" if total > len(images) else ""
        style.show_image(axis, strip)
        axis.set_title(f"{subset}: {total} images{more}", fontsize=9, loc="left")
        if images:
            frame = (-0.5, -0.5), len(images) * side, side
            axis.add_patch(Rectangle(*frame, fill=False, linewidth=4, clip_on=False, edgecolor=colour))
    return figure


def colour_figure(rows: Sequence[Row]) -> Figure:
    """Plot mean colours in the CIELAB plane, lightness and chroma of the images of both subsets."""
    figure, plane, lightness, chroma = style.panels(3, 10.0, 3.8)
    plane.axhline(0, color=style.BASELINE_COLOUR, linewidth=0.8)
    plane.axvline(0, color=style.BASELINE_COLOUR, linewidth=0.8)
    for subset, members in style.grouped(rows, "subset", SUBSET_COLOURS).items():
        colours = style.columns(members, "red_mean", "green_mean", "blue_mean").T / 255
        plane.scatter(
            *style.columns(members, "lab_a", "lab_b"), s=45, c=colours,
            marker="o" if subset == "evaluation" else "s", edgecolors=SUBSET_COLOURS[subset], linewidths=1.3,
            zorder=3 if subset == "evaluation" else 2, label=f"{subset} ({len(members)})",
        )  # fmt: skip
    plane.set(title="Mean colour of each image", xlabel="CIELAB a  (green - red)")
    plane.set(ylabel="CIELAB b  (blue - yellow)")
    plane.set_aspect("equal", adjustable="datalim")
    style.legend_below(figure, plane, ncols=2)
    for axis, key, title, unit in (
        (lightness, "lightness", "Mean lightness", "CIELAB L  [0, 100]"),
        (chroma, "chroma", "Mean chroma (0 is grey)", "CIELAB chroma"),
    ):
        values = style.columns(rows, key)
        bins = np.linspace(values.min() - 0.5, values.max() + 0.5, 13).tolist()
        for subset, members in style.grouped(rows, "subset", SUBSET_COLOURS).items():
            colour, weights = SUBSET_COLOURS[subset], np.full(len(members), 1 / len(members))  # sum to 1
            shares: Any = {"x": [row[key] for row in members], "bins": bins, "weights": weights}
            axis.hist(**shares, color=colour, alpha=0.25)
            axis.hist(**shares, color=colour, histtype="step", linewidth=2)
        axis.set(title=title, xlabel=unit, ylabel="part of the images")
    return figure


def baseline_figure(scores: Sequence[Row], colours: Sequence[Row]) -> Figure:
    """Plot PSNR and SSIM of the unchanged inputs against the chroma of their truths, in the same order."""
    figure, axes = style.new_figure(1, 2)
    for axis, key, unit in zip(axes[0], ("psnr", "ssim"), (" [dB]", ""), strict=True):
        chroma, values = [row["chroma"] for row in colours], [row[key] for row in scores]
        axis.scatter(chroma, values, color=style.BASELINE_COLOUR)
        axis.set(xlabel="mean CIELAB chroma of the truth", ylabel=f"{key.upper()} of the input{unit}")
        score = f"{np.mean(values):.2f} dB" if unit else f"{np.mean(values):.3f}"
        axis.set_title(f"Doing nothing: {key.upper()} {score} on average")
    return figure


def answers_figure(answers: Mapping[str, Image], scores: Mapping[str, Row]) -> Figure:
    """Show a truth and wrong answers with their scores; an answer without a row is the truth."""
    titles = [style.shorten(name, 30) for name in answers]
    for place, name in enumerate(answers):
        if row := scores.get(name):
            titles[place] += f"\nPSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}"
            titles[place] += f"\ncolour shift {row['colour_shift']:.1f}"
    width = min(2.7 * len(answers), style.WIDEST)
    return style.picture_grid([list(answers.values())], [titles], width=width, height=3.5)[0]
