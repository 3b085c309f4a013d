"""Stage ``prior``: StyleGAN2's training with GPEN's concatenated noise."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Generator, load_generator
from gpenlib.architecture.config import STYLE_DIM
from gpenlib.train.augment import Augment
from gpenlib.train.config import TrainConfig
from gpenlib.train.faces import TrainingFaces
from gpenlib.train.growing import FadeIn
from gpenlib.train.losses import discriminator_loss, nonsaturating_loss, path_lengths, r1_penalty
from gpenlib.train.objective import Losses, Objective, frozen
from gpenlib.train.seeding import seed_generator
from gpenlib.weights import weights_file

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
