"""The colour task: sizes, grey in three channels, and the order of the vendor's preparation."""

import cv2
import numpy as np
import pytest

from gpenlib.data.tasks import TASKS, make_pair


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def test_input_is_the_grey_of_the_resized_truth(picture):
    given, truth = make_pair(picture, "color", 64)
    bgr = cv2.resize(picture[:, :, ::-1], (64, 64))  # as the vendor does it, in BGR
    assert np.array_equal(truth, bgr[:, :, ::-1])
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    for channel in range(3):
        assert np.array_equal(given[:, :, channel], grey)


def test_super_resolution_sizes(picture):
    given, truth = make_pair(picture, "color", 32, 128)
    assert given.shape == (32, 32, 3)
    assert truth.shape == (128, 128, 3)
    assert given.dtype == truth.dtype == np.uint8


def test_picture_is_left_alone(picture):
    before = picture.copy()
    make_pair(picture, "color", 64)
    assert np.array_equal(picture, before)


def test_known_grey_levels():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8).repeat(3, axis=0)
    given, _ = make_pair(colours, "color", 3)
    assert given[0, :, 0].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255


def test_unknown_task(picture):
    with pytest.raises(ValueError, match=r"task='colour'.*color.*did you mean 'color'"):
        make_pair(picture, "colour", 64)
    assert "color" in TASKS
