"""One function per notebook: builds what is missing upstream, returns its manifest.

Every stage writes ``<outputs>/<run>/<stage>/`` with ``manifest.json`` last. A folder whose manifest has the
same settings, inputs and package versions, and whose files still have their recorded hashes, is returned at
once; anything else is built anew, and said so.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gpenlib.compile import BuildConfig, as_build_config, compile_model
from gpenlib.data.packs import Pack, read_pack, write_pack
from gpenlib.data.sources import combined_digest, open_folder
from gpenlib.data.splits import open_source, split
from gpenlib.data.tasks import make_pair
from gpenlib.errors.analysis import analyse
from gpenlib.export import (
    assert_parity,
    deploy_form,
    export_onnx,
    export_torchscript,
    export_training_form,
    summarise_graph,
)
from gpenlib.export.onnx_export import run_onnx
from gpenlib.images import read_image, to_tensor
from gpenlib.infer import choose_backend, open_runtime
from gpenlib.infer.chroma import data_chroma
from gpenlib.infer.pipeline import restore_pack
from gpenlib.infer.runtime import QUANTISED
from gpenlib.infer.scoring import summarise
from gpenlib.run import read_json, resolve_path, sha256, valid_manifest, write_json, write_manifest
from gpenlib.stage_settings import (
    CompileSettings,
    DataSettings,
    ErrorSettings,
    InferSettings,
    RunSettings,
)
from gpenlib.weights import Weights

log = logging.getLogger("gpenlib.stages")
PARITY_FACES = 2
TRAINING_FORM = "training.onnx"

__all__ = [
    "CompileSettings",
    "DataSettings",
    "ErrorSettings",
    "InferSettings",
    "RunSettings",
    "compile",
    "data",
    "errors",
    "evaluation_pack",
    "export",
    "infer",
    "output_reader",
]


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

    return _stage(settings, "01_export", {"weights": settings.weights}, inputs, build)


def data(settings: DataSettings) -> dict[str, Any]:
    """02_data: the evaluation and calibration packs.

    Metrics: ``evaluation`` and ``calibration`` (numbers of images), ``note``, ``label``, ``in_size``,
    ``out_size``.
    """
    weights = settings.load()
    config = weights.model.config
    source = open_source(_path(settings.data_dir), settings.dataset_size + settings.calib_size)
    calibration = open_folder(resolve_path(settings.calib_dir)) if settings.calib_dir else None
    parts = split(source, settings.dataset_size, settings.calib_size, calibration, settings.seed)
    chosen = {"evaluation": parts.evaluation, "calibration": parts.calibration}
    inputs = {name: combined_digest(part, range(len(part.names))) for name, part in chosen.items()}
    described = {
        **settings.model_dump(include={"task", "dataset_size", "calib_size", "seed"}),
        "in_size": config.in_size,
        "out_size": config.out_size,
    }

    def build(folder: Path) -> dict[str, Any]:
        for name, part in chosen.items():
            write_pack(folder / name, part, settings.task, config.in_size, config.out_size)
        return {
            **{name: len(part.names) for name, part in chosen.items()},
            "note": parts.note,
            "label": source.label,
            "in_size": config.in_size,
            "out_size": config.out_size,
        }

    return _stage(settings, "02_data", described, inputs, build)


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

    return _stage(settings, f"03_compile/{settings.dtype}", described, inputs, build)


def float_graph(settings: RunSettings) -> Path:
    """Return the float ONNX graph that every dtype starts from, exported once per run."""
    weights = settings.load()

    def build(folder: Path) -> dict[str, Any]:
        return summarise_graph(export_onnx(weights.model, folder / "model.onnx")).to_dict()

    inputs = {"weights": weights.digest}
    return Path(_stage(settings, "03_compile/float", {}, inputs, build)["folder"]) / "model.onnx"


def infer(settings: InferSettings) -> dict[str, Any]:
    """04_infer: restore and score the evaluation faces with one dtype.

    Writes ``results.json`` (the metrics), with ``save_images`` ``images/*.png`` and with ``save_npz`` the
    unrounded outputs as ``npz/*.npz``.
    """
    faces = data(settings)
    artefact = compile(settings)
    backend = artefact["metrics"]["backend"]  # what compile_model measured, where the settings say auto
    inputs = {
        **faces["inputs"],  # calibration too: its mean colour makes a baseline
        "artefact": artefact["outputs"][f"artefact/{artefact['metrics']['files'][backend]}"],
    }
    described = {
        **settings.model_dump(include={"dtype", "device", "batch_size", "save_images", "save_npz"}),
        "backend": backend,
    }

    def build(folder: Path) -> dict[str, Any]:
        runtime = open_runtime(Path(artefact["folder"]) / "artefact", device=settings.device)
        pack = read_pack(Path(faces["folder"]) / "evaluation")
        images = folder / "images" if settings.save_images else None
        npz = folder / "npz" if settings.save_npz else None
        chroma = data_chroma(pack)
        rows = restore_pack(runtime, pack, settings.batch_size, images, npz, chroma)
        results = {
            "images": len(rows),
            "dtype": settings.dtype,
            "backend": runtime.backend,
            "executed_precision": runtime.executed_precision,
            "device": settings.device,
            "batch_size": settings.batch_size,
            "weights": settings.weights,
            "task": settings.task,
            "data": faces["metrics"]["label"],
            "chroma_baseline": chroma.source,
            **summarise(rows),
            "rows": rows,
        }
        write_json(folder / "results.json", results)
        return results

    return _stage(settings, f"04_infer/{settings.dtype}", described, inputs, build)


def errors(settings: ErrorSettings) -> dict[str, Any]:
    """05_errors: compare every dtype with fp32 on the same faces.

    Metrics: see :func:`gpenlib.errors.analysis.analyse`.
    """
    runs = {dtype: infer(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    inputs = {str(dtype): manifest["outputs"]["results.json"] for dtype, manifest in runs.items()}
    files = {name: getattr(settings, name) for name in ("lpips_weights", "features_file")}
    inputs |= {name: sha256(Path(file)) for name, file in files.items() if file}
    described = {
        "dtypes": list(settings.dtypes),
        "features_are_inception": settings.features_are_inception,
    }

    def build(folder: Path) -> dict[str, Any]:
        results = analyse(
            {str(dtype): manifest["metrics"] for dtype, manifest in runs.items()},
            {str(dtype): output_reader(manifest) for dtype, manifest in runs.items()},
            evaluation_pack(settings),
            {name: Path(file) if file else None for name, file in files.items()},
            settings.features_are_inception,
        )
        write_json(folder / "results.json", results)
        return results

    return _stage(settings, "05_errors", described, inputs, build)


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


def output_reader(manifest: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function that reads the restored image of a face by name."""
    folder = Path(manifest["folder"]) / "images"
    return lambda name: read_image(folder / f"{name}.png")


def evaluation_pack(settings: DataSettings) -> Pack:
    """Return the evaluation faces of a run (built if missing)."""
    return read_pack(Path(data(settings)["folder"]) / "evaluation")


def _export_parity(weights: Weights, folder: Path) -> dict[str, Any]:
    """Measure every exported file against the training form on faces, at batch 1 and 2; assert it."""
    size = weights.model.config.in_size
    source = open_source(None, PARITY_FACES)
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


def _path(value: str | None) -> str | None:
    """Resolve a folder given by the user against the repository root."""
    return str(resolve_path(value)) if value else None


def _stage(
    settings: RunSettings,
    name: str,
    described: Mapping[str, Any],
    inputs: Mapping[str, str],
    build: Callable[[Path], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the standing manifest of a stage, or build it; adds ``folder`` and ``built``."""
    folder = settings.folder / name
    manifest, why = valid_manifest(folder, described, inputs)
    if manifest is not None:
        return manifest | {"folder": str(folder), "built": False}
    if why:
        log.warning("%s is built anew: %s", folder, why)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    metrics = build(folder)
    return write_manifest(folder, name, described, inputs, metrics) | {"folder": str(folder), "built": True}
