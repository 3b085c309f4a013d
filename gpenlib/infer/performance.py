"""Latency of a runtime."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.files import package_versions, progress, read_json, write_json
from gpenlib.images import FloatArray
from gpenlib.infer.runtime import (
    BACKENDS,
    DEVICES,
    ONNX_BACKENDS,
    OnnxRuntimeRuntime,
    OpenVinoRuntime,
    Runtime,
    RuntimeUnavailable,
    choose_backend,
    open_runtime,
    read_artefact,
    runs,
    runtime_class,
    served_by,
)

# ----------------------------------------------------------------------
# Latency of a runtime.


def interleaved_times(
    calls: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1, lead_in: int = 0
) -> dict[str, list[float]]:
    """Return ``repeats`` times in ms per labelled call, taken in turns.

    Turns alternate between forward and reverse order, so that no call always follows the same other one.

    Parameters
    ----------
    calls : mapping of label to callable
    repeats : int
    warm_up : int
        Turns that are not timed.
    lead_in : int
        Calls that are not timed before each one that is. Where the calls belong to several libraries, the
        threads of the one before may still be spinning, and the caches hold its data.

    Raises
    ------
    ValueError
        If ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    times: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(warm_up + repeats):
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for label in order:
            for _ in range(lead_in):
                calls[label]()
            started = time.perf_counter()
            calls[label]()
            if turn >= warm_up:
                times[label].append((time.perf_counter() - started) * 1000)
    return times


def interleaved_latency(
    runtimes: Mapping[str, Runtime], repeats: int = 15, warm_up: int = 2, batch_size: int = 1
) -> list[dict[str, Any]]:
    """Time several runtimes in turn, so that noise on the machine hits all alike.

    Parameters
    ----------
    runtimes : mapping of label to Runtime
    repeats : int
        Timed calls each.
    warm_up : int
        Untimed calls each, before.
    batch_size : int

    Returns
    -------
    list of dict
        ``label``, ``backend``, ``dtype``, ``executed_precision``, ``batch_size``, ``median_ms``, ``p10_ms``,
        ``p90_ms`` (per call), and ``times_ms``.
    """
    rng = np.random.default_rng(0)
    batches = {
        label: rng.uniform(-1, 1, (batch_size, 3, runtime.in_size, runtime.in_size)).astype(np.float32)
        for label, runtime in runtimes.items()
    }
    times = interleaved_times(
        {label: partial(runtime, batches[label]) for label, runtime in runtimes.items()}, repeats, warm_up
    )
    return [
        {
            "label": label,
            "backend": runtime.backend,
            "dtype": runtime.dtype,
            "executed_precision": runtime.executed_precision,
            "batch_size": batch_size,
            "median_ms": statistics.median(times[label]),
            "p10_ms": float(np.percentile(times[label], 10)),
            "p90_ms": float(np.percentile(times[label], 90)),
            "times_ms": times[label],
        }
        for label, runtime in runtimes.items()
    ]


# ----------------------------------------------------------------------
# Choose the backend that is fastest on this machine, by measuring.

REPEATS = 5


def auto_candidates(dtype: str, device: str = "cpu", also: Iterable[str] = ()) -> list[str]:
    """Return the backends among which ``auto`` measures, those that the machine lacks left out.

    On the CPU these are the readers of ``model.onnx``, which every artefact holds; PyTorch's take part if
    named in ``also``. On a GPU all take part, because ONNX Runtime's GPU build is often not installed.

    Raises
    ------
    RuntimeUnavailable
        If none is left, with the reason of each.
    """
    choose_backend("auto", dtype, device)  # refuses what no backend runs at all
    pool = {*(ONNX_BACKENDS if device == "cpu" else BACKENDS), *also}
    found, reasons = [], []
    for name in BACKENDS:
        if name not in pool or not runs(name, dtype, device):
            continue
        try:
            runtime_class(name).check_device(device)
            found.append(name)
        except RuntimeUnavailable as error:
            reasons.append(f"{name}: {error}")
    if not found:
        raise RuntimeUnavailable(f"no backend can run {dtype} on {device} here; {'; '.join(reasons)}")
    return found


