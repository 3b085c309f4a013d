"""The deploy graph without Concat: its decoder convolutions in two halves whose outputs are added.

A decoder layer reads as many channels of the decoder (the *main* half) as of the encoder (the *skip* half),
joined in front of an activation and the style's scale. Both work per channel, and a convolution is linear:

    conv(style * lrelu(cat(x, skip))) = conv_main(style_main * lrelu(x)) + conv_skip(style_skip * lrelu(skip))

This is exact. In 8 bits each half then gets a step of its own (encoder and decoder features often differ in
size by a factor of two to four), and the writers of 8-bit files join the halves again behind the rounding,
where a copy moves a quarter of the bytes: OpenVINO would copy the float maps. In float the split gains
nothing, so that float files keep the Concat.

A layer stays one layer with one name: its nodes are called ``<layer>``, ``<layer>.skip`` and ``<layer>.sum``.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from gpenlib.export.onnx_export import CONVOLUTIONS

SKIP, SUM = ".skip", ".sum"  # what follows a layer's name
HALVES = (".main", SKIP)  # what follows a joined tensor's name


@dataclass(frozen=True)
class ConvolutionLayer:
    """A convolution as the user knows it: one node, or the two halves and what adds them.

    Attributes
    ----------
    name : str
        Module path.
    nodes : tuple of NodeProto
        The convolution, or its main and its skip half.
    output : str
        The tensor with the layer's result.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    output: str

    @property
    def operator(self) -> str:
        """ONNX operator: Conv or ConvTranspose."""
        return str(self.nodes[0].op_type)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The activation that each node reads."""
        return tuple(node.input[0] for node in self.nodes)

    @property
    def written(self) -> tuple[str, ...]:
        """Every tensor that the layer's nodes write: the result, and that of each half."""
        return (self.output, *(node.output[0] for node in self.nodes))

    @property
    def output_axis(self) -> int:
        """Axis of the output channels in the weight; that of the input channels is the other of 0 and 1."""
        return 0 if self.operator == "Conv" else 1


def layer_name(node: str) -> str:
    """Return the name of the layer that a node belongs to."""
    return node.removesuffix(SKIP).removesuffix(SUM)


def convolution_layers(model: onnx.ModelProto) -> list[ConvolutionLayer]:
    """Return all convolutions in graph order, the halves of a layer as one."""
    groups: dict[str, list[NodeProto]] = defaultdict(list)
    sums = {node.name: node.output[0] for node in model.graph.node if node.name.endswith(SUM)}
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            groups[layer_name(node.name)].append(node)
    return [
        ConvolutionLayer(name, tuple(nodes), sums[name + SUM] if len(nodes) > 1 else nodes[0].output[0])
        for name, nodes in groups.items()
    ]


def nodes_and_layers(
    model: onnx.ModelProto, names: Container[str]
) -> Iterator[tuple[NodeProto, ConvolutionLayer | None]]:
    """Walk through a graph, taking some layers as a whole.

    Parameters
    ----------
    model : ModelProto
    names : container of str
        Layers to take as a whole.

    Yields
    ------
    (NodeProto, ConvolutionLayer or None)
        A node of none of these layers with None; or a layer's first node with the layer, whose other nodes
        (its other half, and the sum of both) are passed over.
    """
    layers = {found.nodes[0].name: found for found in convolution_layers(model) if found.name in names}
    written = {name for found in layers.values() for name in found.written}
    for node in model.graph.node:
        if node.name in layers or node.output[0] not in written:
            yield node, layers.get(node.name)


def split_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the deploy graph with every Concat in front of a decoder layer split away.

    Parameters
    ----------
    model : ModelProto
        The float deploy graph; not changed.

    Returns
    -------
    ModelProto
        The same function. A Concat that is not followed by activation, scale and convolution stays.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in result.graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    replaced: dict[str, list[NodeProto]] = {}  # by output of the joined node
    for node in result.graph.node:
        found = _pattern(node, readers, constants)
        if found is None:
            continue
        activation, scales, convolutions = found
        replaced[node.output[0]] = []
        replaced[activation.output[0]] = list(_split_activation(activation, node.input))
        for scale, convolution in zip(scales, convolutions, strict=True):
            style = next(name for name in scale.input if name != activation.output[0])
            replaced[scale.output[0]] = list(_split_scale(scale, activation.output[0], style))
            weight = numpy_helper.to_array(constants[convolution.input[1]])
            names = [f"{convolution.input[1]}{half}" for half in HALVES]
            for name, part in zip(names, split_weight(weight, convolution.op_type, 2), strict=True):
                result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), name))
            replaced[convolution.output[0]] = list(_split_convolution(convolution, names))
    nodes = [new for node in result.graph.node for new in replaced.get(node.output[0], [node])]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    drop_unused_constants(result)
    return result


def split_weight(weight: NDArray[Any], operator: str, parts: int) -> list[NDArray[Any]]:
    """Cut a convolution's weight into equal parts along its input channels."""
    return np.split(weight, parts, axis=1 if operator == "Conv" else 0)


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove constants that nothing reads any more."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _pattern(
    node: NodeProto, readers: dict[str, list[NodeProto]], constants: Container[str]
) -> tuple[NodeProto, list[NodeProto], list[NodeProto]] | None:
    """Return the activation behind a Concat, and the scales and convolutions behind that, if this is it."""
    if node.op_type != "Concat" or len(node.input) != 2:
        return None
    behind = readers[node.output[0]]
    if len(behind) != 1 or behind[0].op_type != "LeakyRelu":
        return None
    scales = readers[behind[0].output[0]]
    following = [readers[scale.output[0]] for scale in scales]
    convolutions = [found[0] for found in following if len(found) == 1]
    fits = (
        len(convolutions) == len(scales) > 0
        and all(scale.op_type == "Mul" for scale in scales)
        and all(conv.op_type in CONVOLUTIONS and conv.input[1] in constants for conv in convolutions)
    )
    return (behind[0], scales, convolutions) if fits else None


def _split_activation(node: NodeProto, inputs: Sequence[str]) -> Iterator[NodeProto]:
    """Yield the activation of each half."""
    for half, tensor in zip(HALVES, inputs, strict=True):
        own = copy.deepcopy(node)
        own.name = f"{node.name}{half}"
        own.input[:] = [tensor]
        own.output[:] = [f"{node.output[0]}{half}"]
        yield own


def _split_scale(node: NodeProto, joined: str, style: str) -> Iterator[NodeProto]:
    """Yield what cuts the style in two, and the scale of each half."""
    styles = [f"{node.output[0]}.style{half}" for half in HALVES]
    yield helper.make_node("Split", [style], styles, f"{node.name}.style", axis=1, num_outputs=2)
    for half, part in zip(HALVES, styles, strict=True):
        yield helper.make_node(
            "Mul", [f"{joined}{half}", part], [f"{node.output[0]}{half}"], node.name + half
        )


def _split_convolution(node: NodeProto, weights: Sequence[str]) -> Iterator[NodeProto]:
    """Yield both halves (the main one keeps name and bias) and their sum."""
    outputs = [f"{node.output[0]}{half}" for half in HALVES]
    for half, weight, output in zip(HALVES, weights, outputs, strict=True):
        own = copy.deepcopy(node)
        own.input[:] = [f"{node.input[0]}{half}", weight, *(node.input[2:] if half != SKIP else ())]
        own.output[:] = [output]
        own.name = node.name + (SKIP if half == SKIP else "")
        yield own
    yield helper.make_node("Add", outputs, list(node.output), node.name + SUM)
