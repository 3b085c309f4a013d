"""Faces: pictures by number, from folders, from one photograph or drawn from a prior; splits; the layout."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from gpenlib.architecture import Generator, load_generator
from gpenlib.architecture.checkpoints import weights_file
from gpenlib.architecture.inspect import draw_latents, generate, mean_latent, per_layer, to_pictures
from gpenlib.files import check_utf8, read_text, resolve_path, sha256, shown, whole_number
from gpenlib.images import (
    HEIF_SUFFIXES,
    LUMA,
    MOST_MP,
    SUFFIXES,
    FloatArray,
    Image,
    check_file,
    check_image,
    read_image,
)

Point = tuple[float, float]
Matrix = NDArray[np.float64]
CELEBA_FOLDER = "CelebA-HQ-img"  # the image folder inside a CelebAMask-HQ download
LEAST_FACE, MOST_ASPECT = 16, 4.0  # pixels of a face's side, below which there are no eyes; of its picture
S = TypeVar("S")
T = TypeVar("T")


class DataError(ValueError):
    """A data set that cannot be used; the message names the folder and what it lacks."""


@dataclass(frozen=True, eq=False)
class Faces:
    """An ordered collection of pictures that are read one at a time."""

    label: str  # what to write beside scores
    names: Sequence[str]  # one file-name-like word per picture
    read: Callable[[int], Image]  # uint8 RGB [H, W, 3] in the picture's own size
    digest: Callable[[int], str]  # hash of its content (kept, so that a file is read through once)
    beyond: Callable[[int], Faces] | None = None  # others than these, where faces have no end
    inputs: Faces | None = None  # what the network is given, in the same order, where nothing is degraded
    left_out: str = ""  # in words, the files that have no partner

    def __post_init__(self) -> None:
        # Partial functions, not closures, so that worker processes can take them
        object.__setattr__(self, "read", partial(_by_number, self.read, len(self.names), None))
        object.__setattr__(self, "digest", partial(_by_number, self.digest, len(self.names), {}))

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Iterable[int]) -> Faces:
        """Return the faces at some positions, in the given order."""
        chosen = tuple(indices)
        read, digest = partial(_at, self.read, chosen), partial(_at, self.digest, chosen)
        inputs = None if self.inputs is None else self.inputs.take(chosen)
        names = [self.names[index] for index in chosen]
        return replace(self, names=names, read=read, digest=digest, inputs=inputs)

    def __add__(self, other: Faces) -> Faces:
        """Return the faces of both, one after the other."""
        return Faces(
            f"{self.label}, then {other.label}",
            [*self.names, *other.names],
            partial(_either, self.read, other.read, len(self)),
            partial(_either, self.digest, other.digest, len(self)),
        )

    def combined_digest(self) -> str:
        """Return one hash over the contents of all and of their inputs, in order."""
        inputs = "" if self.inputs is None else self.inputs.combined_digest()
        return _hash("".join(self.digest(index) for index in range(len(self))) + inputs)

    def split(
        self, dataset_size: int, calib_size: int, calibration: Faces | None = None, seed: int = 0
    ) -> Split:
        """Choose the first faces for evaluation and random ones for calibration that share no content."""
        # Calibration comes from ``calibration``, else from the rest of these, else (no rest) from embedded,
        # if need be fewer than ``calib_size``; both sets are in the order of their source
        whole_number("dataset_size", dataset_size, 1)
        whole_number("calib_size", calib_size, 0)
        whole_number("seed", seed, 0)
        count = len(self)
        if count < dataset_size:
            there = f"there are {count} images ({'; '.join(filter(None, (self.label, self.left_out)))})"
            raise DataError(f"dataset_size={shown(dataset_size)}, but {there}: ask for {count} or fewer")
        evaluation = self.take(range(dataset_size))
        if calib_size == 0:
            return Split(evaluation, self.take(()), "no calibration images were asked for")

        scored = frozenset(evaluation.digest(index) for index in range(dataset_size))
        if calibration is not None:
            drawn, note = _draw(calibration, calib_size, seed, scored)
            if not len(drawn):
                raise DataError(
                    f"calibration ({calibration.label}): all {len(calibration)} images are evaluation images "
                    "too; name another calib_dir, or none to use images beyond dataset_size"
                )
            return Split(evaluation, drawn, f"calibration from {calibration.label}: {note}")

        drawn, note = _draw(self.take(range(dataset_size, count)), calib_size, seed, scored)
        if len(drawn):
            return Split(evaluation, drawn, f"calibration from the images beyond dataset_size: {note}")
        reason = "no image is left beyond dataset_size" + (f" ({note})" if count > dataset_size else "")
        drawn, note = _draw((self.beyond or embedded_faces)(calib_size), calib_size, seed, scored)
        return Split(evaluation, drawn, f"calibration from the embedded images, as {reason}: {note}")


class Split(NamedTuple):
    """Faces that are scored, faces that set quantisation ranges, and in words where the latter come from."""

    evaluation: Faces
    calibration: Faces
    note: str


def _draw(faces: Faces, count: int, seed: int, excluded: frozenset[str]) -> tuple[Faces, str]:
    """Draw ``count`` of the faces whose digest is not excluded, hashing no more than needed; add a note."""
    chosen: list[int] = []
    dropped: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(faces)).tolist():
        if len(chosen) == count:
            break
        (dropped if faces.digest(index) in excluded else chosen).append(index)
    note = f"{len(chosen)} of {len(faces)}"
    if len(chosen) < len(faces):
        note += f", drawn with seed {seed}"
    if dropped:
        copies = few([faces.names[index] for index in sorted(dropped)])
        note += f"; dropped {len(dropped)} with the content of an evaluation image ({copies})"
    if len(chosen) < count:
        note += f"; fewer than the {count} asked for"
    return faces.take(sorted(chosen)), note


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first names, with dots if there are more."""
    return ", ".join([*names[:count], *["..."][: len(names) - count]])


