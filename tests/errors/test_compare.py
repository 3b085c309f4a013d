"""Comparing precisions: drops, distance to fp32, error maps, and which faces are shown."""

import numpy as np
import pytest

from gpenlib.errors.compare import (
    PLAIN,
    SCORES,
    ZOOM_SIDE,
    compare_outputs,
    error_map,
    faces_by_loss,
    hotspot,
    open_face_errors,
    summarise_comparison,
    worst_faces,
)
from gpenlib.infer.scoring import BASELINES
from gpenlib.metrics import PSNR_CEILING

NAMES = ("a", "b")
RESULT = {"backend": "openvino", "executed_precision": "f32", "ms_per_image": 2.0}
COLOUR = {"lightness": 50.0, "lab_a": 10.0, "lab_b": 12.0}


def make_rows(psnr=20.0, ssim=0.9, names=NAMES, **changes):
    own = {"psnr": psnr, "ssim": ssim, "delta_e2000": 8.0, "chroma_error": 11.0}
    plain = dict.fromkeys(PLAIN, 1.0)
    baselines = {f"{score}_{name}": 9.0 for score in own for name in BASELINES}
    return [{"name": name, **own, **plain, **baselines, **COLOUR, "ms": 2.0, **changes} for name in names]


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


def test_colour_shift_is_the_distance_of_the_mean_colours():
    shifted = make_rows(lightness=52.0, lab_b=11.0, lab_a=12.0)
    (row, _) = compare_outputs("int8", shifted, make_rows(), picture, picture)
    assert row["colour_shift_to_fp32"] == pytest.approx(3.0)


def test_a_drop_is_a_loss_of_quality_in_every_score():
    """Less PSNR and SSIM, but more Delta E and chroma error, are worse."""
    worse = make_rows(19.0, 0.8, delta_e2000=8.5, chroma_error=11.25)
    (row, _) = compare_outputs("int8", worse, make_rows(), picture, picture)
    drops = {score: row[f"{score}_drop"] for score in SCORES}
    assert drops == pytest.approx({"psnr": 1.0, "ssim": 0.1, "delta_e2000": 0.5, "chroma_error": 0.25})


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
    assert table[1]["images"] == 2
    assert table[1]["psnr_input"] == table[1]["delta_e2000_chroma_baseline"] == 9.0
    assert table[0]["psnr_verdict"] == "reference"
    assert table[1]["psnr_verdict"] == "too few images" and table[1]["psnr_drop_low"] is None


def test_a_drop_is_called_one_only_if_its_interval_excludes_zero():
    names = [str(number) for number in range(12)]
    reference = make_rows(names=names)
    lossy = make_rows(names=names)
    for number, row in enumerate(lossy):
        row["psnr"] -= 0.02 + 0.001 * (number % 3)  # on every face
        row["ssim"] += 0.01 * (-1) ** number  # up and down
        row["delta_e2000"] -= 0.1 + 0.01 * number  # better on every face
    rows = compare_outputs("int8", lossy, reference, lambda _: picture("a"), lambda _: picture("a"))
    (row,) = summarise_comparison(rows, {"int8": RESULT})
    assert row["psnr_verdict"] == "drop" and 0.02 <= row["psnr_drop_low"] < 0.021 < row["psnr_drop_high"]
    assert row["ssim_verdict"] == "no difference shown" and row["ssim_drop_low"] < 0 < row["ssim_drop_high"]
    assert row["delta_e2000_verdict"] == "gain" and row["delta_e2000_drop_high"] < 0
    assert row["chroma_error_verdict"] == "no difference shown"


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


def test_worst_faces_come_worst_first():
    rows = [
        {"dtype": "int8", "name": n, "psnr_drop": d} for n, d in zip("abcd", (0.1, 0.4, -1, 0.2), strict=True)
    ]
    rows.append({"dtype": "bf16", "name": "a", "psnr_drop": 9.0})
    assert worst_faces(rows, "int8", 2) == {"b": "1: +0.400 dB", "d": "2: +0.200 dB"}
    assert list(worst_faces(rows, "int8", 9)) == ["b", "d", "a", "c"]
    with pytest.raises(ValueError, match="int9.*bf16, int8"):
        worst_faces(rows, "int9", 2)
    with pytest.raises(ValueError, match="count=0"):
        worst_faces(rows, "int8", 0)


@pytest.mark.parametrize(("row", "column"), [(30, 50), (0, 0), (63, 63), (63, 0)])
def test_hotspot_holds_the_error_and_stays_inside(row, column):
    error = np.ones((64, 64), np.int16)
    error[row, column] = 200
    x, y = hotspot(error)
    half = ZOOM_SIDE / 2
    assert abs(x - (column + 0.5) / 64) <= half + 0.01 and abs(y - (row + 0.5) / 64) <= half + 0.01
    assert half - 0.01 <= x <= 1 - half + 0.01 and half - 0.01 <= y <= 1 - half + 0.01


def test_face_errors_hold_the_input_where_asked():
    (face,) = open_face_errors({"a": ""}, {"fp32": picture, "int8": brighter}, lambda _: picture("b"))
    np.testing.assert_array_equal(face.source, picture("b"))
    assert set(face.hotspots) == {"int8"}
