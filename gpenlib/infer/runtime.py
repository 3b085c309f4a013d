"""Run an artefact: one callable over four backends, float32 [N, 3, S, S] in [-1, 1] -> same range."""

from __future__ import annotations

import math
import re
import sys
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.inspect import live_activations
from gpenlib.export.deploy import DeployGpen, mixed_precision, read_mixed_precision, write_mixed_precision
from gpenlib.export.graphs import TOLERANCE, save_torchscript
from gpenlib.files import choice_error, whole_number
from gpenlib.images import MOST_CHROMA, RGB_CHANNELS, FloatArray, form, scale_chroma
from gpenlib.infer.artefact import MANIFEST_FILE, MODEL_FILE, Artefact, RuntimeUnavailable, read_artefact
from gpenlib.jobs import AHEAD, ahead, keep_memory, processor, return_memory
from gpenlib.settings import BACKENDS, DEVICES, DTYPES, MOST_THREADS, QUANTISED

MOST_REPEATS = 1_000_000


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device; on the CPU within the limit of a container, too."""
    if device != "cpu" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + kept)
    available = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    free = int(available[1]) << 10 if available else 1 << 62
    with suppress(OSError, ValueError):  # no container, or none with a limit
        limit, stat = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.stat"))
        free = min(free, int(limit) - sum(map(int, re.findall(r"^anon (\d+)", stat, re.MULTILINE))))
    return max(free, 0)


def random_batch(size: int, side: int) -> FloatArray:
    """Return a seeded batch for timing, float32 [size, 3, side, side] in [-1, 1)."""
    batch = np.random.default_rng(0).random((size, RGB_CHANNELS, side, side), dtype=np.float32)
    np.multiply(batch, 2, out=batch)  # in place: temporary arrays would count as the model's memory
    return np.subtract(batch, 1, out=batch)


# Seconds for which calls are untimed after another's: threads of ONNX Runtime spin on for some 50 ms, in
# which a face of 128 px took OpenVINO 24 ms in place of 15.
LEAD_IN = 0.06


def interleaved_times(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    seconds: float = math.inf,
    lead_in: float = LEAD_IN,
) -> dict[str, list[float]]:
    """Return an even number of times in ms per call, ``repeats`` or one more, taken in turns.

    Every timed call follows untimed ones of its own, at least one and for so long as ``lead_in``: threads of
    another library may still spin, and the caches hold another network. Every second turn goes backwards, so
    that no call always follows the same. After so many ``seconds`` two turns are enough.
    """
    whole_number("repeats", repeats, 1, MOST_REPEATS)
    times: dict[str, list[float]] = {label: [] for label in calls}
    begun = time.perf_counter()
    for turn in range(warm_up + repeats + repeats % 2):
        timed = turn - warm_up
        if timed >= 2 and timed % 2 == 0 and time.perf_counter() - begun > seconds:
            break
        for label in list(calls)[:: -1 if turn % 2 else 1]:
            entered = time.perf_counter()
            calls[label]()
            while time.perf_counter() - entered < lead_in:
                calls[label]()
            started = time.perf_counter()
            calls[label]()
            if timed >= 0:
                times[label].append((time.perf_counter() - started) * 1000)
    return times


# By backend: the module, how the file is opened, how it is called; of others gpenlib opens the folder
RECIPES = {
    "openvino": (
        "openvino",
        'openvino.Core().compile_model("{}", "CPU", {{"INFERENCE_PRECISION_HINT": "{}"}})',
        "network(batch)[0]",
    ),
    "onnxruntime": (
        "onnxruntime", 'onnxruntime.InferenceSession("{}")', 'network.run(None, {"input": batch})[0]'
    ),
    "torchscript": (
        "torch", 'torch.jit.load("{}").eval()', "network(torch.from_numpy(batch)).detach().float().numpy()"
    ),
}  # fmt: skip


def recipe(folder: str | Path, task: str | None = None) -> str:
    """Return the lines of Python that run an artefact on a picture of an aligned face."""
    artefact, folder = read_artefact(Path(folder)), Path(folder).resolve()
    path = folder / served_by(artefact).get(artefact.backend, "")
    gpenlib_opens = "gpenlib", 'gpenlib.open_runtime("{}")', "network(batch)"
    module, opened, called = RECIPES.get(artefact.backend, gpenlib_opens)
    opened = opened.format(path if artefact.backend in RECIPES else folder, openvino_hint(artefact.dtype))
    read = 'cv2.imread("face.png")'
    code = "GRAY2RGB" if task == "color" else "BGR2RGB"
    read = f"cv2.cvtColor({read}, cv2.COLOR_BGR2GRAY)" if task == "color" else read
    return f"""import cv2, numpy as np, {module}
