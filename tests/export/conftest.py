"""The tiny network exported once per session, by both exporters and in the training form."""

import copy

import pytest

from gpenlib.export import deploy_form, export_onnx, export_training_form


@pytest.fixture(scope="session")
def tiny_deploy(tiny_model):
    """Deploy form of the tiny network."""
    return deploy_form(tiny_model)


@pytest.fixture(scope="session")
def tiny_onnx(tiny_deploy, tmp_path_factory):
    """Path of the exported deploy form by exporter."""
    folder, exporters = tmp_path_factory.mktemp("tiny_onnx"), ("dynamo", "torchscript")
    return {name: export_onnx(tiny_deploy, folder / f"{name}.onnx", name) for name in exporters}


@pytest.fixture(scope="session")
def tiny_training_onnx(tiny_model, tmp_path_factory):
    """Path of the exported training form."""
    folder = tmp_path_factory.mktemp("tiny_training")
    return export_training_form(copy.deepcopy(tiny_model), folder / "training.onnx")
