"""06_train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gpenlib.data.sources import ImageSource, combined_digest
from gpenlib.run import fingerprint, read_json, resolve_path, sha256, write_json
from gpenlib.stage_settings import TrainSettings
from gpenlib.stages.base import stage
from gpenlib.train.config import TrainConfig
from gpenlib.train.faces import open_training_faces
from gpenlib.train.log import beginning_and_end, read_log
from gpenlib.train.state import RESUMABLE_CHANGES, TrainingError
from gpenlib.train.trainer import CHECKPOINT, Trainer

STARTED_FROM = "inputs.json"


def train(settings: TrainSettings) -> dict[str, dict[str, Any]]:
    """06_train: train what the configuration files describe, one after the other.

    Each goes to ``06_train/<name of the file>``: ``checkpoint.pt`` (resumable), ``weights.safetensors``
    (averaged, fp16: a ``weights`` of the other stages), ``log.jsonl``, ``samples/*.png``, TensorBoard's
    files and ``results.json`` (the metrics).

    Returns
    -------
    dict
        The manifest of every part by its name. Metrics: ``stage``, ``task``, ``size``, ``steps``,
        ``batch_size``, ``data``, ``parameters``, ``device``, ``from_scratch`` (whether the
        encoder was new), and ``terms``: the means of every logged term over the first and the
        last fifth of the run.

    Raises
    ------
    TrainingError
        If a checkpoint of other settings is in the way, or a loss is not finite.
    DataError
        If there are too few images.
    """
    return {name: _part(name, config, settings) for name, config in settings.configs().items()}


def _part(name: str, config: TrainConfig, settings: TrainSettings) -> dict[str, Any]:
    source = open_training_faces(config)
    inputs = _inputs(config, source)
    folder = resolve_path(config.run_dir)
    if not settings.resume and folder.exists():
        shutil.rmtree(folder)
    # A checkpoint that grew from another prior or other faces is no beginning of this run.
    started = folder / STARTED_FROM
    keep = (folder / CHECKPOINT).is_file() and started.is_file() and read_json(started) == inputs

    def build(folder: Path) -> dict[str, Any]:
        write_json(folder / STARTED_FROM, inputs)
        results = _train(config, source, folder)
        write_json(folder / "results.json", results)
        return results

    described = config.model_dump(mode="json", exclude=RESUMABLE_CHANGES)
    return stage(settings, f"06_train/{name}", described, inputs, build, keep)


def _train(config: TrainConfig, source: ImageSource, folder: Path) -> dict[str, Any]:
    """Train until the end; return the metrics."""
    trainer = Trainer(config)
    try:
        model = trainer.run()
    except TrainingError as error:
        raise TrainingError(f"{error}. To start anew in its place set resume to False") from error
    finally:
        trainer.board.finalize("done")  # closes the file, so that its hash stays
    trainer.save_weights()
    rows = read_log(folder)
    terms = {}
    for term in sorted({key for row in rows for key in row} - {"step"}):
        terms[term] = dict(zip(("first", "last"), beginning_and_end(rows, term), strict=True))
    return {
        **config.model_dump(include={"stage", "task", "size", "steps", "batch_size"}),
        "data": source.label,
        "parameters": sum(p.numel() for p in model.parameters()),
        "from_scratch": config.stage == "embed" or (config.stage == "finetune" and not config.init),
        "device": str(trainer.fabric.device),
        "terms": terms,
    }


def _inputs(config: TrainConfig, source: ImageSource) -> dict[str, str]:
    """Return hashes of the faces and of the weights to start from.

    Of the faces all names count, and the contents of the held-out ones: a data set of 70,000 photographs is
    not read through before the training starts.
    """
    count = len(source.names)
    held_out = range(max(0, count - config.holdout), count)
    inputs = {"faces": fingerprint([*source.names, combined_digest(source, held_out)])}
    if config.init:
        path = resolve_path(config.init)
        inputs["init"] = sha256(path) if path.is_file() else config.init
    return inputs
