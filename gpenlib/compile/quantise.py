"""Write the int8 model: QuantizeLinear / DequantizeLinear around convolution inputs and weights.

Why our own writer and not ONNX Runtime's: scales come from our calibration and can be rounded to powers
of two, the channel axis of transposed convolutions is explicit, and a layer that cannot be quantised is an
error here, not silence. Activations (clipped to -128..127 as ONNX defines) and weights (-127..127) are
symmetric s8; outputs are not quantised, because rounding a convolution's output before demodulation costs
tens of dB.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gpenlib.compile.histogram import LEVELS
from gpenlib.export.onnx_export import CONVOLUTIONS
from gpenlib.run import nearest

RGB_CHANNELS = 3


class QuantisationError(ValueError):
    """A quantisation that was asked for and cannot be done; nothing is skipped in silence."""


@dataclass(frozen=True)
class QuantisedLayer:
    """What was done to one convolution."""

    name: str
    operator: str
    tensor: str  # the activation it reads
    activation_scale: float
    activation_range: float  # largest magnitude seen in calibration
    weight_scale_min: float
    weight_scale_max: float
    weight_sqnr_db: float

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def quantisable_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions worth quantising, in graph order.

    Two kinds stay in float because int8 costs much accuracy there and gains no time: depthwise FIR filters
    (bound by memory), and the layers that read or write RGB, i.e. the first encoder convolution and the
    ToRGB projections (under 1 % of the multiplications; quantising them makes the output error about
    10 dB larger, because nothing behind them averages it out).
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in CONVOLUTIONS
        and _attribute(node, "group", 1) == 1
        and min(shapes.get(node.input[1], (0, 0))[:2]) > RGB_CHANNELS
    ]


def select_layers(names: Sequence[str], exclude: Sequence[int | str]) -> list[str]:
    """Return ``names`` without the excluded ones.

    Parameters
    ----------
    names : sequence of str
        Module paths of the quantisable layers, in graph order.
    exclude : sequence of int or str
        Indices into ``names`` (the vendor's way), module paths, or glob patterns of them.

    Raises
    ------
    QuantisationError
        If an entry matches nothing (with the nearest names), or nothing is left.
    """
    dropped: set[str] = set()
    for entry in exclude:
        if isinstance(entry, int):
            if not 0 <= entry < len(names):
                raise QuantisationError(f"exclude_layers: index {entry} is outside 0..{len(names) - 1}")
            dropped.add(names[entry])
            continue
        matches = fnmatch.filter(names, entry)
        if not matches:
            close = nearest(entry, names)
            hint = f"; nearest: {', '.join(close)}" if close else f"; layers: {', '.join(names)}"
            raise QuantisationError(f"exclude_layers: no quantisable layer is called {entry!r}{hint}")
        dropped.update(matches)
    kept = [name for name in names if name not in dropped]
    if not kept:
        raise QuantisationError("exclude_layers leaves nothing to quantise; use dtype fp32 instead")
    return kept


def quantise(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    layers: Sequence[str],
    per_channel: bool = True,
    power2: bool = False,
) -> list[QuantisedLayer]:
    """Insert QDQ pairs for ``layers`` in place.

    Parameters
    ----------
    model : ModelProto
        The float deploy graph; changed in place.
    thresholds : mapping
        Clipping threshold (largest magnitude that is represented) by activation tensor name.
    layers : sequence of str
        Node names of the convolutions to quantise.
    per_channel : bool
        One weight scale per output channel, else one per tensor.
    power2 : bool
        Round weight scales up to powers of two (the vendor's shift hardware).

    Returns
    -------
    list of QuantisedLayer
        One per layer, in graph order.

    Raises
    ------
    QuantisationError
        If not exactly the asked layers could be quantised.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = set(layers)
    readers: dict[str, str] = {}  # activation tensor -> its dequantised copy
    nodes: list[onnx.NodeProto] = []
    done: list[QuantisedLayer] = []
    for node in model.graph.node:
        if node.name in wanted and node.op_type in CONVOLUTIONS:
            tensor, weight_name = node.input[0], node.input[1]
            if weight_name not in constants or tensor not in thresholds:
                raise QuantisationError(
                    f"{node.name}: weight is not constant, or {tensor} was not calibrated"
                )
            scale = float(np.float32(thresholds[tensor] / LEVELS))
            if tensor not in readers:
                readers[tensor] = f"{tensor}_dequantised"
                nodes += _activation_pair(model, tensor, readers[tensor], scale)
            weight = numpy_helper.to_array(constants[weight_name])
            axis = 0 if node.op_type == "Conv" else 1
            scales = weight_scales(weight, axis, per_channel, power2)
            quantised = quantise_weight(weight, scales, axis)
            nodes.append(
                _weight_node(model, node, weight_name, quantised, scales, axis if per_channel else None)
            )
            done.append(
                QuantisedLayer(
                    name=node.name,
                    operator=node.op_type,
                    tensor=tensor,
                    activation_scale=scale,
                    activation_range=float(thresholds[tensor]),
                    weight_scale_min=float(scales.min()),
                    weight_scale_max=float(scales.max()),
                    weight_sqnr_db=sqnr_db(weight, quantised * _along(scales, axis, weight.ndim)),
                )
            )
            node.input[0] = readers[tensor]
            node.input[1] = nodes[-1].output[0]
        nodes.append(node)
    if {layer.name for layer in done} != wanted:
        missing = sorted(wanted - {layer.name for layer in done})
        raise QuantisationError(f"layers that are not convolutions of this graph: {', '.join(missing)}")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused_constants(model)
    return done


def weight_scales(
    weight: NDArray[np.float32], axis: int, per_channel: bool, power2: bool
) -> NDArray[np.float32]:
    """Return symmetric scales, [channels along ``axis``] (all equal unless ``per_channel``)."""
    other = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=other)
    if not per_channel:
        largest = np.full_like(largest, largest.max())
    scales = np.maximum(largest / LEVELS, np.finfo(np.float32).tiny)
    if power2:
        scales = np.exp2(np.ceil(np.log2(scales)))
    return scales.astype(np.float32)


def quantise_weight(weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """Round to s8, half to even as ONNX does."""
    scaled = weight / _along(scales, axis, weight.ndim)
    return np.clip(np.rint(scaled), -LEVELS, LEVELS).astype(np.int8)


def sqnr_db(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Return the signal-to-quantisation-noise ratio in dB (200 for equal arrays)."""
    noise = float(np.square(reference.astype(np.float64) - candidate).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else 200.0


def count_quantised(model: onnx.ModelProto) -> dict[str, int]:
    """Return, by operator, how many convolutions read dequantised int8 data and int8 weights."""
    producers = {name: node for node in model.graph.node for name in node.output}
    counts = dict.fromkeys(CONVOLUTIONS, 0)
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            sources = [producers.get(name) for name in node.input[:2]]
            counts[node.op_type] += all(s is not None and s.op_type == "DequantizeLinear" for s in sources)
    return counts


def _along(scales: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    """Shape per-channel scales for broadcasting along ``axis``."""
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


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


def _weight_node(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    weight_name: str,
    quantised: NDArray[np.int8],
    scales: NDArray[np.float32],
    axis: int | None,
) -> onnx.NodeProto:
    """Store int8 weights and return the DequantizeLinear node that reads them."""
    prefix = f"{node.name}.weight_s8"
    stored = scales if axis is not None else np.array(scales.max(), np.float32)
    zero = np.zeros(stored.shape, np.int8)
    for array, suffix in ((quantised, ""), (stored, "_scale"), (zero, "_zero_point")):
        model.graph.initializer.append(numpy_helper.from_array(array, prefix + suffix))
    inputs = [prefix, f"{prefix}_scale", f"{prefix}_zero_point"]
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{prefix}_dequantised"], f"{prefix}_dequantise", **attributes
    )


def _drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove float weights that nothing reads any more."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
