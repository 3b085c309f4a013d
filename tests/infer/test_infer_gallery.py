"""Which faces are shown, and that their pictures belong to their scores."""

import numpy as np
import pytest

from gpenlib.infer import scoring as gallery
from gpenlib.infer.scoring import restore_pack

ROWS = [{"name": name, "psnr": value} for name, value in zip("abcde", (3, 5, 1, 4, 2), strict=True)]


@pytest.mark.parametrize(
    ("order", "expected"), [("best", [1, 3, 0]), ("worst", [2, 4, 0]), ("median", [0, 4, 3])]
)
def test_rank(order, expected):
    assert gallery.rank(ROWS, order, 3) == expected


def test_rank_gives_what_there_is():
    assert gallery.rank(ROWS[:2], "best", 9) == [1, 0]
    assert gallery.rank([], "best", 3) == []


def test_equal_scores_stay_in_order():
    rows = [{"psnr": 1.0}] * 4
    assert gallery.rank(rows, "best", 2) == gallery.rank(rows, "worst", 2) == [0, 1]


def test_unknown_order_and_score_are_refused():
    with pytest.raises(ValueError, match="best, median, worst"):
        gallery.rank(ROWS, "bets", 1)
    with pytest.raises(ValueError, match="did you mean 'psnr'"):
        gallery.rank(ROWS, "best", 1, "psn")


def test_best_median_worst_shows_no_face_twice():
    assert gallery.best_median_worst(ROWS) == {1: "best", 0: "median", 2: "worst"}
    assert list(gallery.best_median_worst(ROWS).values()) == ["best", "median", "worst"]
    assert gallery.best_median_worst(ROWS[:2]) == {1: "best", 0: "worst"}
    assert gallery.best_median_worst(ROWS[:1]) == {0: "best"}


def test_recomputed_outputs_are_the_saved_ones(fp32, pack, artefact, tmp_path):
    rows = restore_pack(fp32, pack, 1, tmp_path)
    folder = artefact("openvino", "fp32")
    stored = gallery.output_reader(pack, tmp_path, "/not/used")
    computed = gallery.output_reader(pack, None, folder)
    chosen = gallery.best_median_worst(rows)
    first = gallery.open_faces(pack, rows, chosen, stored)
    second = gallery.open_faces(pack, rows, list(chosen), computed)
    assert [face.role for face in first] == ["best", "median", "worst"]
    for face, again, index in zip(first, second, chosen, strict=True):
        assert face.name == again.name == pack.names[index] == face.row["name"]
        np.testing.assert_array_equal(face.truth, pack.truths(index))
        np.testing.assert_array_equal(face.source, pack.inputs(index))
        np.testing.assert_array_equal(face.output, again.output)


def test_scores_of_other_faces_are_refused(pack):
    rows = [{"name": name, "psnr": 1.0} for name in reversed(pack.names)]
    with pytest.raises(ValueError, match="not made from this pack"):
        gallery.open_faces(pack, rows, [0], lambda index: pack.truths(index))
