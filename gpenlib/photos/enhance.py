"""Whole photographs: every face is found, run through the network and put back; the rest stays bit for bit.

Restoring puts the network's face in; what the photograph resolves finer than the network is kept. Colouring
takes the network's chroma alone and puts it under the photograph's own luma at full resolution: colour needs
few pixels, so that a network of 128 px colours a portrait of any size without making it softer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.data.faces import (
    CENTRE_TOWARDS_MOUTH,
    LEAST_FACE,
    Landmarks,
    Matrix,
    embedded_faces,
    ffhq_matrix,
    warp,
)
from gpenlib.data.tasks import find_task
from gpenlib.images import (
    LUMA,
    MOST_MP,
    FloatArray,
    Image,
    ImageError,
    from_levels,
    open_picture,
    to_grey,
    to_levels,
    to_seen,
    to_tensor,
)
from gpenlib.infer import Runtime
from gpenlib.metrics import colourfulness
from gpenlib.photos.find import CenterFace, Detector, PhotoFace, choose_faces, find_faces, square_corners
from gpenlib.photos.upscale import TiledUpscaler

Photo = NDArray[Any]  # uint8 or uint16 [H, W, 3]
FEATHER = 0.15  # of the square's side, over which a face fades into the photograph
MOST_PER_PIXEL = 4.0  # photograph pixels per network pixel: a larger face is left as it is when restoring
WIDER = ((1.6, 1 / 20), (2.4, 1 / 400))  # squares around the face's, and their weights, for `reach`
WIDE_FEATHER = 0.3  # of a wider square's side
FIELD_SIDES = (64, 640)  # least and most pixels of the field in which chroma is put together
EDGE = 12.0  # grey levels of luma: chroma follows steps that are higher (guided filter)
EDGE_REACH = 0.035  # radius of that filter as a part of the face's side
ROWS = 128  # of a photograph, put back at a time: memory does not grow with the face
COLOURS = 8.0  # colourfulness of the answer to a grey face from which a network is one that colours
# A photograph is black and white if at most this share of it has another chroma, by more grey levels, than
# the rest of the same luma. Sepia JPEGs have up to 0.09, dates printed on them too, 400 coloured faces 0.10
# and more, half of them above 0.44.
TONE_LEVELS, TONE_SHARE = 8.0, 0.12
UPSCALES = (1, 2, 4)


@dataclass(frozen=True, eq=False)
class EnhancedFace(PhotoFace):
    """A face, and what was made of it."""

    done: str = ""  # "restored", "coloured", or why it was left as it was
    shown: Image | None = None  # the network's input, uint8 RGB [in_size, in_size, 3]
    output: Image | None = None  # its answer, uint8 RGB [out_size, out_size, 3]

    @property
    def pasted(self) -> bool:
        """Whether the photograph was changed there."""
        return self.output is not None and not self.done.startswith("left")


@dataclass(frozen=True, eq=False)
class EnhancedPhoto:
    """What :func:`enhance_photo` made of a photograph."""

    image: Photo  # as the photograph was given; ``upscale`` times as high and wide
    faces: list[EnhancedFace]  # the largest first, in the given photograph's pixels
    note: str  # a sentence on what was done
    seconds: dict[str, float] = field(default_factory=dict)  # by step: find, run, upscale, paste


def enhance_photo(
    image: str | Path | Photo,
    runtime: Runtime,
    *,
    keep_luminance: bool | None = None,
    strength: float = 1.0,
    faces: str | int | Sequence[PhotoFace] = "all",
    upscale: int = 1,
    upscaler: str | Path | Callable[[Photo, int], Photo] | None = None,
    reach: float = 1.0,
    aligned: bool = False,
    task: str | None = None,
    monochrome: bool | None = None,
    detector: Detector | None = None,
    most_megapixels: float = MOST_MP,
) -> EnhancedPhoto:
    """Restore or colour every face of a photograph, and put the faces back.

    Parameters
    ----------
    image : path or array
        A picture file, or RGB, RGBA or grey, uint8 or uint16, [H, W, 3], [H, W, 4] or [H, W].
    runtime : Runtime
        See :func:`gpenlib.open_runtime`.
    keep_luminance : bool, optional
        Take the network's chroma alone: the luma (0.299 R + 0.587 G + 0.114 B) of every pixel stays within a
        grey level. Default: yes for a network that colours.
    strength : float
        0 leaves the photograph as it is, 1 takes the network's answer.
    faces : str, int or faces
        ``"all"``, ``"largest"``, a number (of the largest), a smallest side such as ``"64px"``, or
        faces that :func:`gpenlib.photos.find.find_faces` gave.
    upscale : {1, 2, 4}
        Enlarge the photograph, and put the faces back at that size.
    upscaler : path or callable, optional
        What enlarges: an ONNX file of a super-resolution network (see
        :class:`gpenlib.photos.upscale.TiledUpscaler`), or (photo, factor) -> photo. Default: Lanczos.
    reach : float
        How far colour goes beyond a face, in sides of its square: 1 to 2.4. Wider squares around the face are
        coloured as well, and their chroma fades out; for restoring it has no meaning.
    aligned : bool
        The picture is the square of one face already.
    task : str, optional
        ``"color"`` colours, another restores. Default: what the artefact says that its weights were trained
        for; where it does not, the network is asked: one that colours gives colour to a grey face.
    monochrome : bool, optional
        The photograph is black and white or toned, which restoring keeps. Default: looked at.
    detector : Detector, optional
        Default: CenterFace; :class:`gpenlib.photos.YuNet` opens a file of OpenCV's.
    most_megapixels : float
        Of a picture file; larger ones are refused.

    Returns
    -------
    EnhancedPhoto
        ``image`` has the given height, width (times ``upscale``), channels and type. Outside the faces'
        squares (``reach`` times as wide, where that counts) no bit is changed, unless it is enlarged.
        Without a face it is a copy, and ``note`` says so.

    Raises
    ------
    ImageError
        If the picture cannot be read or has another shape or type.
    ValueError
        If a parameter lies outside what is allowed.
    """
    for name, value, least, most in (("strength", strength, 0, 1), ("reach", reach, 1, WIDER[-1][0])):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name}={value!r}: must be a number in {least} to {most}")
    if not isinstance(upscale, int) or upscale not in UPSCALES:
        raise ValueError(f"upscale={upscale!r}: allowed are {', '.join(map(str, UPSCALES))}")
    if upscaler is not None and upscale == 1:
        raise ValueError("upscaler is given, but upscale=1 enlarges nothing: give 2 or 4")
    if keep_luminance not in (None, True, False):
        raise ValueError(f"keep_luminance={keep_luminance!r}: allowed are None, True, False")
    if task is not None:
        find_task(task)
    if isinstance(image, (str, Path)):
        opened = open_picture(image, most_megapixels)
        given = opened.pixels if opened.alpha is None else np.dstack([opened.pixels, opened.alpha])
    else:
        given = image
    photo, alpha = split_channels(given)
    seen = to_seen(photo, alpha)
    seconds: dict[str, float] = {}

    started = time.perf_counter()
    name = str(image) if isinstance(image, (str, Path)) else "image"
    found = _faces_of(seen, faces, aligned, detector, name)
    seconds["find"] = time.perf_counter() - started

    started = time.perf_counter()
    colouring = task == "color" if task else colours(runtime)
    keep = colouring if keep_luminance is None else keep_luminance
    mono = is_monochrome(seen, found) if monochrome is None else monochrome
    patches = [_make_patch(seen, face, runtime, colouring, keep, mono, reach, aligned) for face in found]
    seconds["run"] = time.perf_counter() - started

    started = time.perf_counter()
    large = photo.copy() if upscale == 1 else enlarge(photo, upscale, upscaler)
    if alpha is not None and upscale > 1:
        alpha = enlarge(alpha, upscale, None)
    seconds["upscale"] = time.perf_counter() - started

    started = time.perf_counter()
    _put_back(large, [patch for patch in patches if patch.face.pasted], upscale, strength)
    seconds["paste"] = time.perf_counter() - started
    made = [patch.face for patch in patches]
    if strength == 0:
        made = [replace(face, done="left as it was: strength is 0") for face in made]
    note = _note(made, reach, chosen=faces)
    return EnhancedPhoto(_join_channels(large, alpha, given), made, note, seconds)


def split_channels(image: Photo) -> tuple[Photo, Photo | None]:
    """Return RGB [H, W, 3] and alpha [H, W] or None of a grey, RGB or RGBA picture."""
    need = "expected a path, or an array of uint8 or uint16, [H, W, 3] RGB or 4 RGBA"
    if not isinstance(image, np.ndarray):
        raise ImageError(f"image: {type(image).__name__}, {need}")
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or 0 in image.shape:
        raise ImageError(f"image: {image.dtype} {image.shape}, {need}")
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2), None
    if image.shape[2] not in (3, 4):
        raise ImageError(f"image: {image.shape[2]} channels, expected 3 (RGB) or 4 (RGBA)")
    return image[:, :, :3], image[:, :, 3] if image.shape[2] == 4 else None


def _join_channels(photo: Photo, alpha: Photo | None, given: Photo) -> Photo:
    """Return the picture in the form in which it was given; a grey one that has got colour becomes RGB."""
    if alpha is not None:
        return np.dstack([photo, alpha])
    if given.ndim == 2 and (photo[..., :1] == photo).all():
        return np.ascontiguousarray(photo[..., 0])
    return photo


@lru_cache(maxsize=1)
def _default_detector() -> Detector:
    return CenterFace()


def _faces_of(
    seen: Image, faces: str | int | Sequence[PhotoFace], aligned: bool, detector: Detector | None, name: str
) -> list[PhotoFace]:
    if isinstance(faces, Sequence) and not isinstance(faces, str):
        return list(faces)
    if aligned:
        height, width = seen.shape[:2]
        if height != width or height < LEAST_FACE:
            need = f"aligned faces are square, {LEAST_FACE} pixels or more; without `aligned` faces are found"
            raise ImageError(f"{name}: {width} x {height} pixels; {need}")
        return [_whole(height)]
    choose_faces([], faces)  # a wrong value is refused before anything is looked for
    return choose_faces(find_faces(seen, detector or _default_detector()), faces)


def _whole(side: int) -> PhotoFace:
    """Return the face whose square is a whole picture: points where FFHQ's rule has them."""
    down = 0.25  # of the side, from eyes to mouth; the square's middle is a tenth of it below the eyes
    shape = [(-0.125, 0), (0.125, 0), (0, 0.55 * down), (-0.1, down), (0.1, down)]
    points = side * (np.array(shape) + np.array([0.5, 0.5 - CENTRE_TOWARDS_MOUTH * down])) - 0.5
    left, right, _, *mouth = (tuple(point) for point in points.tolist())
    return PhotoFace(points, 1.0, Landmarks(left, right, *mouth))


