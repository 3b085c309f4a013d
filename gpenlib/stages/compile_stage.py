"""03_compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpenlib.compile import BuildConfig, as_build_config, compile_model
from gpenlib.export import export_onnx, summarise_graph
from gpenlib.infer import choose_backend
from gpenlib.infer.runtime import QUANTISED
from gpenlib.run import read_json
from gpenlib.stage_settings import CompileSettings, RunSettings
from gpenlib.stages.base import stage
from gpenlib.stages.data_stage import data


def compile(settings: CompileSettings) -> dict[str, Any]:
    """03_compile: the artefact of one dtype in ``03_compile/<dtype>/artefact``.

    Metrics: the artefact's own manifest.
    """
    weights = settings.load()
    config = build_config(settings)
    inputs = {"weights": weights.digest}
    described: dict[str, Any] = {"build": config.model_dump(exclude={"dataset": {"path"}})}
    if settings.dtype in QUANTISED:
        inputs["calibration"] = data(settings)["inputs"]["calibration"]

    cache = settings.folder / "03_compile" / "calibration"

    def build(folder: Path) -> dict[str, Any]:
        artefact = compile_model(weights.model, config, folder / "artefact", float_graph(settings), cache)
        return dict(read_json(artefact / "manifest.json"))

    return stage(settings, f"03_compile/{settings.dtype}", described, inputs, build)


def float_graph(settings: RunSettings) -> Path:
    """Return the float ONNX graph that every dtype starts from, exported once per run."""
    weights = settings.load()

    def build(folder: Path) -> dict[str, Any]:
        return summarise_graph(export_onnx(weights.model, folder / "model.onnx")).to_dict()

    inputs = {"weights": weights.digest}
    return Path(stage(settings, "03_compile/float", {}, inputs, build)["folder"]) / "model.onnx"


def build_config(settings: CompileSettings) -> BuildConfig:
    """Return the build configuration of a stage: the file's, with our dtype, backend and calibration pack.

    ``backend="auto"`` stays in it: what it comes to is measured, and must not decide whether a stage stands.
    """
    choose_backend(settings.backend, settings.dtype, settings.device)  # refuses early what cannot be run
    base: BuildConfig = as_build_config(settings.build) if settings.build else BuildConfig()
    values = base.model_dump()
    values["name"] = f"{settings.weights}_{settings.dtype}".replace("/", "_")
    values["backend"]["dtype"] = settings.dtype
    values["backend"] |= {"type": settings.backend, "device": settings.device}
    if settings.calibrate_mode is not None:
        values["backend"]["quantize"]["calibrate_mode"] = settings.calibrate_mode
    if settings.dtype in QUANTISED:
        folder = settings.folder / "02_data" / "calibration"
        values["dataset"] |= {"path": str(folder), "task": settings.task, "sampler": {}}
    return BuildConfig.parse(values)
