"""Small faces and a small configuration for every stage of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpenlib.architecture import GpenConfig
from gpenlib.data.faces import embedded_faces
from gpenlib.images import write_image
from gpenlib.train.config import TrainConfig

FACES = 10
SMALL, LARGE = GpenConfig(64, 64, 1, 0.0625), GpenConfig(128, 128, 1, 0.0625)
CONTENT_ONLY = {"adversarial": 0, "feature_matching": 0}
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures of a face."""
    folder = tmp_path_factory.mktemp("faces")
    source = embedded_faces(FACES, size=128)
    for index, name in enumerate(source.names):
        write_image(folder / name, source.read(index))
    return folder


@pytest.fixture
def configure(faces: Path, tmp_path: Path) -> MakeConfig:
    """Return a function that makes the configuration of a tiny run; keyword arguments change it."""
    values: dict[str, Any] = {
        **{"stage": "finetune", "data_dir": str(faces), "run_dir": str(tmp_path / "run")},
        **{"size": 64, "channel_multiplier": 1, "narrow": 0.0625, "jitter": {"min_crop": 0.9}},
        **{"steps": 4, "batch_size": 2, "holdout": 2, "checkpoint_every": 2, "evaluate_every": 100},
        "accelerator": "cpu",
    }
    return lambda **changes: TrainConfig.parse(values | changes)
