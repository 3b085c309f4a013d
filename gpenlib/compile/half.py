"""Write the fp16 model: half-precision feature maps and weights, single-precision style path."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

FEATURE_RANK = 4


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """Silence the converter's remarks on every constant below fp16's smallest number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    with quiet_conversion():
        half = convert_float_to_float16(inferred, keep_io_types=True, node_block_list=vector_nodes)
    join_casts(half)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    counts = Counter(
        "fp16" if kinds.get(node.input[1]) == TensorProto.FLOAT16 else "fp32"
        for node in half.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    )
    if counts["fp32"] or not counts["fp16"]:
        raise HalfError(f"convolutions by weight type after conversion: {dict(counts)}; all should be fp16")
    return half, dict(counts)


def join_casts(model: onnx.ModelProto) -> int:
    """Remove the detours float32 -> fp16 -> float32 that the converter leaves between float32 nodes.

    It casts the result of every node it was told to leave alone to fp16, and the input of the next one
    back: the style path would be rounded, and large styles overflow, between any two of its nodes.

    Returns
    -------
    int
        How many reads were led past a detour.
    """
    narrow = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and _target(node) == TensorProto.FLOAT16
    }
    detours = {
        node.output[0]: narrow[node.input[0]]
        for node in model.graph.node
        if node.op_type == "Cast" and _target(node) == TensorProto.FLOAT and node.input[0] in narrow
    }
    outputs = {value.name for value in model.graph.output}
    led = 0
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in detours:
                node.input[place] = detours[name]
                led += 1
    read = outputs | {name for node in model.graph.node for name in node.input}
    # Cast chains are two long at most: first the widening casts lose their readers, then the narrowing ones.
    for _ in range(2):
        kept = [n for n in model.graph.node if n.op_type != "Cast" or n.output[0] in read]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        read = outputs | {name for node in model.graph.node for name in node.input}
    return led


def _target(node: onnx.NodeProto) -> int:
    """Return the type that a Cast node casts to."""
    return next(int(entry.i) for entry in node.attribute if entry.name == "to")
