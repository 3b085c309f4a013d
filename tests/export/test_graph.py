"""What is counted in an ONNX file."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpenlib.export import summarise_graph


@pytest.fixture
def graph_path(tmp_path):
    """Four convolutions: constant weights, the same behind Identity, as Constant node, and computed."""
    weight = np.ones((2, 2, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["a"]),
        helper.make_node("Identity", ["weight"], ["copy"]),
        helper.make_node("ConvTranspose", ["a", "copy"], ["b"]),
        helper.make_node("Constant", [], ["literal"], value=numpy_helper.from_array(weight, "literal")),
        helper.make_node("Conv", ["b", "literal"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["style"], keepdims=1),
        helper.make_node("Mul", ["weight", "style"], ["computed"]),
        helper.make_node("Conv", ["c", "computed"], ["output"]),
    ]
    image, output = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("input", "output")
    )
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([0, 2, 3], np.int64), "axes"),
    ]
    graph = helper.make_graph(nodes, "four", [image], [output], constants)
    path = tmp_path / "four.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def test_counts(graph_path):
    found = summarise_graph(graph_path)
    assert found.nodes == 8
    assert found.operators == {
        "Conv": 3, "Identity": 1, "ConvTranspose": 1, "Constant": 1, "ReduceMean": 1, "Mul": 1,
    }  # fmt: skip
    assert (found.constant_convolutions, found.runtime_convolutions) == (3, 1)
    assert found.parameters == 4 + 3
    assert found.bytes == graph_path.stat().st_size
    assert found.opset == 18


def test_goes_into_json(graph_path):
    found = summarise_graph(str(graph_path)).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert next(iter(found["operators"])) == "Conv", "most frequent first"
