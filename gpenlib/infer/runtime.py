"""Run an artefact: one callable over the backends, float32 [N, 3, S, S] in [-1, 1] -> same."""

from __future__ import annotations

import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.export import (
    DeployGpen,
    mixed_precision,
    read_mixed_precision,
    save_torchscript,
    write_mixed_precision,
)
from gpenlib.export.graphs import TOLERANCE
from gpenlib.files import choice_error, read_json
from gpenlib.images import RGB_CHANNELS, FloatArray

# ----------------------------------------------------------------------
# Run an artefact: one callable over the backends, float32 [N, 3, S, S] in [-1, 1] -> same.

DTYPES = ("fp32", "bf16", "fp16", "int8", "int8_bf16")
QUANTISED = ("int8", "int8_bf16")  # int8 convolutions; the rest in float32 or bfloat16
DEVICES = ("cpu", "cuda", "tensorrt")  # tensorrt: ONNX Runtime's way to the same GPU
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

# What each backend can execute, by device. onnxruntime has no bf16 convolution on the CPU. PyTorch's fp16
# convolutions work on CPUs, but took twenty times as long as its float32 ones on one without fp16 arithmetic.
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "openvino": {"cpu": DTYPES},
    "onnxruntime": dict.fromkeys(DEVICES, ("fp32", "fp16", "int8")),
    "torch": {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")},
    "torchscript": {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")},
}
BACKENDS = tuple(SUPPORTED)
FILES = {  # what each backend opens
    "openvino": MODEL_FILE,
    "onnxruntime": MODEL_FILE,
    "torch": "model.safetensors",
    "torchscript": "model.pt",
}
ONNX_BACKENDS = tuple(name for name, file in FILES.items() if file == MODEL_FILE)


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
    if runs(backend, dtype, device):
        return
    able = [f"{name} ({', '.join(by[device])})" for name, by in SUPPORTED.items() if device in by]
    raise RuntimeUnavailable(
        f"{backend} does not run {dtype} on {device}; available on {device}: {', '.join(able)}"
    )


def runs(backend: str, dtype: str, device: str) -> bool:
    """Return whether a known backend can run ``dtype`` on ``device``."""
    return dtype in SUPPORTED[backend].get(device, ())


def _check_names(dtype: str, device: str) -> None:
    """Raise ValueError for an unknown dtype or device."""
    for what, value, allowed in (("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if value not in allowed:
            raise ValueError(choice_error(what, value, allowed))


def choose_backend(backend: str, dtype: str, device: str = "cpu") -> tuple[str, str]:
    """Resolve ``"auto"`` by a fixed order, without opening anything; return (backend, reason).

    :func:`gpenlib.infer.choice.fastest_backend` measures instead.
    """
    if backend != "auto":
        check_support(backend, dtype, device)
        return backend, "asked for"
    _check_names(dtype, device)
    for name in BACKENDS:
        if runs(name, dtype, device):
            return name, f"first backend that runs {dtype} on {device}"
    raise RuntimeUnavailable(f"no backend runs {dtype} on {device}")


class Runtime(ABC):
    """A loaded artefact. Call it with a float32 batch [N, 3, in_size, in_size] in [-1, 1].

    Attributes
    ----------
    backend, dtype, device : str
    path : Path
        The model file.
    in_size, out_size : int
    executed_precision : str
        What the processor really computes in, as the backend reports it.
    """

    backend: str
    executed_precision: str

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        self.path = folder / file_for(manifest, self.backend)
        self.threads = threads
        self.device = device
        self.dtype: str = manifest["dtype"]
        self.in_size: int = manifest["in_size"]
        self.out_size: int = manifest["out_size"]

    @classmethod  # noqa: B027 (not abstract: a backend for the CPU alone needs nothing)
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if the machine lacks what this backend needs for ``device``."""

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


def runtime_class(backend: str) -> type[Runtime]:
    """Return the class behind a backend's name."""
    return {
        kind.backend: kind for kind in (OpenVinoRuntime, OnnxRuntimeRuntime, TorchRuntime, TorchScriptRuntime)
    }[backend]


def served_by(manifest: Mapping[str, Any]) -> list[str]:
    """Return the backends that can open an artefact, from its manifest."""
    if "files" in manifest:
        return list(manifest["files"])
    return serves(manifest["dtype"], [])  # written before there were others


def file_for(manifest: Mapping[str, Any], backend: str) -> str:
    """Return the name of the file that a backend opens in an artefact folder."""
    return str(manifest.get("files", FILES)[backend])


def serves(dtype: str, extra: Iterable[str]) -> list[str]:
    """Return the backends that open an artefact of ``dtype`` with the files of ``extra`` beside its ONNX."""
    named = {*ONNX_BACKENDS, *extra}
    return [name for name in BACKENDS if name in named and any(dtype in d for d in SUPPORTED[name].values())]


def open_runtime(
    artefact_dir: str | Path, threads: int | None = None, device: str = "cpu", backend: str | None = None
) -> Runtime:
    """Open an artefact folder written by :func:`gpenlib.compile_model`.

    Parameters
    ----------
    artefact_dir : path
        Holds ``model.onnx``, ``manifest.json`` and, for PyTorch, ``model.safetensors`` or ``model.pt``.
    threads : int, optional
        Worker threads; default is the backend's own choice.
    device : {"cpu", "cuda", "tensorrt"}
    backend : {"openvino", "onnxruntime", "torch", "torchscript", "auto"}, optional
        Default: the one that the artefact was built for. ``"auto"``: the first that serves the folder.

    Returns
    -------
    Runtime
        Callable: float32 [N, 3, S, S] in [-1, 1] -> same range, any N.

    Raises
    ------
    FileNotFoundError
        If the folder holds no artefact.
    RuntimeUnavailable
        If the backend cannot run this dtype on this device, the folder has no file for it, or the folder was
        built for the vendor's chip.
    """
    folder = Path(artefact_dir)
    manifest = read_artefact(folder)
    served, dtype = served_by(manifest), manifest["dtype"]
    chosen = backend or manifest["backend"]
    if chosen == "auto":
        able = [name for name in served if runs(name, dtype, device)]
        chosen = able[0] if able else choose_backend("auto", dtype, device)[0]
    check_support(chosen, dtype, device)
    if chosen not in served:
        raise RuntimeUnavailable(
            f"{folder} serves {', '.join(served)}; {chosen} needs {FILES[chosen]}: build the artefact with "
            f"backend.also: [{chosen}]"
        )
    file = folder / file_for(manifest, chosen)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; build the artefact with compile_model")
    kind = runtime_class(chosen)
    kind.check_device(device)
    return kind(folder, manifest, threads, device)


def read_artefact(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artefact folder; raises as :func:`open_runtime`."""
    for name in (MANIFEST_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            if name == MODEL_FILE and read_json(folder / MANIFEST_FILE).get("kind") == "vendor-build":
                raise RuntimeUnavailable(
                    f"{folder}: built for the vendor's chip (tvm_vacc); run it with the vendor's runtime"
                )
            raise FileNotFoundError(
                f"{folder}: not an artefact folder (no {name}); make one with compile_model"
            )
    return dict(read_json(folder / MANIFEST_FILE))


# ----------------------------------------------------------------------
# Graph changes that hold for one batch size only, made when OpenVINO loads a file.
#
# The files keep an open batch; OpenVINO is given a graph of fixed shape anyway (static shapes run faster).


def scale_rgb_weights(model: Any) -> int:
    """Let the style scale the weights of ToRGB layers instead of their input, in place.

    ``conv(style * x, w) = conv(x, style * w)`` for one image: the style then multiplies 3 C numbers and not
    C H W, which saves reading and writing the largest maps once more. With several images each would need
    weights of its own. Layers with more outputs are left alone: OpenVINO prepares their weights once, when it
    compiles, and can do so for constants only.

    Parameters
    ----------
    model : openvino.Model
        Of fixed shape.

    Returns
    -------
    int
        Number of convolutions changed; none unless the batch size is 1.
    """
    from openvino import opset13

    changed = 0
    for node in model.get_ordered_ops():
        found = _scaled_rgb_input(node)
        if found is None:
            continue
        data, style = found
        weights = opset13.multiply(node.input_value(1), style)
        node.input(0).replace_source_output(data)
        node.input(1).replace_source_output(weights.output(0))
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _scaled_rgb_input(node: Any) -> tuple[Any, Any] | None:
    """Return map and style of a ToRGB convolution on a scaled map of one image."""
    if node.get_type_name() != "Convolution" or node.input_value(1).get_shape()[0] != RGB_CHANNELS:
        return None
    scale = node.input_value(0).get_node()
    if scale.get_type_name() != "Multiply":
        return None
    shape = list(node.input_value(0).get_shape())
    inputs = [scale.input_value(0), scale.input_value(1)]
    for data, style in (inputs, inputs[::-1]):
        if list(data.get_shape()) == shape and list(style.get_shape()) == [1, shape[1], 1, 1]:
            return data, style
    return None


# ----------------------------------------------------------------------
# Runtimes that read ``model.onnx``: OpenVINO and ONNX Runtime.


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


# ----------------------------------------------------------------------
# What an artefact folder holds for PyTorch's backends.

# How far the trace may lie from its module (see assert_parity): other kernels round elsewhere.
TRACE_TOLERANCE = {"fp32": TOLERANCE, "bf16": 0.1, "fp16": 0.02}


def write_torch_files(
    model: Gpen | DeployGpen, dtype: str, folder: str | Path, backends: Iterable[str]
) -> list[Path]:
    """Write what the PyTorch backends among ``backends`` read; others are passed over.

    Parameters
    ----------
    model : Gpen or DeployGpen
    dtype : {"fp32", "bf16", "fp16"}
    folder : path
        Gets ``model.safetensors`` for ``torch`` (the weights of the deploy form; the network's configuration
        is in the manifest) and ``model.pt`` for ``torchscript`` (the frozen trace, for any batch size).
    backends : iterable of str

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ValueError
        If there is something to write and ``dtype`` is another one.
    ParityError
        If the reloaded trace and the module disagree.
    """
    wanted = {name: Path(folder) / FILES[name] for name in ("torch", "torchscript") if name in set(backends)}
    if not wanted:
        return []
    module = mixed_precision(model, dtype).cpu()
    if "torch" in wanted:
        write_mixed_precision(module, wanted["torch"])
    if "torchscript" in wanted:
        if dtype == "fp16" and torch.cuda.is_available():
            module.cuda()  # processors without fp16 arithmetic take many times as long for the trace's check
        save_torchscript(module, wanted["torchscript"], TRACE_TOLERANCE[dtype])
    return list(wanted.values())


# ----------------------------------------------------------------------
# Runtimes in PyTorch: the deploy form as a module (``torch``) or traced (``torchscript``).

Call = Callable[[Tensor], Tensor]
GRAPH_WARM_UPS = 3
TYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class TorchBase(Runtime):
    """What both have in common: one prepared call per batch size, on CUDA a recorded graph."""

    warm_ups = 0  # calls on the CPU until it runs at full speed for a new batch size

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        super().__init__(folder, manifest, threads, device)
        self._module = self._load(self.path, manifest)
        self._calls: dict[int, Call] = {}
        self.executed_precision = self._precision()

    @classmethod
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if this PyTorch sees no GPU."""
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailable(
                f"PyTorch {torch.__version__} sees no CUDA device here; install its CUDA build on a machine "
                "with a GPU, or use device='cpu'"
            )

    @abstractmethod
    def _load(self, path: Path, manifest: dict[str, Any]) -> nn.Module:
        """Return the module on the device."""

    @abstractmethod
    def _weight_types(self) -> list[torch.dtype]:
        """Return the type of every convolution's weight."""

    def _run(self, batch: FloatArray) -> FloatArray:
        with torch.inference_mode(), number_of_threads(self.threads):
            output = self._for_batch(len(batch))(torch.tensor(batch))
        return output.numpy()

    def _for_batch(self, size: int) -> Call:
        """Return the call for a batch size, prepared when it is first needed."""
        if size not in self._calls:
            example = torch.zeros(size, 3, self.in_size, self.in_size, device=self.device)
            if self.device == "cuda":
                self._calls[size] = record_cuda_graph(self._module, example)
            else:
                warm_up(self._module, example, self.warm_ups)
                self._calls[size] = self._module
        return self._calls[size]

    def executed_types(self) -> dict[str, int]:
        """Count by the type of the weights, which is what a convolution's kernel reads."""
        return dict(Counter(TYPE_NAMES[found] for found in self._weight_types()))

    def _precision(self) -> str:
        """Return the type of the convolutions, and what a processor without bf16 makes of it."""
        name = "+".join(sorted(self.executed_types()))
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older PyTorch
        x86 = capabilities.get("architecture") == "x86_64"
        if name == "bf16" and self.device == "cpu" and x86 and not capabilities.get("avx512_bf16"):
            return "bf16 storage, computed in f32"
        return name


class TorchRuntime(TorchBase):
    """The deploy form as a PyTorch module, with weights from ``model.safetensors``."""

    backend = "torch"

    def _load(self, path: Path, manifest: dict[str, Any]) -> nn.Module:
        config = GpenConfig(**manifest["network"])
        return read_mixed_precision(path, config, self.dtype).to(self.device)

    def _weight_types(self) -> list[torch.dtype]:
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        return [part.weight.dtype for part in self._module.modules() if isinstance(part, convolutions)]


class TorchScriptRuntime(TorchBase):
    """The frozen trace ``model.pt``; it needs PyTorch alone, not this package."""

    backend = "torchscript"
    warm_ups = 2  # it profiles the first call of a shape and optimises in the second

    def _load(self, path: Path, manifest: dict[str, Any]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch marks TorchScript as superseded by torch.export
            module: nn.Module = torch.jit.load(str(path), map_location=self.device)
        return module

    def _weight_types(self) -> list[torch.dtype]:
        graph: Any = self._module.graph
        nodes = graph.findAllNodes("aten::_convolution", recurse=True)
        return [list(node.inputs())[1].node().t("value").dtype for node in nodes]


def warm_up(module: nn.Module, example: Tensor, calls: int) -> None:
    """Call ``module`` so many times for what it sets up on the way."""
    for _ in range(calls):
        module(example)


def record_cuda_graph(module: nn.Module, example: Tensor) -> Call:
    """Record ``module`` as a CUDA graph for the example's shape; return a call from CPU batch to CPU output.

    A graph replays all kernels with one launch, which matters because small feature maps leave the GPU
    waiting for Python. It reads and writes fixed memory: batches are copied in, the output is copied out.

    Parameters
    ----------
    module : Module
        On the GPU, in eval mode.
    example : Tensor
        On the GPU; becomes the graph's input buffer.
    """
    # Float32 means float32, as on the CPU: cuDNN's default is TF32 with 10 bits of mantissa.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        # torch.cuda.graph asks for warm-up on a stream of its own: libraries set themselves up and cuDNN
        # picks its algorithms, neither of which may happen during recording.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            warm_up(module, example, GRAPH_WARM_UPS)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(example)

    def replay(batch: Tensor) -> Tensor:
        example.copy_(batch)
        graph.replay()
        return output.cpu()  # waits for the graph

    return replay


@contextmanager
def number_of_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` threads (None: leave it); the setting is the process's, so it is put back."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)
