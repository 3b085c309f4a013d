"""Fixtures for every test: the shared data, a tiny network, its ONNX files, outputs elsewhere."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpenlib.architecture import Gpen
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.export import export_onnx, export_training_form
from gpenlib.files import repository_root

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data: the variable GPEN_SHARED, relative to the repository, or ../shared.

    Without it a test is skipped; with GPEN_SHARED_REQUIRED=1 it fails instead.
    """
    folder = (repository_root() / (os.environ.get("GPEN_SHARED") or "../shared")).resolve()
    if folder.is_dir():
        return folder
    reason = f"no shared data at {folder} (set GPEN_SHARED)"
    if os.environ.get("GPEN_SHARED_REQUIRED") == "1":
        pytest.fail(f"{reason}; GPEN_SHARED_REQUIRED=1 asks for it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def tiny_model() -> Gpen:
    """Seeded network of 64 px in eval mode whose output follows its input. Copy it before changing it."""
    model = random_network(TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        first, second = model(torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1)
    assert torch.isfinite(first).all() and first.std() > 0.01, "the tiny network is degenerate"
    assert (first - second).abs().mean() > 1e-3, "the tiny network ignores its input"
    return model


@pytest.fixture(scope="session")
def float_graph(tiny_model: Gpen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float ONNX graph of the tiny network."""
    return export_onnx(tiny_model, tmp_path_factory.mktemp("float") / "model.onnx")


@pytest.fixture(scope="session")
def tiny_training_onnx(tiny_model: Gpen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the exported training form."""
    folder = tmp_path_factory.mktemp("tiny_training")
    return export_training_form(copy.deepcopy(tiny_model), folder / "training.onnx")


@pytest.fixture(scope="session", autouse=True)
def _no_runs_in_the_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Send every run of the session, fixtures of wider scope included, to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPEN_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield


@pytest.fixture
def outputs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of all runs, fresh for this test."""
    monkeypatch.setenv("GPEN_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"
