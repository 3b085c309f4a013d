"""Compare samples of a GAN prior with the faces that it learned from, without any recognition network.

``python benchmarks/prior_quality.py --faces /path/to/training/faces [--prior demo-prior] [--count 1000]``

The last 48 faces in natural order were held out of the training (``holdout``). For these, and for samples
as trained, truncated and without noise, and as chosen for data, it prints, at the prior's size:

- thumbnails: Fréchet distance of 8-px thumbnails (192 numbers each) to the training faces, which tells layout
  and colours; for the training faces themselves it is that of one half to the other;
- colourfulness and sharpness (variance of the Laplacian), medians;
- face: share of the first 256 in which CenterFace finds one face, surely and where it should be; and of these
  the median of ``eyes_alike``, the correlation of one eye with the mirror image of the other
- nearest: median distance to the nearest training face or its mirror image, RMS grey levels at 32 px. Samples
  much nearer than held-out faces would be copies.

The rows go to ``outputs/benchmarks/prior_quality.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd

from gpenlib.data.faces import NOISE, TRUNCATION, open_folder, prior_faces
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.images import Image, resize
from gpenlib.jobs import progress
from gpenlib.metrics import colourfulness, frechet_distance, sharpness
from gpenlib.photos.find import CenterFace, aligned_face, eyes_alike
from gpenlib.train.config import TrainConfig

THUMBNAIL, COMPARED = 8, 32  # sides in pixels
JUDGED = 256  # pictures that the face detector looks at
Pixels = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", required=True, help="folder that the prior was trained on")
    parser.add_argument("--prior", default="demo-prior", help="name or weights file (default: demo-prior)")
    parser.add_argument("--count", type=int, default=1000, help="samples (default: 1000)")
    options = parser.parse_args()

    size = prior_faces(options.prior, 1).read(0).shape[0]
    folder = open_folder(options.faces)
    holdout = TrainConfig.model_fields["holdout"].default
    known = [resize(folder.read(i), size) for i in progress(range(len(folder.names)), desc="training faces")]
    training, held_out = known[:-holdout], known[-holdout:]
    rows = [describe("training faces", training, training), describe("held-out faces", held_out, training)]
    for how in ((1.0, 1.0), (TRUNCATION, NOISE), ()):
        name = "samples, truncation {:g}, noise {:g}".format(*how) if how else "samples for data, as chosen"
        samples = prior_faces(options.prior, options.count, *how)
        drawn = [samples.read(i) for i in progress(range(options.count), desc=name)]
        rows.append(describe(name, drawn, training))
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))
    target = repository_root() / "outputs" / "benchmarks" / "prior_quality.json"
    write_json(target, {"prior": options.prior, "rows": rows, "packages": package_versions()})


def describe(name: str, images: Sequence[Image], training: Sequence[Image]) -> dict[str, str | float | None]:
    """Return one row; a distance that cannot be had (few pictures, a set to itself) is None."""
    itself = images is training
    first, second = (training[::2], training[1::2]) if itself else (images, training)
    enough = len(first) > 2 * THUMBNAIL**2 * 3
    distance = frechet_distance(pixels(first, THUMBNAIL), pixels(second, THUMBNAIL)) if enough else None
    return {
        "faces": name,
        "count": len(images),
        "thumbnails": distance,
        "colourfulness": float(np.median([colourfulness(image) for image in images])),
        "sharpness": float(np.median([sharpness(image) for image in images])),
        **faces_in(images[:JUDGED]),
        "nearest": None if itself else nearest(images, training),
    }


def faces_in(images: Sequence[Image]) -> dict[str, float]:
    """Return the share of pictures that show a face, and how alike the eyes of these are (median)."""
    detector = CenterFace()
    found = [(image, aligned_face(image, detector)) for image in progress(images, desc="detector")]
    alike = [eyes_alike(image, face) for image, face in found if face is not None]
    return {"face": len(alike) / len(images), "eyes": float(np.median(alike or [0.0]))}


def pixels(images: Sequence[Image], side: int) -> Pixels:
    """Return pictures reduced to ``side`` pixels, float64 [N, side * side * 3] in [0, 255]."""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float64)


def nearest(images: Sequence[Image], training: Sequence[Image]) -> float:
    """Return the median RMS distance to the nearest training face or its mirror image, grey levels."""
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in training]
    known = pixels([*training, *mirrored], COMPARED)
    asked = pixels(images, COMPARED)
    square = (asked**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None] - 2 * asked @ known.T
    return float(np.median(np.sqrt(np.maximum(square.min(axis=1), 0) / known.shape[1])))


if __name__ == "__main__":
    main()
