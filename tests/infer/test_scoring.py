"""The figures of one face, and running many jobs at once."""

import threading

import numpy as np
import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.images import from_tensor, to_grey, to_tensor
from gpenlib.infer.scoring import MEANS, SCORES, coloured_with, in_parallel, score, summarise
from gpenlib.metrics import PSNR_CEILING, chroma_error, colour_shift, delta_e2000, psnr, ssim, to_lab

CHROMA = (9.0, 14.0)


@pytest.fixture(scope="module")
def truth():
    return embedded_faces(1, 64).read(0)


def as_output(image):
    return to_tensor(image)[0]


def test_every_answer_is_judged_by_every_score(truth):
    source = to_grey(truth)
    output = as_output(truth) * 0.9
    row = score(source, truth, output, CHROMA)
    assert set(row) == set(MEANS)
    answers = {
        "": from_tensor(output[None])[0],
        "_input": source,
        "_chroma_baseline": coloured_with(source, CHROMA),
    }
    for suffix, answer in answers.items():
        lab, truth_lab = to_lab(answer), to_lab(truth)
        expected = {
            "psnr": psnr(answer, truth),
            "ssim": ssim(answer, truth),
            "delta_e2000": delta_e2000(lab, truth_lab),
            "chroma_error": chroma_error(lab, truth_lab),
            "colour_shift": colour_shift(answer, truth),
        }
        assert set(expected) == set(SCORES)
        for name, value in expected.items():
            assert row[f"{name}{suffix}"] == pytest.approx(value, abs=1e-6), name + suffix


def test_a_perfect_answer_scores_finite(truth):
    row = score(truth, truth, as_output(truth), CHROMA)
    assert row["psnr"] == row["psnr_input"] == PSNR_CEILING
    assert row["ssim"] == pytest.approx(1.0)
    assert row["colour_shift"] == row["delta_e2000"] == row["chroma_error"] == 0.0


def test_a_smaller_input_is_enlarged_for_the_baselines():
    truth = np.full((64, 64, 3), 90, np.uint8)
    row = score(np.full((32, 32, 3), 90, np.uint8), truth, as_output(truth), (0.0, 0.0))
    assert row["psnr_input"] == row["psnr_chroma_baseline"] == PSNR_CEILING


def test_each_rounding_scores_its_own_image():
    truth = np.full((32, 32, 3), 100, np.uint8)
    output = as_output(truth) + np.float32(0.4 / 127.5)  # 100.4: rounds to 100, truncates to 100
    row = score(truth, truth, output, CHROMA)
    assert row["psnr"] == row["psnr_truncated"] == PSNR_CEILING
    assert row["psnr_float"] == pytest.approx(20 * np.log10(255 / 0.4), abs=1e-2)
    row = score(truth, truth, output + np.float32(0.4 / 127.5), CHROMA)  # 100.8: to 101 and to 100
    assert row["psnr"] == pytest.approx(20 * np.log10(255))
    assert row["psnr_truncated"] == PSNR_CEILING
    assert row["psnr_float"] == pytest.approx(20 * np.log10(255 / 0.8), abs=1e-2)
    assert row["ssim"] < row["ssim_float"] < row["ssim_truncated"]


def test_values_out_of_range_are_clipped_in_every_rounding():
    white = np.full((32, 32, 3), 255, np.uint8)
    row = score(white, white, as_output(white) * 1.5, CHROMA)
    assert row["psnr"] == row["psnr_float"] == row["psnr_truncated"] == PSNR_CEILING


def test_mean_colour_of_the_output(truth):
    row = score(truth, truth, as_output(np.full_like(truth, 119)), CHROMA)
    assert row["lightness"] == pytest.approx(50, abs=0.5)
    assert row["lab_a"] == pytest.approx(0, abs=0.02) and row["lab_b"] == pytest.approx(0, abs=0.02)


def test_a_summary_without_times_has_none(truth):
    row = score(truth, truth, as_output(truth), CHROMA)
    assert set(summarise([row])) == {f"{name}_mean" for name in MEANS}


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_few_jobs_wait(threads):
    taken = done = 0
    most = 0
    lock = threading.Lock()

    def work(number):
        nonlocal done
        with lock:
            done += 1
        return number

    def jobs():
        nonlocal taken, most
        for number in range(50):
            most = max(most, taken - done)
            taken += 1
            yield lambda number=number: work(number)

    assert list(in_parallel(jobs(), threads)) == list(range(50))
    assert 0 < most < 4 * threads


def test_an_error_in_a_job_is_raised():
    def broken():
        raise ValueError("no such face")

    with pytest.raises(ValueError, match="no such face"):
        list(in_parallel([broken]))
