"""What every training stage has in common: networks, optimisers, averages, their state."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Generator, Gpen
from gpenlib.train.config import TrainConfig
from gpenlib.train.faces import TrainingFaces
from gpenlib.train.seeding import find_discriminator, seed_discriminator
from gpenlib.weights import weights_file

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
