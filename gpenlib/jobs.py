"""Long work: steps that overlap, a journal from which a stopped task goes on, progress, commands."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from gpenlib.files import fingerprint, hash_outputs, links_in, plain, sha256, storing, write_text

HEADLESS_INTERVAL = 10.0  # seconds between lines in a notebook that nobody watches
AHEAD = 2  # items that a step may be ahead of the next one: memory stays flat
INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell
PROGRESS = {"progress": True}  # metadata of outputs that say how far a task came
JOURNAL = ".finished.jsonl"
LONGEST_LINE = 1 << 22  # bytes of a journal: a photograph with hundreds of faces fits
_silent = ContextVar("silent", default=False)
S = TypeVar("S")
T = TypeVar("T")
# Of glibc's mallopt: how many bytes free at the heap's end go back to the system, and how many arrays may be
# mapped apart from the heap.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class Journal:
    """What a long task has finished, item by item, so that a killed one goes on where it was.

    Every line of the file holds an item's name, its results and the SHA-256 of the files that were written
    for it, and a digest of all this. A line that was cut off or edited, or whose files are not as they were,
    does not count; files that no line names are removed, and so are links, which would lead elsewhere.

    Parameters
    ----------
    folder : Path
        Made for this task alone: it holds the journal and, somewhere below it, the files of the items.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / JOURNAL
        self.finished: dict[str, Any] = {}  # results by name, in the order in which they were added
        self._lines: dict[str, str] = {}
        self._lock = threading.Lock()
        for path in links_in(folder):
            path.unlink()
        for line in self._read():
            try:
                entry = json.loads(line)
                seal, files = entry.pop("digest"), entry["files"]
                paths = [folder / file for file in files]
                inside = all(path.resolve().is_relative_to(folder.resolve()) for path in paths)
                whole = seal == fingerprint(entry) and inside and all(path.is_file() for path in paths)
                whole = whole and all(sha256(folder / file) == digest for file, digest in files.items())
            except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
                continue
            if whole:
                self.finished[entry["name"]], self._lines[entry["name"]] = entry["results"], line
        kept = {file for line in self._lines.values() for file in self._files(line)}
        for path in folder.rglob("*"):  # none if there is no such folder
            if path not in kept and not path.is_dir():
                path.unlink()
        self._write()

    def _read(self) -> Iterator[str]:
        """Yield the lines of the file; those that are longer than one can be are passed over."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                with suppress(UnicodeDecodeError):
                    yield line.decode()

    def _files(self, line: str) -> list[Path]:
        return [self.folder / file for file in json.loads(line)["files"]]

    def _write(self) -> None:
        if self._lines:
            write_text(self._path, "".join(self._lines.values()))

    def keep(self, names: Iterable[str]) -> None:
        """Forget all items but these, and remove their files."""
        kept = set(names)
        for name in [name for name in self.finished if name not in kept]:
            for path in self._files(self._lines.pop(name)):
                path.unlink(missing_ok=True)
            del self.finished[name]
        self._write()

    def add(self, name: str, results: Any, files: Iterable[Path]) -> Any:
        """Note an item whose files are written; return its results as they will be read (plain values)."""
        digests = hash_outputs(self.folder, files)
        content = {"name": name, "results": results, "files": digests}
        entry = json.loads(json.dumps(content, default=plain, allow_nan=False))  # as it will be read
        line = json.dumps(entry | {"digest": fingerprint(entry)}, ensure_ascii=False) + "\n"
        with self._lock, storing(self._path), self._path.open("ab") as file:
            file.write(line.encode())
            self.finished[name], self._lines[name] = entry["results"], line
        return self.finished[name]


def ahead(items: Iterable[S], step: Callable[[S], T], depth: int = AHEAD, workers: int = 1) -> Iterator[T]:
    """Apply a step to items in order, on threads of its own, some items ahead of what is taken.

    With one worker a step may keep a state from item to item. Steps that follow one another overlap. What
    goes wrong with an item, or in making it, is raised in its place, behind the results before it.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers)

    def begun() -> Iterator[Future[T]]:
        try:
            for item in items:
                yield pool.submit(step, item)
        except Exception as error:
            unmade: Future[T] = Future()
            unmade.set_exception(error)
            yield unmade

    try:
        for future in begun():
            waiting.append(future)
            if len(waiting) > depth + workers - 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Return the processor's name and those of its instructions that decide how fast low precision is."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    vectors = [f"avx512{kind}" for kind in ("f", "_vnni", "_bf16", "_fp16")]
    known = ["avx2", "avx_vnni", *vectors, "amx_bf16", "amx_int8"]
    has = [flag for flag in known if re.search(rf"\b{flag}\b", text)]
    return f"{name[1].strip() if name else platform.machine()} ({', '.join(has) or 'no vectors'})"


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Make a function of arguments a command: our errors, and Ctrl-C, are one line and an exit status."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            with noticing_interrupts():
                return main(arguments)
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            ours = type(error).__module__.startswith("gpenlib.")
            if not (ours or isinstance(error, ValueError | OSError)):
                raise  # a fault of the code: the traceback says where
            print(f"error: {error}", file=sys.stderr)
            return 1

    return run


