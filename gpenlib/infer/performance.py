"""Time of artefacts: in turn, by layer, and under load for every backend, as the vendor's ``vamp`` has it."""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.files import package_versions, read_json, resolve_path, whole_number, write_json
from gpenlib.infer.artefact import RuntimeUnavailable, read_artefact
from gpenlib.infer.runtime import (
    LEAD_IN,
    MOST_REPEATS,
    ONNX_BACKENDS,
    OnnxRuntimeRuntime,
    OpenVinoRuntime,
    Runtime,
    choose_backend,
    interleaved_times,
    open_runtime,
    random_batch,
    runs,
    runtime_class,
    served_by,
)
from gpenlib.jobs import command, processors, progress
from gpenlib.settings import BACKENDS, DEVICES, MOST_THREADS

Row = dict[str, Any]
ENOUGH_SECONDS = 5.0  # in which the fastest backend is found
MOST_TURNS = 0.9  # share in which one has to take longer to be called slower
UNSTEADY, ATTEMPTS = 1.5, 3  # times that lie so many times apart are taken again, so often at most


def timing_row(runtime: Runtime, times: list[float], percentiles: Mapping[str, float], **fields: Any) -> Row:
    """Return a row: how a runtime computes, further fields, percentiles of the times in ms, and the times."""
    ran_as = {name: getattr(runtime, name) for name in ("backend", "dtype", "executed_precision")}
    values = np.percentile(times, list(percentiles.values())).tolist()
    return {**ran_as, **fields, **dict(zip(percentiles, values, strict=True)), "times_ms": times}


