"""Calibration on a small hand-made graph, and its cache."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gpenlib.compile.calibrate import (
    CalibrationError,
    cache_key,
    calibrate,
    load_calibration,
    save_calibration,
)


@pytest.fixture
def doubling_model(tmp_path: Path) -> Path:
    """input -> middle = 2 * input -> output = middle * middle."""
    nodes = [
        helper.make_node("Add", ["input", "input"], ["middle"]),
        helper.make_node("Mul", ["middle", "middle"], ["output"]),
    ]
    shape = ["n", 3, 4, 4]
    graph = helper.make_graph(
        nodes,
        "doubling",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def image(value: float) -> np.ndarray:
    return np.full((1, 3, 4, 4), value, np.float32)


def test_one_pass_records_ranges_means_and_outputs(doubling_model: Path) -> None:
    first = image(0.25)
    first[:, 1] = 1.0  # one channel of its own
    found = calibrate(
        doubling_model, ["middle", "input"], ["output"], iter([first, image(-0.75), image(0.5)])
    )
    assert found.images == 3
    assert found.thresholds("max", 100.0) == {"middle": 2.0, "input": 1.0}
    assert found.histograms["middle"].counts.sum() == 3 * 48
    np.testing.assert_allclose(found.input_means["input"], [0.0, 0.25, 0.0])
    np.testing.assert_allclose(found.output_ranges["output"].low, [0.25, 1.0, 0.25])
    np.testing.assert_allclose(found.output_ranges["output"].high, [2.25, 4.0, 2.25])


def test_no_images_is_an_error(doubling_model: Path) -> None:
    with pytest.raises(CalibrationError, match="no calibration image"):
        calibrate(doubling_model, ["middle"], [], iter([]))


def test_tensors_that_are_never_alive_are_named(doubling_model: Path) -> None:
    """One half of a layer's input may be zero: encoder features that do not exist at this size."""
    found = calibrate(doubling_model, ["middle", "input"], [], iter([image(0.0)]))
    assert found.thresholds("mse", 99.0) == {"middle": 0.0, "input": 0.0}
    with pytest.raises(CalibrationError, match="zero on every calibration image: middle, input"):
        found.check_alive([("middle", "input")])
    found.histograms["input"].update(image(0.5))
    found.check_alive([("middle", "input")])
    with pytest.raises(CalibrationError, match="zero on every calibration image: middle$"):
        found.check_alive([("input",), ("middle",)])


def test_values_that_are_not_finite_are_named_with_their_image(doubling_model: Path) -> None:
    with pytest.raises(CalibrationError, match="middle is not finite on calibration image 1"):
        calibrate(doubling_model, ["middle"], [], iter([image(1.0), image(np.inf)]))


def test_memory_does_not_grow_with_the_number_of_images(doubling_model: Path) -> None:
    """What is kept after 200 images is as large as after 8."""

    def kept(count: int) -> int:
        rng = np.random.default_rng(0)
        images = (rng.standard_normal((1, 3, 4, 4)).astype(np.float32) for _ in range(count))
        tracemalloc.start()
        found = calibrate(doubling_model, ["middle", "input"], ["output"], images)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.images == count
        return size

    kept(2)  # first use loads libraries
    assert kept(200) <= 1.05 * kept(8)


def test_the_cache_gives_back_what_was_stored(doubling_model: Path, tmp_path: Path) -> None:
    found = calibrate(doubling_model, ["middle"], ["output"], iter([image(0.3), image(-0.8)]))
    path = tmp_path / "cache" / "key.npz"
    assert load_calibration(path) is None
    save_calibration(found, path)
    again = load_calibration(path)
    assert again is not None and again.images == 2
    for mode in ("max", "percentile", "kl_divergence", "mse"):
        assert again.thresholds(mode, 99.0) == found.thresholds(mode, 99.0)
    np.testing.assert_array_equal(again.input_means["middle"], found.input_means["middle"])
    np.testing.assert_array_equal(again.output_ranges["output"].high, found.output_ranges["output"].high)


def test_a_damaged_cache_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "key.npz"
    path.write_bytes(b"not a zip file")
    assert load_calibration(path) is None
    assert "damaged" in caplog.text


def test_every_part_of_the_key_counts() -> None:
    keys = {
        cache_key("model", "images", {"size": 64}),
        cache_key("other", "images", {"size": 64}),
        cache_key("model", "others", {"size": 64}),
        cache_key("model", "images", {"size": 128}),
    }
    assert len(keys) == 4
    assert cache_key("model", "images", {"size": 64}) in keys
