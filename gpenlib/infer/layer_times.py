"""Where the time of an artefact goes, layer by layer, as the backend's own profiler reports it."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.infer.runtime import MANIFEST_FILE, RuntimeUnavailable, file_for
from gpenlib.run import read_json

KINDS = (
    "convolution", "transposed convolution", "depthwise filter", "element-wise", "concatenation",
    "linear", "rounding and layout", "other",
)  # fmt: skip
_BY_OPERATOR = {
    "convolution": ("Convolution", "Conv", "FusedConv", "QLinearConv"),
    "transposed convolution": ("ConvolutionBackpropData", "Deconvolution", "ConvTranspose"),
    "depthwise filter": ("GroupConvolution", "GroupConvolutionBackpropData"),
    "element-wise": ("Subgraph", "Eltwise", "Mul", "Add", "LeakyRelu", "Multiply", "Clip", "Div"),
    "concatenation": ("Concat",),
    "linear": ("FullyConnected", "MatMul", "Gemm", "FusedGemm"),
    "rounding and layout": (
        "Reorder", "FakeQuantize", "QuantizeLinear", "DequantizeLinear", "Transpose", "DepthToSpace",
        "ReorderInput", "ReorderOutput", "Cast", "Convert",
    ),
}  # fmt: skip
KIND_OF = {operator: kind for kind, operators in _BY_OPERATOR.items() for operator in operators}
FILTER_NAME = re.compile(r"\.(blur\.conv|upsample)$")
WARM_UP = 2


def layer_times(artefact_dir: Path, repeats: int = 5, threads: int | None = None) -> list[dict[str, Any]]:
    """Return the median time of every executed layer at batch 1, the slowest first.

    Parameters
    ----------
    artefact_dir : Path
    repeats : int
        Timed calls.
    threads : int, optional
        Default: the backend's own choice.

    Returns
    -------
    list of dict
        ``name`` (module path where the layer is one of the graph's), ``operator`` (the backend's), ``kind``
        (one of :data:`KINDS`), ``precision`` (``int8``, ``bf16``, ``f16``, ``f32``), ``ms``.

    Raises
    ------
    RuntimeUnavailable
        If the artefact's backend has no profiler that we read.
    """
    manifest = read_json(artefact_dir / MANIFEST_FILE)
    size = manifest["in_size"]
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    profilers = {"openvino": _openvino_times, "onnxruntime": _onnxruntime_times}
    backend = manifest["backend"]
    if backend not in profilers:
        raise RuntimeUnavailable(f"no layer times from {backend}; backends: {', '.join(profilers)}")
    path = artefact_dir / file_for(manifest, backend)
    return _medians(profilers[backend](path, manifest, image, repeats, threads))


Event = tuple[str, str, str, float]  # name, operator, precision, ms


def _openvino_times(
    path: Path, manifest: dict[str, Any], image: np.ndarray, repeats: int, threads: int | None
) -> Iterable[Event]:
    """Yield the events of ``repeats`` calls from OpenVINO's performance counters."""
    import openvino

    from gpenlib.infer.onnx_runtimes import OpenVinoRuntime

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(image.shape))
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": OpenVinoRuntime.HINTS[manifest["dtype"]],
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", properties)
    names = {
        node.get_friendly_name(): _openvino_name(node)
        for node in compiled.get_runtime_model().get_ordered_ops()
    }
    request = compiled.create_infer_request()
    for call in range(WARM_UP + repeats):
        request.infer({0: image})
        if call < WARM_UP:
            continue
        for found in request.get_profiling_info():
            milliseconds = found.real_time.total_seconds() * 1000
            if milliseconds > 0:
                precision = found.exec_type.rpartition("_")[2].lower()
                yield names.get(found.node_name, found.node_name), found.node_type, precision, milliseconds


def _openvino_name(node: Any) -> str:
    """Return the module path among the layers that were fused into a node, or the node's own name."""
    fused = str(node.get_rt_info()["originalLayersNames"].value).split(",")
    paths = [name for name in fused if name.endswith(".conv") or name.endswith(".upsample")]
    return str(paths[0] if paths else node.get_friendly_name())


def _onnxruntime_times(
    path: Path, manifest: dict[str, Any], image: np.ndarray, repeats: int, threads: int | None
) -> Iterable[Event]:
    """Yield the events of ``repeats`` calls from ONNX Runtime's profile."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as work:
        options.profile_file_prefix = str(Path(work) / "profile")
        source = str(path)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UP + repeats):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    graph = onnx.load(path, load_external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output}
    seen: dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name, operator = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
        seen[name] += 1
        if seen[name] > WARM_UP:
            precision = "int8" if operator == "QLinearConv" else "f32"
            yield _original_name(name, operator, producers), operator, precision, event["dur"] / 1000


def _original_name(name: str, operator: str, producers: dict[str, Any]) -> str:
    """Return the module path of a convolution that ONNX Runtime fused and renamed after its output."""
    stem = re.sub(r"(_nchwc|_token_\d+)+$", "", name)
    node = producers.get(stem)
    while node is not None and "Conv" in operator and "Conv" not in node.op_type:
        node = producers.get(node.input[0])  # the activation that was fused into the convolution
    return node.name if node is not None and node.name else stem


def _medians(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Group events by layer."""
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for name, operator, precision, milliseconds in events:
        times[name, operator, precision].append(milliseconds)
    rows = [
        {
            "name": name,
            "operator": operator,
            "kind": "depthwise filter" if FILTER_NAME.search(name) else KIND_OF.get(operator, "other"),
            "precision": {"i8": "int8", "u8": "int8"}.get(precision, precision),
            "ms": statistics.median(values),
        }
        for (name, operator, precision), values in times.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])
