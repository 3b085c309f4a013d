"""Stages: folders of results, each built when it is missing or when what decides its content changed.

Every stage lies in ``outputs/<run>/<stage>/`` with a ``manifest.json``, its last file. It is built aside,
under a lock, and renamed into place; a second process waits and then finds the result. What is removed is
what a manifest of the stage itself lists, and nothing else.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Self

from gpenlib.files import (
    StorageError,
    fingerprint,
    from_root,
    hash_outputs,
    keep_aside,
    links_in,
    locked,
    package_versions,
    plain,
    read_json,
    resolve_path,
    sha256,
    write_json,
)
from gpenlib.jobs import JOURNAL, Journal
from gpenlib.settings import SettingsError

log = logging.getLogger("gpenlib.run")

Manifest = dict[str, Any]
MANIFEST = "manifest.json"
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave; nobody's data
INPUTS = (
    "data_dir", "input_dir", "calib_dir", "weights", "build", "image", "lpips_weights", "features_file",
    "photos", "upscaler", "detector",
)  # fmt: skip


class StageError(RuntimeError):
    """A stage folder that may not be replaced, or that changed under a build; nothing was touched."""


# Keys


@functools.lru_cache(maxsize=16)
def code_digest(parts: tuple[str, ...]) -> str:
    """Return a hash of some parts of gpenlib, templates too; comments and docstrings do not count."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for part in parts:
        single = package / f"{part}.py"
        for path in [single] if single.is_file() else sorted((package / part).rglob("*.[pj][y2]")):
            text = path.read_text(encoding="utf-8")
            digest.update(
                f"{path.name}\n{_without_docstrings(text) if path.suffix == '.py' else text}".encode()
            )
    return digest.hexdigest()[:16]


def _without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


class Declared(SimpleNamespace):
    """The settings that a stage declared to depend on; reading another one is a fault of the stage."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the stage reads {name!r} and does not declare it: its key would lack it")


@dataclass(frozen=True)
class Work:
    """What a stage is built with: its folder, its declared settings, the manifests that it uses."""

    folder: Path  # empty, but for what ``finished`` names
    settings: Declared
    used: Mapping[str, Manifest]
    finished: Journal  # of stages that go on item by item

    def path(self, stage: str, file: str) -> Path:
        """Return a file or folder of a used stage."""
        return Path(self.used[stage]["folder"]) / file


def stage(
    folder: str,
    settings: str = "",
    code: tuple[str, ...] = ("files", "jobs", "stages"),
    inputs: Callable[[Any], Mapping[str, str | None]] = lambda run: {},
    uses: Callable[[Any], Mapping[str, Manifest]] = lambda run: {},
    resolved: Callable[[Any], Mapping[str, Any]] = lambda run: {},
    goes_on: bool = False,
) -> Callable[[Callable[[Any, Work], Mapping[str, Any]]], Callable[..., Manifest]]:
    """Make a stage of a method that fills a folder and returns its metrics. The key is made here alone.

    It holds the declared ``settings`` (names with spaces between), what else is ``resolved`` from them,
    digests of ``inputs`` and of the stages that this one ``uses``, package versions, and the ``code``.
    ``folder`` may hold ``{dtype}``; the method is then called with a dtype, or takes that of the settings.
    A stage that ``goes_on`` keeps what its journal names when it is stopped, for the next build of the key.
    """

    def decorate(build: Callable[[Any, Work], Mapping[str, Any]]) -> Callable[..., Manifest]:
        @functools.wraps(build)
        def method(self: Stages, dtype: str | None = None) -> Manifest:
            run = self if dtype is None else self.with_(dtype=dtype)
            name = folder.format(dtype=getattr(run.settings, "dtype", ""))
            used, declared = uses(run), {n: getattr(run.settings, n) for n in settings.split()}
            key: dict[str, Any] = {
                "settings": declared | dict(resolved(run)),
                "inputs": {n: digest for n, digest in inputs(run).items() if digest is not None}
                | {n: manifest["digest"] for n, manifest in used.items()},
                "packages": package_versions(),
                "code": code_digest(code),
            }

            def fill(path: Path) -> Mapping[str, Any]:
                metrics = build(run, Work(path, Declared(**declared), used, Journal(path)))
                if run.reads_files():
                    # Read again: what changed meanwhile is in the results, or is not, and nobody knows
                    for input_name, digest in inputs(type(run)(run.settings)).items():
                        if digest is not None and digest != key["inputs"][input_name]:
                            raise StageError(
                                f"{name}: {input_name} changed while this stage was built from it; run again"
                            )
                return metrics

            return run._stand(name, key, fill, used, goes_on=goes_on)

        return method

    return decorate


# Folders


def seal(content: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's content, under which an edited one is found out."""
    return fingerprint({name: value for name, value in content.items() if name != "digest"})


