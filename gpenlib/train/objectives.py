"""Differentiable augmentation of what a discriminator sees, so that small data sets do not overfit.

The transformations are DiffAugment's (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN
Training", NeurIPS 2020: colour, translation by 1/8, cutout of 1/2); the adaptive probability is
StyleGAN2-ADA's (Karras et al. 2020, section 3). Both act on real and generated images alike, so that
augmentations do not leak into the samples.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Generator, Gpen, load_generator
from gpenlib.architecture.checkpoints import (
    find_discriminator,
    load_weights,
    open_skips,
    seed_discriminator,
    seed_generator,
    seed_gpen,
    weights_file,
)
from gpenlib.architecture.model import STYLE_DIM, noise_weights
from gpenlib.files import resolve_path
from gpenlib.images import FloatArray, from_tensor
from gpenlib.metrics import psnr
from gpenlib.settings import Augmentation, TrainConfig
from gpenlib.train.batches import TrainingFaces

# ----------------------------------------------------------------------
# Differentiable augmentation of what a discriminator sees, so that small data sets do not overfit.
#
# The transformations are DiffAugment's (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN
# Training", NeurIPS 2020: colour, translation by 1/8, cutout of 1/2); the adaptive probability is
# StyleGAN2-ADA's (Karras et al. 2020, section 3). Both act on real and generated images alike, so that
# augmentations do not leak into the samples.

SHIFT = 1 / 8  # largest translation, as a share of the side
HOLE = 1 / 2  # side of the cutout, as a share of the side


class Augment:
    """Augment images with a probability that can adapt to the discriminator's overfitting.

    Attributes
    ----------
    probability : float
        Share of images that each transformation changes; part of a checkpoint.
    """

    def __init__(self, config: Augmentation) -> None:
        self.config = config
        self.probability = config.probability if config.policy else 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, 3, S, S]; each image is changed on its own."""
        if self.probability == 0.0:
            return images
        for name in self.config.policy:
            chosen = torch.rand(len(images), device=images.device) < self.probability
            images = torch.where(chosen.view(-1, 1, 1, 1), TRANSFORMATIONS[name](images), images)
        return images

    def adapt(self, real_sign: float, images: int) -> None:
        """Move the probability after ``images`` images whose mean sign(D(real)) was ``real_sign``."""
        if self.config.target is not None and self.config.policy:
            direction = 1.0 if real_sign > self.config.target else -1.0
            step = direction * images / self.config.adapt_images
            self.probability = min(1.0, max(0.0, self.probability + step))


