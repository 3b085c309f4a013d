"""Run an artefact: one callable over the backends, float32 [N, 3, S, S] in [-1, 1] -> same."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpenlib.images import FloatArray
from gpenlib.run import choice_error, read_json

DTYPES = ("fp32", "bf16", "fp16", "int8", "int8_bf16")
QUANTISED = ("int8", "int8_bf16")  # int8 convolutions; the rest in float32 or bfloat16
DEVICES = ("cpu", "cuda")
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

# What each backend can execute, by device. onnxruntime has no bf16 convolution on the CPU.
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "openvino": {"cpu": DTYPES},
    "onnxruntime": {"cpu": ("fp32", "fp16", "int8"), "cuda": ("fp32", "fp16", "int8")},
}
BACKENDS = tuple(SUPPORTED)


class RuntimeUnavailable(RuntimeError):
    """A backend, device and dtype that do not go together, or an artefact that cannot be opened."""


def check_support(backend: str, dtype: str, device: str = "cpu") -> None:
    """Raise unless ``backend`` can run ``dtype`` on ``device``; nothing is loaded.

    Raises
    ------
    ValueError
        If a name is unknown.
    RuntimeUnavailable
        If the combination does not exist.
    """
    if backend not in BACKENDS:
        raise ValueError(choice_error("backend", backend, ("auto", *BACKENDS)))
    _check_names(dtype, device)
    if dtype in SUPPORTED[backend].get(device, ()):
        return
    able = [f"{name} ({', '.join(by[device])})" for name, by in SUPPORTED.items() if device in by]
    raise RuntimeUnavailable(
        f"{backend} does not run {dtype} on {device}; available on {device}: {', '.join(able)}"
    )


def _check_names(dtype: str, device: str) -> None:
    """Raise ValueError for an unknown dtype or device."""
    for what, value, allowed in (("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if value not in allowed:
            raise ValueError(choice_error(what, value, allowed))


def choose_backend(backend: str, dtype: str, device: str = "cpu") -> tuple[str, str]:
    """Resolve ``"auto"``; return (backend, reason)."""
    if backend != "auto":
        check_support(backend, dtype, device)
        return backend, "asked for"
    _check_names(dtype, device)
    for name in BACKENDS:
        if dtype in SUPPORTED[name].get(device, ()):
            return name, f"first backend that runs {dtype} on {device}"
    raise RuntimeUnavailable(f"no backend runs {dtype} on {device}")


class Runtime(ABC):
    """A loaded artefact. Call it with a float32 batch [N, 3, in_size, in_size] in [-1, 1].

    Attributes
    ----------
    backend, dtype, device : str
    in_size, out_size : int
    executed_precision : str
        What the processor really computes in, as the backend reports it.
    """

    executed_precision: str

    def __init__(self, manifest: dict[str, Any], backend: str, device: str) -> None:
        self.backend = backend
        self.device = device
        self.dtype: str = manifest["dtype"]
        self.in_size: int = manifest["in_size"]
        self.out_size: int = manifest["out_size"]

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch.

        Raises
        ------
        ValueError
            If the array is not float32 [N, 3, in_size, in_size] with N >= 1.
        """
        wanted = (3, self.in_size, self.in_size)
        if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1:] != wanted or not len(batch):
            raise ValueError(
                f"input {batch.dtype} {batch.shape}: expected float32 [N, 3, {self.in_size}, {self.in_size}]"
            )
        return self._run(np.ascontiguousarray(batch))

    @abstractmethod
    def _run(self, batch: FloatArray) -> FloatArray:
        """Run a checked batch."""

    @abstractmethod
    def executed_types(self) -> dict[str, int]:
        """Return how many convolutions (of both kinds) execute in each precision, such as ``{"i8": 28}``."""