def _by_number(function: Callable[[int], T], count: int, kept: dict[int, T] | None, index: int) -> T:
    """Call a function of a face's number, refusing others; with ``kept`` each result is computed once."""
    if not 0 <= index < count:
        raise IndexError(f"face {index}: there are {count}, counted from 0")
    if kept is None:
        return function(index)
    if index not in kept:
        kept[index] = function(index)
    return kept[index]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _at(function: Callable[[S], T], items: Sequence[S], index: int) -> T:
    return function(items[index])


def _either(first: Callable[[int], T], second: Callable[[int], T], border: int, index: int) -> T:
    return first(index) if index < border else second(index - border)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key under which ``2.jpg`` comes before ``10.jpg``, and which no other name has."""
    # Every second part is a number to int(); what isdigit() takes for one may be a superscript
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts)], name


def picture_files(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """List a folder's picture files in natural order; hidden ones, such as macOS's ``._x.jpg``, are none."""
    # Pipes and dangling links are listed: who reads them says what they are, and none goes missing unseen
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    files = [path for path in shown if path.suffix.lower() in suffixes and not path.is_dir()]
    for path in files:
        check_utf8(path, DataError)
    return sorted(files, key=lambda path: natural_key(path.name))


def read_face(path: Path, most_megapixels: float = MOST_MP) -> Image:
    """Read the picture of one face; DataError if it is too small or too long to be one."""
    image = read_image(path, most_megapixels)
    least, longest = sorted(image.shape[:2])
    if least < LEAST_FACE or longest > MOST_ASPECT * least:
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        need = f"a face has {LEAST_FACE} or more a side, one at most {MOST_ASPECT:g} times the other"
        raise DataError(f"{path}: {size}; {need}: crop or remove it")
    return image


def file_digest(path: Path, most_megapixels: float = MOST_MP) -> str:
    """Return the hash of a picture file; ImageError where reading it would never end."""
    check_file(path, most_megapixels).close()
    return sha256(path)


def open_folder(folder: str | Path, suffix: str | None = None, most_megapixels: float = MOST_MP) -> Faces:
    """List the faces in ``folder``, or in its ``CelebA-HQ-img``; ``suffix`` takes only such files."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / CELEBA_FOLDER).is_dir():
        folder = folder / CELEBA_FOLDER
    suffixes = SUFFIXES if suffix is None else ("." + suffix.lower().lstrip("."),)
    files = picture_files(folder, suffixes)
    if not files:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())[:5]
        hint = f"; it has sub-folders: {', '.join(inner)}" if inner else ""
        if suffix is None and picture_files(folder, HEIF_SUFFIXES):
            hint += "; its HEIC pictures need `pip install pillow-heif`"
        raise DataError(f"{folder}: no image with suffix {', '.join(suffixes)}{hint}")
    names = [path.name for path in files]
    read = partial(read_face, most_megapixels=most_megapixels)
    digest = partial(file_digest, most_megapixels=most_megapixels)
    return Faces(f"folder {folder.name}", names, partial(_at, read, files), partial(_at, digest, files))


