"""Write the graph in int8 (QDQ and QOperator form) and in fp16, and correct the mean of its output."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from gpenlib.compile import rounding
from gpenlib.compile.calibrate import ChannelRange
from gpenlib.compile.rounding import ConvolutionLayer, QuantisationError, RoundedLayer, convolution_layers
from gpenlib.export.graphs import CONVOLUTIONS, sort_nodes
from gpenlib.files import read_json
from gpenlib.images import RGB_CHANNELS
from gpenlib.infer.runtime import FILES, MANIFEST_FILE, MODEL_FILE
from gpenlib.settings import SettingsError

QOPERATOR_FILE = "model_qoperator.onnx"
MODEL_FILES = {QOPERATOR_FILE, *FILES.values()}  # what an artefact consists of beside its manifest


def read_listing(path: Path) -> dict[str, Any]:
    """Return a manifest; nothing if it is absent or no JSON object."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def older_files(folder: Path) -> list[str]:
    """Return the names of what an older build wrote into a folder, manifest first."""
    manifest = read_listing(folder / MANIFEST_FILE)
    if (kind := manifest.get("kind")) not in ("gpen-artefact", "vendor-build"):
        return []
    text = str([manifest.get(key) for key in ("files", "torch_files", "files_sha256")])
    text += repr(MODEL_FILE) if kind == "gpen-artefact" else ""  # older manifests do not list it
    return [MANIFEST_FILE, *(name for name in MODEL_FILES if repr(name) in text)]


def check_folder(folder: Path, names: Iterable[str], ours: Iterable[str]) -> None:
    """Refuse a folder in which files of these names would be replaced that are not ``ours``."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise SettingsError(f"{there} is no folder; move it away, or build into another folder")
    present = [name for name in sorted({*names} - {*ours}) if os.path.lexists(folder / name)]
    if present:
        told = f"{folder} holds {', '.join(present)}, which no build wrote"
        raise SettingsError(f"{told}: move it away, or build into another folder")


def remove_older(folder: Path) -> None:
    """Remove the artefact that lies in a folder, manifest first; files that it does not list stay."""
    for name in older_files(folder):
        (folder / name).unlink(missing_ok=True)


def count_quantised(model: onnx.ModelProto) -> dict[str, int]:
    """Return, by operator of the float graph, how many layers are 8-bit as a whole (halves, phases)."""
    quantised = quantised_nodes(model)
    counts = dict.fromkeys(CONVOLUTIONS, 0)
    for layer in convolution_layers(model):
        counts[layer.operator] += all(node.name in quantised for node in layer.nodes)
    written = {name for name, operator in quantised.items() if operator == "QLinearConv"}
    counts["Conv"] += sum(".phase" not in name for name in written)
    counts["ConvTranspose"] += len({name.rpartition(".phase")[0] for name in written if ".phase" in name})
    return counts


def quantised_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Return name and operator of every convolution node with 8-bit data and weights."""
    producers = {name: node.op_type for node in model.graph.node for name in node.output}

    def in_8_bits(node: onnx.NodeProto) -> bool:
        qdq = all(producers.get(name) == "DequantizeLinear" for name in node.input[:2])
        return node.op_type == "QLinearConv" or (node.op_type in CONVOLUTIONS and qdq)

    return {node.name: node.op_type for node in model.graph.node if in_8_bits(node)}


