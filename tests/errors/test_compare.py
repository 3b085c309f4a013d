"""Comparing precisions: drops, distance to fp32, error maps, and which faces are shown."""

import numpy as np
import pytest

from gpenlib.errors.compare import compare_outputs, error_map, summarise_comparison
from gpenlib.errors.gallery import faces_by_loss, open_face_errors
from gpenlib.metrics import PSNR_CEILING

NAMES = ("a", "b")
RESULT = {"backend": "openvino", "executed_precision": "f32", "psnr_input_mean": 9.0, "ssim_input_mean": 0.4,
          "ms_per_image": 2.0}  # fmt: skip


def make_rows(psnr=20.0, ssim=0.9, names=NAMES):
    return [
        {"name": name, "psnr": psnr, "ssim": ssim, "psnr_input": 9.0, "ssim_input": 0.4, "ms": 2.0}
        for name in names
    ]


def picture(name, offset=0):
    seed = NAMES.index(name)
    return np.random.default_rng(seed).integers(20, 200, (16, 16, 3), dtype=np.uint8) + np.uint8(offset)


def brighter(name):
    return picture(name, 3)


def test_identical_outputs_lose_nothing():
    for row in compare_outputs("fp32", make_rows(), make_rows(), picture, picture):
        assert row["psnr_drop"] == row["ssim_drop"] == row["bias"] == row["colour_shift_to_fp32"] == 0
        assert row["largest_error"] == 0
        assert row["psnr_to_fp32"] == PSNR_CEILING


def test_a_known_offset_is_measured():
    rows = compare_outputs("int8", make_rows(19.5, 0.88), make_rows(), brighter, picture)
    assert [row["name"] for row in rows] == list(NAMES)
    for row in rows:
        assert row["dtype"] == "int8"
        assert row["bias"] == 3.0
        assert row["largest_error"] == 3
        assert row["psnr_to_fp32"] == pytest.approx(20 * np.log10(255 / 3))
        assert row["psnr_drop"] == pytest.approx(0.5)
        assert row["ssim_drop"] == pytest.approx(0.02)
        assert 0.5 < row["colour_shift_to_fp32"] < 3


def test_darkening_does_not_wrap_around():
    (row, _) = compare_outputs("int8", make_rows(), make_rows(), picture, brighter)
    assert row["bias"] == -3.0 and row["largest_error"] == 3


@pytest.mark.parametrize(
    ("names", "said"), [(("a", "c"), "b, c"), (("b", "a"), "their order"), (("a",), "b")]
)
def test_other_faces_are_refused_by_name(names, said):
    with pytest.raises(ValueError, match=f"int8 and fp32 .* different faces: {said}"):
        compare_outputs("int8", make_rows(names=names), make_rows(), picture, picture)


def test_table_has_one_row_per_dtype():
    rows = compare_outputs("fp32", make_rows(), make_rows(), picture, picture)
    lossy = make_rows(19.0)
    lossy[1]["psnr"] = 20.0
    rows += compare_outputs("int8", lossy, make_rows(), brighter, picture)
    table = summarise_comparison(rows, {"fp32": RESULT, "int8": RESULT})
    assert [row["dtype"] for row in table] == ["fp32", "int8"]
    assert table[1]["psnr_drop"] == pytest.approx(0.5)
    assert table[1]["worst_psnr_drop"] == pytest.approx(1.0)
    assert table[1]["largest_error"] == 3
    assert table[1]["images"] == 2 and table[1]["psnr_input"] == 9.0


def test_error_map_takes_the_worst_channel():
    expected = np.zeros((2, 2, 3), np.uint8)
    output = expected.copy()
    output[0, 1] = (1, 200, 7)
    np.testing.assert_array_equal(error_map(output, expected), [[0, 200], [0, 0]])
    np.testing.assert_array_equal(error_map(expected, output), [[0, 200], [0, 0]])


def test_faces_are_those_of_the_dtype_that_loses_most():
    drops = {"fp32": (9, 9, 9), "bf16": (0.1, 0.3, 0.2), "int8": (0.5, -0.2, 1.0)}
    rows = [
        {"dtype": dtype, "name": name, "psnr_drop": value}
        for dtype, values in drops.items()
        for name, value in zip("abc", values, strict=True)
    ]
    dtype, chosen = faces_by_loss(rows)
    assert dtype == "int8"
    assert chosen == {"c": "loses most", "a": "median loss", "b": "loses least"}
    with pytest.raises(ValueError, match="fp32"):
        faces_by_loss(rows[:3])


def test_face_errors_hold_outputs_and_maps():
    (face,) = open_face_errors({"b": "loses most"}, {"fp32": picture, "int8": brighter})
    assert (face.name, face.role, list(face.outputs)) == ("b", "loses most", ["int8"])
    np.testing.assert_array_equal(face.expected, picture("b"))
    assert (face.errors["int8"] == 3).all()
