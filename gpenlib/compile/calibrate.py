"""Calibration: one streaming pass that finds the range of every tensor a quantised layer reads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from gpenlib.images import FloatArray


class CalibrationError(RuntimeError):
    """Calibration that cannot give usable ranges."""


class TensorRange:
    """Largest magnitude of one tensor over all calibration images; memory does not grow with them."""

    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, values: NDArray[np.float32]) -> None:
        """Take in one image's tensor of any shape."""
        self.largest = max(self.largest, float(np.abs(values).max()))


def collect_ranges(
    model_path: Path, tensors: Sequence[str], images: Iterable[FloatArray]
) -> tuple[dict[str, TensorRange], int]:
    """Run the float model over the calibration images and record each tensor's range.

    Parameters
    ----------
    model_path : Path
        The float ONNX model.
    tensors : sequence of str
        Names of the tensors to watch.
    images : iterable of float32 [1, 3, S, S]
        Read once, one at a time.

    Returns
    -------
    (dict of TensorRange by tensor name, number of images)

    Raises
    ------
    CalibrationError
        If there is no image, or a tensor is not finite or always zero.
    """
    ranges = {name: TensorRange() for name in tensors}
    session = _watching_session(model_path, tensors)
    feed = session.get_inputs()[0].name
    count = 0
    for image in images:
        for name, value in zip(tensors, session.run(list(tensors), {feed: image}), strict=True):
            if not np.isfinite(value).all():
                raise CalibrationError(f"tensor {name} is not finite on calibration image {count}")
            ranges[name].update(value)
        count += 1
    if not count:
        raise CalibrationError("no calibration image was given")
    dead = [name for name, found in ranges.items() if not found.largest > 0]
    if dead:
        raise CalibrationError(f"tensors that are zero on every calibration image: {', '.join(dead[:5])}")
    return ranges, count


def _watching_session(model_path: Path, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return a session of the model with ``tensors`` as additional outputs."""
    model = onnx.load(model_path)
    present = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watching.onnx"
        onnx.save(model, path)
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