class _Writer:
    """Collects nodes and constants of the new graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.written: set[str] = set()

    def store(self, name: str, array: NDArray[np.generic]) -> str:
        """Add a constant and return its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, name: str = "", **settings: Any) -> str:
        """Add a node, named after what it writes unless it has a name; return what it writes."""
        self.written.add(output)
        self.nodes.append(helper.make_node(operator, inputs, [output], name or output, **settings))
        return output

    def finish(self) -> None:
        """Give the model the new nodes."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        rounding.drop_unused_constants(self.model)


# QDQ form: QuantizeLinear / DequantizeLinear around convolution inputs and weights, which OpenVINO and
# TensorRT read. Why our own writer and not ONNX Runtime's: scales come from our calibration and can be powers
# of two, the channel axis of transposed convolutions is explicit, and a layer that cannot be quantised is an
# error here, not silence. Outputs are not quantised: OpenVINO gains no time from it, and one scale for all
# channels costs tens of dB.


def write_qdq(model: onnx.ModelProto, layers: Mapping[str, RoundedLayer]) -> None:
    """Insert QDQ pairs in place, into the float deploy graph that the layers were rounded for."""
    writer = _Writer(model)
    for node, layer in rounding.nodes_and_layers(model, layers):
        if layer is None:
            writer.nodes.append(node)
        else:
            _write_qdq_layer(writer, node, layer, layers[layer.name])
    writer.finish()


def _write_qdq_layer(
    writer: _Writer, node: onnx.NodeProto, layer: ConvolutionLayer, rounded: RoundedLayer
) -> None:
    """Add a layer: ``node``, its first, reads 8-bit data and weights of the whole layer."""
    for tensor, step in zip(layer.inputs, rounded.activation_scales, strict=True):
        if f"{tensor}_quantised" not in writer.written:  # once, however many layers read it
            scale = writer.store(f"{tensor}_scale", np.array(step, np.float32))
            zero = writer.store(f"{tensor}_zero_point", np.array(0, np.int8))
            writer.add("QuantizeLinear", [tensor, scale, zero], f"{tensor}_quantised")
    parts = [f"{tensor}_quantised" for tensor in layer.inputs]
    data = parts[0] if len(parts) == 1 else writer.add("Concat", parts, f"{layer.name}.joined", axis=1)
    # Joined data have the first half's step: the other half's weights make up for it (RoundedLayer).
    if f"{data}_dequantised" not in writer.written:
        inputs = [data, f"{layer.inputs[0]}_scale", f"{layer.inputs[0]}_zero_point"]
        writer.add("DequantizeLinear", inputs, f"{data}_dequantised")
    scales = rounded.scales[0] if rounded.per_channel else np.array(rounded.scales[0].max(), np.float32)
    prefix = f"{layer.name}.weight_s8"
    stored = [
        writer.store(prefix, np.ascontiguousarray(rounded.weight)),
        writer.store(f"{prefix}_scale", scales),
        writer.store(f"{prefix}_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    axis: dict[str, Any] = {"axis": rounded.axis} if rounded.per_channel else {}
    weight = writer.add("DequantizeLinear", stored, f"{prefix}_dequantised", **axis)
    bias = node.input[2:]
    if rounded.bias is not None:
        bias = [writer.store(f"{layer.name}.bias_int8", rounded.bias)]
    inputs = [f"{data}_dequantised", weight, *bias]
    writer.nodes.append(rounding.rewired(node, inputs, layer.output, node.name))


# QOperator form: QLinearConv, the operator that ONNX Runtime computes in 8 bits on a CPU. It fuses a QDQ
# convolution into an 8-bit one only if its output is quantised too, and has no 8-bit transposed convolution.
# - With one scale for all channels, rounding the outputs before demodulation costs tens of dB. Here every
#   output channel has its own scale and zero point: the scale is moved into the weights' scales and the zero
#   point into the integer bias, which is exact; DequantizeLinear takes them out again.
# - A stride-2 transposed convolution is four small convolutions, one per phase of the output, whose 8-bit
#   results are interleaved. The depthwise blur behind it takes care of the additional border.
# Standard operators only. Activations are stored as u8 with zero point 128, i.e. s8 with an offset: MLAS, the
# kernel library behind ONNX Runtime, is about eight times faster on them than on s8 (x86 with VNNI).

ONE, MIDDLE = "qoperator_one", "qoperator_middle"
MIDDLE_LEVEL = 128  # zero point of u8 data
TINIEST_STEP = 1e-12
OUTPUT_MARGIN = 1.25  # outputs beyond the calibrated range are not clipped at once; costs no accuracy
# Rows (and columns) of a 3x3 transposed kernel that meet at even and at odd outputs, in the order in which
# they meet inputs i-1 and i: y[2i] = x[i-1] w[2] + x[i] w[0], y[2i+1] = x[i] w[1].
PHASE_TAPS = ((2, 0), (1,))


def write_qoperator(
    model: onnx.ModelProto, layers: Mapping[str, RoundedLayer], output_ranges: Mapping[str, ChannelRange]
) -> None:
    """Replace convolutions by QLinearConv in place, in the float deploy graph that they were rounded for."""
    writer = _Writer(model)
    writer.store(ONE, np.array(1, np.float32))
    writer.store(MIDDLE, np.array(MIDDLE_LEVEL, np.uint8))
    blurs = {node.input[0]: node for node in model.graph.node if node.op_type == "Conv"}
    shapes = onnx.shape_inference.infer_shapes(model).graph
    widths = {value.name: value.type.tensor_type.shape.dim for value in (*shapes.value_info, *shapes.output)}
    for node, layer in rounding.nodes_and_layers(model, layers):
        if layer is None:
            writer.nodes.append(node)
            continue
        rounded = layers[layer.name]
        data = _quantise_inputs(writer, layer, rounded.activation_scales)
        scale, zero = _store_scales(writer, layer.name, rounded, output_ranges[layer.output])
        if layer.operator == "Conv":
            kept = ("kernel_shape", "strides", "pads", "dilations")
            attributes: dict[str, Any] = {a.name: list(a.ints) for a in node.attribute if a.name in kept}
            result = _convolution(writer, data, rounded.weight, layer.name, layer.name, **attributes)
        else:
            width = widths[layer.output][-1].dim_value + 1
            result = _write_phases(writer, data, node, rounded, width)
            _shift_border(node, blurs.get(layer.output))
        name = f"{layer.output}_dequantise"
        writer.add("DequantizeLinear", [result, scale, zero], layer.output, name, axis=1)
    writer.finish()
    del model.graph.value_info[:]  # recorded shapes: up-convolutions are a row and a column larger now


def _quantise_inputs(writer: _Writer, layer: ConvolutionLayer, scales: Sequence[float]) -> tuple[str, str]:
    """Quantise what a layer reads, and join it; return the names of data and (first half's) scale."""
    for tensor, scale in zip(layer.inputs, scales, strict=True):
        if f"{tensor}_quantised" not in writer.written:
            inputs = [tensor, writer.store(f"{tensor}_scale", np.array(scale, np.float32)), MIDDLE]
            writer.add("QuantizeLinear", inputs, f"{tensor}_quantised", f"{tensor}_quantise")
    data, *others = [f"{tensor}_quantised" for tensor in layer.inputs]
    if others:
        data = writer.add("Concat", [data, *others], f"{layer.name}_joined", f"{layer.name}.concat", axis=1)
    return data, f"{layer.inputs[0]}_scale"


def _store_scales(writer: _Writer, name: str, layer: RoundedLayer, seen: ChannelRange) -> tuple[str, str]:
    """Store a layer's weight scales and integer bias; return its output's scale and zero point."""
    # With accumulator a, input step x, weight step w and output step y, an output is y (q - z) for
    # q = round(a x w / y + b / y) + z. QLinearConv knows one y and one z for all channels: y goes into
    # w / y, z - 128 into the bias.
    low = OUTPUT_MARGIN * np.minimum(seen.low, 0.0)
    high = OUTPUT_MARGIN * np.maximum(seen.high, 0.0)
    step = np.maximum((high - low) / 255, TINIEST_STEP)
    zero = np.clip(np.rint(-low / step), 0, 255)
    real_bias = (0.0 if layer.bias is None else layer.bias) + (zero - MIDDLE_LEVEL) * step
    scales = layer.scales[0].astype(np.float64)  # times its input's step the same as of the other half
    unit = layer.activation_scales[0] * scales
    bias = np.clip(np.rint(real_bias / unit), -(2**31), 2**31 - 1).astype(np.int32)
    writer.store(f"{name}.weight_scale", (scales / step).astype(np.float32))
    writer.store(f"{name}.weight_zero", np.zeros(len(step), np.int8))
    writer.store(f"{name}.bias_s32", bias)
    output_scale = writer.store(f"{name}.output_scale", step.astype(np.float32))
    return output_scale, writer.store(f"{name}.output_zero", zero.astype(np.uint8))


def _convolution(
    writer: _Writer, data: tuple[str, str], weight: NDArray[np.int8], layer: str, name: str, **settings: Any
) -> str:
    """Add one QLinearConv of a layer on quantised data; return the name of its result."""
    inputs = [*data, MIDDLE, writer.store(f"{name}.weight_s8", weight)]
    inputs += [f"{layer}.weight_scale", f"{layer}.weight_zero", ONE, MIDDLE, f"{layer}.bias_s32"]
    return writer.add("QLinearConv", inputs, f"{name}_quantised", name, **settings)


def _write_phases(
    writer: _Writer, data: tuple[str, str], node: onnx.NodeProto, layer: RoundedLayer, width: int
) -> str:
    """Write a transposed convolution as four convolutions; [N, C, 2H+2, width], last row and column zero."""
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
            pads = [len(row_taps) - 1, len(column_taps) - 1, 1, 1]  # every phase is H+1 by W+1
            attributes = {"kernel_shape": list(kernel.shape[2:]), "strides": [1, 1], "pads": pads}
            name = f"{node.name}.phase{row}{column}"
            results.append(_convolution(writer, data, kernel, node.name, name, **attributes))
    # [N, 2 rows, 2 columns, C, H, W] -> [N, C, H, 2 rows, W, 2 columns]: columns first, then whole rows. An
    # 8-bit DepthToSpace does the same in one node and no less time, but came with ONNX Runtime 1.21.
    result = writer.add("Concat", results, f"{node.name}_phases", f"{node.name}.join", axis=1)
    steps: list[tuple[str, Any]] = [
        ("Reshape", [0, 2, 2, -1]),
        ("Transpose", [0, 1, 3, 2]),
        ("Reshape", [0, 2, -1, width]),
        ("Transpose", [0, 2, 1, 3]),
        ("Reshape", [0, layer.weight.shape[1], -1, width]),
    ]
    for place, (operator, numbers) in enumerate(steps):
        name = f"{node.name}_interleave{place}"
        if operator == "Reshape":
            shape = writer.store(f"{name}_shape", np.array(numbers))
            result = writer.add(operator, [result, shape], name)
        else:
            result = writer.add(operator, [result], name, perm=numbers)
    return result


def _shift_border(node: onnx.NodeProto, blur: onnx.NodeProto | None) -> None:
    """Take the row and column that the phases add from the padding of the blur behind."""
    pads = next((entry for entry in blur.attribute if entry.name == "pads"), None) if blur else None
    if pads is None or list(pads.ints) != [1, 1, 1, 1]:
        raise QuantisationError(f"{node.name}: no blur with padding 1 behind it; use quantize.format: qdq")
    pads.ints[2:] = [0, 0]


CORRECTED = "output_bias"


def add_to_output(model: onnx.ModelProto, change: NDArray[np.float64]) -> None:
    """Add float64 [3] to the last bias of a graph, in place."""
    graph = model.graph
    node, slot = _last_bias(graph)
    old = next(tensor for tensor in graph.initializer if tensor.name == node.input[slot])
    value = numpy_helper.to_array(old)
    corrected = (value + change.reshape(1, RGB_CHANNELS, 1, 1)).astype(value.dtype)
    node.input[slot] = CORRECTED  # a name of its own: the exporter lets layers with equal biases share one
    if not any(old.name in other.input for other in graph.node):
        graph.initializer.remove(old)
    graph.initializer.append(numpy_helper.from_array(corrected, CORRECTED))


def _last_bias(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, int]:
    """Return the last Add of an RGB constant, among the additions that end in the output, and its input."""
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer if list(tensor.dims) == [1, RGB_CHANNELS, 1, 1]}
    waiting = [graph.output[0].name]
    while waiting:
        node = producers.get(waiting.pop(0))
        if node is None or node.op_type != "Add":
            continue
        for slot, name in enumerate(node.input):
            if name in constants:
                return node, slot
        waiting.extend(node.input)
    raise QuantisationError("the graph does not end in a sum with a bias of 3 channels: nothing to correct")


