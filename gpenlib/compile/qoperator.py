"""Write int8 in QOperator form: QLinearConv, the operator that ONNX Runtime computes in 8 bits on a CPU.

ONNX Runtime fuses a QDQ convolution into an 8-bit one only if its output is quantised too, and has no 8-bit
transposed convolution. Both are solved here without loss worth mentioning:

- With one scale for all channels, rounding the outputs before demodulation costs tens of dB. Here every
  output channel has its own scale and zero point: the scale is moved into the weights' scales and the zero
  point into the integer bias, which is exact; DequantizeLinear, which knows scales per channel, takes them
  out again.
- A stride-2 transposed convolution is four small convolutions, one per phase of the output, whose 8-bit
  results are interleaved (DepthToSpace). The depthwise blur behind it takes care of the additional border.

The halves of a layer (:mod:`gpenlib.compile.halves`) are quantised with a step each and joined in 8 bits,
where that moves a quarter of the bytes, for one convolution: their products of activation and weight step
are equal.

Standard operators only. Activations are stored as u8 with zero point 128, i.e. s8 with an offset: MLAS, the
kernel library behind ONNX Runtime, is about eight times faster on them than on s8 (x86 with VNNI).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gpenlib.compile.calibrate import ChannelRange
from gpenlib.compile.halves import ConvolutionLayer, drop_unused_constants, nodes_and_layers
from gpenlib.compile.layers import QuantisationError, RoundedLayer

MIDDLE = 128  # zero point of u8 data
TINIEST_STEP = 1e-12
OUTPUT_MARGIN = 1.25  # outputs beyond the calibrated range are not clipped at once; costs no accuracy
# Rows (and columns) of a 3x3 transposed kernel that meet at even and at odd outputs, in the order in which
# they meet inputs i-1 and i: y[2i] = x[i-1] w[2] + x[i] w[0], y[2i+1] = x[i] w[1].
PHASE_TAPS = ((2, 0), (1,))


def write_qoperator(
    model: onnx.ModelProto,
    layers: Mapping[str, RoundedLayer],
    output_ranges: Mapping[str, ChannelRange],
) -> None:
    """Replace convolutions by QLinearConv in place.

    Parameters
    ----------
    model : ModelProto
        The float deploy graph, joined or in halves; changed in place.
    layers : mapping of layer name to RoundedLayer
        As :func:`gpenlib.compile.layers.round_layers` gives them for this graph.
    output_ranges : mapping of tensor name to ChannelRange
        Smallest and largest value of every output channel of these layers over the calibration images.

    Raises
    ------
    QuantisationError
        If a transposed convolution is not 3x3 with stride 2 and a blur behind it.
    """
    writer = _Writer(model)
    blurs = {node.input[0]: node for node in model.graph.node if node.op_type == "Conv"}
    for node, found in nodes_and_layers(model, layers):
        if found is None:
            writer.nodes.append(node)
            continue
        layer = layers[found.name]
        data = writer.quantise_inputs(found, layer.activation_scales)
        steps = writer.store_scales(found.name, layer, output_ranges[found.output])
        if found.operator == "Conv":
            attributes = {
                entry.name: list(entry.ints)
                for entry in node.attribute
                if entry.name in ("kernel_shape", "strides", "pads", "dilations")
            }
            result = writer.convolution(data, layer.weight, found.name, found.name, attributes)
        else:
            result = _write_phases(writer, data, node, layer)
            _shift_border(node, blurs.get(found.output))
        writer.dequantise(result, found.output, *steps)
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    del model.graph.value_info[:]  # recorded shapes: up-convolutions are a row and a column larger now
    drop_unused_constants(model)


class _Writer:
    """Collects nodes and constants of the new graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.one = self.store("qoperator_one", np.array(1, np.float32))
        self.middle = self.store("qoperator_middle", np.array(MIDDLE, np.uint8))
        self._quantised: set[str] = set()

    def store(self, name: str, array: NDArray[np.generic]) -> str:
        """Add a constant and return its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def quantise_inputs(self, layer: ConvolutionLayer, scales: Sequence[float]) -> tuple[str, str]:
        """Quantise what a layer reads, and join it; return the names of data and (first half's) scale."""
        parts = [
            self._quantise_input(tensor, scale) for tensor, scale in zip(layer.inputs, scales, strict=True)
        ]
        data = parts[0]
        if len(parts) > 1:
            data = f"{layer.name}_joined"
            self.nodes.append(helper.make_node("Concat", parts, [data], f"{layer.name}.concat", axis=1))
        return data, f"{layer.inputs[0]}_scale"

    def _quantise_input(self, tensor: str, scale: float) -> str:
        """Quantise an activation once, however many layers read it."""
        if tensor not in self._quantised:
            self._quantised.add(tensor)
            inputs = [tensor, self.store(f"{tensor}_scale", np.array(scale, np.float32)), self.middle]
            self.nodes.append(
                helper.make_node("QuantizeLinear", inputs, [f"{tensor}_quantised"], f"{tensor}_quantise")
            )
        return f"{tensor}_quantised"

    def store_scales(self, name: str, layer: RoundedLayer, found: ChannelRange) -> tuple[str, str]:
        """Store a layer's weight scales and integer bias; return its output's scale and zero point.

        With accumulator a, input step x, weight step w and output step y, an output is y (q - z) for
        q = round(a x w / y + b / y) + z. QLinearConv knows one y and one z for all channels: y goes into
        w / y, z - 128 into the bias.
        """
        low = OUTPUT_MARGIN * np.minimum(found.low, 0.0)
        high = OUTPUT_MARGIN * np.maximum(found.high, 0.0)
        step = np.maximum((high - low) / 255, TINIEST_STEP)
        zero = np.clip(np.rint(-low / step), 0, 255)
        real_bias = (0.0 if layer.bias is None else layer.bias) + (zero - MIDDLE) * step
        scales = layer.scales[0].astype(np.float64)  # times its input's step the same as of the other half
        unit = layer.activation_scales[0] * scales
        self.store(f"{name}.weight_scale", (scales / step).astype(np.float32))
        self.store(f"{name}.weight_zero", np.zeros(len(step), np.int8))
        self.store(
            f"{name}.bias_s32", np.clip(np.rint(real_bias / unit), -(2**31), 2**31 - 1).astype(np.int32)
        )
        return (
            self.store(f"{name}.output_scale", step.astype(np.float32)),
            self.store(f"{name}.output_zero", zero.astype(np.uint8)),
        )

    def convolution(
        self,
        data: tuple[str, str],
        weight: NDArray[np.int8],
        layer: str,
        name: str,
        attributes: Mapping[str, list[int]],
    ) -> str:
        """Add one QLinearConv of a layer on quantised data; return the name of its result."""
        inputs = [
            *(*data, self.middle),
            self.store(f"{name}.weight_s8", weight),
            *(f"{layer}.weight_scale", f"{layer}.weight_zero"),
            *(self.one, self.middle, f"{layer}.bias_s32"),
        ]
        result = f"{name}_quantised"
        settings: dict[str, Any] = dict(attributes)
        self.nodes.append(helper.make_node("QLinearConv", inputs, [result], name, **settings))
        return result

    def dequantise(self, tensor: str, output: str, scale: str, zero: str) -> None:
        """Add DequantizeLinear with one scale and zero point per channel."""
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [tensor, scale, zero], [output], f"{output}_dequantise", axis=1
            )
        )


