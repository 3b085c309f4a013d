"""The tiny network's float graph, exported once, and folders of calibration pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpenlib.architecture import Gpen
from gpenlib.export import export_onnx
from gpenlib.images import write_image


@pytest.fixture(scope="session")
def float_graph(tiny_model: Gpen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float ONNX graph of the tiny network."""
    return export_onnx(tiny_model, tmp_path_factory.mktemp("float") / "model.onnx")


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
