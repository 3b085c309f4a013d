"""What is minimised: losses, augmentation, what all stages share, then the stages, in the order of a step."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpenlib.architecture import Discriminator, Generator, Gpen, checkpoints
from gpenlib.architecture.checkpoints import CheckpointError, weights_file
from gpenlib.architecture.model import STYLE_DIM, ConvLayer, noise_weights
from gpenlib.files import resolve_path
from gpenlib.images import LUMA, FloatArray, from_tensor
from gpenlib.metrics import DETAIL_RADIUS, psnr
from gpenlib.train.batches import TrainingFaces
from gpenlib.train.config import Augmentation, TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Losses = dict[str, Tensor]
Network = Callable[[Tensor], Tensor]
Groups = list[tuple[list[nn.Parameter], float]]  # parameters and their learning rate


class TrainingError(RuntimeError):
    """Training that cannot start or go on; the message names the file, or the last good checkpoint."""


# Losses: StyleGAN2's adversarial terms and penalties, GPEN's content terms.
def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the logistic loss of a discriminator from its logits [N, 1] on real and generated images."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def nonsaturating_loss(fake: Tensor) -> Tensor:
    """Return the generator's non-saturating loss from the discriminator's logits [N, 1] on its images."""
    return F.softplus(-fake).mean()


def decibels(output: Tensor, truth: Tensor) -> Tensor:
    """Return the squared error of each picture in dB, [N]: PSNR's negative, but for a constant."""
    return 10 * torch.log10((output - truth).square().flatten(1).mean(dim=1) + 1e-6)


def mean_decibels(output: Tensor, truth: Tensor) -> Tensor:
    """Return the mean error in dB: a tenth off the error of any picture counts alike (Chen et al. 2021)."""
    return decibels(output, truth).mean()


def harm(output: Tensor, degraded: Tensor, truth: Tensor) -> Tensor:
    """Return by how many dB answers are worse than what was given, where they are: the mean of all."""
    return F.relu(decibels(output, truth) - decibels(degraded, truth)).mean()


def missing_detail(output: Tensor, truth: Tensor, share: float = 0.75) -> Tensor:
    """Return by how much less than ``share`` of the truth's detail pictures show (``metrics.detail``), mean.

    The mean of all that a face might have been, which a distance to the truth asks for, shows each detail as
    weakly as it is in doubt. This has it drawn bolder there, and leaves alone what shows enough.
    """
    reach = math.ceil(3 * DETAIL_RADIUS)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=truth.device) / DETAIL_RADIUS) ** 2)
    row = (taps / taps.sum()).view(1, 1, 1, -1)
    both = luma(torch.cat([output, truth]))
    blurred = F.conv2d(F.conv2d(F.pad(both, (reach,) * 4, "reflect"), row), row.transpose(2, 3))
    made, wanted = (both - blurred).flatten(1).chunk(2)
    seen = (made * wanted).mean(dim=1) / (wanted.square().mean(dim=1) + 1e-6)
    return F.relu(share - seen).mean()


CONTENT_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "mse": F.mse_loss, "psnr": mean_decibels,
}  # fmt: skip


def r1_penalty(discriminator: Network, real: Tensor) -> Tensor:
    """Return E[|grad D(x)|^2] on real images [N, 3, S, S] (Mescheder et al. 2018, R1), differentiable."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, latents: Tensor) -> Tensor:
    """Return |J^T y| [N] of images [N, 3, S, S] made from w [N, L, 512] (StyleGAN2, 3.2), differentiable."""
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), latents, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Return the mean L1 distance between discriminator features of output and truth (GPEN, eq. 4)."""
    distances = [F.l1_loss(a, b.detach()) for a, b in zip(fake, real, strict=True)]
    return torch.stack(distances).mean()


SMOOTH = 0.05  # step of luma, of a range of 2, beyond which neighbours may well differ in colour
SCALES = (1, 4, 16)  # pixels to a side of what is compared with its neighbours
SURROUNDINGS = 16  # reach of what surrounds a pixel: a side of the picture by this; eyes and lips are smaller


