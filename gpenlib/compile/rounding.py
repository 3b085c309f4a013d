"""The arithmetic of int8: activations in -128..127 as ONNX defines, weights in -127..127, both symmetric."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn

from gpenlib.compile.calibrate import LEVELS, ChannelRange
from gpenlib.export import DeployGpen
from gpenlib.export.graphs import CONVOLUTIONS, drop_unused_constants
from gpenlib.files import nearest
from gpenlib.images import RGB_CHANNELS

# The deploy graph without Concat: its decoder convolutions in two halves whose outputs are added.
#
# A decoder layer reads as many channels of the decoder (*main* half) as of the encoder (*skip* half), joined
# in front of an activation and the style's scale. Both work per channel, and a convolution is linear:
#     conv(s * lrelu(cat(x, skip))) = conv_main(s_main * lrelu(x)) + conv_skip(s_skip * lrelu(skip)), exactly.
# In 8 bits each half then gets a step of its own (the features often differ in size by a factor of two to
# four); behind the rounding they are joined again, where a copy moves a quarter of the bytes.
# A layer stays one layer with one name: its nodes are called <layer>, <layer>.skip and <layer>.sum.

SKIP, SUM = ".skip", ".sum"  # what follows a layer's name
HALVES = (".main", SKIP)  # what follows a joined tensor's name


class QuantisationError(ValueError):
    """A quantisation that was asked for and cannot be done; nothing is skipped in silence."""


@dataclass(frozen=True)
class ConvolutionLayer:
    """A convolution as the user knows it: one node, or the two halves (main, skip) and what adds them."""

    name: str  # module path
    nodes: tuple[NodeProto, ...]
    output: str  # the tensor with its result

    @property
    def operator(self) -> str:
        """ONNX operator: Conv or ConvTranspose."""
        return str(self.nodes[0].op_type)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The activation that each node reads."""
        return tuple(node.input[0] for node in self.nodes)


def convolution_layers(model: onnx.ModelProto) -> list[ConvolutionLayer]:
    """Return all convolutions in graph order, the halves of a layer as one."""
    groups: dict[str, list[NodeProto]] = defaultdict(list)
    sums = {node.name: node.output[0] for node in model.graph.node if node.name.endswith(SUM)}
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            groups[node.name.removesuffix(SKIP)].append(node)
    return [
        ConvolutionLayer(name, tuple(nodes), sums[name + SUM] if len(nodes) > 1 else nodes[0].output[0])
        for name, nodes in groups.items()
    ]


def nodes_and_layers(
    model: onnx.ModelProto, names: Container[str]
) -> Iterator[tuple[NodeProto, ConvolutionLayer | None]]:
    """Yield the first node of each named layer with the layer, and every node of no such layer with None."""
    layers = {layer.nodes[0].name: layer for layer in convolution_layers(model) if layer.name in names}
    written = {layer.output for layer in layers.values()}
    written |= {node.output[0] for layer in layers.values() for node in layer.nodes}
    for node in model.graph.node:
        if node.name in layers or node.output[0] not in written:
            yield node, layers.get(node.name)


