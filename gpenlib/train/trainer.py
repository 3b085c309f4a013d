"""A small trainer: one network, one reconstruction loss, exact resume."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpenlib.architecture import Gpen
from gpenlib.architecture.generator import NoiseInjection
from gpenlib.data.sources import open_folder
from gpenlib.images import from_tensor
from gpenlib.metrics import psnr
from gpenlib.progress import progress
from gpenlib.run import resolve_path, write_atomically
from gpenlib.train.batches import TrainingFaces
from gpenlib.train.config import TrainConfig

CHECKPOINT = "checkpoint.pt"
LOSSES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}
# These may change on resume without changing what is learned from here on.
RESUMABLE_CHANGES = {
    "threads",
    "compile",
    "device",
    "checkpoint_every",
    "evaluate_every",
    "run_dir",
    "data_dir",
}


class TrainingError(RuntimeError):
    """Training that cannot go on; the message names the last good checkpoint."""


class Trainer:
    """Train GPEN from random weights with a reconstruction loss.

    Parameters
    ----------
    config : TrainConfig

    Notes
    -----
    Without a pretrained prior the encoder's features are the main path, so their concatenation weights
    start at 1 instead of StyleGAN2's 0. Modulation scales activations while training (equal mathematics,
    no grouped convolutions).
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.run_dir = resolve_path(config.run_dir)
        self.device = torch.device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = Gpen(config.network).set_modulation("activations")
        with torch.no_grad():
            for module in self.model.modules():
                if isinstance(module, NoiseInjection):
                    module.weight.fill_(1.0)
        self.model.to(self.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        self._forward = torch.compile(self.model) if config.compile else self.model

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.run_dir / CHECKPOINT

    def run(self) -> Gpen:
        """Train until ``config.steps``, resuming if a checkpoint is there; return the EMA network."""
        return self.run_until(self.config.steps)

    def run_until(self, stop: int) -> Gpen:
        """Train until step ``stop`` of the run of ``config.steps``, which fixes the learning rates.

        Raises
        ------
        TrainingError
            If the loss is not finite, or a checkpoint of another configuration is in the way.
        """
        faces = TrainingFaces(open_folder(resolve_path(self.config.data_dir)), self.config)
        if self.step == 0 and self.checkpoint.is_file():
            self._resume()
        bar = progress(range(self.step, stop), initial=self.step, total=self.config.steps, desc="train")
        for _ in bar:
            started = time.perf_counter()
            loss = self._train_step(faces)
            seconds = time.perf_counter() - started
            bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{self.config.batch_size / seconds:.1f}")
            self._log({"step": self.step, "loss": loss, "seconds": round(seconds, 3)})
            if self.step % self.config.evaluate_every == 0 or self.step == stop:
                self._log({"step": self.step, "held_out_psnr": self.evaluate(faces)})
            if self.step % self.config.checkpoint_every == 0 or self.step == stop:
                self._save()
        return self.ema

    def evaluate(self, faces: TrainingFaces) -> float:
        """Return the mean PSNR in dB of the EMA network on the held-out faces."""
        scores = []
        with torch.inference_mode():
            for grey, truth in faces.held_out_batches():
                output = self.ema(torch.from_numpy(grey).to(self.device)).float().cpu().numpy()
                scores += [psnr(a, b) for a, b in zip(from_tensor(output), from_tensor(truth), strict=True)]
        return sum(scores) / len(scores)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, then half a cosine down to zero."""
        warm = min(1.0, (step + 1) / max(self.config.warmup, 1))
        return self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))

    def _train_step(self, faces: TrainingFaces) -> float:
        grey, truth = (self._to_device(array) for array in faces.batch(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self._forward(grey)
        loss = LOSSES[self.config.loss](output.float(), truth)
        value = loss.item()
        if not math.isfinite(value):
            last = self.checkpoint if self.checkpoint.is_file() else "none yet"
            raise TrainingError(f"loss is {value} at step {self.step}; last good checkpoint: {last}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._update_ema()
        self.step += 1
        return value

    def _update_ema(self) -> None:
        """Move the averaged weights; young averages follow faster."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)

    def _to_device(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.device).contiguous(memory_format=torch.channels_last)

    def _save(self) -> None:
        state = {
            "g": self.model.state_dict(),
            "g_ema": self.ema.state_dict(),
            "g_optim": self.optimizer.state_dict(),
            "step": self.step,
            "config": self.config.model_dump(),
        }
        with write_atomically(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        now = self.config.model_dump()
        changed = [k for k in now if k not in RESUMABLE_CHANGES and state["config"].get(k) != now[k]]
        if changed:
            raise TrainingError(
                f"{self.checkpoint} was made with other settings ({', '.join(changed)}); "
                "choose another run_dir"
            )
        self.model.load_state_dict(state["g"])
        self.ema.load_state_dict(state["g_ema"])
        self.optimizer.load_state_dict(state["g_optim"])
        self.step = state["step"]

    def _log(self, row: dict[str, Any]) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.run_dir / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
