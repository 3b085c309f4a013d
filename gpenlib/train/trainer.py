"""The training loop: devices and processes through Lightning Fabric, exact resume, logs, samples."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from gpenlib.architecture import Generator, Gpen, save_checkpoint
from gpenlib.images import Image, from_tensor, write_image
from gpenlib.progress import progress
from gpenlib.run import resolve_path
from gpenlib.train.config import TrainConfig
from gpenlib.train.faces import TrainingFaces, open_training_faces
from gpenlib.train.log import LOG, SAMPLES
from gpenlib.train.objective import Objective
from gpenlib.train.prior import PriorObjective
from gpenlib.train.restoration import RestorationObjective
from gpenlib.train.state import TrainingError, load_state, save_state
from gpenlib.weights import discriminator_file

CHECKPOINT = "checkpoint.pt"
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_objective(config: TrainConfig, fabric: Fabric) -> Objective:
    """Return the networks and the training step of a stage."""
    return PriorObjective(config, fabric) if config.stage == "prior" else RestorationObjective(config, fabric)


class Trainer:
    """Run a stage of training until ``config.steps``, or part of the way.

    Everything random depends on (seed, step, process): a killed run that goes on from its checkpoint ends
    with the same weights (on a CPU to the bit).

    Parameters
    ----------
    config : TrainConfig

    Attributes
    ----------
    step : int
        Steps done.
    objective : Objective
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.run_dir = resolve_path(config.run_dir)
        self.board = TensorBoardLogger(self.run_dir, name="tensorboard", version="")
        self.fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy="ddp" if config.devices > 1 else "auto",
            precision=PRECISIONS[config.precision],
            loggers=self.board,
        )
        self.fabric.launch()
        self.objective = make_objective(config, self.fabric)
        self.step = 0

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.run_dir / CHECKPOINT

    def run(self) -> Gpen | Generator:
        """Train until ``config.steps``, resuming if a checkpoint is there; return the averaged network."""
        return self.run_until(self.config.steps)

    def run_until(self, stop: int) -> Gpen | Generator:
        """Train until step ``stop`` of the run of ``config.steps``, which fixes the learning rates.

        Raises
        ------
        TrainingError
            If a loss or weight is not finite, or a checkpoint of another configuration is in the way.
        """
        config, fabric = self.config, self.fabric
        if self.step == 0 and self.checkpoint.is_file():
            self.step = load_state(self.checkpoint, self.objective)
        faces = TrainingFaces(open_training_faces(config), config)
        batches = faces.loader(self.step, stop, fabric.global_rank, fabric.world_size)
        bar = progress(batches, initial=self.step, total=config.steps, desc=config.stage)
        started = time.perf_counter()
        for given, truth in bar:
            losses = self._train_step(given, truth)
            seconds = time.perf_counter() - started
            rate = config.batch_size / seconds
            bar.set_postfix(
                refresh=False, images_per_s=f"{rate:.1f}", **{k: f"{v:.3g}" for k, v in losses.items()}
            )
            self._log(losses | {"images_per_s": rate})
            if self.step % config.evaluate_every == 0 or self.step == stop:
                self._evaluate(faces)
            if self.step % config.checkpoint_every == 0 or self.step == stop:
                self._save()
            started = time.perf_counter()
        return self.objective.average

    def _train_step(self, given: Tensor, truth: Tensor) -> dict[str, float]:
        """Do one step with random numbers of its own; return the loss terms."""
        torch.manual_seed(_seed(self.config.seed, self.step, self.fabric.global_rank))
        self.objective.set_learning_rates(self.step)
        pair = (
            self.fabric.to_device(t).contiguous(memory_format=torch.channels_last) for t in (given, truth)
        )
        losses = {name: value.item() for name, value in self.objective.train_step(self.step, *pair).items()}
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if wrong:
            last = self.checkpoint if self.checkpoint.is_file() else "none yet"
            raise TrainingError(f"loss {wrong} at step {self.step}; last good checkpoint: {last}")
        self.objective.update_average(self.step)
        self.step += 1
        return losses

    def _evaluate(self, faces: TrainingFaces) -> None:
        """Score and show the averaged network on held-out faces (one process; the others wait)."""
        if self.fabric.is_global_zero:
            self._log(self.objective.evaluate(faces))
            picture = grid(self.objective.samples(faces).numpy())
            write_image(self.run_dir / SAMPLES / f"{self.step:07d}.png", picture)
            self.board.experiment.add_image("samples", picture, self.step, dataformats="HWC")
        self.fabric.barrier()

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            save_state(self.checkpoint, self.objective, self.step)
        self.fabric.barrier()

    def save_weights(self) -> Path:
        """Write the averaged network as fp16 safetensors, with a note of what it was trained for.

        The discriminator, if there is one, goes beside it.
        """
        prior = self.config.stage == "prior"
        notes = {"stage": "prior"} if prior else {"task": self.config.task}
        path = self.run_dir / "weights.safetensors"
        if self.objective.discriminator is not None:
            save_checkpoint(self.objective.discriminator, discriminator_file(path), torch.float16)
        return save_checkpoint(self.objective.average, path, torch.float16, notes)

    def _log(self, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard and to ``log.jsonl``, which notebook 06 reads."""
        self.fabric.log_dict(values, step=self.step)
        if self.fabric.is_global_zero:
            with (self.run_dir / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step} | values) + "\n")


def _seed(*parts: int) -> int:
    """Return one well-mixed seed of several whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def grid(images: np.ndarray[Any, Any]) -> Image:
    """Return rows of pictures [R, C, 3, S, S] in [-1, 1] as one uint8 RGB picture [R*S, C*S, 3]."""
    return np.asarray(cv2.vconcat([cv2.hconcat(list(from_tensor(row))) for row in images]), dtype=np.uint8)
