"""Several instances of a runtime at work at the same time, in a process whose memory is theirs alone.

``python -m gpenlib.infer.instances RESULT < COMBINATION`` is the child process of
:mod:`gpenlib.infer.performance`; both files are JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.images import FloatArray
from gpenlib.infer import Runtime, RuntimeUnavailable, open_runtime
from gpenlib.run import write_json

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


def main() -> None:
    """Measure the combination on standard input; write the result, or what refused it, to the file named."""
    try:
        result = measure(Combination(**json.load(sys.stdin)))
    except PASSED_ON as error:
        result = {"error": type(error).__name__, "message": str(error)}
    write_json(Path(sys.argv[1]), result)


if __name__ == "__main__":
    main()
