"""The recommended precision: every branch on constructed tables."""

import pytest

from gpenlib.errors.compare import recommend


def row(dtype, ms, high=0.0, spread=0.1, shift=0.0, images=40, **changes):
    return {
        "dtype": dtype,
        "images": images,
        "psnr_drop": high / 2,
        "psnr_drop_low": 0.0,
        "psnr_drop_high": high,
        "colour_shift_to_fp32": shift,
        "executed_precision": f"{dtype} units",
        "ms_per_image": 100.0,
        "latency_ms": ms,
        "latency_p10_ms": ms - spread,
        "latency_p90_ms": ms + spread,
    } | changes


def test_the_fastest_within_the_budget_is_taken():
    found = recommend(
        [row("fp32", 30.0), row("bf16", 15.0, 0.02, shift=0.1), row("int8", 10.0, 0.05, shift=0.2)]
    )
    assert found.dtype == "int8"
    for figure in (
        "10.0 ms",
        "3.0 times as fast as fp32 (30.0 ms",
        "0.025 dB",
        "0.050 dB",
        "ΔE 0.20",
        "int8 units",
    ):
        assert figure in found.reason
    assert found.others.keys() == {"fp32", "bf16"}
    assert "It loses nothing, but it takes 30.0 ms per image, 3.0 times int8's" in found.others["fp32"]
    assert "within the budget, but it takes 15.0 ms per image, 1.5 times" in found.others["bf16"]
    assert found.cautions == ()


def test_a_loss_above_the_budget_is_refused_by_the_end_of_its_interval():
    """The mean, 0.06 dB, is within the budget; the upper end is not."""
    table = [row("fp32", 30.0), row("bf16", 15.0, 0.02), row("int8", 10.0, 0.12)]
    found = recommend(table)
    assert found.dtype == "bf16"
    assert "0.060 dB" in found.others["int8"] and "0.120 dB" in found.others["int8"]
    assert recommend(table, max_drop_db=0.12).dtype == "int8"
    assert recommend(table, max_drop_db=0.01).dtype == "fp32"


def test_a_shift_of_colour_is_refused():
    table = [row("fp32", 30.0), row("int8", 10.0, 0.01, shift=0.5)]
    found = recommend(table)
    assert found.dtype == "fp32" and "ΔE 0.50" in found.others["int8"]
    assert "No other precision within the budget is as fast" in found.reason
    assert recommend(table, max_colour_shift=0.51).dtype == "int8"


def test_of_equally_fast_ones_the_more_accurate_is_taken():
    table = [row("fp32", 30.0), row("bf16", 10.5, 0.01, spread=0.6), row("int8", 10.0, 0.05, spread=0.2)]
    found = recommend(table)
    assert found.dtype == "bf16"
    assert "less accurate: int8 (10.0 ms per image)" in found.reason
    assert "As fast as bf16 within the spread" in found.others["int8"]
    table[1] |= {"latency_p10_ms": 10.3}  # no longer overlaps with the 10.2 ms of int8
    assert recommend(table).dtype == "int8"


def test_fp32_is_taken_if_nothing_is_faster():
    found = recommend([row("fp32", 10.0, spread=1.0), row("fp16", 9.8, 0.001, spread=1.0)])
    assert found.dtype == "fp32"
    assert "loses nothing" in found.reason and "fp16 (9.8 ms per image)" in found.reason


def test_a_gain_is_no_fault():
    assert recommend([row("fp32", 30.0), row("int8", 10.0, -0.02)]).dtype == "int8"


def test_too_few_faces_are_said_to_be_too_few():
    few = {"psnr_drop_low": None, "psnr_drop_high": None, "images": 1}
    found = recommend([row("fp32", 30.0, **few), row("int8", 10.0, **few)])
    assert found.dtype is None
    assert found.reason.startswith("1 face is too few") and "fp32 is the safe choice" in found.reason
    assert found.others.keys() == {"int8"}


def test_cautions():
    table = [row("fp32", 30.0, images=19), row("int8", 10.0, images=19)]
    assert "Only 19 faces" in recommend(table).cautions[0]
    for other in table:
        other |= {"latency_ms": None, "images": 20, "ms_per_image": 7.0 if other["dtype"] == "int8" else 9.0}
    found = recommend(table)
    assert found.dtype == "int8" and "7.0 ms" in found.reason
    assert len(found.cautions) == 1 and "separate runs" in found.cautions[0]


def test_without_reference_there_is_no_recommendation():
    with pytest.raises(ValueError, match="int8: fp32 must be among"):
        recommend([row("int8", 10.0)])