def excess_of_chroma(output: Tensor, truth: Tensor) -> Tensor:
    """Return by how much chroma varies more than the truth's where the truth's luma is smooth.

    Neighbours of like luma have like colours (Levin et al., Colorization using Optimization, 2004): pixels,
    and squares, so that a wall does not pass from pink to blue. The truth's own steps cost nothing.
    """
    made, true = (chroma(image) for image in (output, truth))
    whole, terms = torch.cat([made, true, truth[:, :1] - true[:, :1]], dim=1), []  # not chroma is luma
    for means in (F.avg_pool2d(whole, scale) for scale in SCALES if 2 * scale <= output.shape[-1]):
        for axis in (2, 3):
            steps = means.diff(dim=axis).abs()
            terms.append((torch.exp(-steps[:, 4:] / SMOOTH) * F.relu(steps[:, :2] - steps[:, 2:4])).mean())
    return torch.stack(terms).sum()


def contrast_of_chroma(output: Tensor, truth: Tensor) -> Tensor:
    """Return the L1 distance of chroma less its surroundings', more where the truth has some: lips, eyes."""
    reach = output.shape[-1] // SURROUNDINGS
    both = torch.cat([chroma(output), chroma(truth)])
    made, true = (both - F.avg_pool2d(both, 2 * reach + 1, 1, reach, count_include_pad=False)).chunk(2)
    weight = true.abs() + true.abs().mean() + 1e-6  # of grey truths, too
    return (weight * (made - true).abs()).mean() / weight.mean()


def chroma(image: Tensor) -> Tensor:
    """Return red and blue less luma, [N, 2, H, W], of RGB."""
    return image[:, ::2] - luma(image)


