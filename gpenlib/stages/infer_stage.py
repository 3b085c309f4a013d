"""04_infer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpenlib.data.packs import read_pack
from gpenlib.data.tasks import baseline_name
from gpenlib.images import read_image
from gpenlib.infer import open_runtime
from gpenlib.infer.chroma import data_chroma
from gpenlib.infer.pipeline import restore_pack
from gpenlib.infer.scoring import MEANS, summarise
from gpenlib.run import fingerprint, write_json
from gpenlib.stage_settings import InferSettings
from gpenlib.stages.base import stage
from gpenlib.stages.compile_stage import compile
from gpenlib.stages.data_stage import data


def infer(settings: InferSettings) -> dict[str, Any]:
    """04_infer: restore and score the evaluation faces with one dtype.

    Writes ``results.json`` (the metrics), with ``save_images`` ``images/*.png`` and with ``save_npz`` the
    unrounded outputs as ``npz/*.npz``.
    """
    faces = data(settings)
    artefact = compile(settings)
    backend = artefact["metrics"]["backend"]  # what compile_model measured, where the settings say auto
    inputs = {
        **faces["inputs"],  # calibration too: its mean colour makes a baseline
        "artefact": artefact["outputs"][f"artefact/{artefact['metrics']['files'][backend]}"],
    }
    described = {
        **settings.model_dump(include={"dtype", "device", "batch_size", "save_images", "save_npz"}),
        "backend": backend,
        "figures": fingerprint(MEANS),  # scored by another version's figures, results are void
    }

    def build(folder: Path) -> dict[str, Any]:
        runtime = open_runtime(Path(artefact["folder"]) / "artefact", device=settings.device)
        pack = read_pack(Path(faces["folder"]) / "evaluation")
        images = folder / "images" if settings.save_images else None
        npz = folder / "npz" if settings.save_npz else None
        chroma = data_chroma(pack)
        rows = restore_pack(runtime, pack, settings.batch_size, images, npz, chroma)
        results = {
            "images": len(rows),
            "dtype": settings.dtype,
            "backend": runtime.backend,
            "executed_precision": runtime.executed_precision,
            "device": settings.device,
            "batch_size": settings.batch_size,
            "weights": settings.weights,
            "task": settings.task,
            "baseline": baseline_name(settings.task),
            "data": faces["metrics"]["label"],
            "chroma_baseline": chroma.source,
            **summarise(rows),
            "rows": rows,
        }
        write_json(folder / "results.json", results)
        return results

    return stage(settings, f"04_infer/{settings.dtype}", described, inputs, build)


def output_reader(manifest: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function that reads the restored image of a face by name."""
    folder = Path(manifest["folder"]) / "images"
    return lambda name: read_image(folder / f"{name}.png")
