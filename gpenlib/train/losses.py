"""Loss terms: StyleGAN2's adversarial terms and penalties, and GPEN's content terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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