def split_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the float deploy graph, equal in effect, without the Concats before decoder layers."""
    result = copy.deepcopy(model)
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in result.graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    replaced: dict[str, list[NodeProto]] = {}  # by output of the joined node
    for node in result.graph.node:
        if (match := _pattern(node, readers, constants)) is None:
            continue
        activation, scales, convolutions = match
        replaced[node.output[0]] = []
        replaced[activation.output[0]] = [
            rewired(activation, [tensor], activation.output[0] + half, activation.name + half)
            for half, tensor in zip(HALVES, node.input, strict=True)
        ]
        for scale, convolution in zip(scales, convolutions, strict=True):
            replaced[scale.output[0]] = list(_split_scale(scale, activation.output[0]))
            weight = numpy_helper.to_array(constants[convolution.input[1]])
            names = [f"{convolution.input[1]}{half}" for half in HALVES]
            parts = np.split(weight, 2, axis=1 if convolution.op_type == "Conv" else 0)
            for name, part in zip(names, parts, strict=True):
                result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), name))
            replaced[convolution.output[0]] = list(_split_convolution(convolution, names))
    nodes = [new for node in result.graph.node for new in replaced.get(node.output[0], [node])]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    drop_unused_constants(result.graph)
    return copy.deepcopy(result)  # a message keeps the memory of what was taken out of it


def _pattern(
    node: NodeProto, readers: dict[str, list[NodeProto]], constants: Container[str]
) -> tuple[NodeProto, list[NodeProto], list[NodeProto]] | None:
    """Return activation, scales and convolutions behind a Concat, if it is one that those follow."""
    if node.op_type != "Concat" or len(node.input) != 2:
        return None
    activations = readers[node.output[0]]
    if len(activations) != 1 or activations[0].op_type != "LeakyRelu":
        return None
    scales = readers[activations[0].output[0]]
    following = [readers[scale.output[0]] for scale in scales]
    convolutions = [nodes[0] for nodes in following if len(nodes) == 1]
    fits = (
        len(convolutions) == len(scales) > 0
        and all(scale.op_type == "Mul" for scale in scales)
        and all(conv.op_type in CONVOLUTIONS and conv.input[1] in constants for conv in convolutions)
    )
    return (activations[0], scales, convolutions) if fits else None


def rewired(node: NodeProto, inputs: Sequence[str], output: str, name: str) -> NodeProto:
    """Return a copy of a node with other inputs, output and name."""
    result = copy.deepcopy(node)
    result.input[:], result.output[:], result.name = inputs, [output], name
    return result


def _split_scale(node: NodeProto, joined: str) -> Iterator[NodeProto]:
    """Yield what cuts the style in two, and the scale of each half."""
    style = next(name for name in node.input if name != joined)
    styles = [f"{node.output[0]}.style{half}" for half in HALVES]
    yield helper.make_node("Split", [style], styles, f"{node.name}.style", axis=1, num_outputs=2)
    for half, part in zip(HALVES, styles, strict=True):
        yield helper.make_node("Mul", [joined + half, part], [node.output[0] + half], node.name + half)


def _split_convolution(node: NodeProto, weights: Sequence[str]) -> Iterator[NodeProto]:
    """Yield both halves (the main one keeps name and bias) and their sum."""
    outputs = [f"{node.output[0]}{half}" for half in HALVES]
    bias = node.input[2:]
    yield rewired(node, [node.input[0] + HALVES[0], weights[0], *bias], outputs[0], node.name)
    yield rewired(node, [node.input[0] + SKIP, weights[1]], outputs[1], node.name + SKIP)
    yield helper.make_node("Add", outputs, list(node.output), node.name + SUM)


def activation_steps(thresholds: Sequence[float], power2: bool) -> tuple[float, ...]:
    """Return the step of each part of a layer's input; one that is always zero takes that of the other."""
    coarse = max(thresholds)
    steps = [(threshold or coarse) / LEVELS for threshold in thresholds]
    if power2:  # raise the finer step: the ratio of weight scales, a power of two, is the inverse of theirs
        steps = [coarse / LEVELS / 2.0 ** math.floor(math.log2(coarse / LEVELS / step)) for step in steps]
    return tuple(float(np.float32(step)) for step in steps)


# An up-convolution writes four times the pixels that it reads, and a blur passes over them at once. In 8
# bits, with a step for each channel, they are a quarter of the bytes for both, and the blur, whose taps are
# 1, 3 and 9 of a 64th, runs in integer kernels, exactly. It averages sixteen values with these weights, which
# takes 10 dB off the error of the rounding: the rounding of the next layer's input adds more.
OUTPUT_MARGIN = 1.25  # outputs beyond the calibrated range are not clipped at once; costs no accuracy
TINIEST_STEP = 1e-12


def output_steps(seen: ChannelRange) -> NDArray[np.float32]:
    """Return the symmetric step of each channel of an output, [C]."""
    largest = np.maximum(np.abs(seen.low), np.abs(seen.high))
    return np.maximum(OUTPUT_MARGIN * largest / LEVELS, TINIEST_STEP).astype(np.float32)