def pair_up(inputs: Faces, truths: Faces) -> Faces:
    """Return the truths that have an input of the same stem, in their order, with these inputs."""
    given, answers = _by_stem(inputs), _by_stem(truths)
    common = [stem for stem in answers if stem in given]
    if not common:
        raise DataError(
            f"no input ({inputs.label}, such as {inputs.names[0]}) has the stem of a truth ({truths.label}, "
            f"such as {truths.names[0]}): rename the files so that the stems of a pair agree (case and "
            "suffix may differ), or name other folders as input_dir and data_dir"
        )
    lonely = {
        "truths without an input": [truths.names[answers[stem]] for stem in answers if stem not in given],
        "inputs without a truth": [inputs.names[given[stem]] for stem in given if stem not in answers],
    }
    return replace(
        truths.take([answers[stem] for stem in common]),
        label=f"{truths.label}, inputs from {inputs.label}",
        inputs=inputs.take([given[stem] for stem in common]),
        left_out="; ".join(f"{what}: {len(names)} ({few(names)})" for what, names in lonely.items() if names),
    )


def _by_stem(faces: Faces) -> dict[str, int]:
    """Return positions by stem in lower case; DataError names two files that share one."""
    places: dict[str, int] = {}
    for index, name in enumerate(faces.names):
        first = places.setdefault(Path(name).stem.casefold(), index)
        if first != index:
            raise DataError(
                f"{faces.label}: {faces.names[first]} and {name} have the same stem, so that it is not "
                "certain which of them makes a pair; remove or rename one"
            )
    return places


# The FFHQ layout (Karras et al. 2019, ``recreate_aligned_images``): a square crop turned with the face. Its
# upper side is parallel to the mean of the eye line and the perpendicular of the eye-to-mouth line.
# Coordinates are (x, y) in pixels with the centre of the first pixel at (0, 0), as OpenCV counts them.

EYE_DISTANCES_PER_SIDE, EYE_TO_MOUTH_DISTANCES_PER_SIDE = 4.0, 3.6  # the larger of both is the side
CENTRE_TOWARDS_MOUTH = 0.1  # part of the way from the eyes to the mouth


class AlignError(ValueError):
    """Landmarks that do not describe a face; the message holds their values."""


@dataclass(frozen=True)
class Landmarks:
    """Four points of a face in pixels; left and right are those of the picture, not of the person."""

    left_eye: Point  # centre of the eye opening (mean of the contour, not the iris)
    right_eye: Point
    left_mouth: Point  # outer corner
    right_mouth: Point

    def __post_init__(self) -> None:
        points = np.asarray(astuple(self), dtype=np.float64)
        if points.shape != (4, 2) or not np.isfinite(points).all():
            raise AlignError(f"{self}: expected four finite points (x, y)")
        _, across, down = self.axes()
        if across[0] * down[1] - across[1] * down[0] <= 1e-6:
            need = "left and right are those of the picture, and the mouth lies off the line through the eyes"
            raise AlignError(f"{self}: not a face ({need})")

    def axes(self) -> tuple[Matrix, Matrix, Matrix]:
        """Return the middle of the eyes, the way from left to right eye, and that to the mouth's middle."""
        left_eye, right_eye, left_mouth, right_mouth = np.asarray(astuple(self), dtype=np.float64)
        centre = 0.5 * (left_eye + right_eye)
        return centre, right_eye - left_eye, 0.5 * (left_mouth + right_mouth) - centre


def crop_side(landmarks: Landmarks) -> float:
    """Return the side of the FFHQ square in picture pixels."""
    _, across, down = landmarks.axes()
    eyes = EYE_DISTANCES_PER_SIDE * float(np.linalg.norm(across))
    return max(eyes, EYE_TO_MOUTH_DISTANCES_PER_SIDE * float(np.linalg.norm(down)))


