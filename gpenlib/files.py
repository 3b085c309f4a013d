"""What every module needs: paths, atomic writes, JSON and CSV, digests, versions, messages, progress bars."""

from __future__ import annotations

import csv
import difflib
import hashlib
import importlib.metadata
import json
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from tqdm import tqdm

REPOSITORY_MARKER = "pyproject.toml"
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "opencv-python", "pillow", "scikit-image")
HEADLESS_INTERVAL = 10.0  # seconds between lines in a notebook that nobody watches
Contents = Iterable[tuple[bytes, str]]
# How files begin that people take for others, and what to do about it
CONTENTS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the {0}: run `git lfs pull`"),
    (b"<!doctype html", "a web page, not a {0}: download the {0} itself"),
    (b"<html", "a web page, not a {0}: download the {0} itself"),
    (b"<?xml", "an XML file, not a {0}"),
    (b"pk\3\4", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
)


def repository_root() -> Path:
    """Return the checkout, found from this file (editable installs) or the working directory upwards."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if (folder / REPOSITORY_MARKER).is_file() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError("no GPEN workbench checkout found: run from inside the repository")


def resolve_path(path: str | Path) -> Path:
    """Resolve ``path`` against the repository root, never against the working directory."""
    path = Path(path)
    with suppress(RuntimeError):  # the home of a user who does not exist
        path = path.expanduser()
    return path if path.is_absolute() else repository_root() / path


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return the allowed names closest to ``name``, best first."""
    return difflib.get_close_matches(name, [str(a) for a in allowed], n=count, cutoff=0.5)


def did_you_mean(name: object, allowed: Iterable[object]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest allowed name, or nothing."""
    close = nearest(str(name), [str(a) for a in allowed], count=1)
    return f" (did you mean {close[0]!r}?)" if close and close[0] != str(name) else ""


def choice_error(what: str, value: object, allowed: Sequence[object]) -> str:
    """Return the message for a value outside a set: the value, what is allowed, the nearest match."""
    return f"{what}={value!r}: allowed are {', '.join(map(str, allowed))}{did_you_mean(value, allowed)}"


def open_regular(
    path: Path, wanted: str, error_type: type[Exception], absent: type[Exception] = FileNotFoundError
) -> BinaryIO:
    """Open a regular file; a folder is refused, and so is a pipe or device, which might block for ever."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError:
        link = f" (it is a link to {path.readlink()})" if path.is_symlink() else ""
        raise absent(f"{path}: no such {wanted}{link}") from None
    except OSError as error:
        raise error_type(f"{path} cannot be opened ({error.strerror}): check its permissions") from error
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
    raise error_type(f"{path} is {kind}: name a {wanted}")


def first_bytes(path: str | Path, wanted: str, error_type: type[Exception]) -> bytes:
    """Return how a file begins; see :func:`open_regular`."""
    with open_regular(Path(path), wanted, error_type) as file:
        return file.read(512)


def describe(start: bytes, wanted: str, allowed: Iterable[str], contents: Contents = ()) -> str:
    """Say what a file that is not the one ``wanted`` is, from its first bytes; ``contents`` as CONTENTS."""
    if not start:
        return "is empty: fetch it again"
    for beginning, what in (*contents, *CONTENTS):
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(beginning):
            return f"is {what.format(wanted)}"
    # All of it is UTF-8, but for the last letter, which may be cut
    text = b"\0" not in start and len(start.decode(errors="ignore").encode()) > len(start) - 4
    what = f"is text, not a {wanted}" if text else "is damaged or of an unknown format"
    return f"{what}; read are {', '.join(allowed)}"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it onto ``path`` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:64]}.{uuid.uuid4().hex}{path.suffix}")
    temporary.touch(exist_ok=False)  # made by the system's rules (umask), as any file of the user's
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, say_waiting: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file while the block runs; where another process has it, call ``say_waiting`` and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say_waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: object) -> Path:
    """Write ``content`` as indented JSON, atomically; numbers that JSON lacks (NaN) are refused."""
    return write_text(path, json.dumps(content, indent=1, default=plain, allow_nan=False) + "\n")


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


def plain(value: object) -> object:
    """Turn numpy scalars and paths into JSON's own types (``default`` of :func:`json.dumps`)."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(content: object) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able object."""
    text = json.dumps(content, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def hash_outputs(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return SHA-256 by path relative to ``folder``."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(files)}


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

    In a headless notebook bars with ``leave=False`` are not shown: every update is stored as an output there.
    """
    if front_end_is_live():
        from tqdm.auto import tqdm as widget_bar

        return widget_bar(iterable, **options)
    if _kernel_shell() is not None:
        options |= {"mininterval": HEADLESS_INTERVAL, "disable": not options.get("leave", True)}
    return tqdm(iterable, **options)


def _kernel_shell() -> Any:
    """Return the shell of the Jupyter kernel that runs this code, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "get_parent") else None