network = {opened}
face = cv2.cvtColor({read}, cv2.COLOR_{code})
face = cv2.resize(face, ({artefact.in_size}, {artefact.in_size}), interpolation=cv2.INTER_AREA)
batch = face.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1  # [1, 3, S, S], RGB in [-1, 1]
levels = ({called}[0].transpose(1, 2, 0) + 1) * 127.5
cv2.imwrite("restored.png", levels.round().clip(0, 255).astype(np.uint8)[..., ::-1])"""


class Runtime(ABC):
    """A loaded artefact. Call it with a float32 batch [N, 3, in_size, in_size] in [-1, 1].

    ``chroma`` multiplies the chroma of its answers (:func:`gpenlib.images.scale_chroma`); 1 leaves them.
    Any thread may call it, one is served at a time: what shall compute at the same time needs a runtime each.
    """

    backend: ClassVar[str]
    chroma = 1.0
    executed_precision: str  # what the processor really computes in, as the backend reports it
    prepare: Callable[..., Any]  # by batch size, what runs it; only of backends that need something for each

    def __init__(self, path: Path, artefact: Artefact, threads: int | None, device: str) -> None:
        self.path, self.threads, self.device = path, threads, device
        self.dtype: str = artefact.dtype
        self.in_size, self.out_size, self.task = artefact.in_size, artefact.out_size, artefact.task
        self._turn = threading.Lock()  # OpenVINO refuses a call while another is at work
        self._prepared: dict[int, Any] = {}
        self._fitting = 1  # the largest batch that was found to fit into memory
        self._image_bytes = 4 * RGB_CHANNELS * (self.in_size**2 + self.out_size**2)
        with suppress(TypeError, ValueError):  # older manifests do not describe the network
            # Twice what has to be alive: the backends took 2.3 to 4.3 times as much for every further image.
            steps = live_activations(GpenConfig(**artefact.network))
            self._image_bytes += 2 * max(step.total_bytes for step in steps)

    def check_batch(self, size: int, images: int | None = None, at_once: int = 1) -> None:
        """Raise ValueError unless a batch of the ``images`` that there are fits into memory."""
        whole_number("batch_size", size, 1)
        size = min(size, images or size)
        if size * at_once <= self._fitting:
            return
        free = free_memory(self.device)
        most = max(1, free // (self._image_bytes * at_once))
        if size > most:
            need, has = (f"{n / 2**30:.1f} GiB" for n in (size * self._image_bytes * at_once, free))
            told = f"{size} images of {self.out_size} px take {need} of memory and {has} are free"
            raise ValueError(f"batch_size={size}: {told}; at most {most} fit")
        self._fitting = size * at_once

    @classmethod  # noqa: B027 (not abstract: a backend for the CPU alone needs nothing)
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if the machine lacks what this backend needs for ``device``."""

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch; ValueError if it is not finite float32 [N, 3, in_size, in_size] with N >= 1."""
        side, right = self.in_size, isinstance(batch, np.ndarray) and batch.dtype == np.float32
        if not right or batch.shape[1:] != (RGB_CHANNELS, side, side) or not len(batch):
            raise ValueError(f"input {form(batch)}: expected float32 [N, 3, {side}, {side}]")
        if not np.isfinite(batch).all():
            raise ValueError("input holds NaN or infinity: give what images.to_tensor makes")
        self.check_batch(len(batch))
        with self._turn:
            output = self._run(np.ascontiguousarray(batch))
        expected = (len(batch), RGB_CHANNELS, self.out_size, self.out_size)
        if output.shape != expected:
            told = f"{self.path}: gave {output.shape}, by {MANIFEST_FILE} it is {expected}"
            raise RuntimeUnavailable(f"{told}; build the artefact anew with compile_model")
        return scale_chroma(output, self.chroma)

    def stream(self, batches: Iterable[FloatArray], in_flight: int = AHEAD + 1) -> Iterator[FloatArray]:
        """Run batches as they come, on a thread of its own, and yield the outputs in their order.

        A batch runs while the next ones are made and the outputs before it are used. Leaving early, or
        closing the iterator, ends the thread after the batch that it is at; no other runs.

        Parameters
        ----------
        batches : iterable of numpy.ndarray
            float32 [N, 3, S, S] in [-1, 1] each, any N; taken one by one, so that there may be any number.
        in_flight : int
            So many batches at most are taken, and their outputs not yet asked for: memory stays flat. 1 takes
            a batch when the output before it was used.

        Yields
        ------
        numpy.ndarray
            float32 [N, 3, out_size, out_size], of the same range.

        Raises
        ------
        ValueError
            At once if ``in_flight`` is no whole number of at least 1; in the place of a batch, behind the
            outputs before it, if that is not what a call takes. An error in making a batch is raised there,
            too. Nothing is yielded after an error.
        """
        whole_number("in_flight", in_flight, 1)
        return ahead(batches, self, in_flight - 1)

    @abstractmethod
    def _run(self, batch: FloatArray) -> FloatArray:
        """Run a checked batch."""

    def _for_batch(self, size: int) -> Any:
        """Return what runs batches of one size, prepared when the first one comes."""
        if size not in self._prepared:
            self._prepared[size] = self.prepare(size)
        return self._prepared[size]

    @abstractmethod
    def executed_types(self) -> dict[str, int]:
        """Return how many convolutions (of both kinds) execute in each precision, such as ``{"i8": 28}``."""


def scale_rgb_weights(model: Any) -> int:
    """Let the style scale the weights of ToRGB layers, not their input; return how many were changed."""
    from openvino import opset13

    # conv(style * x, w) = conv(x, style * w) for one image: 3 C products, not C H W. Layers with more outputs
    # stay: OpenVINO prepares their weights when it compiles, and can do so for constants only.
    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or node.input_value(1).get_shape()[0] != RGB_CHANNELS:
            continue
        scale, shape = node.input_value(0).get_node(), list(node.input_value(0).get_shape())
        if scale.get_type_name() != "Multiply":
            continue
        for data, style in permutations((scale.input_value(0), scale.input_value(1))):
            if list(data.get_shape()) == shape and list(style.get_shape()) == [1, shape[1], 1, 1]:
                weights = opset13.multiply(node.input_value(1), style)
                node.input(0).replace_source_output(data)
                node.input(1).replace_source_output(weights.output(0))
                changed += 1
                break
    model.validate_nodes_and_infer_types()
    return changed


def faster(calls: Mapping[str, Callable[[], object]], repeats: int = 3) -> str:
    """Return the label of the fastest call, the first of equals: noise of 5 % decides nothing."""
    shortest = {label: min(times) for label, times in interleaved_times(calls, repeats).items()}
    first, best = next(iter(shortest)), min(shortest, key=lambda label: shortest[label])
    return best if 1.05 * shortest[best] < shortest[first] else first


# OpenVINO sends usage data from a process of its own when it is imported, unless this package is missing.
cast(Any, sys.modules).setdefault("openvino_telemetry", None)


# Pinned, the threads of all runtimes in a process would share the first cores.
OPENVINO_OPTIONS: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
_IMPORTING = threading.Lock()


def load_openvino() -> Any:
    """Import OpenVINO and fill its table of NumPy types, in one thread at a time.

    Two threads whose first calls fill that table together wait for each other for ever: one holds the table
    and waits for Python's lock, the other has that lock and waits for the table.
    """
    with _IMPORTING:
        import openvino

        openvino.Type.f32.to_dtype()
    return openvino


def has_bf16() -> bool:
    """Return whether this processor computes in bf16; OpenVINO emulates it where AVX-512 alone is."""
    return "BF16" in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_hint(dtype: str) -> str:
    """Return the precision that OpenVINO is told to compute a dtype in: f32 where it would emulate bf16."""
    # OpenVINO picks bf16 by itself where the processor has it: every dtype states its precision.
    hints = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8_bf16": "bf16"}
    return "f32" if hints[dtype] == "bf16" and not has_bf16() else hints[dtype]


def open_graph(model: Any, hint: str) -> Callable[..., Any]:
    """Compile an ``onnx.ModelProto`` of fixed shapes in OpenVINO; ``hint`` is its precision: f32, bf16."""
    core = load_openvino().Core()
    network = core.read_model(model.SerializeToString())
    del model  # if it is nobody else's, its weights go before compiling copies them
    return_memory()
    compiled: Callable[..., Any] = core.compile_model(
        network, "CPU", OPENVINO_OPTIONS | {"INFERENCE_PRECISION_HINT": hint}
    )
    return compiled


class OpenVinoRuntime(Runtime):
    """OpenVINO on the CPU; compiled once per batch size, because static shapes run faster."""

    backend = "openvino"
    _half_hints: ClassVar[dict[tuple[Any, ...], str]] = {}  # measured once per process, file and threads

    def __init__(self, path: Path, artefact: Artefact, threads: int | None, device: str) -> None:
        super().__init__(path, artefact, threads, device)
        artefact.warn_of_another_processor(path)
        self._core = load_openvino().Core()
        self._model = self._core.read_model(self.path)  # kept: the file may be gone, or another, later
        self._properties = dict(OPENVINO_OPTIONS)
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        hint = openvino_hint(self.dtype)
        if hint == "f16":
            native = "FP16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            known = artefact.arithmetic.get(processor())
            hint = known or (self._half_hint() if native else "f32")  # at 512 px f16 took 1.42 s, f32 0.95
        elif hint == "f32" and "bf16" in self.dtype:  # emulated: 203 ms for a face of 128 px, f32: 71 ms
            warnings.warn("this processor has no bf16: OpenVINO computes in f32", stacklevel=3)
        self._properties["INFERENCE_PRECISION_HINT"] = hint
        ran = self._for_batch(1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.executed_precision = f"int8 convolutions, rest {ran}" if self.dtype in QUANTISED else ran

    def _half_hint(self) -> str:
        """Return the faster arithmetic for half floats, f32 or f16, on a processor that has both."""
        key = (self.path, self.path.stat().st_mtime_ns, self.threads)
        if key not in self._half_hints:
            image = random_batch(1, self.in_size)
            compiled = {hint: self.prepare(1, INFERENCE_PRECISION_HINT=hint) for hint in ("f32", "f16")}
            self._half_hints[key] = faster({hint: partial(run, image) for hint, run in compiled.items()})
            self._prepared[1] = compiled[self._half_hints[key]]
        return self._half_hints[key]

    def prepare(self, size: int, **properties: Any) -> Any:
        """Return the compiled model for a batch size, with further OpenVINO properties."""
        model = self._model.clone()
        model.reshape([size, RGB_CHANNELS, self.in_size, self.in_size])
        scale_rgb_weights(model)
        return self._core.compile_model(model, "CPU", {**self._properties, **properties})

    def _run(self, batch: FloatArray) -> FloatArray:
        return np.array(self._for_batch(len(batch))(batch)[0], dtype=np.float32)

    def executed_types(self) -> dict[str, int]:
        """Count from the execution graph; OpenVINO names s8 convolutions ``u8`` or ``i8``."""
        infos = [node.get_rt_info() for node in self._for_batch(1).get_runtime_model().get_ordered_ops()]
        layers = [(str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos]
        return dict(Counter(kind for layer, kind in layers if layer in ("Convolution", "Deconvolution")))


CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
INT8 = {True: "int8 convolutions, rest f32", False: "f32 on values rounded to int8"}  # by: is QOperator
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": CUDA, "tensorrt": TENSORRT}


def execution_providers(device: str, dtype: str) -> list[tuple[str, dict[str, Any]]]:
    """Return ONNX Runtime's providers with their options, in order of preference."""
    import onnxruntime

    provider, present = PROVIDERS[device], onnxruntime.get_available_providers()
    if provider not in present:
        told = f"onnxruntime has no {provider} here (present: {', '.join(present)})"
        raise RuntimeUnavailable(f"{told}; install onnxruntime-gpu or use device='cpu'")
    options: dict[str, dict[str, Any]] = {
        CUDA: {"use_tf32": 0},  # float32 stays float32: TF32, the default, has 10 bits of mantissa
        # With fp16 it may round float32 layers, too; the build's parity check sees that.
        TENSORRT: {"trt_fp16_enable": dtype == "fp16", "trt_int8_enable": dtype == "int8"},
    }
    behind = [CUDA] if device == "tensorrt" and CUDA in present else []  # for operators that TensorRT leaves
    return [(name, options.get(name, {})) for name in (provider, *behind)]