def colours(runtime: Runtime) -> bool:
    """Whether a network colours: what the artefact says, else what it makes of a grey face."""
    if runtime.task is None:  # asked once
        grey = to_grey(embedded_faces(1, runtime.in_size).read(0))
        answer = from_levels(to_levels(runtime(to_tensor(grey))))[0]
        runtime.task = "color" if colourfulness(answer) > COLOURS else "restore"
    return runtime.task == "color"


def is_monochrome(seen: Image, faces: Sequence[PhotoFace] = ()) -> bool:
    """Whether a photograph, and each of its faces, is black and white or toned: luma decides chroma."""
    # Small, so that the grain of the photograph and the blocks of a JPEG are averaged
    parts = [np.asarray(cv2.resize(seen, (96, 96), interpolation=cv2.INTER_AREA), np.uint8)]
    parts += [warp(seen, ffhq_matrix(face.landmarks, 64), 64) for face in faces]
    return all(_tone_share(part.reshape(-1, 3).astype(np.float32)) <= TONE_SHARE for part in parts)


def _tone_share(pixels: FloatArray) -> float:
    """Return the share of pixels [N, 3] whose chroma is not the median of their luma."""
    luma = pixels @ LUMA
    chroma, level = pixels - luma[:, None], (luma / 16).astype(int)
    off = 0
    for step in np.unique(level):
        own = chroma[level == step]
        off += int((np.abs(own - np.median(own, axis=0)).max(axis=1) > TONE_LEVELS).sum())
    return off / len(pixels)


