"""Write the graph in int8 (QDQ and QOperator form) and in fp16, and correct the mean of its output."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from gpenlib.compile import rounding
from gpenlib.compile.calibrate import LEVELS, ChannelRange
from gpenlib.compile.rounding import ConvolutionLayer, QuantisationError, RoundedLayer, convolution_layers
from gpenlib.export.graphs import CONVOLUTIONS, drop_unused_constants, sort_nodes
from gpenlib.files import read_json
from gpenlib.images import RGB_CHANNELS
from gpenlib.infer.artefact import MANIFEST_FILE, MODEL_FILE
from gpenlib.infer.runtime import FILES
from gpenlib.settings import SettingsError

QOPERATOR_FILE = "model_qoperator.onnx"
# What follows a transposed convolution's name where plain ones stand for it
PHASES = re.compile(r"\.(phase\d\d|wide)$")
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
    blurs = {node.name for node in model.graph.node for entry in node.attribute if is_grouped(entry)}
    quantised = {name: kind for name, kind in quantised_nodes(model).items() if name not in blurs}
    turned = {name.rpartition(".")[0] for name in quantised if PHASES.search(name)}
    counts = dict.fromkeys(CONVOLUTIONS, 0) | {"ConvTranspose": len(turned)}
    for layer in convolution_layers(model):
        if not PHASES.search(layer.name):
            counts[layer.operator] += all(node.name in quantised for node in layer.nodes)
    whole = [name for name, kind in quantised.items() if kind == "QLinearConv" and not PHASES.search(name)]
    counts["Conv"] += len(whole)
    return counts


def is_grouped(attribute: onnx.AttributeProto) -> bool:
    """Return whether this attribute says so; of a deploy form's convolutions the blurs are."""
    return attribute.name == "group" and attribute.i > 1


def quantised_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Return name and operator of every convolution node, blurs too, with 8-bit data and weights."""
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
        drop_unused_constants(self.model.graph)


# QDQ form: QuantizeLinear / DequantizeLinear around convolution inputs and weights, which OpenVINO and
# TensorRT read. Why our own writer and not ONNX Runtime's: scales come from our calibration and can be powers
# of two, the channel axis of transposed convolutions is explicit, and a layer that cannot be quantised is an
# error here, not silence. Outputs are rounded only where a blur reads them, a step for each channel: one for
# all channels costs tens of dB.


def write_qdq(
    model: onnx.ModelProto, layers: Mapping[str, RoundedLayer], forms: Mapping[str, str] | None = None
) -> None:
    """Insert QDQ pairs in place, into the float deploy graph that the layers were rounded for.

    ``forms`` names, by layer, one of ``FORMS``; all compute the same but for the rounding of an output.
    """
    writer = _Writer(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    blurs = {node.input[0]: node for node in model.graph.node if node.op_type == "Conv"}
    for node, layer in rounding.nodes_and_layers(model, layers):
        if layer is not None:
            form = (forms or {}).get(layer.name) or FORMS[layer.operator][0]
            _write_qdq_layer(writer, node, layer, layers[layer.name], form)
            if form == "wide":
                _shift_border(node, blurs.get(layer.output))
        elif node.op_type == "Conv" and f"{node.input[0]}_rounded" in writer.written:
            weight = _write_blur_weight(writer, node.name, constants[node.input[1]])
            writer.nodes.append(rounding.rewired(node, [node.input[0], weight], node.output[0], node.name))
        else:
            writer.nodes.append(node)
    writer.finish()
    del model.graph.value_info[:]  # recorded shapes: phases are a row and a column larger


# How a layer may be written, by its operator; the first is the form where nothing was measured.
# - rounded: a transposed convolution whose output is rounded for the blur; transposed: the same in float.
# - wide: one plain convolution of four times the channels for all phases of the output, with zeros among its
#   weights, interleaved in 8 bits: more products in a faster kernel, which pays where products are cheap.
# - joined: one convolution on both halves of the input, copied together; halves: one for each, and a sum.
FORMS = {"ConvTranspose": ("rounded", "transposed", "wide"), "Conv": ("joined", "halves")}


def _write_blur_weight(writer: _Writer, name: str, weight: NDArray[np.float32]) -> str:
    """Add the weight of a depthwise blur in 8 bits, exactly: its taps are multiples of the smallest."""
    step = weight.min()
    levels = np.rint(weight / step)
    if not (step > 0 and levels.max() <= LEVELS and np.allclose(levels * step, weight, rtol=1e-6, atol=0)):
        raise QuantisationError(f"{name}: its taps are no multiples of {step:g}, up to {LEVELS}")
    prefix, channels = f"{name}.weight_s8", len(weight)
    stored = [
        writer.store(prefix, levels.astype(np.int8)),
        writer.store(f"{prefix}_scale", np.full(channels, step, np.float32)),
        writer.store(f"{prefix}_zero_point", np.zeros(channels, np.int8)),
    ]
    return writer.add("DequantizeLinear", stored, f"{prefix}_dequantised", axis=0)


def _write_qdq_layer(
    writer: _Writer, node: onnx.NodeProto, layer: ConvolutionLayer, rounded: RoundedLayer, form: str
) -> None:
    """Add a layer: ``node``, its first, reads 8-bit data and weights of the whole layer."""
    for tensor, step in zip(layer.inputs, rounded.activation_scales, strict=True):
        if f"{tensor}_quantised" not in writer.written:  # once, however many layers read it
            scale = writer.store(f"{tensor}_scale", np.array(step, np.float32))
            zero = writer.store(f"{tensor}_zero_point", np.array(0, np.int8))
            writer.add("QuantizeLinear", [tensor, scale, zero], f"{tensor}_quantised")
    bias = list(node.input[2:])
    if rounded.bias is not None:
        bias = [writer.store(f"{layer.name}.bias_int8", rounded.bias)]
    parts = [f"{tensor}_quantised" for tensor in layer.inputs]
    if form == "halves" and len(parts) > 1:
        sums = []
        for place, (half, part) in enumerate(zip(rounding.HALVES, parts, strict=True)):
            data = _restored(writer, part, layer.inputs[place])
            weight = _store_weight(writer, layer.name + half, rounded, rounded.weights()[place], place)
            name = layer.name if place == 0 else layer.name + rounding.SKIP
            sums.append(f"{layer.output}{half}")
            inputs = [data, weight, *(bias if place == 0 else [])]
            writer.nodes.append(rounding.rewired(node, inputs, sums[-1], name))
        writer.add("Add", sums, layer.output, layer.name + rounding.SUM)
        return
    joined = parts[0] if len(parts) == 1 else writer.add("Concat", parts, f"{layer.name}.joined", axis=1)
    # Joined data have the first half's step: the other half's weights make up for it (RoundedLayer).
    data = _restored(writer, joined, layer.inputs[0])
    if form == "wide":
        _write_wide(writer, node, layer, rounded, data, bias)
        return
    weight = _store_weight(writer, layer.name, rounded, rounded.weight)
    steps = rounded.output_steps if form == "rounded" else None
    result = layer.output if steps is None else f"{layer.output}_float"
    writer.nodes.append(rounding.rewired(node, [data, weight, *bias], result, node.name))
    if steps is not None:
        scale = writer.store(f"{layer.output}_scale", steps)
        zero = writer.store(f"{layer.output}_zero_point", np.zeros(len(steps), np.int8))
        small = writer.add("QuantizeLinear", [result, scale, zero], f"{layer.output}_rounded", axis=1)
        writer.add("DequantizeLinear", [small, scale, zero], layer.output, f"{layer.output}_restored", axis=1)


def _restored(writer: _Writer, data: str, tensor: str) -> str:
    """Add the float values of 8-bit data that have a tensor's step, once; return their name."""
    if f"{data}_dequantised" not in writer.written:
        inputs = [data, f"{tensor}_scale", f"{tensor}_zero_point"]
        writer.add("DequantizeLinear", inputs, f"{data}_dequantised")
    return f"{data}_dequantised"


