"""05_errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpenlib.errors.analysis import analyse
from gpenlib.run import sha256, write_json
from gpenlib.stage_settings import ErrorSettings
from gpenlib.stages.base import stage
from gpenlib.stages.data_stage import evaluation_pack
from gpenlib.stages.infer_stage import infer, output_reader


def errors(settings: ErrorSettings) -> dict[str, Any]:
    """05_errors: compare every dtype with fp32 on the same faces.

    Metrics: see :func:`gpenlib.errors.analysis.analyse`.
    """
    runs = {dtype: infer(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    inputs = {str(dtype): manifest["outputs"]["results.json"] for dtype, manifest in runs.items()}
    files = {name: getattr(settings, name) for name in ("lpips_weights", "features_file")}
    inputs |= {name: sha256(Path(file)) for name, file in files.items() if file}
    described = {
        "dtypes": list(settings.dtypes),
        "features_are_inception": settings.features_are_inception,
    }

    def build(folder: Path) -> dict[str, Any]:
        results = analyse(
            {str(dtype): manifest["metrics"] for dtype, manifest in runs.items()},
            {str(dtype): output_reader(manifest) for dtype, manifest in runs.items()},
            evaluation_pack(settings),
            {name: Path(file) if file else None for name, file in files.items()},
            settings.features_are_inception,
        )
        write_json(folder / "results.json", results)
        return results

    return stage(settings, "05_errors", described, inputs, build)
