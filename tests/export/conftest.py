"""The tiny network exported once per session, by both exporters and in the training form."""

import copy
from pathlib import Path

import pytest

from gpenlib.architecture import Gpen
from gpenlib.export import DeployGpen, deploy_form, export_onnx, export_training_form


@pytest.fixture(scope="session")
def tiny_deploy(tiny_model: Gpen) -> DeployGpen:
    """Deploy form of the tiny network."""
    return deploy_form(tiny_model)


@pytest.fixture(scope="session")
def tiny_onnx(tiny_deploy: DeployGpen, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Path of the exported deploy form by exporter."""
    folder = tmp_path_factory.mktemp("tiny_onnx")
    return {
        exporter: export_onnx(tiny_deploy, folder / f"{exporter}.onnx", exporter)
        for exporter in ("dynamo", "torchscript")
    }


@pytest.fixture(scope="session")
def tiny_training_onnx(tiny_model: Gpen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the exported training form."""
    folder = tmp_path_factory.mktemp("tiny_training")
    return export_training_form(copy.deepcopy(tiny_model), folder / "training.onnx")