def to_half(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return the float deploy graph in fp16 with float32 input and output, and its convolutions by type."""
    # The mapping network, the style affines and demodulation work on vectors; they stay float32 because sums
    # of squares leave fp16's range (65504) and 1e-8 is below its smallest number. They cost nothing there.
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    maps = {value.name for value in values if len(value.type.tensor_type.shape.dim) >= 4}
    vector_nodes = [
        node.name for node in inferred.graph.node if node.output[0] not in maps or node.op_type == "Unsqueeze"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a remark on every constant below fp16's smallest number
        half = convert_float_to_float16(inferred, keep_io_types=True, node_block_list=vector_nodes)
    join_casts(half)
    del half.graph.value_info[:]  # recorded types: some are fp16 now
    sort_nodes(half.graph)  # the converter's casts stand at the end, which ONNX Runtime alone forgives
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    counts = Counter(
        "fp16" if kinds.get(node.input[1]) == TensorProto.FLOAT16 else "fp32"
        for node in half.graph.node
        if node.op_type in CONVOLUTIONS
    )
    if counts["fp32"] or not counts["fp16"]:
        raise QuantisationError(f"convolutions by weight type in fp16: {dict(counts)}")
    return half, dict(counts)


def join_casts(model: onnx.ModelProto) -> None:
    """Remove the detours float32 -> fp16 -> float32 that the converter leaves."""
    # It casts the result of every node it was told to leave alone to fp16, and the input of the next one
    # back: the style path would be rounded, and large styles overflow, between any two of its nodes.
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    target = {node.output[0]: helper.get_node_attr_value(node, "to") for node in casts}
    source = {node.output[0]: node.input[0] for node in casts}
    detours = {
        name: source[narrow]
        for name, narrow in source.items()
        if target[name] == TensorProto.FLOAT and target.get(narrow) == TensorProto.FLOAT16
    }
    for node in model.graph.node:
        node.input[:] = [detours.get(name, name) for name in node.input]
    # Cast chains are two long at most: first the widening casts lose their readers, then the narrowing ones.
    for _ in range(2):
        read = {value.name for value in model.graph.output}
        read |= {name for node in model.graph.node for name in node.input}
        kept = [node for node in model.graph.node if node.op_type != "Cast" or node.output[0] in read]
        del model.graph.node[:]
        model.graph.node.extend(kept)
