"""Figures: rows in, a matplotlib Figure out. Here is what they share: colours, layout, parts of a face."""

from __future__ import annotations

import base64
import io
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gpenlib.plots.before_after import before_after as before_after  # for notebooks

Row = Mapping[str, Any]

# Okabe-Ito: distinguishable with every common colour-vision deficiency.
DTYPE_COLOURS = {
    "fp32": "#0072B2", "bf16": "#56B4E9", "fp16": "#009E73", "int8": "#D55E00", "int8_bf16": "#E69F00",
}  # fmt: skip
BASELINE_COLOUR = "#7F7F7F"  # the do-nothing input, and lines that guide the eye
INK = "#333333"
PIXELS_PER_INCH, WIDEST = 100, 10.0  # of a notebook's page: 1000 pixels wide
ACCENT, SECOND = "#CC79A7", "#999933"  # not the colours of the dtypes

RC: Any = {
    "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "axes.axisbelow": True,
}  # fmt: skip


class NotebookFigure(Figure):
    """A figure as notebooks show it: sharp on dense screens, as wide as the text, told in words."""

    def _ipython_display_(self) -> None:
        """Display the PNG and its place on the page, instead of what matplotlib registered for figures."""
        data, about = self.to_png()
        display({"image/png": data}, metadata={"image/png": about}, raw=True)

    def to_png(self) -> tuple[str, dict[str, Any]]:
        """Return a PNG as base64 text, with its alternative text and its width and height on the page."""
        buffer = io.BytesIO()
        # Charts are lines and letters; of pictures, which hardly gain, twice the pixels would weigh too much
        dpi = (1.3 if any(axis.images for axis in self.axes) else 2) * PIXELS_PER_INCH
        self.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05, facecolor="white")
        data = buffer.getvalue()  # of a PNG, whose width and height in pixels stand at its beginning
        width, height = (side * PIXELS_PER_INCH / dpi for side in struct.unpack(">II", data[16:24]))
        fit = min(1.0, WIDEST * PIXELS_PER_INCH / width)  # with its margin
        about = {"alt": alternative_text(self), "width": round(fit * width), "height": round(fit * height)}
        return base64.b64encode(data).decode(), about


def alternative_text(figure: Figure) -> str:
    """Return what a figure shows, for those who do not see it: titles and axes, of pictures what of whom."""
    axes = [axis for axis in figure.axes if axis.get_visible()]
    titles = [axis.get_title(place).lstrip("◎ ") for axis in axes for place in ("left", "center")]
    told = _listed([figure.get_suptitle(), *titles, *map(_axes_in_words, axes)])
    if any(axis.images for axis in axes):
        rows = [part.get_suptitle() for part in figure.subfigs] or [axis.get_ylabel() for axis in axes]
        told = _listed([figure.get_suptitle(), *titles]) + (f" of {_listed(rows)}" if any(rows) else "")
    return told if len(told) <= 300 else f"{told[:296]} ..."


def _listed(texts: Iterable[str]) -> str:
    """Return texts as a list in words, each once, and each on one line."""
    return "; ".join(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))


def _axes_in_words(axis: Axes) -> str:
    """Return what a panel's axes hold: named rows or columns, or a quantity against another."""
    across, up = axis.get_xlabel(), axis.get_ylabel()
    if not axis.axison or not (across or up):
        return ""
    for value, line in ((across, axis.yaxis), (up, axis.xaxis)):
        named = [name for name in (text.get_text() for text in line.get_ticklabels()) if name[:1].isalpha()]
        if named and value:
            return f"{value} of {', '.join(named[:6])}{' and others' if len(named) > 6 else ''}"
    return f"{up} against {across}" if across and up else across


def empty_figure(width: float, height: float) -> Figure:
    """Return a figure of constrained layout without axes, sizes in inches."""
    with plt.rc_context(RC):
        figure = plt.figure(figsize=(width, height), layout="constrained", FigureClass=NotebookFigure)
    plt.close(figure)  # the notebook shows the returned object once; pyplot must not show it again
    return figure