def color(images: Tensor) -> Tensor:
    """Shift brightness by up to 0.5, scale saturation by 0 to 2, then contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device).unbind()
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Tensor) -> Tensor:
    """Shift by up to 1/8 of the side in whole pixels; zero (middle grey) moves in."""
    n, _, height, width = images.shape
    theta = torch.eye(2, 3, device=images.device).repeat(n, 1, 1)
    for axis, side in ((0, width), (1, height)):
        limit = int(side * SHIFT + 0.5)
        pixels = torch.randint(-limit, limit + 1, (n,), device=images.device)
        theta[:, axis, 2] = 2.0 * pixels / side
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(images.dtype)


def cutout(images: Tensor) -> Tensor:
    """Set a square of half the side to zero; its centre lies anywhere."""
    n, _, height, width = images.shape
    top = torch.randint(0, height, (n, 1, 1, 1), device=images.device) - int(height * HOLE) // 2
    left = torch.randint(0, width, (n, 1, 1, 1), device=images.device) - int(width * HOLE) // 2
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside_rows = (rows >= top) & (rows < top + int(height * HOLE))
    inside_columns = (columns >= left) & (columns < left + int(width * HOLE))
    return images * ~(inside_rows & inside_columns)


TRANSFORMATIONS = {"color": color, "translation": translation, "cutout": cutout}


# ----------------------------------------------------------------------
# Loss terms: StyleGAN2's adversarial terms and penalties, and GPEN's content terms.

Network = Callable[[Tensor], Tensor]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the logistic loss of a discriminator from its logits [N, 1] on real and generated images."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def nonsaturating_loss(fake: Tensor) -> Tensor:
    """Return the generator's non-saturating loss from the discriminator's logits [N, 1] on its images."""
    return F.softplus(-fake).mean()


def r1_penalty(discriminator: Network, real: Tensor) -> Tensor:
    """Return E[|grad D(x)|^2] on real images [N, 3, S, S] (Mescheder et al. 2018, R1), differentiable."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, latents: Tensor) -> Tensor:
    """Return |J^T y| per image for random images y (StyleGAN2, section 3.2), differentiable.

    Parameters
    ----------
    images : Tensor
        [N, 3, S, S], made from ``latents``.
    latents : Tensor
        w of every layer, [N, L, 512], requiring gradients.

    Returns
    -------
    Tensor
        [N]: the root over layers' mean of the squared gradient norms.
    """
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), latents, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Return the mean L1 distance between discriminator features of output and truth (GPEN, eq. 4)."""
    distances = [F.l1_loss(a, b.detach()) for a, b in zip(fake, real, strict=True)]
    return torch.stack(distances).mean()


# ----------------------------------------------------------------------
# Identity loss: how far a face-recognition network sees output and truth apart.

DEFAULT_SIDE = 112  # ArcFace's input


class IdentityError(ValueError):
    """A face-recognition model that cannot be used; the message says why."""


class IdentityLoss:
    """1 - cosine similarity of embeddings, as the original's ``id_loss``.

    Parameters
    ----------
    path : str or Path
        TorchScript (``.pt``, ``.pth``, ``.torchscript``), or ONNX where the package ``onnx2torch`` is
        installed (ONNX Runtime computes no gradients). It takes RGB float32 [N, 3, side, side] in [-1, 1] and
        returns embeddings [N, D]. You bring the file and its licence.
    device : torch.device
    side : int
        Side of the recogniser's input; pictures are resized (bilinear, antialiased).

    Raises
    ------
    IdentityError
        If the file is absent, of another kind, or needs a package that is not installed.
    """

    def __init__(self, path: str | Path, device: torch.device, side: int = DEFAULT_SIDE) -> None:
        self.model = _load(resolve_path(path)).to(device).eval()
        for parameter in self.model.parameters():  # TorchScript modules have no requires_grad_
            parameter.requires_grad_(False)
        self.side = side

    def __call__(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return the mean over the batch of 1 - cosine, for images [N, 3, S, S] in [-1, 1]."""
        with torch.no_grad():
            wanted = self._embed(truth)
        return (1 - F.cosine_similarity(self._embed(output), wanted, dim=1)).mean()

    def _embed(self, images: Tensor) -> Tensor:
        size = (self.side, self.side)
        small = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        embedding: Tensor = self.model(small)
        return embedding.flatten(1)


def _load(path: Path) -> nn.Module:
    if not path.is_file():
        raise IdentityError(f"{path}: no such face-recognition model")
    if path.suffix != ".onnx":
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise IdentityError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]})") from None
    try:
        from onnx2torch import convert  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise IdentityError(
            f"{path}: an ONNX recogniser needs gradients; install onnx2torch, or give a TorchScript file"
        ) from None
    model: nn.Module = convert(str(path))
    return model


# ----------------------------------------------------------------------
# A discriminator that takes over from one of a smaller size (Progressive GAN, section 2).


