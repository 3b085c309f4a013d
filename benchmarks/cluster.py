"""Photographs on two local Ray workers beside two processes without Ray: rate, and memory by quarter.

``python benchmarks/cluster.py ARTEFACT`` takes an artefact folder of a small network that restores, such as
``outputs/demo/03_compile/int8/artefact`` of ``demo-restore``. Faces are squares of the network's side, every
one a file of its own name; the job is ``python -m gpenlib photos --aligned --engine ray``. Without Ray two
processes do the same job with one thread each, and two runtimes run the network alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from gpenlib import open_runtime
from gpenlib.cluster.engine import connect
from gpenlib.cluster.photos import main as photos
from gpenlib.data.faces import embedded_faces
from gpenlib.images import to_tensor, write_image
from gpenlib.infer.artefact import read_artefact

WORKERS = 2
DISTINCT = 200  # pictures; the files are links to them
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}


def main() -> None:
    """Print the rate of both, and the workers' memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which bare runtimes run")
    options = parser.parse_args()
    side = read_artefact(options.artefact).in_size
    bare = bare_rate(options.artefact, options.seconds)
    with tempfile.TemporaryDirectory() as name:
        folder = write_faces(Path(name) / "faces", side, options.faces)
        apart = command_rate(folder, options.artefact, Path(name) / "apart")
        connect()
        rates = Rates(Path(name) / "out/parts", options.faces)
        words = [
            str(folder),
            "--artefact",
            str(options.artefact),
            "--out",
            str(Path(name) / "out"),
            "--unit",
            "64",
        ]
        assert photos([*words, "--aligned", "--engine", "ray", "--workers", str(WORKERS)]) == 0
        rates.stop()
        summary = json.loads((Path(name) / "out/summary.json").read_text())
        apart_again = command_rate(folder, options.artefact, Path(name) / "again")
    again = bare_rate(options.artefact, options.seconds)
    steady, pictures = rates.steady(), summary["pictures"]
    for label, before, after in (
        (f"{WORKERS} runtimes, nothing read or written", bare, again),
        (f"{WORKERS} processes without Ray", apart, apart_again),
    ):
        share = 2 * steady / (before + after)
        print(f"{label}: {before:.1f} faces/s before, {after:.1f} after; Ray reaches {share:.0%}")
    print(f"{pictures} faces on {WORKERS} workers: {steady:.1f} faces/s")
    print(f"from the first command to the last file: {rates.whole():.1f} faces/s")
    print("memory of the workers by quarter:", ", ".join(f"{mib:.0f} MiB" for mib in rates.quarters()))


def write_faces(folder: Path, side: int, count: int) -> Path:
    """Write some faces, and link them under as many names as asked for."""
    faces = embedded_faces(min(count, DISTINCT), side)
    for index in range(len(faces)):
        write_image(folder / f"{index}.png", faces.read(index))
    return repeated(folder, count)


def repeated(folder: Path, count: int) -> Path:
    """Link the pictures of a folder under other names until there are so many."""
    files = sorted(folder.iterdir())
    for index in range(len(files), count):
        path = files[index % len(files)]
        os.link(path, folder / f"{index}{path.suffix}")
    return folder


def bare_rate(artefact: Path, seconds: float) -> float:
    """Return how many faces runtimes in processes of their own run in a second, reading and writing none."""
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(WORKERS) as pool:
        return sum(pool.starmap(calls_per_second, [(artefact, seconds)] * WORKERS, chunksize=1))


def calls_per_second(artefact: Path, seconds: float) -> float:
    """Return the rate of one runtime with one thread."""
    runtime = open_runtime(artefact, threads=1)
    face = to_tensor(embedded_faces(1, runtime.in_size).read(0))
    runtime(face)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        runtime(face)
        count += 1
    return count / (time.perf_counter() - started)


def command_rate(folder: Path, artefact: Path, out: Path, count: int = 1280) -> float:
    """Return the rate of processes of the command without Ray: a long run less a short one."""
    words = ["-m", "gpenlib", "photos", "--aligned", "--threads", "1", "--unit", "64", "--artefact"]
    spent = []
    for limit in (64, 64 + count):
        started = time.perf_counter()
        line = [sys.executable, *words, str(artefact), str(folder), "--limit", str(limit), "--out"]
        outs = [f"{out}-{limit}-{number}" for number in range(WORKERS)]
        env = os.environ | ONE_THREAD
        runs = [subprocess.Popen([*line, each], env=env, stderr=subprocess.DEVNULL) for each in outs]
        assert not any([run.wait() for run in runs])
        spent.append(time.perf_counter() - started)
    return WORKERS * count / (spent[1] - spent[0])


class Rates:
    """Watches parts appear, and the memory of Ray's workers, from a thread."""

    def __init__(self, parts: Path, total: int, workers: int = WORKERS) -> None:
        self.parts, self.total, self.workers = parts, total, workers
        self.seen: list[tuple[float, int, float]] = []  # seconds, parts, MiB of the workers
        self._started, self._done = time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            parts = len([*self.parts.glob("*.parquet")])
            self.seen.append((time.perf_counter() - self._started, parts, workers_memory()))

    def stop(self) -> None:
        """Stop watching."""
        self._seconds = time.perf_counter() - self._started
        self._done.set()
        self._thread.join()

    def whole(self) -> float:
        """Return faces per second from the start of the command on."""
        return self.total / self._seconds

    def steady(self) -> float:
        """Return faces per second between the first part and the last but some."""
        rows = [(seconds, parts) for seconds, parts, _ in self.seen if parts]
        most = rows[-1][1] if rows else 0
        begin, end = rows[:1], [row for row in rows if row[1] >= most - self.workers][:1]
        if begin == end:
            raise ValueError(
                f"{self.total} faces were {most} parts in {self._seconds:.0f} s, too few for a steady "
                f"rate of {self.workers} workers; give more faces"
            )
        [(first, before)], [(last, after)] = begin, end
        return (after - before) * (self.total / most) / (last - first)

    def quarters(self) -> list[float]:
        """Return the mean memory of the workers in each quarter of the time in which parts appeared."""
        working = [mib for _, parts, mib in self.seen if parts and mib]
        return [float(np.mean(some)) for some in np.array_split(working, 4)]


def workers_memory() -> float:
    """Return the resident memory of this machine's Ray Data workers in MiB."""
    pages = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" in (path / "cmdline").read_bytes():
                pages += int((path / "statm").read_text().split()[1])
        except OSError:
            continue  # it has ended
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
