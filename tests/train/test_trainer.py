"""The trainer: it learns, resumes exactly, and stops when it must."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gpenlib.architecture import load_checkpoint
from gpenlib.data.embedded import EmbeddedSource
from gpenlib.data.sources import DataError
from gpenlib.settings import SettingsError
from gpenlib.train.config import TrainConfig
from gpenlib.train.trainer import Trainer, TrainingError

FACES = 10


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures of a face."""
    folder = tmp_path_factory.mktemp("faces")
    source = EmbeddedSource(FACES, size=128)
    for index, name in enumerate(source.names):
        cv2.imwrite(str(folder / name), source.read(index)[:, :, ::-1])
    return folder


def settings(faces: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    values = {
        "data_dir": str(faces),
        "run_dir": str(run_dir),
        "size": 64,
        "channel_multiplier": 1,
        "narrow": 0.0625,
        "steps": 6,
        "batch_size": 2,
        "holdout": 2,
        "warmup": 2,
        "checkpoint_every": 3,
        "evaluate_every": 100,
        "learning_rate": "2e-3",  # as YAML gives it
    }
    return TrainConfig.parse(values | changes)


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_loss_falls_and_the_checkpoint_loads(faces: Path, tmp_path: Path) -> None:
    Trainer(settings(faces, tmp_path, steps=40, batch_size=4)).run()
    history = losses(tmp_path)
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:5])
    model = load_checkpoint(tmp_path / "checkpoint.pt")  # picks g_ema
    assert model.config.in_size == 64


def test_a_resumed_run_ends_with_the_same_weights(faces: Path, tmp_path: Path) -> None:
    whole = Trainer(settings(faces, tmp_path / "whole")).run()
    half = Trainer(settings(faces, tmp_path / "half"))
    half.run_until(3)
    resumed = Trainer(settings(faces, tmp_path / "half")).run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_resuming_with_other_settings_is_refused(faces: Path, tmp_path: Path) -> None:
    Trainer(settings(faces, tmp_path, steps=3)).run()
    with pytest.raises(TrainingError, match="batch_size"):
        Trainer(settings(faces, tmp_path, steps=3, batch_size=3)).run()


def test_a_loss_that_is_not_finite_stops(faces: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(faces, tmp_path))
    trainer.run_until(3)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 3; last good checkpoint: .*checkpoint.pt"):
        trainer.run()


def test_too_few_images_are_counted(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 images"):
        Trainer(settings(faces, tmp_path, batch_size=9)).run()


def test_held_out_faces_are_not_trained_on(faces: Path, tmp_path: Path) -> None:
    from gpenlib.data.sources import open_folder
    from gpenlib.train.batches import TrainingFaces

    data = TrainingFaces(open_folder(faces), settings(faces, tmp_path))
    assert len(data.train) == FACES - 2
    assert not any(np.array_equal(a, b) for a in data.train for b in data.held_out)
    first, again = data.batch(5), data.batch(5)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], data.batch(6)[0])


def test_unknown_settings_are_named(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'learning_rate'"):
        settings(faces, tmp_path, learning_rat=1.0)
