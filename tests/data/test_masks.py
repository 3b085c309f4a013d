"""Masks of inpainting: how much they cover, what they leave alone, and their shapes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.data.tasks import StrokesAndBoxes

MASKS = StrokesAndBoxes()
SIDE = 128


def masks(ranges, count=60, side=SIDE):
    return [ranges.mask(side, side, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("side", [64, 256])
def test_share_of_masked_pixels_is_bounded(side):
    shares = [np.mean(mask > 0) for mask in masks(MASKS, side=side)]
    assert min(shares) >= MASKS.share[0]
    # A box covers at most 0.35 x 0.35; one piece of a stroke less than that
    assert max(shares) <= MASKS.share[1] + MASKS.box[1] ** 2 + 0.01
    assert min(shares) < 0.12 and max(shares) > 0.28, "the whole range is used"


def test_a_given_share_is_reached_closely_with_thin_strokes():
    thin = replace(MASKS, share=(0.2, 0.2), boxes=0.0, width=(0.02, 0.02))
    for mask in masks(thin, 10):
        assert np.mean(mask > 0) == pytest.approx(0.2, abs=0.01)


def test_boxes_are_rectangles_within_their_sizes():
    one_box = replace(MASKS, share=(1e-4, 1e-4), boxes=1.0)
    for mask in masks(one_box, 20):
        _, _, width, height = cv2.boundingRect(mask)
        assert np.count_nonzero(mask) == width * height
        assert all(0.09 * SIDE <= length <= 0.36 * SIDE for length in (width, height))


def test_strokes_are_no_rectangles():
    strokes = replace(MASKS, share=(0.1, 0.1), boxes=0.0)
    for mask in masks(strokes, 20):
        _, _, width, height = cv2.boundingRect(mask)
        assert np.count_nonzero(mask) < 0.95 * width * height


def test_masked_pixels_are_white_and_the_others_untouched():
    face = embedded_faces(1, SIDE).read(0)
    before = face.copy()
    for seed in range(5):
        masked = MASKS(face, np.random.default_rng(seed))
        hidden = MASKS.mask(SIDE, SIDE, np.random.default_rng(seed)) > 0
        assert (masked[hidden] == 255).all()
        assert np.array_equal(masked[~hidden], face[~hidden])
    assert np.array_equal(face, before)


def test_every_part_of_the_picture_is_masked_at_times():
    often = np.mean([mask > 0 for mask in masks(MASKS, 150, 64)], axis=0)
    assert often.reshape(4, 16, 4, 16).mean(axis=(1, 3)).min() > 0.04


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": (0.3, 0.1)}, r"share=\(0.3, 0.1\)"),
        ({"share": (0.0, 0.1)}, "share"),
        ({"boxes": 1.5}, "boxes=1.5"),
        ({"pieces": (0, 3)}, "pieces"),
    ],
)
def test_impossible_ranges_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(MASKS, **change)
