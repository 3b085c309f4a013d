"""What int8 is about: which convolutions are quantised, how their weights are rounded, what is reported.

Activations (clipped to -128..127 as ONNX defines) and weights (-127..127) are symmetric 8-bit numbers. The
files are written by :mod:`gpenlib.compile.qdq` and :mod:`gpenlib.compile.qoperator`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gpenlib.compile.halves import ConvolutionLayer, convolution_layers, split_weight
from gpenlib.compile.histogram import LEVELS
from gpenlib.compile.rounding import (
    activation_steps,
    along,
    bias_correction,
    quantise_weight,
    sqnr_db,
    weight_scales,
)
from gpenlib.images import RGB_CHANNELS
from gpenlib.run import nearest


class QuantisationError(ValueError):
    """A quantisation that was asked for and cannot be done; nothing is skipped in silence."""


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

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class RoundedLayer:
    """One layer in 8 bits, ready to be written in either form.

    A layer in halves has a step for each half's input. The product of activation and weight step is the same
    in both, so that their integer sums can be added: QOperator form computes them in one convolution.

    Attributes
    ----------
    activation_scales : tuple of float
        Step of the input, or of each half of its channels.
    weight : int8, shaped as the float weight of the whole layer
    scales : float32 [1 or 2, Cout]
        Step of each output channel's weights, for the whole or for each half of the input channels.
    axis : int
        The output channels' axis in ``weight``: 0 for Conv, 1 for ConvTranspose.
    per_channel : bool
        False: the ``scales`` of all output channels are equal.
    bias : float32 [Cout] or None
        The convolution's bias, corrected if that was asked for.
    report : QuantisedLayer
    """

    activation_scales: tuple[float, ...]
    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int
    per_channel: bool
    bias: NDArray[np.float32] | None
    report: QuantisedLayer

    def weights(self) -> list[NDArray[np.int8]]:
        """Return the integer weights of the whole, or of each half."""
        return split_weight(self.weight, self.report.operator, len(self.activation_scales))

    def restored_weight(self) -> NDArray[np.float32]:
        """Return the whole layer's weight as the rounded one stands for it."""
        parts = [
            part * along(scales, self.axis, part.ndim)
            for part, scales in zip(self.weights(), self.scales, strict=True)
        ]
        return np.concatenate(parts, axis=1 - self.axis)

    def input_steps(self) -> NDArray[np.float32]:
        """Return the step of each input channel, [Cin]."""
        each = self.weight.shape[1 - self.axis] // len(self.activation_scales)
        return np.repeat(np.array(self.activation_scales, np.float32), each)


def quantisable_layers(model: onnx.ModelProto) -> list[ConvolutionLayer]:
    """Return the convolutions worth quantising, in graph order.

    Two kinds stay in float because int8 costs much accuracy there and gains no time: depthwise FIR filters
    (bound by memory), and the layers that read or write RGB, i.e. the first encoder convolution and the
    ToRGB projections (under 1 % of the multiplications; quantising them makes the output error about
    10 dB larger, because nothing behind them averages it out).
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        layer
        for layer in convolution_layers(model)
        if all(
            _group(node) == 1 and min(shapes.get(node.input[1], (0, 0))[:2]) > RGB_CHANNELS
            for node in layer.nodes
        )
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


def round_layers(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    layers: Sequence[str],
    per_channel: bool = True,
    power2: bool = False,
    input_means: Mapping[str, NDArray[np.float64]] | None = None,
) -> dict[str, RoundedLayer]:
    """Round weights and choose scales.

    Parameters
    ----------
    model : ModelProto
        The float deploy graph, joined or in halves (:mod:`gpenlib.compile.halves`); not changed.
    thresholds : mapping
        Clipping threshold (largest magnitude that is represented) by activation tensor name.
    layers : sequence of str
        Names of the layers to quantise.
    per_channel : bool
        One weight scale per output channel, else one per tensor.
    power2 : bool
        Round weight scales up to powers of two (the vendor's shift hardware); the activation steps of two
        halves then differ by a power of two.
    input_means : mapping of tensor name to float64 [Cin], optional
        Mean of each input channel over the calibration images: corrects the bias (:func:`bias_correction`).

    Returns
    -------
    dict of RoundedLayer by layer name, in graph order

    Raises
    ------
    QuantisationError
        If not exactly the asked layers could be quantised.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = set(layers)
    rounded: dict[str, RoundedLayer] = {}
    for layer in convolution_layers(model):
        if layer.name not in wanted:
            continue
        for node in layer.nodes:
            if node.input[1] not in constants or node.input[0] not in thresholds:
                raise QuantisationError(
                    f"{node.name}: weight is not constant, or {node.input[0]} was not calibrated"
                )
        weights = [numpy_helper.to_array(constants[node.input[1]]) for node in layer.nodes]
        biases = [constants[node.input[2]] for node in layer.nodes if len(node.input) > 2]
        bias = numpy_helper.to_array(biases[0]) if biases else None  # the skip half has none
        steps = activation_steps([thresholds[name] for name in layer.inputs], power2)
        found = _round_layer(layer, weights, bias, steps, per_channel, power2)
        if input_means is not None:
            error = np.concatenate(weights, axis=1 - found.axis) - found.restored_weight()
            means = np.concatenate([input_means[name] for name in layer.inputs])
            correction = bias_correction(layer.nodes[0], error, means)
            corrected = correction if bias is None else bias + correction
            found = replace(found, bias=corrected.astype(np.float32))
        rounded[layer.name] = found
    if set(rounded) != wanted:
        missing = sorted(wanted - set(rounded))
        raise QuantisationError(f"layers that are not convolutions of this graph: {', '.join(missing)}")
    return rounded


def _round_layer(
    layer: ConvolutionLayer,
    weights: Sequence[NDArray[np.float32]],
    bias: NDArray[np.float32] | None,
    steps: tuple[float, ...],
    per_channel: bool,
    power2: bool,
) -> RoundedLayer:
    """Round one layer, whose parts have these weights and input steps."""
    axis = layer.output_axis
    own = [weight_scales(weight, axis, per_channel, power2) for weight in weights]
    units = np.max(
        [step * scales.astype(np.float64) for step, scales in zip(steps, own, strict=True)], axis=0
    )
    scales = np.stack([units / step for step in steps]).astype(np.float32)
    stored = [quantise_weight(weight, part, axis) for weight, part in zip(weights, scales, strict=True)]
    report = QuantisedLayer(
        name=layer.name,
        operator=layer.operator,
        tensors=layer.inputs,
        activation_scales=steps,
        activation_ranges=tuple(LEVELS * step for step in steps),
        weight_scale_min=float(scales.min()),
        weight_scale_max=float(scales.max()),
        weight_sqnr_db=0.0,
    )
    joined = np.concatenate(stored, axis=1 - axis)
    found = RoundedLayer(steps, joined, scales, axis, per_channel, bias, report)
    sqnr = sqnr_db(np.concatenate(weights, axis=1 - axis), found.restored_weight())
    return replace(found, report=replace(report, weight_sqnr_db=sqnr))


def _group(node: onnx.NodeProto) -> int:
    """Return the number of groups of a convolution."""
    return next((entry.i for entry in node.attribute if entry.name == "group"), 1)
