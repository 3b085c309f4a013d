"""Which form of each large layer is the fastest on this machine: exact alternatives, timed one by one."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gpenlib.compile import write
from gpenlib.compile.calibrate import tensor_shapes
from gpenlib.compile.rounding import ConvolutionLayer, RoundedLayer, convolution_layers
from gpenlib.files import fingerprint, package_versions, read_json, write_json
from gpenlib.infer.runtime import interleaved_times, open_graph
from gpenlib.jobs import processor, processors, progress

WORTH = 5e8  # products of a layer; below it a form is chosen in vain
MOST_SECONDS = 60.0  # layers whose turn comes later keep the first form
REPEATS, ENOUGH_SECONDS = 8, 0.5  # timed calls of each form; two, where all take longer than this
GAIN = 1.05  # by which another form must be faster than the first: less may be noise

log = logging.getLogger("gpenlib.compile")


@dataclass
class Tuning:
    """What was measured, and what was chosen."""

    processor: str
    forms: dict[str, str] = field(default_factory=dict)  # by layer, those that are not the first
    rows: list[dict[str, Any]] = field(default_factory=list)  # layer, form, ms, chosen, cached
    seconds: float = 0.0
    not_timed: list[str] = field(default_factory=list)  # layers for which no time was left


def tune(
    graph: onnx.ModelProto, layers: Mapping[str, RoundedLayer], hint: str, path: Path | None = None
) -> Tuning:
    """Time every form of the large layers in OpenVINO, one layer at a time, and choose the fastest.

    ``graph`` is the float one in halves, batch size open or 1; ``layers`` are by module path; ``hint`` is
    OpenVINO's inference precision around them. The file ``path`` keeps times, by processor, version and
    shape: another network's layer of the same shape needs no new measurement.
    """
    begun, result = time.perf_counter(), Tuning(processor())
    known = read_times(path)
    shapes = tensor_shapes(graph)
    large = [layer for layer in convolution_layers(graph) if layer.name in layers]
    large = [layer for layer in large if len(possible_forms(layer, layers[layer.name])) > 1]
    products = {layer.name: count_products(layer, layers[layer.name], shapes) for layer in large}
    large = [layer for layer in large if products[layer.name] >= WORTH]
    order = sorted(large, key=lambda layer: -products[layer.name])
    for layer in progress(order, desc="tune", unit="layer", leave=False):
        rounded = layers[layer.name]
        sides = {name: shapes[name] for name in layer.inputs}
        key = fingerprint(
            {"processor": result.processor, "cores": processors(), "openvino": package_versions()["openvino"],
             "hint": hint, "operator": layer.operator, "inputs": list(sides.values()),
             "weight": list(rounded.weight.shape), "strides": strides(layer)}
        )  # fmt: skip
        times, cached = known.get(key), key in known
        if times is None:
            if time.perf_counter() - begun > MOST_SECONDS:
                result.not_timed.append(layer.name)
                continue
            times = known[key] = time_forms(graph, layer, rounded, sides, hint)
        first, fastest = next(iter(times)), min(times, key=lambda form: times[form])
        chosen = fastest if times[first] > GAIN * times[fastest] else first
        if chosen != first:
            result.forms[layer.name] = chosen
        result.rows += [
            {"layer": layer.name, "form": form, "ms": ms, "chosen": form == chosen, "cached": cached}
            for form, ms in times.items()
        ]
    if path is not None and result.rows:
        write_json(path, known)
    result.seconds = time.perf_counter() - begun
    return result


def read_times(path: Path | None) -> dict[str, dict[str, float]]:
    """Return times in ms by key and form; nothing if there are none, or the file is damaged."""
    if path is None or not path.is_file():
        return {}
    try:
        content = read_json(path)
        good = {key: {form: float(ms) for form, ms in times.items()} for key, times in content.items()}
        every = {form for forms in write.FORMS.values() for form in forms}
        if all(times and times.keys() <= every and min(times.values()) > 0 for times in good.values()):
            return good
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    log.warning("%s: damaged, layers are timed anew", path)
    return {}


def strides(layer: ConvolutionLayer) -> list[int]:
    """Return a layer's strides."""
    return next((list(entry.ints) for entry in layer.nodes[0].attribute if entry.name == "strides"), [1, 1])


def possible_forms(layer: ConvolutionLayer, rounded: RoundedLayer) -> list[str]:
    """Return the forms in which a layer can be written, the first one first."""
    if layer.operator == "Conv":
        return list(write.FORMS["Conv"][: len(layer.inputs)])  # what is one has no halves
    return list(write.FORMS["ConvTranspose"]) if rounded.output_steps is not None else ["transposed"]


def count_products(layer: ConvolutionLayer, rounded: RoundedLayer, shapes: Mapping[str, list[int]]) -> int:
    """Return the products of a whole layer for one image."""
    pixels = shapes[layer.inputs[0] if layer.operator == "ConvTranspose" else layer.output][2:]
    return math.prod(rounded.weight.shape) * math.prod(pixels)


def time_forms(
    graph: onnx.ModelProto,
    layer: ConvolutionLayer,
    rounded: RoundedLayer,
    inputs: Mapping[str, list[int]],
    hint: str,
) -> dict[str, float]:
    """Return the shortest time of each form of a layer (with its blur) in ms, the first one first."""
    alone, random = block(graph, layer, inputs), np.random.default_rng(0)
    images = [random.standard_normal(shape).astype(np.float32) for shape in inputs.values()]
    calls = {}
    for form in possible_forms(layer, rounded):
        model = copy.deepcopy(alone)
        write.write_qdq(model, {layer.name: rounded}, {layer.name: form})
        calls[form] = partial(open_graph(model, hint), images)
    times = interleaved_times(calls, REPEATS, seconds=ENOUGH_SECONDS, lead_in=0)
    return {form: min(each) for form, each in times.items()}


def block(
    graph: onnx.ModelProto, layer: ConvolutionLayer, inputs: Mapping[str, list[int]]
) -> onnx.ModelProto:
    """Return a layer, and the blur that reads it, as a graph of their own."""
    nodes, end = list(layer.nodes), layer.output
    nodes += [n for n in graph.graph.node if n.op_type == "Add" and n.output[0] == end]  # of the halves
    if layer.operator == "ConvTranspose":
        nodes += [node for node in graph.graph.node if node.op_type == "Conv" and node.input[0] == end]
        end = nodes[-1].output[0]
    read = {name for node in nodes for name in node.input}
    kinds = onnx.TensorProto.FLOAT
    alone = onnx.helper.make_graph(
        nodes,
        layer.name,
        [onnx.helper.make_tensor_value_info(name, kinds, shape) for name, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info(end, kinds, None)],
        [tensor for tensor in graph.graph.initializer if tensor.name in read],
    )
    opsets = list(graph.opset_import)
    return onnx.helper.make_model(alone, opset_imports=opsets, ir_version=graph.ir_version)