def luma(image: Tensor) -> Tensor:
    """Return the weighted mean of red, green and blue, [N, 1, H, W]."""
    return (image * image.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


class IdentityLoss:
    """1 - cosine similarity of a face recogniser's embeddings [N, D], as the original's ``id_loss``.

    You bring the recogniser and its licence: TorchScript, or ONNX where ``onnx2torch`` is installed (ONNX
    Runtime computes no gradients), of RGB float32 [N, 3, side, side] in [-1, 1]; ArcFace takes 112 px.
    """

    def __init__(self, path: str | Path, device: torch.device, side: int = 112) -> None:
        path = resolve_path(path)
        try:
            if path.suffix == ".onnx":
                from onnx2torch import convert  # type: ignore[import-not-found,unused-ignore]

                model: nn.Module = convert(str(path))
            else:
                model = torch.jit.load(str(path), map_location="cpu")
        except (ImportError, RuntimeError, ValueError, OSError) as error:  # ValueError: no such file
            reason = str(error).splitlines()[0]
            advice = "give a TorchScript file, or an ONNX file with onnx2torch installed"
            raise TrainingError(f"losses.identity_model={path}: {reason}; {advice}") from error
        self.model, self.side = model.to(device).eval(), side
        for parameter in self.model.parameters():  # TorchScript modules have no requires_grad_
            parameter.requires_grad_(False)

    def __call__(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return the mean over the batch of 1 - cosine, for images [N, 3, S, S] in [-1, 1]."""
        with torch.no_grad():
            target = self._embed(truth)
        return (1 - F.cosine_similarity(self._embed(output), target, dim=1)).mean()

    def _embed(self, images: Tensor) -> Tensor:
        small = F.interpolate(images.float(), (self.side, self.side), mode="bilinear", antialias=True)
        return cast(Tensor, self.model(small)).flatten(1)


# Augmentation of what a discriminator sees, so that small data sets do not overfit: DiffAugment (Zhao et al.,
# NeurIPS 2020) with the adaptive probability of StyleGAN2-ADA (Karras et al. 2020, section 3). Real and
# generated images are treated alike, so that augmentations do not leak into the samples.
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
        limit = int(side / 8 + 0.5)
        pixels = torch.randint(-limit, limit + 1, (n,), device=images.device)
        theta[:, axis, 2] = 2.0 * pixels / side
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(images.dtype)


def cutout(images: Tensor) -> Tensor:
    """Set a square of half the side to zero; its centre lies anywhere."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis in (2, 3):
        side = images.shape[axis]
        start = torch.randint(0, side, (len(images), 1, 1, 1), device=images.device) - side // 2 // 2
        places = torch.arange(side, device=images.device).view([-1, 1] if axis == 2 else [1, -1])
        inside = inside & (places >= start) & (places < start + side // 2)
    return images * ~inside  # [N, 3, H, W] * [N, 1, H, W]


TRANSFORMATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(images: Tensor, policy: Sequence[str], probability: float) -> Tensor:
    """Change each image [N, 3, S, S] on its own by each transformation of a policy with a probability."""
    for name in policy if probability else ():
        chosen = torch.rand(len(images), device=images.device) < probability
        images = torch.where(chosen.view(-1, 1, 1, 1), TRANSFORMATIONS[name](images), images)
    return images


def adapted(probability: float, config: Augmentation, real_sign: float, images: int) -> float:
    """Return the probability after ``images`` images whose mean sign(D(real)) was ``real_sign``."""
    if config.target is None:
        return probability
    step = images / config.adapt_images
    return min(1.0, max(0.0, probability + (step if real_sign > config.target else -step)))


class FadeIn(nn.Module):
    """A discriminator that takes over from one of a smaller size (Progressive GAN, section 2).

    Without fading, a discriminator that had grown said the same of all images for a thousand steps. So its
    trained blocks begin with what they know, the image reduced by 2^levels through their former first layer
    ``from_rgb`` (now fixed), and ``share`` moves from that (0) to features of the ``levels`` new blocks (1).
    """

    def __init__(self, whole: Discriminator, from_rgb: nn.Module | None = None, levels: int = 0) -> None:
        super().__init__()
        self.whole, self.levels = whole, levels
        self.from_rgb = from_rgb.requires_grad_(False) if from_rgb is not None and levels else None
        self.share = 0.0 if self.from_rgb is not None else 1.0

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, 1] for images [N, 3, S, S]."""
        if self.from_rgb is None or self.share >= 1:
            return cast(Tensor, self.whole(image))
        fresh = self.whole.convs[: 1 + self.levels](image)
        known = self.from_rgb(F.avg_pool2d(image, 2**self.levels))
        x = torch.lerp(known, fresh, self.share)
        return self.whole.head(self.whole.convs[1 + self.levels :](x))


class Objective:
    """What every stage has in common: networks, the moving average that ships, optimisers, their steps."""

    generator: Generator | Gpen
    discriminator: Discriminator | None
    judge: Network  # what sees real and generated images: the discriminator, perhaps with augmentation

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        torch.manual_seed(config.seed)  # the same start in every process
        try:
            self.generator, groups, self.discriminator = self.build()
        except CheckpointError:
            raise
        except ValueError as error:  # of another size or width
            names = f"init={config.init}, discriminator_init={config.discriminator_init}"
            raise TrainingError(f"{names}: {error}") from error
        groups = self._without_frozen(groups)
        self.generator.set_modulation("activations").to(fabric.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        losses = config.losses
        lazy = losses.path_length_every if config.stage == "prior" and losses.path_length else None
        self.optimizers = {"g_optim": self._adam(groups, lazy)}
        if self.discriminator is not None:
            self.discriminator.to(fabric.device)
            groups = [(list(self.discriminator.parameters()), config.learning_rates.discriminator)]
            self.optimizers["d_optim"] = self._adam(groups, losses.r1_every if losses.r1 else None)

    def build(self) -> tuple[Generator | Gpen, Groups, Discriminator | None]:
        """Return the networks as training starts, and the rates of the generator's parameters."""
        raise NotImplementedError

    def _without_frozen(self, groups: Groups) -> Groups:
        """Fix the generator's modules that ``frozen`` names, and return what else there is to learn."""
        modules = dict(self.generator.named_modules())
        for pattern in self.config.frozen:
            if not (named := fnmatch.filter(modules, pattern)):
                raise TrainingError(f"frozen={pattern}: no module of the network has that name")
            for name in named:
                modules[name].requires_grad_(False)
        groups = [([p for p in parameters if p.requires_grad], rate) for parameters, rate in groups]
        if not any(parameters for parameters, _ in groups):
            raise TrainingError(f"frozen={','.join(self.config.frozen)}: nothing is left to learn")
        return groups

    def build_discriminator(self) -> tuple[Discriminator, Discriminator | None]:
        """Return the discriminator as training starts, and the trained one, as wide, that it grew from."""
        config, init = self.config, self.config.discriminator_init or self.config.init
        trained = checkpoints.find_discriminator(weights_file(init)) if init else None
        if trained is None and config.discriminator_init:
            raise TrainingError(f"discriminator_init={init}: no discriminator there that can be read")
        if trained is None:
            if init:
                self.fabric.print(f"{init} came without discriminator: a new one learns from the start")
            return Discriminator(config.network), None
        model = Discriminator(replace(trained.config, in_size=config.size, out_size=config.size))
        checkpoints.seed_discriminator(model, trained)
        return model, trained

    def discriminator_step(self, step: int, real: Tensor, fake: Tensor) -> tuple[Losses, Tensor]:
        """Update the discriminator, every so often R1 too; return the terms and the real logits [N, 1]."""
        assert self.discriminator is not None
        config = self.config.losses
        self.discriminator.requires_grad_(True)  # its weights learn here alone
        with self.fabric.autocast():
            real_logits, fake_logits = self.judge(real).float(), self.judge(fake).float()
        loss = discriminator_loss(real_logits, fake_logits)
        self.update("d_optim", loss)
        losses = {"discriminator": loss, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
        if config.r1 and step % config.r1_every == 0:
            losses["r1"] = r1_penalty(self.judge, real)
            self.update("d_optim", 0.5 * config.r1 * config.r1_every * losses["r1"])
        self.discriminator.requires_grad_(False)
        return {name: term.detach() for name, term in losses.items()}, real_logits.detach()

    def update(self, name: str, loss: Tensor) -> None:
        """Backpropagate ``loss``, average the gradients over all processes, and step one optimiser."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        # As StyleGAN3 does: DistributedDataParallel takes the second-order gradients of the penalties badly.
        if self.fabric.world_size > 1:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = self.mean_over_processes(torch.cat([g.flatten() for g in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        optimizer.step()

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="mean"))

    def set_learning_rates(self, step: int) -> None:
        """Apply warm-up and decay to every group of every optimiser."""
        rates = self.config.learning_rates
        factor = min(1.0, (step + 1) / max(rates.warmup, 1))
        if rates.decay == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.config.steps))
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def update_average(self, step: int) -> None:
        """Move the averaged weights; young averages follow faster."""
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.generator.parameters()], 1 - decay)

    def in_batches(self, network: Network, images: FloatArray) -> Tensor:
        """Return what a network makes of pictures [N, 3, S, S], a batch at a time."""
        with torch.inference_mode():
            batches = torch.from_numpy(images).to(self.fabric.device).split(self.config.batch_size)
            return torch.cat([network(batch) for batch in batches]).cpu()

    def extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside weights, optimisers and step."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what ``extra_state`` returned."""

    def _adam(self, groups: Groups, lazy_interval: int | None) -> torch.optim.Adam:
        """Return Adam with the correction for lazy regularisation (StyleGAN2, appendix B)."""
        ratio = lazy_interval / (lazy_interval + 1) if lazy_interval else 1.0
        described = [{"params": p, "lr": rate * ratio, "initial_lr": rate * ratio} for p, rate in groups]
        beta1 = self.config.learning_rates.beta1
        return torch.optim.Adam(described, betas=(beta1**ratio, 0.99**ratio), eps=1e-8)


PATH_LENGTH_DECAY = 0.01
ADAPT_EVERY = 4  # steps between two changes of the augmentation's probability


class PriorObjective(Objective):
    """Stage ``prior``: StyleGAN2's training (section 3) with GPEN's concatenated noise."""

    generator: Generator

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        super().__init__(config, fabric)
        synthesis = self.generator.synthesis
        self.synthesize: Any = torch.compile(synthesis) if config.compile else synthesis
        self.probability = config.augmentation.probability
        self.mean_path_length = 0.0
        self.signs: list[float] = []  # mean sign(D(real)) of the steps since the probability last changed

    def build(self) -> tuple[Generator, Groups, Discriminator]:
        """Return random networks, or levels of trained ones where ``init`` has them; one rate for all."""
        config = self.config
        generator = Generator(config.network)
        if config.init:
            trained_prior = checkpoints.load_generator(weights_file(config.init), config.key)
            checkpoints.seed_generator(generator, trained_prior)
        discriminator, trained = self.build_discriminator()
        self.fade = FadeIn(discriminator)
        if trained is not None and config.fade_in:
            levels = config.network.log_out - trained.config.log_out
            self.fade = FadeIn(discriminator, trained.convs[0], levels).to(self.fabric.device)
        return generator, [(list(generator.parameters()), config.learning_rates.generator)], discriminator

    def judge(self, images: Tensor) -> Tensor:
        """Return logits [N, 1] for augmented images."""
        return cast(Tensor, self.fade(augment(images, self.config.augmentation.policy, self.probability)))

    def train_step(self, step: int, degraded: Tensor, truth: Tensor) -> Losses:
        """Update both networks with the same images, which saves StyleGAN2's second pass of the generator."""
        config = self.config
        with self.fabric.autocast():
            fake = self.synthesize(self.mixed_latents(len(truth)))
        if config.fade_in and self.fade.from_rgb is not None:
            self.fade.share = min(1.0, step / config.fade_in)
        losses, real_logits = self.discriminator_step(step, truth, fake.detach())
        with self.fabric.autocast():
            loss = nonsaturating_loss(self.judge(fake).float())
        self.update("g_optim", loss)
        losses["adversarial"] = loss.detach()
        if config.losses.path_length and step % config.losses.path_length_every == 0:
            losses["path_length"] = self.path_length_step(len(truth))
        # The mean over all processes, so that each of them can resume from what one of them saves.
        self.signs.append(self.mean_over_processes(real_logits.sign().mean()).item())
        if (step + 1) % ADAPT_EVERY == 0:
            sign, images = torch.tensor(self.signs).mean().item(), ADAPT_EVERY * config.batch_size
            self.probability = adapted(self.probability, config.augmentation, sign, images)
            self.signs = []
        return losses

    def path_length_step(self, batch: int) -> Tensor:
        """Pull path lengths of half a batch (as StyleGAN2) to their moving average; return their mean."""
        config = self.config.losses
        latents = self.mixed_latents(max(1, batch // 2))
        lengths = path_lengths(self.generator.synthesis(latents), latents)
        mean = self.mean_over_processes(lengths.detach().mean())
        self.mean_path_length += PATH_LENGTH_DECAY * (mean.item() - self.mean_path_length)
        penalty = (lengths - self.mean_path_length).square().mean()
        self.update("g_optim", config.path_length * config.path_length_every * penalty)
        return mean

    def mixed_latents(self, batch: int) -> Tensor:
        """Return w of random z, [batch, L, 512]; some images change to a second z at a random layer."""
        layers, device = self.config.network.num_latents, self.fabric.device
        first, second = self.generator.style(torch.randn(2 * batch, STYLE_DIM, device=device)).chunk(2)
        crossover = torch.randint(1, layers, (batch,), device=device)
        mixed = torch.rand(batch, device=device) < self.config.style_mixing
        crossover = torch.where(mixed, crossover, layers)
        takes_second = torch.arange(layers, device=device)[None, :, None] >= crossover[:, None, None]
        return torch.where(takes_second, second[:, None], first[:, None])

    def evaluate(self, faces: TrainingFaces) -> dict[str, float]:
        """Return the mean logit of held-out faces, which falls where training faces are learned by heart."""
        return {"held_out_logit": self.in_batches(self.judge, faces.held_out[1]).mean().item()}

    def samples(self, faces: TrainingFaces) -> Tensor:
        """Return rows of generated faces of fixed latents and noise, [R, C, 3, S, S] in [-1, 1]."""
        seed, network = self.config.seed, self.config.network
        latents = torch.randn(24, 1, STYLE_DIM, generator=torch.Generator().manual_seed(seed))
        # One face after the other: at 512 px all at once do not fit. Their noise, 3 GB, waits on the CPU.
        random, sides = torch.Generator().manual_seed(seed), [2**i for i in range(2, network.log_out + 1)]
        noise = [torch.randn(24, 1, network.channels(s), s, s, generator=random) for s in sides]
        images, to_device = [], self.fabric.to_device
        with torch.inference_mode():
            for i, z in enumerate(latents):
                images.append(self.average(to_device(z), [to_device(maps[i]) for maps in noise]).cpu())
        return torch.cat(images).unflatten(0, (3, 8))

    def extra_state(self) -> dict[str, Any]:
        """Return running means, the augmentation's state, and the layer that is being faded out."""
        fade = self.fade
        return {
            "mean_path_length": self.mean_path_length,
            "augmentation": self.probability,
            "signs": self.signs,
            "fade_in": None if fade.from_rgb is None else (fade.from_rgb.state_dict(), fade.levels),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what ``extra_state`` returned; older checkpoints hold its first two entries alone."""
        self.mean_path_length, self.probability = state["mean_path_length"], state["augmentation"]
        self.signs = list(state.get("signs", ()))
        if "fade_in" in state:  # what init holds may be another one by now
            self.fade = FadeIn(self.fade.whole)
            if state["fade_in"] is not None:
                weights, levels = state["fade_in"]
                from_rgb = ConvLayer(3, len(weights["0.weight"]), 1)
                from_rgb.load_state_dict(weights)
                self.fade = FadeIn(self.fade.whole, from_rgb, levels).to(self.fabric.device)


class RestorationObjective(Objective):
    """Stages ``embed`` and ``finetune``: a whole GPEN on pairs of a degraded picture and its truth (3.3)."""

    generator: Gpen

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        super().__init__(config, fabric)
        if self.discriminator is not None:
            self.judge = self.discriminator
        self.generate: Any = torch.compile(self.generator) if config.compile else self.generator
        self.measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "chroma_excess": excess_of_chroma, "chroma_contrast": contrast_of_chroma,
            "content": CONTENT_LOSSES[config.losses.content_loss], "detail": missing_detail,
        }  # fmt: skip
        if config.losses.identity and config.losses.identity_model:
            self.measures["identity"] = IdentityLoss(config.losses.identity_model, fabric.device)

    def build(self) -> tuple[Gpen, Groups, Discriminator | None]:
        """Return a GPEN from a prior (embed), from trained weights, or from random ones (finetune).

        The decoder learns at its own rate; the weights of the noise, which let the encoder's features in, at
        the encoder's: a prior may have learned to do without noise. With ``params/train/embed_color.yaml``
        and the content loss alone that makes 0.9 dB on the held-out faces after 400 steps.
        """
        config, rates = self.config, self.config.learning_rates
        model = Gpen(config.network)
        if config.stage == "embed":
            prior = checkpoints.load_generator(weights_file(str(config.init)), config.key)
            checkpoints.seed_generator(model.generator, prior)
        elif config.init:
            checkpoints.seed_gpen(model, checkpoints.load_weights(config.init, config.key).model)
        else:
            checkpoints.open_skips(model)
        decoder = set(model.generator.parameters()) - set(noise_weights(model))
        embedded = [p for p in model.parameters() if p in decoder]
        new = [p for p in model.parameters() if p not in decoder]
        groups = [(embedded, rates.generator * rates.decoder_factor), (new, rates.generator)]
        judged = config.losses.adversarial or config.losses.feature_matching
        return model, groups, self.build_discriminator()[0] if judged else None

    def train_step(self, step: int, degraded: Tensor, truth: Tensor) -> Losses:
        """Update the discriminator with this batch's output, then the generator."""
        weights = self.config.losses
        with self.fabric.autocast():
            output = self.generate(degraded).float()
        terms = {name: of(output, truth) for name, of in self.measures.items() if getattr(weights, name)}
        if weights.harm:
            terms["harm"] = harm(output, degraded, truth)
        losses: Losses = {}
        if self.discriminator is not None:
            losses, _ = self.discriminator_step(step, truth, output.detach())
            with self.fabric.autocast():
                logits, features = self.discriminator.logits_and_features(output)
                if weights.feature_matching:
                    with torch.no_grad():
                        _, true_features = self.discriminator.logits_and_features(truth)
                    terms["feature_matching"] = feature_matching(features, true_features).float()
            if weights.adversarial:
                terms["adversarial"] = nonsaturating_loss(logits.float())
        weighted = [getattr(weights, name) * term for name, term in terms.items()]
        self.update("g_optim", torch.stack(weighted).sum())
        return losses | {name: term.detach() for name, term in terms.items()}

    def evaluate(self, faces: TrainingFaces) -> dict[str, float]:
        """Return the mean PSNR in dB of the averaged network on the held-out faces."""
        degraded, truth = faces.held_out
        output = self.in_batches(self.average, degraded).numpy()
        scores = [psnr(a, b) for a, b in zip(from_tensor(output), from_tensor(truth), strict=True)]
        return {"held_out_psnr": sum(scores) / len(scores)}

    def samples(self, faces: TrainingFaces) -> Tensor:
        """Return three rows of held-out faces, [3, C, 3, S, S] in [-1, 1]: input, output, truth."""
        degraded, truth = (array[:8] for array in faces.held_out)
        output = self.in_batches(self.average, degraded)
        return torch.stack([torch.from_numpy(degraded), output, torch.from_numpy(truth)])
