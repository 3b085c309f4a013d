"""Choose the backend that is fastest on this machine, by measuring."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.infer.benchmark import interleaved_times
from gpenlib.infer.runtime import (
    BACKENDS,
    ONNX_BACKENDS,
    Runtime,
    RuntimeUnavailable,
    choose_backend,
    open_runtime,
    read_artefact,
    runs,
    runtime_class,
    served_by,
)

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