class FadeIn(nn.Module):
    """Judge images with the blocks of a smaller discriminator first, and bit by bit with the new ones.

    New blocks in front of trained ones confuse them: without fading, a discriminator that had grown said the
    same of all images for a thousand steps. So the trained blocks begin with what they know, the reduced
    image through their own first layer, and ``share`` moves from that to the features of the new blocks.

    Parameters
    ----------
    whole : Discriminator
        Its lower blocks are those of the smaller one (see :func:`gpenlib.train.seeding.seed_discriminator`).
    from_rgb : nn.Module or None
        First layer of the smaller discriminator, [N, 3, S / 2^k, S / 2^k] -> [N, C, S / 2^k, S / 2^k]; it is
        not trained any more. None: there is nothing to fade in.
    levels : int
        How many blocks are new (k).

    Attributes
    ----------
    share : float
        Of the new blocks; 1 is the whole discriminator alone.
    """

    def __init__(self, whole: Discriminator, from_rgb: nn.Module | None = None, levels: int = 0) -> None:
        super().__init__()
        self.whole = whole
        self.from_rgb = from_rgb.requires_grad_(False) if from_rgb is not None and levels else None
        self.levels = levels
        self.share = 0.0 if self.from_rgb is not None else 1.0

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, 1] for images [N, 3, S, S]."""
        if self.from_rgb is None or self.share >= 1:
            logits: Tensor = self.whole(image)
            return logits
        fresh = self.whole.convs[: 1 + self.levels](image)
        known = self.from_rgb(F.avg_pool2d(image, 2**self.levels))
        x = torch.lerp(known, fresh, self.share)
        return self.whole.head(self.whole.convs[1 + self.levels :](x))


# ----------------------------------------------------------------------
# What every training stage has in common: networks, optimisers, averages, their state.

Losses = dict[str, Tensor]
BETA2 = 0.99


class Objective(ABC):
    """A generator, perhaps a discriminator, and one training step of both.

    Parameters
    ----------
    config : TrainConfig
    fabric : Fabric
        Device, precision and processes. Gradients are averaged over processes with one all-reduce
        before each optimiser step (as StyleGAN3's code does), because DistributedDataParallel does not
        support the second-order gradients of R1 and path length well.

    Attributes
    ----------
    generator, average : Generator or Gpen
        The trained network and the exponential moving average of its weights, which is what ships.
    discriminator : Discriminator or None
    optimizers : dict
        ``g_optim`` and perhaps ``d_optim``.
    """

    generator: Generator | Gpen
    discriminator: Discriminator | None

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        torch.manual_seed(config.seed)  # the same start in every process
        self.generator, self.discriminator = self.build()
        self.generator.set_modulation("activations").to(fabric.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        rates = config.learning_rates
        self.optimizers = {
            "g_optim": _adam(self.generator_groups(), rates.beta1, self.lazy_interval()),
        }
        if self.discriminator is not None:
            self.discriminator.to(fabric.device)
            groups = [(list(self.discriminator.parameters()), rates.discriminator)]
            lazy = config.losses.r1_every if config.losses.r1 else None
            self.optimizers["d_optim"] = _adam(groups, rates.beta1, lazy)

    @abstractmethod
    def build(self) -> tuple[Generator | Gpen, Discriminator | None]:
        """Return the networks as training starts."""

    @abstractmethod
    def generator_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the generator's parameters in groups with a learning rate each."""

    def build_discriminator(self) -> tuple[Discriminator, Discriminator | None]:
        """Return the discriminator as training starts, and the trained one that it grew from, if any.

        It keeps the width of the trained one, so that a discriminator can judge a network of another width.
        """
        config = self.config
        init = config.discriminator_init or config.init
        trained = find_discriminator(weights_file(init)) if init else None
        if trained is None:
            if init:
                self.fabric.print(f"{init} came without discriminator: a new one learns from the start")
            return Discriminator(config.network), None
        model = Discriminator(replace(trained.config, in_size=config.size, out_size=config.size))
        seed_discriminator(model, trained)
        return model, trained

    def lazy_interval(self) -> int | None:
        """Return the interval of the generator's lazy regularisation, if there is one."""
        return None

    @abstractmethod
    def train_step(self, step: int, given: Tensor, truth: Tensor) -> Losses:
        """Update the networks with one batch; return the loss terms."""

    @abstractmethod
    def evaluate(self, faces: TrainingFaces) -> dict[str, float]:
        """Return figures on the held-out faces."""

    @abstractmethod
    def samples(self, faces: TrainingFaces) -> Tensor:
        """Return rows of pictures that show the averaged network, float32 [R, C, 3, S, S] in [-1, 1]."""

    def extra_state(self) -> dict[str, float]:
        """Return what else a resumed run needs."""
        return {}

    def load_extra_state(self, state: dict[str, float]) -> None:
        """Take back :meth:`extra_state`."""
        assert not state, "a stage that returns extra state takes it back"

    def set_learning_rates(self, step: int) -> None:
        """Apply warm-up and decay to every group of every optimiser."""
        rates = self.config.learning_rates
        factor = min(1.0, (step + 1) / max(rates.warmup, 1))
        if rates.decay == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.config.steps))
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def update(self, name: str, loss: Tensor) -> None:
        """Backpropagate ``loss``, average the gradients over all processes, and step one optimiser."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.average_gradients(optimizer)
        optimizer.step()

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace gradients by their mean over processes: one message for all of them."""
        if self.fabric.world_size == 1:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        assert isinstance(flat, Tensor)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def update_average(self, step: int) -> None:
        """Move the averaged weights; young averages follow faster."""
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.generator.parameters()), 1 - decay
            )


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of the module's own weights inside the block."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _adam(
    groups: list[tuple[list[nn.Parameter], float]], beta1: float, lazy_interval: int | None
) -> torch.optim.Adam:
    """Return Adam with the correction for lazy regularisation (StyleGAN2, appendix B)."""
    ratio = lazy_interval / (lazy_interval + 1) if lazy_interval else 1.0
    described = [{"params": p, "lr": rate * ratio, "initial_lr": rate * ratio} for p, rate in groups]
    return torch.optim.Adam(described, betas=(beta1**ratio, BETA2**ratio), eps=1e-8)


