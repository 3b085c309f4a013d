"""How a bad input is tried: in a process of its own, watched for time, memory and what it leaves.

A module of this folder lists its inputs as ``CASES`` and tries each with :func:`check`. What a file of
strangers may cost, and what must be said of it, stands here once.
"""

import importlib
import os
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpenlib.files import sha256
from tests.processes import processes
from tests.traces import keep_traces

SECONDS, MEMORY = 20, 2 << 30  # what a bad input may cost
TOO_MUCH = 12 << 30  # bytes of addresses: a case that goes wrong must not take the machine
LONGEST = 1000  # characters of a message
PLAIN_ERRORS = {"builtins.ValueError", "builtins.FileNotFoundError", "builtins.PermissionError"}
NEVER_SAID = ("weights_only=False", "Traceback", " object at 0x")


@dataclass(frozen=True)
class Case:
    """A bad input, what is done with it, and what the error says."""

    name: str  # unique in its module
    make: Callable[[Path], Any]  # fills a folder, and returns what ``call`` is given
    call: Callable[[Any, Path], Any]  # the second is the folder of results, also GPEN_OUTPUTS
    says: tuple[str, ...]  # parts of the message: the file or value, what is wrong, what to do
    error: str = ""  # the type's name, where it matters
    stands: tuple[str, ...] = ()  # results that are right to be there, such as "run/03_compile/float"


def check(case: Case, module: str, folder: Path) -> None:
    """Try a case of the test module at path ``module``: it must end in one clear error, and at once."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=_try, args=(module, case.name, folder, there))
    process.start()
    there.close()
    try:
        assert here.poll(3 * SECONDS), (
            f"{case.name}: no answer after {3 * SECONDS} s"
        )  # to make it takes time
        kinds, message, seconds, memory, changed, results = here.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{case.name}: the process died ({process.exitcode})") from None
    finally:
        process.kill()
        process.join()
    assert kinds, f"{case.name}: no error; {message}"
    ours = any(kind.startswith("gpenlib.") or kind in PLAIN_ERRORS for kind in kinds)
    assert ours and any(kind.endswith(case.error) for kind in kinds), f"{kinds[0]}: {message}"
    assert [word for word in case.says if word not in message] == [], message
    assert [word for word in NEVER_SAID if word in message] == [], message
    assert len(message) <= LONGEST, message
    assert seconds < SECONDS and memory < MEMORY, f"{seconds:.1f} s, {memory / 2**30:.2f} GiB"
    assert changed == [], f"changed outside of the folder of results: {changed}"
    assert sorted(results) == sorted(case.stands), f"a later run takes these for valid: {results}"


def _try(module: str, name: str, folder: Path, pipe: Any) -> None:
    """Make a bad input and use it; send what was raised, what it cost and what it left on the disk."""
    resource.setrlimit(resource.RLIMIT_AS, (TOO_MUCH, TOO_MUCH))
    keep_traces()
    given, out = folder / "given", folder / "out"
    os.environ["GPEN_OUTPUTS"] = str(out)
    tried = importlib.import_module(f"tests.bad_inputs.{Path(module).stem}")
    case = next(case for case in tried.CASES if case.name == name)
    given.mkdir(parents=True)
    out.mkdir()
    made = case.make(given)
    before = _contents(folder, out)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    started, kinds = time.perf_counter(), []
    try:
        message = f"{case.call(made, out)!r:.200} was returned"
    except BaseException as error:
        kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
        message = str(error)
    seconds = time.perf_counter() - started
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    after = _contents(folder, out)
    changed = sorted(place for place in before.keys() | after.keys() if before.get(place) != after.get(place))
    results = [path.parent.relative_to(out).as_posix() for path in out.rglob("manifest.json")]
    pipe.send((kinds, message, seconds, int(peak[1]) * 1024, changed, results))


def _contents(folder: Path, without: Path) -> dict[str, str]:
    """Return what everything below a folder is: files by their hash."""
    return {
        str(path.relative_to(folder)): _what(path)
        for path in folder.rglob("*")
        if not path.is_relative_to(without)
    }


def _what(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_file():
        readable, size = os.access(path, os.R_OK), path.stat().st_size
        return sha256(path) if readable and size < 1 << 26 else f"{size} bytes"
    return "folder" if path.is_dir() else "special"
