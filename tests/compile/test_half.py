"""fp16 files: the style path stays float32 throughout."""

import onnx
from onnx import TensorProto

from gpenlib.compile.write import join_casts, to_half


def test_no_value_of_the_style_path_passes_through_fp16(float_graph):
    """A vector is cast to fp16 only where a feature map takes it up."""
    half, _ = to_half(onnx.load(float_graph))
    narrowed = {
        node.output[0]
        for node in half.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16
    }
    readers = {name: node.op_type for node in half.graph.node for name in node.input if name in narrowed}
    assert narrowed and set(readers.values()) <= {"Mul", "Add", "Conv"}
    assert "Cast" not in readers.values()
    assert join_casts(half) == 0  # nothing is left to join
