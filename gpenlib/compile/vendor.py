"""``backend.type: tvm_vacc``: prepare what the chip vendor's compiler (``vamc``) reads, and run it.

The folder can be moved to a machine that has ``vamc``: its build file names everything relative to itself.
The schema is that of the vendor zoo's build files (``official_gpen.yaml``), and its model card says how to
run them: ``vamc compile <build file>``.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gpenlib.compile.calibrate import CalibrationData, open_calibration_data
from gpenlib.export import DeployGpen, export_torchscript
from gpenlib.files import hash_outputs, package_versions, progress, sha256, write_atomically, write_json
from gpenlib.images import write_image
from gpenlib.infer import RuntimeUnavailable
from gpenlib.infer.runtime import BACKENDS, MANIFEST_FILE, MODEL_FILE
from gpenlib.settings import BuildConfig, SettingsError

COMPILER = "vamc"
VENDOR_DTYPES = ("fp16", "int8")  # what the vendor's model card names
BUILD_FILE = "build.yaml"
PICTURES = "calibration"
LOG_FILE = "vamc.log"
PICTURE_SUFFIXES = ("png", "jpg", "jpeg")
TAIL_LINES = 20
VERSION_SECONDS = 60.0
# Keys of ours that the vendor's file does not know, but that are spent when the pictures are written.
SPENT_KEYS = ("dataset.task",)


class VendorCompilerError(RuntimeError):
    """The vendor's compiler ran and failed, or wrote nothing."""


def build_for_vendor(config: BuildConfig, deploy: DeployGpen, out_dir: Path) -> Path:
    """Write the vendor's inputs into ``out_dir`` and run ``vamc compile`` on them.

    Parameters
    ----------
    config : BuildConfig
        With ``backend.type: tvm_vacc``. A relative ``workspace.path`` starts at ``out_dir``.
    deploy : DeployGpen
    out_dir : Path
        Gets the TorchScript file, ``build.yaml``, the pictures in ``calibration/``, ``vamc.log`` with the
        compiler's output and, last, ``manifest.json``.

    Returns
    -------
    Path
        ``out_dir``.

    Raises
    ------
    RuntimeUnavailable
        If the dtype is not one of the vendor's, or ``vamc`` is not on PATH: then the inputs lie ready.
    SettingsError
        If ``exclude_layers`` holds anything but indices.
    DataError
        If the calibration pictures are absent or too few.
    VendorCompilerError
        If ``vamc`` fails or writes nothing.
    """
    _check(config)
    data = open_calibration_data(config.dataset, deploy.config.in_size, deploy.config.out_size)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_FILE, MODEL_FILE):  # an older artefact is replaced
        (out_dir / name).unlink(missing_ok=True)
    resolved = _prepare(config, deploy, data, out_dir)
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise RuntimeUnavailable(
            f"backend.type tvm_vacc is the chip vendor's compiler, and {COMPILER} is not on PATH; its inputs "
            f"lie ready in {out_dir} (it can be copied to a machine that has {COMPILER}), to be built with: "
            f"cd {shlex.quote(str(out_dir))} && {COMPILER} compile {BUILD_FILE}; "
            f"backend.type that is here: auto, {', '.join(BACKENDS)}"
        )
    command = [str(Path(compiler).absolute()), "compile", BUILD_FILE]
    written = _run(command, out_dir, out_dir / resolved["workspace"]["path"])
    size, checkpoint = deploy.config.in_size, resolved["frontend"]["checkpoint"]
    manifest = {
        "kind": "vendor-build",
        "name": config.name,
        "dtype": config.backend.dtype,
        "backend": config.backend.type,
        "in_size": size,
        "out_size": deploy.config.out_size,
        "network": deploy.config.to_dict(),
        "build": config.model_dump(),
        "vendor_build": resolved,
        "unused_keys": list(_left_out(config.model_dump(exclude_defaults=True), resolved)),
        "command": command,
        "compiler_version": _version(command[0], out_dir),
        "inputs": {name: sha256(out_dir / name) for name in (checkpoint, BUILD_FILE)},
        "calibration_images": len(data.chosen),
        "calibration_source": data.label,
        "calibration_digest": data.digest,
        "workspace": resolved["workspace"]["path"],
        "outputs": written,
        "packages": package_versions(),
    }
    write_json(out_dir / MANIFEST_FILE, manifest)
    return out_dir


def _check(config: BuildConfig) -> None:
    """Refuse what the vendor's compiler cannot be told."""
    dtype = config.backend.dtype
    if dtype not in VENDOR_DTYPES:
        raise RuntimeUnavailable(
            f"backend.type tvm_vacc, the chip vendor's compiler ({COMPILER}), builds "
            f"{' and '.join(VENDOR_DTYPES)}, not {dtype}; set backend.dtype to one of them, or "
            f"backend.type to one of: auto, {', '.join(BACKENDS)}"
        )
    layers = config.backend.quantize.exclude_layers
    if not all(isinstance(entry, int) for entry in layers):
        raise SettingsError(
            f"backend.quantize.exclude_layers={layers!r}: {COMPILER} takes indices only, counted in its own "
            "graph; set indices, or an empty list"
        )