def write_manifest(folder: Path, name: str, key: Mapping[str, Any], metrics: Mapping[str, Any]) -> Manifest:
    """Write ``manifest.json`` over everything in ``folder``; it is the last file of a stage."""
    aside = (folder / MANIFEST, folder / JOURNAL)
    files = [path for path in folder.rglob("*") if path.is_file() and path not in aside]
    manifest = {"stage": name, **key, "metrics": dict(metrics), "outputs": hash_outputs(folder, files)}
    manifest = json.loads(json.dumps(manifest, default=plain))
    write_json(folder / MANIFEST, manifest | {"digest": seal(manifest)})
    return dict(read_json(folder / MANIFEST))


def read_manifest(folder: Path) -> tuple[Manifest | None, str]:
    """Return the manifest in ``folder``, or None and what is wrong ("" if there is nothing at all)."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None, ""
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return None, "half-written (no manifest)"
    except (OSError, ValueError, RecursionError):
        return None, "manifest is not JSON"
    if _outputs(manifest) is None:
        return None, "manifest has another form"
    if not all(isinstance(manifest.get(name), dict) for name in ("inputs", "metrics")):
        return None, "manifest has another form"
    if manifest.get("digest") != seal(manifest):
        return None, "manifest was edited, or is of another version"
    return manifest, ""


def _outputs(manifest: Any) -> list[str] | None:
    """Return the files that a manifest lists; None if it is none, or names what lies outside its folder."""
    outputs = manifest.get("outputs") if isinstance(manifest, dict) else None
    if not isinstance(outputs, dict):
        return None
    paths = [PurePosixPath(name) for name in outputs]
    inside = all(path.parts and not path.is_absolute() and ".." not in path.parts for path in paths)
    return [*outputs] if inside and all(map(_can_be_a_file, outputs)) else None


def _can_be_a_file(name: str) -> bool:
    """Return whether a system can have a file of this name."""
    with suppress(UnicodeEncodeError):
        return "\0" not in name and max(len(part.encode()) for part in name.split("/")) <= 255
    return False


def standing(folder: Path, key: Mapping[str, Any]) -> tuple[Manifest | None, str]:
    """Return the manifest in ``folder`` if key and hashes are the same, else None and the reason."""
    manifest, why = read_manifest(folder)
    if manifest is None:
        return None, why
    for name, value in json.loads(json.dumps(key, default=plain)).items():
        if manifest.get(name) != value:
            return None, f"{name} changed"
    for name, digest in manifest["outputs"].items():
        with suppress(OSError):  # what may not be read is as good as missing
            if (folder / name).is_file() and sha256(folder / name) == digest:
                continue
        return None, f"{name} is missing or changed"
    return manifest, ""


def listed_files(folder: Path) -> set[Path]:
    """Return the files that the manifest in ``folder`` lists, and those of an older version's stages in it.

    A manifest further down counts only where the stage that it names belongs: results that somebody copied
    into the folder name another place, and are not ours to remove.
    """
    listed: set[Path] = set()
    stage_name = None
    for path in sorted(folder.rglob(MANIFEST), key=lambda path: len(path.parts)):
        try:
            manifest = read_json(path)
        except (OSError, ValueError, RecursionError):
            continue
        if (names := _outputs(manifest)) is None:
            continue
        if path.parent == folder:
            stage_name = manifest.get("stage")
        elif manifest.get("stage") != f"{stage_name}/{path.parent.relative_to(folder).as_posix()}":
            continue
        listed |= {path, *(path.parent / name for name in names)}
    return listed


def foreign_files(folder: Path) -> list[Path]:
    """Return what lies in a stage folder and belongs to no manifest of ours; links count as foreign."""
    listed = listed_files(folder)
    present = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return [path for path in sorted(present) if path.is_symlink() or path not in listed]


def remove_listed(folder: Path) -> None:
    """Remove a replaced stage folder: the files that its manifests list, and folders that are empty then."""
    for path in listed_files(folder):
        if not path.is_dir() and path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.name in LITTER:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


class Stages:
    """A run's settings and folder, and how its stages come to stand.

    Parameters
    ----------
    settings : RunSettings or TrainSettings
    memory : dict, optional
        Shared by all that derive from one run: each stage is verified once, each picture hashed once.
    """

    def __init__(self, settings: Any, memory: dict[Any, Any] | None = None) -> None:
        self.settings = settings
        self._memory: dict[Any, Any] = {} if memory is None else memory

    def with_(self, **changes: Any) -> Self:
        """Return the run with other settings, such as ``run.with_(dtype="int8")``."""
        return type(self)(self.settings.with_(**changes), self._memory)

    def __repr__(self) -> str:
        given = self.settings.model_dump(include=self.settings.model_fields_set)
        return f"Run({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def reads_files(self) -> bool:
        """Return whether the settings name files or folders of the user's."""
        return any(path.exists() for _, path in self._given())

    def _given(self) -> Iterator[tuple[str, Path]]:
        """Yield what the user may have named as inputs, by setting; not all need be files."""
        for name in INPUTS:
            value = getattr(self.settings, name, None)
            for text in value if isinstance(value, tuple) else (str(value or "").removeprefix("prior:"),):
                if text:
                    yield name, resolve_path(text)

    @property
    def folder(self) -> Path:
        """Folder of the run, ``outputs/<run>``; every stage has a folder in it."""
        return Path(self.settings.folder)

    def _stand(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], Mapping[str, Any]],
        used: Mapping[str, Manifest] | None = None,
        in_place: bool = False,
        goes_on: bool = False,
    ) -> Manifest:
        """Return the standing manifest of a stage, or build it; adds ``folder``, ``where`` and ``built``."""
        folder = self.folder / name
        self._refuse_inputs_inside(folder)
        with self._usable():
            manifest, why = self._standing(folder, key)
            if manifest is None:
                with self._lock(name):
                    manifest, why = self._standing(folder, key)  # another process may have built it meanwhile
                    if manifest is None:
                        return self._build(name, key, build, used or {}, why, in_place, goes_on)
        # A copy: what a caller changes in its manifest must not be what the next one is told.
        return copy.deepcopy(manifest) | {"folder": str(folder), "where": from_root(folder), "built": False}

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn the system's errors about what lies in the run's folder into one that says what to do."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
            if place is None or not place.is_relative_to(self.folder):
                raise  # about a file of the user's
            reason = os.strerror(error.errno or 0).lower()
            raise StageError(
                f"{place}: {reason}. Move it to another place or mend its permissions, or choose another run"
            ) from error

    def _standing(self, folder: Path, key: Mapping[str, Any]) -> tuple[Manifest | None, str]:
        """Verify a stage once: what was found whole is believed while its manifest is the same file."""
        path, mark = folder / MANIFEST, fingerprint(key)
        stamp = (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else None
        if stamp is not None and self._memory.get(folder, ())[:2] == (stamp, mark):
            return self._memory[folder][2], ""
        manifest, why = standing(folder, key)
        if manifest is not None:
            self._memory[folder] = (stamp, mark, manifest)
        return manifest, why

    def _build(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], Mapping[str, Any]],
        used: Mapping[str, Manifest],
        why: str,
        in_place: bool,
        goes_on: bool,
    ) -> Manifest:
        folder = self.folder / name
        if why:
            log.warning("%s is built anew: %s", folder, why)
        if in_place:
            _refuse_links(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)
            manifest = write_manifest(folder, name, key, build(folder))
        else:
            _keep_unlisted(folder)
            _keep_others(folder, key)
            _refuse_foreign_files(folder)
            prefix = f".{name.replace('/', '-')}-building-"
            work = self.folder / f"{prefix}{fingerprint(key)}"
            for left in self.folder.glob(f"{prefix}*"):  # of a process that was killed: the lock is ours
                if left.is_symlink() or not left.is_dir():
                    left.unlink()
                elif not (goes_on and left == work):
                    shutil.rmtree(left, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            try:
                manifest = write_manifest(work, name, key, build(work))
                for stage_name, earlier in used.items():
                    now, _ = read_manifest(Path(earlier["folder"]))
                    if now is None or now["digest"] != earlier["digest"]:
                        raise StageError(
                            f"{name}: {earlier['folder']} ({stage_name}) was changed by another process "
                            "while this stage was built from it; run again, or name a run for each process"
                        )
                _refuse_foreign_files(folder)
                (work / JOURNAL).unlink(missing_ok=True)
                _replace(folder, work)
            finally:
                if not (goes_on and (work / JOURNAL).is_file()):
                    shutil.rmtree(work, ignore_errors=True)
        self._memory.pop(folder, None)
        return manifest | {"folder": str(folder), "where": from_root(folder), "built": True}

    def _refuse_inputs_inside(self, folder: Path) -> None:
        """Raise SettingsError if something that the user gave lies inside a stage folder."""
        for name, path in self._given():
            if path.exists() and path.resolve().is_relative_to(folder.resolve()):
                raise SettingsError(
                    f"{name}={str(path)!r} lies inside {folder}, a folder of results that this run "
                    "replaces; copy it to another place, or choose another run"
                )

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a stage; while another process has it, wait and say for whom."""
        path = self.folder / ".locks" / f"{name.replace('/', '-')}.lock"
        _refuse_links(path.parent)
        holder = path.with_suffix(".json")

        def say() -> None:
            for _ in range(20):  # it says who it is just after it has the lock
                try:
                    who = "process {pid}, since {since}".format(**read_json(holder))
                    break
                except (OSError, ValueError, KeyError, TypeError):
                    who = "another process"
                    time.sleep(0.1)
            log.warning("waiting for %s, which builds %s", who, self.folder / name)

        with locked(path, say):
            write_json(holder, {"pid": os.getpid(), "since": time.strftime("%H:%M:%S")})
            yield


def _replace(folder: Path, work: Path) -> None:
    """Put a finished folder in the place of an older one, and remove of that what its manifests list."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    if old.exists():
        remove_listed(old)


def _keep_unlisted(folder: Path) -> None:
    """Move a folder aside whose manifest is damaged and lists less than there is: nothing is removed."""
    if folder.is_dir() and read_manifest(folder)[0] is None and foreign_files(folder):
        keep_aside(folder)


def _keep_others(folder: Path, key: Mapping[str, Any]) -> None:
    """Move aside what was made of the user's own files, named by path, if the new build is of others."""
    manifest, _ = read_manifest(folder)
    mine = {name for name in manifest["inputs"] if Path(name).is_absolute()} if manifest else set()
    if mine - set(key["inputs"]):
        keep_aside(folder)  # somebody may want them still


def _refuse_links(folder: Path) -> None:
    """Raise StageError unless a folder is one of ours, or not there, and nothing in it leads elsewhere."""
    links = links_in(folder)
    if links or (folder.exists() and not folder.is_dir()):
        raise StageError(
            f"{links[0] if links else folder} is {'a link' if links else 'a file'}, no folder that this run "
            "made; move it to another place, or choose another run"
        )


def _refuse_foreign_files(folder: Path) -> None:
    """Raise StageError if what a stage is to replace is no folder of ours, or holds files not listed."""
    if folder.is_symlink() or not folder.is_dir():
        _refuse_links(folder)
    foreign = [path for path in foreign_files(folder) if path.is_symlink() or path.name not in LITTER]
    if foreign:
        named = ", ".join(str(path.relative_to(folder)) for path in foreign[:3])
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise StageError(
            f"{folder} is to be built anew but holds files that no manifest lists: {named}{more}; "
            "move them to another place, or choose another run"
        )
