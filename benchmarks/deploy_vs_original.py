"""Time the original formulation of GPEN against every deploy form, interleaved in one run.

``python benchmarks/deploy_vs_original.py [--weights random-512] [--rounds 5] [--threads 2]``

Prints a table (median and smallest time, ratios of medians to the original in eager PyTorch and to the deploy
form in OpenVINO fp32, GFLOP/s at the median, and the share of this machine's matrix-product peak, measured in
the same run: the fastest call against the fastest product) and writes the rows with every single time to
``outputs/benchmarks/deploy_vs_original.json``. Every timed call follows an untimed one of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gpenlib.architecture.checkpoints import load_weights
from gpenlib.architecture.inspect import total_cost
from gpenlib.compile import compile_model
from gpenlib.export import deploy_form, export_onnx, export_training_form
from gpenlib.export.graphs import example_input
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.infer import open_runtime
from gpenlib.infer.performance import interleaved_times
from gpenlib.infer.runtime import MANIFEST_FILE, MODEL_FILE

ORIGINAL = "original, PyTorch eager fp32"
DEPLOY = "deploy form, OpenVINO fp32"
PEAK_SIZE = 2048  # side of the matrices whose product gives the peak


def matrix_product_peaks() -> dict[str, Callable[[], object]]:
    """Return calls that multiply two square matrices in each arithmetic."""
    torch.manual_seed(0)
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    s8_a, s8_b = torch.randint(-127, 128, (2, PEAK_SIZE, PEAK_SIZE), dtype=torch.int8)
    return {
        "peak fp32": lambda: a @ b,
        "peak bf16": lambda: half_a @ half_b,
        "peak int8": lambda: torch._int_mm(s8_a, s8_b),
    }


def graph_runtime(path: Path, backend: str, dtype: str, size: int, threads: int) -> Callable[[Any], object]:
    """Open a bare ONNX file under a backend, as if it were an artefact."""
    folder = path.parent / f"{path.stem}-{backend}-{dtype}"
    folder.mkdir()
    (folder / MODEL_FILE).hardlink_to(path)
    write_json(
        folder / MANIFEST_FILE, {"dtype": dtype, "backend": backend, "in_size": size, "out_size": size}
    )
    return open_runtime(folder, threads=threads)


def contestants(weights: str, work: Path, threads: int) -> dict[str, tuple[str, Callable[[], object]]]:
    """Return every call by label, with the arithmetic whose peak it is compared to."""
    model = load_weights(weights).model
    deploy = deploy_form(model)
    size = model.config.in_size
    image = example_input(model.config)
    batch = image.numpy()
    original = export_training_form(model, work / "original.onnx")
    plain = export_onnx(deploy, work / "deploy.onnx")
    found: dict[str, tuple[str, Callable[[], object]]] = {
        ORIGINAL: ("fp32", partial(model, image)),
        "deploy form, PyTorch eager fp32": ("fp32", partial(deploy, image)),
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
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        entries = contestants(options.weights, Path(folder), options.threads)
        calls = {label: call for label, (_, call) in entries.items()} | matrix_product_peaks()
        times = interleaved_times(calls, options.rounds)
    median = {label: statistics.median(values) for label, values in times.items()}
    fastest = {label: min(values) for label, values in times.items()}
    gflop = 2 * total_cost(load_weights(options.weights).model.config).macs / 1e9
    peak = {name: 2 * PEAK_SIZE**3 / 1e6 / fastest[f"peak {name}"] for name in ("fp32", "bf16", "int8")}
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
    print("peaks:", ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in peak.items()))
    target = repository_root() / "outputs" / "benchmarks" / "deploy_vs_original.json"
    content = {"weights": options.weights, "threads": options.threads, "rounds": options.rounds}
    write_json(target, content | {"peaks": peak, "rows": rows, "packages": package_versions()})
    print(f"rows: {target}")


if __name__ == "__main__":
    main()
