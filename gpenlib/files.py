"""What every module needs: paths, careful reading and writing, digests, messages."""

from __future__ import annotations

import csv
import difflib
import errno
import hashlib
import importlib.metadata
import itertools
import json
import logging
import math
import os
import re
import reprlib
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import yaml
from filelock import FileLock, Timeout

log = logging.getLogger("gpenlib.run")

REPOSITORY_MARKER = "pyproject.toml"
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "opencv-python", "pillow", "scikit-image")
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
MOST_VALUES, DEEPEST = 10_000, 20  # of YAML, and levels of them
MOST_JSON, MOST_ENTRIES = 256 << 20, 8_000_000  # bytes and values of a file: scores of 30,000 faces fit
# What the system says where a disk is full or may not be written to
STORAGE_ERRORS = {getattr(errno, f"E{n}") for n in ("NOSPC", "DQUOT", "ROFS", "ACCES", "PERM", "IO", "FBIG")}
# ... and where something of another kind stands in the way
OBSTACLES = {getattr(errno, f"E{n}") for n in ("NOTDIR", "ISDIR", "EXIST", "LOOP", "NOTEMPTY", "NAMETOOLONG")}
FULL = 1 << 20  # bytes: a disk with less is full
LONGEST_NAME = 255  # bytes: what file systems allow

_short = reprlib.Repr()
vars(_short).update(maxlevel=4, maxdict=20, maxlist=20, maxtuple=20, maxstring=120, maxlong=80, maxother=80)


class StorageError(OSError):
    """Results that cannot be written: the disk is full, or the folder may not be written to."""


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
    check_utf8(path, ValueError)
    with suppress(RuntimeError):  # ~ and the name of nobody: a file may be called so
        path = path.expanduser()
    if too_long(path):
        raise ValueError(f"{shown(str(path))}: longer than the name of a file can be; shorten it")
    return path if path.is_absolute() else repository_root() / path


def from_root(path: Path) -> str:
    """Return a path as texts show it: from the repository's root, where it lies there."""
    root = repository_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def check_utf8(path: Path, error_type: type[Exception]) -> None:
    """Raise an error for a file whose name is not UTF-8: no result could tell it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise error_type(f"{str(path)!a:.300}: its name is not UTF-8; rename the file") from None


def too_long(path: Path) -> bool:
    """Return whether no file can have this path: the system's own error would name no file."""
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    return longest > LONGEST_NAME or len(str(path)) > 1000


def shortened(name: str, most: int) -> str:
    """Return a name of at most ``most`` bytes: a longer one is cut, and ends in a digest of the whole."""
    if len(name.encode()) <= most:
        return name
    digest = fingerprint(name)
    return f"{name.encode()[: most - len(digest) - 1].decode(errors='ignore')}~{digest}"


def links_in(folder: Path) -> list[Path]:
    """Return the folder and what is in it as far as they are links: what these lead to is not ours."""
    return [path for path in (folder, *folder.rglob("*")) if path.is_symlink()]


