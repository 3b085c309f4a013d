"""Runtimes that read ``model.onnx``: OpenVINO and ONNX Runtime."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpenlib.images import FloatArray
from gpenlib.infer.openvino_graph import scale_rgb_weights
from gpenlib.infer.runtime import QUANTISED, Runtime, RuntimeUnavailable


class OpenVinoRuntime(Runtime):
    """OpenVINO on the CPU; compiled once per batch size, because static shapes run faster."""

    backend = "openvino"
    HINTS: ClassVar[dict[str, str]] = {
        "fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8_bf16": "bf16",
    }  # fmt: skip

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        super().__init__(folder, manifest, threads, device)
        import openvino

        self._core = openvino.Core()
        self._model = self._core.read_model(self.path)
        # OpenVINO picks bf16 by itself where the processor has it: every dtype states its precision.
        hint = self.HINTS[self.dtype]
        if hint == "f16" and "FP16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            hint = "f32"
        self._properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, the threads of all runtimes in a process would share the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._compiled: dict[int, Any] = {}
        ran = self._for_batch(1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint == "bf16" and ran != "bf16":
            warnings.warn(f"this processor has no bf16: OpenVINO computes in {ran}", stacklevel=3)
        self.executed_precision = f"int8 convolutions, rest {ran}" if self.dtype in QUANTISED else ran

    def compile(self, size: int, **properties: Any) -> Any:
        """Return the compiled model for a batch size, with further OpenVINO properties."""
        model = self._model.clone()
        model.reshape([size, 3, self.in_size, self.in_size])
        scale_rgb_weights(model)
        return self._core.compile_model(model, "CPU", {**self._properties, **properties})

    def _for_batch(self, size: int) -> Any:
        if size not in self._compiled:
            self._compiled[size] = self.compile(size)
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


CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": CUDA, "tensorrt": TENSORRT}
Provider = tuple[str, dict[str, Any]]


def execution_providers(device: str, dtype: str) -> list[Provider]:
    """Return ONNX Runtime's providers with their options, in order of preference.

    Float32 stays float32 on CUDA (its default is TF32, with 10 bits of mantissa). TensorRT takes fp16 and
    int8 graphs only if told to; with fp16 it may round float32 layers too, which the build's parity check
    sees. CUDA stands behind TensorRT, for operators that TensorRT leaves, where it is present.

    Raises
    ------
    RuntimeUnavailable
        If this ONNX Runtime has no such provider.
    """
    import onnxruntime

    wanted, present = PROVIDERS[device], onnxruntime.get_available_providers()
    if wanted not in present:
        raise RuntimeUnavailable(
            f"onnxruntime has no {wanted} here (present: {', '.join(present)}); "
            "install onnxruntime-gpu or use device='cpu'"
        )
    options: dict[str, dict[str, Any]] = {
        CUDA: {"use_tf32": 0},
        TENSORRT: {"trt_fp16_enable": dtype == "fp16", "trt_int8_enable": dtype == "int8"},
    }
    behind = [CUDA] if device == "tensorrt" and CUDA in present else []
    return [(name, options.get(name, {})) for name in (wanted, *behind)]


class OnnxRuntimeRuntime(Runtime):
    """ONNX Runtime on the CPU or, where its GPU build is installed, on CUDA or TensorRT."""

    backend = "onnxruntime"

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        super().__init__(folder, manifest, threads, device)
        self._providers = execution_providers(device, self.dtype)
        self._session = self._open(self._options(threads))
        self._input = self._session.get_inputs()[0].name
        rounded = "fp16 storage, computed in f32" if self.dtype == "fp16" and device == "cpu" else self.dtype
        self.executed_precision = rounded
        if self.dtype == "int8" and device != "tensorrt":
            form = manifest.get("quantisation", {}).get("forms", {}).get(self.path.name)
            fused = form == "qoperator"
            self.executed_precision = (
                "int8 convolutions, rest f32" if fused else "f32 on values rounded to int8"
            )

    @classmethod
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if this ONNX Runtime has no provider for ``device``."""
        execution_providers(device, "fp32")

    def _options(self, threads: int | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        return options

    def _open(self, options: Any) -> Any:
        """Open a session; refuse one that fell back to another provider, as ONNX Runtime does in silence."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(self.path), options, providers=self._providers)
        wanted, ran = self._providers[0][0], session.get_providers()
        if ran[0] != wanted:
            raise RuntimeUnavailable(
                f"onnxruntime could not start {wanted} and fell back to {', '.join(ran)}: are the libraries "
                f"of {self.device} installed, in the versions that this onnxruntime needs? "
                "device='cpu' needs none"
            )
        return session

    def profiled(self, prefix: str) -> Any:
        """Return a session that profiles into a file whose name starts with ``prefix``."""
        options = self._options(self.threads)
        options.enable_profiling = True
        options.profile_file_prefix = prefix
        return self._open(options)

    def _run(self, batch: FloatArray) -> FloatArray:
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)

    def executed_types(self) -> dict[str, int]:
        """Count from the graph that ONNX Runtime really executes, after its own optimisation.

        Empty under TensorRT: ONNX Runtime cannot write a graph whose nodes TensorRT compiled.
        """
        if self.device == "tensorrt":
            return {}
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            options = self._options(None)
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            self._open(options)
            graph = onnx.load(options.optimized_model_filepath).graph
        names = {"QLinearConv": "i8", "ConvInteger": "i8"}
        counts: dict[str, int] = {}
        for node in graph.node:
            if "Conv" in node.op_type:
                kind = names.get(node.op_type, "f32")
                counts[kind] = counts.get(kind, 0) + 1
        return counts