def slower(times: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether one is clearly slower than another, by the times of both in the same turns."""
    return sum(map(operator.gt, times, others)) >= MOST_TURNS * len(times)


def interleaved_latency(
    runtimes: Mapping[str, Runtime],
    repeats: int = 20,
    warm_up: int = 2,
    batch_size: int = 1,
    seconds: float = math.inf,
) -> list[Row]:
    """Return a row per runtime, timed in turns (:func:`interleaved_times`): noise hits all alike."""
    for each in runtimes.values():
        each.check_batch(batch_size)
    calls = {label: partial(each, random_batch(batch_size, each.in_size)) for label, each in runtimes.items()}
    several = len({each.backend for each in runtimes.values()}) > 1  # threads of one library do not spin on
    times = interleaved_times(calls, repeats, warm_up, seconds, LEAD_IN if several else 0)
    percentiles = {"median_ms": 50, "p10_ms": 10, "p90_ms": 90}
    return [
        {"label": label, **timing_row(each, times[label], percentiles, batch_size=batch_size)}
        for label, each in runtimes.items()
    ]


def steady_latency(
    runtimes: Mapping[str, Runtime],
    repeats: int = 20,
    batch_size: int = 1,
    earlier: Mapping[str, float] | None = None,
) -> tuple[list[Row], str]:
    """Return rows of :func:`interleaved_latency`, and "" or, in words, why they are not to be trusted.

    Where times of a runtime lie further apart than ``UNSTEADY`` fold, or so far from the ``earlier`` median
    of its label (ms), all are taken again, a few times; the attempt with the fewest doubts counts.
    """
    attempts: list[tuple[list[Row], list[str]]] = []
    while not attempts or (attempts[-1][1] and len(attempts) < ATTEMPTS):
        rows = interleaved_latency(runtimes, repeats, batch_size=batch_size)
        attempts.append((rows, timing_doubts(rows, earlier or {})))
    rows, doubts = min(attempts, key=lambda attempt: len(attempt[1]))
    return rows, f"timed on a busy machine: {'; '.join(doubts)}" if doubts else ""


def timing_doubts(rows: Iterable[Mapping[str, Any]], earlier: Mapping[str, float]) -> list[str]:
    """Return what is wrong with times of :func:`interleaved_latency`, in words."""
    doubts = []
    for row in rows:
        label, median, before = row["label"], row["median_ms"], earlier.get(row["label"], row["median_ms"])
        if (spread := row["p90_ms"] / row["p10_ms"]) > UNSTEADY:
            doubts.append(f"8 of 10 times of {label} span a factor of {spread:.1f}")
        if max(median / before, before / median) > UNSTEADY:
            doubts.append(f"{label} took {before:.1f} ms earlier, {median:.1f} ms now")
    return doubts


def auto_candidates(dtype: str, device: str = "cpu", also: Iterable[str] = ()) -> list[str]:
    """Return the backends among which ``auto`` measures: those in ``also`` and the readers of ONNX files."""
    choose_backend("auto", dtype, device)  # refuses what no backend runs at all
    # Every artefact holds model.onnx. On a GPU all: ONNX Runtime's build for it is often not installed.
    pool = {*(ONNX_BACKENDS if device == "cpu" else BACKENDS), *also}
    present, reasons = [], []
    for name in BACKENDS:
        if name in pool and runs(name, dtype, device):
            try:
                runtime_class(name).check_device(device)
                present.append(name)
            except RuntimeUnavailable as error:
                reasons.append(f"{name}: {error}")
    if not present:
        raise RuntimeUnavailable(f"no backend can run {dtype} on {device} here; {'; '.join(reasons)}")
    return present


def fastest_backend(
    folder: str | Path,
    dtype: str,
    device: str = "cpu",
    candidates: Sequence[str] = BACKENDS,
    repeats: int = 6,
) -> tuple[str, str, list[Row]]:
    """Return the fastest backend of an artefact at batch 1, why, and a row per timed one, fastest first."""
    artefact = read_artefact(Path(folder))
    if artefact.dtype != dtype:
        raise ValueError(f"dtype={dtype!r}: {folder} is an artefact in {artefact.dtype}")
    served = served_by(artefact)
    able = [name for name in candidates if name in served and runs(name, dtype, device)]
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
        nothing = f"none of {', '.join(candidates)} runs {folder} on {device} (it serves {', '.join(served)})"
        raise RuntimeUnavailable("; ".join([nothing, *missing]))
    taken = interleaved_latency(runtimes, repeats, warm_up=1, seconds=ENOUGH_SECONDS)
    timed = sorted(taken, key=lambda row: row["median_ms"])
    rows = [{name: row[name] for name in ("backend", "median_ms", "times_ms")} for row in timed]
    least = rows[0]["median_ms"]
    others = [f"{row['backend']} takes {row['median_ms'] / least:.1f} times as long" for row in rows[1:]]
    listed = ", ".join(others) or "no other opens it"
    reason = f"fastest measured here: {listed} (medians of {len(rows[0]['times_ms'])} calls in turns)"
    return rows[0]["backend"], "; ".join([reason, *missing]), rows


# Where the time of an artefact goes, layer by layer, as the backend's own profiler reports it.

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
KINDS = (*_BY_OPERATOR, "other")
KIND_OF = {operator: kind for kind, operators in _BY_OPERATOR.items() for operator in operators}
FILTER_NAME = re.compile(r"\.(blur\.conv|upsample)$")
PATH = re.compile(r"\.(conv|upsample)(\.skip|\.phase\d\d|\.wide)?$")
WARM_UP = 2
Event = tuple[str, str, str, float]  # name, operator, precision, ms
# Runs once; the events after those for warming up
Profile = tuple[Callable[[], object], Callable[[], list[Event]]]


def layer_times(
    artefacts: Mapping[str, Path], repeats: int = 5, threads: int | None = None
) -> dict[str, list[Row]]:
    """Return the median times of the layers at batch 1, slowest first, but none for PyTorch's backends."""
    whole_number("repeats", repeats, 1, MOST_REPEATS)
    profiles: dict[str, Profile] = {}
    for label, folder in artefacts.items():
        runtime = open_runtime(folder, threads)
        if isinstance(runtime, OpenVinoRuntime):
            profiles[label] = openvino_profile(runtime)
        elif isinstance(runtime, OnnxRuntimeRuntime):
            profiles[label] = onnxruntime_profile(runtime)
    for _ in range(WARM_UP + repeats):
        for run, _events in profiles.values():
            run()
    return {label: _medians(profiles[label][1]()) if label in profiles else [] for label in artefacts}


def openvino_profile(runtime: OpenVinoRuntime) -> Profile:
    """Read OpenVINO's performance counters."""
    compiled = runtime.prepare(1, PERF_COUNT=True)
    names = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        label, fused = str(node.get_friendly_name()), str(node.get_rt_info()["originalLayersNames"].value)
        # What follows .conv names a part of a layer: a half, a phase, all phases (gpenlib/compile).
        paths = filter(PATH.search, fused.split(","))
        names[label] = next(paths, label)
    request, image = compiled.create_infer_request(), random_batch(1, runtime.in_size)
    calls: list[Any] = []

    def run() -> None:
        request.infer({0: image})
        calls.append(request.get_profiling_info())

    def events() -> list[Event]:
        layers = [(node, node.real_time.total_seconds() * 1000) for call in calls[WARM_UP:] for node in call]
        return [
            (names.get(n.node_name, n.node_name), n.node_type, n.exec_type.rpartition("_")[2].lower(), ms)
            for n, ms in layers
            if ms > 0
        ]

    return run, events


def onnxruntime_profile(runtime: OnnxRuntimeRuntime) -> Profile:
    """Read ONNX Runtime's profile, which it writes to a file."""
    import onnx

    folder = tempfile.TemporaryDirectory()
    session = runtime.open_session(enable_profiling=True, profile_file_prefix=f"{folder.name}/profile")
    feed = {session.get_inputs()[0].name: random_batch(1, runtime.in_size)}

    def read() -> list[Event]:
        content = read_json(Path(session.end_profiling()))
        folder.cleanup()
        producers = {name: node for node in onnx.load(runtime.path).graph.node for name in node.output}
        calls: Counter[str] = Counter()
        events: list[Event] = []
        for event in content:
            name = event["name"].removesuffix("_kernel_time")
            if event.get("cat") != "Node" or name == event["name"]:
                continue
            calls[name] += 1
            if calls[name] > WARM_UP:
                operator, stem = event["args"]["op_name"], re.sub(r"(_nchwc|_token_\d+)+$", "", name)
                node = producers.get(stem)  # a convolution that was fused is renamed after its output
                while node is not None and "Conv" in operator and "Conv" not in node.op_type:
                    node = producers.get(node.input[0])  # the activation that was fused into it
                path = node.name if node is not None and node.name else stem
                precision = "int8" if operator == "QLinearConv" else "f32"
                events.append((path, operator, precision, event["dur"] / 1000))
        return events

    return partial(session.run, None, feed), read


def kind_of(name: str, operator: str) -> str:
    """Return the kind of a layer; depthwise filters are called Conv too by ONNX Runtime."""
    kind = KIND_OF.get(operator, "other")
    return "depthwise filter" if "convolution" in kind and FILTER_NAME.search(name) else kind


def _medians(events: Iterable[Event]) -> list[Row]:
    """Return a row per layer: the graph's ``name``, the backend's ``operator``, ``kind``, median ``ms``."""
    import pandas as pd

    layer = ["name", "operator", "precision"]
    frame = pd.DataFrame(events, columns=[*layer, "ms"])
    medians = frame.groupby(layer, sort=False)["ms"].median().reset_index()
    medians["kind"] = [kind_of(*pair) for pair in zip(medians["name"], medians["operator"], strict=True)]
    medians = medians.replace({"precision": {"i8": "int8", "u8": "int8"}})
    rows: Any = medians.sort_values("ms", ascending=False, kind="stable").to_dict("records")
    return list(rows)


# Latency, throughput and memory under load: several instances at work at the same time, every combination of
# batch size, instances and threads in a process of its own, whose memory is theirs alone.

CHILD = "--child"
MOST_SECONDS = 86_400
ENOUGH_FOR_P99 = 100  # calls; with fewer the 99th percentile lies between the two slowest
# What a user can put right; anything else is a fault of a backend, and shows its traceback.
PASSED_ON: tuple[type[Exception], ...] = (ValueError, FileNotFoundError, RuntimeUnavailable)
TABLE = {  # columns of the printed table
    "batch_size": "batch", "instances": "instances", "threads": "threads", "oversubscribed": "oversubscribed",
    "calls": "calls", "p50_ms": "p50 ms", "p95_ms": "p95 ms", "p99_ms": "p99 ms", "mean_ms": "mean ms",
    "images_per_s": "images/s", "base_memory_mib": "base MiB", "peak_memory_mib": "peak MiB",
}  # fmt: skip


@dataclass(frozen=True)
class Combination:
    """What one child process runs; ValueError if a number is not whole or out of range."""

    artefact_dir: str
    batch_size: int = 1  # images per call
    instances: int = 1  # calls in flight at the same time, each in a Python thread and a Runtime of its own
    threads: int = 1  # worker threads of each instance
    repeats: int = 30  # timed calls per instance, on average
    seconds: float = 0.0  # calls go on until this time is over, too
    warm_up: int = 3  # untimed calls of each instance, before; the first ones prepare a new batch size
    backend: str | None = None  # None: the one that the artefact was built for
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole_number("batch_size", self.batch_size, 1)
        whole_number("repeats", self.repeats, 1, MOST_REPEATS)
        whole_number("instances", self.instances, 1, MOST_THREADS)
        whole_number("threads", self.threads, 1, MOST_THREADS)
        whole_number("warm_up", self.warm_up, 0, MOST_REPEATS)
        if not isinstance(self.seconds, float | int) or not 0 <= self.seconds <= MOST_SECONDS:
            raise ValueError(f"seconds={self.seconds!r}: must be from 0 to {MOST_SECONDS}")


def run_instances(
    calls: Sequence[Callable[[], object]], repeats: int, seconds: float = 0.0, warm_up: int = 0
) -> tuple[list[float], float]:
    """Run calls in a thread each, and return their times in ms and the wall time in s after the warm-up."""
    started: list[float] = []
    spans: list[tuple[float, float]] = []
    tickets, lock = iter(range(repeats * len(calls))), threading.Lock()
    gate = threading.Barrier(len(calls), action=lambda: started.append(time.perf_counter()))

    def take() -> bool:
        with lock:  # one count for all: a faster instance makes more calls, and none is idle before the end
            return next(tickets, None) is not None or time.perf_counter() - started[0] < seconds

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
            spans.append((before, time.perf_counter()))

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(serve, call) for call in calls]
    errors = [error for future in futures if (error := future.exception())]
    if errors:  # those that only found the gate aborted tell nothing
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return [(after - before) * 1000 for before, after in spans], max(after for _, after in spans) - started[0]


