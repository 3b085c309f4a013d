"""Calibration: one streaming pass that records the magnitudes of every tensor a quantised layer reads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from gpenlib.compile.histogram import MagnitudeHistogram
from gpenlib.images import FloatArray


class CalibrationError(RuntimeError):
    """Calibration that cannot give usable ranges."""


def collect_histograms(
    model_path: Path, tensors: Sequence[str], images: Iterable[FloatArray]
) -> tuple[dict[str, MagnitudeHistogram], int]:
    """Run the float model over the calibration images and record each tensor's magnitudes.

    Parameters
    ----------
    model_path : Path
        The float ONNX model.
    tensors : sequence of str
        Names of the tensors to watch.
    images : iterable of float32 [1, 3, S, S]
        Read once, one at a time; memory does not grow with their number.

    Returns
    -------
    (dict of MagnitudeHistogram by tensor name, number of images)

    Raises
    ------
    CalibrationError
        If there is no image, or a tensor is not finite or always zero.
    """
    histograms = {name: MagnitudeHistogram() for name in tensors}
    session = watching_session(model_path, tensors)
    feed = session.get_inputs()[0].name
    count = 0
    for image in images:
        for name, value in zip(tensors, session.run(list(tensors), {feed: image}), strict=True):
            if not np.isfinite(value).all():
                raise CalibrationError(f"tensor {name} is not finite on calibration image {count}")
            histograms[name].update(value)
        count += 1
    if not count:
        raise CalibrationError("no calibration image was given")
    dead = [name for name, histogram in histograms.items() if not histogram.largest > 0]
    if dead:
        raise CalibrationError(f"tensors that are zero on every calibration image: {', '.join(dead[:5])}")
    return histograms, count


def thresholds_from(
    histograms: Mapping[str, MagnitudeHistogram], mode: str, percentile: float
) -> dict[str, float]:
    """Return the clipping threshold of every tensor under a calibration mode."""
    return {name: histogram.threshold(mode, percentile) for name, histogram in histograms.items()}


def watching_session(model_path: Path, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session of the model with ``tensors`` as additional outputs."""
    model = onnx.load(model_path)
    present = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watching.onnx"
        onnx.save(model, path)
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
