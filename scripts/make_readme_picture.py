"""Draw the pictures of README and model cards: faces coloured (stage 05) and restored, samples of demo-prior.

``python scripts/make_readme_picture.py`` writes ``photos.png`` (stage 07), ``coloured.png``, ``restored.png``
and ``prior.png`` to ``notebooks/figures``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from gpenlib import Run, load_weights
from gpenlib.data import make_pair
from gpenlib.data.faces import open_faces, photographs
from gpenlib.files import repository_root
from gpenlib.images import from_tensor, to_tensor
from gpenlib.metrics import psnr
from gpenlib.photos.folder import open_shown
from gpenlib.plots import new_figure, show_image
from gpenlib.settings import PhotoSettings

# What is shown of each photograph: rows and columns
PHOTOS = {
    "grace_hopper_black_and_white.png": (slice(0, 600), slice(0, 512)),
    "astronaut_degraded.png": (slice(0, 300), slice(88, 344)),
}
AMPLIFICATION = 60  # differences are of a grey level or two
RESTORED_SEEDS = (0, 1)
FOLDER = repository_root() / "notebooks" / "figures"


def main() -> None:
    """Write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    drawn = {
        "photos.png": photos(),
        "coloured.png": coloured(),
        "restored.png": restored(),
        "prior.png": samples(),
    }
    for name, figure in drawn.items():
        figure.savefig(FOLDER / name, dpi=100)
        print(FOLDER / name)


def photos() -> Figure:
    """Draw a black-and-white photograph coloured, and a worn one restored, before and after."""
    names = {"run": "demo", "weights": "demo-color,demo-restore", "dtype": "int8"}
    run = Run.of(names, PhotoSettings)
    manifest = run.photos()
    shown = {photo.name: photo for photo in open_shown(manifest["metrics"], Path(manifest["folder"]))}
    figure, axes = new_figure(1, 4, width=12.0, height=3.7)
    for place, (name, part) in enumerate(PHOTOS.items()):
        pictures = {"before": shown[name].before, "after, int8": shown[name].after["int8"]}
        for axis, (title, picture) in zip(axes[0, 2 * place :], pictures.items(), strict=False):
            show_image(axis, picture[part], title)
    return figure


def restored() -> Figure:
    """Draw the photographs degraded, and what the weights for restoration make of them."""
    size = 128
    faces = photographs(size)
    pairs = [make_pair(faces.read(i), "restore-mild", size, seed=s) for i, s in enumerate(RESTORED_SEEDS)]
    columns = {"degraded input": [given for given, _ in pairs]}
    batch = torch.from_numpy(to_tensor(columns["degraded input"]))
    with torch.inference_mode():
        columns["demo-restore"] = list(from_tensor(load_weights("demo-restore").model(batch).numpy()))
    figure, axes = new_figure(len(pairs), len(columns) + 1, width=8.0, height=2.6 * len(pairs) + 0.2)
    for row, line in enumerate(axes):
        truth = pairs[row][1]
        for axis, (name, images) in zip(line[:-1], columns.items(), strict=True):
            show_image(axis, images[row], f"{name}: {psnr(images[row], truth):.1f} dB")
        show_image(line[-1], truth, "truth")
    return figure


def samples(rows: int = 2, columns: int = 8) -> Figure:
    """Draw the first samples of the shipped prior, as data_dir "prior" gives them."""
    faces = open_faces("prior", rows * columns)
    figure, axes = new_figure(rows, columns, width=1.25 * columns, height=1.25 * rows)
    for index, axis in enumerate(axes.flat):
        show_image(axis, faces.read(index))
    return figure


def coloured() -> Figure:
    """Run what is missing, then draw grey input, fp32, int8, their difference, and truth."""
    run = Run.of({"run": "demo", "dtypes": "fp32,int8"})
    scores = {(row["dtype"], row["name"]): row["psnr"] for row in run.errors()["metrics"]["rows"]}
    readers = {dtype: run.output_reader(dtype) for dtype in run.settings.dtypes}
    pairs = run.evaluation
    names = run.photographs
    figure, axes = new_figure(len(names), 5, width=10.0, height=2.15 * len(names) + 0.2)
    for index, (name, line) in enumerate(zip(names, axes, strict=True)):
        outputs = {dtype: read(name) for dtype, read in readers.items()}
        difference = np.abs(outputs["int8"].astype(int) - outputs["fp32"]) * AMPLIFICATION
        show_image(line[0], pairs.inputs(index), "grey input")
        for axis, dtype in zip(line[1:3], outputs, strict=True):
            show_image(axis, outputs[dtype], f"{dtype}: {scores[dtype, name]:.1f} dB")
        show_image(line[3], np.clip(difference, 0, 255).astype(np.uint8), f"|int8 - fp32| × {AMPLIFICATION}")
        show_image(line[4], pairs.truths(index), "truth")
    return figure


if __name__ == "__main__":
    main()
