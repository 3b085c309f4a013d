"""Where the time of an artefact goes, layer by layer, as the backend's own profiler reports it."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.infer.onnx_runtimes import OnnxRuntimeRuntime, OpenVinoRuntime
from gpenlib.infer.runtime import Runtime, open_runtime

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


Event = tuple[str, str, str, float]  # name, operator, precision, ms


def layer_times(
    artefacts: Mapping[str, Path], repeats: int = 5, threads: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return the median time of every executed layer at batch 1, the slowest first, for several artefacts.

    They run in turns, so that noise on the machine hits all alike.

    Parameters
    ----------
    artefacts : mapping of label to Path
    repeats : int
        Timed calls each.
    threads : int, optional
        Default: the backend's own choice.

    Returns
    -------
    dict of label to list of dict
        ``name`` (module path where the layer is one of the graph's), ``operator`` (the backend's), ``kind``
        (one of :data:`KINDS`), ``precision`` (``int8``, ``bf16``, ``f16``, ``f32``), ``ms``. Empty for
        backends that have no profiler we read (PyTorch's).
    """
    profiles: dict[str, OpenVinoProfile | OnnxRuntimeProfile] = {}
    for label, folder in artefacts.items():
        runtime = open_runtime(folder, threads)
        if runtime.backend in PROFILES:
            profiles[label] = PROFILES[runtime.backend](runtime)
    for _ in range(WARM_UP + repeats):
        for profile in profiles.values():
            profile.run()
    return {label: _medians(profiles[label].events()) if label in profiles else [] for label in artefacts}


def example(runtime: Runtime) -> np.ndarray:
    """Return a seeded random input for a runtime."""
    shape = (1, 3, runtime.in_size, runtime.in_size)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


class OpenVinoProfile:
    """Performance counters of OpenVINO."""

    def __init__(self, runtime: Runtime) -> None:
        assert isinstance(runtime, OpenVinoRuntime)
        compiled = runtime.compile(1, PERF_COUNT=True)
        self._names = {
            node.get_friendly_name(): _openvino_name(node)
            for node in compiled.get_runtime_model().get_ordered_ops()
        }
        self._request = compiled.create_infer_request()
        self._image = example(runtime)
        self._calls = 0
        self._events: list[Event] = []

    def run(self) -> None:
        """Run once and keep the events, unless it is for warming up."""
        self._request.infer({0: self._image})
        self._calls += 1
        for found in self._request.get_profiling_info() if self._calls > WARM_UP else ():
            milliseconds = found.real_time.total_seconds() * 1000
            if milliseconds > 0:
                precision = found.exec_type.rpartition("_")[2].lower()
                name = self._names.get(found.node_name, found.node_name)
                self._events.append((name, found.node_type, precision, milliseconds))

    def events(self) -> list[Event]:
        """Return the events of all timed calls."""
        return self._events


def _openvino_name(node: Any) -> str:
    """Return the module path among the layers that were fused into a node, or the node's own name."""
    fused = str(node.get_rt_info()["originalLayersNames"].value).split(",")
    # .skip: the half of a decoder layer that reads encoder features (gpenlib/compile/halves.py)
    paths = [name for name in fused if name.endswith((".conv", ".conv.skip", ".upsample"))]
    return str(paths[0] if paths else node.get_friendly_name())


class OnnxRuntimeProfile:
    """Profile of ONNX Runtime, which it writes to a file."""

    def __init__(self, runtime: Runtime) -> None:
        assert isinstance(runtime, OnnxRuntimeRuntime)
        self._folder = tempfile.TemporaryDirectory()
        self._path = runtime.path
        self._session = runtime.profiled(str(Path(self._folder.name) / "profile"))
        self._feed = {self._session.get_inputs()[0].name: example(runtime)}

    def run(self) -> None:
        """Run once."""
        self._session.run(None, self._feed)

    def events(self) -> list[Event]:
        """Return the events of all timed calls, and end the profile."""
        import onnx

        content = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        self._folder.cleanup()
        graph = onnx.load(self._path).graph
        producers = {name: node for node in graph.node for name in node.output}
        seen: dict[str, int] = defaultdict(int)
        found: list[Event] = []
        for event in content:
            if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
                continue
            name, operator = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            seen[name] += 1
            if seen[name] > WARM_UP:
                precision = "int8" if operator == "QLinearConv" else "f32"
                original = _original_name(name, operator, producers)
                found.append((original, operator, precision, event["dur"] / 1000))
        return found


PROFILES: dict[str, type[OpenVinoProfile | OnnxRuntimeProfile]] = {
    "openvino": OpenVinoProfile,
    "onnxruntime": OnnxRuntimeProfile,
}


def _original_name(name: str, operator: str, producers: dict[str, Any]) -> str:
    """Return the module path of a convolution that ONNX Runtime fused and renamed after its output."""
    stem = re.sub(r"(_nchwc|_token_\d+)+$", "", name)
    node = producers.get(stem)
    while node is not None and "Conv" in operator and "Conv" not in node.op_type:
        node = producers.get(node.input[0])  # the activation that was fused into the convolution
    return node.name if node is not None and node.name else stem


def kind_of(name: str, operator: str) -> str:
    """Return the kind of a layer; depthwise filters are called Conv too by ONNX Runtime."""
    kind = KIND_OF.get(operator, "other")
    return "depthwise filter" if "convolution" in kind and FILTER_NAME.search(name) else kind


def _medians(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Group events by layer."""
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for name, operator, precision, milliseconds in events:
        times[name, operator, precision].append(milliseconds)
    rows = [
        {
            "name": name,
            "operator": operator,
            "kind": kind_of(name, operator),
            "precision": {"i8": "int8", "u8": "int8"}.get(precision, precision),
            "ms": statistics.median(values),
        }
        for (name, operator, precision), values in times.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])