class OnnxRuntimeRuntime(Runtime):
    """ONNX Runtime on the CPU or, where its GPU build is installed, on CUDA or TensorRT."""

    backend = "onnxruntime"

    def __init__(self, path: Path, artefact: Artefact, threads: int | None, device: str) -> None:
        super().__init__(path, artefact, threads, device)
        artefact.warn_of_another_processor(path)
        self._providers = execution_providers(device, self.dtype)
        self._session = self.open_session()
        self._input = self._session.get_inputs()[0].name
        self.executed_precision = self.dtype
        if self.dtype == "fp16" and device == "cpu":
            self.executed_precision = "fp16 storage, computed in f32"
        elif self.dtype == "int8" and device != "tensorrt":
            self.executed_precision = INT8[artefact.forms.get(path.name) == "qoperator"]

    @classmethod
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if this ONNX Runtime has no provider for ``device``."""
        execution_providers(device, "fp32")

    def open_session(self, **options: Any) -> Any:
        """Open a session; refuse one that fell back to another provider, as ONNX Runtime does in silence."""
        import onnxruntime

        asked = onnxruntime.SessionOptions()
        asked.intra_op_num_threads, asked.log_severity_level = self.threads or 0, 3
        for name, value in options.items():
            setattr(asked, name, value)
        # It moves 8-bit convolutions to NHWC and what lies between them back: 5 % of the time at 512 px
        in_8_bits = self.dtype == "int8" and self.device == "cpu"
        without = {"disabled_optimizers": ["NhwcTransformer"]} if in_8_bits else {}
        session = onnxruntime.InferenceSession(str(self.path), asked, providers=self._providers, **without)
        provider, ran = self._providers[0][0], session.get_providers()
        if ran[0] != provider:
            told = f"onnxruntime could not start {provider} and fell back to {', '.join(ran)}"
            advice = f"are the libraries of {self.device} installed, in the versions that it needs?"
            raise RuntimeUnavailable(f"{told}: {advice} device='cpu' needs none")
        return session

    def _run(self, batch: FloatArray) -> FloatArray:
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)

    def executed_types(self) -> dict[str, int]:
        """Count from the graph that ONNX Runtime really executes, after its own optimisation."""
        if self.device == "tensorrt":
            return {}  # ONNX Runtime cannot write a graph whose nodes TensorRT compiled
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/optimised.onnx"
            self.open_session(optimized_model_filepath=path)
            nodes = onnx.load(path).graph.node
        names = {"QLinearConv": "i8", "ConvInteger": "i8"}
        return dict(Counter(names.get(node.op_type, "f32") for node in nodes if "Conv" in node.op_type))


Call = Callable[[Tensor], Tensor]
TYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_setting_threads = threading.Lock()


def worker_with(threads: int) -> ThreadPoolExecutor:
    """Return a thread of its own in which PyTorch computes with so many threads, for good."""
    # The setting belongs to the thread that makes it, but is the default of those that begin later: changed
    # around every call, calls at the same time would take it over, and put it back wrong.
    with _setting_threads:
        default = torch.get_num_threads()
        worker = ThreadPoolExecutor(1, thread_name_prefix="torch-runtime")
        worker.submit(torch.get_num_threads).result()  # takes the default, which would else come after ours
        worker.submit(torch.set_num_threads, threads).result()
        torch.set_num_threads(default)
    return worker


class TorchRuntime(Runtime):
    """The deploy form as a PyTorch module: one prepared call per batch size, on CUDA a recorded graph."""

    backend = "torch"
    warm_ups = 0  # calls on the CPU until it runs at full speed for a new batch size

    def __init__(self, path: Path, artefact: Artefact, threads: int | None, device: str) -> None:
        super().__init__(path, artefact, threads, device)
        if device == "cpu":
            keep_memory()  # at 512 px in float32 1.9 s in place of 3.1
        self._module, self._weight_types = self._load(artefact)
        self._worker = worker_with(threads) if threads else None
        self.executed_precision = "+".join(sorted(self.executed_types()))
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older PyTorch
        lacks = capabilities.get("architecture") == "x86_64" and not capabilities.get("avx512_bf16")
        if self.executed_precision == "bf16" and device == "cpu" and lacks:
            self.executed_precision = "bf16 storage, computed in f32"

    @classmethod
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if this PyTorch sees no GPU."""
        if device == "cuda" and not torch.cuda.is_available():
            told = f"PyTorch {torch.__version__} sees no CUDA device here; install its CUDA build"
            raise RuntimeUnavailable(f"{told} on a machine with a GPU, or use device='cpu'")

    def _load(self, artefact: Artefact) -> tuple[nn.Module, list[torch.dtype]]:
        """Return the module on the device, and the type of every convolution's weight."""
        try:
            module = read_mixed_precision(self.path, GpenConfig(**artefact.network), self.dtype)
        except (TypeError, ValueError) as error:
            where = f"{self.path.parent / MANIFEST_FILE}: network={artefact.network}"
            raise RuntimeUnavailable(f"{where}: {error}; build it anew with compile_model") from None
        module.to(self.device)
        convolutions = [p for p in module.modules() if isinstance(p, (nn.Conv2d, nn.ConvTranspose2d))]
        return module, [part.weight.dtype for part in convolutions]

    def _run(self, batch: FloatArray) -> FloatArray:
        return self._worker.submit(self._answer, batch).result() if self._worker else self._answer(batch)

    def _answer(self, batch: FloatArray) -> FloatArray:
        with torch.inference_mode():
            output: FloatArray = self._for_batch(len(batch))(torch.tensor(batch)).numpy()
        return output

    def prepare(self, size: int) -> Call:
        """Return the call for a batch size."""
        example = torch.zeros(size, RGB_CHANNELS, self.in_size, self.in_size, device=self.device)
        if self.device == "cuda":
            return record_cuda_graph(self._module, example)
        for _ in range(self.warm_ups):
            self._module(example)
        return self._module

    def executed_types(self) -> dict[str, int]:
        """Count by the type of the weights, which is what a convolution's kernel reads."""
        return dict(Counter(TYPE_NAMES[kind] for kind in self._weight_types))


