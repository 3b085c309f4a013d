"""A discriminator that takes over from one of a smaller size (Progressive GAN, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpenlib.architecture import Discriminator


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
