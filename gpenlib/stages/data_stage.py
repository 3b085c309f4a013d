"""02_data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack, read_pack, write_pack
from gpenlib.data.sources import combined_digest, open_folder
from gpenlib.data.splits import open_source, split
from gpenlib.run import resolve_path
from gpenlib.stage_settings import DataSettings
from gpenlib.stages.base import stage


def data(settings: DataSettings) -> dict[str, Any]:
    """02_data: the evaluation and calibration packs.

    Metrics: ``evaluation`` and ``calibration`` (numbers of images), ``note``, ``label``, ``in_size``,
    ``out_size``.
    """
    weights = settings.load()
    config = weights.model.config
    data_dir = str(resolve_path(settings.data_dir)) if settings.data_dir else None
    source = open_source(data_dir, settings.dataset_size + settings.calib_size)
    calibration = open_folder(resolve_path(settings.calib_dir)) if settings.calib_dir else None
    parts = split(source, settings.dataset_size, settings.calib_size, calibration, settings.seed)
    chosen = {"evaluation": parts.evaluation, "calibration": parts.calibration}
    inputs = {name: combined_digest(part, range(len(part.names))) for name, part in chosen.items()}
    described = {
        **settings.model_dump(include={"task", "dataset_size", "calib_size", "seed"}),
        "in_size": config.in_size,
        "out_size": config.out_size,
    }

    def build(folder: Path) -> dict[str, Any]:
        for name, part in chosen.items():
            write_pack(folder / name, part, settings.task, config.in_size, config.out_size)
        return {
            **{name: len(part.names) for name, part in chosen.items()},
            "note": parts.note,
            "label": source.label,
            "in_size": config.in_size,
            "out_size": config.out_size,
        }

    return stage(settings, "02_data", described, inputs, build)


def evaluation_pack(settings: DataSettings) -> Pack:
    """Return the evaluation faces of a run (built if missing)."""
    return read_pack(Path(data(settings)["folder"]) / "evaluation")
