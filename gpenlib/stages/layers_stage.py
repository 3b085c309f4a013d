"""05_errors/layers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gpenlib.compile.calibration_data import open_calibration_data
from gpenlib.compile.int8 import Int8Build, build_int8
from gpenlib.errors.half_stress import stress_half
from gpenlib.errors.healing import analyse_layers
from gpenlib.errors.threads import measured_threads
from gpenlib.export import deploy_form
from gpenlib.images import to_tensor
from gpenlib.infer.runtime import QUANTISED
from gpenlib.run import write_json
from gpenlib.settings import SettingsError
from gpenlib.stage_settings import ErrorSettings, InferSettings
from gpenlib.stages.base import stage
from gpenlib.stages.compile_stage import build_config, calibration_cache, compile, float_graph
from gpenlib.stages.data_stage import data, evaluation_pack

STRESS_FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
STRESS_FACES = 2
IN_FLOAT = "; all that is not rounded to 8 bits is computed in float32"


def layer_errors(settings: ErrorSettings) -> dict[str, Any]:
    """05_errors/layers: where int8 departs from float inside the network, and what breaks fp16.

    On the first ``layer_faces`` evaluation faces. Metrics: ``dtype``, ``faces``, ``arithmetic`` (how the
    error of int8 was computed), ``excluded`` (layers that the build left in float), ``rows``, ``ranking``
    and ``healing`` (:func:`gpenlib.errors.healing.analyse_layers`), ``half`` (rows of
    :func:`gpenlib.errors.half_stress.stress_half`).

    Raises
    ------
    SettingsError
        If no quantised dtype is among ``dtypes``.
    """
    dtype = quantised_dtype(settings)
    if dtype is None:
        raise SettingsError(
            f"dtypes={','.join(settings.dtypes)}: layer errors are those of int8; add one of "
            f"{', '.join(QUANTISED)}"
        )
    own = settings.for_dtype(dtype)
    faces = data(own)
    artefact = compile(own)
    count = min(settings.layer_faces, faces["metrics"]["evaluation"])
    inputs = {**faces["inputs"], "weights": artefact["inputs"]["weights"]}
    inputs |= {name: value for name, value in artefact["outputs"].items() if name.endswith(".onnx")}
    described = {"dtype": dtype, "layer_faces": count, "stress_factors": STRESS_FACTORS}

    def build(folder: Path) -> dict[str, Any]:
        results = _analyse(own, artefact, count, folder)
        write_json(folder / "layers.json", results)
        return results

    return stage(settings, "05_errors/layers", described, inputs, build)


def quantised_dtype(settings: ErrorSettings) -> str | None:
    """Return the quantised dtype whose layers are analysed, or None."""
    return next((dtype for dtype in QUANTISED if dtype in settings.dtypes), None)


def _analyse(own: InferSettings, artefact: Mapping[str, Any], count: int, folder: Path) -> dict[str, Any]:
    """Run the analysis on the first ``count`` evaluation faces."""
    model = own.load().model
    pack = evaluation_pack(own)
    images = [to_tensor(pack.inputs(index)) for index in range(count)]
    built = _rebuild(own, artefact)
    stressed = torch.cat([torch.from_numpy(image) for image in images[:STRESS_FACES]])
    deploy = deploy_form(model)

    def run() -> None:
        with torch.inference_mode():
            deploy(stressed[:1])

    with tempfile.TemporaryDirectory(dir=folder, prefix=".qdq-") as work, measured_threads(run):
        int8_file, arithmetic = _qdq_file(artefact, built, Path(work))
        found = analyse_layers(built.float_path, int8_file, deploy, built.layers, images)
    with measured_threads(run):  # again: what else the machine does may have changed
        half = stress_half(model, stressed, STRESS_FACTORS)
    return {
        "dtype": own.dtype,
        "faces": pack.names[:count],
        "arithmetic": arithmetic,
        "excluded": artefact["metrics"]["quantisation"]["excluded"],
        **found,
        "half": half,
    }


def _rebuild(own: InferSettings, artefact: Mapping[str, Any]) -> Int8Build:
    """Round the artefact's layers again, from the calibration that its build kept."""
    config = build_config(own)
    model = own.load().model
    # What `auto` excluded is known by now; measuring it again could come out otherwise.
    excluded = list(artefact["metrics"]["quantisation"]["excluded"])
    options = config.backend.quantize.model_copy(
        update={"exclude_layers": excluded, "quantize_mode": "manual"}
    )
    images = open_calibration_data(config.dataset, model.config.in_size)
    return build_int8(deploy_form(model), options, float_graph(own), images, calibration_cache(own))


def _qdq_file(artefact: Mapping[str, Any], built: Int8Build, work: Path) -> tuple[Path, str]:
    """Return a QDQ file of the artefact's network, and in words what its arithmetic is."""
    forms = artefact["metrics"]["quantisation"]["forms"]
    name = next((name for name, form in forms.items() if form == "qdq"), None)
    if name is not None:
        return Path(artefact["folder"]) / "artefact" / name, f"the artefact's own QDQ file{IN_FLOAT}"
    built.write("qdq", work / "model.onnx")
    return work / "model.onnx", (
        "a QDQ file with the artefact's layers and scales; the artefact is in QOperator form, which rounds "
        f"the layers' outputs too{IN_FLOAT}"
    )
