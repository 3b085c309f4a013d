"""Calibration on a small hand-made graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gpenlib.compile.calibrate import CalibrationError, collect_histograms, thresholds_from


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


def test_ranges_cover_all_images(doubling_model: Path) -> None:
    histograms, count = collect_histograms(
        doubling_model, ["middle", "input"], iter([image(0.25), image(-0.75), image(0.5)])
    )
    assert count == 3
    assert thresholds_from(histograms, "max", 100.0) == {"middle": 1.5, "input": 0.75}
    assert histograms["middle"].counts.sum() == 3 * 48


def test_no_images_is_an_error(doubling_model: Path) -> None:
    with pytest.raises(CalibrationError, match="no calibration image"):
        collect_histograms(doubling_model, ["middle"], iter([]))


def test_tensors_that_are_never_alive_are_named(doubling_model: Path) -> None:
    with pytest.raises(CalibrationError, match="middle"):
        collect_histograms(doubling_model, ["middle"], iter([image(0.0)]))


def test_values_that_are_not_finite_are_named_with_their_image(doubling_model: Path) -> None:
    with pytest.raises(CalibrationError, match="middle is not finite on calibration image 1"):
        collect_histograms(doubling_model, ["middle"], iter([image(1.0), image(np.inf)]))
