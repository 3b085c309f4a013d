"""03_compile."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpenlib.compile import BuildConfig, as_build_config, compile_model
from gpenlib.compile.calibration_data import open_calibration_data
from gpenlib.compile.config import QuantizeConfig
from gpenlib.compile.histogram import MODES
from gpenlib.compile.int8 import build_int8, measure_sensitivity
from gpenlib.compile.quality import compare_artefacts
from gpenlib.export import deploy_form, export_onnx, summarise_graph
from gpenlib.infer import choose_backend
from gpenlib.infer.runtime import QUANTISED
from gpenlib.run import read_json
from gpenlib.stage_settings import CompileSettings, RunSettings
from gpenlib.stages.base import stage
from gpenlib.stages.data_stage import data, evaluation_pack

FIELDS = set(CompileSettings.model_fields)
UNEXCLUDED = {"exclude_layers": [], "quantize_mode": "manual"}
HEALED = 8  # layers left in float at most when the healing is measured
CHOICE_FACES = 16


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

    def build(folder: Path) -> dict[str, Any]:
        artefact = compile_model(
            weights.model, config, folder / "artefact", float_graph(settings), calibration_cache(settings)
        )
        return dict(read_json(artefact / "manifest.json"))

    return stage(settings, f"03_compile/{settings.dtype}", described, inputs, build)


def float_graph(settings: RunSettings) -> Path:
    """Return the float ONNX graph that every dtype starts from, exported once per run."""
    weights = settings.load()

    def build(folder: Path) -> dict[str, Any]:
        return summarise_graph(export_onnx(weights.model, folder / "model.onnx")).to_dict()

    inputs = {"weights": weights.digest}
    return Path(stage(settings, "03_compile/float", {}, inputs, build)["folder"]) / "model.onnx"


def sensitivity(settings: CompileSettings, healed: int = HEALED) -> dict[str, Any]:
    """Part of 03_compile: which layers int8 hurts most, in ``03_compile/sensitivity``.

    Metrics: as :func:`gpenlib.compile.int8.measure_sensitivity`, and ``max_drop_db``, the budget of
    ``exclude_layers: auto``. Layers that the configuration excludes are measured like the others.
    """
    settings = CompileSettings.parse(settings.model_dump(include=FIELDS) | {"dtype": "int8"})
    weights = settings.load()
    config = build_config(settings)
    options = QuantizeConfig.parse(config.backend.quantize.model_dump() | UNEXCLUDED)
    inputs = {"weights": weights.digest, "calibration": data(settings)["inputs"]["calibration"]}

    def build(folder: Path) -> dict[str, Any]:
        deploy = deploy_form(weights.model)
        images = open_calibration_data(config.dataset, deploy.config.in_size)
        built = build_int8(deploy, options, float_graph(settings), images, calibration_cache(settings))
        found = measure_sensitivity(deploy, built, images, options.sensitivity_images, healed)
        return {**found, "max_drop_db": options.max_drop_db}

    described = {"quantize": options.model_dump(), "healed": healed}
    return stage(settings, "03_compile/sensitivity", described, inputs, build)


def choice(settings: Mapping[str, CompileSettings], faces: int = CHOICE_FACES) -> dict[str, Any]:
    """Part of 03_compile: quality of every dtype, and of int8 in every calibration mode, on the same faces.

    Parameters
    ----------
    settings : mapping of dtype to CompileSettings
        fp32 must be among them.
    faces : int
        The first so many evaluation faces.

    Returns
    -------
    dict
        The manifest; metrics: ``faces`` and ``rows``, see :func:`gpenlib.compile.quality.compare_artefacts`.
    """
    first = settings["fp32"]
    inputs, artefacts = {}, {}
    for dtype, own in settings.items():
        manifest = compile(own)
        inputs[dtype] = manifest["outputs"]["artefact/model.onnx"]
        artefacts[dtype, manifest["metrics"].get("quantisation", {}).get("calibrate_mode")] = (
            Path(manifest["folder"]) / "artefact"
        )
    pack = evaluation_pack(first)
    inputs["evaluation"] = data(first)["inputs"]["evaluation"]

    def build(folder: Path) -> dict[str, Any]:
        for dtype, own in settings.items():
            for mode in MODES if dtype in QUANTISED else ():
                if (dtype, mode) not in artefacts:
                    config = build_config(
                        CompileSettings.parse(own.model_dump(include=FIELDS) | {"calibrate_mode": mode})
                    )
                    target = folder / f"{dtype}-{mode}"
                    cache = calibration_cache(own)
                    graph = float_graph(own)
                    artefacts[dtype, mode] = compile_model(own.load().model, config, target, graph, cache)
        rows = compare_artefacts(artefacts, pack, faces, first.device)
        for path in folder.iterdir():
            shutil.rmtree(path)  # these artefacts were only measured; notebook 04 builds the one it wants
        return {"faces": min(faces, len(pack)), "rows": rows}

    return stage(first, "03_compile/choice", {"faces": faces}, inputs, build)


def calibration_cache(settings: RunSettings) -> Path:
    """Return the folder that keeps what calibration found."""
    return settings.folder / "03_compile" / "calibration"


def replaced_keys(settings: CompileSettings) -> list[str]:
    """Return the keys of the build file that the settings replace by other values, dotted."""
    if settings.build is None:
        return []
    given = flat_keys(as_build_config(settings.build).model_dump(exclude_unset=True))
    used = flat_keys(build_config(settings).model_dump())
    return [key for key, value in given.items() if used.get(key, ...) != value]


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= flat_keys(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat


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
    values["frontend"]["checkpoint"] = settings.weights
    values["frontend"]["type"] = "onnx" if settings.weights.endswith(".onnx") else "pytorch"
    if settings.calibrate_mode is not None:
        values["backend"]["quantize"]["calibrate_mode"] = settings.calibrate_mode
    if settings.dtype in QUANTISED:
        folder = settings.folder / "02_data" / "calibration"
        values["dataset"] |= {"path": str(folder), "task": settings.task, "sampler": {}}
    return BuildConfig.parse(values)
