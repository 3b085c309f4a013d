"""The steps around the network: throughput of 04 with saving on, beside that of the bare runtime.

``python benchmarks/pipeline.py ARTEFACT [--images N] [--rounds N]`` takes an artefact folder, such as
``outputs/demo/03_compile/int8/artefact``. Faces are JPEG files in the network's size. Both are taken in turns
after an untimed round; the figure is the median of the others. Either begins with a call that serves no face,
as 04 does, because first calls compile. What is scored once for every dtype, the baselines, has a line of its
own. ``--memory`` runs once over many faces.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gpenlib import open_runtime
from gpenlib.data.faces import embedded_faces, open_folder
from gpenlib.data.pairs import Pairs
from gpenlib.images import to_tensor, write_image
from gpenlib.infer import Runtime
from gpenlib.infer.scoring import restore_pairs, score_baselines
from gpenlib.jobs import Journal

DIFFERENT = 32  # faces; more files are links to these


def main() -> None:
    """Print the throughput of both, the processor time of both, and the growth of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--images", type=int, default=60, help="in a round (default: 60)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="run over N faces instead")
    options = parser.parse_args()
    runtime = open_runtime(options.artefact)
    count = options.memory or options.images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = faces_of(folder / "faces", runtime, count)
        if options.memory:
            grown = memory_of(runtime, pairs, folder)
            print(f"memory from face {count // 10} to {count}: {grown:+.0f} MiB")
            return
        batch, started = to_tensor(pairs.inputs(0)), processor_time()
        baselines = score_baselines(pairs)
        once = (processor_time() - started) / count
        runs = [0]

        def bare() -> None:
            for _ in range(count + 1):
                runtime(batch)

        def pipeline() -> None:
            runs[0] += 1
            out = folder / f"out{runs[0]}"
            restore_pairs(runtime, pairs, 1, out / "images", None, baselines, Journal(out))

        wall: dict[str, list[float]] = {"bare runtime": [], "04 with saving": []}
        busy: dict[str, list[float]] = {name: [] for name in wall}
        for turn in range(options.rounds + 1):
            calls: list[tuple[str, Callable[[], None]]] = [*zip(wall, (bare, pipeline), strict=True)]
            for label, call in calls[:: -1 if turn % 2 else 1]:
                started, worked = time.perf_counter(), processor_time()
                call()
                if turn:
                    wall[label].append((time.perf_counter() - started) / count)
                    busy[label].append((processor_time() - worked) / count)
    side = (
        f"{runtime.in_size} px, {runtime.dtype}, {runtime.backend}, {len(os.sched_getaffinity(0))} processors"
    )
    print(f"{side}; {count} faces, median of {options.rounds} rounds")
    for label in wall:
        each, spent = statistics.median(wall[label]), statistics.median(busy[label])
        print(f"{label:15} {1 / each:7.1f} faces/s  {1000 * spent:6.1f} ms of processor time a face")
    print(f"{'baselines, once':15} {'':17}  {1000 * once:6.1f} ms of processor time a face")
    rate = statistics.median(a / b for a, b in zip(*wall.values(), strict=True))
    print(f"throughput with everything: {rate:.0%} of the bare runtime's")


def faces_of(folder: Path, runtime: Runtime, count: int) -> Pairs:
    """Write faces in the network's size; return them as pairs of its task."""
    drawn = embedded_faces(DIFFERENT, runtime.out_size)
    for index in range(count):
        path = folder / f"{index}.jpg"
        if index < DIFFERENT:
            write_image(path, drawn.read(index))
        else:
            os.link(folder / f"{index % DIFFERENT}.jpg", path)
    return Pairs(open_folder(folder), runtime.task or "color", runtime.in_size, runtime.out_size)


def memory_of(runtime: Runtime, pairs: Pairs, folder: Path) -> float:
    """Return by how much memory grows, MiB, from a tenth of the faces to all."""
    tenth = Pairs(
        pairs.faces.take(range(max(1, len(pairs) // 10))), pairs.task, pairs.in_size, pairs.out_size
    )
    peaks = []
    for number, some in enumerate((tenth, pairs)):
        restore_pairs(runtime, some, 1, folder / f"{number}/images", finished=Journal(folder / str(number)))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return peaks[1] - peaks[0]


def processor_time() -> float:
    """Return the processor time that this process has taken, s."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
