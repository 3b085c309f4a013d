"""From a network and a build configuration to an artefact folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml

from gpenlib.architecture import Gpen
from gpenlib.compile.calibration_data import CalibrationData, open_calibration_data
from gpenlib.compile.config import BuildConfig, as_build_config
from gpenlib.compile.half import to_half
from gpenlib.compile.int8 import build_int8, count_quantised
from gpenlib.compile.layers import QuantisationError
from gpenlib.compile.vendor import build_for_vendor
from gpenlib.data.process_ops import preprocess
from gpenlib.export import DeployGpen, ParityError, deploy_form, export_onnx, parity
from gpenlib.infer import RuntimeUnavailable, choose_backend, open_runtime
from gpenlib.infer.runtime import MANIFEST_FILE, MODEL_FILE, QUANTISED
from gpenlib.run import package_versions, resolve_path, sha256, write_json
from gpenlib.settings import SettingsError

# The least PSNR against the float network (dB, data range 2) below which an artefact counts as broken.
# Sound ones lie far above: see notebook 03.
LEAST_PSNR = {"fp32": 90.0, "fp16": 50.0, "bf16": 35.0, "int8": 20.0, "int8_bf16": 20.0}


def compile_model(
    model: Gpen | DeployGpen,
    build: BuildConfig | str | Path | Mapping[str, Any],
    out_dir: str | Path,
    float_graph: Path | None = None,
    calibration_cache: Path | None = None,
) -> Path:
    """Build an artefact: export, calibrate and quantise as configured, verify by running it.

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
        ``out_dir`` with ``model.onnx`` and ``manifest.json`` (written last); with ``backend.type: tvm_vacc``
        the vendor's inputs and outputs in place of ``model.onnx``.

    Raises
    ------
    SettingsError
        If the configuration has unknown keys or wrong values.
    RuntimeUnavailable
        If the backend cannot run the dtype, or is the vendor's compiler and that is not installed.
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
    backend, reason = choose_backend(config.backend.type, config.backend.dtype)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / MANIFEST_FILE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as name:
        work = Path(name)
        float_path = float_graph or export_onnx(deploy, work / "float.onnx")
        manifest: dict[str, Any] = {
            "kind": "gpen-artefact",
            "name": config.name,
            "dtype": config.backend.dtype,
            "backend": backend,
            "backend_reason": reason,
            "in_size": deploy.config.in_size,
            "out_size": deploy.config.out_size,
            "network": deploy.config.to_dict(),
            "input": "float32 [N, 3, in_size, in_size], RGB, [-1, 1]",
            "build": config.model_dump(),
            "unused_keys": config.unused_keys(),
        }
        data = open_calibration_data(config.dataset, deploy.config.in_size)
        if config.backend.dtype in QUANTISED:
            form = _int8_form(config, backend)
            built = build_int8(deploy, config.backend.quantize, float_path, data, calibration_cache)
            counts = built.write(form, work / MODEL_FILE)
            manifest["layers"] = [layer.to_dict() for layer in built.reports()]
            manifest["quantisation"] = {"form": form, "quantised": counts, **built.report}
        else:
            manifest |= _write_float_model(config.backend.dtype, float_path, work / MODEL_FILE)
        shutil.move(work / MODEL_FILE, out_dir / MODEL_FILE)
        manifest["model_sha256"] = sha256(out_dir / MODEL_FILE)
        manifest["model_bytes"] = (out_dir / MODEL_FILE).stat().st_size
        manifest["packages"] = package_versions()
        write_json(out_dir / MANIFEST_FILE, manifest)  # what the runtime needs to open it for verification
        try:
            manifest |= _verify(deploy, out_dir, data)
        except BaseException:
            (out_dir / MANIFEST_FILE).unlink(missing_ok=True)
            raise
        write_json(out_dir / MANIFEST_FILE, manifest)
    return out_dir


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


def _int8_form(config: BuildConfig, backend: str) -> str:
    """Return the form of the int8 file: the one that the backend computes in 8 bits, unless told."""
    asked = config.backend.quantize.format
    best = "qoperator" if backend == "onnxruntime" else "qdq"
    if asked == "qoperator" and backend != "onnxruntime":
        raise RuntimeUnavailable(f"quantize.format qoperator is for onnxruntime; {backend} reads qdq")
    return best if asked == "auto" else asked


def _write_float_model(dtype: str, float_path: Path, target: Path) -> dict[str, Any]:
    """Write the model file of a floating-point dtype; return what the manifest says of it."""
    if dtype in ("fp32", "bf16"):  # bf16 is the float graph under an execution hint
        shutil.copy(float_path, target)
        return {}
    half, counts = to_half(onnx.load(float_path))
    onnx.save(half, target)
    return {"convolutions_by_weight_type": counts}


def _verify(deploy: DeployGpen, out_dir: Path, data: CalibrationData) -> dict[str, Any]:
    """Run the artefact on held-out faces against the float network; return the figures."""
    runtime = open_runtime(out_dir)
    executed = runtime.executed_types()
    if runtime.dtype in QUANTISED and runtime.backend == "openvino":
        _check_executed_int8(executed, out_dir)
    found = [
        parity(expected, runtime(image))
        for image in data.held_out()
        for expected in [_run_torch(deploy, image)]
    ]
    worst = min(found, key=lambda row: row.psnr)
    least = LEAST_PSNR[runtime.dtype]
    if worst.psnr < least:
        raise ParityError(
            f"{runtime.dtype} artefact reaches {worst.psnr:.1f} dB against the float network on its worst "
            f"held-out face, at least {least} dB is expected"
        )
    mean = replace(
        worst, **{name: float(np.mean([getattr(row, name) for row in found])) for name in asdict(worst)}
    )
    return {
        "parity": {"faces": len(found), "mean": mean.to_dict(), "worst": worst.to_dict()},
        "executed_convolutions": executed,
        "executed_precision": runtime.executed_precision,
    }


def _check_executed_int8(executed: Mapping[str, int], out_dir: Path) -> None:
    """Fail unless OpenVINO runs every quantised convolution in int8."""
    wanted = sum(count_quantised(onnx.load(out_dir / MODEL_FILE)).values())
    ran = executed.get("i8", 0) + executed.get("u8", 0)
    if ran < wanted:
        raise QuantisationError(
            f"OpenVINO executes {ran} of {wanted} quantised convolutions in int8: {executed}"
        )


def _run_torch(deploy: DeployGpen, image: np.ndarray) -> np.ndarray:
    """Run the float deploy form on one batch."""
    with torch.inference_mode():
        device = next(deploy.buffers()).device
        return deploy(torch.from_numpy(image).to(device)).cpu().numpy()
