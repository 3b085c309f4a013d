"""Write int8 in QDQ form: QuantizeLinear / DequantizeLinear around convolution inputs and weights.

The form that OpenVINO and TensorRT read. Why our own writer and not ONNX Runtime's: scales come from our
calibration and can be rounded to powers of two, the channel axis of transposed convolutions is explicit, and
a layer that cannot be quantised is an error here, not silence. Outputs are not quantised: OpenVINO gains no
time from it, and with one scale for all channels it costs tens of dB.

The halves of a layer (:mod:`gpenlib.compile.halves`) are quantised with a step each and joined in 8 bits for
one convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gpenlib.compile.halves import ConvolutionLayer, drop_unused_constants, nodes_and_layers
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
    writer = _Writer(model)
    for node, found in nodes_and_layers(model, layers):
        if found is None:
            writer.nodes.append(node)
        else:
            writer.write(node, found, layers[found.name])
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    drop_unused_constants(model)


class _Writer:
    """Collects nodes and constants of the new graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants = model.graph.initializer
        self._written: set[str] = set()

    def write(self, node: onnx.NodeProto, layer: ConvolutionLayer, rounded: RoundedLayer) -> None:
        """Add a layer: ``node``, its first, reads 8-bit data and weights of the whole layer."""
        parts = [
            self._quantise(tensor, scale)
            for tensor, scale in zip(layer.inputs, rounded.activation_scales, strict=True)
        ]
        data = parts[0]
        if len(parts) > 1:
            data = f"{layer.name}.joined"
            self._add("Concat", parts, data, axis=1)
        # Joined data have the first half's step: the other half's weights make up for it (RoundedLayer).
        inputs = [self._dequantise(data, layer.inputs[0]), self._weight(layer.name, rounded)]
        if rounded.bias is not None:
            inputs.append(self._store(f"{layer.name}.bias_int8", rounded.bias))
        result = onnx.NodeProto()
        result.CopyFrom(node)
        result.input[:] = inputs if rounded.bias is not None else [*inputs, *node.input[2:]]
        result.output[:] = [layer.output]
        self.nodes.append(result)

    def _quantise(self, tensor: str, scale: float) -> str:
        """Quantise an activation, once however many layers read it."""
        result = f"{tensor}_quantised"
        if result not in self._written:
            scales = self._store(f"{tensor}_scale", np.array(scale, np.float32))
            zeros = self._store(f"{tensor}_zero_point", np.array(0, np.int8))
            self._add("QuantizeLinear", [tensor, scales, zeros], result)
        return result

    def _dequantise(self, data: str, tensor: str) -> str:
        """Dequantise 8-bit data with the step of an activation."""
        result = f"{data}_dequantised"
        if result not in self._written:
            self._add("DequantizeLinear", [data, f"{tensor}_scale", f"{tensor}_zero_point"], result)
        return result

    def _weight(self, name: str, layer: RoundedLayer) -> str:
        """Store a layer's int8 weights and add what dequantises them."""
        scales = layer.scales[0] if layer.per_channel else np.array(layer.scales[0].max(), np.float32)
        prefix = f"{name}.weight_s8"
        inputs = [
            self._store(prefix, np.ascontiguousarray(layer.weight)),
            self._store(f"{prefix}_scale", scales),
            self._store(f"{prefix}_zero_point", np.zeros(scales.shape, np.int8)),
        ]
        attributes: dict[str, Any] = {"axis": layer.axis} if layer.per_channel else {}
        return self._add("DequantizeLinear", inputs, f"{prefix}_dequantised", **attributes)

    def _store(self, name: str, array: NDArray[np.generic]) -> str:
        """Add a constant and return its name."""
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that is named after what it writes; return that."""
        self._written.add(output)
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output