def fastest_backend(
    folder: str | Path,
    dtype: str,
    device: str = "cpu",
    candidates: Sequence[str] = BACKENDS,
    repeats: int = REPEATS,
) -> tuple[str, str, list[dict[str, Any]]]:
    """Time the backends that serve an artefact, on this machine at batch size 1, and return the fastest.

    Parameters
    ----------
    folder : path
        An artefact folder.
    dtype : str
        That of the artefact.
    device : {"cpu", "cuda", "tensorrt"}
    candidates : sequence of str
        Those that do not serve the folder or do not run ``dtype`` on ``device`` are passed over.
    repeats : int
        Timed calls each, in turn, after one that is not timed.

    Returns
    -------
    (str, str, list of dict)
        The backend, the reason in words, and one row per timed backend, fastest first: ``backend``,
        ``median_ms``, ``times_ms``. With a single candidate nothing is timed and there are no rows.

    Raises
    ------
    ValueError
        If ``dtype`` is not the artefact's.
    RuntimeUnavailable
        If no candidate is left.
    """
    manifest = read_artefact(Path(folder))
    if manifest["dtype"] != dtype:
        raise ValueError(f"dtype={dtype!r}: {folder} is an artefact in {manifest['dtype']}")
    able = [name for name in candidates if name in served_by(manifest) and runs(name, dtype, device)]
    if len(able) == 1:
        return able[0], f"the only backend of this artefact that runs {dtype} on {device}", []
    runtimes: dict[str, Runtime] = {}
    missing = []
    for name in able:
        try:
            runtimes[name] = open_runtime(folder, device=device, backend=name)
        except RuntimeUnavailable as error:
            missing.append(f"{name} left out: {error}")
    if not runtimes:
        served = ", ".join(served_by(manifest))
        raise RuntimeUnavailable(
            "; ".join(
                [f"none of {', '.join(candidates)} runs {folder} on {device} (it serves {served})", *missing]
            )
        )
    rows = _timed(runtimes, repeats)
    listed = ", ".join(f"{row['backend']} {row['median_ms']:.1f} ms" for row in rows)
    reason = f"fastest measured here: {listed} (median of {repeats} interleaved calls)"
    return rows[0]["backend"], "; ".join([reason, *missing]), rows


def _timed(runtimes: dict[str, Runtime], repeats: int) -> list[dict[str, Any]]:
    """Return a row per runtime, fastest first."""
    size = next(iter(runtimes.values())).in_size
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    times = interleaved_times({name: partial(runtime, image) for name, runtime in runtimes.items()}, repeats)
    rows = [
        {"backend": name, "median_ms": statistics.median(found), "times_ms": found}
        for name, found in times.items()
    ]
    return sorted(rows, key=lambda row: row["median_ms"])


# ----------------------------------------------------------------------
# Where the time of an artefact goes, layer by layer, as the backend's own profiler reports it.

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


# ----------------------------------------------------------------------
# Several instances of a runtime at work at the same time, in a process whose memory is theirs alone.
#
# ``python -m gpenlib.infer.instances RESULT < COMBINATION`` is the child process of
# :mod:`gpenlib.infer.performance`; both files are JSON.

STATUS_FILE = Path("/proc/self/status")
# What a user can put right; anything else is a fault of a backend, and shows its traceback.
PASSED_ON: tuple[type[Exception], ...] = (ValueError, FileNotFoundError, RuntimeUnavailable)


@dataclass(frozen=True)
class Combination:
    """What one child process runs.

    Attributes
    ----------
    artefact_dir : str
    batch_size : int
        Images per call.
    instances : int
        Calls in flight at the same time, each in a Python thread and a Runtime of its own.
    threads : int
        Worker threads of each instance.
    repeats : int
        Timed calls per instance, on average.
    seconds : float
        Calls go on until this time is over, too; 0 for ``repeats`` alone.
    warm_up : int
        Untimed calls of each instance, before; without any, the first timed call may include a backend's
        preparation of a new batch size.
    backend : str or None
        None: the one that the artefact was built for.
    device : str

    Raises
    ------
    ValueError
        If a number is not whole or out of range.
    """

    artefact_dir: str
    batch_size: int = 1
    instances: int = 1
    threads: int = 1
    repeats: int = 30
    seconds: float = 0.0
    warm_up: int = 3
    backend: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "instances": 1, "threads": 1, "repeats": 1, "warm_up": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}={value!r}: must be a whole number, at least {lowest}")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"seconds={self.seconds!r}: must be 0 or more")