def _write_phases(writer: _Writer, data: tuple[str, str], node: onnx.NodeProto, layer: RoundedLayer) -> str:
    """Write a transposed convolution as four convolutions; [N, C, 2H+2, 2W+2], last row and column zero."""
    settings = {entry.name: list(entry.ints) for entry in node.attribute if entry.ints}
    if layer.weight.shape[2:] != (3, 3) or settings["strides"] != [2, 2] or any(settings.get("pads", [])):
        raise QuantisationError(
            f"{node.name}: kernel {layer.weight.shape[2:]}, {settings}; QOperator form knows transposed "
            "convolutions of 3x3, stride 2, no padding; use quantize.format: qdq"
        )
    weight = layer.weight.transpose(1, 0, 2, 3)  # [Cout, Cin, 3, 3]
    results = []
    for row, row_taps in enumerate(PHASE_TAPS):
        for column, column_taps in enumerate(PHASE_TAPS):
            kernel = np.ascontiguousarray(weight[:, :, row_taps][:, :, :, column_taps])
            attributes = {
                "kernel_shape": list(kernel.shape[2:]),
                "strides": [1, 1],
                "pads": [len(row_taps) - 1, len(column_taps) - 1, 1, 1],  # every phase is H+1 by W+1
            }
            name = f"{node.name}.phase{row}{column}"
            results.append(writer.convolution(data, kernel, node.name, name, attributes))
    joined, result = f"{node.name}_phases", f"{node.name}_interleaved"
    writer.nodes.append(helper.make_node("Concat", results, [joined], f"{node.name}.join", axis=1))
    writer.nodes.append(
        helper.make_node(
            "DepthToSpace", [joined], [result], f"{node.name}.interleave", blocksize=2, mode="DCR"
        )
    )
    return result


def _shift_border(node: onnx.NodeProto, blur: onnx.NodeProto | None) -> None:
    """Take the row and column that the phases add from the padding of the blur behind."""
    pads = next((entry for entry in blur.attribute if entry.name == "pads"), None) if blur else None
    if pads is None or list(pads.ints) != [1, 1, 1, 1]:
        raise QuantisationError(f"{node.name}: no blur with padding 1 behind it; use quantize.format: qdq")
    pads.ints[2:] = [0, 0]
