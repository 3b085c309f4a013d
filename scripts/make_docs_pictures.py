"""Cut a small picture of every notebook for the README from the figures of an executed run.

``make run``, then ``python scripts/make_docs_pictures.py``: writes ``docs/pictures/<notebook>.jpg``, or
``.png`` where it is drawn, from ``outputs/demo/notebooks`` (``--run NAME`` takes another run). Take a run on
the default faces: they are in the public domain or drawn by demo-prior.
"""

from __future__ import annotations

import argparse
import base64
import io
from typing import NamedTuple

import nbformat
from PIL import Image

from gpenlib.files import repository_root
from gpenlib.settings import RunFolder

FOLDER = repository_root() / "docs" / "pictures"
WIDTH, QUALITY = 640, 88  # pixels, twice what is shown; of the JPEG
COLOURS = 48  # of the PNG


class Cut(NamedTuple):
    """A part of a figure: notebook, id of its cell, and left, top, right, bottom as shares of the sides."""

    notebook: str
    cell: str
    box: tuple[float, float, float, float] = (0, 0, 1, 1)
    drawn: bool = False  # lines and bars in few colours, which PNG keeps sharper in less room


CUTS = (
    Cut("00_architecture", "diagram", (0, 0.035, 1, 0.527), True),
    Cut("01_export", "convolutions"),
    Cut("02_data", "tasks", (0, 0.49, 1, 1)),
    Cut("03_compile", "times", (0, 0, 1, 0.375), True),
    Cut("04_infer", "strips"),
    Cut("05_errors", "drops", (0, 0, 0.482, 1), True),
    Cut("06_train", "interpolation", (0, 0, 1, 0.94)),
    Cut("07_photos", "photos", (0, 0, 1, 0.465)),
)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", default="demo", help="run whose executed notebooks are taken (default: demo)"
    )
    copies = RunFolder(run=parser.parse_args().run).folder / "notebooks"
    FOLDER.mkdir(parents=True, exist_ok=True)
    for cut in CUTS:
        path = copies / f"{cut.notebook}.ipynb"
        if not path.is_file():
            raise SystemExit(f"{path} is missing: execute the notebooks first (make run)")
        picture = figure_of(nbformat.read(path, as_version=4), cut.cell)
        left, top, right, bottom = cut.box
        width, height = picture.size
        part = picture.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        part = part.resize((WIDTH, round(part.height * WIDTH / part.width)), Image.Resampling.LANCZOS)
        target = FOLDER / f"{cut.notebook}.{'png' if cut.drawn else 'jpg'}"
        if cut.drawn:
            part = part.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        part.save(target, quality=QUALITY, optimize=True)
        print(f"{target}: {part.width} x {part.height}, {target.stat().st_size / 1024:.0f} KiB")


def figure_of(notebook: nbformat.NotebookNode, cell: str) -> Image.Image:
    """Return the first figure of a cell as RGB on white."""
    for found in notebook.cells:
        for output in found.get("outputs", ()) if found.id == cell else ():
            if png := output.get("data", {}).get("image/png"):
                picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                return Image.alpha_composite(white, picture).convert("RGB")
    raise SystemExit(f"no figure in a cell {cell!r}: is the notebook executed, and of this version?")


if __name__ == "__main__":
    main()
