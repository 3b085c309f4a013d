"""02_data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack, read_pack, write_pack
from gpenlib.data.sources import combined_digest, open_folder
from gpenlib.data.splits import Subset, split
from gpenlib.data.tasks import find_task
from gpenlib.run import fingerprint, resolve_path
from gpenlib.stage_settings import DataSettings
from gpenlib.stages.base import stage
from gpenlib.weights.faces import open_faces


def data(settings: DataSettings) -> dict[str, Any]:
    """02_data: the evaluation and calibration packs.

    Each picture is degraded with a seed of its own: (``seed``, 0 or 1 for the set, number in the set). The
    manifest's ``inputs`` cover pictures and degradation, so that what is built on the packs is built anew
    when either changes; its settings hold task, seed and ``degradation``, the task's recipe.

    Metrics: ``evaluation`` and ``calibration`` (numbers of images), ``note``, ``label``, ``in_size``,
    ``out_size``.
    """
    weights = settings.load()
    config = weights.model.config
    source = open_faces(settings.data_dir, settings.dataset_size + settings.calib_size)
    calibration = open_folder(resolve_path(settings.calib_dir)) if settings.calib_dir else None
    parts = split(source, settings.dataset_size, settings.calib_size, calibration, settings.seed)
    chosen = {"evaluation": parts.evaluation, "calibration": parts.calibration}
    task = find_task(settings.task)
    inputs = {name: _digest(part, settings) for name, part in chosen.items()}
    described = {
        **settings.model_dump(include={"task", "dataset_size", "calib_size", "seed"}),
        "degradation": task.recipe,
        "in_size": config.in_size,
        "out_size": config.out_size,
    }

    def build(folder: Path) -> dict[str, Any]:
        for number, (name, part) in enumerate(chosen.items()):
            seed = (settings.seed, number)
            write_pack(folder / name, part, settings.task, config.in_size, config.out_size, seed)
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


def _digest(part: Subset, settings: DataSettings) -> str:
    """Return a hash of the pictures and of what is done to them; the seed counts where anything is drawn."""
    task = find_task(settings.task)
    pictures = combined_digest(part, range(len(part.names)))
    return fingerprint([pictures, settings.task, task.recipe, settings.seed if task.seeded else None])
