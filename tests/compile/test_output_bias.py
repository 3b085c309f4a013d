"""The output's mean of an int8 file is that of the float network."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpenlib.compile import QuantisationError, compile_model
from gpenlib.compile.build import CORRECTED, add_to_output, float_outputs
from gpenlib.compile.calibrate import open_calibration_data
from gpenlib.export import deploy_form
from gpenlib.infer import open_runtime
from gpenlib.settings import as_build_config


def compiled(model, float_graph: Path, out_dir: Path, correct: bool, **backend) -> tuple[Path, np.ndarray]:
    """Return the artefact, and its mean error on the calibration images, [backends, 3]."""
    build = as_build_config(
        {
            "backend": {"dtype": "int8", "quantize": {"bias_correction": correct}, **backend},
            "dataset": {"sampler": {"get_data_num": 4}},
        }
    )
    folder = compile_model(model, build, out_dir, float_graph)
    images = list(open_calibration_data(build.dataset, model.config.in_size).calibration())
    expected = float_outputs(deploy_form(model), images)
    errors = []
    for name in (build.backend.type, *build.backend.also):
        runtime = open_runtime(folder, backend=name)
        found = [runtime(image) - wanted for image, wanted in zip(images, expected, strict=True)]
        errors.append(np.mean(found, axis=(0, 1, 3, 4)))
    return folder, np.array(errors)


@pytest.mark.parametrize("dtype", ["int8", "int8_bf16"])
def test_no_tint_on_the_calibration_images(tiny_model, float_graph, tmp_path, dtype):
    asked = {"type": "openvino", "dtype": dtype}
    _, without = compiled(tiny_model, float_graph, tmp_path / "without", False, **asked)
    folder, error = compiled(tiny_model, float_graph, tmp_path / "with", True, **asked)
    assert np.abs(without).max() > 1e-3, "there is something to correct"
    # bf16 keeps 8 bits of the last bias.
    assert np.abs(error).max() < {"int8": 1e-5, "int8_bf16": 2e-3}[dtype]
    graph = onnx.load(folder / "model.onnx").graph
    assert [tensor.name for tensor in graph.initializer].count(CORRECTED) == 1


def test_each_file_is_corrected_by_what_it_does_itself(tiny_model, float_graph, tmp_path):
    folder, errors = compiled(
        tiny_model, float_graph, tmp_path / "both", True, type="openvino", also=["onnxruntime"]
    )
    assert np.abs(errors).max() < 1e-5
    shifts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["quantisation"][
        "output_shift"
    ]
    assert set(shifts) == {"model.onnx", "model_qoperator.onnx"}
    assert shifts["model.onnx"] != shifts["model_qoperator.onnx"]


def test_only_the_file_that_auto_keeps_is_corrected(tiny_model, float_graph, tmp_path):
    build = {"backend": {"dtype": "int8", "type": "auto"}, "dataset": {"sampler": {"get_data_num": 2}}}
    folder = compile_model(tiny_model, build, tmp_path / "auto", float_graph)
    shifts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["quantisation"][
        "output_shift"
    ]
    assert set(shifts) == {path.name for path in folder.glob("*.onnx")} == {"model.onnx"}
    names = [tensor.name for tensor in onnx.load(folder / "model.onnx").graph.initializer]
    assert names.count(CORRECTED) == 1


def graph_with(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Return a model from ``x`` to ``y`` with the constant ``bias`` [1, 3, 1, 1] of ones."""
    shape = [1, 3, 2, 2]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "bias")],
    )
    return helper.make_model(graph)


def test_a_shared_bias_keeps_its_value_elsewhere():
    model = graph_with(
        [
            helper.make_node("Add", ["x", "bias"], ["a"]),
            helper.make_node("Mul", ["a", "a"], ["b"]),
            helper.make_node("Add", ["b", "bias"], ["y"]),
        ]
    )
    add_to_output(model, np.array([0.5, 0.0, -0.5]))
    constants = {tensor.name: numpy_helper.to_array(tensor).ravel() for tensor in model.graph.initializer}
    assert constants["bias"].tolist() == [1, 1, 1] and constants[CORRECTED].tolist() == [1.5, 1.0, 0.5]
    assert model.graph.node[0].input[1] == "bias" and model.graph.node[2].input[1] == CORRECTED


def test_a_graph_without_a_last_bias_is_refused():
    model = graph_with(
        [helper.make_node("Add", ["x", "bias"], ["a"]), helper.make_node("Mul", ["a", "a"], ["y"])]
    )
    with pytest.raises(QuantisationError, match="nothing to correct"):
        add_to_output(model, np.zeros(3))
