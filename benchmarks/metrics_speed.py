"""Time the metrics of notebooks 04 and 05 without any network, and watch the memory.

``python benchmarks/metrics_speed.py [--faces 1000] [--size 512]``

Makes embedded faces and answers of an imaginary network (truth and noise) in a temporary folder, which takes
about 1.5 MB per face of 512 px. Then it runs what the notebooks run: reading, scoring and saving (04_infer),
comparing with fp32, traits of the faces, intervals (05_errors). The time for making the answers is taken
out; as fp32's scores serve the same rows with a little noise. Prints faces per second, wall and processor
time per face, the time that 1000 faces take, and the peak of the memory after the first faces and at the
end; writes the figures to ``outputs/benchmarks/metrics_speed.json``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpenlib.data.faces import embedded_faces
from gpenlib.data.pairs import Pack, Pairs, read_pack, write_pack
from gpenlib.errors.compare import compare_outputs, face_traits, group_losses, summarise_comparison, trends
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.images import FloatArray, read_image, to_tensor
from gpenlib.infer.scoring import restore_pairs, score_baselines

FIRST = 50  # faces after which the memory is looked at for the first time
CALIBRATION = 32
NOISE = 0.03  # standard deviation, of the range [-1, 1]
THOUSAND = 1000
LIMIT_S = 180.0


class NoisyTruth:
    """Stands in for a runtime: answers the truth of the next face with noise, and times itself."""

    dtype = "metrics"

    def __init__(self, pack: Pack) -> None:
        self.pack, self.calls = pack, 0
        self.wall_s = self.cpu_s = 0.0
        self.first_peak_mib = 0.0
        self.random = np.random.default_rng(0)

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Answer one face; the first call is the untimed warm-up of :func:`restore_pairs`."""
        wall, cpu = time.perf_counter(), time.thread_time()
        if self.calls == min(FIRST, len(self.pack) - 1) + 1:
            self.first_peak_mib = peak_mib()
        answer = to_tensor(self.pack.truths(max(0, self.calls - 1)))
        answer += self.random.normal(0, NOISE, answer.shape).astype(np.float32)
        self.calls += 1
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.thread_time() - cpu
        return answer


def make_faces(folder: Path, faces: int, size: int) -> None:
    """Write the packs; in a process of its own, because its memory is none of ours."""
    source = embedded_faces(faces, size)
    write_pack(folder / "evaluation", Pairs(source, "color", size))
    write_pack(folder / "calibration", Pairs(embedded_faces(min(faces, CALIBRATION), size), "color", size))


def peak_mib() -> float:
    """Return the peak of this process's resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(what: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, and the wall and processor seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = what()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def measure(folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return one row per step (wall and processor seconds) and the peaks of the memory."""
    pack = read_pack(folder / "evaluation")
    network, images = NoisyTruth(pack), folder / "images"
    steps = []

    def step(name: str, what: Callable[[], Any]) -> Any:
        found, wall, cpu = timed(what)
        steps.append({"step": name, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak_mib()})
        return found

    runtime: Any = network
    baselines = step("score baselines", lambda: score_baselines(pack))
    rows = step("score and save", lambda: restore_pairs(runtime, pack, 1, images, baselines=baselines))
    steps[1]["wall_s"] -= network.wall_s
    steps[1]["cpu_s"] -= network.cpu_s
    noise = np.random.default_rng(1).normal(0, 0.01, len(rows))
    others = [{**row, "psnr": row["psnr"] + value} for row, value in zip(rows, noise, strict=True)]

    def read(name: str) -> Any:
        return read_image(images / f"{name}.png")

    compared = step("compare with fp32", lambda: compare_outputs("int8", rows, others, read, read))
    compared += [{**row, "dtype": "fp32"} for row in compared]
    traits = step("traits of the faces", lambda: face_traits(pack))
    facts = {"backend": "", "executed_precision": "", "ms_per_image": 0.0}
    step("intervals", lambda: summarise_comparison(compared, {"fp32": facts, "int8": facts}))
    step("groups and trends", lambda: (group_losses(compared, traits), trends(compared, traits)))
    return steps, {"after_first": network.first_peak_mib, "at_end": peak_mib()}


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=int, default=THOUSAND, help="how many faces (default: 1000)")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (default: 512)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        maker = multiprocessing.get_context("spawn").Process(
            target=make_faces, args=(Path(name), options.faces, options.size)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the faces could not be made; see above")
        steps, peaks = measure(Path(name))
    report(options.faces, options.size, steps, peaks)


def report(faces: int, size: int, steps: list[dict[str, Any]], peaks: dict[str, float]) -> None:
    """Print and store the figures."""
    wall, cpu = (sum(row[key] for row in steps) for key in ("wall_s", "cpu_s"))
    steps = [*steps, {"step": "all", "wall_s": wall, "cpu_s": cpu, "peak_mib": peaks["at_end"]}]
    for row in steps:
        row |= {
            "wall_ms_per_face": 1e3 * row["wall_s"] / faces,
            "cpu_ms_per_face": 1e3 * row["cpu_s"] / faces,
        }
    print(pd.DataFrame(steps).round(1).to_string(index=False))
    thousand = wall * THOUSAND / faces
    how = "measured" if faces == THOUSAND else f"extrapolated from {faces}"
    print(f"{faces / wall:.2f} faces per second at {size} px; {THOUSAND} faces: {thousand:.0f} s ({how})")
    print(f"processor time: {cpu / faces:.3f} s per face, {cpu / wall:.2f} cores busy on average")
    print(
        f"peak memory: {peaks['after_first']:.0f} MiB after {min(FIRST, faces)} faces, "
        f"{peaks['at_end']:.0f} MiB at the end"
    )
    content = {"faces": faces, "size": size, "seconds_for_1000": thousand, "limit_s": LIMIT_S}
    target = repository_root() / "outputs" / "benchmarks" / "metrics_speed.json"
    write_json(target, content | {"steps": steps, "peak_mib": peaks, "packages": package_versions()})
    print(f"figures: {target}")


if __name__ == "__main__":
    main()
