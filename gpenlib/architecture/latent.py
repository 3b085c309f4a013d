"""Looks into a prior's latent space: interpolation, style mixing, truncation (StyleGAN, sections 3 and B).

All pictures of one call are made with the same noise, so what differs between them is the latent alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpenlib.architecture.config import STYLE_DIM
from gpenlib.architecture.generator import Generator
from gpenlib.images import Image, from_tensor

MEAN_OF = 4096  # latents that the mean is taken of
MEAN_SEED = 0


def draw_latents(prior: Generator, count: int, seed: int, truncation: float = 1.0) -> Tensor:
    """Return ``w`` of ``count`` random z, float32 [count, 512].

    Parameters
    ----------
    prior : Generator
    count : int
    seed : int
        Of z.
    truncation : float
        What is left of the distance to the mean latent: 1 changes nothing, 0 makes all latents the mean.
        Below 1 faces are more ordinary and have fewer faults (StyleGAN, appendix B).
    """
    w = prior.style(_normal(prior, count, seed))
    return w if truncation == 1.0 else torch.lerp(mean_latent(prior), w, truncation)


def mean_latent(prior: Generator, count: int = MEAN_OF, seed: int = MEAN_SEED) -> Tensor:
    """Return the mean ``w`` of ``count`` random z, float32 [512]."""
    return prior.style(_normal(prior, count, seed)).mean(dim=0)


def generate(prior: Generator, latents: Tensor, seed: int, noise: float = 1.0) -> Tensor:
    """Return the faces of latents, all with the same noise.

    Parameters
    ----------
    prior : Generator
    latents : Tensor
        float32 [..., num_latents, 512], one for every layer (see :func:`per_layer`).
    seed : int
        Of the noise.
    noise : float
        Its strength, 1 as in training. A prior that learned for a short time makes its texture of noise: with
        less of it faces are cleaner, and softer.

    Returns
    -------
    Tensor
        float32 [..., 3, S, S], nominally in [-1, 1].
    """
    layers = prior.config.num_latents
    flat = latents.reshape(-1, layers, STYLE_DIM)
    maps = [noise * values for values in prior.noise_maps(1, seed)]
    with torch.inference_mode():  # one at a time: at 1024 px a batch of them would fill the memory
        images = torch.cat([prior.synthesis(w[None], maps) for w in flat])
    return images.view(*latents.shape[:-2], *images.shape[1:])


def per_layer(prior: Generator, w: Tensor) -> Tensor:
    """Repeat latents [..., 512] for every layer -> [..., num_latents, 512]."""
    return w.unsqueeze(-2).expand(*w.shape[:-1], prior.config.num_latents, w.shape[-1])


def interpolate(
    prior: Generator, seed: int, rows: int, columns: int, truncation: float = 1.0, noise: float = 1.0
) -> Tensor:
    """Walk from one face to another in straight lines in ``w``.

    Parameters
    ----------
    prior : Generator
    seed : int
        Row r goes from latent 2r to latent 2r + 1 of ``draw_latents(prior, 2 * rows, seed, truncation)``.
    rows, columns : int
        Columns count both ends; at least 2.
    truncation : float
        See :func:`draw_latents`.
    noise : float
        See :func:`generate`.

    Returns
    -------
    Tensor
        float32 [rows, columns, 3, S, S], nominally in [-1, 1].

    Raises
    ------
    ValueError
        If there are fewer than 2 columns or no row.
    """
    if rows < 1 or columns < 2:
        raise ValueError(f"rows={rows}, columns={columns}: at least 1 and 2 are needed (both ends are shown)")
    with torch.inference_mode():
        ends = draw_latents(prior, 2 * rows, seed, truncation).view(rows, 2, 1, STYLE_DIM)
        along = torch.linspace(0, 1, columns, device=ends.device)[:, None]
        return generate(prior, per_layer(prior, torch.lerp(ends[:, 0], ends[:, 1], along)), seed, noise)


@dataclass(frozen=True)
class StyleGrid:
    """Faces and their mixtures, float32 in [-1, 1] nominally.

    Attributes
    ----------
    left : Tensor
        [R, 3, S, S]; row r takes its coarse styles from face r.
    top : Tensor
        [C, 3, S, S]; column c takes its fine styles from face c.
    mixed : Tensor
        [R, C, 3, S, S].
    """

    left: Tensor
    top: Tensor
    mixed: Tensor


def mix_styles(
    prior: Generator,
    seed: int,
    rows: int,
    columns: int,
    crossover: int,
    truncation: float = 1.0,
    noise: float = 1.0,
) -> StyleGrid:
    """Give the first layers the latent of one face and the others that of a second (StyleGAN, section 3.1).

    Parameters
    ----------
    prior : Generator
    seed : int
        The faces at the left are the first ``rows`` of ``draw_latents(prior, rows + columns, seed,
        truncation)``, those at the top the others.
    rows, columns : int
    crossover : int
        Layers, from 4 px up, with the styles of the left; 0 gives the top's faces, ``num_latents`` the
        left's.
    truncation : float
        See :func:`draw_latents`.
    noise : float
        See :func:`generate`.

    Raises
    ------
    ValueError
        If ``crossover`` is not between 0 and the number of layers.
    """
    layers = prior.config.num_latents
    if not 0 <= crossover <= layers:
        raise ValueError(
            f"crossover={crossover}: allowed are 0 to {layers}, the number of layers with a style"
        )
    with torch.inference_mode():
        w = per_layer(prior, draw_latents(prior, rows + columns, seed, truncation))
        left, top = w[:rows, None], w[None, rows:]
        coarse = (torch.arange(layers, device=w.device) < crossover)[:, None]
        sources = generate(prior, w, seed, noise)
        mixed = generate(prior, torch.where(coarse, left, top), seed, noise)
    return StyleGrid(sources[:rows], sources[rows:], mixed)


def to_pictures(images: Tensor) -> Image:
    """Return images [..., 3, S, S] in [-1, 1] as uint8 RGB [..., S, S, 3]."""
    flat = from_tensor(images.reshape(-1, *images.shape[-3:]).cpu().numpy())
    return np.stack(list(flat)).reshape(*images.shape[:-3], *images.shape[-2:], 3)


def _normal(prior: Generator, count: int, seed: int) -> Tensor:
    """Return seeded z, the same on every device, [count, 512]."""
    z = torch.randn(count, STYLE_DIM, generator=torch.Generator().manual_seed(seed))
    return z.to(prior.input.input.device)
