"""Write the fp16 model: half-precision feature maps and weights, single-precision style path."""

from __future__ import annotations

import warnings
from collections import Counter

import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

FEATURE_RANK = 4


class HalfError(RuntimeError):
    """An fp16 conversion that did not convert what it should."""


def to_half(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Convert the float deploy graph to fp16, keeping float32 input and output.

    The mapping network, the style affines and demodulation work on vectors; they stay float32 because sums of
    squares leave fp16's range (65504) and 1e-8 is below its smallest number. They cost nothing there.

    Parameters
    ----------
    model : ModelProto
        The deploy graph; not changed.

    Returns
    -------
    (ModelProto, dict)
        The fp16 graph, and how many convolutions hold weights of each type.

    Raises
    ------
    HalfError
        If a convolution kept float32 weights.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*inferred.graph.value_info, *inferred.graph.output]
    }
    vector_nodes = [
        node.name
        for node in inferred.graph.node
        if ranks.get(node.output[0], 0) < FEATURE_RANK or node.op_type == "Unsqueeze"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on every constant below fp16's smallest number
        half = convert_float_to_float16(inferred, keep_io_types=True, node_block_list=vector_nodes)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    counts = Counter(
        "fp16" if kinds.get(node.input[1]) == TensorProto.FLOAT16 else "fp32"
        for node in half.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    )
    if counts["fp32"] or not counts["fp16"]:
        raise HalfError(f"convolutions by weight type after conversion: {dict(counts)}; all should be fp16")
    return half, dict(counts)