@dataclass(frozen=True, eq=False)
class _Patch:
    """A face ready to be put back: what lies over its square."""

    face: EnhancedFace
    hard: bool  # the square is the whole picture: no fading
    levels: FloatArray | None = None  # the answer, float32 [S, S, 3] in [0, 255]
    base: FloatArray | None = None  # the photograph at that size, where finer detail is to be kept
    finer: float = 0.0  # share of the photograph's finer detail
    mono: bool = False
    chroma: _Chroma | None = None  # instead of levels


@dataclass(frozen=True, eq=False)
class _Chroma:
    """Chroma as a linear function of luma, place by place: ``slope * luma + offset``, float32 [F, F, 3]."""

    slope: FloatArray
    offset: FloatArray
    grown: float  # sides of the face's square that the field is wide


def _make_patch(
    seen: Image,
    face: PhotoFace,
    runtime: Runtime,
    colouring: bool,
    keep: bool,
    mono: bool,
    reach: float,
    aligned: bool,
) -> _Patch:
    """Run the network on a face."""
    marks, size = face.landmarks, runtime.out_size

    def run(grown: float) -> tuple[Image, FloatArray]:
        crop = warp(seen, grown_matrix(marks, runtime.in_size, grown), runtime.in_size)
        crop = to_grey(crop) if colouring else crop
        return crop, to_levels(runtime(to_tensor(crop)))[0]

    shown, levels = run(1.0)
    per_pixel = face.side / size
    done = "coloured" if colouring else "restored"
    if keep and mono and not colouring:
        done = "left as it was: black and white, and its luma is to be kept"
    if not keep and per_pixel > MOST_PER_PIXEL:
        done = f"left as it was: {face.side:.0f} px wide, and the network gives {size}"
    made = EnhancedFace(face.points, face.score, marks, done, shown, from_levels(levels))
    if not keep:
        base = warp(seen, ffhq_matrix(marks, size), size).astype(np.float32)
        finer = float(np.clip(4 * (per_pixel - 1), 0, 1))
        # A network that colours has given a black-and-white photograph its colours
        return _Patch(made, aligned, levels, base, finer, mono and not colouring)
    wider = [(grown, weight) for grown, weight in WIDER if grown <= reach + 1e-6 and not aligned]
    layers = [(1.0, 1.0, levels), *((grown, weight, run(grown)[1]) for grown, weight in wider)]
    return _Patch(made, aligned, chroma=_join_chroma(seen, face, layers))


