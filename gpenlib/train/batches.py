"""Training pictures that depend on (seed, step, position) alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpenlib.data.faces import DataError, Faces, open_faces
from gpenlib.data.tasks import make_pair
from gpenlib.images import FloatArray, Image, resize, to_tensor
from gpenlib.train.config import Jitter, TrainConfig

ORDER, PICTURE, TASK, HELD_OUT = range(4)  # purposes of random numbers, kept apart by seed
Sample = tuple[int, int]  # (step, position in the batch)
SHARPENING_RADIUS = 1.0  # standard deviation of the unsharp mask, pixels
DRAWN_FACES = 256  # where there are as many as one likes, beside the held-out ones


def open_training_faces(config: TrainConfig) -> Faces:
    """Open the faces of ``config.data_dir``; twice the side leaves room for crops in those made here."""
    return open_faces(config.data_dir, DRAWN_FACES + config.holdout, size=2 * config.size)


class TrainingFaces(Dataset[tuple[Tensor, Tensor]]):
    """(input, truth), float32 [3, S, S] in [-1, 1], by (step, position); the last images are held out."""

    def __init__(self, source: Faces, config: TrainConfig) -> None:
        count = len(source.names)
        if count < config.holdout + config.batch_size:
            needed = f"holdout {config.holdout} + batch {config.batch_size}"
            raise DataError(f"{source.label}: {count} images; needed are {needed}")
        self.source, self.config = source, config
        self.count = count - config.holdout

    def __getitem__(self, sample: Sample) -> tuple[Tensor, Tensor]:
        step, position = sample
        config = self.config
        epoch, place = divmod(step * config.batch_size + position, self.count)
        image = self.source.read(int(picture_order(config.seed, epoch, self.count)[place]))
        rng = np.random.default_rng((config.seed, PICTURE, step, position))
        image = jittered(image, config.size, config.jitter, rng)
        pair = make_pair(image, config.task, config.size, seed=(config.seed, TASK, step, position))
        degraded, truth = (torch.from_numpy(to_tensor([picture])[0]) for picture in pair)
        return degraded, truth

    @cached_property
    def held_out(self) -> tuple[FloatArray, FloatArray]:
        """Inputs and truths of the held-out faces, float32 [N, 3, S, S], without jitter."""
        config, pairs = self.config, []
        for i in range(config.holdout):
            seed = (config.seed, HELD_OUT, i)
            pairs.append(make_pair(self.source.read(self.count + i), config.task, config.size, seed=seed))
        return to_tensor([a for a, _ in pairs]), to_tensor([b for _, b in pairs])

    def loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Yield this process's share of the batches of steps ``start`` to ``stop``."""
        order = batch_order(start, stop, self.config.batch_size, rank, world)
        return DataLoader(self, batch_sampler=order, num_workers=self.config.workers)


def batch_order(start: int, stop: int, batch_size: int, rank: int, world: int) -> Iterator[list[Sample]]:
    """Yield which samples each step takes; process ``rank`` takes every ``world``-th of a batch."""
    for step in range(start, stop):
        yield [(step, position) for position in range(rank, batch_size, world)]


@lru_cache(maxsize=2)
def picture_order(seed: int, epoch: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the order in which an epoch visits ``count`` pictures."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)


def jittered(image: Image, size: int, jitter: Jitter, rng: np.random.Generator) -> Image:
    """Crop, mirror, recolour and sharpen at random -> uint8 RGB [size, size, 3]."""
    side = min(image.shape[:2])
    crop = int(rng.integers(int(jitter.min_crop * side), side + 1))
    top, left = rng.integers(0, side - crop + 1, size=2)
    patch = image[top : top + crop, left : left + crop]
    if jitter.mirror and rng.random() < 0.5:
        patch = patch[:, ::-1]
    # Area averaging does not alias at any crop size; enlarging needs the bilinear resize.
    if crop >= size:
        patch = np.asarray(cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    else:
        patch = resize(np.ascontiguousarray(patch), size)
    saturation, contrast = rng.uniform(*jitter.saturation), rng.uniform(*jitter.contrast)
    sharpness = rng.uniform(*jitter.sharpness)
    if saturation == contrast == 1.0 and sharpness == 0.0:
        return patch
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    changed = (grey + saturation * (patch.astype(np.float32) - grey) - 127.5) * contrast + 127.5
    changed += sharpness * (changed - cv2.GaussianBlur(changed, (0, 0), SHARPENING_RADIUS))
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
