"""Compiled files can take the place of a circulated GPEN-BFR ONNX file in plain ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest

from gpenlib.compile import compile_model
from gpenlib.data.faces import embedded_faces
from gpenlib.export import deploy_form, export_onnx
from gpenlib.export.graphs import parity
from gpenlib.images import resize, to_grey, to_tensor

LEAST = {"export": 90.0, "fp32": 90.0, "fp16": 50.0, "int8-openvino": 20.0, "int8-onnxruntime": 20.0}


@pytest.fixture(scope="module", params=list(LEAST))
def case(request, tiny_model, float_graph, tmp_path_factory):
    """(kind, path of an ONNX file)."""
    folder = tmp_path_factory.mktemp("drop_in")
    if request.param == "export":
        return request.param, export_onnx(tiny_model, folder / "gpen.onnx")
    dtype, _, backend = request.param.partition("-")
    build = {
        "backend": {"dtype": dtype, "type": backend or "openvino"},
        "dataset": {"sampler": {"get_data_num": 2}},
    }
    return request.param, compile_model(tiny_model, build, folder, float_graph) / "model.onnx"


def test_interface_of_the_circulated_files(case):
    """One required input called input, float32 RGB; the first output is the image; standard operators."""
    _, path = case
    model = onnx.load(path)
    initial = {tensor.name for tensor in model.graph.initializer}
    (given,) = [value for value in model.graph.input if value.name not in initial]
    assert given.name == "input"
    for value in (given, model.graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] == [3, 64, 64]
    assert {entry.domain for entry in model.opset_import if entry.version} <= {"", "ai.onnx"}
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    assert not model.functions


def test_the_loop_of_a_face_tool(case, tiny_model):
    """What such tools do with a 512-px file: normalise to [-1, 1], run, take the first output."""
    kind, path = case
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    face = to_grey(resize(embedded_faces(3).read(2), 64))
    crop = (face.astype(np.float32) / 255.0 - 0.5) / 0.5
    crop = np.expand_dims(crop.transpose(2, 0, 1), axis=0).astype(np.float32)
    result = session.run(None, {"input": crop})[0]
    assert result.dtype == np.float32 and result.shape == (1, 3, 64, 64)
    import torch

    with torch.inference_mode():
        expected = deploy_form(tiny_model)(torch.from_numpy(to_tensor(face))).numpy()
    assert parity(expected, result).psnr > LEAST[kind]