def run_instances(
    calls: Sequence[Callable[[], object]], repeats: int, seconds: float = 0.0, warm_up: int = 0
) -> tuple[list[float], float]:
    """Run every call over and over, all at the same time, each in a thread of its own.

    The calls share one count: a faster instance makes more of them, so that none is idle before the end.

    Parameters
    ----------
    calls : sequence of callable
        One per instance.
    repeats : int
        Timed calls per instance, on average.
    seconds : float
        Go on until this time is over, too.
    warm_up : int
        Untimed calls of each instance, before the common start.

    Returns
    -------
    (times_ms, wall_s)
        Latency of each timed call in ms, and the time from the common start to the end of the last call.
    """
    started = 0.0
    left = repeats * len(calls)
    times: list[float] = []
    ends: list[float] = []
    lock = threading.Lock()

    def start() -> None:
        nonlocal started
        started = time.perf_counter()

    gate = threading.Barrier(len(calls), action=start)

    def take() -> bool:
        nonlocal left
        with lock:
            left -= 1
            return left >= 0 or time.perf_counter() - started < seconds

    def serve(call: Callable[[], object]) -> None:
        try:
            for _ in range(warm_up):
                call()
        except BaseException:
            gate.abort()  # the others would wait for ever
            raise
        gate.wait()
        while take():
            before = time.perf_counter()
            call()
            after = time.perf_counter()
            with lock:
                times.append((after - before) * 1000)
                ends.append(after)

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(serve, call) for call in calls]
    errors = [error for future in futures if (error := future.exception())]
    if errors:  # those that only found the gate aborted tell nothing
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return times, max(ends) - started


def memory_mib(field: str) -> float:
    """Return the resident memory of this process in MiB: ``"VmRSS"`` now, ``"VmHWM"`` at its highest.

    Linux only. Not ``getrusage``: its ``ru_maxrss`` starts at that of the parent process, which may be large.
    """
    for line in STATUS_FILE.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) / 1024
    raise ValueError(f"{STATUS_FILE} has no field {field!r}")


def measure(combination: Combination, opener: Callable[..., Runtime] = open_runtime) -> dict[str, Any]:
    """Open the instances of a combination in this process, run them, and read the memory.

    Parameters
    ----------
    combination : Combination
    opener : callable
        As :func:`gpenlib.infer.open_runtime`; called once per instance.

    Returns
    -------
    dict
        ``backend``, ``dtype``, ``executed_precision``, ``times_ms``, ``wall_s``, ``base_memory_mib`` (before
        the artefact and its backend's library were loaded) and ``peak_memory_mib`` (of the host).
    """
    base = memory_mib("VmRSS")
    runtimes = [
        opener(
            combination.artefact_dir,
            threads=combination.threads,
            device=combination.device,
            backend=combination.backend,
        )
        for _ in range(combination.instances)
    ]
    first = runtimes[0]
    batch = _random_batch((combination.batch_size, 3, first.in_size, first.in_size))

    def call_of(runtime: Runtime) -> Callable[[], object]:
        return lambda: runtime(batch)

    times, wall = run_instances(
        [call_of(runtime) for runtime in runtimes],
        combination.repeats,
        combination.seconds,
        combination.warm_up,
    )
    return {
        "backend": first.backend,
        "dtype": first.dtype,
        "executed_precision": first.executed_precision,
        "times_ms": times,
        "wall_s": wall,
        "base_memory_mib": base,
        "peak_memory_mib": memory_mib("VmHWM"),
    }


