"""Performance test of an artefact: latency, throughput and memory over batch size, instances and threads.

``python -m gpenlib.infer.performance ARTEFACT --batch 1 4 --instances 1 2 --threads 1 2 --json FILE``

The counterpart of the vendor's ``vamp`` (``-b`` batch size, ``-i`` instances) for every backend here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.infer import BACKENDS, DEVICES
from gpenlib.infer.instances import PASSED_ON, Combination
from gpenlib.progress import progress
from gpenlib.run import package_versions, read_json, write_json

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
    command = [sys.executable, "-P", "-m", "gpenlib.infer.instances"]
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
    raise SystemExit(main())