def bias_correction(
    node: onnx.NodeProto, weight_error: NDArray[Any], means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what rounding the weights takes from each output channel on average, [Cout]."""
    # It is the weight error times the mean input (Nagel et al., Data-Free Quantization, 2019, section 4.2),
    # for a float input: correcting what earlier layers did as well would count it once per layer. A
    # transposed convolution of stride s spreads its taps over s x s outputs.
    if node.op_type == "Conv":
        return np.einsum("oikl,i->o", weight_error.astype(np.float64), means)
    strides = helper.get_node_attr_value(node, "strides")
    return np.einsum("iokl,i->o", weight_error.astype(np.float64), means) / float(np.prod(strides))


def weight_scales(
    weight: NDArray[np.float32], axis: int, per_channel: bool, power2: bool
) -> NDArray[np.float32]:
    """Return symmetric scales, [channels along ``axis``] (all equal unless ``per_channel``)."""
    largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    if not per_channel:
        largest = np.full_like(largest, largest.max())
    scales = np.maximum(largest / LEVELS, np.finfo(np.float32).tiny)
    if power2:
        scales = np.exp2(np.ceil(np.log2(scales)))
    return scales.astype(np.float32)


def quantise_weight(weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """Round to s8, half to even as ONNX does."""
    levels = np.rint(weight / along(scales, axis, weight.ndim))
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8)


def sqnr_db(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Return the signal-to-quantisation-noise ratio in dB (200 for equal arrays)."""
    noise = float(np.square(reference.astype(np.float64) - candidate).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else 200.0


def along(scales: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    """Shape per-channel scales for broadcasting along ``axis``."""
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


@dataclass(frozen=True)
class QuantisedLayer:
    """What was done to one layer; two tensors, scales and ranges where it is computed in halves."""

    name: str
    operator: str
    tensors: tuple[str, ...]  # the activations it reads
    activation_scales: tuple[float, ...]
    activation_ranges: tuple[float, ...]  # largest magnitudes that are represented
    weight_scale_min: float
    weight_scale_max: float
    weight_sqnr_db: float
    output_rounded: bool = False  # to 8 bits, for the blur behind it


@dataclass(frozen=True)
class RoundedLayer:
    """One layer in 8 bits; in both halves activation step times weight step is equal, so that sums add up."""

    activation_scales: tuple[float, ...]  # step of the input, or of each half of its channels
    weight: NDArray[np.int8]  # of the whole layer, shaped as the float weight
    scales: NDArray[np.float32]  # [1 or 2, Cout]: steps of the weights, for the whole or for each half
    axis: int  # of the output channels in ``weight``: 0 for Conv, 1 for ConvTranspose
    per_channel: bool  # False: the scales of all output channels are equal
    bias: NDArray[np.float32] | None  # [Cout], corrected if that was asked for
    report: QuantisedLayer
    output_steps: NDArray[np.float32] | None = None  # [Cout], of an output that is rounded, too

    def weights(self) -> list[NDArray[np.int8]]:
        """Return the integer weights of the whole, or of each half."""
        return np.split(self.weight, len(self.activation_scales), axis=1 - self.axis)

    def restored_weight(self) -> NDArray[np.float32]:
        """Return the whole layer's weight as the rounded one stands for it."""
        halves = zip(self.weights(), self.scales, strict=True)
        parts = [part * along(scales, self.axis, part.ndim) for part, scales in halves]
        return np.concatenate(parts, axis=1 - self.axis)

    def input_steps(self) -> NDArray[np.float32]:
        """Return the step of each input channel, [Cin]."""
        each = self.weight.shape[1 - self.axis] // len(self.activation_scales)
        return np.repeat(np.array(self.activation_scales, np.float32), each)


def quantisable_layers(model: onnx.ModelProto) -> list[ConvolutionLayer]:
    """Return the convolutions worth quantising, in graph order."""
    # In two kinds int8 costs much accuracy and gains no time: depthwise FIR filters (bound by memory), and
    # layers that read or write RGB (under 1 % of the multiplications; the output error grows by about 10 dB,
    # because nothing behind them averages it out).
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}

    def worth(node: NodeProto) -> bool:
        groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
        return groups == 1 and min(shapes.get(node.input[1], (0, 0))[:2]) > RGB_CHANNELS

    return [layer for layer in convolution_layers(model) if all(map(worth, layer.nodes))]


def select_layers(names: Sequence[str], exclude: Sequence[int | str]) -> list[str]:
    """Return layers without the excluded: indices (the vendor's way), module paths or glob patterns."""
    dropped: set[str] = set()
    for place, entry in enumerate(exclude):
        if isinstance(entry, bool) or entry in exclude[:place]:
            what = "no index, path or pattern" if isinstance(entry, bool) else "there twice"
            raise QuantisationError(f"exclude_layers={list(exclude)}: {entry!r} is {what}")
        if isinstance(entry, int):
            if not 0 <= entry < len(names):
                raise QuantisationError(f"exclude_layers: index {entry} is outside 0..{len(names) - 1}")
            matches = [names[entry]]
        elif not (matches := fnmatch.filter(names, entry)):
            close = nearest(entry, names)
            hint = f"; nearest: {', '.join(close)}" if close else f"; layers: {', '.join(names)}"
            raise QuantisationError(f"exclude_layers: no quantisable layer is called {entry!r}{hint}")
        dropped.update(matches)
    kept = [name for name in names if name not in dropped]
    if not kept:
        raise QuantisationError("exclude_layers leaves nothing to quantise; use dtype fp32 instead")
    return kept


def round_layers(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    layers: Sequence[str],
    per_channel: bool = True,
    power2: bool = False,
    input_means: Mapping[str, NDArray[np.float64]] | None = None,
    output_ranges: Mapping[str, ChannelRange] | None = None,
) -> dict[str, RoundedLayer]:
    """Round the weights of exactly these layers, joined or in halves, in the float deploy graph.

    Largest magnitudes ``thresholds`` and ``input_means`` (float64 [Cin], to correct biases) go by activation.
    With ``output_ranges``, outputs that a blur reads are rounded, too.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    rounded: dict[str, RoundedLayer] = {}
    for layer in convolution_layers(model):
        if layer.name not in layers:
            continue
        for node in layer.nodes:
            if node.input[1] not in constants or node.input[0] not in thresholds:
                what = f"weight is not constant, or {node.input[0]} was not calibrated"
                raise QuantisationError(f"{node.name}: {what}")
        axis = 0 if layer.operator == "Conv" else 1
        weights = [numpy_helper.to_array(constants[node.input[1]]) for node in layer.nodes]
        biases = [constants[node.input[2]] for node in layer.nodes if len(node.input) > 2]
        bias = numpy_helper.to_array(biases[0]) if biases else None  # the skip half has none
        steps = activation_steps([thresholds[name] for name in layer.inputs], power2)
        each = [weight_scales(weight, axis, per_channel, power2) for weight in weights]
        units = np.max([step * own.astype(np.float64) for step, own in zip(steps, each, strict=True)], axis=0)
        scales = np.stack([units / step for step in steps]).astype(np.float32)
        stored = [quantise_weight(weight, part, axis) for weight, part in zip(weights, scales, strict=True)]
        ranges = tuple(LEVELS * step for step in steps)
        spread = float(scales.min()), float(scales.max())
        report = QuantisedLayer(layer.name, layer.operator, layer.inputs, steps, ranges, *spread, 0.0)
        joined = np.concatenate(stored, axis=1 - axis)
        result = RoundedLayer(steps, joined, scales, axis, per_channel, bias, report)
        whole, restored = np.concatenate(weights, axis=1 - axis), result.restored_weight()
        if input_means is not None:
            means = np.concatenate([input_means[name] for name in layer.inputs])
            correction = bias_correction(layer.nodes[0], whole - restored, means)
            bias = (correction if bias is None else bias + correction).astype(np.float32)
        output = None
        if output_ranges is not None and layer.operator == "ConvTranspose":
            output = output_steps(output_ranges[layer.output])
        sqnr = sqnr_db(whole, restored)
        report = replace(report, weight_sqnr_db=sqnr, output_rounded=output is not None)
        rounded[layer.name] = replace(result, bias=bias, report=report, output_steps=output)
    if missing := sorted(set(layers) - rounded.keys()):
        raise QuantisationError(f"layers that are not convolutions of this graph: {', '.join(missing)}")
    return rounded


@contextmanager
def fake_quantised(deploy: DeployGpen, layers: Mapping[str, RoundedLayer]) -> Iterator[DeployGpen]:
    """Round inputs and weights of some layers while the context lasts, in float32 as the QDQ file defines."""
    before: list[tuple[Any, ...]] = []

    def as_rounded(values: Tensor, steps: NDArray[np.float32]) -> Tensor:
        each = torch.from_numpy(steps).to(values)[:, None, None]
        return torch.clamp(torch.round(values / each), -LEVELS - 1, LEVELS) * each

    try:
        for name, layer in layers.items():
            module: Any = deploy.get_submodule(name)

            steps, output = layer.input_steps(), layer.output_steps

            def round_input(_: nn.Module, inputs: Any, steps: Any = steps) -> tuple[Tensor]:
                return (as_rounded(inputs[0], steps),)

            def round_output(_: nn.Module, __: Any, result: Tensor, steps: Any = output) -> Tensor:
                return result if steps is None else as_rounded(result, steps)

            handles = [module.register_forward_pre_hook(round_input)]
            handles.append(module.register_forward_hook(round_output))
            before.append((module, handles, module.weight, module.bias))
            for key, value in (("weight", layer.restored_weight()), ("bias", layer.bias)):
                if value is not None:
                    tensor = torch.from_numpy(value).to(module.weight)
                    setattr(module, key, nn.Parameter(tensor, requires_grad=False))
        yield deploy
    finally:
        for module, handles, weight, bias in before:
            for handle in handles:
                handle.remove()
            module.weight, module.bias = weight, bias