# ----------------------------------------------------------------------
# Stage ``prior``: StyleGAN2's training with GPEN's concatenated noise.

SAMPLE_ROWS, SAMPLE_COLUMNS = 3, 8
PATH_LENGTH_DECAY = 0.01
ADAPT_EVERY = 4  # steps between two changes of the augmentation's probability
PATH_BATCH_SHRINK = 2  # path lengths are computed on half a batch, as in StyleGAN2


class PriorObjective(Objective):
    """Non-saturating loss with lazy R1 and path-length penalties, style mixing and augmentation."""

    generator: Generator
    discriminator: Discriminator
    average: Generator

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        super().__init__(config, fabric)
        # During the fade-in the trained blocks judge the reduced image; build() has loaded them.
        self.judge = FadeIn(self.discriminator, *self.trained_rgb).to(fabric.device)
        self.synthesize: Any = self.generator.synthesis
        if config.compile:
            self.synthesize = torch.compile(self.generator.synthesis)
        self.augment = Augment(config.augmentation)
        self.mean_path_length = 0.0
        self.signs: list[float] = []

    def build(self) -> tuple[Generator, Discriminator]:
        """Return random networks, or levels of trained ones where ``init`` has them."""
        config = self.config
        generator = Generator(config.network)
        if config.init:
            seed_generator(generator, load_generator(weights_file(config.init)))
        discriminator, trained = self.build_discriminator()
        self.trained_rgb: tuple[nn.Module | None, int] = (None, 0)
        if trained is not None and config.fade_in:
            self.trained_rgb = (trained.convs[0], config.network.log_out - trained.config.log_out)
        return generator, discriminator

    def generator_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return one group: everything at the generator's rate."""
        return [(list(self.generator.parameters()), self.config.learning_rates.generator)]

    def lazy_interval(self) -> int | None:
        """Return the interval of the path-length penalty."""
        losses = self.config.losses
        return losses.path_length_every if losses.path_length else None

    def train_step(self, step: int, given: Tensor, truth: Tensor) -> Losses:
        """Update discriminator, then generator; every so often their penalties too.

        Both learn from the same generated images, which saves StyleGAN2's second pass of the generator.
        """
        with self.fabric.autocast():
            fake = self.synthesize(self.mixed_latents(len(truth)))
        if self.config.fade_in:
            self.judge.share = min(1.0, step / self.config.fade_in)
        losses = self._discriminator_step(step, truth, fake.detach())
        with frozen(self.discriminator):
            with self.fabric.autocast():
                logits = self.judge(self.augment(fake))
                loss = nonsaturating_loss(logits.float())
            self.update("g_optim", loss)
        losses["adversarial"] = loss.detach()
        config = self.config.losses
        if config.path_length and step % config.path_length_every == 0:
            losses["path_length"] = self._path_length_step(len(truth))
        self._adapt(step)
        return losses

    def _discriminator_step(self, step: int, truth: Tensor, fake: Tensor) -> Losses:
        config = self.config.losses
        with self.fabric.autocast():
            real_logits = self.judge(self.augment(truth)).float()
            fake_logits = self.judge(self.augment(fake)).float()
        loss = discriminator_loss(real_logits, fake_logits)
        self.update("d_optim", loss)
        self.signs.append(real_logits.detach().sign().mean().item())
        losses = {
            "discriminator": loss.detach(),
            "real_logit": real_logits.detach().mean(),
            "fake_logit": fake_logits.detach().mean(),
        }
        if config.r1 and step % config.r1_every == 0:
            penalty = r1_penalty(lambda x: self.judge(self.augment(x)), truth)
            self.update("d_optim", 0.5 * config.r1 * config.r1_every * penalty)
            losses["r1"] = penalty.detach()
        return losses

    def _path_length_step(self, batch: int) -> Tensor:
        """Pull path lengths towards their moving average; return their mean."""
        config = self.config.losses
        latents = self.mixed_latents(max(1, batch // PATH_BATCH_SHRINK))
        if not latents.requires_grad:
            latents.requires_grad_(True)
        lengths = path_lengths(self.generator.synthesis(latents), latents)
        mean = self.fabric.all_reduce(lengths.detach().mean(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        self.mean_path_length += PATH_LENGTH_DECAY * (mean.item() - self.mean_path_length)
        penalty = (lengths - self.mean_path_length).square().mean()
        self.update("g_optim", config.path_length * config.path_length_every * penalty)
        return mean

    def _adapt(self, step: int) -> None:
        if (step + 1) % ADAPT_EVERY == 0:
            sign = self.fabric.all_reduce(torch.tensor(self.signs).mean(), reduce_op="mean")
            assert isinstance(sign, Tensor)
            self.augment.adapt(sign.item(), ADAPT_EVERY * self.config.batch_size)
            self.signs = []

    def mixed_latents(self, batch: int) -> Tensor:
        """Return w of random z, [batch, L, 512]; some images change to a second z at a random layer."""
        layers = self.config.network.num_latents
        device = self.fabric.device
        first, second = self.generator.style(torch.randn(2 * batch, STYLE_DIM, device=device)).chunk(2)
        crossover = torch.randint(1, layers, (batch,), device=device)
        mixed = torch.rand(batch, device=device) < self.config.style_mixing
        crossover = torch.where(mixed, crossover, torch.full_like(crossover, layers))
        takes_second = torch.arange(layers, device=device)[None, :, None] >= crossover[:, None, None]
        return torch.where(takes_second, second[:, None], first[:, None])

    def evaluate(self, faces: TrainingFaces) -> dict[str, float]:
        """Return the discriminator's mean logit on held-out faces, augmented as ``real_logit``'s are.

        A discriminator that learns the training faces by heart gives held-out ones ever lower logits.
        """
        _, truth = faces.held_out
        with torch.inference_mode():
            batches = torch.from_numpy(truth).to(self.fabric.device).split(self.config.batch_size)
            logits = torch.cat([self.judge(self.augment(batch)) for batch in batches])
        return {"held_out_logit": logits.mean().item()}

    def samples(self, faces: TrainingFaces) -> Tensor:
        """Return generated faces of fixed latents: rows of the averaged network."""
        count = SAMPLE_ROWS * SAMPLE_COLUMNS
        random = torch.Generator().manual_seed(self.config.seed)
        z = torch.randn(count, STYLE_DIM, generator=random).to(self.fabric.device)
        with torch.inference_mode():
            noise = self.average.noise_maps(count, self.config.seed)
            images = self.average(z, noise).cpu()
        return images.view(SAMPLE_ROWS, SAMPLE_COLUMNS, *images.shape[1:])

    def extra_state(self) -> dict[str, float]:
        """Return the moving average of path lengths and the augmentation's probability."""
        return {"mean_path_length": self.mean_path_length, "augmentation": self.augment.probability}

    def load_extra_state(self, state: dict[str, float]) -> None:
        """Take back :meth:`extra_state`."""
        self.mean_path_length = state["mean_path_length"]
        self.augment.probability = state["augmentation"]


# ----------------------------------------------------------------------
# Stages ``embed`` and ``finetune``: a whole GPEN on pairs of a degraded picture and its truth.

SAMPLES = 8
CONTENT_LOSSES = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "mse": F.mse_loss}


class RestorationObjective(Objective):
    """Content, adversarial, feature-matching and identity loss (GPEN, section 3.3)."""

    generator: Gpen
    average: Gpen

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        super().__init__(config, fabric)
        self.generate: Any = torch.compile(self.generator) if config.compile else self.generator
        model = config.losses.identity_model
        self.identity = IdentityLoss(model, fabric.device) if config.losses.identity and model else None

    def build(self) -> tuple[Gpen, Discriminator | None]:
        """Return a GPEN from a prior (embed), from trained weights, or from random ones (finetune)."""
        config = self.config
        model = Gpen(config.network)
        if config.stage == "embed":
            seed_generator(model.generator, load_generator(weights_file(str(config.init))))
        elif config.init:
            seed_gpen(model, load_weights(config.init).model)
        else:
            open_skips(model)
        if not self.judged:
            return model, None
        return model, self.build_discriminator()[0]

    @property
    def judged(self) -> bool:
        """Whether a loss term needs a discriminator."""
        return bool(self.config.losses.adversarial or self.config.losses.feature_matching)

    def generator_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the decoder (the prior) and what is new, at the encoder's rate.

        The weights of the noise count as new: they let the encoder's features in, and a prior may have
        learned to do without noise. With ``params/train/embed_color.yaml`` and the content loss alone that
        makes 0.9 dB on the held-out faces after 400 steps.
        """
        rates = self.config.learning_rates
        decoder = set(self.generator.generator.parameters()) - set(noise_weights(self.generator))
        embedded = [p for p in self.generator.parameters() if p in decoder]
        new = [p for p in self.generator.parameters() if p not in decoder]
        return [(embedded, rates.generator * rates.decoder_factor), (new, rates.generator)]

    def train_step(self, step: int, given: Tensor, truth: Tensor) -> Losses:
        """Update the discriminator with this batch's output, then the generator."""
        with self.fabric.autocast():
            output = self.generate(given).float()
        losses = self._discriminator_step(step, output.detach(), truth)
        terms = self._content_terms(output, truth)
        if self.discriminator is not None:
            with frozen(self.discriminator):
                terms |= self._discriminator_terms(output, truth)
                self.update("g_optim", self._weighted(terms))
        else:
            self.update("g_optim", self._weighted(terms))
        return losses | {name: term.detach() for name, term in terms.items()}

    def _weighted(self, terms: Losses) -> Tensor:
        """Return the sum of the terms times their weights in the configuration."""
        weights = self.config.losses
        return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()

    def _content_terms(self, output: Tensor, truth: Tensor) -> Losses:
        terms: Losses = {}
        if self.config.losses.content:
            terms["content"] = CONTENT_LOSSES[self.config.losses.content_loss](output, truth)
        if self.identity is not None:
            terms["identity"] = self.identity(output, truth)
        return terms

    def _discriminator_terms(self, output: Tensor, truth: Tensor) -> Losses:
        assert self.discriminator is not None
        config, terms = self.config.losses, {}
        with self.fabric.autocast():
            logits, features = self.discriminator.logits_and_features(output)
            if config.feature_matching:
                with torch.no_grad():
                    _, wanted = self.discriminator.logits_and_features(truth)
                terms["feature_matching"] = feature_matching(features, wanted).float()
        if config.adversarial:
            terms["adversarial"] = nonsaturating_loss(logits.float())
        return terms

    def _discriminator_step(self, step: int, output: Tensor, truth: Tensor) -> Losses:
        if self.discriminator is None:
            return {}
        config = self.config.losses
        with self.fabric.autocast():
            real, fake = self.discriminator(truth), self.discriminator(output)
        loss = discriminator_loss(real.float(), fake.float())
        self.update("d_optim", loss)
        losses = {
            "discriminator": loss.detach(),
            "real_logit": real.detach().float().mean(),
            "fake_logit": fake.detach().float().mean(),
        }
        if config.r1 and step % config.r1_every == 0:
            penalty = r1_penalty(self.discriminator, truth)
            self.update("d_optim", 0.5 * config.r1 * config.r1_every * penalty)
            losses["r1"] = penalty.detach()
        return losses

    def evaluate(self, faces: TrainingFaces) -> dict[str, float]:
        """Return the mean PSNR in dB of the averaged network on the held-out faces."""
        given, truth = faces.held_out
        images = zip(from_tensor(self._restore(given)), from_tensor(truth), strict=True)
        scores = [psnr(a, b) for a, b in images]
        return {"held_out_psnr": sum(scores) / len(scores)}

    def samples(self, faces: TrainingFaces) -> Tensor:
        """Return three rows of held-out faces: input, output, truth."""
        given, truth = (array[:SAMPLES] for array in faces.held_out)
        rows = (given, self._restore(given), truth)
        return torch.stack([torch.from_numpy(row) for row in rows])

    def _restore(self, given: FloatArray) -> FloatArray:
        with torch.inference_mode():
            batches = torch.from_numpy(given).to(self.fabric.device).split(self.config.batch_size)
            output: FloatArray = torch.cat([self.average(batch) for batch in batches]).cpu().numpy()
        return output
