"""How vivid a colouring network is, and whether its colours lie where they belong: beside the truth's.

``python benchmarks/colour_quality.py --faces /path/to/portraits [--weights demo-color FILE ...]``

For each network, and for the truth itself, in fp32 at the network's size:

- psnr: mean, dB; colourfulness: mean in percent of the truths' mean, and its standard deviation;
- distance: sliced Wasserstein distance of all pixels' CIELAB (a, b) to the truths', and its mean over five
  bands of lightness, in which colours of shadows cannot stand for those of lights;
- lips, eyes: percent of the faces whose lips are redder than their cheeks (nearer to red in hue, by at least
  2 degrees) and whose whites of the eyes are neutral (the least coloured fifth of the eyes has less than half
  of the cheeks' chroma), at the points that the face detector finds in the truth;
- variation: total variation of (a, b) inside the face in percent of the truth's; blotches raise it.

A second table shows the same networks on faces of light and of dark skin, by the truth's cheeks: PSNR,
colourfulness, and how far the cheeks' median colour is from the truth's in lightness and in (a, b), with the
mean direction of the latter. Skin is sorted as in notebook 05.

Rows and a sheet of faces (grey, each network, truth) go to ``outputs/benchmarks/colour_quality.json`` and
``.png``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd
from colour_tradeoff import colour
from numpy.typing import NDArray

from gpenlib.architecture.checkpoints import load_weights
from gpenlib.data.faces import open_folder
from gpenlib.errors.compare import ITA_GROUPS, ITA_LIMITS, typology_angle
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.images import Image, resize, to_grey, write_image
from gpenlib.metrics import LabArray, colourfulness, finite_psnr, to_lab
from gpenlib.photos.find import EYES, MOUTH, NOSE, CenterFace, Points, find_faces

DIRECTIONS, QUANTILES = 32, 2000
BANDS = (0, 20, 40, 60, 80, 101)  # of CIELAB lightness, white in the last
SHOWN, GAP = 12, 6  # columns of the sheet; pixels between its groups
Pixels = NDArray[np.float64]


def main() -> None:
    """Colour the faces with every network, print and write the rows and the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", required=True, help="folder of aligned faces")
    parser.add_argument("--weights", nargs="+", default=["demo-color"], help="names or weights files")
    options = parser.parse_args()

    answers: dict[str, list[Image]] = {}
    for name in options.weights:
        answers[name], truths = colour(load_weights(name).model, options.faces)
    points = points_of(options.faces, len(truths[0]))
    true_labs = [to_lab(truth) for truth in truths]
    rows = [
        {"outputs": name, **score(images, truths, true_labs, points)}
        for name, images in (answers | {"truth": truths}).items()
    ]
    found = sum(some is not None for some in points)
    tones = [
        row for name, images in answers.items() for row in by_tone(name, images, truths, true_labs, points)
    ]
    for table in (rows, tones):
        print(pd.DataFrame(table).to_string(index=False, float_format="{:.2f}".format))
    print(f"{len(truths)} faces; lips, eyes and variation: the {found} of them that the detector finds")
    target = repository_root() / "outputs" / "benchmarks" / "colour_quality.json"
    write_json(target, {"rows": rows, "tones": tones, "packages": package_versions()})
    write_image(target.with_suffix(".png"), sheet([[to_grey(t) for t in truths], *answers.values(), truths]))


def points_of(folder: str, size: int) -> list[Points | None]:
    """Return the detector's points of each face at a network's size; None where it finds no face."""
    faces, detector, result = open_folder(folder), CenterFace(), []
    for index in range(len(faces)):
        image = faces.read(index)
        found = find_faces(image, detector)
        largest = max(found, key=lambda face: face.side, default=None)
        result.append(None if largest is None else largest.points * (size / len(image)))
    return result


def score(
    images: Sequence[Image],
    truths: Sequence[Image],
    true_labs: Sequence[LabArray],
    points: Sequence[Points | None],
) -> dict[str, float]:
    """Return the figures of one network's answers."""
    labs = [to_lab(image) for image in images]
    vivid, true_vivid = ([colourfulness(image) for image in some] for some in (images, truths))
    everything, true = (np.concatenate([lab.reshape(-1, 3) for lab in some]) for some in (labs, true_labs))
    bands = []
    for low, high in itertools.pairwise(BANDS):
        some = [values[(values[:, 0] >= low) & (values[:, 0] < high), 1:] for values in (everything, true)]
        if all(map(len, some)):  # few pictures may have no white
            bands.append(wasserstein(*some))
    seen = [(lab, where) for lab, where in zip(labs, points, strict=True) if where is not None]
    parts = np.array([parts_of(lab, where) for lab, where in seen])
    rough = [
        sum(variation(lab, where) for lab, where in zip(some, points, strict=True) if where is not None)
        for some in (labs, true_labs)
    ]
    scores = [finite_psnr(image, truth) for image, truth in zip(images, truths, strict=True)]
    return {
        "psnr": float(np.mean(scores)),
        "colourfulness_percent": float(100 * np.mean(vivid) / np.mean(true_vivid)),
        "colourfulness_std": float(np.std(vivid)),
        "distance": wasserstein(everything[:, 1:], true[:, 1:]),
        "distance_by_lightness": float(np.mean(bands)),
        "lips_percent": float(100 * parts[:, 0].mean()),
        "eyes_percent": float(100 * parts[:, 1].mean()),
        "variation_percent": float(100 * rough[0] / rough[1]),
    }


