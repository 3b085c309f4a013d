"""The baseline of one even colour: where the colour comes from, and what it looks like."""

import numpy as np
import pytest

from gpenlib.data.faces import embedded_faces, open_folder
from gpenlib.data.pairs import Pairs, read_pack, write_pack
from gpenlib.images import to_grey, write_image
from gpenlib.infer.scoring import coloured_with, data_chroma
from gpenlib.metrics import mean_colour, to_lab

COLOURS = ((200, 120, 100), (120, 160, 90), (90, 110, 180))


def make_pack(folder, colours):
    for index, colour in enumerate(colours):
        write_image(folder / f"pictures/{index}.png", np.full((32, 32, 3), colour, np.uint8))
    write_pack(folder, Pairs(open_folder(folder / "pictures"), "color", 32))
    return read_pack(folder)


def chroma_of(colour):
    return mean_colour(to_lab(np.full((8, 8, 3), colour, np.uint8)))[1:]


def test_it_is_the_mean_of_the_calibration_truths(tmp_path):
    make_pack(tmp_path / "calibration", COLOURS[:2])
    pack = make_pack(tmp_path / "evaluation", COLOURS[1:])
    found = data_chroma(pack)
    expected = (chroma_of(COLOURS[0]) + chroma_of(COLOURS[1])) / 2
    assert found.source == "mean of 2 calibration truths"
    np.testing.assert_allclose(found.per_face, [expected, expected], atol=1e-4)


@pytest.mark.parametrize("grey_calibration", [False, True])
def test_without_coloured_calibration_it_is_that_of_the_other_faces(tmp_path, grey_calibration):
    if grey_calibration:
        make_pack(tmp_path / "calibration", [(80, 80, 80), (190, 190, 190)])
    found = data_chroma(make_pack(tmp_path / "evaluation", COLOURS))
    assert "other faces" in found.source
    own = [chroma_of(colour) for colour in COLOURS]
    expected = [(own[1] + own[2]) / 2, (own[0] + own[2]) / 2, (own[0] + own[1]) / 2]
    np.testing.assert_allclose(found.per_face, expected, atol=1e-4)


def test_calibration_faces_themselves_get_that_of_the_others(tmp_path):
    found = data_chroma(make_pack(tmp_path / "calibration", COLOURS[:2]))
    np.testing.assert_allclose(found.per_face, [chroma_of(COLOURS[1]), chroma_of(COLOURS[0])], atol=1e-4)


def test_a_face_alone_gets_no_colour(tmp_path):
    assert data_chroma(make_pack(tmp_path / "evaluation", COLOURS[:1])).per_face == ((0.0, 0.0),)


def test_lightness_stays_and_chroma_is_the_given_one():
    grey = to_grey(embedded_faces(1, 64).read(0)).clip(60, 190)
    lab = to_lab(coloured_with(grey, (12.0, 18.0)))
    np.testing.assert_allclose(lab[..., 0], to_lab(grey)[..., 0], atol=0.5)
    np.testing.assert_allclose(lab[..., 1], 12, atol=1.0)
    np.testing.assert_allclose(lab[..., 2], 18, atol=1.5)


def test_no_chroma_leaves_a_grey_image_as_it_is():
    grey = to_grey(embedded_faces(1, 64).read(0))
    np.testing.assert_array_equal(coloured_with(grey, (0.0, 0.0)), grey)
