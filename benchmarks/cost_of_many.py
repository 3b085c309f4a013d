"""What many faces cost: a face's time by step on this machine, and a page that reckons with it.

``python benchmarks/cost_of_many.py ARTEFACT [--job score] [--faces FOLDER] [--check]`` takes an artefact
folder, such as ``outputs/demo/03_compile/int8/artefact``. The job is ``python -m gpenlib photos --aligned``,
or ``score``, with a thread for each worker. The page asks for faces, machines, storage and prices, and says
how long they take, what they cost, and what limits them. ``--check`` runs the job on a local Ray cluster with
1, 2 and 4 workers and puts what it did beside what the page says.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
from cluster import DISTINCT, ONE_THREAD, Rates, repeated, write_faces
from pipeline import processor_time

from gpenlib import open_runtime
from gpenlib.cluster.engine import connect
from gpenlib.cluster.photos import main as photos
from gpenlib.cluster.score import even_colour
from gpenlib.cluster.score import main as score
from gpenlib.data.faces import Faces, picture_files, read_face
from gpenlib.data.pairs import Pairs
from gpenlib.errors.report import templates
from gpenlib.files import repository_root, write_json, write_text
from gpenlib.images import from_levels, open_picture, to_levels, to_tensor, write_image, write_picture
from gpenlib.infer import Runtime
from gpenlib.infer.artefact import read_artefact
from gpenlib.infer.scoring import score as score_answer
from gpenlib.infer.scoring import score_baselines
from gpenlib.jobs import command, processor, processors, silent
from gpenlib.photos import enhance

PAGE = Path(__file__).with_suffix(".html.j2")
JOBS = {"score": score, "photos": photos}
STEPS = ("read and decode", "prepare", "run", "score", "paste", "encode and write")
UNIT = 64  # pictures to a part
WORKERS = (1, 2, 4)  # of a check
Costs = dict[str, Any]


def reckon(costs: Mapping[str, float | str], given: Mapping[str, float]) -> dict[str, Any]:
    """Return rate, time, money and what limits them; the page's script does the same.

    Parameters
    ----------
    costs : mapping
        Of a face: ``wall`` seconds in one worker, ``cpu`` seconds of a processor, ``bytes_in``,
        ``bytes_out``; and ``largest``, the step that takes the most processor time.
    given : mapping
        ``faces``, ``machines``, their ``cores`` and ``workers``, ``price`` of a machine for an hour; ``read``
        and ``write`` of the storage in MB/s, which all machines share, and its price for a GB, ``storage``.
    """
    rates = {
        "waiting": given["machines"] * given["workers"] / costs["wall"],
        "processor": given["machines"] * given["cores"] / costs["cpu"],
        "read": given["read"] * 1e6 / costs["bytes_in"],
        "write": given["write"] * 1e6 / costs["bytes_out"],
    }
    limit = min(rates, key=lambda name: rates[name])
    rate = rates[limit]
    hours = given["faces"] / rate / 3600
    gigabytes = given["faces"] * (costs["bytes_in"] + costs["bytes_out"]) / 1e9
    money = {"machines": hours * given["machines"] * given["price"], "storage": gigabytes * given["storage"]}
    decodes = limit == "processor" and costs["largest"] == "read and decode"
    machine = min(rates["waiting"], rates["processor"]) / given["machines"]
    return {
        "rate": rate,
        "hours": hours,
        "gigabytes": gigabytes,
        "money": money["machines"] + money["storage"],
        "money_storage": money["storage"],
        "limit": "decode" if decodes else limit,
        "saturated": min(rates["read"], rates["write"]) / machine,  # so many machines keep the storage busy
    }


class Clock:
    """Wall and processor time of steps, call by call."""

    def __init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}

    def timing(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), processor_time()
            result = call(*arguments, **options)
            spent = time.perf_counter() - wall, processor_time() - cpu
            self.times.setdefault(step, []).append(spent)
            return result

        return timed

    def medians(self) -> dict[str, list[float]]:
        """Return wall and processor seconds of each step in order; the first call counts for nothing."""
        return {
            step: [statistics.median(spent) for spent in zip(*self.times[step][1:], strict=True)]
            for step in STEPS
            if step in self.times
        }


def steps_of(job: str, artefact: Path, files: Sequence[Path], task: str, out: Path) -> dict[str, list[float]]:
    """Return wall and processor seconds of a face by step, each step alone, with one thread."""
    cv2.setNumThreads(1)
    clock, runtime = Clock(), open_runtime(artefact, threads=1)
    (score_steps if job == "score" else photo_steps)(clock, runtime, files, task, out)
    return clock.medians()


def score_steps(clock: Clock, runtime: Runtime, files: Sequence[Path], task: str, out: Path) -> None:
    """Restore and score faces, a step at a time."""
    colour, chroma = even_colour("", 1, 0, task, (runtime.in_size, runtime.out_size))

    def prepare(place: int, face: Any) -> tuple[Pairs, Any]:
        one = Faces("face", ["face"], lambda _: face, lambda _: "")
        pairs = Pairs(one, task, runtime.in_size, runtime.out_size, (0, 0)).placed(["face"], [place])
        return pairs, to_tensor(pairs.inputs(0))

    def judge(pairs: Pairs, output: Any) -> Any:
        with silent():
            score_baselines(pairs, colour=(colour, [chroma]))
        levels = to_levels(output)[0]
        score_answer(levels, pairs.truths(0))
        return from_levels(levels)

    read, prepared, run, judged, write = (
        clock.timing(step, call)
        for step, call in (
            ("read and decode", read_face), ("prepare", prepare), ("run", runtime), ("score", judge),
            ("encode and write", write_image),
        )
    )  # fmt: skip
    for place, path in enumerate(files):
        pairs, batch = prepared(place, read(path))
        write(out / f"{place}.png", judged(pairs, run(batch)))


def photo_steps(clock: Clock, runtime: Runtime, files: Sequence[Path], task: str, out: Path) -> None:
    """Enhance squares of faces, a step at a time; what is around the network is what preparing takes."""
    read = clock.timing("read and decode", open_picture)
    whole = clock.timing("prepare", enhance.enhance_photo)
    write = clock.timing("encode and write", write_picture)
    call = clock.timing("run", type(runtime).__call__)
    paste = clock.timing("paste", enhance._put_back)
    with patch.object(type(runtime), "__call__", call), patch.object(enhance, "_put_back", paste):
        for place, path in enumerate(files):
            picture = read(path)
            made = whole(picture.pixels, runtime, aligned=True, task=task)
            write(out / str(place), picture, made.image, picture.alpha)
    inner = zip(clock.times["run"], clock.times["paste"], strict=True)
    clock.times["prepare"] = [
        (whole[0] - run[0] - paste[0], whole[1] - run[1] - paste[1])
        for whole, (run, paste) in zip(clock.times["prepare"], inner, strict=True)
    ]


def words_of(job: str, folder: Path, artefact: Path, task: str, out: Path) -> list[str]:
    """Return the arguments of the command."""
    words = [str(folder), "--artefact", str(artefact), "--out", str(out), "--unit", str(UNIT), "--task", task]
    return words + (["--aligned"] if job == "photos" else [])


def whole_of(job: str, folder: Path, artefact: Path, task: str, rounds: int, scratch: Path) -> Costs:
    """Return what a face takes of the whole command, with one thread: a long run less a short one.

    What is done once, such as opening the network, is in both and drops out.
    """
    lengths, spent = (UNIT, 5 * UNIT), list[tuple[float, float, int]]()
    for turn in range(1 + rounds):  # the first fills caches
        runs = []
        for length in lengths:
            out = scratch / f"whole-{turn}-{length}"
            line = [sys.executable, "-m", "gpenlib", job, *words_of(job, folder, artefact, task, out)]
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(
                [*line, "--threads", "1", "--limit", str(length)],
                env=os.environ | ONE_THREAD, check=True, capture_output=True,
            )  # fmt: skip
            wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            runs.append((wall, cpu, bytes_below(out)))
        if turn:
            short, long = runs
            spent.append(tuple((b - a) / (lengths[1] - lengths[0]) for a, b in zip(short, long, strict=True)))
    return dict(
        zip(("wall", "cpu", "bytes_out"), map(statistics.median, zip(*spent, strict=True)), strict=True)
    )


def bytes_below(folder: Path) -> int:
    """Return how many bytes the files below a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(job: str, artefact: Path, given: Path | None, task: str, rounds: int) -> Costs:
    """Return what a face takes on this machine: by step, and of the whole command."""
    described = read_artefact(artefact)
    with tempfile.TemporaryDirectory() as name:
        folder = pictures(Path(name) / "faces", given, described.in_size, 5 * UNIT)
        files = picture_files(folder)
        steps = steps_of(job, artefact, files[: UNIT + 1], task, Path(name) / "steps")
        whole = whole_of(job, folder, artefact, task, rounds, Path(name))
        read = statistics.fmean(path.stat().st_size for path in files[UNIT:])
    rest = whole["cpu"] - sum(cpu for _, cpu in steps.values())
    about = {"job": job, "dtype": described.dtype, "side": described.in_size, "processor": processor()}
    known = {"steps": steps, "rest": rest, "bytes_in": read, "largest": max(steps, key=lambda s: steps[s][1])}
    return {**about, **whole, **known, "processors": processors(), "given": given is not None}


