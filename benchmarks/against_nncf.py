"""Our int8 beside those of NNCF and of ONNX Runtime's quantiser: same faces, same calibration, one run.

``python benchmarks/against_nncf.py [--weights demo-color] [--faces 100] [--data DIR] [--rounds 20]``

Both tools quantise the original graph and our deploy form with their default settings; NNCF with its fast and
its full bias correction, and with the fast one and the layers that read or write RGB left in float by hand.
NNCF lives in an environment of its own, which is made in ``outputs/benchmarks/nncf`` on the first run. Models
are timed in turns at batch 1; where the processor has bf16, what is not int8 runs in either float type.
Prints a table (PSNR to the original in fp32, PSNR to the truth and its loss against fp32, median time, how
many times as fast as the original in OpenVINO fp32, 8-bit convolutions) and writes it to
``outputs/benchmarks/against_nncf.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pandas as pd
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from gpenlib import Run, open_runtime
from gpenlib.export import export_onnx, export_training_form
from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.images import FloatArray, from_tensor, to_tensor
from gpenlib.infer.performance import interleaved_times
from gpenlib.metrics import finite_psnr

FOLDER = repository_root() / "outputs" / "benchmarks"
ORIGINAL = "original, OpenVINO fp32"
NNCF = "nncf==3.4.0"
RGB = ".*(ecd0|to_rgb).*"  # names of operations, in either graph
WAYS = {  # of NNCF: what follows the file of the model
    "fast bias correction": ("fast",),
    "full bias correction": ("full",),
    "fast bias correction, RGB layers in float": ("fast", RGB),
}
Call = Callable[[FloatArray], FloatArray]


def nncf_python() -> Path:
    """Return the interpreter of the environment that has NNCF, and make that if it is not there."""
    folder = FOLDER / "nncf"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        versions = [NNCF, *(f"{name}=={package_versions()[name]}" for name in ("openvino", "numpy"))]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *versions], check=True)
        (folder / "ready").touch()
    return python


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration images, for ONNX Runtime's quantiser."""

    def __init__(self, images: FloatArray, name: str) -> None:
        self._feeds: Iterator[dict[str, FloatArray]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, FloatArray] | None:
        """Return the next image, or None behind the last one."""
        return next(self._feeds, None)


def openvino_call(path: Path, size: int, threads: int, hint: str) -> tuple[Call, int]:
    """Open a model with the options that our runtime has; return a call, and its 8-bit convolutions."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, 3, size, size])
    options = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": hint})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    layers = [(str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos]
    count = sum(layer in ("Convolution", "Deconvolution") and kind in ("u8", "i8") for layer, kind in layers)
    return lambda batch: np.array(compiled(batch)[0], dtype=np.float32), count


def onnxruntime_call(path: Path, threads: int, work: Path) -> tuple[Call, int]:
    """As :func:`openvino_call`, in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.optimized_model_filepath = str(work / "executed.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    count = sum(node.op_type == "QLinearConv" for node in onnx.load(work / "executed.onnx").graph.node)
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0], count


