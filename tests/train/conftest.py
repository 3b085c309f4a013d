"""Small faces and a small configuration for every stage of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.settings import TrainConfig

FACES = 10
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures of a face."""
    folder = tmp_path_factory.mktemp("faces")
    source = embedded_faces(FACES, size=128)
    for index, name in enumerate(source.names):
        cv2.imwrite(str(folder / name), source.read(index)[:, :, ::-1])
    return folder


@pytest.fixture
def configure(faces: Path, tmp_path: Path) -> MakeConfig:
    """Return a function that makes the configuration of a tiny run; keyword arguments change it."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "stage": "finetune",
            "data_dir": str(faces),
            "run_dir": str(tmp_path / "run"),
            "size": 64,
            "channel_multiplier": 1,
            "narrow": 0.0625,
            "steps": 4,
            "batch_size": 2,
            "holdout": 2,
            "jitter": {"min_crop": 0.9},
            "checkpoint_every": 2,
            "evaluate_every": 100,
            "accelerator": "cpu",
        }
        return TrainConfig.parse(values | changes)

    return make


CONTENT_ONLY = {"adversarial": 0, "feature_matching": 0}