def ffhq_matrix(landmarks: Landmarks, size: int) -> Matrix:
    """Return the similarity transform from picture to crop, float64 [2, 3]: crop = matrix @ (x, y, 1)."""
    if size < 1:
        raise AlignError(f"size={size}: a crop has at least 1 pixel")
    centre, across, down = landmarks.axes()
    along = across + np.array([down[1], -down[0]])  # the upper side of the square
    along /= np.linalg.norm(along)
    scale = size / crop_side(landmarks)
    turn = scale * np.array([[along[0], along[1]], [-along[1], along[0]]])  # [2, 2]
    centre = centre + CENTRE_TOWARDS_MOUTH * down
    middle = (size - 1) / 2  # the middle of the crop, pixel centres being whole numbers
    return np.column_stack([turn, middle - turn @ centre])


def warp(image: Image, matrix: Matrix, size: int) -> Image:
    """Resample a picture through an affine transform into uint8 RGB [size, size, 3]; outside is mirrored."""
    # Reductions are taken at a whole multiple of the resolution and averaged over areas: they do not alias
    check_image(image)
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))  # crop pixels per picture pixel
    factor = max(1, math.ceil(1 / scale - 1e-3))
    if factor >= 4:  # a face of thousands of pixels: not resampled at its full size
        reduced, moved = _reduce(image, matrix, size, factor // 2)
        if reduced.size < image.size / 2:
            return warp(reduced, moved, size)
    finer = factor * matrix
    finer[:, 2] += (factor - 1) / 2  # pixel centres: crop 0 is the middle of the finer 0 .. factor - 1
    flags = cv2.INTER_CUBIC if factor == 1 else cv2.INTER_LINEAR
    side = factor * size
    # One pixel has no mirror image of the others: OpenCV would look for it for ever
    border = cv2.BORDER_REFLECT_101 if min(image.shape[:2]) > 1 else cv2.BORDER_REPLICATE
    large = cv2.warpAffine(image, finer, (side, side), flags=flags, borderMode=border)
    if factor > 1:
        large = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(large, dtype=np.uint8)


def _reduce(image: Image, matrix: Matrix, size: int, factor: int) -> tuple[Image, Matrix]:
    """Return the part of a picture that a crop shows, reduced by areas, and the crop's transform from it."""
    inverse = np.linalg.inv(matrix[:, :2])
    reach = np.array([[-1, -1], [-1, size], [size, -1], [size, size]], np.float64)
    corners = (reach - matrix[:, 2]) @ inverse.T
    sides = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(corners.min(axis=0)), 0, sides - 1).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1, low + 1, sides).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    small = [max(1, round(length / factor)) for length in (part.shape[1], part.shape[0])]
    reduced = np.asarray(cv2.resize(part, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    ratio = (high - low) / small  # picture pixels per reduced pixel, along x and y
    turn = matrix[:, :2] * ratio
    return reduced, np.column_stack([turn, matrix[:, :2] @ (0.5 * ratio - 0.5 + low) + matrix[:, 2]])


def align(image: Image, landmarks: Landmarks, size: int) -> Image:
    """Cut a face out of uint8 RGB in FFHQ layout, uint8 RGB [size, size, 3]."""
    return warp(image, ffhq_matrix(landmarks, size), size)


# Photographs that come with libraries: NASA's portrait of Eileen Collins and the US Navy's of Grace Hopper
# (both public domain). Variations of the first are the embedded faces: image k is the same picture at every
# size and however many are asked for. The FFHQ squares are 176 and 336 pixels wide in the photographs, so at
# 512 the images are softer than real data.

EMBEDDED_VERSION = "astronaut variations 1"  # change it whenever the same Variation gives other pixels
SEED = 20210511
MOST_MADE = 200_000  # faces that are made here: names and digests of all are kept
NUMBERS_ASKED = "dataset_size, calib_size or get_data_num"
FAR = 10_000  # calibration faces beyond those at hand begin at a multiple of this number

# Read off an eightfold enlargement of scikit-image's astronaut (512 x 512), to about half a pixel.
ASTRONAUT_LANDMARKS = Landmarks(
    left_eye=(203.0, 101.5), right_eye=(247.0, 103.2), left_mouth=(203.3, 140.0), right_mouth=(246.3, 140.3)
)

# Read off enlargements of matplotlib's grace_hopper.jpg (512 x 600) in the same way.
HOPPER_LANDMARKS = Landmarks(
    left_eye=(222.0, 190.5), right_eye=(306.0, 187.0), left_mouth=(229.5, 280.3), right_mouth=(304.0, 277.5)
)


@dataclass(frozen=True)
class Variation:
    """How one embedded image differs from the photograph."""

    mirror: bool = False
    turn: float = 0.0  # degrees, positive clockwise in the picture
    scale: float = 1.0  # enlargement of the face
    shift: tuple[float, float] = (0.0, 0.0)  # to the right and down, as a part of the side
    exposure: float = 0.0  # stops, in linear light
    temperature: float = 0.0  # stops by which red is raised and blue lowered; negative is cooler
    gamma: float = 1.0  # exponent on display values; above 1 is darker in the middle tones
    contrast: float = 1.0  # slope around the middle tone
    saturation: float = 1.0  # factor on the distance from grey, which keeps the hue
    blur: float = 0.0  # standard deviation of a Gaussian, as a part of the side


def variation(index: int) -> Variation:
    """Return the variation of image ``index``; 0 is the photograph itself. It depends on ``index`` alone."""
    if index == 0:
        return Variation()
    rng = np.random.default_rng((SEED, index))
    draw = rng.uniform
    return Variation(
        mirror=bool(rng.random() < 0.5),
        turn=draw(-5.0, 5.0),
        scale=draw(0.94, 1.08),
        shift=(draw(-0.025, 0.025), draw(-0.025, 0.025)),
        exposure=draw(-0.45, 0.18),
        temperature=draw(-0.11, 0.11),
        gamma=draw(0.90, 1.12),
        contrast=draw(0.90, 1.10),
        saturation=draw(0.85, 1.12),
        blur=draw(0.3, 1.0) * (0.7 / 256) if rng.random() < 0.3 else 0.0,
    )


def embedded_faces(count: int, size: int = 512) -> Faces:
    """Return faces that need no download: scikit-image's ``astronaut`` in FFHQ layout and its variations."""
    if size < 16 or not _can_be_made(count):
        need = f"needed are 1 to {MOST_MADE} and at least 16"
        raise DataError(f"embedded images: count={shown(count)}, size={size}; {need}: lower {NUMBERS_ASKED}")
    what = "variations of one public-domain photograph"
    label = f"embedded: {what}; scores show that the pipeline works, not how good the model is"
    names = [f"astronaut_{index:04d}.png" for index in range(count)]
    read, digest = partial(_embedded_face, size), partial(_embedded_digest, size)
    return Faces(label, names, read, digest, partial(_embedded_beyond, count, size))


def _can_be_made(count: int) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MOST_MADE


def _embedded_face(size: int, index: int) -> Image:
    return apply(variation(index), size)


def _embedded_digest(size: int, index: int) -> str:
    """Hash everything that decides the pixels, without making them."""
    how = (variation(index), size, ASTRONAUT_LANDMARKS)
    return _hash(f"{EMBEDDED_VERSION}|{index}|{how}|{_photograph()[1]}")


def _embedded_beyond(used: int, size: int, count: int) -> Faces:
    """Return embedded faces from the first multiple of ``FAR`` on that is above all ``used`` ones."""
    first = FAR * (1 + used // FAR)
    return embedded_faces(first + count, size).take(range(first, first + count))


def apply(how: Variation, size: int) -> Image:
    """Return the photograph's FFHQ crop, varied: uint8 RGB [size, size, 3]."""
    # One resampling: turning and shifting bring in real surroundings, and nothing is interpolated twice
    moved = warp(_photograph()[0], variation_matrix(how, size), size)
    if how == Variation():
        return moved
    toned: FloatArray = np.asarray(cv2.LUT(moved, _tone_tables(how)), dtype=np.float32)
    grey = toned @ LUMA  # [H, W]
    toned *= how.saturation
    toned += ((1 - how.saturation) * grey)[:, :, None]
    if how.blur:
        toned = np.asarray(cv2.GaussianBlur(toned, (0, 0), how.blur * size), dtype=np.float32)
    return np.clip(np.rint(toned), 0, 255).astype(np.uint8)


def variation_matrix(how: Variation, size: int) -> Matrix:
    """Return the transform from the photograph to the varied crop, float64 [2, 3], in pixels."""
    angle = np.deg2rad(how.turn)
    cosine, sine = how.scale * np.cos(angle), how.scale * np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    if how.mirror:
        turn = turn @ np.diag([-1.0, 1.0])
    middle = np.full(2, (size - 1) / 2)
    offset = middle - turn @ middle + size * np.asarray(how.shift)
    base = ffhq_matrix(ASTRONAUT_LANDMARKS, size)
    return np.column_stack([turn @ base[:, :2], turn @ base[:, 2] + offset])


def _tone_tables(how: Variation) -> FloatArray:
    """Return the tone curve of each channel over the 256 levels, float32 [1, 256, 3] in [0, 255]."""
    levels = np.arange(256) / 255.0
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)  # sRGB
    stops = how.exposure + how.temperature * np.array([1.0, 0.0, -1.0])
    exposed = np.clip(linear[:, None] * 2.0**stops, 0.0, 1.0)  # [256, 3]
    display = np.where(exposed <= 0.0031308, exposed * 12.92, 1.055 * exposed ** (1 / 2.4) - 0.055)
    toned = display**how.gamma
    # An S curve with fixed ends: its slope is `contrast` in the middle, and nothing new is clipped.
    toned = toned + (how.contrast - 1) * 4 * toned * (1 - toned) * (toned - 0.5)
    return np.asarray(255.0 * np.clip(toned, 0.0, 1.0), dtype=np.float32)[None]


@lru_cache(maxsize=1)
def _photograph() -> tuple[Image, str]:
    """Return scikit-image's astronaut, uint8 RGB [512, 512, 3], and the SHA-256 of its pixels."""
    from skimage import data  # imported here: most runs bring their own images

    photograph: Image = np.asarray(data.astronaut(), dtype=np.uint8)
    photograph.setflags(write=False)  # it is shared by all callers
    return photograph, hashlib.sha256(photograph.tobytes()).hexdigest()


@lru_cache(maxsize=1)
def _hopper() -> tuple[Image, str]:
    """Return matplotlib's Grace Hopper, uint8 RGB [600, 512, 3], and the SHA-256 of its pixels."""
    from matplotlib import cbook  # imported here: most runs bring their own images

    photograph = read_image(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    photograph.setflags(write=False)
    return photograph, hashlib.sha256(photograph.tobytes()).hexdigest()


def whole_photographs() -> dict[str, Image]:
    """Return two public-domain photographs, whole, by name; they lie in installed packages."""
    return {"astronaut": _photograph()[0], "grace_hopper": _hopper()[0]}


def photographs(size: int = 512) -> Faces:
    """Return the two photographs, ``size`` pixels wide in FFHQ layout, which lead the default data."""
    digest = partial(_hopper_digest, size)
    second = Faces("Grace Hopper", ["grace_hopper.png"], partial(_hopper_face, size), digest)
    label = "embedded: two public-domain photographs"
    return replace(embedded_faces(1, size) + second, label=label)


def _hopper_face(size: int, index: int) -> Image:
    return align(_hopper()[0], HOPPER_LANDMARKS, size)


def _hopper_digest(size: int, index: int) -> str:
    return _hash(f"{size}|{HOPPER_LANDMARKS}|{_hopper()[1]}")


# What a ``data_dir`` opens: a folder, samples of a trained GAN prior, or variations of a photograph.

EMBEDDED, PRIOR, DEMO_PRIOR = "embedded", "prior", "demo-prior"
TRUNCATION = 0.7  # StyleGAN's own choice for its samples
NOISE = 0.0  # a prior that learned for a short time makes specks of it
MOST_CHOSEN = 1 << 20  # bytes of a file of samples that were chosen
PRIOR_VERSION = "prior faces 1"  # change it whenever the same prior and index give other pixels
_mean_latent = lru_cache(maxsize=2)(mean_latent)  # of thousands: only those pay who read a face


class Chosen(BaseModel):
    """Numbers of the samples of a prior that serve as faces, as ``scripts/choose_samples.py`` writes them."""

    model_config = ConfigDict(strict=True, frozen=True)
    weights_sha256: str
    truncation: float
    noise: float
    numbers: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1, max_length=MOST_MADE)

    def number(self, index: int) -> int:
        """Return the number of sample ``index``; there is no choice among those behind the last one."""
        beyond = index - len(self.numbers)
        return self.numbers[index] if beyond < 0 else max(self.numbers) + 1 + beyond


def samples_file(weights: Path) -> Path:
    """Return where it stands which samples of the prior in ``weights`` were chosen, if any were."""
    return weights.with_suffix(".samples.json")


def chosen_samples(weights: Path, digest: str) -> Chosen | None:
    """Return which samples of a prior were chosen, if a file beside its weights says so."""
    beside = samples_file(weights)
    if not beside.is_file():
        return None
    try:
        chosen = Chosen.model_validate_json(read_text(beside, MOST_CHOSEN))
    except ValueError as error:  # pydantic's are, too
        raise DataError(f"{beside}: not samples that were chosen ({error!s:.200})") from None
    if chosen.weights_sha256 != digest:
        raise DataError(f"{beside}: chosen from other weights; remove it, or choose anew")
    return chosen


def prior_faces(name: str, count: int, truncation: float | None = None, noise: float | None = None) -> Faces:
    """Return samples of the GAN prior in a weights file; face k depends on prior, truncation, noise and k.

    Without truncation and noise they are the samples that were chosen, if any were, else drawn with
    ``TRUNCATION`` and ``NOISE``.
    """
    path = weights_file(name)
    if not path.is_file():
        raise DataError(f"{PRIOR}:{name}: {path} does not exist; name the weights of a trained prior")
    digest = sha256(path)
    chosen = chosen_samples(path, digest) if truncation is None and noise is None else None
    if chosen:
        truncation, noise = chosen.truncation, chosen.noise
    truncation = TRUNCATION if truncation is None else truncation
    noise = NOISE if noise is None else noise
    if not _can_be_made(count) or not 0 < truncation <= 1 or not 0 <= noise <= 1:
        values = f"count={shown(count)}, truncation={truncation}, noise={noise}"
        allowed = f"allowed are 1 to {MOST_MADE}, (0, 1] and [0, 1]"
        raise DataError(f"faces of a prior: {values}; {allowed}: lower {NUMBERS_ASKED}")
    number: Callable[[int], int] = chosen.number if chosen else int
    picked = ", chosen by a face detector and the discriminator" if chosen else ""
    label = (
        f"samples of the prior {path.stem}, truncation {truncation:g}, noise {noise:g}{picked}; "
        "in-distribution: scores show how weights do on faces like those the prior was trained on"
    )
    how = f"{PRIOR_VERSION}|{digest}|{truncation}|{noise}"
    names = [f"prior_{index:04d}.png" for index in range(count)]
    read = partial(_prior_face, load_generator(path), truncation, noise, number)
    return Faces(label, names, read, partial(_prior_digest, how, number))


def _prior_face(
    prior: Generator, truncation: float, noise: float, number: Callable[[int], int], index: int
) -> Image:
    with torch.inference_mode():
        w = torch.lerp(_mean_latent(prior), draw_latents(prior, 1, number(index)), truncation)
        return to_pictures(generate(prior, per_layer(prior, w), number(index), noise))[0]


def _prior_digest(how: str, number: Callable[[int], int], index: int) -> str:
    return _hash(f"{how}|{number(index)}")


def open_faces(data_dir: str | None, needed: int, size: int = 512, most_megapixels: float = MOST_MP) -> Faces:
    """Open what a ``data_dir`` names, with ``needed`` faces where there is no end of them.

    A folder, relative to the repository root; ``prior:FILE`` for samples of a generator's weights, ``prior``
    for those of ``demo-prior``; ``embedded`` for variations of one photograph, ``size`` pixels wide; empty or
    None for the two :func:`photographs`, then samples of ``demo-prior``.
    """
    kind, _, name = (data_dir or "").partition(":")
    if kind == PRIOR:
        return prior_faces(name or DEMO_PRIOR, needed)
    if data_dir == EMBEDDED or (not data_dir and needed <= 1):
        return embedded_faces(needed, size)
    if data_dir:
        return open_folder(resolve_path(data_dir), None, most_megapixels)
    pair = photographs(size)
    return pair + prior_faces(DEMO_PRIOR, needed - len(pair)) if needed > len(pair) else pair


def made_here(data_dir: str | None) -> bool:
    """Return whether the faces of ``data_dir`` are made by :func:`open_faces`: no test set for a network."""
    return not data_dir or data_dir == EMBEDDED or data_dir.partition(":")[0] == PRIOR
