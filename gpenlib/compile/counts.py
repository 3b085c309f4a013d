"""What is quantised in a written graph, by layers and by nodes."""

from __future__ import annotations

import onnx

from gpenlib.compile.halves import convolution_layers
from gpenlib.export.onnx_export import CONVOLUTIONS


def count_quantised(model: onnx.ModelProto) -> dict[str, int]:
    """Return, by operator of the float graph, how many layers have 8-bit data and weights.

    Halves count as one layer, and only if both are quantised; so do the phases of an up-convolution.
    """
    quantised = quantised_nodes(model)
    counts = dict.fromkeys(CONVOLUTIONS, 0)
    for layer in convolution_layers(model):
        counts[layer.operator] += all(node.name in quantised for node in layer.nodes)
    written = {name for name, operator in quantised.items() if operator == "QLinearConv"}
    phased = {layer for name in written for layer, found, _ in [name.rpartition(".phase")] if found}
    counts["Conv"] += sum(".phase" not in name for name in written)
    counts["ConvTranspose"] += len(phased)
    return counts


def quantised_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Return name and operator of every convolution node with 8-bit data and weights."""
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    return {
        node.name: node.op_type
        for node in model.graph.node
        if node.op_type == "QLinearConv"
        or (
            node.op_type in CONVOLUTIONS
            and all(producers.get(name) == "DequantizeLinear" for name in node.input[:2])
        )
    }
