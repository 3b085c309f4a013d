"""The tiny network's float graph, in halves and calibrated, and folders of calibration pictures."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpenlib.compile.calibrate import calibrate
from gpenlib.compile.rounding import quantisable_layers, round_layers, split_halves
from gpenlib.images import write_image


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return np.random.default_rng(4).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="session")
def calibrated(float_graph, image) -> SimpleNamespace:
    """``graph`` in halves, ``names`` of its quantisable layers, their ``calibration``; ``round(names)``."""
    graph = split_halves(onnx.load(float_graph))
    layers = quantisable_layers(graph)
    inputs = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    calibration = calibrate(graph, inputs, [layer.output for layer in layers], [image])
    names, thresholds = [layer.name for layer in layers], calibration.thresholds("max", 100)

    def rounded(chosen=None, **options):
        return round_layers(graph, thresholds, chosen or names, **options)

    return SimpleNamespace(
        graph=graph, names=names, calibration=calibration, thresholds=thresholds, round=rounded
    )


@pytest.fixture(scope="session")
def model_of() -> Callable[..., onnx.ModelProto]:
    """Function (nodes, shape, shape of the output, constants) -> model input -> output."""

    def make(nodes, shape, out_shape, constants):
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in (("input", shape), ("output", out_shape))
        ]
        arrays = [numpy_helper.from_array(array.astype("f4"), name) for name, array in constants.items()]
        graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], arrays)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    return make


@pytest.fixture(scope="session")
def two_layers(model_of) -> SimpleNamespace:
    """``model``: Conv 3x3, LeakyRelu, ConvTranspose 2x2; channels of its ``weights`` differ a hundredfold."""
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["a"], ["middle"], "activation", alpha=0.2),
        helper.make_node("ConvTranspose", ["middle", "w2"], ["output"], "second", strides=[2, 2]),
    ]
    rng = np.random.default_rng(1)
    first = rng.standard_normal((5, 4, 3, 3)) * np.geomspace(0.01, 1, 5)[:, None, None, None]
    second = rng.standard_normal((5, 6, 2, 2)) * np.geomspace(1, 0.01, 6)[None, :, None, None]
    weights = {"w1": first.astype(np.float32), "w2": second.astype(np.float32)}
    return SimpleNamespace(model=model_of(nodes, [1, 4, 6, 6], [1, 6, 12, 12], weights), weights=weights)


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[[int], Path]:
    """Function that writes so many coloured pictures into a folder."""

    def write(count: int) -> Path:
        rng = np.random.default_rng(count)
        for index in range(count):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            write_image(tmp_path / "faces" / f"{index}.png", np.kron(coarse, np.ones((9, 9, 1), np.uint8)))
        return tmp_path / "faces"

    return write
