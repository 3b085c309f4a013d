"""What a training run wrote about itself: the rows of ``log.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpenlib.images import FloatArray

LOG = "log.jsonl"
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
