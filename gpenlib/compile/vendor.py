"""``backend.type: tvm_vacc``: prepare what the chip vendor's compiler (``vamc``) reads, and run it."""

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
from gpenlib.compile.write import check_folder, older_files, read_listing, remove_older
from gpenlib.data.pairs import Pack, Pairs
from gpenlib.export import DeployGpen, export_torchscript
from gpenlib.files import hash_outputs, package_versions, sha256, shown, write_json, write_text
from gpenlib.images import write_image
from gpenlib.infer import RuntimeUnavailable
from gpenlib.infer.artefact import MANIFEST_FILE, MODEL_FILE
from gpenlib.jobs import progress
from gpenlib.settings import BACKENDS, BuildConfig, SettingsError

COMPILER = "vamc"
VENDOR_DTYPES = ("fp16", "int8")  # what the vendor's model card names
BUILD_FILE = "build.yaml"  # names everything relative to itself: the folder can be moved to another machine
PICTURES = "calibration"
PICTURE_KIND = "vendor-pictures"
PICTURE_LIST = "calibration.json"  # the pictures that were written here and may be replaced
LOG_FILE = "vamc.log"
PICTURE_SUFFIXES = ("png", "jpg", "jpeg")
TAIL_LINES = 20
SPENT_KEYS = ("dataset.task", "frontend.key")  # ours, unknown to the vendor, but used before it
OUR_QUANTIZE = {"percentile", "max_drop_db", "sensitivity_images", "bias_correction", "format"}


class VendorCompilerError(RuntimeError):
    """The vendor's compiler ran and failed, or wrote nothing."""


