"""FFHQ layout: synthetic faces land on the published positions whatever their pose."""

import math

import cv2
import numpy as np
import pytest

from gpenlib.data.faces import AlignError, Landmarks, align, crop_side, ffhq_matrix, warp
from gpenlib.images import ImageError

# A frontal face as an aligned data set has it on average at 256 px (pixel centres).
TEMPLATE = np.array([(96.0, 120.0), (159.0, 120.0), (102.0, 188.0), (153.0, 188.0)])


def posed(angle: float, scale: float, shift: tuple[float, float]) -> Landmarks:
    """Return the template turned (degrees), scaled and moved."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = scale * np.array([[cosine, -sine], [sine, cosine]])
    return Landmarks(*[tuple(turn @ point + shift) for point in TEMPLATE])


def mapped(landmarks: Landmarks, size: int) -> np.ndarray:
    points = np.array([landmarks.left_eye, landmarks.right_eye, landmarks.left_mouth, landmarks.right_mouth])
    matrix = ffhq_matrix(landmarks, size)
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("angle", [-170.0, -30.0, 0.0, 12.5, 90.0])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.7])
@pytest.mark.parametrize("size", [64, 256, 512])
def test_landmarks_land_where_ffhq_has_them(angle, scale, size):
    found = (mapped(posed(angle, scale, (310.0, -45.0)), size) + 0.5) * 256 / size - 0.5
    # Eyes and mouth corners of the template differ from an exact FFHQ face by its rounding to whole pixels.
    assert np.abs(found - TEMPLATE).max() < 2.5
    assert np.abs(found - mapped(posed(0, 1, (0, 0)), 256)).max() < 1e-9 * 256


def test_side_is_the_larger_of_eyes_and_mouth():
    wide = Landmarks((0, 0), (100, 0), (20, 50), (80, 50))
    long = Landmarks((0, 0), (50, 0), (5, 100), (45, 100))
    assert crop_side(wide) == pytest.approx(400)
    assert crop_side(long) == pytest.approx(360)


def test_hand_computed_matrix():
    face = Landmarks((10, 20), (30, 20), (14, 40), (26, 40))  # side 80, centre (20, 22)
    assert np.allclose(ffhq_matrix(face, 80), [[1, 0, 39.5 - 20], [0, 1, 39.5 - 22]])


def test_whole_pixel_crop_is_exact():
    picture = np.random.default_rng(1).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    face = Landmarks((40.5, 47.5), (60.5, 47.5), (44.5, 67.5), (56.5, 67.5))  # side 80, centre (50.5, 49.5)
    assert np.array_equal(align(picture, face, 80), picture[10:90, 11:91])


def test_drawn_dots_are_found_again():
    face = posed(20.0, 1.6, (200.0, 60.0))
    picture = np.zeros((700, 700, 3), np.uint8)
    for point in (face.left_eye, face.right_eye, face.left_mouth, face.right_mouth):
        centre = (round(point[0] * 16), round(point[1] * 16))
        cv2.circle(picture, centre, 6 * 16, (255, 255, 255), -1, shift=4)
    crop = align(picture, face, 256)
    for expected in mapped(face, 256):
        x, y = np.rint(expected).astype(int)
        patch = crop[y - 8 : y + 9, x - 8 : x + 9, 0].astype(float)
        rows, columns = np.mgrid[y - 8 : y + 9, x - 8 : x + 9]
        centre = np.array([(patch * columns).sum(), (patch * rows).sum()]) / patch.sum()
        assert np.abs(centre - expected).max() < 0.3


def test_reduction_does_not_alias():
    board = (np.indices((1024, 1024)).sum(axis=0) % 2 * 255).astype(np.uint8)  # one-pixel chequerboard
    crop = align(np.repeat(board[:, :, None], 3, axis=2), posed(7.0, 3.3, (80.0, 60.0)), 128)
    assert abs(float(crop.mean()) - 127.5) < 2
    assert float(crop.std()) < 6  # plain sampling gives moire with a deviation of about 60


def test_outside_is_mirrored():
    picture = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (100, 1, 3))
    moved = warp(picture, np.array([[1.0, 0.0, 10.0], [0.0, 1.0, 0.0]]), 100)
    assert moved[50, :12, 0].tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1]


def test_the_same_crop_at_two_sizes():
    rng = np.random.default_rng(2)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (400, 400, 3), dtype=np.uint8), (0, 0), 6)
    face = posed(-9.0, 1.1, (60.0, 40.0))
    large, small = align(picture, face, 512), align(picture, face, 128)
    reduced = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - small).mean() < 0.6


@pytest.mark.parametrize(
    "points",
    [
        [(10, 10), (10, 10), (5, 30), (15, 30)],  # one point for both eyes
        [(30, 20), (10, 20), (26, 40), (14, 40)],  # left and right exchanged
        [(10, 20), (30, 20), (15, 20), (25, 20)],  # mouth on the eye line
        [(10, 20), (30, float("nan")), (14, 40), (26, 40)],
    ],
)
def test_points_that_are_no_face(points):
    with pytest.raises(AlignError):
        Landmarks(*points)


def test_bad_size_and_image():
    face = posed(0, 1, (0, 0))
    with pytest.raises(AlignError, match="size=0"):
        ffhq_matrix(face, 0)
    with pytest.raises(ImageError, match=r"expected uint8 \[H, W, 3\]"):
        align(np.zeros((8, 8), np.uint8), face, 16)
