"""Everything a training can be told: its YAML file, and the parameters of notebook 06."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gpenlib.architecture import GpenConfig
from gpenlib.data.tasks import TaskName
from gpenlib.files import resolve_path
from gpenlib.settings import (
    MOST_THREADS,
    Count,
    RunFolder,
    Seed,
    Settings,
    SettingsError,
    Words,
    plain_name,
    read_yaml,
)

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
    discriminator: float = Field(2e-3, gt=0, description="the discriminator")
    beta1: float = Field(0.0, ge=0, lt=1, description="0 for adversarial training, 0.9 without")
    warmup: int = Field(0, ge=0, description="steps of linear rise")
    decay: Literal["constant", "cosine"] = Field("constant", description="of the rates, after the rise")


class LossWeights(Settings):
    """Factors of the loss terms; a factor of 0 leaves the term (and its work) out.

    The defaults are the paper's. A discriminator that comes trained pulls harder than one that learns beside
    the network: see ``params/train/embed_color.yaml`` for factors that keep the terms in balance.
    """

    content: float = Field(1.0, ge=0, description="distance of output and truth; psnr: mean error in dB")
    content_loss: Literal["smooth_l1", "l1", "mse", "psnr"] = Field("smooth_l1", description="its measure")
    detail: float = Field(0.0, ge=0, description="what lacks of 75 % of the truth's fine detail, by picture")
    harm: float = Field(0.0, ge=0, description="dB by which an answer is worse than its input, if it is")
    adversarial: float = Field(1.0, ge=0, description="non-saturating loss; 0 trains no discriminator")
    feature_matching: float = Field(0.02, ge=0, description="L1 between discriminator features (paper: 0.02)")
    chroma_excess: float = Field(0.0, ge=0, description="steps of chroma beyond the truth's on smooth luma")
    chroma_contrast: float = Field(0.0, ge=0, description="L1 of chroma less that around: lips, eyes")
    identity: float = Field(0.0, ge=0, description="1 - cosine of face-recognition embeddings")
    identity_model: str | None = Field(None, description="TorchScript or ONNX file of the recogniser")
    r1: float = Field(10.0, ge=0, description="gradient penalty on real pictures")
    r1_every: int = Field(16, ge=1, description="lazy regularisation: once in so many steps")
    path_length: float = Field(2.0, ge=0, description="stage prior only")
    path_length_every: int = Field(4, ge=1, description="as r1_every")


class Augmentation(Settings):
    """Differentiable augmentation of what the discriminator sees (stage prior)."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = Field(
        ("color", "translation", "cutout"), description="what is changed"
    )
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

    stage: Literal["prior", "embed", "finetune"] = Field(description="what is trained, see above")
    data_dir: str = Field(description="folder of aligned faces; embedded (one person); prior or prior:FILE")
    run_dir: str = Field(description="checkpoints, log and samples")
    init: str | None = Field(
        None,
        description="weights to start from: a shipped name or a file; a smaller, narrower one seeds its part",
    )
    key: str = Field("", description="entry of init that holds the weights; empty: found by itself")
    discriminator_init: str | None = Field(
        None, description="weights whose discriminator judges, of a width of its own; default: that of init"
    )
    task: TaskName = Field("color", description="how truths are degraded; stage prior has no use for it")
    size: int = Field(128, description="side of the network, a power of two")
    channel_multiplier: int = Field(2, ge=1, le=16, description="width of the levels above 32 px")
    narrow: float = Field(0.25, gt=0, le=16, description="factor on the channels of every level; GPEN's is 1")
    steps: int = Field(ge=1, description="batches in all; a training that stopped goes on to them")
    batch_size: Count = Field(8, description="over all devices")
    holdout: int = Field(48, ge=1, description="last images in natural order, never trained on")
    jitter: Jitter = Jitter()
    learning_rates: LearningRates = LearningRates()
    losses: LossWeights = LossWeights()
    augmentation: Augmentation = Augmentation()
    fade_in: int = Field(
        0, ge=0, description="steps over which the new blocks of a grown discriminator take over (prior)"
    )
    style_mixing: float = Field(0.9, ge=0, le=1, description="share of images with two latents (prior)")
    frozen: Words = Field((), description="names or patterns of modules whose weights stay as they are")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="of the averaged weights, per step")
    seed: Seed = Field(0, description="of weights, order of faces, noise and degradations")
    accelerator: str = Field("auto", description="Lightning Fabric's: auto, cpu, cuda")
    devices: int = Field(1, ge=1, description="processes, one per device; start them with torchrun")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="that networks compute in")
    compile: bool = Field(False, description="torch.compile the networks (needs a C++ compiler on CPU)")
    workers: int = Field(0, ge=0, le=MOST_THREADS, description="processes that read and degrade pictures")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    evaluate_every: int = Field(200, ge=1, description="steps between measurements and samples")

    @property
    def network(self) -> GpenConfig:
        """Configuration of the network to train."""
        return GpenConfig(self.size, self.size, self.channel_multiplier, self.narrow)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _ = self.network  # refuses a size or width that no network has
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size={self.batch_size}: not a multiple of devices={self.devices}")
        if self.stage == "embed" and self.init is None:
            raise ValueError("stage embed needs init: the weights of a trained prior")
        if self.losses.identity and not self.losses.identity_model:
            raise ValueError("losses.identity needs losses.identity_model: a face-recognition network")
        return self


class TrainSettings(RunFolder):
    """The parameters of notebook 06: configuration files, trained in turn, and what replaces their values."""

    train: Words = Field(("params/train/small_prior.yaml", "params/train/small_embed.yaml"), min_length=1)
    data_dir: str | None = Field(None, description="as TrainConfig's; None: the configuration's")
    task: TaskName | None = None
    steps: int | None = Field(None, ge=1)
    size: int | None = None
    batch_size: Count | None = None
    seed: Seed | None = None
    resume: bool = True

    @field_validator("data_dir", "task", "steps", "size", "batch_size", mode="before")
    @classmethod
    def _unset_is_none(cls, value: Any) -> Any:
        return None if value in ("", "0", 0) and value is not False else value

    @field_validator("seed", mode="before")
    @classmethod
    def _no_seed_is_none(cls, value: Any) -> Any:
        return None if value in ("", "-1", -1) else value

    @field_validator("train")
    @classmethod
    def _different_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        stems = [plain_name(Path(file).stem) for file in value]
        if len(set(stems)) < len(stems):
            raise ValueError("each configuration has a folder of its file's name: name different files")
        return value

    def configs(self) -> dict[str, TrainConfig]:
        """Return what is trained, by the name of its file, in order; each in ``06_train/<name>`` of the run.

        Weights inside the ``run_dir`` of an earlier file are looked for where that one is trained now.
        """
        replaced = self.model_dump(
            include={"data_dir", "task", "steps", "size", "batch_size", "seed"}, exclude_none=True
        )
        moved: dict[Path, Path] = {}
        configs = {}
        for file in self.train:
            values = read_yaml(resolve_path(file)) | replaced
            folder = self.folder / "06_train" / Path(file).stem
            if "run_dir" not in values:
                raise SettingsError(f"{file}: missing key 'run_dir'")
            for key in ("init", "discriminator_init"):
                start = resolve_path(str(values.get(key) or ""))
                if start.parent in moved:
                    values[key] = str(moved[start.parent] / start.name)
            moved[resolve_path(str(values["run_dir"]))] = folder
            configs[Path(file).stem] = TrainConfig.parse(values | {"run_dir": str(folder)}, file)
        return configs
