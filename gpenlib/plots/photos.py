"""Figures of notebook 07: photographs before and after, faces as strips, time by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from gpenlib import plots as style
from gpenlib.images import Image, read_image
from gpenlib.jobs import front_end_is_live
from gpenlib.plots import Row

if TYPE_CHECKING:
    from gpenlib.photos.folder import ShownPhoto

GAIN = 8  # by which differences of precisions are amplified
STEPS = {  # what a step is called, and its colour, which no dtype has
    "read_s": ("read", "#332288"), "find_s": ("find faces", "#44AA99"),
    "run_s": ("run the network", "#882255"), "upscale_s": ("enlarge", "#DDCC77"),
    "paste_s": ("put back", style.ACCENT), "write_s": ("write all results", style.SECOND),
}  # fmt: skip


def photos_figure(photos: Sequence[ShownPhoto]) -> Figure:
    """Show every photograph before, with the squares of its faces, and after in each dtype."""
    dtypes = list(photos[0].after)
    pictures = [[photo.before, *photo.after.values()] for photo in photos]
    heights = [photo.before.shape[0] / photo.before.shape[1] for photo in photos]
    width = style.WIDEST / (1 + len(dtypes))
    figure, axes = style.new_figure(
        len(photos), 1 + len(dtypes), style.WIDEST, sum(min(1.4, h) * width + 0.35 for h in heights),
        gridspec_kw={"height_ratios": [min(1.4, h) + 0.35 / width for h in heights]},
    )  # fmt: skip
    for line, photo, row in zip(axes, photos, pictures, strict=True):
        for axis, image, title in zip(line, row, [style.shorten(photo.name, 36), *dtypes], strict=True):
            style.show_image(axis, image, title)
        for square in photo.squares:
            line[0].add_patch(Polygon(square, fill=False, ec=style.ACCENT, linewidth=1.2))
    return figure


def faces_figure(faces: Sequence[Row], folder: Path, most: int = 8) -> Figure:
    """Show the first faces as strips: aligned input, output in every dtype, what separates the dtypes."""
    dtypes = list(dict.fromkeys(face["dtype"] for face in faces))
    crops = list(dict.fromkeys(face["crops"] for face in faces))[:most]
    names = {face["crops"]: (Path(face["photo"]).stem, f"face {face['face'] + 1}") for face in faces}
    last = f"{dtypes[0]} and {dtypes[-1]}: difference × {GAIN}" if len(dtypes) > 1 else "what was changed"
    pictures = []
    for crop in crops:
        shown = {name: read_image(folder / f"{crop}_{name}.png") for name in ("input", *dtypes)}
        pictures.append([*shown.values(), _difference(shown, dtypes)])
    titles = [["aligned input", *dtypes, last], *[[""] * (2 + len(dtypes))] * (len(crops) - 1)]
    each = min(1.9, style.WIDEST / (2 + len(dtypes)))
    size = each * (2 + len(dtypes)), (each + 0.05) * len(crops)
    figure, axes = style.picture_grid(pictures, titles, (), *size)
    for line, crop in zip(axes, crops, strict=True):
        line[0].set_ylabel("\n".join(style.shorten(text, 30) for text in names[crop]), fontsize=7.5)
    return figure


def _difference(shown: Mapping[str, Image], dtypes: Sequence[str]) -> Image:
    """Return where two outputs, or input and output, differ, around a middle grey."""
    first, second = shown[dtypes[0] if len(dtypes) > 1 else "input"], shown[dtypes[-1]]
    if first.shape != second.shape:
        return np.full_like(second, 128)
    gain = GAIN if len(dtypes) > 1 else 1
    return np.clip(128 + gain * (second.astype(np.int16) - first), 0, 255).astype(np.uint8)


def time_figure(photos: Sequence[Row]) -> Figure:
    """Plot the seconds of every step that took time in the first dtype, a bar for each of 12 photographs."""
    dtype = photos[0]["dtype"]
    first = [photo for photo in photos if photo["dtype"] == dtype][:12]
    figure, axis = style.panels(1, 10.0, 1.4 + 0.32 * len(first))
    spent = {step: np.array([float(photo.get(step, 0)) for photo in first]) for step in STEPS}
    total = np.sum(list(spent.values()))
    share = {step: seconds.sum() / total for step, seconds in spent.items()}
    left, most = np.zeros(len(first)), max(STEPS, key=lambda step: share[step])
    for step in (step for step in STEPS if share[step] > 0.001):
        name, colour = STEPS[step]
        axis.barh(range(len(first)), spent[step], left=left, label=name, color=colour, height=0.7)
        left += spent[step]
    style.name_rows(axis, [style.shorten(photo["photo"], 36) for photo in first], fontsize=8)
    title = f"The longest step is “{STEPS[most][0]}”: {share[most]:.0%} of the time, in {dtype}"
    style.label(axis, title, "seconds; steps of several photographs overlap")
    style.legend_below(figure, axis, ncols=len(STEPS))
    return figure


def reach_figure(pictures: Mapping[str, Image]) -> Figure:
    """Show one photograph coloured to several reaches, side by side."""
    return style.picture_grid([list(pictures.values())], [list(pictures)], (), 10.0, 4.0)[0]


def upload_field(enhance: Callable[[Path], Any]) -> Any | None:
    """Return a field that takes a picture and shows what ``enhance`` makes of it; None where nobody looks."""
    if not front_end_is_live():  # a headless notebook must never create a widget
        return None
    import ipywidgets

    field = ipywidgets.FileUpload(accept="image/*", description="a photograph")
    output = ipywidgets.Output()

    def show(_: Any) -> None:
        output.clear_output()
        with output, tempfile.TemporaryDirectory() as folder:
            for item in field.value:
                path = Path(folder) / Path(item["name"]).name
                path.write_bytes(item["content"])
                try:
                    display(enhance(path))
                except (OSError, ValueError) as error:
                    print(f"{path.name}: {error}")

    field.observe(show, names="value")
    return ipywidgets.VBox([field, output])
