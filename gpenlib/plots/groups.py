"""Figures of notebook 05: losses by skin tone, brightness and colourfulness of the face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpenlib.plots.style import DTYPE_COLOURS, new_figure

Row = Mapping[str, Any]

INK = "#333333"
TITLES = {
    "ita": "Skin tone (ITA)", "lightness": "Brightness (mean L*)", "colourfulness": "Colourfulness",
}  # fmt: skip
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000"}
WIDTHS = {"ita": 1.7, "lightness": 1.0, "colourfulness": 1.0}  # skin tones have twice the groups
SPREAD = 0.45  # width over which the dtypes of one group are spread


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
    return list(np.linspace(-SPREAD / 2, SPREAD / 2, count)) if count > 1 else [0.0]