def memory_mib(field: str) -> float:
    """Return the resident memory of this process in MiB: ``"VmRSS"`` now, ``"VmHWM"`` at its highest."""
    # Not getrusage: its ru_maxrss starts at that of the parent process, which may be large.
    status = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if status is None:
        raise ValueError(f"/proc/self/status has no field {field!r}")
    return int(status[1]) / 1024


def measure(combination: Combination, opener: Callable[..., Runtime] = open_runtime) -> Row:
    """Open the instances of a combination in this process, run them, and return the row."""
    base, c = memory_mib("VmRSS"), combination  # before the artefact and its backend's library are loaded
    opened = partial(opener, c.artefact_dir, threads=c.threads, device=c.device, backend=c.backend)
    runtimes = [opened() for _ in range(c.instances)]
    runtimes[0].check_batch(c.batch_size, at_once=c.instances)
    batch = random_batch(c.batch_size, runtimes[0].in_size)
    calls = [partial(runtime, batch) for runtime in runtimes]
    times, wall = run_instances(calls, c.repeats, c.seconds, c.warm_up)
    memory = {"base_memory_mib": base, "peak_memory_mib": memory_mib("VmHWM")}
    return summary_row(c, runtimes[0], times, wall, memory)


def summary_row(
    combination: Combination, runtime: Runtime, times: list[float], wall_s: float, memory: Mapping[str, float]
) -> Row:
    """Return the row of one combination from the times of its calls in ms and how long they took together."""
    c = combination
    fields = {
        **{name: getattr(c, name) for name in ("device", "batch_size", "instances", "threads")},
        "oversubscribed": c.instances * c.threads > processors(),
        "calls": len(times),
        "mean_ms": statistics.fmean(times),
        "enough_for_p99": len(times) >= ENOUGH_FOR_P99,
        "images_per_s": len(times) * c.batch_size / wall_s,
        **memory,
        "wall_s": wall_s,
    }
    return timing_row(runtime, times, {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}, **fields)


