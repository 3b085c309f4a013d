"""What a training run wrote about itself: the rows of ``log.jsonl`` and the pictures in ``samples``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpenlib.images import FloatArray, Image, read_image

LOG = "log.jsonl"
SAMPLES = "samples"
ENDS = 5  # a fifth of a run is its beginning, another its end
LogRow = dict[str, float]


def read_log(run_dir: Path) -> list[LogRow]:
    """Return one row per step, in order: ``step``, the loss terms, and what was measured at that step.

    A run that was stopped between two checkpoints does some steps again; the last ones count. The line that
    was being written when a process was killed is passed over.

    Raises
    ------
    FileNotFoundError
        If nothing was trained in ``run_dir``.
    """
    path = run_dir / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no log; train first, with run_dir={run_dir}")
    rows: dict[int, LogRow] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def series(rows: Sequence[LogRow], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which ``name`` was logged, and its values."""
    chosen = [row for row in rows if name in row]
    return [row["step"] for row in chosen], [row[name] for row in chosen]


def smooth(values: Sequence[float], window: int | None = None) -> FloatArray:
    """Return the centred moving mean, of the same length; at the ends over the values that are there.

    Parameters
    ----------
    values : sequence of float
    window : int, optional
        How many values a mean takes. Default: a tenth of them, and not less than 3.
    """
    width = min(len(values), window or max(3, len(values) // 10))
    ones = np.ones(max(1, width))
    totals = np.convolve(values, ones, mode="same")
    return np.asarray(totals / np.convolve(np.ones(len(values)), ones, mode="same"), dtype=np.float32)


def beginning_and_end(rows: Sequence[LogRow], name: str) -> tuple[float, float]:
    """Return the means of ``name`` over the first and the last fifth of the steps that logged it.

    Raises
    ------
    ValueError
        If it was never logged.
    """
    _, values = series(rows, name)
    if not values:
        known = sorted({key for row in rows for key in row} - {"step"})
        raise ValueError(f"{name!r} was never logged; logged were {', '.join(known) or 'no terms'}")
    count = max(1, len(values) // ENDS)
    return float(np.mean(values[:count])), float(np.mean(values[-count:]))


def read_samples(run_dir: Path, count: int) -> dict[int, Image]:
    """Return up to ``count`` of the sample pictures by their step: first, last, and evenly between.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    paths = sorted((run_dir / SAMPLES).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{run_dir / SAMPLES}: no sample pictures; train first")
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return {int(paths[place].stem): read_image(paths[place]) for place in places}


def check_log(rows: Sequence[LogRow], steps: int, falls: str | None = None) -> None:
    """Check that a log is that of a sound training.

    Parameters
    ----------
    rows : sequence of mappings
        As :func:`read_log` gives them.
    steps : int
        How many steps were asked for.
    falls : str, optional
        A loss whose mean over the last fifth must be below that over the first.

    Raises
    ------
    ValueError
        If a step is missing, a value is not finite, or ``falls`` did not fall.
    """
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise ValueError(f"the log has {len(rows)} steps, not each of 1 to {steps}")
    wrong = [(row["step"], name) for row in rows for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        step, name = wrong[0]
        raise ValueError(f"{name} is not finite at step {step} ({len(wrong)} such values in all)")
    if falls:
        first, last = beginning_and_end(rows, falls)
        if last >= first:
            raise ValueError(f"nothing was learned: {falls} was {first:.4g} and is {last:.4g}")
