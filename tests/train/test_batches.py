"""Training pictures: a function of seed, step and position; jitter inside its ranges."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gpenlib.data.faces import DataError, open_folder
from gpenlib.train.batches import DRAWN_FACES, TrainingFaces, batch_order, jittered, open_training_faces
from gpenlib.train.config import Jitter
from tests.train.conftest import FACES, MakeConfig


def test_faces_depend_on_step_and_position_alone_and_the_last_are_held_out(
    configure: MakeConfig, faces: Path
) -> None:
    source, read = open_folder(faces), []
    recorded = replace(source, read=lambda index: read.append(index) or source.read(index))
    data = TrainingFaces(recorded, configure(task="inpaint", batch_size=4))
    first = {(step, place): data[step, place] for step in range(4) for place in range(4)}
    assert set(read) == set(range(FACES - 2))
    assert [array.shape for array in data.held_out] == [(2, 3, 64, 64)] * 2
    assert read[16:] == [FACES - 2, FACES - 1]
    degraded, truth = TrainingFaces(source, configure(task="inpaint", batch_size=4))[3, 1]
    assert torch.equal(degraded, first[3, 1][0]) and torch.equal(truth, first[3, 1][1])
    assert not torch.equal(degraded, first[2, 1][0])
    assert degraded.shape == truth.shape == (3, 64, 64)


def test_processes_share_a_batch_without_overlap() -> None:
    parts = [list(batch_order(3, 5, 6, rank, 3)) for rank in range(3)]
    assert sorted(s for part in parts for s in part[0]) == [(3, p) for p in range(6)]
    assert len(parts[0]) == 2


def test_jitter_stays_inside_its_ranges() -> None:
    rng = np.random.default_rng(0)
    image = np.tile(np.array([160, 120, 100], np.uint8), (32, 32, 1))
    assert np.array_equal(jittered(image, 16, Jitter(mirror=False), rng), image[:16, :16])
    spreads = [np.ptp(jittered(image, 16, Jitter(saturation=(1.2, 1.5)), rng)[0, 0]) for _ in range(50)]
    assert min(spreads) >= 60 * 1.2 - 1
    assert 60 * 1.4 < max(spreads) <= 60 * 1.5 + 1
    sharp = jittered(image, 16, Jitter(sharpness=(1.0, 1.0)), rng)
    assert np.array_equal(sharp, image[:16, :16]), "a flat picture has nothing to sharpen"
    image[:, 16:] = (210, 170, 150)
    jitter = Jitter(sharpness=(0.5, 1.5))
    steps = [np.ptp(jittered(image, 32, jitter, rng)[..., 0].astype(int)) for _ in range(20)]
    # One pixel beside the edge, a Gaussian of one pixel takes 31 % of the step; half of all is overshoot.
    assert min(steps) >= 50 * (1 + 2 * 0.5 * 0.3) and max(steps) <= 50 * (1 + 2 * 1.5 * 0.32)
    assert len(set(steps)) > 5, "the amount is drawn"


def test_embedded_faces_need_no_folder_and_others_are_counted(configure: MakeConfig) -> None:
    source = open_training_faces(configure(data_dir="embedded", holdout=5))
    assert len(source.names) == DRAWN_FACES + 5
    assert source.read(0).shape == (128, 128, 3)  # twice the side of the network
    with pytest.raises(DataError, match=f"{FACES} images"):
        TrainingFaces(open_training_faces(configure()), configure(batch_size=9))