class TorchScriptRuntime(TorchRuntime):
    """The frozen trace ``model.pt``; it needs PyTorch alone, not this package."""

    backend = "torchscript"
    warm_ups = 2  # it profiles the first call of a shape and optimises in the second

    def _load(self, artefact: Artefact) -> tuple[nn.Module, list[torch.dtype]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch marks TorchScript as superseded by torch.export
            module: Any = torch.jit.load(str(self.path), map_location=self.device)
        nodes = module.graph.findAllNodes("aten::_convolution", recurse=True)
        return module, [list(node.inputs())[1].node().t("value").dtype for node in nodes]


def record_cuda_graph(module: nn.Module, example: Tensor) -> Call:
    """Record ``module`` for the example's shape; return a call that replays all kernels with one launch."""
    # Float32 means float32, as on the CPU: cuDNN's default is TF32 with 10 bits of mantissa.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        # torch.cuda.graph asks for warm-up on a stream of its own: libraries set themselves up and cuDNN
        # picks its algorithms, neither of which may happen during recording.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(example)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(example)

    def replay(batch: Tensor) -> Tensor:
        example.copy_(batch)
        graph.replay()
        return output.cpu()  # waits for the graph

    return replay


class Entry(NamedTuple):
    """A backend: its class, the file that it opens, and the dtypes that it executes on each device."""

    runtime: type[Runtime]
    file: str
    dtypes: Mapping[str, tuple[str, ...]]


# onnxruntime has no bf16 convolution on the CPU. PyTorch's fp16 convolutions work on CPUs, but took twenty
# times as long as its float32 ones on one without fp16 arithmetic.
_TORCH = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
TABLE = {
    "openvino": Entry(OpenVinoRuntime, MODEL_FILE, {"cpu": DTYPES}),
    "onnxruntime": Entry(OnnxRuntimeRuntime, MODEL_FILE, dict.fromkeys(DEVICES, ("fp32", "fp16", "int8"))),
    "torch": Entry(TorchRuntime, "model.safetensors", _TORCH),
    "torchscript": Entry(TorchScriptRuntime, "model.pt", _TORCH),
}
FILES = {name: entry.file for name, entry in TABLE.items()}
ONNX_BACKENDS = tuple(name for name, file in FILES.items() if file == MODEL_FILE)


def runtime_class(backend: str) -> type[Runtime]:
    """Return the class behind a backend's name."""
    return TABLE[backend].runtime


def runs(backend: str, dtype: str, device: str) -> bool:
    """Return whether a known backend can run ``dtype`` on ``device``."""
    return dtype in TABLE[backend].dtypes.get(device, ())


def serves(dtype: str, extra: Iterable[str]) -> list[str]:
    """Return the backends that open an artefact of ``dtype`` with the files of ``extra`` beside its ONNX."""
    named = {*ONNX_BACKENDS, *extra}
    return [name for name in BACKENDS if name in named and any(runs(name, dtype, on) for on in DEVICES)]


def served_by(artefact: Artefact) -> dict[str, str]:
    """Return the file that each backend opens of an artefact."""
    files = {name: file for name, file in artefact.files.items() if name in BACKENDS}
    return files or dict.fromkeys(serves(artefact.dtype, ()), MODEL_FILE)


def choose_backend(backend: str, dtype: str, device: str = "cpu") -> tuple[str, str]:
    """Return the backend (for ``"auto"`` the first that runs it) and why, without opening anything."""
    sets = {"backend": ("auto", *BACKENDS), "dtype": DTYPES, "device": DEVICES}
    for (what, allowed), value in zip(sets.items(), (backend, dtype, device), strict=True):
        if value not in allowed:
            raise ValueError(choice_error(what, value, allowed))
    able = [name for name in BACKENDS if runs(name, dtype, device)]
    if backend in able:
        return backend, "asked for"
    if backend == "auto" and able:
        return able[0], f"first backend that runs {dtype} on {device}"
    present = [f"{name} ({', '.join(e.dtypes[device])})" for name, e in TABLE.items() if device in e.dtypes]
    refusal = "no backend runs" if backend == "auto" else f"{backend} does not run"
    raise RuntimeUnavailable(f"{refusal} {dtype} on {device}; available on {device}: {', '.join(present)}")


def check_support(backend: str, dtype: str, device: str = "cpu") -> None:
    """Raise as :func:`choose_backend` unless ``backend`` can run ``dtype`` on ``device``."""
    choose_backend(backend, dtype, device)


def open_runtime(
    artefact_dir: str | Path,
    threads: int | None = None,
    device: str = "cpu",
    backend: str | None = None,
    chroma: float = 1.0,
) -> Runtime:
    """Open an artefact folder written by :func:`gpenlib.compile_model`.

    Parameters
    ----------
    artefact_dir : path
        Holds ``model.onnx``, ``manifest.json`` and, for PyTorch, ``model.safetensors`` or ``model.pt``.
    threads : int, optional
        Worker threads, at most four per processor; default is the backend's own choice.
    device : {"cpu", "cuda", "tensorrt"}
    backend : {"openvino", "onnxruntime", "torch", "torchscript", "auto"}, optional
        Default: the one that the artefact was built for. ``"auto"``: the first that serves the folder.
    chroma : float
        Colour strength, above 0 to 4: the chroma of every pixel of an answer is multiplied by it, as far as
        the range allows, and the luma stays. 1 leaves answers as they are.

    Returns
    -------
    Runtime
        Callable: float32 [N, 3, S, S] in [-1, 1] -> same range, any N. Its method ``stream`` runs batches as
        they come.

    Raises
    ------
    ValueError
        If a name is unknown, or the number of threads out of range.
    FileNotFoundError
        If the folder holds no artefact.
    RuntimeUnavailable
        If the backend cannot run this dtype on this device, the folder has no file for it, the file or the
        manifest is not as it was built, or the folder was built for the vendor's chip.
    """
    if threads is not None:
        whole_number("threads", threads, 1, MOST_THREADS)
    if isinstance(chroma, bool) or not isinstance(chroma, (int, float)) or not 0 < chroma <= MOST_CHROMA:
        raise ValueError(f"chroma={chroma!r}: must be a number above 0, at most {MOST_CHROMA:g}")
    folder = Path(artefact_dir)
    artefact = read_artefact(folder)
    served, dtype = served_by(artefact), artefact.dtype
    chosen: str = backend or artefact.backend
    if chosen == "auto":
        able = [name for name in served if runs(name, dtype, device)]
        chosen = able[0] if able else choose_backend("auto", dtype, device)[0]
    check_support(chosen, dtype, device)
    if chosen not in served:
        told = f"{folder} serves {', '.join(served)}; {chosen} needs {FILES[chosen]}"
        raise RuntimeUnavailable(f"{told}: build the artefact with backend.also: [{chosen}]")
    file, kind = folder / served[chosen], runtime_class(chosen)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; build the artefact with compile_model")
    kind.check_device(device)
    artefact.check_hash(file)
    try:
        if file.suffix == ".onnx":
            artefact.check_graph(file)
        runtime = kind(file, artefact, threads, device)
        runtime.chroma = chroma
        return_memory()  # what reading and preparing took: an eighth of the peak
        return runtime
    except RuntimeUnavailable:
        raise
    except Exception as error:  # the backends share no type of error
        told = f"{file}: {chosen} cannot run it ({' '.join(str(error).split())[:400]})"
        raise RuntimeUnavailable(f"{told}; build the artefact anew with compile_model") from error


# How far the trace may lie from its module (see assert_parity): other kernels round elsewhere.
TRACE_TOLERANCE = {"fp32": TOLERANCE, "bf16": 0.1, "fp16": 0.02}


def write_torch_files(
    model: Gpen | DeployGpen, dtype: str, folder: str | Path, backends: Iterable[str]
) -> list[Path]:
    """Write the weights for ``torch`` and the trace for ``torchscript``, where asked; return the files."""
    targets = {name: Path(folder) / FILES[name] for name in ("torch", "torchscript") if name in set(backends)}
    if not targets:
        return []
    module = mixed_precision(model, dtype).cpu()
    if "torch" in targets:
        write_mixed_precision(module, targets["torch"])
    if "torchscript" in targets:
        if dtype == "fp16" and torch.cuda.is_available():
            module.cuda()  # processors without fp16 arithmetic take many times as long for the trace's check
        save_torchscript(module, targets["torchscript"], TRACE_TOLERANCE[dtype])
    return list(targets.values())
