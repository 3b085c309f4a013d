"""Write the graph in int8 (QDQ and QOperator form) and in fp16."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from gpenlib.compile.calibrate import ChannelRange
from gpenlib.compile.rounding import (
    ConvolutionLayer,
    QuantisationError,
    RoundedLayer,
    convolution_layers,
    drop_unused_constants,
    nodes_and_layers,
)
from gpenlib.export.graphs import CONVOLUTIONS

# ----------------------------------------------------------------------
# What is quantised in a written graph, by layers and by nodes.


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


# ----------------------------------------------------------------------
# Write int8 in QDQ form: QuantizeLinear / DequantizeLinear around convolution inputs and weights.
#
# The form that OpenVINO and TensorRT read. Why our own writer and not ONNX Runtime's: scales come from our
# calibration and can be rounded to powers of two, the channel axis of transposed convolutions is explicit,
# and
# a layer that cannot be quantised is an error here, not silence. Outputs are not quantised: OpenVINO gains no
# time from it, and with one scale for all channels it costs tens of dB.
#
# The halves of a layer (:mod:`gpenlib.compile.halves`) are quantised with a step each and joined in 8 bits
# for
# one convolution.


def write_qdq(model: onnx.ModelProto, layers: Mapping[str, RoundedLayer]) -> None:
    """Insert QDQ pairs in place.

    Parameters
    ----------
    model : ModelProto
        The float deploy graph, joined or in halves; changed in place.
    layers : mapping of layer name to RoundedLayer
        As :func:`gpenlib.compile.layers.round_layers` gives them for this graph.
    """
    writer = _QdqWriter(model)
    for node, found in nodes_and_layers(model, layers):
        if found is None:
            writer.nodes.append(node)
        else:
            writer.write(node, found, layers[found.name])
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    drop_unused_constants(model)


class _QdqWriter:
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


# ----------------------------------------------------------------------
# Write int8 in QOperator form: QLinearConv, the operator that ONNX Runtime computes in 8 bits on a CPU.
#
# ONNX Runtime fuses a QDQ convolution into an 8-bit one only if its output is quantised too, and has no 8-bit
# transposed convolution. Both are solved here without loss worth mentioning:
#
# - With one scale for all channels, rounding the outputs before demodulation costs tens of dB. Here every
#   output channel has its own scale and zero point: the scale is moved into the weights' scales and the zero
#   point into the integer bias, which is exact; DequantizeLinear, which knows scales per channel, takes them
#   out again.
# - A stride-2 transposed convolution is four small convolutions, one per phase of the output, whose 8-bit
#   results are interleaved (DepthToSpace). The depthwise blur behind it takes care of the additional border.
#
# The halves of a layer (:mod:`gpenlib.compile.halves`) are quantised with a step each and joined in 8 bits,
# where that moves a quarter of the bytes, for one convolution: their products of activation and weight step
# are equal.
#
# Standard operators only. Activations are stored as u8 with zero point 128, i.e. s8 with an offset: MLAS, the
# kernel library behind ONNX Runtime, is about eight times faster on them than on s8 (x86 with VNNI).

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
    writer = _QOperatorWriter(model)
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


class _QOperatorWriter:
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


def _write_phases(
    writer: _QOperatorWriter, data: tuple[str, str], node: onnx.NodeProto, layer: RoundedLayer
) -> str:
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


# ----------------------------------------------------------------------
# Write the fp16 model: half-precision feature maps and weights, single-precision style path.

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
