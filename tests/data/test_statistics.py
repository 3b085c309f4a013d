"""Colour statistics against hand-computed values, and the scores of wrong answers."""

import math

import numpy as np
import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.data.pairs import (
    Pack,
    Pairs,
    baseline_scores,
    colour_row,
    colour_statistics,
    read_pack,
    score,
    write_pack,
    wrong_answers,
)
from gpenlib.images import ImageError, resize, to_grey
from gpenlib.metrics import psnr, ssim


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, Pairs(embedded_faces(3, 64), "color", 64))
    return read_pack(folder)


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((16, 16, 3), colour, np.uint8)


def test_flat_colours():
    grey = colour_row(flat((119, 119, 119)))
    assert grey["red_mean"] == grey["green_mean"] == grey["blue_mean"] == 119
    assert grey["red_std"] == 0
    assert grey["lightness"] == pytest.approx(50, abs=0.1)  # sRGB 119 is the middle of CIELAB lightness
    assert grey["chroma"] == pytest.approx(0, abs=0.02)
    assert grey["colourfulness"] == 0

    red = colour_row(flat((255, 0, 0)))  # CIELAB of the sRGB primary: 53.24, 80.09, 67.20
    assert (red["lightness"], red["lab_a"], red["lab_b"]) == pytest.approx((53.24, 80.09, 67.20), abs=0.02)
    assert red["chroma"] == pytest.approx(104.55, abs=0.03)


def test_halves():
    image = flat((0, 0, 0))
    image[:, :8] = (200, 100, 0)
    row = colour_row(image)
    assert (row["red_mean"], row["green_mean"], row["blue_mean"]) == (100, 50, 0)
    assert (row["red_std"], row["green_std"], row["blue_std"]) == (100, 50, 0)
    # rg is 100 or 0, yb is 150 or 0: deviations 50 and 75, means 50 and 75
    assert row["colourfulness"] == pytest.approx(1.3 * math.hypot(50, 75))


def test_opposite_colours_have_chroma_though_their_mean_is_near_grey():
    image = flat((180, 119, 119))
    image[:, :8] = (80, 130, 130)
    row = colour_row(image)
    assert math.hypot(row["lab_a"], row["lab_b"]) < row["chroma"] / 2


def test_rows_of_a_pack(pack):
    rows = colour_statistics(pack, "evaluation")
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["image"] for row in rows] == pack.names
    assert {row["subset"] for row in rows} == {"evaluation"}
    assert rows[1]["red_mean"] == pytest.approx(pack.truths(1)[:, :, 0].mean())
    assert all(isinstance(value, str | int | float) for row in rows for value in row.values())


def test_baseline_is_the_input_scored(pack):
    rows = baseline_scores(pack)
    given, truth = pack.inputs(2), pack.truths(2)
    assert rows[2]["psnr"] == psnr(given, truth)
    assert rows[2]["ssim"] == ssim(given, truth)
    assert 5 < rows[2]["colour_shift"] < 30


def test_smaller_answers_are_enlarged(pack):
    truth = pack.truths(0)
    small = resize(truth, 32)
    assert score(small, truth) == score(resize(small, 64), truth)


def test_wrong_answers_are_wrong_in_the_way_they_say(pack):
    truth = pack.truths(0)
    answers = wrong_answers(truth)
    assert np.array_equal(answers["truth"], truth)
    assert np.array_equal(answers["grey"], to_grey(truth))
    scores = {name: score(image, truth) for name, image in answers.items()}
    assert scores["truth"] == {"psnr": math.inf, "ssim": pytest.approx(1), "colour_shift": 0}
    assert scores["soft"]["colour_shift"] < 1 < scores["grey"]["colour_shift"]
    assert scores["grey"]["colour_shift"] < scores["wrong colours"]["colour_shift"]
    assert scores["grey"]["ssim"] > scores["soft"]["ssim"]  # the point of the figure in notebook 02
    assert scores["grey"]["psnr"] < scores["soft"]["psnr"]
    turned, original = colour_row(answers["wrong colours"]), colour_row(truth)
    assert turned["lightness"] == pytest.approx(original["lightness"], abs=1.5)


def test_other_arrays_are_refused():
    with pytest.raises(ImageError):
        colour_row(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ImageError):
        wrong_answers(np.zeros((8, 8), np.uint8))