def grown_matrix(landmarks: Landmarks, size: int, grown: float) -> Matrix:
    """Return the transform from the photograph to a crop ``grown`` times as wide as the FFHQ square."""
    matrix = ffhq_matrix(landmarks, size)
    middle = (size - 1) / 2
    matrix = matrix / grown
    matrix[:, 2] += middle * (1 - 1 / grown)
    return matrix


def _join_chroma(seen: Image, face: PhotoFace, layers: list[tuple[float, float, FloatArray]]) -> _Chroma:
    """Put the chroma of several squares together, and let it follow the photograph's edges."""
    grown = layers[-1][0]
    field = int(np.clip(grown * face.side, *FIELD_SIDES))
    matrix = grown_matrix(face.landmarks, field, grown)
    y, x = np.mgrid[:field, :field].astype(np.float32)
    sums = np.zeros((field, field, 3), np.float32)
    weights = np.full((field, field), 1e-9, np.float32)
    for wide, weight, levels in layers:
        size = len(levels)
        scale = size / field * grown / wide  # layer pixels per field pixel
        shift = (size - 1) / 2 - scale * (field - 1) / 2
        chroma = levels - (levels @ LUMA)[:, :, None]
        placed = _sample(chroma, np.array([[scale, 0, shift], [0, scale, shift]]), (field, field))
        u, v = ((scale * axis + shift + 0.5) / size for axis in (x, y))
        # The outermost lies under all others; where the field ends is decided when it is put back
        mask = np.ones_like(weights) if wide == grown else square_mask(u, v, WIDE_FEATHER)
        sums += (weight * mask)[:, :, None] * placed
        weights += weight * mask
    guide = warp(seen, matrix, field).astype(np.float32) @ LUMA
    radius = max(1, round(EDGE_REACH * field / grown))
    slope, offset = guided_filter(guide, sums / weights[:, :, None], radius, EDGE)
    return _Chroma(slope, offset, grown)


def guided_filter(
    guide: FloatArray, values: FloatArray, radius: int, edge: float
) -> tuple[FloatArray, FloatArray]:
    """Return slope and offset, [H, W, C], of the guided filter (He et al. 2010) that smooths values.

    ``slope * guide + offset`` keeps steps of the guide [H, W] above ``edge``, and smooths smaller ones.
    """

    def mean(array: FloatArray) -> FloatArray:
        window = (2 * radius + 1, 2 * radius + 1)
        return np.asarray(cv2.blur(array, window, borderType=cv2.BORDER_REFLECT_101), np.float32)

    middle, means = mean(guide), mean(values)
    variance = np.maximum(mean(guide * guide) - middle * middle, 0)
    covariance = mean(values * guide[:, :, None]) - means * middle[:, :, None]
    slope = np.asarray(covariance / (variance + edge * edge)[:, :, None], np.float32)
    return mean(slope), mean(np.asarray(means - slope * middle[:, :, None], np.float32))