def _prepare(config: BuildConfig, deploy: DeployGpen, data: CalibrationData, out_dir: Path) -> dict[str, Any]:
    """Write network, pictures and build file; return the content of the last."""
    size = deploy.config.in_size
    checkpoint = export_torchscript(deploy, out_dir / f"gpen-3_{size}_{size}.torchscript.pt")
    suffix = (config.dataset.sampler.suffix or PICTURE_SUFFIXES[0]).lower().lstrip(".")
    suffix = suffix if suffix in PICTURE_SUFFIXES else PICTURE_SUFFIXES[0]
    _write_pictures(data, out_dir / PICTURES, suffix)
    resolved = vendor_schema(config, size, checkpoint.name, suffix, len(data.chosen))
    with write_atomically(out_dir / BUILD_FILE) as temporary:
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")
    return resolved


def vendor_schema(config: BuildConfig, size: int, checkpoint: str, suffix: str, count: int) -> dict[str, Any]:
    """Return a build file with the vendor's keys only, every path relative to the file.

    Parameters
    ----------
    config : BuildConfig
    size : int
        Side of the network's input; it is written into operators that name none.
    checkpoint : str
        Name of the TorchScript file.
    suffix : str
        Of the calibration pictures.
    count : int
        Number of calibration pictures.
    """
    batch = next((shape[0] for shape in (config.frontend.shape or {}).values()), 1)
    options, quantize = config.backend.compile.model_dump(exclude_none=True), config.backend.quantize
    backend: dict[str, Any] = {"type": "tvm_vacc", "dtype": config.backend.dtype}
    if options:
        backend["compile"] = options
    backend["quantize"] = {
        "calibrate_mode": quantize.calibrate_mode,
        "quantize_per_channel": quantize.quantize_per_channel,
        "weight_scale": quantize.weight_scale,
        **({} if quantize.output_ddr is None else {"output_ddr": list(quantize.output_ddr)}),
        "exclude_layers": list(quantize.exclude_layers),
        "quantize_mode": quantize.quantize_mode,
    }
    operators = [
        {"type": operator.type, **operator.parameters}
        | ({"size": [size, size]} if operator.type == "Resize" and "size" not in operator.parameters else {})
        for operator in config.dataset.operators()
    ]
    return {
        "name": config.name,
        "frontend": {
            "shape": {"input": [batch, 3, size, size]},
            "type": "pytorch",
            "checkpoint": checkpoint,
            "dtype": "fp32",
        },
        "backend": backend,
        "dataset": {
            "type": "tvm",
            "path": PICTURES,
            "sampler": {"suffix": suffix, "get_data_num": count},
            "process_ops": operators,
        },
        "workspace": {"path": config.workspace.path},
    }


def _write_pictures(data: CalibrationData, folder: Path, suffix: str) -> None:
    """Write the calibration pictures as network inputs (uint8, S x S); an older folder is replaced."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        work = Path(name) / folder.name
        for index in progress(range(len(data.chosen)), desc="calibration pictures", unit="image"):
            write_image(work / f"{index:05d}.{suffix}", data.network_input(data.chosen, index))
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)


def _run(command: list[str], folder: Path, workspace: Path) -> dict[str, str]:
    """Run the compiler in ``folder``; return the hashes of what it wrote, by path in its workspace."""
    before = _state(workspace)
    log = folder / LOG_FILE
    with log.open("wb") as file:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise VendorCompilerError(
            f"{shlex.join(command)} failed with exit code {done.returncode}; the end of {log}:\n{_tail(log)}"
        )
    after = _state(workspace)
    changed = [path for path, state in after.items() if before.get(path) != state]
    if not changed:
        raise VendorCompilerError(
            f"{shlex.join(command)} ended without an error but wrote nothing to workspace.path {workspace}; "
            f"the end of {log}:\n{_tail(log)}"
        )
    return hash_outputs(workspace, changed)


def _state(workspace: Path) -> dict[Path, tuple[int, int]]:
    """Return time and size of every file below a folder."""
    files = [path for path in workspace.rglob("*") if path.is_file()] if workspace.is_dir() else []
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def _tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:]) or "(no output)"


def _version(compiler: str, folder: Path) -> str | None:
    """Return what ``vamc --version`` says, or None if it does not understand it."""
    try:
        done = subprocess.run(
            [compiler, "--version"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    text = (done.stdout or done.stderr).decode(errors="replace").strip()
    return text if text and not done.returncode else None


def _left_out(given: Mapping[str, Any], passed: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of ``given`` that the vendor's file does not hold."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        if name not in passed:
            if value is not None and key not in SPENT_KEYS:
                yield key
        elif isinstance(value, Mapping) and isinstance(passed[name], Mapping):
            yield from _left_out(value, passed[name], f"{key}.")