def build_for_vendor(
    config: BuildConfig, deploy: DeployGpen, out_dir: Path, calibration: Pairs | Pack | None = None
) -> Path:
    """Write the vendor's inputs into ``out_dir``, run ``vamc compile`` on them, write the manifest last."""
    dtype, layers = config.backend.dtype, config.backend.quantize.exclude_layers
    if dtype not in VENDOR_DTYPES:
        raise RuntimeUnavailable(
            f"backend.type tvm_vacc, the chip vendor's compiler ({COMPILER}), builds "
            f"{' and '.join(VENDOR_DTYPES)}, not {dtype}; set backend.dtype to one of them, or "
            f"backend.type to one of: auto, {', '.join(BACKENDS)}"
        )
    if not all(isinstance(entry, int) for entry in layers):
        told = f"{COMPILER} takes indices only, counted in its own graph; set indices, or an empty list"
        raise SettingsError(f"backend.quantize.exclude_layers={layers!r}: {told}")
    size = deploy.config.in_size
    if not config.workspace.inside:
        need = f"give a folder inside the build, relative and without '..': {COMPILER} writes there"
        raise SettingsError(f"workspace.path={shown(config.workspace.path)}: {need}")
    checkpoint = f"gpen-3_{size}_{size}.torchscript.pt"
    files = [BUILD_FILE, PICTURE_LIST, LOG_FILE, checkpoint]
    started = read_listing(out_dir / PICTURE_LIST).get("kind") == PICTURE_KIND
    ours = older_files(out_dir) + (files if started else [])
    check_folder(out_dir, [*files, MODEL_FILE, MANIFEST_FILE], ours)
    data = open_calibration_data(config.dataset, deploy.config, calibration)
    _check_pictures(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    remove_older(out_dir)
    suffix = (config.dataset.sampler.suffix or "").lower().lstrip(".")
    suffix = suffix if suffix in PICTURE_SUFFIXES else PICTURE_SUFFIXES[0]
    _write_pictures(data, out_dir, suffix)
    export_torchscript(deploy, out_dir / checkpoint)
    resolved = vendor_schema(config, size, checkpoint, suffix, len(data.chosen))
    write_text(out_dir / BUILD_FILE, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    if (compiler := shutil.which(COMPILER)) is None:
        raise RuntimeUnavailable(
            f"backend.type tvm_vacc is the chip vendor's compiler, and {COMPILER} is not on PATH; its inputs "
            f"lie ready in {out_dir} (it can be copied to a machine that has {COMPILER}), to be built with: "
            f"cd {shlex.quote(str(out_dir))} && {COMPILER} compile {BUILD_FILE}; "
            f"backend.type that is here: auto, {', '.join(BACKENDS)}"
        )
    command = [str(Path(compiler).absolute()), "compile", BUILD_FILE]
    written = _run(command, out_dir, out_dir / resolved["workspace"]["path"])
    manifest = {
        "kind": "vendor-build",
        "name": config.name,
        "dtype": dtype,
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
        "calibration_source": data.chosen.label,
        "calibration_digest": data.chosen.digest(),
        "workspace": resolved["workspace"]["path"],
        "outputs": written,
        "packages": package_versions(),
    }
    write_json(out_dir / MANIFEST_FILE, manifest)
    return out_dir


def vendor_schema(config: BuildConfig, size: int, checkpoint: str, suffix: str, count: int) -> dict[str, Any]:
    """Return a build file with the keys of the vendor zoo's ``official_gpen.yaml``, paths relative to it."""
    batch = next((shape[0] for shape in (config.frontend.shape or {}).values()), 1)
    shape = {"input": [batch, 3, size, size]}
    options = config.backend.compile.model_dump(exclude_none=True)
    operators = [
        {"type": operator.type, **operator.parameters}
        | ({"size": [size, size]} if operator.type == "Resize" and "size" not in operator.parameters else {})
        for operator in config.dataset.operators()
    ]
    return {
        "name": config.name,
        "frontend": {"shape": shape, "type": "pytorch", "checkpoint": checkpoint, "dtype": "fp32"},
        "backend": {
            "type": "tvm_vacc",
            "dtype": config.backend.dtype,
            **({"compile": options} if options else {}),
            "quantize": config.backend.quantize.model_dump(exclude=OUR_QUANTIZE, exclude_none=True),
        },
        "dataset": {
            "type": "tvm",
            "path": PICTURES,
            "sampler": {"suffix": suffix, "get_data_num": count},
            "process_ops": operators,
        },
        "workspace": {"path": config.workspace.path},
    }


def _check_pictures(out_dir: Path) -> list[Path]:
    """Return the calibration pictures of an older build; refuse a folder that holds anything else."""
    folder = out_dir / PICTURES
    present = sorted(folder.glob("*"))  # none if there is no such folder
    listed = read_listing(out_dir / PICTURE_LIST).get("files", ())
    foreign = [path.name for path in present if path.is_dir() or path.name not in listed]
    if foreign:
        raise SettingsError(
            f"{folder} holds what no build wrote ({', '.join(foreign[:3])}, {len(foreign)} in all); "
            "calibration pictures go there: move it away, or build into another folder"
        )
    return present


def _write_pictures(data: CalibrationData, out_dir: Path, suffix: str) -> None:
    """Write the calibration pictures as network inputs (uint8, S x S), in place of an older build's."""
    names = [f"{index:05d}.{suffix}" for index in range(len(data.chosen))]
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=f".{PICTURES}-") as work:
        for index, name in enumerate(progress(names, desc="calibration pictures", unit="image")):
            write_image(Path(work) / name, data.network_input(data.chosen, index))
        for path in _check_pictures(out_dir):
            path.unlink()
        write_json(out_dir / PICTURE_LIST, {"kind": PICTURE_KIND, "files": names})
        (out_dir / PICTURES).mkdir(exist_ok=True)
        for name in names:
            (Path(work) / name).replace(out_dir / PICTURES / name)


def _run(command: list[str], folder: Path, workspace: Path) -> dict[str, str]:
    """Run the compiler in ``folder``; return the hashes of what it wrote, by path in its workspace."""
    before, log = _state(workspace), folder / LOG_FILE
    with log.open("wb") as file:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=folder, check=False, **streams)
    changed = [path for path, state in _state(workspace).items() if before.get(path) != state]
    if changed and not done.returncode:
        return hash_outputs(workspace, changed)
    wrote_nothing = f"ended without an error but wrote nothing to workspace.path {workspace}"
    what = f"failed with exit code {done.returncode}" if done.returncode else wrote_nothing
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(lines[-TAIL_LINES:]) or "(no output)"
    raise VendorCompilerError(f"{shlex.join(command)} {what}; the end of {log}:\n{tail}")


def _state(workspace: Path) -> dict[Path, tuple[int, int]]:
    """Return time and size of every file below a folder."""
    files = [path for path in workspace.rglob("*") if path.is_file()]  # none if there is no such folder
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def _version(compiler: str, folder: Path) -> str | None:
    """Return what ``vamc --version`` says, or None if it does not understand it."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True}
    try:
        done = subprocess.run([compiler, "--version"], cwd=folder, timeout=60, check=False, **streams)
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
