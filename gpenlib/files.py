"""Run folders, manifests and settings helpers: how stages hand over to each other."""

from __future__ import annotations

import csv
import difflib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

# ----------------------------------------------------------------------
# Run folders, manifests and settings helpers: how stages hand over to each other.

REPOSITORY_MARKER = "pyproject.toml"
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "opencv-python", "scikit-image")


def repository_root() -> Path:
    """Return the folder that holds ``gpenlib/``, ``params/`` and ``outputs/``.

    It is found from this file (editable installs), or else from the working directory upwards.

    Raises
    ------
    FileNotFoundError
        If neither leads to a checkout.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if (folder / REPOSITORY_MARKER).is_file() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError("no GPEN workbench checkout found: run from inside the repository")


def resolve_path(path: str | Path) -> Path:
    """Resolve ``path`` against the repository root, never against the working directory."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else repository_root() / path


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return the allowed names closest to ``name``, best first."""
    return difflib.get_close_matches(name, [str(a) for a in allowed], n=count, cutoff=0.5)


def choice_error(what: str, value: object, allowed: Sequence[object]) -> str:
    """Return the message for a value outside a set: the value, what is allowed, the nearest match."""
    close = nearest(str(value), [str(a) for a in allowed], count=1)
    hint = f" (did you mean {close[0]!r}?)" if close and close[0] != str(value) else ""
    return f"{what}={value!r}: allowed are {', '.join(map(str, allowed))}{hint}"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it onto ``path`` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> Path:
    """Write ``content`` as indented JSON, atomically."""
    text = json.dumps(content, indent=1, default=_plain, allow_nan=False)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows under the names of the first one's columns, atomically; None becomes an empty field."""
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: object) -> object:
    """Turn numpy scalars and paths into JSON's own types."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(content: object) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able object."""
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hash_outputs(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return SHA-256 by path relative to ``folder``."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(files)}


def write_manifest(
    folder: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``manifest.json`` over everything in ``folder``; it is the last file of a stage.

    Parameters
    ----------
    folder : Path
        The stage folder, complete but for the manifest.
    stage : str
        Name of the stage, such as ``"03_compile"``.
    settings : mapping
        The resolved settings that decide the content.
    inputs : mapping
        Hashes of what the stage read, by a descriptive name.
    metrics : mapping
        Headline figures.
    """
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    manifest = {
        "stage": stage,
        "settings": dict(settings),
        "inputs": dict(inputs),
        "metrics": dict(metrics),
        "outputs": hash_outputs(folder, files),
        "packages": package_versions(),
    }
    write_json(folder / "manifest.json", manifest)
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def valid_manifest(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest in ``folder`` if it still describes this work, else None and the reason.

    It does when settings, inputs and package versions are the same and every output has its recorded
    hash.
    """
    path = folder / "manifest.json"
    if not folder.is_dir() or not any(folder.iterdir()):
        return None, ""
    if not path.is_file():
        return None, "half-written (no manifest)"
    try:
        manifest = read_json(path)
    except json.JSONDecodeError:
        return None, "manifest is not JSON"
    wanted = {
        "settings": json.loads(json.dumps(dict(settings), default=_plain)),
        "inputs": dict(inputs),
        "packages": package_versions(),
    }
    for name, value in wanted.items():
        if manifest.get(name) != value:
            return None, f"{name} changed"
    for name, digest in manifest.get("outputs", {}).items():
        file = folder / name
        if not file.is_file() or sha256(file) != digest:
            return None, f"{name} is missing or changed"
    return manifest, ""


# ----------------------------------------------------------------------
# Progress bars that fit the place where they are shown.

HEADLESS_INTERVAL = 10.0  # seconds between lines in a notebook that nobody watches


def front_end_is_live() -> bool:
    """Return whether a person's front end (JupyterLab, Notebook 7, VS Code) asked for the running cell.

    Those send the cell's id with every execution request. papermill and nbclient do not, and neither does
    plain Python, so nothing interactive is ever made there.
    """
    shell = _kernel_shell()
    request = shell.get_parent() or {} if shell is not None else {}
    return bool(request.get("metadata", {}).get("cellId"))


def progress(iterable: Any = None, **options: Any) -> Any:
    """Return a tqdm bar: a widget in a live notebook, sparse lines in a headless one, text in a terminal.

    Parameters
    ----------
    iterable : iterable, optional
    **options
        As tqdm's. In a headless notebook bars with ``leave=False`` are not shown at all, because there
        every update is stored as an output.
    """
    if front_end_is_live():
        from tqdm.auto import tqdm as widget_bar

        return widget_bar(iterable, **options)
    if _kernel_shell() is not None:
        headless: dict[str, Any] = {
            "mininterval": HEADLESS_INTERVAL,
            "disable": not options.get("leave", True),
        }
        return tqdm(iterable, **headless, **options)
    return tqdm(iterable, **options)


def _kernel_shell() -> Any:
    """Return the shell of the Jupyter kernel that runs this code, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "get_parent") else None
