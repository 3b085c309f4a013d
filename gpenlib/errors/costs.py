"""What each precision costs to store and to run, beside what it costs in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MIB = 2**20


def with_costs(
    table: Sequence[Row], artefacts: Mapping[str, Mapping[str, Any]], latency: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return the table of 05_errors with size and time of every dtype.

    Parameters
    ----------
    table : sequence of mapping
        One row per ``dtype``.
    artefacts : mapping of dtype to mapping
        ``file_bytes`` (the file that its backend opens) and ``backend_reason``.
    latency : sequence of mapping
        Rows of :func:`gpenlib.infer.benchmark.interleaved_latency`, one per dtype of the table.

    Returns
    -------
    list of dict
        The rows with ``backend_reason``, ``model_mib`` and, in ms per image, ``latency_ms`` (median) and the
        10th and 90th percentile ``latency_p10_ms`` and ``latency_p90_ms``. ``ms_per_image``, which they
        hold already, comes from runs one after the other and compares dtypes less well.

    Raises
    ------
    KeyError
        If a dtype has no artefact or no time.
    """
    times = {row["dtype"]: row for row in latency}
    found = []
    for row in table:
        timed, artefact = times[row["dtype"]], artefacts[row["dtype"]]
        per_image = {
            f"latency_{short}": timed[key] / timed["batch_size"]
            for short, key in (("ms", "median_ms"), ("p10_ms", "p10_ms"), ("p90_ms", "p90_ms"))
        }
        found.append(
            {
                **row,
                "backend_reason": artefact["backend_reason"],
                "model_mib": artefact["file_bytes"] / MIB,
                **per_image,
            }
        )
    return found


def pareto_rows(table: Sequence[Row], latency: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what :func:`gpenlib.plots.quantisation.pareto_figure` draws: time and loss of every dtype."""
    times = {row["dtype"]: row for row in latency}
    timed = ("median_ms", "p10_ms", "p90_ms")
    return [
        {
            **{name: row[name] for name in ("dtype", "psnr_drop", "psnr_to_fp32")},
            **{name: times[row["dtype"]][name] for name in timed},
            "mode": None,
        }
        for row in table
    ]
