"""Faces in whole photographs: whether they are found, and how far the corners of their squares are off."""

import cv2
import numpy as np
import pytest
from skimage import data

from gpenlib.data.faces import ASTRONAUT_LANDMARKS, photographs
from gpenlib.photos.find import (
    PhotoFace,
    YuNet,
    aligned_face,
    choose_faces,
    eyes_alike,
    ffhq_landmarks,
    find_faces,
    square_corners,
)


def corner_errors(faces, squares):
    """For every true square: mean distance of the nearest face's corners, over the side."""
    errors = []
    for square in squares:
        side = np.linalg.norm(square[1] - square[0])
        distances = [np.linalg.norm(face.square - square, axis=1).mean() / side for face in faces]
        errors.append(min(distances, default=np.inf))
    return errors


def spread(count, side, size, degrees=0):
    return [
        (side, ((k % 3 + 0.5) * size[0] / 3, (k // 3 + 0.5) * size[1] / 2), degrees) for k in range(count)
    ]


@pytest.mark.parametrize(
    ("side", "size", "degrees"),
    [(180, (1200, 800), 0), (180, (1200, 800), 30), (24, (600, 300), 0), (50, (2700, 2000), 0)],
    ids=["group", "turned", "tiny", "small in a large one"],
)
def test_every_face_of_a_group_is_found_in_place(portraits, group_photo, detector, side, size, degrees):
    picture, squares = group_photo(portraits, size, spread(6, side, size, degrees))
    faces = find_faces(picture, detector)
    errors = corner_errors(faces, squares)
    assert len(faces) == 6
    assert np.mean(errors) < 0.045 and max(errors) < 0.09  # these six; 0.030 over all 24 portraits


def test_corners_are_three_percent_off_on_average(portraits, detector):
    errors = [corner_errors(find_faces(whole, detector), [square])[0] for whole, square in portraits]
    assert np.mean(errors) < 0.036  # of these six


@pytest.mark.parametrize("middle", [(75, 300), (300, 40), (300, 540)], ids=["left", "top", "bottom"])
def test_faces_cut_by_the_border(portraits, group_photo, detector, middle):
    picture, squares = group_photo(portraits[1:], (600, 600), [(300, middle, 0)])
    assert corner_errors(find_faces(picture, detector), squares)[0] < 0.12


def test_a_face_of_4000_pixels(portraits, group_photo, detector):
    picture, squares = group_photo(portraits[2:], (5000, 4600), [(4000, (2500, 2400), 0)])
    assert corner_errors(find_faces(picture, detector), squares)[0] < 0.05


def test_the_points_agree_with_those_read_off_by_eye(detector, astronaut):
    (face,) = find_faces(astronaut, detector)
    assert corner_errors([face], [square_corners(ASTRONAUT_LANDMARKS)])[0] < 0.06
    assert face.points[0, 0] < face.points[1, 0] and face.points[3, 0] < face.points[4, 0]


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "brick", "page"])
def test_no_face_is_found_where_there_is_none(detector, name):
    picture = getattr(data, name)()
    picture = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
    assert find_faces(np.ascontiguousarray(picture), detector) == []


def test_an_aligned_face_is_alone_and_in_the_middle_and_its_eyes_are_alike(detector):
    pictures = photographs(128)
    for index in range(2):
        picture = pictures.read(index)
        face = aligned_face(picture, detector)
        assert face is not None and eyes_alike(picture, face) > 0.5
        shut = picture.copy()
        x, y = face.points[0].astype(int)
        shut[y - 8 : y + 9, x - 10 : x + 11] = shut[y + 14, x]  # cheek
        assert not eyes_alike(shut, face) > 0.5
        assert aligned_face(np.roll(picture, 40, axis=1), detector) is None
        small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
        assert aligned_face(np.tile(small, (2, 2, 1)), detector) is None
    assert aligned_face(np.full((128, 128, 3), 128, np.uint8), detector) is None


def test_the_square_turns_and_grows_with_the_points():
    points = np.array([(-10, 0), (10, 0), (0, 10), (-8, 22), (8, 22)], float)
    square = PhotoFace(points, 1.0, ffhq_landmarks(points)).square
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = PhotoFace(points @ turn.T * 3 + 5, 1.0, ffhq_landmarks(points @ turn.T * 3 + 5)).square
    np.testing.assert_allclose(turned, square @ turn.T * 3 + 5, atol=1e-9)
    assert (square[0] < square[2]).all()  # top left, bottom right
    assert square[1, 0] == pytest.approx(square[0, 0]) and square[1, 1] > square[0, 1]


def faces_of(*sides):
    made = []
    for side in sides:
        points = side / 4 * np.array([(-0.5, 0), (0.5, 0), (0, 0.6), (-0.4, 1), (0.4, 1)])
        made.append(PhotoFace(points, 1.0, ffhq_landmarks(points)))
    return made


@pytest.mark.parametrize(
    ("which", "count"), [("all", 3), ("largest", 1), ("2", 2), (2, 2), ("64px", 2), (" 64 px", 2), (0, 0)]
)
def test_faces_are_chosen(which, count):
    assert len(choose_faces(faces_of(200, 100, 50), which)) == count


@pytest.mark.parametrize("which", ["", "some", "-1", "1.5", "px"])
def test_wrong_choices_are_refused(which):
    with pytest.raises(ValueError, match="faces="):
        choose_faces([], which)


def test_detector_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.onnx"):
        YuNet(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises((ValueError, cv2.error), match="text.onnx"):
        YuNet(tmp_path / "text.onnx")
