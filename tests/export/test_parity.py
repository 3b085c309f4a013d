"""Differences of two outputs, as numbers and as errors."""

import math

import numpy as np
import pytest

from gpenlib.export import ParityError, assert_parity, parity


@pytest.fixture
def reference():
    return np.tile(np.array([-0.5, 0.5], np.float32), 24).reshape(1, 3, 4, 4)  # standard deviation 0.5


def test_figures(reference):
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += 0.25
    found = parity(reference, candidate)
    assert found.max_abs == pytest.approx(0.25)
    assert found.mean_abs == pytest.approx(0.25 / 48)
    assert found.relative == pytest.approx(0.5)
    assert found.psnr == pytest.approx(10 * math.log10(4 / (0.0625 / 48)))


def test_equal_outputs(reference):
    found = parity(reference, reference.copy())
    assert found.max_abs == 0 and math.isinf(found.psnr)
    assert found.to_dict() == {"max_abs": 0.0, "mean_abs": 0.0, "relative": 0.0, "psnr": None}


def test_is_computed_in_double_precision():
    reference = np.tile(np.array([60000, -60000], np.float16), 24)
    found = parity(reference, -reference)  # neither the difference nor the variance is a number of float16
    assert found.max_abs == 120000
    assert found.relative == pytest.approx(2)


def test_a_constant_reference_gives_a_finite_figure():
    flat = np.zeros((1, 3, 4, 4), np.float32)
    assert math.isfinite(parity(flat, flat + 1).relative)


def test_shapes_must_agree(reference):
    with pytest.raises(ParityError, match=r"\(1, 3, 4, 4\) and \(3, 4, 4\)"):
        parity(reference, reference[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_values_must_be_finite(reference, value, place):
    pair = [reference, reference.copy()]
    pair[place] = pair[place].copy()
    pair[place][0, 0, 0, 0] = value
    with pytest.raises(ParityError, match="NaN or infinity"):
        parity(*pair)


def test_tolerance(reference):
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += 1e-3  # 2e-3 of the standard deviation
    assert assert_parity(reference, candidate, "this", tolerance=3e-3).relative == pytest.approx(
        2e-3, rel=1e-3
    )
    with pytest.raises(ParityError, match=r"this: largest difference is 2\.00e-03 .* allowed 1e-04"):
        assert_parity(reference, candidate, "this")
