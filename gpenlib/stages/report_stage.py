"""05_errors/report: the page ``outputs/<run>/report.html``."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpenlib.errors.compare import REFERENCE
from gpenlib.errors.gallery import FaceErrors, faces_by_loss, open_face_errors, worst_faces
from gpenlib.errors.recommend import Recommendation, recommend
from gpenlib.report import write_report
from gpenlib.run import sha256, write_atomically
from gpenlib.stage_settings import ErrorSettings
from gpenlib.stages.base import stage
from gpenlib.stages.data_stage import evaluation_pack
from gpenlib.stages.infer_stage import output_reader

PAGE = "report.html"
NOTEBOOK_PARAMETERS = (
    "run", "weights", "task", "data_dir", "dataset_size", "dtypes", "backend", "device", "batch_size",
    "calib_dir", "calib_size", "worst", "lpips_weights", "features_file", "features_are_inception", "runs",
    "max_drop_db", "repeats", "layer_faces", "build", "calibrate_mode",
)  # fmt: skip
Manifest = Mapping[str, Any]


def report(
    settings: ErrorSettings, manifest: Manifest, runs: Mapping[str, Manifest], comparison: Manifest | None
) -> dict[str, Any]:
    """Write the page of a run and put a copy where it is found: ``outputs/<run>/report.html``.

    Parameters
    ----------
    settings : ErrorSettings
    manifest : mapping
        Of 05_errors.
    runs : mapping of dtype to mapping
        Manifests of 04_infer.
    comparison : mapping or None
        Manifest of :func:`gpenlib.stages.compare_runs`.

    Returns
    -------
    dict
        The manifest, with ``page``, the path of the copy. Metrics: ``recommendation``.
    """
    results = manifest["metrics"]
    choice = recommend(results["table"], settings.max_drop_db)
    command = papermill_command(settings)
    inputs = {"results.json": manifest["outputs"]["results.json"]}
    if comparison:
        inputs["comparison.json"] = comparison["outputs"]["comparison.json"]

    def build(folder: Path) -> dict[str, Any]:
        compared = comparison["metrics"] if comparison else None
        write_report(
            folder / PAGE, results, choice, _gallery(settings, results, choice, runs), command, compared
        )
        return {"recommendation": choice.to_dict()}

    described = {"command": command, "max_drop_db": settings.max_drop_db, "worst": settings.worst}
    found = stage(settings, "05_errors/report", described, inputs, build)
    page = settings.folder / PAGE
    if not page.is_file() or sha256(page) != found["outputs"][PAGE]:
        with write_atomically(page) as temporary:
            shutil.copyfile(Path(found["folder"]) / PAGE, temporary)
    return found | {"page": str(page)}


def papermill_command(settings: ErrorSettings) -> str:
    """Return the command that repeats a run of notebook 05; parameters that have their default are left out.

    Settings that the notebook has no parameter for (such as the seed) are named behind it.
    """
    changed = {
        name: value
        for name, value in settings.model_dump(exclude_defaults=True).items()
        if value is not None and not (isinstance(value, tuple) and not value)
    }
    words = ["papermill", "notebooks/05_errors.ipynb", "out.ipynb"]
    for name in NOTEBOOK_PARAMETERS:
        if name in changed:
            value = changed.pop(name)
            words += ["-p", name, ",".join(value) if isinstance(value, tuple) else str(value)]
    extra = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return shlex.join(words) + (f"  # and, set in Python: {extra}" if extra else "")


def _gallery(
    settings: ErrorSettings, results: Manifest, choice: Recommendation, runs: Mapping[str, Manifest]
) -> tuple[str, list[FaceErrors]]:
    """Return the faces on which the recommended precision loses most; fp32 recommended: the weakest one."""
    rows = results["rows"]
    dtype = choice.dtype if choice.dtype not in (None, REFERENCE) else faces_by_loss(rows)[0]
    assert dtype is not None  # None was replaced
    pack = evaluation_pack(settings)
    position = {name: index for index, name in enumerate(pack.names)}
    readers = {name: output_reader(runs[name]) for name in (REFERENCE, dtype)}
    chosen = worst_faces(rows, dtype, settings.worst)
    return dtype, open_face_errors(chosen, readers, lambda name: pack.inputs(position[name]))