def wasserstein(one: Pixels, other: Pixels) -> float:
    """Return the sliced Wasserstein distance (Bonneel et al. 2015) of two sets of (a, b), [N, 2] each."""
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    distances = []
    for direction in np.stack([np.cos(angles), np.sin(angles)], axis=1):
        first, second = (np.quantile(values @ direction, levels) for values in (one, other))
        distances.append(np.abs(first - second).mean())
    return float(np.mean(distances))


def by_tone(
    name: str,
    images: Sequence[Image],
    truths: Sequence[Image],
    true_labs: Sequence[LabArray],
    points: Sequence[Points | None],
) -> list[dict[str, float | str]]:
    """Return the figures of one network's answers on faces of each skin tone, the darkest first."""
    faces = [
        (typology_angle(lab), finite_psnr(image, truth), colourfulness(image), colourfulness(truth),
         *(np.median(cheeks_of(to_lab(image), where), axis=0) - np.median(cheeks_of(lab, where), axis=0)))
        for image, truth, lab, where in zip(images, truths, true_labs, points, strict=True)
        if where is not None
    ]  # fmt: skip
    table = pd.DataFrame(faces, columns=["ita", "psnr", "vivid", "true", "L", "a", "b"])
    tones = pd.cut(table["ita"].astype(float), ITA_LIMITS, labels=ITA_GROUPS)
    return [
        {
            "outputs": name,
            "skin": str(tone),
            "faces": len(some),
            "psnr": some["psnr"].mean(),
            "colourfulness_percent": 100 * some["vivid"].mean() / some["true"].mean(),
            "cheeks_lightness": some["L"].abs().mean(),
            "cheeks_colour": np.hypot(some["a"], some["b"]).mean(),
            "redder": some["a"].mean(),
            "yellower": some["b"].mean(),
        }
        for tone, some in table.groupby(tones, observed=True)
    ]


def cheeks_of(lab: LabArray, points: Points) -> Pixels:
    """Return the CIELAB values of both cheeks, [N, 3]."""
    radius = 0.12 * between_eyes(points)
    return np.concatenate([inside(lab, [eye[0], points[NOSE][1]], radius) for eye in points[EYES]])


def between_eyes(points: Points) -> float:
    """Return the distance of the eyes in pixels, the unit of all lengths here."""
    return float(np.linalg.norm(points[EYES][1] - points[EYES][0]))


def parts_of(lab: LabArray, points: Points) -> tuple[bool, bool]:
    """Return whether the lips are redder than the cheeks, and whether the whites of the eyes are neutral."""
    eyes, mouth, cheeks = points[EYES], points[MOUTH].mean(axis=0), cheeks_of(lab, points)
    unit = between_eyes(points)
    lips = inside(lab, [mouth[0], mouth[1] + 0.03 * unit], 0.3 * unit, 0.15 * unit)
    both = np.concatenate([inside(lab, eye, 0.14 * unit) for eye in eyes])
    whites = np.quantile(np.hypot(both[:, 1], both[:, 2]), 0.2)
    hues = [np.degrees(np.arctan2(b, a)) for _, a, b in (np.median(part, axis=0) for part in (lips, cheeks))]
    chroma = np.hypot(*np.median(cheeks[:, 1:], axis=0))
    return bool(hues[0] < hues[1] - 2), bool(whites < 0.5 * chroma)


def inside(lab: LabArray, centre: Sequence[float] | Pixels, width: float, height: float = 0.0) -> Pixels:
    """Return the CIELAB values inside an ellipse of these half axes, by default a disc, [N, 3]."""
    return np.asarray(lab[_ellipse(lab, centre, width, height or width)], dtype=np.float64)


def _ellipse(
    lab: LabArray, centre: Sequence[float] | Pixels, width: float, height: float
) -> NDArray[np.bool_]:
    rows, columns = np.indices(lab.shape[:2])
    distance = ((columns - centre[0]) / width) ** 2 + ((rows - centre[1]) / height) ** 2
    return np.asarray(distance <= max(1.0, float(distance.min())))  # at least one pixel


def variation(lab: LabArray, points: Points) -> float:
    """Return the summed absolute differences of neighbouring (a, b) inside the face's ellipse."""
    eyes, mouth, unit = points[EYES], points[MOUTH], between_eyes(points)
    centre = 0.5 * (eyes.mean(axis=0) + mouth.mean(axis=0))
    face, chroma = _ellipse(lab, centre, 1.1 * unit, 1.4 * unit), lab[..., 1:]
    across = np.abs(np.diff(chroma, axis=1))[face[:, 1:]].sum()
    return float(across + np.abs(np.diff(chroma, axis=0))[face[1:]].sum())


def sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Return faces one above the other in all their versions, in columns, a line of white between groups."""
    side, groups = len(rows[1][0]), []
    for start in range(0, len(rows[0]), SHOWN):
        some = [row[start : start + SHOWN] for row in rows]
        lines = [np.concatenate([resize(image, side) for image in row], axis=1) for row in some]
        group, white = np.concatenate(lines), (255, 255, 255)
        missing = SHOWN * side - group.shape[1]  # of the last group
        groups.append(cv2.copyMakeBorder(group, 0, GAP, 0, missing, cv2.BORDER_CONSTANT, value=white))
    return np.concatenate(groups)


if __name__ == "__main__":
    main()
