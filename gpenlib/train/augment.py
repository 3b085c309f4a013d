"""Differentiable augmentation of what a discriminator sees, so that small data sets do not overfit.

The transformations are DiffAugment's (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN
Training", NeurIPS 2020: colour, translation by 1/8, cutout of 1/2); the adaptive probability is
StyleGAN2-ADA's (Karras et al. 2020, section 3). Both act on real and generated images alike, so that
augmentations do not leak into the samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpenlib.train.config import Augmentation

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