def _store_weight(
    writer: _Writer,
    name: str,
    layer: RoundedLayer,
    weight: NDArray[np.int8],
    part: int = 0,
    axis: int | None = None,
) -> str:
    """Add weights of a layer, whole or a ``part``, in 8 bits; return the name of what they stand for."""
    axis = layer.axis if axis is None else axis
    scales = layer.scales[part] if layer.per_channel else np.array(layer.scales[part].max(), np.float32)
    if layer.per_channel:
        scales = np.tile(scales, weight.shape[axis] // len(scales))
    prefix = f"{name}.weight_s8"
    stored = [
        writer.store(prefix, np.ascontiguousarray(weight)),
        writer.store(f"{prefix}_scale", scales),
        writer.store(f"{prefix}_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    settings: dict[str, Any] = {"axis": axis} if layer.per_channel else {}
    return writer.add("DequantizeLinear", stored, f"{prefix}_dequantised", **settings)


def _write_wide(
    writer: _Writer,
    node: onnx.NodeProto,
    layer: ConvolutionLayer,
    rounded: RoundedLayer,
    data: str,
    bias: list[str],
) -> None:
    """Write a transposed convolution as a plain one for all phases of its output, rounded and interleaved."""
    (channels, name), steps = (rounded.weight.shape[1], layer.name), rounded.output_steps
    if steps is None:
        raise QuantisationError(f"{name}: form wide rounds the output, whose range is not known")
    kernel = np.zeros((4, channels, rounded.weight.shape[0], 2, 2), np.int8)
    for place, each in enumerate(phase_kernels(node, rounded.weight).values()):
        kernel[place, :, :, 2 - each.shape[2] :, 2 - each.shape[3] :] = each  # a single tap comes second
    constants = {tensor.name: tensor for tensor in writer.model.graph.initializer}
    tiled = [np.tile(numpy_helper.to_array(constants[entry]), 4) for entry in bias]
    four = [writer.store(f"{name}.bias_wide", values) for values in tiled]
    weight = _store_weight(writer, name, rounded, kernel.reshape(4 * channels, -1, 2, 2), axis=0)
    settings = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}  # every phase is H+1 by W+1
    phases = writer.add("Conv", [data, weight, *four], f"{name}_phases", f"{name}.wide", **settings)
    for what, times in (("", 1), ("s", 4)):
        writer.store(f"{layer.output}_scale{what}", np.tile(steps, times))
        writer.store(f"{layer.output}_zero_point{what}", np.zeros(times * channels, np.int8))
    scales = [f"{layer.output}_scales", f"{layer.output}_zero_points"]
    small = writer.add("QuantizeLinear", [phases, *scales], f"{name}_rounded", axis=1)
    whole = writer.add("DepthToSpace", [small], f"{layer.output}_rounded", blocksize=2, mode="DCR")
    scales = [f"{layer.output}_scale", f"{layer.output}_zero_point"]
    writer.add("DequantizeLinear", [whole, *scales], layer.output, f"{layer.output}_restored", axis=1)


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
# Rows (and columns) of a 3x3 transposed kernel that meet at even and at odd outputs, in the order in which
# they meet inputs i-1 and i: y[2i] = x[i-1] w[2] + x[i] w[0], y[2i+1] = x[i] w[1].
PHASE_TAPS = ((2, 0), (1,))


# Where the weights' zero point is 0, ONNX Runtime 1.32 has a kernel that knows no AMX; else it multiplies
# matrices, to the same result, in 0.45, 0.6 and 1.6 times the time for 512, 256 and 128 channels with AMX.
PRODUCT_CHANNELS = 256


def write_qoperator(
    model: onnx.ModelProto,
    layers: Mapping[str, RoundedLayer],
    output_ranges: Mapping[str, ChannelRange],
    amx: bool = False,
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
        if shift := -int(amx and min(rounded.weight.shape[:2]) >= PRODUCT_CHANNELS):
            rounded = replace(rounded, weight=rounded.weight + np.int8(shift))
        data = _quantise_inputs(writer, layer, rounded.activation_scales)
        scale, zero = _store_scales(writer, layer.name, rounded, output_ranges[layer.output], shift)
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


def _store_scales(
    writer: _Writer, name: str, layer: RoundedLayer, seen: ChannelRange, weight_zero: int
) -> tuple[str, str]:
    """Store a layer's weight scales and integer bias; return its output's scale and zero point."""
    # With accumulator a, input step x, weight step w and output step y, an output is y (q - z) for
    # q = round(a x w / y + b / y) + z. QLinearConv knows one y and one z for all channels: y goes into
    # w / y, z - 128 into the bias.
    low = rounding.OUTPUT_MARGIN * np.minimum(seen.low, 0.0)
    high = rounding.OUTPUT_MARGIN * np.maximum(seen.high, 0.0)
    step = np.maximum((high - low) / 255, rounding.TINIEST_STEP)
    zero = np.clip(np.rint(-low / step), 0, 255)
    real_bias = (0.0 if layer.bias is None else layer.bias) + (zero - MIDDLE_LEVEL) * step
    scales = layer.scales[0].astype(np.float64)  # times its input's step the same as of the other half
    unit = layer.activation_scales[0] * scales
    bias = np.clip(np.rint(real_bias / unit), -(2**31), 2**31 - 1).astype(np.int32)
    writer.store(f"{name}.weight_scale", (scales / step).astype(np.float32))
    writer.store(f"{name}.weight_zero", np.full(len(step), weight_zero, np.int8))
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


def phase_kernels(node: onnx.NodeProto, weight: NDArray[np.int8]) -> dict[tuple[int, int], NDArray[np.int8]]:
    """Return the kernels [Cout, Cin, 1 or 2, 1 or 2] of a transposed convolution by the output's phase."""
    settings = {entry.name: list(entry.ints) for entry in node.attribute if entry.ints}
    if weight.shape[2:] != (3, 3) or settings["strides"] != [2, 2] or any(settings.get("pads", [])):
        raise QuantisationError(
            f"{node.name}: kernel {weight.shape[2:]}, {settings}; phases are known of transposed "
            "convolutions of 3x3, stride 2, no padding; use quantize.format: qdq and tune: off"
        )
    turned = weight.transpose(1, 0, 2, 3)  # [Cout, Cin, 3, 3]
    return {
        (row, column): np.ascontiguousarray(turned[:, :, row_taps][:, :, :, column_taps])
        for row, row_taps in enumerate(PHASE_TAPS)
        for column, column_taps in enumerate(PHASE_TAPS)
    }


def _write_phases(
    writer: _Writer, data: tuple[str, str], node: onnx.NodeProto, layer: RoundedLayer, width: int
) -> str:
    """Write a transposed convolution as four convolutions; [N, C, 2H+2, width], last row and column zero."""
    results = []
    for (row, column), kernel in phase_kernels(node, layer.weight).items():
        pads = [kernel.shape[2] - 1, kernel.shape[3] - 1, 1, 1]  # every phase is H+1 by W+1
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
