"""The arithmetic of rounding to int8: steps of activations, scales of weights, what rounding costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gpenlib.compile.histogram import LEVELS


def activation_steps(thresholds: Sequence[float], power2: bool) -> tuple[float, ...]:
    """Return the step of each part of a layer's input.

    A part that is always zero takes the step of the other. With ``power2`` the finer step is raised until the
    ratio of both is a power of two: the weight scales, whose ratio is its inverse, are to be powers of two.
    """
    coarse = max(thresholds)
    steps = [(threshold or coarse) / LEVELS for threshold in thresholds]
    if power2:
        steps = [coarse / LEVELS / 2.0 ** math.floor(math.log2(coarse / LEVELS / step)) for step in steps]
    return tuple(float(np.float32(step)) for step in steps)


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