def pictures(folder: Path, given: Path | None, side: int, count: int) -> Path:
    """Return a folder of so many pictures: those that are given, or embedded faces of the network's side."""
    if given is None:
        return write_faces(folder, side, count)
    folder.mkdir()
    for index, path in enumerate(picture_files(given)[: min(count, DISTINCT)]):
        shutil.copyfile(path, folder / f"{index}{path.suffix}")
    return repeated(folder, count)


def check(costs: Costs, artefact: Path, given: Path | None, task: str, most: int) -> list[dict[str, float]]:
    """Run the job on a local cluster; return measured and reckoned rates by number of workers."""
    os.environ.pop("RAY_ADDRESS", None)  # a cluster of this machine
    ray = connect(max(*WORKERS, processors()))  # more workers than processors, too
    rows = []
    for workers in WORKERS:
        count = most * workers // max(WORKERS)
        with tempfile.TemporaryDirectory() as name:
            folder, out = pictures(Path(name) / "faces", given, costs["side"], count), Path(name) / "out"
            rates = Rates(out / "parts", count, workers)
            words = words_of(costs["job"], folder, artefact, task, out)
            assert JOBS[costs["job"]]([*words, "--engine", "ray", "--workers", str(workers)]) == 0
            rates.stop()
        asked = {"machines": 1, "cores": processors(), "workers": workers, "faces": count}
        asked |= {"price": 0, "storage": 0, "read": 1e9, "write": 1e9}
        row = {"workers": workers, "faces": count, "measured": rates.steady(), "whole": rates.whole()}
        rows.append(row | {"reckoned": reckon(costs, asked)["rate"]})
    ray.shutdown()
    return rows