def quantised_by_onnxruntime(source: Path, images: FloatArray) -> Path:
    """Quantise with ONNX Runtime's quantiser as its documentation advises for processors with VNNI."""
    prepared, target = source.with_suffix(".prepared.onnx"), source.with_suffix(".ort.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # it fails on these graphs
    name = onnx.load(prepared).graph.input[0].name
    quantize_static(
        str(prepared), str(target), Reader(images, name), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return target


def contestants(run: Run, images: FloatArray, work: Path, threads: int) -> dict[str, tuple[Call, int]]:
    """Return every model as a call and the number of its 8-bit convolutions, by label."""
    size, model = run.evaluation.in_size, run.weights.model
    sources = {
        "original": export_training_form(model, work / "original.onnx"),
        "deploy form": export_onnx(model, work / "deploy.onnx"),
    }
    np.save(work / "calibration.npy", images)
    bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hints = {"f32": "", "bf16": ", rest bf16"} if bf16 else {"f32": ""}
    found: dict[str, tuple[Call, int]] = {}
    for graph, source in sources.items():
        found[f"{graph}, OpenVINO fp32"] = openvino_call(source, size, threads, "f32")
        for place, (way, words) in enumerate(WAYS.items()):
            target = work / f"{source.stem}-{place}.xml"
            child = [nncf_python(), Path(__file__).with_name("nncf_quantise.py"), source]
            subprocess.run(
                [*child, work / "calibration.npy", target, *words], check=True, stdout=subprocess.DEVNULL
            )
            for hint, rest in hints.items():
                label = f"{graph}, NNCF int8 ({way}){rest}"
                found[label] = openvino_call(target, size, threads, hint)
        target = quantised_by_onnxruntime(source, images)
        found[f"{graph}, ONNX Runtime's quantiser"] = onnxruntime_call(target, threads, work)
    for dtype in ("int8", "int8_bf16") if bf16 else ("int8",):
        runtime = open_runtime(run.with_(backend="openvino").artefact(dtype), threads)
        count = runtime.executed_types()
        found[f"ours, OpenVINO {dtype}"] = runtime, sum(count.get(kind, 0) for kind in ("u8", "i8"))
    runtime = open_runtime(run.with_(backend="onnxruntime", run="ours-ort").artefact("int8"), threads)
    found["ours, ONNX Runtime int8"] = runtime, runtime.executed_types().get("i8", 0)
    return found


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="demo-color", help="name or file (default: demo-color)")
    parser.add_argument("--data", default="", help="folder of faces (default: the embedded ones)")
    parser.add_argument("--calibration", default="", help="folder of calibration faces (default: of --data)")
    parser.add_argument("--faces", type=int, default=100, help="scored faces (default: 100)")
    parser.add_argument("--calibrate", type=int, default=50, help="calibration faces (default: 50)")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls each (default: 20)")
    parser.add_argument("--threads", type=int, default=2, help="worker threads (default: 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPEN_OUTPUTS"] = f"{folder}/outputs"
        run = Run.of(
            {"weights": options.weights, "data_dir": options.data, "calib_dir": options.calibration,
             "dataset_size": options.faces, "calib_size": options.calibrate}
        )  # fmt: skip
        pairs, calibration = run.evaluation, run.calibration
        images = np.concatenate([to_tensor(calibration.inputs(i)) for i in range(len(calibration))])
        models = contestants(run, images, Path(folder), options.threads)
        pictures = {label: [from_tensor(call(to_tensor(pairs.inputs(i))))[0] for i in range(len(pairs))]
                    for label, (call, _) in models.items()}  # fmt: skip
        batch = to_tensor(pairs.inputs(0))
        times = interleaved_times(
            {n: partial(call, batch) for n, (call, _) in models.items()}, options.rounds
        )
    truths = [pairs.truths(i) for i in range(len(pairs))]

    def mean_psnr(label: str, others: list[Any]) -> float:
        return statistics.fmean(map(finite_psnr, pictures[label], others))

    reference, median = mean_psnr(ORIGINAL, truths), {n: statistics.median(t) for n, t in times.items()}
    rows = [
        {
            "model": label,
            "psnr_to_fp32": mean_psnr(label, pictures[ORIGINAL]) if label != ORIGINAL else None,
            "psnr": mean_psnr(label, truths),
            "loss_db": reference - mean_psnr(label, truths),
            "median_ms": median[label],
            "times_as_fast": median[ORIGINAL] / median[label],
            "int8_convolutions": count,
            "times_ms": times[label],
        }
        for label, (_, count) in models.items()
    ]
    pd.set_option("display.width", 160)
    print(pd.DataFrame(rows).drop(columns="times_ms").round(3).to_string(index=False))
    about = {name: getattr(options, name) for name in ("weights", "faces", "calibrate", "rounds", "threads")}
    packages = package_versions() | {"nncf": NNCF.partition("==")[2]}
    target = FOLDER / "against_nncf.json"
    write_json(target, {**about, "data": pairs.label, "packages": packages, "rows": rows})
    print(f"{len(pairs)} faces ({pairs.label}), {len(calibration)} for calibration; rows: {target}")


if __name__ == "__main__":
    main()