class OpenVinoRuntime(Runtime):
    """OpenVINO on the CPU; compiled once per batch size, because static shapes run faster."""

    HINTS: ClassVar[dict[str, str]] = {
        "fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8_bf16": "bf16",
    }  # fmt: skip

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        super().__init__(manifest, "openvino", device)
        import openvino

        self._openvino = openvino
        self._core = openvino.Core()
        self._model = self._core.read_model(folder / MODEL_FILE)
        # OpenVINO picks bf16 by itself where the processor has it: every dtype states its precision.
        hint = self.HINTS[self.dtype]
        if hint == "f16" and "FP16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            hint = "f32"
        self._properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._compiled: dict[int, Any] = {}
        ran = self._for_batch(1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint == "bf16" and ran != "bf16":
            warnings.warn(f"this processor has no bf16: OpenVINO computes in {ran}", stacklevel=3)
        self.executed_precision = f"int8 convolutions, rest {ran}" if self.dtype in QUANTISED else ran

    def _for_batch(self, size: int) -> Any:
        if size not in self._compiled:
            model = self._model.clone()
            model.reshape([size, 3, self.in_size, self.in_size])
            self._compiled[size] = self._core.compile_model(model, "CPU", self._properties)
        return self._compiled[size]

    def _run(self, batch: FloatArray) -> FloatArray:
        return np.array(self._for_batch(len(batch))(batch)[0], dtype=np.float32)

    def executed_types(self) -> dict[str, int]:
        """Count from the execution graph; OpenVINO names s8 convolutions ``u8`` or ``i8``."""
        counts: dict[str, int] = {}
        for node in self._for_batch(1).get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if str(info["layerType"].value) in ("Convolution", "Deconvolution"):
                precision = str(info["runtimePrecision"].value)
                counts[precision] = counts.get(precision, 0) + 1
        return counts


class OnnxRuntimeRuntime(Runtime):
    """ONNX Runtime on the CPU or, where its GPU build is installed, on CUDA."""

    PROVIDERS: ClassVar[dict[str, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        super().__init__(manifest, "onnxruntime", device)
        import onnxruntime

        provider = self.PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeUnavailable(
                f"onnxruntime has no {provider} here (present: "
                f"{', '.join(onnxruntime.get_available_providers())}); "
                "install onnxruntime-gpu or use device='cpu'"
            )
        self._onnxruntime = onnxruntime
        self._path = folder / MODEL_FILE
        self._provider = provider
        self._session = onnxruntime.InferenceSession(
            str(self._path), self._options(threads), providers=[provider]
        )
        self._input = self._session.get_inputs()[0].name
        rounded = "fp16 storage, computed in f32" if self.dtype == "fp16" and device == "cpu" else self.dtype
        form = manifest.get("quantisation", {}).get("form")
        int8 = "int8 convolutions, rest f32" if form == "qoperator" else "f32 on values rounded to int8"
        self.executed_precision = int8 if self.dtype == "int8" else rounded

    def _options(self, threads: int | None) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        return options

    def _run(self, batch: FloatArray) -> FloatArray:
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)

    def executed_types(self) -> dict[str, int]:
        """Count from the graph that ONNX Runtime really executes, after its own optimisation."""
        import tempfile

        import onnx

        with tempfile.TemporaryDirectory() as folder:
            options = self._options(None)
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            self._onnxruntime.InferenceSession(str(self._path), options, providers=[self._provider])
            graph = onnx.load(options.optimized_model_filepath).graph
        names = {"QLinearConv": "i8", "ConvInteger": "i8"}
        counts: dict[str, int] = {}
        for node in graph.node:
            if "Conv" in node.op_type:
                kind = names.get(node.op_type, "f32")
                counts[kind] = counts.get(kind, 0) + 1
        return counts


RUNTIMES = {"openvino": OpenVinoRuntime, "onnxruntime": OnnxRuntimeRuntime}


def open_runtime(
    artefact_dir: str | Path, threads: int | None = None, device: str = "cpu", backend: str | None = None
) -> Runtime:
    """Open an artefact folder written by :func:`gpenlib.compile_model`.

    Parameters
    ----------
    artefact_dir : path
        Holds ``model.onnx`` and ``manifest.json``.
    threads : int, optional
        Worker threads; default is the backend's own choice.
    device : {"cpu", "cuda"}
    backend : {"openvino", "onnxruntime"}, optional
        Default: the one that the artefact was built for.

    Returns
    -------
    Runtime
        Callable: float32 [N, 3, S, S] in [-1, 1] -> same range, any N.

    Raises
    ------
    FileNotFoundError
        If the folder holds no artefact.
    RuntimeUnavailable
        If the backend cannot run this dtype on this device, or the folder was built for the vendor's chip.
    """
    folder = Path(artefact_dir)
    for name in (MANIFEST_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            if name == MODEL_FILE and read_json(folder / MANIFEST_FILE).get("kind") == "vendor-build":
                raise RuntimeUnavailable(
                    f"{folder}: built for the vendor's chip (tvm_vacc); run it with the vendor's runtime"
                )
            raise FileNotFoundError(
                f"{folder}: not an artefact folder (no {name}); make one with compile_model"
            )
    manifest = read_json(folder / MANIFEST_FILE)
    chosen, _ = choose_backend(backend or manifest["backend"], manifest["dtype"], device)
    return RUNTIMES[chosen](folder, manifest, threads, device)
