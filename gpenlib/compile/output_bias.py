"""Correction of the output's mean: rounding must not tint the picture.

The errors of all layers add up to a small shift of the output's mean that is nearly the same for every face
(a tint). It is measured where it arises, by running the finished file on the calibration images, and taken
out of the last bias, three numbers. This is empirical bias correction (Nagel et al., *Data-Free
Quantization*, 2019, appendix D) at the one layer whose mean a viewer sees; inner layers are corrected for
what rounding their own weights costs (:func:`gpenlib.compile.rounding.bias_correction`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gpenlib.compile.calibration_data import CalibrationData
from gpenlib.compile.layers import QuantisationError
from gpenlib.images import RGB_CHANNELS
from gpenlib.infer import open_runtime

CORRECTED = "output_bias"


def correct_outputs(
    out_dir: Path, files: Mapping[str, str], device: str, data: CalibrationData, expected: NDArray[np.float64]
) -> dict[str, list[float]]:
    """Give every ONNX file of an artefact the output mean of the float network, in place.

    Parameters
    ----------
    out_dir : Path
        The artefact folder, with its manifest written.
    files : mapping of backend to file name
        Backends that run on ``device``; a file that several of them read is run under the first.
    device : str
    data : CalibrationData
    expected : float64 [3]
        Mean of the float network's output over the calibration images, per channel, in [-1, 1].

    Returns
    -------
    dict of list of float
        By file: what was taken out of its bias, R G B, in [-1, 1].

    Raises
    ------
    QuantisationError
        If a graph does not end in the sum with a bias that ``export_onnx`` writes.
    """
    backends: dict[str, str] = {}
    for backend, name in files.items():
        backends.setdefault(name, backend)
    found = {}
    for name, backend in backends.items():
        runtime = open_runtime(out_dir, device=device, backend=backend)
        images = data.calibration("correct the mean")
        means = [runtime(image).mean(axis=(0, 2, 3), dtype=np.float64) for image in images]
        shift = np.mean(means, axis=0) - expected
        model = onnx.load(out_dir / name)
        add_to_output(model, -shift)
        onnx.save(model, out_dir / name)
        found[name] = shift.tolist()
    return found


def add_to_output(model: onnx.ModelProto, change: NDArray[np.float64]) -> None:
    """Change the last bias of a graph, in place; the bias gets a name of its own.

    (The exporter lets layers with equal biases share one constant.)

    Parameters
    ----------
    model : ModelProto
    change : float64 [3]
    """
    graph = model.graph
    node, slot = _last_bias(graph)
    old = next(tensor for tensor in graph.initializer if tensor.name == node.input[slot])
    value = numpy_helper.to_array(old)
    corrected = (value + change.reshape(1, RGB_CHANNELS, 1, 1)).astype(value.dtype)
    node.input[slot] = CORRECTED
    if not any(old.name in other.input for other in graph.node):
        graph.initializer.remove(old)
    graph.initializer.append(numpy_helper.from_array(corrected, CORRECTED))


def _last_bias(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, int]:
    """Return the last Add of an RGB constant, among the additions that end in the output, and its input."""
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer if list(tensor.dims) == [1, RGB_CHANNELS, 1, 1]}
    waiting = [graph.output[0].name]
    while waiting:
        node = producers.get(waiting.pop(0))
        if node is None or node.op_type != "Add":
            continue
        for slot, name in enumerate(node.input):
            if name in constants:
                return node, slot
        waiting.extend(node.input)
    raise QuantisationError("the graph does not end in a sum with a bias of 3 channels: nothing to correct")
