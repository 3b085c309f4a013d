"""Write int8 in QDQ form: QuantizeLinear / DequantizeLinear around convolution inputs and weights.

The form that OpenVINO and TensorRT read. Why our own writer and not ONNX Runtime's: scales come from our
calibration and can be rounded to powers of two, the channel axis of transposed convolutions is explicit, and
a layer that cannot be quantised is an error here, not silence. Outputs are not quantised: OpenVINO gains no
time from it, and with one scale for all channels it costs tens of dB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gpenlib.compile.halves import convolution_layers, drop_unused_constants
from gpenlib.compile.layers import RoundedLayer


def write_qdq(model: onnx.ModelProto, layers: Mapping[str, RoundedLayer]) -> None:
    """Insert QDQ pairs in place.

    Parameters
    ----------
    model : ModelProto
        The float deploy graph, joined or in halves; changed in place.
    layers : mapping of layer name to RoundedLayer
        As :func:`gpenlib.compile.layers.round_layers` gives them for this graph.
    """
    parts = {
        node.name: (layers[layer.name], part)
        for layer in convolution_layers(model)
        if layer.name in layers
        for part, node in enumerate(layer.nodes)
    }
    readers: dict[str, str] = {}  # activation tensor -> its dequantised copy
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name in parts:
            (layer, part), tensor = parts[node.name], node.input[0]
            if tensor not in readers:
                readers[tensor] = f"{tensor}_dequantised"
                nodes += _activation_pair(model, tensor, readers[tensor], layer.activation_scales[part])
            nodes.append(_weight_node(model, node.name, layer, part))
            del node.input[:]
            node.input.extend([readers[tensor], nodes[-1].output[0]])
            if layer.bias is not None and part == 0:
                name = f"{node.name}.bias_int8"
                model.graph.initializer.append(numpy_helper.from_array(layer.bias, name))
                node.input.append(name)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused_constants(model)


def _activation_pair(model: onnx.ModelProto, tensor: str, output: str, scale: float) -> list[onnx.NodeProto]:
    """Return QuantizeLinear and DequantizeLinear nodes for one activation tensor."""
    scale_name, zero_name = f"{tensor}_scale", f"{tensor}_zero_point"
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), scale_name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero_name))
    middle = f"{tensor}_quantised"
    return [
        helper.make_node("QuantizeLinear", [tensor, scale_name, zero_name], [middle], f"{tensor}_quantise"),
        helper.make_node(
            "DequantizeLinear", [middle, scale_name, zero_name], [output], f"{tensor}_dequantise"
        ),
    ]


def _weight_node(model: onnx.ModelProto, name: str, layer: RoundedLayer, part: int) -> onnx.NodeProto:
    """Store the int8 weights of a part of a layer and return the DequantizeLinear node that reads them."""
    prefix = f"{name}.weight_s8"
    scales = layer.scales[part] if layer.per_channel else np.array(layer.scales[part].max(), np.float32)
    zero = np.zeros(scales.shape, np.int8)
    weight = np.ascontiguousarray(layer.weights()[part])
    for array, suffix in ((weight, ""), (scales, "_scale"), (zero, "_zero_point")):
        model.graph.initializer.append(numpy_helper.from_array(array, prefix + suffix))
    inputs = [prefix, f"{prefix}_scale", f"{prefix}_zero_point"]
    attributes: dict[str, Any] = {"axis": layer.axis} if layer.per_channel else {}
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{prefix}_dequantised"], f"{prefix}_dequantise", **attributes
    )