def new_figure(
    rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.4, **ratios: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes, an array [rows, columns] that is never squeezed."""
    figure = empty_figure(width, height)
    with plt.rc_context(RC):
        return figure, figure.subplots(rows, columns, squeeze=False, **ratios)


def panels(count: int, width: float = 9.0, height: float = 3.4) -> Any:
    """Return a figure and its axes, side by side."""
    figure, axes = new_figure(1, count, width, height)
    return figure, *axes[0]


def panel_grid(count: int, columns: int, width: float, line: float, more: float = 0.0) -> tuple[Figure, Any]:
    """Return a figure of ``count`` panels in lines of ``line`` inches; places left over are hidden."""
    lines = -(-count // columns)
    figure, axes = new_figure(lines, columns, width, line * lines + more)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


def show_image(axis: Axes, image: Any, title: str = "", **options: Any) -> None:
    """Show one image without ticks, grid or frame; matplotlib smooths it only where it is shrunk."""
    axis.imshow(image, **options)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def picture_grid(
    pictures: Sequence[Sequence[Any]], titles: Sequence[Sequence[str]] = (), names: Sequence[str] = (),
    width: float = 9.0, height: float = 3.4, **options: Any,
) -> tuple[Figure, Any]:  # fmt: skip
    """Show rows of pictures with rows of titles above them and names at the left; None leaves a gap."""
    figure, axes = new_figure(len(pictures), max(map(len, pictures)), width, height)
    for line, row, heads in zip(axes, pictures, [*titles, *[()] * len(pictures)], strict=False):
        for axis, picture, title in zip_longest(line, row, heads):
            if picture is None:
                axis.set_visible(False)
            else:
                show_image(axis, picture, title or "", **options)
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name)
    return figure, axes


def name_rows(axis: Axes, names: Sequence[str], **options: Any) -> None:
    """Give a panel one named line per row, from the top."""
    axis.set_yticks(range(len(names)), names, **options)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)


def name_columns(axis: Axes, names: Sequence[str], **options: Any) -> None:
    """Give a panel one named column per value, from the left."""
    axis.set_xticks(range(len(names)), names, **options)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.grid(axis="x", visible=False)


def label(axis: Axes, title: str, x: str = "", y: str = "", **options: Any) -> None:
    """Write a panel's title, at the left, and what its axes show."""
    axis.set_title(title, loc="left", **options)
    axis.set(xlabel=x, ylabel=y)


def note(axis: Axes, text: str, point: tuple[Any, Any], offset: tuple[float, float], **options: Any) -> None:
    """Write a text at an offset in points from a place in the data."""
    look: Any = {"textcoords": "offset points", "fontsize": 9, "va": "center"}
    axis.annotate(text, point, offset, **(look | options))


def label_points(axis: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) in a column right of a panel, moved apart, with lines to the points."""
    axis.get_xlim(), axis.get_ylim()  # settles the limits
    places = axis.transAxes.inverted().transform(axis.transData.transform([point[:2] for point in points]))
    heights, floor = places[:, 1].copy(), -0.05
    for index in np.argsort(heights, kind="stable"):
        heights[index] = floor = max(heights[index], floor + 0.068)
    heights -= max(0.0, heights.max() - 0.98)  # those at the top, and so all below them
    for (x, y, text, colour), height in zip(points, heights, strict=True):
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.45, "linewidth": 0.8, "shrinkB": 5}
        axis.annotate(
            text, (x, y), (1.04, height), textcoords="axes fraction", va="center", fontsize=9, arrowprops=line
        )


def equal_axes(axis: Axes, ends: Sequence[float], label: str) -> None:
    """Give both axes one range, and draw the line on which both values are the same."""
    axis.plot(ends, ends, color=BASELINE_COLOUR, linewidth=1.2, label=label)
    axis.set(xlim=ends, ylim=ends, aspect="equal")


def legend_below(figure: Figure, axis: Axes | None = None, **options: Any) -> None:
    """Put a legend under all panels: the entries of one panel, or the handles that are given."""
    entries = axis.get_legend_handles_labels() if axis else ()
    figure.legend(*entries, **{"loc": "outside lower center", "frameon": False, "fontsize": 9, **options})


def grouped(rows: Sequence[Row], key: str, order: Iterable[str] = ()) -> dict[str, list[Row]]:
    """Return the rows by their ``key``, in the given order or that of appearance; no group is empty."""
    groups = {name: [row for row in rows if row[key] == name] for name in order or [r[key] for r in rows]}
    return {name: members for name, members in groups.items() if members}


def columns(rows: Iterable[Row], *names: str) -> NDArray[Any]:
    """Return values of all rows by name, as an array [names, rows]."""
    return np.array([[row[name] for row in rows] for name in names])


def shorten(name: str, length: int = 16) -> str:
    """Return a name with its middle left out if it is longer than ``length``."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def short_layer(path: str) -> str:
    """Return a layer's path without what most have in common, and a runtime's own names as words."""
    path = re.sub(r"\.(skip|main)$", r", \1 half", path.removesuffix("/WithoutBiases"))
    # What OpenVINO adds to order the axes anew, or to convert to another type
    if made := re.fullmatch(r".+(?:_(?:[a-e]{4,5}|(?:bf|[fiu])\d+)){2}_(.+)", path):
        return f"{short_layer(made[1])}, conversion"
    path = re.sub(r"^node_(\D+)_(?=\d)", lambda operator: operator[1].replace("_", " ") + " ", path)
    return re.sub(r"\.conv(?=$|,)", "", path.removeprefix("generator."))


# With the default data two photographs lead and are large; what stands beside them are samples of a prior.
SAMPLES, SMALL = "samples of demo-prior", 0.6  # size of a sample beside a photograph


def face_title(name: str, photographs: Sequence[str], length: int = 16) -> str:
    """Return what to call a face: its name, or beside photographs the number of the sample."""
    sample = photographs and name not in photographs
    return f"sample {int(name.rpartition('_')[2])}" if sample else shorten(name, length)


def face_sizes(names: Iterable[str], photographs: Sequence[str]) -> list[float]:
    """Return relative sizes in which to show faces: samples beside photographs are small."""
    return [SMALL if photographs and name not in photographs else 1.0 for name in names]


def facts(about: Mapping[str, Any]) -> Any:
    """Return facts as a styled table: names and values, or a column per name if values are mappings."""
    if not all(isinstance(value, Mapping) for value in about.values()):
        about = {"": about}
    keys = dict.fromkeys(key for values in about.values() for key in values)
    rows = [{"what": key, **{name: values.get(key) for name, values in about.items()}} for key in keys]
    look: Any = {"text-align": "left", "white-space": "normal", "vertical-align": "top"}
    shown = pd.DataFrame(rows).style.format(plain, na_rep="–").hide(axis="index").set_properties(**look)
    if len(about) == 1:
        return shown.hide(axis="columns")
    wordy = re.compile(r"[^\d.,−-]")
    counts: Any = [
        name for name, values in about.items() if not any(wordy.match(str(v)) for v in values.values())
    ]
    return shown.set_properties(subset=counts, **{"text-align": "right"})


def table(
    rows: Sequence[Row],
    columns: Mapping[str, tuple[str, str]],
    index: str | Sequence[str] | Mapping[str, str] = (),
    na: str = "–",
) -> Any:
    """Return rows as a styled table, text left and numbers right.

    ``columns`` gives title (with the unit) and format by key; ``index`` names the rows, by keys or titles by
    key, and stands before them.
    """
    keys = [index] if isinstance(index, str) else list(index)
    heads = index if isinstance(index, Mapping) else {key: key.replace("_", " ") for key in keys}
    every = {key: (title, "{}") for key, title in heads.items()} | dict(columns)
    frame = pd.DataFrame(rows, columns=list(every))
    numbers = [pd.api.types.is_numeric_dtype(frame[key]) or form != "{}" for key, (_, form) in every.items()]
    frame.columns = pd.Index([title for title, _ in every.values()])
    forms: Any = {
        title: lambda value, form=form: minus(form.format(plain(value) if form == "{}" else value))
        for title, form in every.values()
    }
    aligned: Any = [
        {"selector": f"{cell}.col{place}", "props": f"text-align: {'right' if number else 'left'}"}
        for place, number in enumerate(numbers)
        for cell in ("td", "th")
    ]
    return frame.style.format(forms, na_rep=na).hide(axis="index").set_table_styles(aligned)


def plain(value: Any) -> Any:
    """Return a number as a person writes it: columns with gaps make floats of whole numbers."""
    return f"{value:g}" if isinstance(value, float) else value


def signed(value: float | None, digits: int) -> str:
    """Return a figure with its sign, or a dash; one that is rounded to zero is a gain as little as a loss."""
    return "–" if value is None else minus(f"{value:+z.{digits}f}")


def minus(text: str) -> str:
    """Return a number's text with a minus sign, where it has a hyphen."""
    return re.sub(r"(^|(?<=\de))-(?=[\d.])", "−", text)


@dataclass(frozen=True)
class Region:
    """A square part of a face picture; places and side are parts of the picture's side, from the top left."""

    name: str
    x: float  # of the centre
    y: float
    side: float
    colour: str
    elsewhere: str = ""  # its name in faces whose points are not known

    def called(self, face: str, photographs: Sequence[str]) -> str:
        """Return the part's name in a face: only of the photographs the points are known."""
        return self.name if face in photographs else self.elsewhere

    def corner(self, size: int) -> tuple[float, float]:
        """Return the top left corner in the pixel coordinates of an image of side ``size``."""
        return (self.x - self.side / 2) * size - 0.5, (self.y - self.side / 2) * size - 0.5


# Places in FFHQ layout, in which GPEN was trained: eyes at 0.47 of the height, mouth at 0.72.
EYE = Region("eye", 0.375, 0.46, 0.26, ACCENT, "upper part")
MOUTH = Region("mouth", 0.5, 0.715, 0.26, SECOND, "lower part")


def show_zoom(axis: Axes, image: Any, region: Region, title: str = "", **options: Any) -> None:
    """Show only ``region`` of an image, framed in its colour; pixels stay visible as squares."""
    show_image(axis, image, title, interpolation="nearest", **options)
    left, top = region.corner(image.shape[0])
    side = region.side * image.shape[0]
    axis.set(xlim=(left, left + side), ylim=(top + side, top))
    axis.spines[:].set(visible=True, edgecolor=region.colour, linewidth=1.6)


def mark_region(axis: Axes, size: int, region: Region) -> None:
    """Frame ``region`` in an image of side ``size``."""
    side = region.side * size
    axis.add_patch(Rectangle(region.corner(size), side, side, fill=False, ec=region.colour, linewidth=1.3))