def write_page(path: Path, costs: Costs, checked: Sequence[Mapping[str, float]]) -> Path:
    """Write the page."""
    page = templates().from_string(PAGE.read_text(encoding="utf-8"))
    script = {name: costs[name] for name in ("wall", "cpu", "bytes_in", "bytes_out", "largest")}
    return write_text(path, page.render(costs=costs, script=script, checked=checked))


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what a face takes, check it, print it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--job", choices=JOBS, default="photos", help="default: photos")
    parser.add_argument("--faces", type=Path, help="folder (default: embedded faces of the network's side)")
    parser.add_argument("--task", help="default: what the network was trained for")
    parser.add_argument("--rounds", type=int, default=5, help="of the whole command (default: 5)")
    parser.add_argument(
        "--check", type=int, nargs="?", const=10_000, metavar="N", help="with N faces for 4 workers (10000)"
    )
    parser.add_argument(
        "--out", type=Path, default=repository_root() / "outputs/benchmarks/cost_of_many.html"
    )
    options = parser.parse_args(arguments)
    task = options.task or read_artefact(options.artefact).task
    if not task:
        raise ValueError("--task: the artefact does not say what its network was trained for; name it")
    costs = measure(options.job, options.artefact, options.faces, task, options.rounds)
    print(
        f"{costs['processor']}; {options.job}, {costs['side']} px, {costs['dtype']}; ms a face in one worker"
    )
    print(f"{'':18}{'wall':>8}{'processor':>11}")
    for step, (wall, cpu) in {**costs["steps"], "the whole": (costs["wall"], costs["cpu"])}.items():
        print(f"{step:18}{1000 * wall:8.2f}{1000 * cpu:11.2f}")
    print(f"{costs['bytes_in'] / 1000:.1f} kB in, {costs['bytes_out'] / 1000:.1f} kB out")
    rows = [] if options.check is None else check(costs, options.artefact, options.faces, task, options.check)
    for row in rows:
        told = "{workers} workers, {faces} faces: {measured:.1f} faces/s, reckoned {reckoned:.1f}".format(
            **row
        )
        print(f"{told} ({row['measured'] / row['reckoned']:.0%}); with start and end {row['whole']:.1f}")
    write_json(options.out.with_suffix(".json"), {"costs": costs, "checked": rows})
    print(f"wrote {write_page(options.out, costs, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
