"""Calibration: one streaming pass that records what the quantised layers read and write."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from gpenlib.compile.histogram import MagnitudeHistogram
from gpenlib.images import RGB_CHANNELS, FloatArray


class CalibrationError(RuntimeError):
    """Calibration that cannot give usable ranges."""


@dataclass
class ChannelRange:
    """Smallest and largest value of every channel, float64 [C] each."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def update(self, values: NDArray[np.float32]) -> None:
        """Widen by an array [N, C, H, W]."""
        channels = torch.from_numpy(values)  # torch reduces on all cores, numpy on one
        self.low = np.minimum(self.low, channels.amin(dim=(0, 2, 3)).numpy())
        self.high = np.maximum(self.high, channels.amax(dim=(0, 2, 3)).numpy())


@dataclass
class Calibration:
    """What one pass over the calibration images found; its size does not depend on their number.

    Attributes
    ----------
    histograms : dict of MagnitudeHistogram by name of an input tensor
    input_means : dict of float64 [Cin] by name of an input tensor
        Mean of every channel.
    output_ranges : dict of ChannelRange by name of an output tensor
    picture_mean : float64 [3]
        Mean of every channel of the network's output, in [-1, 1].
    images : int
    """

    histograms: dict[str, MagnitudeHistogram]
    input_means: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    output_ranges: dict[str, ChannelRange] = field(default_factory=dict)
    picture_mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(RGB_CHANNELS))
    images: int = 0

    def thresholds(self, mode: str, percentile: float) -> dict[str, float]:
        """Return the clipping threshold of every input tensor under a calibration mode; 0 if it was zero."""
        return {
            name: found.threshold(mode, percentile) if found.largest > 0 else 0.0
            for name, found in self.histograms.items()
        }

    def check_alive(self, layers: Iterable[Sequence[str]]) -> None:
        """Fail if all that a layer reads was zero; one half may be (encoder features that do not exist).

        Parameters
        ----------
        layers : iterable of sequence of str
            The input tensors of each layer.

        Raises
        ------
        CalibrationError
        """
        dead = [
            ", ".join(names) for names in layers if not any(self.histograms[n].largest > 0 for n in names)
        ]
        if dead:
            raise CalibrationError(f"tensors that are zero on every calibration image: {'; '.join(dead[:5])}")


def calibrate(
    model: Path | onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    images: Iterable[FloatArray],
) -> Calibration:
    """Run the float model over the calibration images; record what layers read and write, and its output.

    Parameters
    ----------
    model : Path or ModelProto
        The float ONNX model.
    inputs : sequence of str
        Tensors that quantised layers read, [N, C, H, W].
    outputs : sequence of str
        Tensors that they write.
    images : iterable of float32 [1, 3, S, S]
        Read once, one at a time; memory does not grow with their number.

    Raises
    ------
    CalibrationError
        If there is no image, or a tensor is not finite.
    """
    found = Calibration({name: MagnitudeHistogram() for name in inputs})
    session = watching_session(model, [*inputs, *outputs])
    feed, picture = session.get_inputs()[0].name, session.get_outputs()[0].name
    watched = list(dict.fromkeys([*inputs, *outputs, picture]))
    for image in images:
        values = dict(zip(watched, session.run(watched, {feed: image}), strict=True))
        for name, value in values.items():
            if not all(map(math.isfinite, torch.from_numpy(value).aminmax())):  # NaN prevails in both
                raise CalibrationError(f"tensor {name} is not finite on calibration image {found.images}")
        _record(found, values, inputs, outputs)
        found.picture_mean += values[picture].mean(axis=(0, 2, 3), dtype=np.float64)
        found.images += 1
    if not found.images:
        raise CalibrationError("no calibration image was given")
    for mean in (*found.input_means.values(), found.picture_mean):
        mean /= found.images
    return found


def _record(
    found: Calibration,
    values: Mapping[str, NDArray[np.float32]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Add the tensors of one image."""
    for name in inputs:
        value = values[name]
        found.histograms[name].update(value)
        means = torch.from_numpy(value).mean(dim=(0, 2, 3)).double().numpy()
        found.input_means[name] = found.input_means.get(name, 0.0) + means
    for name in outputs:
        channels = values[name].shape[1]
        empty = ChannelRange(np.full(channels, np.inf), np.full(channels, -np.inf))
        found.output_ranges.setdefault(name, empty).update(values[name])


def watching_session(source: Path | onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session of the model with ``tensors`` as additional outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(source if isinstance(source, onnx.ModelProto) else onnx.load(source))
    present = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watching.onnx"
        onnx.save(model, path)
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