def child_main() -> int:
    """Measure the combination on standard input; write the result, or what refused it, to the file named."""
    try:
        result = measure(Combination(**json.load(sys.stdin)))
    except PASSED_ON as error:
        result = {"error": type(error).__name__, "message": str(error)}
    write_json(Path(sys.argv[2]), result)
    return 0


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
) -> list[Row]:
    """Measure every :class:`Combination` in a fresh process; RuntimeError if one is killed or fails."""
    for name, values in (("batch_sizes", batch_sizes), ("instances", instances), ("threads", threads)):
        if not values:
            raise ValueError(f"{name}={list(values)}: give at least one")
    combinations = [
        Combination(str(artefact_dir), *numbers, repeats, seconds, warm_up, backend, device)
        for numbers in product(batch_sizes, instances, threads)
    ]
    return [measure_in_child(each) for each in progress(combinations, desc="performance", unit="combination")]


def measure_in_child(combination: Combination) -> Row:
    """Measure one combination in a fresh process, so that its peak memory is its own."""
    # A plain process rather than multiprocessing, which would import the caller's script again.
    # -P and PYTHONPATH: this very gpenlib, whatever lies in the working directory.
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env, content = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, json.dumps(asdict(combination))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-P", "-m", "gpenlib.infer.performance", CHILD, str(result)]
        done = subprocess.run(command, input=content, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            c, last = combination, "\n".join(done.stderr.splitlines()[-15:])
            how = f"the process failed (exit status {done.returncode}):"
            if done.returncode == -signal.SIGKILL:
                how = "the process was killed, most likely for want of memory; try fewer instances"
            numbers = f"batch {c.batch_size}, {c.instances} instances of {c.threads} threads"
            raise RuntimeError(f"{numbers}: {how}\n{last}")
        measured: Row = read_json(result)
    if "error" in measured:
        raise {kind.__name__: kind for kind in PASSED_ON}[measured["error"]](measured["message"])
    return measured


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure an artefact, print a table, write the rows."""
    import pandas as pd

    parser = argparse.ArgumentParser(prog="python -m gpenlib bench", description=main.__doc__)
    add = parser.add_argument
    add("artefact", help="artefact folder (model.onnx and manifest.json)")
    add("--batch", type=int, nargs="+", default=[1], help="images per call (default: 1)")
    add("--instances", type=int, nargs="+", default=[1], help="requests in flight at once (default: 1)")
    add("--threads", type=int, nargs="+", default=[1], help="threads per instance (default: 1)")
    add("--repeats", type=int, default=30, help="timed calls per instance (default: 30)")
    add("--seconds", type=float, default=0.0, help="go on for so long, too (default: 0)")
    add("--warm-up", type=int, default=3, help="untimed calls per instance (default: 3)")
    add("--backend", choices=BACKENDS, help="default: the one it was built for")
    add("--device", choices=DEVICES, default="cpu")
    add("--json", type=Path, metavar="FILE", help="write rows and package versions here")
    o = parser.parse_args(arguments)
    counts = (o.batch, o.instances, o.threads, o.repeats, o.seconds, o.warm_up)
    rows = performance_test(resolve_path(o.artefact), *counts, backend=o.backend, device=o.device)
    first, cores = rows[0], processors()
    ran = f"{first['backend']}, {first['dtype']} (ran in {first['executed_precision']}), {first['device']}"
    print(f"{ran}, {cores} cores")
    print(pd.DataFrame(rows)[list(TABLE)].rename(columns=TABLE).round(2).to_string(index=False))
    if not all(row["enough_for_p99"] for row in rows):
        print(f"p99: fewer than {ENOUGH_FOR_P99} calls, so it lies between the two slowest; raise --repeats")
    if o.json:
        content = {"artefact": o.artefact, "cores": cores, "packages": package_versions(), "rows": rows}
        print(f"rows: {write_json(resolve_path(o.json), content)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(child_main() if sys.argv[1:2] == [CHILD] else main())
