"""Networks that do something known, and group photographs made of whole portraits."""

import cv2
import numpy as np
import pytest
from skimage import data

from gpenlib.images import read_image
from gpenlib.photos import CenterFace


class Network:
    """Stands for a runtime: what it answers is a function of its input, float32 [1, 3, S, S] in [-1, 1]."""

    def __init__(self, answer, task, size=64):
        self.answer, self.task, self.in_size, self.out_size = answer, task, size, size

    def __call__(self, batch):
        return np.clip(self.answer(batch), -1, 1).astype(np.float32)


def redder(batch):
    return batch + np.array([0.3, 0.0, -0.3], np.float32)[None, :, None, None]


@pytest.fixture(scope="session")
def colourer():
    return Network(redder, "color")


@pytest.fixture(scope="session")
def restorer():
    return Network(lambda batch: 0.5 * batch + 0.2, "restore")


@pytest.fixture(scope="session")
def detector():
    return CenterFace()


@pytest.fixture(scope="session")
def astronaut():
    return np.asarray(data.astronaut())


@pytest.fixture(scope="session")
def portraits(shared):
    """Whole portraits with the corners of the square that the aligned pictures of the same faces show."""
    found, sift = [], cv2.SIFT_create(2000)
    for path in sorted((shared / "faces/val512").glob("*.jpg"))[:6]:
        whole, crop = read_image(path), read_image(shared / "faces/val" / path.name)
        (keys, marks), (places, others) = (sift.detectAndCompute(image, None) for image in (crop, whole))
        pairs = cv2.BFMatcher().knnMatch(marks, others, k=2)
        good = [one for one, two in pairs if one.distance < 0.75 * two.distance]
        source = np.array([keys[match.queryIdx].pt for match in good])
        target = np.array([places[match.trainIdx].pt for match in good])
        matrix, _ = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=2)
        side = crop.shape[0] - 0.5
        corners = np.array([[-0.5, -0.5], [-0.5, side], [side, side], [side, -0.5]])
        found.append((whole, corners @ matrix[:, :2].T + matrix[:, 2]))
    return found


@pytest.fixture(scope="session")
def group_photo():
    """Function that puts portraits into a picture (width, height): (side of the square, middle, degrees)."""
    return _group_photo


def _group_photo(portraits, size, places):
    picture = np.random.default_rng(0).integers(60, 200, (size[1] // 40 + 1, size[0] // 40 + 1, 3), np.uint8)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    squares = []
    for (whole, square), (side, middle, degrees) in zip(portraits, places, strict=False):
        scale = side / np.linalg.norm(square[1] - square[0])
        factor = max(1, round(0.7 / scale))
        small = cv2.resize(whole, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        angle = np.radians(degrees)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = np.array(middle) - turn @ square.mean(axis=0)
        matrix = np.column_stack([factor * turn, shift + turn @ np.full(2, (factor - 1) / 2)])
        placed = cv2.warpAffine(small, matrix, size, flags=cv2.INTER_CUBIC)
        covered = cv2.warpAffine(np.full(small.shape[:2], 255, np.uint8), matrix, size) > 127
        picture[covered] = placed[covered]
        squares.append(square @ turn.T + shift)
    return picture, squares
