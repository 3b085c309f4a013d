"""Long work: steps that overlap, a journal from which a stopped task goes on, progress, commands."""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from gpenlib.files import fingerprint, hash_outputs, links_in, plain, sha256, storing, write_text

HEADLESS_INTERVAL = 10.0  # seconds between lines in a notebook that nobody watches
AHEAD = 2  # items that a step may be ahead of the next one: memory stays flat
INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell
JOURNAL = ".finished.jsonl"
LONGEST_LINE = 1 << 22  # bytes of a journal: a photograph with hundreds of faces fits
S = TypeVar("S")
T = TypeVar("T")


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

    With one worker a step may keep a state from item to item. Steps that follow one another overlap.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(step, item))
            if len(waiting) > depth + workers - 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Make a function of arguments a command: our errors, and Ctrl-C, are one line and an exit status."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
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
