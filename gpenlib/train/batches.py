"""Training batches that depend on (seed, step) alone, so that a resumed run sees the same ones."""

from __future__ import annotations

import cv2
import numpy as np

from gpenlib.data.sources import DataError, ImageSource
from gpenlib.data.tasks import make_pair
from gpenlib.images import FloatArray, Image, resize, to_tensor
from gpenlib.progress import progress
from gpenlib.train.config import TrainConfig


class TrainingFaces:
    """All training faces in memory at twice the training size, cropped and flipped at random.

    Parameters
    ----------
    source : ImageSource
        The last ``config.holdout`` images are set aside.
    config : TrainConfig

    Raises
    ------
    DataError
        If fewer than ``holdout + batch_size`` images are there.
    """

    def __init__(self, source: ImageSource, config: TrainConfig) -> None:
        count = len(source.names)
        if count < config.holdout + config.batch_size:
            raise DataError(
                f"{source.label}: {count} images; needed are holdout {config.holdout} "
                f"+ batch {config.batch_size}"
            )
        self.config = config
        side = 2 * config.size
        images = [
            resize(source.read(i), side) for i in progress(range(count), desc="reading faces", leave=False)
        ]
        self.train, self.held_out = images[: -config.holdout], images[-config.holdout :]

    def batch(self, step: int) -> tuple[FloatArray, FloatArray]:
        """Return (input, truth), float32 [N, 3, S, S] in [-1, 1], of training step ``step``."""
        config = self.config
        per_epoch = len(self.train) // config.batch_size
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((config.seed, 1, epoch)).permutation(len(self.train))
        chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
        rng = np.random.default_rng((config.seed, 2, step))
        return self._tensors([self._augment(self.train[i], rng) for i in chosen])

    def held_out_batches(self) -> list[tuple[FloatArray, FloatArray]]:
        """Return the held-out faces as batches, without augmentation."""
        step = self.config.batch_size
        return [self._tensors(self.held_out[i : i + step]) for i in range(0, len(self.held_out), step)]

    def _augment(self, image: Image, rng: np.random.Generator) -> Image:
        """Crop at random (layout jitter) and flip half of the time."""
        side = image.shape[0]
        crop = int(rng.integers(int(self.config.min_crop * side), side + 1))
        top, left = rng.integers(0, side - crop + 1, size=2)
        patch = image[top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        # Area averaging does not alias at any crop size; at exactly 2:1 it equals the bilinear resize.
        small = cv2.resize(patch, (self.config.size, self.config.size), interpolation=cv2.INTER_AREA)
        return np.asarray(small, dtype=np.uint8)

    def _tensors(self, images: list[Image]) -> tuple[FloatArray, FloatArray]:
        pairs = [make_pair(image, self.config.task, self.config.size) for image in images]
        return to_tensor([a for a, _ in pairs]), to_tensor([b for _, b in pairs])