def square_mask(u: FloatArray, v: FloatArray, feather: float) -> FloatArray:
    """Return a mask over a square's coordinates in [0, 1]: 0 at the border and outside, 1 inside, smooth."""
    inside = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)) / np.float32(feather)
    t = np.clip(inside, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _put_back(photo: Photo, patches: Sequence[_Patch], factor: int, strength: float) -> None:
    """Blend faces into a photograph, ``factor`` times as large as the one that they were found in."""
    unit = np.float32(1 if photo.dtype == np.uint8 else 257)

    def blend(top: int) -> None:
        rows = photo[top : top + ROWS]
        pieces = [piece for patch in patches if (piece := _Piece.of(patch, rows.shape, top, factor))]
        if not pieces:
            return
        columns = slice(min(p.columns.start for p in pieces), max(p.columns.stop for p in pieces))
        rows = rows[:, columns]
        levels = rows.astype(np.float32) / unit
        change, nearness = np.zeros_like(levels), np.full(rows.shape[:2], 1e-9, np.float32)
        touched = np.zeros(rows.shape[:2], bool)
        places = [slice(p.columns.start - columns.start, p.columns.stop - columns.start) for p in pieces]
        for piece, place in zip(pieces, places, strict=True):
            nearness[:, place] += piece.nearness
        luma = levels @ LUMA
        for piece, place in zip(pieces, places, strict=True):
            # Where squares overlap, each pixel belongs to the face that it is nearest to
            mask = np.float32(strength) * piece.mask * (piece.nearness / nearness[:, place])
            change[:, place] += piece.change(levels[:, place], mask)
            touched[:, place] |= mask > 0
        levels += change
        if patches[0].chroma is not None:  # after all faces: what is clipped in one channel changes the luma
            chroma = np.asarray(levels - luma[:, :, None], np.float32)
            levels = luma[:, :, None] + within_range(chroma, np.asarray(luma, np.float32))
        made = np.clip(np.rint(levels * unit), 0, np.iinfo(photo.dtype).max)
        np.copyto(rows, made.astype(photo.dtype), where=touched[:, :, None])

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # NumPy computes beside itself
        list(pool.map(blend, range(0, photo.shape[0], ROWS)))


class _Piece:
    """The part of a patch that lies in some rows of the photograph."""

    def __init__(self, patch: _Patch, shape: tuple[int, ...], top: int, factor: int, columns: slice) -> None:
        self.patch, self.columns, self.factor = patch, columns, factor
        self.shape = (shape[0], columns.stop - columns.start)
        # From this piece's pixels to the photograph in which the face was found
        shift = np.array([columns.start, top]) - (factor - 1) / 2
        self.to_photo = np.column_stack([np.eye(2), shift]) / factor
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
        how = self._to_crop(1).astype(np.float32)  # a crop of one pixel, the middle of the square at (0, 0)
        u, v = (how[i, 0] * x + how[i, 1] * y + how[i, 2] for i in range(2))
        grown = patch.chroma.grown if patch.chroma else 1.0
        feather = FEATHER if grown == 1 else WIDE_FEATHER
        self.mask = (
            np.ones(self.shape, np.float32)
            if patch.hard
            else square_mask(u / grown + 0.5, v / grown + 0.5, feather)
        )
        self.nearness = self.mask * np.exp(-8 * (u * u + v * v))

    @classmethod
    def of(cls, patch: _Patch, shape: tuple[int, ...], top: int, factor: int) -> _Piece | None:
        """Return the part that lies in the rows from ``top`` on, None if there is none."""
        grown = patch.chroma.grown if patch.chroma else 1.0
        corners = factor * square_corners(patch.face.landmarks, grown) + (factor - 1) / 2
        low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0)) + 1
        if patch.hard:
            low, high = np.zeros(2), np.array([shape[1], np.inf])
        left, right = (int(np.clip(edge[0], 0, shape[1])) for edge in (low, high))
        if left >= right or high[1] <= top or low[1] >= top + shape[0]:
            return None
        return cls(patch, shape, top, factor, slice(left, right))

    def _to_crop(self, size: int, grown: float = 1.0) -> Matrix:
        """Return the transform from this piece's pixels to a crop's."""
        crop = grown_matrix(self.patch.face.landmarks, size, grown)
        return np.column_stack(
            [crop[:, :2] @ self.to_photo[:, :2], crop[:, :2] @ self.to_photo[:, 2] + crop[:, 2]]
        )

    def change(self, levels: FloatArray, mask: FloatArray) -> FloatArray:
        """Return what is to be added to the photograph's levels, float32 [H, W, 3]."""
        patch, luma = self.patch, levels @ LUMA
        if patch.chroma is not None:
            how = self._to_crop(len(patch.chroma.slope), patch.chroma.grown)
            slope, offset = (_sample(a, how, self.shape) for a in (patch.chroma.slope, patch.chroma.offset))
            own = levels - luma[:, :, None]
            return mask[:, :, None] * (slope * luma[:, :, None] + offset - own)
        assert patch.levels is not None and patch.base is not None
        new = self._enlarge(patch.levels)
        if patch.finer:
            new += patch.finer * (levels - self._enlarge(patch.base))
        new = np.clip(new, 0, 255)
        if patch.mono:  # a black-and-white or toned photograph keeps its tone: only luma changes
            return np.repeat((mask * (new @ LUMA - luma))[:, :, None], 3, axis=2)
        return mask[:, :, None] * (new - levels)

    def _enlarge(self, levels: FloatArray) -> FloatArray:
        """Bring a crop to this piece's pixels; a reduction is averaged over areas first."""
        side = round(self.patch.face.side * self.factor)
        if side < len(levels):
            levels = np.asarray(
                cv2.resize(levels, (max(side, 1),) * 2, interpolation=cv2.INTER_AREA), np.float32
            )
        return _sample(levels, self._to_crop(len(levels)), self.shape, cv2.INTER_CUBIC)