@contextmanager
def noticing_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end, too, after one that was lost on its way."""
    # Raised in a destructor or in a callback of a library, it is printed, or nothing, and the work goes on.
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
        if seen:
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, usual)


def front_end_is_live() -> bool:
    """Return whether a person's front end (JupyterLab, Notebook 7, VS Code) asked for the running cell.

    They send the cell's id with each request; papermill, nbclient and plain Python do not: no widgets there.
    """
    shell = _kernel_shell()
    request = shell.get_parent() or {} if shell is not None else {}
    return bool(request.get("metadata", {}).get("cellId"))


class _Line:
    """A file for tqdm: a notebook shows the bar's last state as one line, also when it is opened again."""

    handle: Any = None

    def write(self, text: str) -> None:
        """Show a state, or nothing where a bar clears itself; the line end behind the last one is none."""
        from IPython.display import display

        data = {"text/plain": text.strip()}
        if self.handle and text != "\n":
            self.handle.update(data, raw=True, metadata=PROGRESS)
        elif text.strip():
            self.handle = display(data, raw=True, metadata=PROGRESS, display_id=True)


@contextmanager
def silent() -> Iterator[None]:
    """Show no bars while the block runs: it is a part of what another bar shows."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def progress(iterable: Any = None, **options: Any) -> Any:
    """Return a tqdm bar: a line of text in a notebook, in a headless one rarely renewed, or in a terminal.

    In a headless notebook bars with ``leave=False`` are not shown: every update is stored as an output there.
    """
    if _silent.get():
        options["disable"] = True
    elif _kernel_shell() is not None:
        options |= {"file": _Line(), "ncols": 100 if front_end_is_live() else 0, "ascii": False}
        if not front_end_is_live():
            options |= {"mininterval": HEADLESS_INTERVAL, "disable": not options.get("leave", True)}
    return tqdm(iterable, **options)


def _kernel_shell() -> Any:
    """Return the shell of the Jupyter kernel that runs this code, or None."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "get_parent") else None


def keep_memory(keep: bool = True) -> bool:
    """Let this process keep what it frees for its next arrays, or give it back; return whether it can.

    By default glibc maps every array of more than 32 MiB anew, and the system fills its pages with zeros. Who
    makes the same large arrays again and again keeps them; who makes other ones would need more and more.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl
        return False
    options = ((M_MMAP_MAX, 0 if keep else 2**16), (M_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**17))
    done = all(library.mallopt(option, value) for option, value in options)
    if not keep:
        return_memory()
    return done


def return_memory() -> None:
    """Give what this process has freed back to the system, where the C library can."""
    with suppress(AttributeError):  # musl
        ctypes.CDLL(None).malloc_trim(0)
