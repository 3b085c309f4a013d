"""Stages ``embed`` and ``finetune``: a whole GPEN on pairs of a degraded picture and its truth."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Gpen, load_generator
from gpenlib.architecture.generator import noise_weights
from gpenlib.images import FloatArray, from_tensor
from gpenlib.metrics import psnr
from gpenlib.train.config import TrainConfig
from gpenlib.train.faces import TrainingFaces
from gpenlib.train.identity import IdentityLoss
from gpenlib.train.losses import discriminator_loss, feature_matching, nonsaturating_loss, r1_penalty
from gpenlib.train.objective import Losses, Objective, frozen
from gpenlib.train.seeding import open_skips, seed_generator, seed_gpen
from gpenlib.weights import load_weights, weights_file

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
