"""StyleGAN2's residual discriminator, as GPEN trains against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpenlib.architecture.config import GpenConfig
from gpenlib.architecture.ops import ConvLayer, EqualLinear

STDDEV_GROUP = 4


class ResBlock(nn.Module):
    """Two convolutions and a linear skip, halving height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, downsample=True)
        self.skip = ConvLayer(in_channels, out_channels, 1, downsample=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H/2, W/2]."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2.0)


class Discriminator(nn.Module):
    """Score images of ``config.out_size``; keys are the original's ``Discriminator``.

    Parameters
    ----------
    config : GpenConfig
        ``out_size``, ``channel_multiplier`` and ``narrow`` set the layers.
    """

    def __init__(self, config: GpenConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels(config.out_size)
        blocks: list[nn.Module] = [ConvLayer(3, width, 1)]
        for level in range(config.log_out - 1, 1, -1):
            out = config.channels(2**level)
            blocks.append(ResBlock(width, out))
            width = out
        self.convs = nn.Sequential(*blocks)
        self.final_conv = ConvLayer(width + 1, width, 3)
        self.final_linear = nn.Sequential(
            EqualLinear(width * 4 * 4, width, activation=True), EqualLinear(width, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, 1] (high means real) for images [N, 3, S, S] in [-1, 1]."""
        return self.logits_and_features(image)[0]

    def logits_and_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [N, 1] and every block's features [N, C, H, W], from S px down to 4 px."""
        features = []
        x = image
        for block in self.convs:
            x = block(x)
            features.append(x)
        return self.head(x), features

    def head(self, features: Tensor) -> Tensor:
        """Return logits [N, 1] from the last block's features [N, C, 4, 4]."""
        x = torch.cat((features, minibatch_stddev(features)), dim=1)
        logits: Tensor = self.final_linear(self.final_conv(x).flatten(1))
        return logits


def minibatch_stddev(x: Tensor) -> Tensor:
    """Return the mean standard deviation over groups of the batch as one channel [N, 1, H, W].

    The group is the largest divisor of N up to 4; the original takes ``min(N, 4)`` and so refuses
    batches that 4 does not divide. Both agree wherever the original runs.
    """
    n, _, h, w = x.shape
    group = max(g for g in range(1, STDDEV_GROUP + 1) if n % g == 0)
    grouped = x.view(group, n // group, -1, h, w)
    std = torch.sqrt(grouped.var(dim=0, unbiased=False) + 1e-8)  # [N/g, C, H, W]
    mean = std.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)  # [N/g, 1, 1, 1]
    return mean.repeat(group, 1, h, w)
