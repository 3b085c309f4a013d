"""05_errors: what each precision costs, what to take, and the page for those who decide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpenlib.errors.analysis import analyse
from gpenlib.errors.costs import with_costs
from gpenlib.infer import open_runtime
from gpenlib.infer.benchmark import interleaved_latency
from gpenlib.run import fingerprint, sha256, write_csv, write_json
from gpenlib.stage_settings import ErrorSettings
from gpenlib.stages.base import stage
from gpenlib.stages.comparison_stage import compare_runs
from gpenlib.stages.compile_stage import compile
from gpenlib.stages.data_stage import data, evaluation_pack
from gpenlib.stages.infer_stage import infer, output_reader
from gpenlib.stages.report_stage import report
from gpenlib.weights.faces import made_here

Manifest = dict[str, Any]


def errors(settings: ErrorSettings) -> Manifest:
    """05_errors: compare every dtype with fp32 on the same faces, time them in turns, and report.

    Writes ``results.json`` (the metrics), ``summary.csv`` (their ``table``), with ``runs`` a comparison with
    other runs, and the page ``outputs/<run>/report.html``.

    Metrics: see :func:`gpenlib.errors.analysis.analyse` and :func:`gpenlib.errors.costs.with_costs`;
    ``latency`` holds the times and ``facts`` what was run on what. Beside them the manifest gets
    ``recommendation``, ``comparison`` (the manifest of :func:`compare_runs`, or None) and ``report`` (path).
    """
    runs = {str(dtype): infer(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    artefacts = {str(dtype): compile(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    faces = data(settings)
    inputs = {dtype: manifest["outputs"]["results.json"] for dtype, manifest in runs.items()}
    files = {name: getattr(settings, name) for name in ("lpips_weights", "features_file")}
    inputs |= {name: sha256(Path(file)) for name, file in files.items() if file}
    described = {
        "dtypes": list(settings.dtypes),
        "features_are_inception": settings.features_are_inception,
        "repeats": settings.repeats,
    }

    def build(folder: Path) -> Manifest:
        results = analyse(
            {dtype: manifest["metrics"] for dtype, manifest in runs.items()},
            {dtype: output_reader(manifest) for dtype, manifest in runs.items()},
            evaluation_pack(settings),
            {name: Path(file) if file else None for name, file in files.items()},
            settings.features_are_inception,
        )
        results["latency"] = _latency(artefacts, settings)
        results["table"] = with_costs(results["table"], _files(artefacts), results["latency"])
        results["facts"] = _facts(settings, faces, artefacts["fp32"]["inputs"]["weights"])
        write_csv(folder / "summary.csv", results["table"])
        write_json(folder / "results.json", results)
        return results

    manifest = stage(settings, "05_errors", described, inputs, build)
    comparison = compare_runs(settings.runs, settings) if settings.runs else None
    page = report(settings, manifest, runs, comparison)
    return manifest | {
        "recommendation": page["metrics"]["recommendation"],
        "comparison": comparison,
        "report": page["page"],
    }


def _latency(artefacts: Mapping[str, Manifest], settings: ErrorSettings) -> list[Manifest]:
    """Time every artefact in turn with the others: times of separate runs hold the noise of their moment."""
    runtimes = {
        dtype: open_runtime(Path(manifest["folder"]) / "artefact", device=settings.device)
        for dtype, manifest in artefacts.items()
    }
    return interleaved_latency(runtimes, settings.repeats, warm_up=1, batch_size=settings.batch_size)


def _files(artefacts: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Return the size of the file that each artefact's backend opens, and why that backend."""
    found = {}
    for dtype, manifest in artefacts.items():
        metrics = manifest["metrics"]
        file = Path(manifest["folder"]) / "artefact" / metrics["files"][metrics["backend"]]
        found[dtype] = {"file_bytes": file.stat().st_size, "backend_reason": metrics["backend_reason"]}
    return found


def _facts(settings: ErrorSettings, faces: Manifest, digest: str) -> Manifest:
    """Return what was run on what; ``faces_digest`` covers the packed pictures and their order."""
    packed = {name: value for name, value in faces["outputs"].items() if name.startswith("evaluation/")}
    metrics = faces["metrics"]
    return {
        **settings.model_dump(include={"run", "weights", "task", "device", "batch_size"}),
        "weights_digest": digest,
        "data": metrics["label"],
        "made_here": made_here(settings.data_dir),
        "images": metrics["evaluation"],
        "calibration": metrics["note"],
        "in_size": metrics["in_size"],
        "out_size": metrics["out_size"],
        "faces_digest": fingerprint(packed),
    }