def _sample(
    values: FloatArray, matrix: Matrix, shape: tuple[int, int], how: int = cv2.INTER_LINEAR
) -> FloatArray:
    """Sample a field at matrix @ (x, y, 1) for every pixel of ``shape``; beyond its border it goes on."""
    flags = how | cv2.WARP_INVERSE_MAP
    sides = (shape[1], shape[0])
    return np.asarray(
        cv2.warpAffine(values, matrix, sides, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def within_range(chroma: FloatArray, luma: FloatArray) -> FloatArray:
    """Scale chroma [H, W, 3] down where luma + chroma would leave 0 to 255: clipping would change luma."""
    room = np.where(chroma > 0, 255 - luma[:, :, None], luma[:, :, None])
    share = np.min(np.maximum(room, 0) / np.maximum(np.abs(chroma), 1e-6), axis=2)
    return chroma * np.minimum(share, 1)[:, :, None]


def enlarge(photo: Photo, factor: int, upscaler: str | Path | Callable[[Photo, int], Photo] | None) -> Photo:
    """Return a photograph, or alpha, ``factor`` times as high and wide."""
    if isinstance(upscaler, (str, Path)):
        upscaler = TiledUpscaler(upscaler)
    if upscaler is not None:
        made = upscaler(photo, factor)
        shape = (factor * photo.shape[0], factor * photo.shape[1], *photo.shape[2:])
        if made.dtype != photo.dtype or made.shape != shape:
            raise ImageError(f"upscaler gave {made.dtype} {made.shape}, expected {photo.dtype} {shape}")
        return made
    sides = (factor * photo.shape[1], factor * photo.shape[0])
    return np.asarray(cv2.resize(photo, sides, interpolation=cv2.INTER_LANCZOS4), photo.dtype)


def _note(faces: Sequence[EnhancedFace], reach: float, chosen: Any = "all") -> str:
    """Say what was done."""
    if not faces:
        asked = f" as asked for ({chosen})" if isinstance(chosen, (str, int)) and chosen != "all" else ""
        return f"no face{asked} was found; the photograph is as it was"
    parts = []
    for done in dict.fromkeys(face.done for face in faces):
        count = sum(face.done == done for face in faces)
        parts.append(f"{count} face{'s' if count > 1 else ''} {done}")
    if any(face.done == "coloured" for face in faces):
        near = "what lies outside the faces' squares has the colours that it had"
        far = f"colour fades out at {reach:g} sides of a face's square; beyond, nothing is coloured"
        parts.append(near if reach == 1 else far)
    return "; ".join(parts)
