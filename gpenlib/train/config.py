"""Settings of a training run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from gpenlib.architecture import GpenConfig
from gpenlib.data.tasks import TaskName
from gpenlib.settings import Settings

Stage = Literal["prior", "embed", "finetune"]
Range = tuple[float, float]


class Jitter(Settings):
    """Random changes to the truth pictures before a task degrades them."""

    min_crop: float = Field(1.0, gt=0.5, le=1, description="smallest random crop, as a share of the side")
    mirror: bool = Field(True, description="flip half of the pictures")
    saturation: Range = Field((1.0, 1.0), description="factor on the distance of a colour from its grey")
    contrast: Range = Field((1.0, 1.0), description="factor on the distance from middle grey")
    sharpness: Range = Field((0.0, 0.0), description="amount of an unsharp mask (radius 1 pixel of ``size``)")


class LearningRates(Settings):
    """Adam's rates; the weights are equalised, so 2e-3 is StyleGAN2's.

    GPEN trains encoder, decoder and discriminator at 100 : 10 : 1 (section 4.1 of the paper).
    """

    generator: float = Field(2e-3, gt=0, description="the encoder; in stage prior the whole generator")
    decoder_factor: float = Field(1.0, ge=0, description="rate of the embedded prior over the encoder's")
    discriminator: float = Field(2e-3, gt=0)
    beta1: float = Field(0.0, ge=0, lt=1, description="0 for adversarial training, 0.9 without")
    warmup: int = Field(0, ge=0, description="steps of linear rise")
    decay: Literal["constant", "cosine"] = "constant"


class LossWeights(Settings):
    """Factors of the loss terms; a factor of 0 leaves the term (and its work) out.

    The defaults are the paper's. A discriminator that comes trained pulls harder than one that learns beside
    the network: see ``params/train/embed_color.yaml`` for factors that keep the terms in balance.
    """

    content: float = Field(1.0, ge=0, description="distance between output and truth")
    content_loss: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    adversarial: float = Field(1.0, ge=0, description="non-saturating loss; 0 trains no discriminator")
    feature_matching: float = Field(0.02, ge=0, description="L1 between discriminator features (paper: 0.02)")
    identity: float = Field(0.0, ge=0, description="1 - cosine of face-recognition embeddings")
    identity_model: str | None = Field(None, description="TorchScript or ONNX file of the recogniser")
    r1: float = Field(10.0, ge=0, description="gradient penalty on real pictures")
    r1_every: int = Field(16, ge=1, description="lazy regularisation: once in so many steps")
    path_length: float = Field(2.0, ge=0, description="stage prior only")
    path_length_every: int = Field(4, ge=1)


class Augmentation(Settings):
    """Differentiable augmentation of what the discriminator sees (stage prior)."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    probability: float = Field(1.0, ge=0, le=1, description="share of pictures augmented, at the start")
    target: float | None = Field(
        None, description="adapt the probability until mean sign(D(real)) is this; StyleGAN2-ADA takes 0.6"
    )
    adapt_images: int = Field(100_000, ge=1, description="images in which the probability can rise by 1")


class TrainConfig(Settings):
    """One training run; see ``params/train`` for complete examples.

    ``stage`` says what is trained: ``prior``, a StyleGAN2 with GPEN's concatenated noise; ``embed``, a GPEN
    whose decoder starts as a trained prior and whose encoder is new; ``finetune``, a whole GPEN from
    ``init`` (or from random weights).
    """

    stage: Stage
    data_dir: str = Field(description="folder of aligned faces; embedded (one person); prior or prior:FILE")
    run_dir: str = Field(description="checkpoints, log and samples")
    init: str | None = Field(
        None,
        description="weights to start from: a shipped name or a file; a smaller network seeds its levels",
    )
    discriminator_init: str | None = Field(
        None, description="weights whose discriminator judges, of a width of its own; default: that of init"
    )
    task: TaskName = "color"
    size: int = 128
    channel_multiplier: int = 2
    narrow: float = 0.25
    steps: int = Field(ge=1)
    batch_size: int = Field(8, ge=1, description="over all devices")
    holdout: int = Field(48, ge=1, description="last images in natural order, never trained on")
    jitter: Jitter = Jitter()
    learning_rates: LearningRates = LearningRates()
    losses: LossWeights = LossWeights()
    augmentation: Augmentation = Augmentation()
    fade_in: int = Field(
        0, ge=0, description="steps over which the new blocks of a grown discriminator take over (prior)"
    )
    style_mixing: float = Field(0.9, ge=0, le=1, description="share of images with two latents (prior)")
    ema_decay: float = Field(0.998, ge=0, lt=1)
    seed: int = 0
    accelerator: str = Field("auto", description="Lightning Fabric's: auto, cpu, cuda")
    devices: int = Field(1, ge=1, description="processes, one per device; start them with torchrun")
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = Field(False, description="torch.compile the networks (needs a C++ compiler on CPU)")
    workers: int = Field(0, ge=0, description="processes that read and degrade pictures")
    checkpoint_every: int = Field(200, ge=1)
    evaluate_every: int = Field(200, ge=1)

    @property
    def network(self) -> GpenConfig:
        """Configuration of the network to train."""
        return GpenConfig(self.size, self.size, self.channel_multiplier, self.narrow)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size={self.batch_size}: not a multiple of devices={self.devices}")
        if self.stage == "embed" and self.init is None:
            raise ValueError("stage embed needs init: the weights of a trained prior")
        if self.losses.identity and not self.losses.identity_model:
            raise ValueError("losses.identity needs losses.identity_model: a face-recognition network")
        return self
