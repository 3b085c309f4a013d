"""From a network and a build configuration to an artefact folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

from gpenlib.architecture import Gpen
from gpenlib.compile.calibration_data import CalibrationData, open_calibration_data
from gpenlib.compile.config import BackendConfig, BuildConfig, as_build_config
from gpenlib.compile.half import to_half
from gpenlib.compile.int8 import QOPERATOR_FILE, build_int8, int8_forms, keep_form
from gpenlib.compile.output_bias import correct_outputs
from gpenlib.compile.vendor import build_for_vendor
from gpenlib.compile.verify import float_outputs, verify
from gpenlib.data.process_ops import preprocess
from gpenlib.export import DeployGpen, ParityError, deploy_form, export_onnx
from gpenlib.infer import check_support
from gpenlib.infer.choice import auto_candidates, fastest_backend
from gpenlib.infer.runtime import FILES, MANIFEST_FILE, MODEL_FILE, QUANTISED, runtime_class, serves
from gpenlib.infer.torch_files import write_torch_files
from gpenlib.run import package_versions, resolve_path, sha256, write_json
from gpenlib.settings import SettingsError


def compile_model(
    model: Gpen | DeployGpen,
    build: BuildConfig | str | Path | Mapping[str, Any],
    out_dir: str | Path,
    float_graph: Path | None = None,
    calibration_cache: Path | None = None,
) -> Path:
    """Build an artefact: export, calibrate and quantise as configured, choose the backend, verify it.

    With ``backend.type: auto`` the backends that serve the artefact are timed on it, here, and the fastest is
    recorded. The chosen backend and those of ``backend.also`` run it on held-out faces.

    Parameters
    ----------
    model : Gpen or DeployGpen
    build : BuildConfig, path of a YAML file, or mapping
        A mapping may be partial: ``{"backend": {"dtype": "int8"}, "dataset": {"path": "faces"}}``.
    out_dir : path
        The artefact folder; an older artefact in it is replaced.
    float_graph : Path, optional
        This model as :func:`gpenlib.export_onnx` wrote it, to save exporting it again; it is checked
        against the model like any artefact.
    calibration_cache : Path, optional
        Folder that keeps what calibration found, by model, images and preprocessing: another mode or form of
        int8 then needs no new pass.

    Returns
    -------
    Path
        ``out_dir`` with ``model.onnx``, what PyTorch's backends read if they were asked for
        (``model.safetensors``, ``model.pt``), and ``manifest.json`` (written last), whose ``files`` names
        the backends that can open it; with ``backend.type: tvm_vacc`` the vendor's files instead.

    Raises
    ------
    SettingsError
        If the configuration has unknown keys or wrong values.
    RuntimeUnavailable
        If a backend cannot run the dtype on ``backend.device``, the machine has no such device, or the
        backend is the vendor's compiler and that is not installed.
    VendorCompilerError
        If the vendor's compiler (``backend.type: tvm_vacc``) fails.
    QuantisationError, CalibrationError, DataError
        If int8 was asked for and cannot be made as configured.
    ParityError
        If the artefact does not reproduce the network.
    """
    config = as_build_config(build)
    deploy = model if isinstance(model, DeployGpen) else deploy_form(model)
    _check_frontend(config, deploy)
    _check_process_ops(config, deploy)
    out_dir = resolve_path(out_dir)
    if config.backend.type == "tvm_vacc":
        return build_for_vendor(config, deploy, out_dir)
    candidates = _candidates(config.backend)
    wanted = [*candidates, *config.backend.also]
    out_dir.mkdir(parents=True, exist_ok=True)
    older = {MANIFEST_FILE, QOPERATOR_FILE, *FILES.values()} - {MODEL_FILE}
    for name in older:
        (out_dir / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as name:
        work = Path(name)
        float_path = float_graph or export_onnx(deploy, work / "float.onnx")
        manifest: dict[str, Any] = {
            "kind": "gpen-artefact",
            "name": config.name,
            "dtype": config.backend.dtype,
            "backend": candidates[0],
            "backend_reason": "asked for",
            "backend_times": [],
            "device": config.backend.device,
            "in_size": deploy.config.in_size,
            "out_size": deploy.config.out_size,
            "network": deploy.config.to_dict(),
            "input": "float32 [N, 3, in_size, in_size], RGB, [-1, 1]",
            "build": config.model_dump(),
            "unused_keys": config.unused_keys(),
        }
        data = open_calibration_data(config.dataset, deploy.config.in_size)
        built = None
        manifest["files"] = {backend: FILES[backend] for backend in serves(config.backend.dtype, wanted)}
        if config.backend.dtype in QUANTISED:
            forms = int8_forms(config.backend, wanted)
            built = build_int8(deploy, config.backend.quantize, float_path, data, calibration_cache)
            manifest |= built.write_all(forms, work)
        else:
            manifest |= _write_float_model(config.backend.dtype, float_path, work / MODEL_FILE)
        for path in work.glob(f"{Path(MODEL_FILE).stem}*.onnx"):
            shutil.move(path, out_dir / path.name)
        manifest["torch_files"] = {
            path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in write_torch_files(deploy, config.backend.dtype, out_dir, wanted)
        }
        manifest["packages"] = package_versions()
        write_json(out_dir / MANIFEST_FILE, manifest)  # what the runtimes need to open it
        try:
            manifest |= _choose(config.backend, out_dir, candidates)
            if config.backend.dtype in QUANTISED and config.backend.type == "auto":
                manifest |= keep_form(out_dir, manifest, config.backend.also)
                write_json(out_dir / MANIFEST_FILE, manifest)
            if built is not None and config.backend.quantize.bias_correction:
                files = {
                    name: manifest["files"][name] for name in (manifest["backend"], *config.backend.also)
                }
                manifest["quantisation"]["output_shift"] = correct_outputs(
                    out_dir, files, config.backend.device, data, built.calibration.picture_mean
                )
            manifest["model_sha256"] = sha256(out_dir / MODEL_FILE)
            manifest["model_bytes"] = (out_dir / MODEL_FILE).stat().st_size
            manifest |= _verify(config.backend, manifest["backend"], deploy, out_dir, data)
        except BaseException:
            (out_dir / MANIFEST_FILE).unlink(missing_ok=True)
            raise
        write_json(out_dir / MANIFEST_FILE, manifest)
    return out_dir


def _candidates(options: BackendConfig) -> list[str]:
    """Return the backends to choose from; refuse before any work what cannot be built or verified here."""
    dtype, device = options.dtype, options.device
    asked = [*options.also, *([] if options.type == "auto" else [options.type])]
    for name in asked:
        check_support(name, dtype, device)
        runtime_class(name).check_device(device)
    return auto_candidates(dtype, device, options.also) if options.type == "auto" else [options.type]


def _choose(options: BackendConfig, out_dir: Path, candidates: list[str]) -> dict[str, Any]:
    """Return what the manifest says of the backend that ``auto`` comes to."""
    if options.type != "auto":
        return {}
    backend, reason, rows = fastest_backend(out_dir, options.dtype, options.device, candidates)
    return {"backend": backend, "backend_reason": reason, "backend_times": rows}


def _verify(
    options: BackendConfig, backend: str, deploy: DeployGpen, out_dir: Path, data: CalibrationData
) -> dict[str, Any]:
    """Verify the chosen backend and those of ``also``; return what the manifest says of both."""
    images = list(data.held_out())
    expected = float_outputs(deploy, images)
    found = {
        name: verify(out_dir, name, options.device, images, expected)
        for name in dict.fromkeys((backend, *options.also))
    }
    return {**found.pop(backend), "also": found}


def _check_frontend(config: BuildConfig, deploy: DeployGpen) -> None:
    """Refuse a configured input shape that is not the network's."""
    size = deploy.config.in_size
    for name, shape in (config.frontend.shape or {}).items():
        if name != "input" or list(shape[1:]) != [3, size, size]:
            raise ParityError(
                f"frontend.shape {name}={shape}: this network takes input=[N, 3, {size}, {size}]; "
                "override frontend.shape"
            )


def _check_process_ops(config: BuildConfig, deploy: DeployGpen) -> None:
    """Refuse preprocessing that does not end in the network's input size, before any work."""
    size = deploy.config.in_size
    try:
        preprocess(np.zeros((size, size, 3), np.uint8), config.dataset.operators(), size)
    except ValueError as error:
        given = config.dataset.process_ops
        fixed = [{**entry, "size": [size, size]} if "size" in entry else entry for entry in given]
        words = yaml.safe_dump(fixed, default_flow_style=True, sort_keys=False, width=10_000).strip()
        hint = f"; override dataset.process_ops={words}" if fixed != given else ""
        raise SettingsError(f"dataset.process_ops: {error}{hint}") from error


def _write_float_model(dtype: str, float_path: Path, target: Path) -> dict[str, Any]:
    """Write the model file of a floating-point dtype; return what the manifest says of it."""
    if dtype in ("fp32", "bf16"):  # bf16 is the float graph under an execution hint
        shutil.copy(float_path, target)
        return {}
    half, counts = to_half(onnx.load(float_path))
    onnx.save(half, target)
    return {"convolutions_by_weight_type": counts}
