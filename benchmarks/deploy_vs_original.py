"""Time the original formulation of GPEN against every deploy form, interleaved in one run.

``python benchmarks/deploy_vs_original.py [--weights random-512] [--rounds 5] [--threads 2]``

Prints a table (median and smallest time, ratios of medians to the original in eager PyTorch and to the deploy
form in OpenVINO fp32, GFLOP/s at the median, and the share of this machine's peak, measured in the same run:
the fastest call against the fastest candidate of ``benchmarks/peaks.py``) and writes the rows with every
single time to ``outputs/benchmarks/deploy_vs_original.json``. Every timed call follows an untimed one.

Eager PyTorch runs in a process of its own that keeps its memory: its best case. In one process with other
runtimes, or with the C library's defaults, the same call takes up to twice as long.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import peaks
import torch

from gpenlib.architecture.checkpoints import load_weights
from gpenlib.architecture.inspect import total_cost
from gpenlib.compile import compile_model
from gpenlib.export import deploy_form, export_onnx, export_training_form
from gpenlib.export.graphs import example_input
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.infer import open_runtime
from gpenlib.infer.artefact import MANIFEST_FILE, MODEL_FILE
from gpenlib.infer.performance import interleaved_times
from gpenlib.jobs import keep_memory

ORIGINAL = "original, PyTorch eager fp32"
DEPLOY = "deploy form, OpenVINO fp32"
CHILD = "--child"


class EagerProcess:
    """A network in eager PyTorch, in a process of its own with memory kept; a call waits for one pass."""

    def __init__(self, form: str, weights: str, threads: int) -> None:
        command = [sys.executable, __file__, CHILD, form, weights, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> EagerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it

    def __call__(self) -> None:
        """Run the network once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the process of eager PyTorch ended")


def child_main(form: str, weights: str, threads: str) -> None:
    """Run the network once for every line of standard input."""
    keep_memory()
    torch.set_num_threads(int(threads))
    model = load_weights(weights).model
    network = model if form == "original" else deploy_form(model)
    image = example_input(model.config)
    with torch.inference_mode():
        for _ in sys.stdin:
            network(image)
            print("done", flush=True)


def graph_runtime(path: Path, backend: str, dtype: str, size: int, threads: int) -> Callable[[Any], object]:
    """Open a bare ONNX file under a backend, as if it were an artefact."""
    folder = path.parent / f"{path.stem}-{backend}-{dtype}"
    folder.mkdir()
    (folder / MODEL_FILE).hardlink_to(path)
    write_json(
        folder / MANIFEST_FILE, {"dtype": dtype, "backend": backend, "in_size": size, "out_size": size}
    )
    return open_runtime(folder, threads=threads)


def contestants(
    weights: str, work: Path, threads: int, processes: ExitStack
) -> dict[str, tuple[str, Callable[[], object]]]:
    """Return every call by label, with the arithmetic whose peak it is compared to."""
    model = load_weights(weights).model
    deploy = deploy_form(model)
    size = model.config.in_size
    batch = example_input(model.config).numpy()
    original = export_training_form(model, work / "original.onnx")
    plain = export_onnx(deploy, work / "deploy.onnx")
    found: dict[str, tuple[str, Callable[[], object]]] = {
        label: ("fp32", processes.enter_context(EagerProcess(form, weights, threads)))
        for label, form in ((ORIGINAL, "original"), ("deploy form, PyTorch eager fp32", "deploy"))
    }
    for label, path in (("original", original), ("deploy form", plain)):
        for backend, name, dtype in (
            ("onnxruntime", "ONNX Runtime", "fp32"),
            ("openvino", "OpenVINO", "fp32"),
            ("openvino", "OpenVINO", "bf16"),
        ):
            runtime = graph_runtime(path, backend, dtype, size, threads)
            found[f"{label}, {name} {dtype}"] = (dtype, partial(runtime, batch))
    few = {"sampler": {"get_data_num": 4}}
    for dtype, arithmetic, names in (
        ("fp16", "fp32", {"openvino": "OpenVINO"}),
        ("int8", "int8", {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}),
    ):
        backend, *also = names
        build = {"backend": {"type": backend, "dtype": dtype, "also": also}, "dataset": few}
        artefact = compile_model(deploy, build, work / dtype, plain)
        for backend, name in names.items():
            runtime = open_runtime(artefact, threads=threads, backend=backend)
            found[f"deploy form, {name} {dtype}"] = (arithmetic, partial(runtime, batch))
    # int8 and int8_bf16 are one file, run with different arithmetic around its int8 convolutions.
    mixed = graph_runtime(work / "int8" / MODEL_FILE, "openvino", "int8_bf16", size, threads)
    found["deploy form, OpenVINO int8_bf16"] = ("int8", partial(mixed, batch))
    return found


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="random-512", help="name or checkpoint (default: random-512)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="worker threads (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes, torch.inference_mode():
        entries = contestants(options.weights, Path(folder), options.threads, processes)
        candidates = peaks.candidates(options.threads)
        calls = {label: call for label, (_, call) in entries.items()}
        calls |= {label: call for label, (_, _, call) in candidates.items()}
        times = interleaved_times(calls, options.rounds)
    median = {label: statistics.median(times[label]) for label in entries}
    fastest = {label: min(times[label]) for label in entries}
    gflop = 2 * total_cost(load_weights(options.weights).model.config).macs / 1e9
    peak, candidate_rows = peaks.peaks(candidates, times)
    rows = [
        {
            "path": label,
            "median_ms": median[label],
            "min_ms": fastest[label],
            "speed_vs_original": median[ORIGINAL] / median[label],
            "speed_vs_deploy_fp32": median[DEPLOY] / median[label],
            "gflop_per_s": 1e3 * gflop / median[label],
            "share_of_peak": 1e3 * gflop / fastest[label] / peak[arithmetic],
            "peak_of": arithmetic,
            "times_ms": times[label],
        }
        for label, (arithmetic, _) in entries.items()
    ]
    pd.set_option("display.width", 160)
    print(pd.DataFrame(rows).drop(columns="times_ms").round(2).to_string(index=False))
    print("peaks:", ", ".join(f"{name} {value:.0f} GOP/s" for name, value in peak.items()))
    target = repository_root() / "outputs" / "benchmarks" / "deploy_vs_original.json"
    content = {"weights": options.weights, "threads": options.threads, "rounds": options.rounds}
    write_json(
        target,
        content
        | {"peaks": peak, "rows": rows, "peak_candidates": candidate_rows, "packages": package_versions()},
    )
    print(f"rows: {target}")


if __name__ == "__main__":
    child_main(*sys.argv[2:]) if sys.argv[1:2] == [CHILD] else main()