def _random_batch(shape: tuple[int, ...]) -> FloatArray:
    """Return float32 in [-1, 1), made in place: temporary arrays would count as the model's memory."""
    batch = np.random.default_rng(0).random(shape, dtype=np.float32)
    batch *= 2
    batch -= 1
    return batch


def child_main() -> None:
    """Measure the combination on standard input; write the result, or what refused it, to the file named."""
    try:
        result = measure(Combination(**json.load(sys.stdin)))
    except PASSED_ON as error:
        result = {"error": type(error).__name__, "message": str(error)}
    write_json(Path(sys.argv[2]), result)


# ----------------------------------------------------------------------
# Performance test of an artefact: latency, throughput and memory over batch size, instances and threads.
#
# ``python -m gpenlib.infer.performance ARTEFACT --batch 1 4 --instances 1 2 --threads 1 2 --json FILE``
#
# The counterpart of the vendor's ``vamp`` (``-b`` batch size, ``-i`` instances) for every backend here.

CHILD = "--child"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
ENOUGH_FOR_P99 = 100  # calls; with fewer the 99th percentile lies between the two slowest
ERROR_LINES = 15
TABLE = {
    "batch_size": "batch",
    "instances": "instances",
    "threads": "threads",
    "oversubscribed": "oversubscribed",
    "calls": "calls",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "mean_ms": "mean ms",
    "images_per_s": "images/s",
    "base_memory_mib": "base MiB",
    "peak_memory_mib": "peak MiB",
}  # columns of the printed table


