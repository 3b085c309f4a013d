"""The tiny network exported once per session by both exporters."""

import pytest

from gpenlib.export import deploy_form, export_onnx, graphs


@pytest.fixture(scope="session")
def tiny_deploy(tiny_model):
    """Deploy form of the tiny network."""
    return deploy_form(tiny_model)


@pytest.fixture(scope="session")
def tiny_onnx(tiny_deploy, tmp_path_factory):
    """Path of the exported deploy form by exporter."""
    folder, exporters = tmp_path_factory.mktemp("tiny_onnx"), ("dynamo", "torchscript")
    return {name: export_onnx(tiny_deploy, folder / f"{name}.onnx", name) for name in exporters}


@pytest.fixture(autouse=True)
def _trace_anew(monkeypatch):
    """Here the exporters are what is tested: no graph comes from an earlier test."""
    monkeypatch.setattr(graphs, "_trace", graphs._trace.__wrapped__)
