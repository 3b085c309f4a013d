"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gpenlib.architecture import GpenConfig
from gpenlib.settings import Settings


class TrainConfig(Settings):
    """Reconstruction training of a whole GPEN from random weights.

    The learning rate belongs to equalised weights (about 2e-3); it rises linearly over ``warmup`` steps
    and then falls to zero as a half cosine at ``steps``.
    """

    data_dir: str = Field(description="folder of aligned faces")
    run_dir: str = Field(description="checkpoints, log and samples")
    task: Literal["color"] = "color"
    size: int = 128
    channel_multiplier: int = 2
    narrow: float = 0.25
    steps: int = Field(3000, ge=1)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(50, ge=0)
    loss: Literal["l1", "smooth_l1", "mse"] = "l1"
    ema_decay: float = Field(0.995, ge=0, lt=1)
    holdout: int = Field(48, ge=1, description="last images in natural order, never trained on")
    min_crop: float = Field(0.9, gt=0.5, le=1, description="smallest random crop, as a share of the side")
    seed: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = Field(False, description="torch.compile the training step (needs a C++ compiler on CPU)")
    threads: int | None = None
    checkpoint_every: int = Field(100, ge=1)
    evaluate_every: int = Field(200, ge=1)

    @property
    def network(self) -> GpenConfig:
        """Configuration of the network to train."""
        return GpenConfig(self.size, self.size, self.channel_multiplier, self.narrow)