def performance_test(
    artefact_dir: str | Path,
    batch_sizes: Sequence[int] = (1,),
    instances: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    repeats: int = 30,
    seconds: float = 0.0,
    warm_up: int = 3,
    backend: str | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Measure every combination of batch size, instances and threads, each in a fresh process.

    Parameters
    ----------
    artefact_dir : path
        Artefact folder, as :func:`gpenlib.compile_model` writes it.
    batch_sizes : sequence of int
        Images per call.
    instances : sequence of int
        Requests in flight at the same time, each with a Runtime of its own.
    threads : sequence of int
        Worker threads of each instance.
    repeats : int
        Timed calls per instance, on average; 100 calls in all make a 99th percentile.
    seconds : float
        Calls go on until this time is over, too; 0 for ``repeats`` alone.
    warm_up : int
        Untimed calls of each instance, before.
    backend : str, optional
        Default: the one that the artefact was built for.
    device : {"cpu", "cuda", "tensorrt"}

    Returns
    -------
    list of dict
        As :func:`summary_row` gives them.

    Raises
    ------
    ValueError
        If a list is empty, or a number is not whole or out of range; nothing is run then.
    FileNotFoundError
        If the folder holds no artefact.
    RuntimeUnavailable
        If the backend cannot run the artefact's dtype on this device.
    RuntimeError
        If a process fails in another way, such as for want of memory.
    """
    for name, values in (("batch_sizes", batch_sizes), ("instances", instances), ("threads", threads)):
        if not values:
            raise ValueError(f"{name}={list(values)}: give at least one")
    combinations = [
        Combination(str(artefact_dir), size, at_once, workers, repeats, seconds, warm_up, backend, device)
        for size, at_once, workers in product(batch_sizes, instances, threads)
    ]
    return [
        summary_row(combination, measure_in_child(combination))
        for combination in progress(combinations, desc="performance", unit="combination")
    ]


def available_cores() -> int:
    """Return how many processor cores this process may run on."""
    return len(os.sched_getaffinity(0))


def summary_row(combination: Combination, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one combination.

    Parameters
    ----------
    combination : Combination
    measured : dict
        As :func:`gpenlib.infer.instances.measure` gives it.

    Returns
    -------
    dict
        ``backend``, ``dtype``, ``executed_precision``, ``device``; ``batch_size``, ``instances``,
        ``threads``, ``oversubscribed`` (more threads in all than cores); ``calls``, ``p50_ms``, ``p95_ms``,
        ``p99_ms``, ``mean_ms`` (latency of a call, linear interpolation), ``enough_for_p99`` (there were at
        least 100 calls), ``images_per_s``; ``base_memory_mib`` (resident, before the artefact and its
        backend's library were loaded), ``peak_memory_mib`` (highest resident memory of the process, on the
        host); ``wall_s`` and ``times_ms`` (every call).
    """
    times, wall = measured["times_ms"], measured["wall_s"]
    p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
    return {
        "backend": measured["backend"],
        "dtype": measured["dtype"],
        "executed_precision": measured["executed_precision"],
        "device": combination.device,
        "batch_size": combination.batch_size,
        "instances": combination.instances,
        "threads": combination.threads,
        "oversubscribed": combination.instances * combination.threads > available_cores(),
        "calls": len(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "mean_ms": sum(times) / len(times),
        "enough_for_p99": len(times) >= ENOUGH_FOR_P99,
        "images_per_s": len(times) * combination.batch_size / wall,
        "base_memory_mib": measured["base_memory_mib"],
        "peak_memory_mib": measured["peak_memory_mib"],
        "wall_s": wall,
        "times_ms": times,
    }


def measure_in_child(combination: Combination) -> dict[str, Any]:
    """Measure one combination in a fresh process, so that its peak memory is its own.

    Raises
    ------
    ValueError, FileNotFoundError, RuntimeUnavailable
        As :func:`gpenlib.infer.open_runtime` raises them there.
    RuntimeError
        If the process fails in another way; the message ends with what it printed last.
    """
    # A plain process rather than multiprocessing, which would import the caller's script again.
    # -P and PYTHONPATH: this very gpenlib, whatever lies in the working directory.
    command = [sys.executable, "-P", "-m", "gpenlib.infer.performance", CHILD]
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [*command, str(result)],
            input=json.dumps(asdict(combination)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{_ended(combination, done.returncode)}\n{_last_lines(done.stderr)}")
        measured: dict[str, Any] = read_json(result)
    if "error" in measured:
        kinds = {kind.__name__: kind for kind in PASSED_ON}
        raise kinds[measured["error"]](measured["message"])
    return measured


def _ended(combination: Combination, code: int) -> str:
    """Return how the process of a combination ended."""
    c = combination
    name = f"batch {c.batch_size}, {c.instances} instances of {c.threads} threads"
    if code == -signal.SIGKILL:
        return f"{name}: the process was killed, most likely for want of memory; try fewer instances"
    return f"{name}: the process failed (exit status {code}):"


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-ERROR_LINES:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure an artefact, print a table, write the rows."""
    import pandas as pd

    parser = argparse.ArgumentParser(prog="python -m gpenlib.infer.performance", description=main.__doc__)
    parser.add_argument("artefact", help="artefact folder (model.onnx and manifest.json)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images per call (default: 1)")
    parser.add_argument(
        "--instances", type=int, nargs="+", default=[1], help="requests in flight at once (default: 1)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1], help="threads per instance (default: 1)"
    )
    parser.add_argument("--repeats", type=int, default=30, help="timed calls per instance (default: 30)")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long, too (default: 0)")
    parser.add_argument("--warm-up", type=int, default=3, help="untimed calls per instance (default: 3)")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the one it was built for")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and package versions here")
    o = parser.parse_args(arguments)
    try:
        counts = (o.batch, o.instances, o.threads, o.repeats, o.seconds, o.warm_up)
        rows = performance_test(o.artefact, *counts, backend=o.backend, device=o.device)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}")
        return 1
    first = rows[0]
    print(
        f"{first['backend']}, {first['dtype']} (ran in {first['executed_precision']}), {first['device']}, "
        f"{available_cores()} cores"
    )
    print(pd.DataFrame(rows)[list(TABLE)].rename(columns=TABLE).round(2).to_string(index=False))
    if not all(row["enough_for_p99"] for row in rows):
        print(f"p99: fewer than {ENOUGH_FOR_P99} calls, so it lies between the two slowest; raise --repeats")
    if o.json:
        content = {"artefact": o.artefact, "cores": available_cores(), "packages": package_versions()}
        print(f"rows: {write_json(o.json, content | {'rows': rows})}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child_main()
    else:
        raise SystemExit(main())
