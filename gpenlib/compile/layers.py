"""What int8 is about: which convolutions are quantised, how their weights are rounded, what is reported.

Activations (clipped to -128..127 as ONNX defines) and weights (-127..127) are symmetric 8-bit numbers. The
files are written by :mod:`gpenlib.compile.qdq` and :mod:`gpenlib.compile.qoperator`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

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


@dataclass(frozen=True)
class RoundedLayer:
    """One convolution in 8 bits, ready to be written in either form.

    Attributes
    ----------
    activation_scale : float
        Step of the input.
    weight : int8, shaped as the float weight
    scales : float32 [Cout]
        Step of each output channel's weights.
    axis : int
        The output channels' axis in ``weight``: 0 for Conv, 1 for ConvTranspose.
    per_channel : bool
        False: all ``scales`` are equal.
    bias : float32 [Cout] or None
        The convolution's bias, corrected if that was asked for.
    report : QuantisedLayer
    """

    activation_scale: float
    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int
    per_channel: bool
    bias: NDArray[np.float32] | None
    report: QuantisedLayer


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
        and _group(node) == 1
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
        The float deploy graph; not changed.
    thresholds : mapping
        Clipping threshold (largest magnitude that is represented) by activation tensor name.
    layers : sequence of str
        Node names of the convolutions to quantise.
    per_channel : bool
        One weight scale per output channel, else one per tensor.
    power2 : bool
        Round weight scales up to powers of two (the vendor's shift hardware).
    input_means : mapping of tensor name to float64 [Cin], optional
        Mean of each input channel over the calibration images: corrects the bias (:func:`bias_correction`).

    Returns
    -------
    dict of RoundedLayer by node name, in graph order

    Raises
    ------
    QuantisationError
        If not exactly the asked layers could be quantised.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = set(layers)
    rounded: dict[str, RoundedLayer] = {}
    for node in model.graph.node:
        if node.name not in wanted or node.op_type not in CONVOLUTIONS:
            continue
        tensor = node.input[0]
        if node.input[1] not in constants or tensor not in thresholds:
            raise QuantisationError(f"{node.name}: weight is not constant, or {tensor} was not calibrated")
        weight = numpy_helper.to_array(constants[node.input[1]])
        axis = 0 if node.op_type == "Conv" else 1
        scales = weight_scales(weight, axis, per_channel, power2)
        stored = quantise_weight(weight, scales, axis)
        restored = stored * along(scales, axis, weight.ndim)
        bias = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else None
        if input_means is not None:
            correction = bias_correction(node, weight - restored, input_means[tensor])
            bias = (correction if bias is None else bias + correction).astype(np.float32)
        step = float(np.float32(thresholds[tensor] / LEVELS))
        report = QuantisedLayer(
            name=node.name,
            operator=node.op_type,
            tensor=tensor,
            activation_scale=step,
            activation_range=float(thresholds[tensor]),
            weight_scale_min=float(scales.min()),
            weight_scale_max=float(scales.max()),
            weight_sqnr_db=sqnr_db(weight, restored),
        )
        rounded[node.name] = RoundedLayer(step, stored, scales, axis, per_channel, bias, report)
    if set(rounded) != wanted:
        missing = sorted(wanted - set(rounded))
        raise QuantisationError(f"layers that are not convolutions of this graph: {', '.join(missing)}")
    return rounded


def bias_correction(
    node: onnx.NodeProto, weight_error: NDArray[Any], means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what rounding the weights takes from each output channel on average, [Cout].

    The expected error of a convolution is the weight error times the mean input (Nagel et al., *Data-Free
    Quantization*, 2019, section 4.2). Only this layer's own error is corrected, for a float input:
    correcting what earlier layers did as well would count it once per layer. Borders are not treated apart; a
    transposed convolution of stride s spreads its taps over s x s outputs.
    """
    if node.op_type == "Conv":
        return np.einsum("oikl,i->o", weight_error.astype(np.float64), means)
    strides = next(entry.ints for entry in node.attribute if entry.name == "strides")
    return np.einsum("iokl,i->o", weight_error.astype(np.float64), means) / float(np.prod(strides))


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
    scaled = weight / along(scales, axis, weight.ndim)
    return np.clip(np.rint(scaled), -LEVELS, LEVELS).astype(np.int8)


def sqnr_db(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Return the signal-to-quantisation-noise ratio in dB (200 for equal arrays)."""
    noise = float(np.square(reference.astype(np.float64) - candidate).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else 200.0


def along(scales: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    """Shape per-channel scales for broadcasting along ``axis``."""
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove float weights that nothing reads any more."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _group(node: onnx.NodeProto) -> int:
    """Return the number of groups of a convolution."""
    return next((entry.i for entry in node.attribute if entry.name == "group"), 1)
