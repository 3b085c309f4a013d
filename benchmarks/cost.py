"""What a face costs over size, requests and batch: time, memory, share of the machine's peak.

``python benchmarks/cost.py [--sizes 256 512 1024 2048] [--threads 2] [--rounds 3] [--images 2]``

Networks of full width with random weights. Every line is measured in a process of its own, whose peak memory
is its own, once in each round; rounds alternate in direction, and the time is the median of the rounds'
medians, so that a machine that slows down for some minutes slows all lines alike. ``spread`` is the slowest
round over the fastest. ``original`` is the published formulation in OpenVINO fp32, ``images`` calibrate int8
(its time does not depend on them). At the second size follow several requests at once and larger batches.
Prints the tables and writes them to ``outputs/benchmarks/cost.json``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import peaks
import torch
from deploy_vs_original import graph_runtime

from gpenlib.architecture.checkpoints import load_weights
from gpenlib.architecture.inspect import total_cost
from gpenlib.compile import compile_model
from gpenlib.export import export_onnx, export_training_form
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.infer.performance import Combination, interleaved_times, measure_in_child
from gpenlib.infer.runtime import openvino_hint
from gpenlib.jobs import processor
from gpenlib.settings import QUANTISED

REQUESTS = ((1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 2, 2), (1, 2, 4))  # instances, threads, batch
COLUMNS = ["p50_ms", "images_per_s", "peak_memory_mib"]


def artefacts(size: int, images: int, work: Path, threads: int) -> dict[str, Path]:
    """Return an artefact folder by label: the original in fp32, and the deploy form in every dtype."""
    model = load_weights(f"random-{size}").model
    found = {}
    for label, write in (("original fp32", export_training_form), ("fp32", export_onnx)):
        path = write(model, work / f"{label.replace(' ', '_')}.onnx")
        graph_runtime(path, "openvino", "fp32", size, threads)
        found[label] = work / f"{path.stem}-openvino-fp32"
    for dtype in ("bf16", "int8", "int8_bf16"):
        build = {
            "backend": {"type": "openvino", "dtype": dtype},
            "dataset": {"sampler": {"get_data_num": images}},
        }
        folder = work / dtype
        found[dtype] = compile_model(
            model, build, folder, work / "fp32.onnx", calibration_cache=work / "cache"
        )
    (work / "fp32.onnx").unlink()  # its artefact holds another name of the same file
    return found


def arithmetic(dtype: str) -> str:
    """Return the arithmetic whose peak counts: what OpenVINO computes a dtype's convolutions in here."""
    return "int8" if dtype in QUANTISED else {"f32": "fp32", "bf16": "bf16"}[openvino_hint(dtype)]


def in_rounds(combinations: Sequence[Combination], rounds: int) -> list[dict[str, float]]:
    """Return the row of each combination, measured once per round, there and back."""
    frames = []
    for number in range(rounds):
        order = range(len(combinations))
        for place in order if number % 2 == 0 else reversed(order):
            row = measure_in_child(combinations[place])
            frames.append({"place": place} | {name: row[name] for name in COLUMNS})
    by_place = pd.DataFrame(frames).groupby("place")
    table = by_place.median()
    table["peak_memory_mib"] = by_place["peak_memory_mib"].max()
    table["spread"] = by_place["p50_ms"].max() / by_place["p50_ms"].min()
    rows: list[dict[str, float]] = table.to_dict("records")
    return rows


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048], help="sides in px")
    parser.add_argument("--threads", type=int, default=2, help="worker threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=4, help="timed calls in a round (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each line (default: 3)")
    parser.add_argument("--images", type=int, default=2, help="that calibrate int8 (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        candidates = peaks.candidates(options.threads)
        best, _ = peaks.peaks(
            candidates, interleaved_times({name: call for name, (*_, call) in candidates.items()}, 6)
        )
    rows, requests = [], []
    for place, size in enumerate(options.sizes):
        with tempfile.TemporaryDirectory(dir=repository_root() / "outputs") as folder:
            work = Path(folder)
            found = artefacts(size, options.images, work, options.threads)
            gflop = 2 * total_cost(load_weights(f"random-{size}").model.config).macs / 1e9
            each = partial(Combination, repeats=options.repeats, warm_up=2)
            asked = [each(str(artefact), threads=options.threads) for artefact in found.values()]
            for label, row in zip(found, in_rounds(asked, options.rounds), strict=True):
                row["share_of_peak"] = 1e3 * gflop / row["p50_ms"] / best[arithmetic(label.split()[-1])]
                rows.append({"px": size, "gflop": gflop, "path": label, **row})
            print(pd.DataFrame(rows[-len(found) :]).round(2).to_string(index=False), flush=True)
            if place == min(1, len(options.sizes) - 1):
                names = ("path", "instances", "threads", "batch_size")
                lines = [(dtype, *numbers) for dtype in ("fp32", "int8_bf16") for numbers in REQUESTS]
                asked = [
                    each(str(found[dtype]), instances=instances, threads=threads, batch_size=batch)
                    for dtype, instances, threads, batch in lines
                ]
                for line, row in zip(lines, in_rounds(asked, options.rounds), strict=True):
                    requests.append({"px": size} | dict(zip(names, line, strict=True)) | row)
            shutil.rmtree(work / "cache", ignore_errors=True)
    for table in (rows, requests):
        print(pd.DataFrame(table).round(2).to_string(index=False))
    print("peaks:", ", ".join(f"{name} {value:.0f} GOP/s" for name, value in best.items()))
    target = repository_root() / "outputs" / "benchmarks" / "cost.json"
    content = {"processor": processor(), "peaks": best, "rows": rows, "requests": requests}
    write_json(target, content | {"packages": package_versions()})
    print(f"rows: {target}")


if __name__ == "__main__":
    main()
