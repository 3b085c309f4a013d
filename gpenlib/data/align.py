"""The FFHQ layout: a square crop turned with the face, from eye centres and mouth corners.

Coordinates are (x, y) in pixels with the centre of the first pixel at (0, 0), as OpenCV counts them.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.images import Image, check_image

Point = tuple[float, float]
Matrix = NDArray[np.float64]

EYE_DISTANCES_PER_SIDE = 4.0
EYE_TO_MOUTH_DISTANCES_PER_SIDE = 3.6
CENTRE_TOWARDS_MOUTH = 0.1  # part of the way from the eyes to the mouth


class AlignError(ValueError):
    """Landmarks that do not describe a face; the message holds their values."""


@dataclass(frozen=True)
class Landmarks:
    """Four points of a face; left and right are those of the picture, not of the person.

    Parameters
    ----------
    left_eye, right_eye : (x, y)
        Centres of the eye openings (means of the contour, not the irises), in pixels.
    left_mouth, right_mouth : (x, y)
        Outer corners of the mouth, in pixels.

    Raises
    ------
    AlignError
        If a coordinate is not finite, the eyes coincide, eyes and mouth lie on one line, or left and
        right are exchanged.
    """

    left_eye: Point
    right_eye: Point
    left_mouth: Point
    right_mouth: Point

    def __post_init__(self) -> None:
        points = np.asarray(astuple(self), dtype=np.float64)
        if points.shape != (4, 2) or not np.isfinite(points).all():
            raise AlignError(f"{self}: expected four finite points (x, y)")
        eye_to_eye, eye_to_mouth = self.eye_to_eye, self.eye_to_mouth
        area = eye_to_eye[0] * eye_to_mouth[1] - eye_to_eye[1] * eye_to_mouth[0]
        if area <= 1e-6:
            raise AlignError(
                f"{self}: not a face (left and right are those of the picture, and the mouth lies off the "
                "line through the eyes)"
            )

    @property
    def eye_centre(self) -> Matrix:
        """Midpoint of the eyes, float64 [2]."""
        return 0.5 * (np.asarray(self.left_eye, np.float64) + np.asarray(self.right_eye, np.float64))

    @property
    def eye_to_eye(self) -> Matrix:
        """Vector from the left to the right eye, float64 [2]."""
        return np.asarray(self.right_eye, np.float64) - np.asarray(self.left_eye, np.float64)

    @property
    def eye_to_mouth(self) -> Matrix:
        """Vector from the midpoint of the eyes to the midpoint of the mouth corners, float64 [2]."""
        mouth = 0.5 * (np.asarray(self.left_mouth, np.float64) + np.asarray(self.right_mouth, np.float64))
        return mouth - self.eye_centre


def ffhq_matrix(landmarks: Landmarks, size: int) -> Matrix:
    """Return the similarity transform from picture to crop coordinates.

    The square of the FFHQ preparation script (Karras et al. 2019, ``recreate_aligned_images``): its upper
    side is parallel to the mean of the eye line and the perpendicular of the eye-to-mouth line, its side is
    the larger of 4 eye distances and 3.6 eye-to-mouth distances, its centre lies a tenth of the way from the
    eyes to the mouth.

    Parameters
    ----------
    landmarks : Landmarks
    size : int
        Side of the crop in pixels, at least 1.

    Returns
    -------
    float64 [2, 3]
        ``crop = matrix @ (x, y, 1)``; :func:`crop_side` gives the side in picture pixels.

    Raises
    ------
    AlignError
        If ``size`` is below 1.
    """
    if size < 1:
        raise AlignError(f"size={size}: a crop has at least 1 pixel")
    across = _direction(landmarks)
    scale = size / crop_side(landmarks)
    turn = scale * np.array([[across[0], across[1]], [-across[1], across[0]]])  # [2, 2]
    centre = landmarks.eye_centre + CENTRE_TOWARDS_MOUTH * landmarks.eye_to_mouth
    middle = (size - 1) / 2  # the middle of the crop, pixel centres being whole numbers
    return np.column_stack([turn, middle - turn @ centre])


def crop_side(landmarks: Landmarks) -> float:
    """Return the side of the FFHQ square in picture pixels."""
    eyes = EYE_DISTANCES_PER_SIDE * float(np.linalg.norm(landmarks.eye_to_eye))
    mouth = EYE_TO_MOUTH_DISTANCES_PER_SIDE * float(np.linalg.norm(landmarks.eye_to_mouth))
    return max(eyes, mouth)


def warp(image: Image, matrix: Matrix, size: int) -> Image:
    """Resample ``image`` through an affine transform into a square; parts outside are mirrored.

    Enlargements are bicubic. Reductions are taken at a whole multiple of the resolution and averaged over
    areas, so that they do not alias.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    matrix : float64 [2, 3]
        From picture to crop coordinates, as :func:`ffhq_matrix` gives it.
    size : int
        Side of the result in pixels.

    Returns
    -------
    uint8 RGB [size, size, 3]

    Raises
    ------
    ImageError
        If ``image`` is not uint8 [H, W, 3].
    """
    check_image(image)
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))  # crop pixels per picture pixel
    factor = max(1, math.ceil(1 / scale - 1e-3))
    finer = factor * matrix
    finer[:, 2] += (factor - 1) / 2  # pixel centres: crop 0 is the middle of the finer 0 .. factor - 1
    flags = cv2.INTER_CUBIC if factor == 1 else cv2.INTER_LINEAR
    side = factor * size
    large = cv2.warpAffine(image, finer, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    if factor > 1:
        large = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(large, dtype=np.uint8)


def align(image: Image, landmarks: Landmarks, size: int) -> Image:
    """Cut a face out of a picture in FFHQ layout.

    At size 256 the eyes of a frontal face come to about (96, 120) and (159, 120), its mouth corners to
    (102, 188) and (153, 188).

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    landmarks : Landmarks
        In pixels of ``image``.
    size : int
        Side of the crop in pixels.

    Returns
    -------
    uint8 RGB [size, size, 3]

    Raises
    ------
    AlignError
        If ``size`` is below 1.
    ImageError
        If ``image`` is not uint8 [H, W, 3].
    """
    return warp(image, ffhq_matrix(landmarks, size), size)


def _direction(landmarks: Landmarks) -> Matrix:
    """Return the unit vector along the upper side of the FFHQ square, float64 [2]."""
    down = landmarks.eye_to_mouth
    across = landmarks.eye_to_eye + np.array([down[1], -down[0]])
    return np.asarray(across / np.linalg.norm(across), dtype=np.float64)
