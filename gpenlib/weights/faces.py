"""Faces without a download: drawn from a trained GAN prior, or variations of a photograph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpenlib.architecture import Generator, load_generator
from gpenlib.architecture.latent import draw_latents, generate, mean_latent, per_layer, to_pictures
from gpenlib.data.embedded import EmbeddedSource
from gpenlib.data.sources import DataError, ImageSource, JoinedSource, check_index, open_folder
from gpenlib.images import Image
from gpenlib.run import resolve_path, sha256
from gpenlib.weights import weights_file

# What a data_dir may be beside a folder
EMBEDDED, PRIOR, DEMO_PRIOR = "embedded", "prior", "demo-prior"
TRUNCATION = 0.7  # StyleGAN's own choice for its samples
NOISE = 0.0  # a prior that learned for a short time makes specks of it
VERSION = "prior faces 1"  # change it whenever the same prior and index give other pixels


@dataclass(frozen=True)
class PriorSource:
    """Samples of a GAN prior, an :class:`~gpenlib.data.sources.ImageSource` of any length.

    Image k depends on the prior, truncation, noise and k alone. Scores on these faces say how a network does
    on what a prior of its own training data draws (in-distribution), not how it does on photographs.

    Parameters
    ----------
    prior : Generator
    name : str
        For the label.
    weights_digest : str
        Hash of the prior's weights.
    count : int
        How many images there are, at least 1.
    truncation : float
        In (0, 1]; below 1 faces are more ordinary and have fewer faults.
    noise : float
        In [0, 1]; below 1 faces are cleaner, and softer.

    Raises
    ------
    DataError
        If ``count``, ``truncation`` or ``noise`` is out of range.
    """

    prior: Generator
    name: str
    weights_digest: str
    count: int
    truncation: float = TRUNCATION
    noise: float = NOISE

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.truncation <= 1 or not 0 <= self.noise <= 1:
            raise DataError(
                f"faces of a prior: count={self.count}, truncation={self.truncation}, noise={self.noise}; "
                "allowed are at least 1, (0, 1] and [0, 1]"
            )

    @cached_property
    def _mean(self) -> Tensor:
        """Mean latent: thousands of them, so that only those pay who read a face."""
        return mean_latent(self.prior)

    @property
    def label(self) -> str:
        """What scores on these images mean."""
        return (
            f"samples of the prior {self.name}, truncation {self.truncation:g}, noise {self.noise:g}; "
            "in-distribution: scores show how weights do on faces like those the prior was trained on"
        )

    @property
    def names(self) -> Sequence[str]:
        """``prior_0000.png`` and on."""
        return [f"prior_{index:04d}.png" for index in range(self.count)]

    def read(self, index: int) -> Image:
        """Return image ``index`` as uint8 RGB [S, S, 3], in the prior's own size.

        Raises
        ------
        IndexError
            If ``index`` is not in 0 .. count - 1.
        """
        check_index(index, self.count, "sample")
        with torch.inference_mode():
            w = torch.lerp(self._mean, draw_latents(self.prior, 1, index), self.truncation)
            return to_pictures(generate(self.prior, per_layer(self.prior, w), index, self.noise))[0]

    def digest(self, index: int) -> str:
        """Return a hash of everything that decides the pixels, without computing them."""
        check_index(index, self.count, "sample")
        content = f"{VERSION}|{self.weights_digest}|{self.truncation}|{self.noise}|{index}"
        return hashlib.sha256(content.encode()).hexdigest()


def open_faces(data_dir: str | None, needed: int, size: int = 512) -> ImageSource:
    """Open what a ``data_dir`` names.

    Parameters
    ----------
    data_dir : str or None
        A folder, relative to the repository root if not absolute; ``prior:FILE`` for samples of a generator's
        weights, or of the prior inside a whole GPEN; ``prior`` for those of the shipped ``demo-prior``;
        ``embedded`` for variations of one public-domain photograph; empty or None for that photograph,
        then samples of ``demo-prior``.
    needed : int
        How many faces to offer where there are as many as one likes; of no effect on a folder.
    size : int
        Side of the variations in pixels. Samples have the prior's size, pictures of a folder their own.

    Raises
    ------
    DataError
        If the folder or file does not exist, the folder holds no image, or ``needed`` is below 1.
    CheckpointError
        If the file is no generator.
    """
    if data_dir == EMBEDDED or (not data_dir and needed <= 1):
        return EmbeddedSource(needed, size)
    if not data_dir:
        samples = _open_prior(DEMO_PRIOR, needed - 1)
        label = f"embedded: one public-domain photograph, then {samples.label}"
        return JoinedSource(EmbeddedSource(1, size), samples, label)
    name = _prior_of(data_dir)
    return open_folder(resolve_path(data_dir)) if name is None else _open_prior(name, needed)


def made_here(data_dir: str | None) -> bool:
    """Return whether the faces of ``data_dir`` are made by :func:`open_faces`: no test set for a network."""
    return not data_dir or data_dir == EMBEDDED or _prior_of(data_dir) is not None


def _prior_of(data_dir: str) -> str | None:
    """Return the name or file of the prior whose samples a ``data_dir`` asks for, if it does."""
    kind, _, name = data_dir.partition(":")
    return (name or DEMO_PRIOR) if kind == PRIOR else None


def _open_prior(name: str, count: int) -> PriorSource:
    path = weights_file(name)
    if not path.is_file():
        raise DataError(f"{PRIOR}:{name}: {path} does not exist; name the weights of a trained prior")
    return PriorSource(load_generator(path), path.stem, sha256(path), count)
