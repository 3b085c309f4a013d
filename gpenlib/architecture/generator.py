"""GPEN: a StyleGAN2 generator embedded as the decoder of a U-shaped network.

Follows ``face_model/gpen_model.py`` of the original project (``FullGenerator`` and
``FullGenerator_SR``) in mathematics and state-dict keys; the code is our own. Paper: "GAN Prior
Embedded Network for Blind Face Restoration in the Wild", CVPR 2021, figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpenlib.architecture.config import MAPPING_LAYERS, STYLE_DIM, GpenConfig
from gpenlib.architecture.ops import (
    Blur,
    ConvLayer,
    EqualLinear,
    FusedLeakyReLU,
    PixelNorm,
    Upsample,
)

Modulation = Literal["weights", "activations"]


class ModulatedConv2d(nn.Module):
    """Convolution whose weights are scaled by a style and normalised (StyleGAN2, section 2.2).

    ``modulation_impl`` chooses between two equal formulations: ``"weights"`` builds one weight tensor
    per image and runs a grouped convolution (the original); ``"activations"`` scales the input channels
    and then the output channels around one shared convolution (cheaper to train, and the seed of the
    deploy form).
    """

    modulation_impl: Modulation = "weights"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.modulation = EqualLinear(STYLE_DIM, in_channels, bias_init=1.0)
        self.demodulate = demodulate
        self.upsample = upsample
        self.padding = kernel_size // 2
        if upsample:
            self.blur = Blur(pad=(1, 1), gain=4.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Convolve ``x`` [N, Cin, H, W] under the latent ``w`` [N, 512] -> [N, Cout, H or 2H, ...]."""
        style = self.modulation(w)  # [N, Cin]
        forward = self._scale_weights if self.modulation_impl == "weights" else self._scale_activations
        y = forward(x, style)
        return self.blur(y) if self.upsample else y

    def _scale_weights(self, x: Tensor, style: Tensor) -> Tensor:
        n, c_in, height, width = x.shape
        weight = self.scale * self.weight * style.view(n, 1, c_in, 1, 1)  # [N, O, I, k, k]
        if self.demodulate:
            norm = torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
            weight = weight * norm
        x = x.reshape(1, n * c_in, height, width)
        if self.upsample:
            weight = weight.transpose(1, 2).flatten(0, 1)  # [N*I, O, k, k]
            y = F.conv_transpose2d(x, weight, stride=2, groups=n)
        else:
            y = F.conv2d(x, weight.flatten(0, 1), padding=self.padding, groups=n)
        return y.view(n, -1, y.shape[2], y.shape[3])

    def _scale_activations(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.scale * self.weight[0]  # [O, I, k, k]
        x = x * style.to(x.dtype)[:, :, None, None]
        if self.upsample:
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        else:
            y = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            energy = weight.square().sum(dim=(2, 3))  # [O, I]
            norm = torch.rsqrt(style.square() @ energy.T + 1e-8)  # [N, O]
            y = y * norm.to(y.dtype)[:, :, None, None]
        return y


class NoiseInjection(nn.Module):
    """Concatenate ``weight * noise`` to the features (GPEN's change to StyleGAN2, which adds it).

    In the embedded network the "noise" is the encoder's feature map of the same resolution. Where the
    encoder has none (levels above ``in_size``), training draws normal noise and evaluation uses zeros,
    so that results and exports are deterministic.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """[N, C, H, W] (and noise of the same shape) -> [N, 2C, H, W]."""
        if noise is None:
            noise = torch.randn_like(x) if self.training else torch.zeros_like(x)
        return torch.cat((x, self.weight.to(x.dtype) * noise), dim=1)


def noise_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weight of every :class:`NoiseInjection`, in order: at 0 nothing of the noise comes in."""
    return [module.weight for module in network.modules() if isinstance(module, NoiseInjection)]


class StyledConv(nn.Module):
    """Modulated convolution, concatenated noise, activation: one half of a GAN block."""

    def __init__(self, in_channels: int, out_channels: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(2 * out_channels)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """[N, Cin, H, W] -> [N, 2*Cout, H or 2H, ...]."""
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """Project features to RGB and add the upsampled image of the level below."""

    def __init__(self, in_channels: int, upsample: bool = True) -> None:
        super().__init__()
        if upsample:
            self.upsample = Upsample()
        self.conv = ModulatedConv2d(in_channels, 3, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None = None) -> Tensor:
        """[N, C, H, W] and skip [N, 3, H/2, W/2] -> [N, 3, H, W]."""
        rgb = self.conv(x, w) + self.bias
        return rgb if skip is None else rgb + self.upsample(skip)


class ConstantInput(nn.Module):
    """The learned 4x4 tensor from which every image grows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> Tensor:
        """Return [batch, C, 4, 4]."""
        return self.input.expand(batch, -1, -1, -1)


class Generator(nn.Module):
    """The GAN prior: mapping network and StyleGAN2 synthesis with concatenated noise."""

    def __init__(self, config: GpenConfig) -> None:
        super().__init__()
        self.config = config
        self.style = nn.Sequential(
            PixelNorm(),
            *(EqualLinear(STYLE_DIM, STYLE_DIM, lr_mul=0.01, activation=True) for _ in range(MAPPING_LAYERS)),
        )
        width = config.channels(4)
        self.input = ConstantInput(width)
        self.conv1 = StyledConv(width, width)
        self.to_rgb1 = ToRGB(2 * width, upsample=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for level in range(3, config.log_out + 1):
            out = config.channels(2**level)
            self.convs.append(StyledConv(2 * width, out, upsample=True))
            self.convs.append(StyledConv(2 * out, out))
            self.to_rgbs.append(ToRGB(2 * out))
            width = out

    def forward(self, z: Tensor, noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """Map ``z`` [N, 512] to an image [N, 3, out_size, out_size], nominally in [-1, 1]."""
        return self.synthesis(self.latents(z), noise)

    def set_modulation(self, impl: Modulation) -> Generator:
        """Choose how every modulated convolution computes (see :class:`ModulatedConv2d`)."""
        for module in self.modules():
            if isinstance(module, ModulatedConv2d):
                module.modulation_impl = impl
        return self

    def noise_maps(self, batch: int, seed: int) -> list[Tensor]:
        """Return seeded normal noise for :meth:`synthesis`, [batch, C, S, S] from 4 px up.

        A trained prior has seen noise in half of its channels: samples without it look flat.
        """
        random = torch.Generator().manual_seed(seed)
        sides = [2**level for level in range(2, self.config.log_out + 1)]
        device = self.input.input.device
        return [
            torch.randn(batch, self.config.channels(side), side, side, generator=random).to(device)
            for side in sides
        ]

    def latents(self, z: Tensor) -> Tensor:
        """Return the latent ``w`` of every layer, [N, num_latents, 512]."""
        return self.style(z).unsqueeze(1).expand(-1, self.config.num_latents, -1)

    def synthesis(self, w: Tensor, noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """Grow an image from latents [N, num_latents, 512].

        ``noise`` holds one feature map per resolution, from 4 px up; both convolutions of a resolution
        share it. Missing or None entries count as unknown noise (see :class:`NoiseInjection`).
        """
        levels = self.config.log_out - 1
        maps = [*(noise or ()), *[None] * levels][:levels]
        x = self.input(w.shape[0])
        x = self.conv1(x, w[:, 0], maps[0])
        rgb = self.to_rgb1(x, w[:, 1])
        for level in range(1, levels):
            first = 2 * level - 1
            x = self.convs[first - 1](x, w[:, first], maps[level])
            x = self.convs[first](x, w[:, first + 1], maps[level])
            rgb = self.to_rgbs[level - 1](x, w[:, first + 2], rgb)
        return rgb


class Gpen(nn.Module):
    """The embedded network: encoder, latent projection, and the GAN prior as decoder."""

    def __init__(self, config: GpenConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        width = config.channels(config.in_size)
        self.ecd0 = nn.Sequential(ConvLayer(3, width, 1))
        for index, level in enumerate(range(config.log_in - 1, 1, -1), start=1):
            out = config.channels(2**level)
            setattr(self, f"ecd{index}", nn.Sequential(ConvLayer(width, out, 3, downsample=True)))
            width = out
        self.final_linear = nn.Sequential(EqualLinear(width * 4 * 4, STYLE_DIM, activation=True))

    @property
    def encoder(self) -> list[nn.Module]:
        """The encoder stages ``ecd0, ecd1, ...`` from ``in_size`` down to 4 px."""
        return [cast(nn.Module, getattr(self, f"ecd{i}")) for i in range(self.config.log_in - 1)]

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the latent ``z`` [N, 512] and the feature maps from 4 px up to ``in_size``."""
        features = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return self.final_linear(x.flatten(1)), features[::-1]

    def forward(self, image: Tensor) -> Tensor:
        """Restore ``image``.

        Parameters
        ----------
        image : Tensor
            [N, 3, in_size, in_size], RGB in [-1, 1]; any N.

        Returns
        -------
        Tensor
            [N, 3, out_size, out_size], RGB, nominally in [-1, 1] (not clipped).

        Raises
        ------
        ValueError
            If the input has another shape.
        """
        size = self.config.in_size
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(f"input of shape {tuple(image.shape)}: expected [N, 3, {size}, {size}]")
        z, features = self.encode(image)
        return self.generator(z, features)

    def set_modulation(self, impl: Modulation) -> Gpen:
        """Choose how every modulated convolution computes (see :class:`ModulatedConv2d`)."""
        self.generator.set_modulation(impl)
        return self
