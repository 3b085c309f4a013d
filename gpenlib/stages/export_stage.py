"""01_export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gpenlib.data.embedded import EmbeddedSource
from gpenlib.data.tasks import make_pair
from gpenlib.export import (
    assert_parity,
    deploy_form,
    export_onnx,
    export_torchscript,
    export_training_form,
    summarise_graph,
)
from gpenlib.export.onnx_export import run_onnx
from gpenlib.images import to_tensor
from gpenlib.stage_settings import RunSettings
from gpenlib.stages.base import stage
from gpenlib.weights import Weights

PARITY_FACES = 2
TRAINING_FORM = "training.onnx"


def export(settings: RunSettings) -> dict[str, Any]:
    """01_export: ONNX (deploy form by both exporters, training form) and TorchScript, with parity.

    Metrics: ``graphs`` (figures by file) and ``parity`` (difference from the training form by file and
    batch, on faces).
    """
    weights = settings.load()
    inputs = {"weights": weights.digest}

    def build(folder: Path) -> dict[str, Any]:
        deploy = deploy_form(weights.model)
        export_training_form(weights.model, folder / TRAINING_FORM)
        export_onnx(deploy, folder / "deploy.onnx")
        export_onnx(deploy, folder / "deploy_torchscript_exporter.onnx", "torchscript")
        export_torchscript(deploy, folder / "deploy.pt")
        graphs = {path.name: summarise_graph(path).to_dict() for path in sorted(folder.glob("*.onnx"))}
        return {"graphs": graphs, "parity": _export_parity(weights, folder)}

    return stage(settings, "01_export", {"weights": settings.weights}, inputs, build)


def _export_parity(weights: Weights, folder: Path) -> dict[str, Any]:
    """Measure every exported file against the training form on faces, at batch 1 and 2; assert it."""
    size = weights.model.config.in_size
    source = EmbeddedSource(PARITY_FACES)
    faces = to_tensor([make_pair(source.read(i), "color", size)[0] for i in range(PARITY_FACES)])
    script = torch.jit.load(str(folder / "deploy.pt"))
    found: dict[str, Any] = {}
    for batch in (1, 2):
        image = faces[-batch:]
        with torch.inference_mode():
            expected = weights.model(torch.from_numpy(image)).numpy()
            outputs = {"deploy.pt": script(torch.from_numpy(image)).numpy()}
        for path in sorted(folder.glob("*.onnx")):
            if batch == 1 or path.name != TRAINING_FORM:  # that one is fixed at batch 1
                outputs[path.name] = run_onnx(path, image)
        for name, output in outputs.items():
            what = f"{name}, batch {batch}, against the training form"
            found.setdefault(name, {})[str(batch)] = assert_parity(expected, output, what).to_dict()
    return found
