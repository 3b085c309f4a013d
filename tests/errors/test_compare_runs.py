"""Scores of several runs side by side."""

import pytest

from gpenlib.errors.compare import ABSENT, DIFFERENT, FIRST, NOT_IN_FIRST, SCORES, compare_results

OFFSETS = (0.1, -0.2, 0.3, 0.05, -0.1, 0.2)


def result(shift=0.0, dtypes=("fp32", "int8"), digest="same", count=6, reverse=False):
    """Results of 05_errors in which every score is moved by about ``shift``."""
    rows = [
        {"dtype": dtype, "name": f"face {i}", **{s: 20 + 3 * i + shift * (1 + OFFSETS[i]) for s in SCORES}}
        for dtype in dtypes
        for i in range(count)
    ]
    table = [
        {"dtype": dtype, "images": count}
        | {s: sum(row[s] for row in rows if row["dtype"] == dtype) / count for s in SCORES}
        for dtype in dtypes
    ]
    return {"table": table, "rows": rows[::-1] if reverse else rows, "facts": {"faces_digest": digest}}


def chosen(rows, **wanted):
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


def test_paired_differences_have_an_interval_and_a_verdict():
    """The faces differ far more than the runs: only a paired test sees the difference."""
    rows = compare_results({"a": result(), "b": result(0.5)})
    assert len(rows) == 2 * len(SCORES) * 2
    found = chosen(rows, dtype="int8", score="psnr", run="b")
    mean = 0.5 * (1 + sum(OFFSETS) / 6)
    assert found["difference"] == pytest.approx(mean) and found["value"] == pytest.approx(27.5 + mean)
    assert 0 < found["low"] < mean < found["high"]
    assert found["verdict"] == "better"
    assert chosen(rows, dtype="int8", score="delta_e2000", run="b")["verdict"] == "worse"
    first = chosen(rows, dtype="int8", score="psnr", run="a")
    assert (first["verdict"], first["difference"], first["low"]) == (FIRST, None, None)


def test_a_loss_is_worse_and_equal_runs_differ_in_nothing():
    rows = compare_results({"a": result(), "b": result(-0.5), "c": result()})
    assert chosen(rows, dtype="fp32", score="ssim", run="b")["verdict"] == "worse"
    equal = chosen(rows, dtype="fp32", score="ssim", run="c")
    assert (equal["difference"], equal["verdict"]) == (0, "no difference shown")


def test_faces_are_paired_by_name():
    rows = compare_results({"a": result(), "b": result(reverse=True)})
    assert chosen(rows, dtype="int8", score="psnr", run="b")["high"] == 0


def test_different_faces_are_not_tested():
    rows = compare_results({"a": result(), "b": result(0.5, digest="other")})
    found = chosen(rows, dtype="int8", score="psnr", run="b")
    assert found["verdict"] == DIFFERENT and found["low"] is None
    assert found["difference"] == pytest.approx(0.5, abs=0.1)


def test_precisions_of_one_run_alone():
    rows = compare_results({"a": result(dtypes=("fp32", "bf16")), "b": result(dtypes=("fp32", "int8"))})
    assert chosen(rows, dtype="bf16", score="psnr", run="b")["verdict"] == ABSENT
    assert chosen(rows, dtype="int8", score="psnr", run="a")["verdict"] == ABSENT
    alone = chosen(rows, dtype="int8", score="psnr", run="b")
    assert alone["verdict"] == NOT_IN_FIRST and alone["value"] == pytest.approx(27.5)


def test_few_faces_and_single_runs():
    rows = compare_results({"a": result(count=4), "b": result(0.5, count=4)})
    assert chosen(rows, dtype="fp32", score="psnr", run="b")["verdict"] == "too few images"
    with pytest.raises(ValueError, match="two or more"):
        compare_results({"a": result()})
