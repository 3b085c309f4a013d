"""05_errors/comparison: this run's results beside those of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpenlib.data.sources import DataError
from gpenlib.errors.runs import compare_results
from gpenlib.run import nearest, read_json, sha256, write_csv, write_json
from gpenlib.stage_settings import RunSettings
from gpenlib.stages.base import stage

RESULTS = "05_errors/results.json"


def compare_runs(names: Sequence[str], settings: RunSettings) -> dict[str, Any]:
    """Compare the results of several runs that notebook 05 has made.

    Writes ``comparison.json`` (the metrics) and ``comparison.csv`` to ``05_errors/comparison`` of the run
    that ``settings`` name.

    Parameters
    ----------
    names : sequence of str
        Folders beside that run; the first is what the others are compared with.
    settings : RunSettings

    Returns
    -------
    dict
        The manifest. Metrics: ``rows`` (see :func:`gpenlib.errors.runs.compare_results`) and ``runs``, what
        each ran on what, by name.

    Raises
    ------
    DataError
        If a run has no results, with the command that makes them.
    ValueError
        If fewer than two are named.
    """
    root = settings.folder.parent
    files = {name: _results_file(root, name) for name in names}

    def build(folder: Path) -> dict[str, Any]:
        results = {name: read_json(path) for name, path in files.items()}
        found: dict[str, Any] = {
            "rows": compare_results(results),
            "runs": {name: result["facts"] for name, result in results.items()},
        }
        write_csv(folder / "comparison.csv", found["rows"])
        write_json(folder / "comparison.json", found)
        return found

    inputs = {name: sha256(path) for name, path in files.items()}
    return stage(settings, "05_errors/comparison", {"runs": list(names)}, inputs, build)


def _results_file(root: Path, name: str) -> Path:
    """Return the results of a run; raise with what to do if they are missing or of an older form."""
    path = root / name / RESULTS
    todo = f"make them with `papermill notebooks/05_errors.ipynb out.ipynb -p run {name}` and its parameters"
    if not path.is_file():
        present = sorted(found.parents[1].name for found in root.glob(f"*/{RESULTS}"))
        close = nearest(name, present, count=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        there = f"; runs with results: {', '.join(present)}" if present else ""
        raise DataError(f"run {name!r} has no results at {path}{hint}: {todo}{there}")
    if "facts" not in read_json(path):
        raise DataError(f"run {name!r}: {path} does not say what it was made from (older version): {todo}")
    return path