def keep_aside(path: Path) -> None:
    """Rename a file or folder that is not ours to ``NAME.kept-N``, and say so."""
    names = (path.with_name(f"{path.name}.kept-{number}") for number in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    path.rename(kept)
    log.warning("%s: what lay there was kept as %s", path, kept.name)


def cut(text: str, most: int = 160) -> str:
    """Return the beginning of a text that is too long for a message."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def shown(value: object) -> str:
    """Return a value as a message shows it: cut, however long or deep it is."""
    try:
        return cut(_short.repr(value))
    except ValueError:  # Python writes no whole number of thousands of digits
        return f"{type(value).__name__} of thousands of digits"


def whole_number(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raise ValueError unless ``value`` is a whole number in the bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        told = most < 1000 or (isinstance(value, int) and value > most)  # else a limit that nobody meets
        bounds = f"from {least} to {most}" if told else f"at least {least}"
        raise ValueError(f"{name}={shown(value)}: must be a whole number, {bounds}")


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return the allowed names closest to ``name``, best first."""
    return difflib.get_close_matches(name, [str(a) for a in allowed], n=count, cutoff=0.5)


def did_you_mean(name: object, allowed: Iterable[object]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest allowed name, or nothing."""
    name = name if isinstance(name, str) else shown(name)
    close = nearest(name, [str(a) for a in allowed], count=1)
    return f" (did you mean {close[0]!r}?)" if close and close[0] != name else ""


def require(checks: Mapping[str, bool], what: str = "results") -> None:
    """Raise ValueError naming those of the checks, by what they say, that do not hold."""
    if failed := [name for name, holds in checks.items() if not holds]:
        raise ValueError(f"{what} are not sound; it does not hold that {', nor that '.join(failed)}")


def choice_error(what: str, value: object, allowed: Sequence[object]) -> str:
    """Return the message for a value outside a set: the value, what is allowed, the nearest match."""
    return f"{what}={shown(value)}: allowed are {', '.join(map(str, allowed))}{did_you_mean(value, allowed)}"


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing ``path`` for want of space or rights into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in OBSTACLES:
            raise StorageError(_in_the_way(path, number)) from error
        if number not in STORAGE_ERRORS:  # not every library passes on what the system said
            place = next((folder for folder in path.parents if folder.is_dir()), path)
            if isinstance(error, OSError) or shutil.disk_usage(place).free > FULL:
                raise
            number = errno.ENOSPC
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"{path} cannot be written ({os.strerror(number or 0).lower()})"
        todo = f"{'free some space' if full else 'check its permissions'}, or choose another folder"
        raise StorageError(f"{what}: {todo}, and run again; what was finished is kept") from error


def _in_the_way(path: Path, number: int | None) -> str:
    """Say why nothing can be written at ``path``: it is too long, or what is there is of another kind."""
    if number == errno.ENAMETOOLONG:
        return f"{shown(str(path))} cannot be written: longer than a name can be; shorten it"
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    kind = "a link" if there.is_symlink() else "a folder" if there.is_dir() else "a file"
    below = "" if there == path else f" of {path}"
    return f"{there} is {kind} and stands in the way{below}: move it, or choose another folder, and run again"


def open_regular(
    path: Path, wanted: str, error_type: type[Exception], absent: type[Exception] = FileNotFoundError
) -> BinaryIO:
    """Open a regular file; a folder is refused, and so is a pipe or device, which might block for ever."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError:
        if path.is_symlink():
            gone = f"a link to {path.readlink()}, which does not exist"
            raise error_type(f"{path} is {gone}: bring that file, or remove the link") from None
        raise absent(f"{path}: no such {wanted}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise error_type(f"{str(path)!r:.300} cannot be opened ({reason}): check its permissions") from error
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
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
    unknown = "is damaged or of an unknown format (fetch it again, or save it anew)"
    return f"{f'is text, not a {wanted}' if text else unknown}; read are {', '.join(allowed)}"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it onto ``path`` when the block succeeds."""
    # Libraries take a format from the suffix, and no name may be longer than the system allows
    temporary = path.with_name(f".{shortened(path.stem, 64)}.{uuid.uuid4().hex}{path.suffix[-32:]}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # made by the system's rules (umask), as any file of the user's
        mode = temporary.stat().st_mode  # safetensors puts a file of its own there, which others cannot read
        try:
            yield temporary
            temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, say_waiting: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file while the block runs; where another process has it, call ``say_waiting`` and wait."""
    lock = FileLock(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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


def read_text(path: Path, most: int) -> str:
    """Read UTF-8 text of at most ``most`` bytes; pipes and devices, which have no end, are refused."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'no regular file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: larger than the {most >> 20} MiB that are read")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; FileNotFoundError or ValueError says why it cannot be."""
    text = read_text(path, MOST_JSON)
    if sum(map(text.count, "[{,")) > MOST_ENTRIES:  # a few bytes of text each, but a hundred of memory
        raise ValueError(f"{path}: more than {MOST_ENTRIES} values")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error!s:.100})") from None


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML: what grows, repeats a key or reads as something else than it looks is refused."""

    TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
    NUMBERS: ClassVar = {  # YAML reads 010 as 8 and 1:30 as 90
        "tag:yaml.org,2002:int": r"[-+]?(0|[1-9]\d{0,30})",
        "tag:yaml.org,2002:float": r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|nan)",
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and check it; an alias counts as all that it stands for."""
        event, before = self.peek_event(), self.nodes
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        self._refuse(self.depth > DEEPEST, event, f"nested more than {DEEPEST} deep")
        tag = getattr(event, "tag", None)
        self._refuse(tag is not None, event, f"the tag {shown(tag)} is not read: write plain values")
        node: Any = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(id(node) not in self.sizes, event, "an alias stands inside of what it stands for")
            self.nodes += self.sizes[id(node)]
        self.sizes.setdefault(id(node), self.nodes - before)
        self.depth -= 1
        self._refuse(self.nodes > MOST_VALUES, event, f"more than {MOST_VALUES} values, counting aliases")
        if isinstance(node, yaml.ScalarNode):
            number, what = self.NUMBERS.get(node.tag), f"{shown(node.value)} is no plain"
            wrong = number is not None and re.fullmatch(number, node.value) is None
            self._refuse(wrong, event, f"{what} decimal number: write one, or put text in quotes")
            self._refuse("\0" in node.value, event, f"{what} text")
            if number is None and not node.tag.endswith((":null", ":bool", ":merge")):
                node.tag = self.TEXT  # a date is a word
        keys: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            what = f"the key {shown(key.value if isinstance(key, yaml.ScalarNode) else key.id)}"
            self._refuse(key.tag not in (self.TEXT, self.MERGE), key, f"{what} is no word: put it in quotes")
            self._refuse(key.value in keys, key, f"{what} is there twice: remove one")
            keys.add(key.value)
        return node

    def _refuse(self, wrong: bool, where: Any, problem: str) -> None:
        if wrong:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def load_yaml(text: str, source: str, error_type: type[Exception] = ValueError) -> Any:
    """Read YAML text as plain values; an error says what is wrong in which line of ``source``."""
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where, why = f"{source}, line {mark.line + 1}" if mark else source, " ".join(what.split())
        raise error_type(f"{where}: not YAML as it is read here ({why:.200})") from None


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
