"""What a face costs over size, requests and batch: time, memory, share of the machine's peak.

``python benchmarks/cost.py [--sizes 256 512 1024 2048] [--threads 2] [--repeats 6] [--images 2]``

Networks of full width with random weights. Every line is a process of its own, whose peak memory is its own;
its time is the median of calls after warming up. ``original`` is the published formulation in OpenVINO fp32,
``images`` calibrate int8 (its time does not depend on them). At the second size follow several requests at
once and larger batches. Prints the tables and writes them to ``outputs/benchmarks/cost.json``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

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
from gpenlib.jobs import processor

ARITHMETIC = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "int8_bf16": "int8"}  # whose peak counts
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


def measured(folder: Path, threads: int, repeats: int, **numbers: int) -> dict[str, Any]:
    """Return the row of one combination."""
    row = measure_in_child(Combination(str(folder), threads=threads, repeats=repeats, warm_up=2, **numbers))
    return {name: row[name] for name in COLUMNS}


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048], help="sides in px")
    parser.add_argument("--threads", type=int, default=2, help="worker threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=6, help="timed calls each (default: 6)")
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
            for label, artefact in found.items():
                row = measured(artefact, options.threads, options.repeats)
                peak = best[ARITHMETIC[label.split()[-1]]]
                row |= {"share_of_peak": 1e3 * gflop / row["p50_ms"] / peak}
                rows.append({"px": size, "gflop": gflop, "path": label, **row})
                print(
                    pd.DataFrame(rows[-1:]).round(2).to_string(index=False, header=len(rows) == 1), flush=True
                )
            if place == min(1, len(options.sizes) - 1):
                for dtype in ("fp32", "int8_bf16"):
                    for instances, threads, batch in (
                        (1, 1, 1),
                        (1, 2, 1),
                        (2, 1, 1),
                        (2, 2, 1),
                        (1, 2, 2),
                        (1, 2, 4),
                    ):
                        numbers = {"instances": instances, "batch_size": batch}
                        row = measured(found[dtype], threads, options.repeats, **numbers)
                        requests.append({"px": size, "path": dtype, "threads": threads, **numbers, **row})
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
