"""GPEN in one file: StyleGAN2's operators, the generator embedded as decoder of a U, and the discriminator.

Mathematics and state-dict keys are those of the original project's ``face_model/gpen_model.py``. Papers:
StyleGAN2 (CVPR 2020) and "GAN Prior Embedded Network for Blind Face Restoration in the Wild" (CVPR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Fixed by the original
STYLE_DIM = 512
MAPPING_LAYERS = 8
MIN_SIZE, MAX_SIZE = 32, 2048
LEAKY_SLOPE, LEAKY_GAIN = 0.2, math.sqrt(2.0)
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)
STDDEV_GROUP = 4

Modulation = Literal["weights", "activations"]


@dataclass(frozen=True)
class GpenConfig:
    """Shape of a GPEN generator or discriminator; ValueError if a size or a width is not allowed.

    Parameters
    ----------
    in_size : int
        Side of the square input image in pixels: a power of two in [32, 2048].
    out_size : int
        Side of the output image: a power of two; larger than ``in_size`` gives the super-resolution form.
    channel_multiplier : int
        Width factor of the levels of 64 px and above (StyleGAN2's name).
    narrow : float
        Width factor of every level; 1.0 is the full network, 0.5 the published 256-px one.
    """

    in_size: int = 512
    out_size: int = 512
    channel_multiplier: int = 2
    narrow: float = 1.0

    def __post_init__(self) -> None:
        for name in ("in_size", "out_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or not MIN_SIZE <= size <= MAX_SIZE or size & (size - 1):
                raise ValueError(f"{name}={size!r}: must be a power of two from {MIN_SIZE} to {MAX_SIZE}")
        if self.out_size < self.in_size:
            raise ValueError(f"out_size={self.out_size} is smaller than in_size={self.in_size}")
        if not isinstance(self.channel_multiplier, int) or self.channel_multiplier < 1:
            raise ValueError(f"channel_multiplier={self.channel_multiplier!r}: must be an integer >= 1")
        if not self.narrow > 0 or self.channels(self.out_size) < 1:
            raise ValueError(f"narrow={self.narrow!r}: leaves a level without channels")

    def channels(self, size: int) -> int:
        """Return the number of feature channels at ``size`` pixels (``channels`` in gpen_model.py)."""
        width = 512 if size <= 32 else 16384 // size * self.channel_multiplier
        return int(width * self.narrow)

    @property
    def log_in(self) -> int:
        """Base-2 logarithm of ``in_size``."""
        return self.in_size.bit_length() - 1

    @property
    def log_out(self) -> int:
        """Base-2 logarithm of ``out_size``."""
        return self.out_size.bit_length() - 1

    @property
    def num_latents(self) -> int:
        """Number of style inputs of the decoder: one per convolution and one for the last ToRGB."""
        return 2 * self.log_out - 2

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary, for manifests."""
        return asdict(self)


def fir_kernel(gain: float = 1.0) -> Tensor:
    """Return StyleGAN2's separable low-pass kernel, float32 [4, 4], summing to ``gain``."""
    taps = torch.tensor(FIR_TAPS)
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum() * gain


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Insert ``up - 1`` zeros after every pixel, pad both axes, filter (true convolution with [k, k])."""
    # [N, C, H, W] -> [N, C, H*up + pad0 + pad1 - k + 1, likewise W], for 0 <= pad0 - pad1 < up and pad0 < k
    channels, k = x.shape[1], kernel.shape[0]
    if up == 1:
        weight = kernel.flip(0, 1).to(x.dtype).expand(channels, 1, k, k)
        return F.conv2d(x, weight, padding=pad[0], groups=channels)
    # Zero insertion followed by filtering is a transposed convolution with the unflipped kernel.
    crop, extra = k - 1 - pad[0], pad[1] - pad[0] + up - 1
    weight = kernel.to(x.dtype).expand(channels, 1, k, k)
    return F.conv_transpose2d(x, weight, stride=up, padding=crop, output_padding=extra, groups=channels)


class Blur(nn.Module):
    """FIR low-pass before downsampling or after upsampling (buffer ``kernel``)."""

    kernel: Tensor

    def __init__(self, pad: int, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain))
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Filter [N, C, H, W]; the size changes by ``2 * pad - 3``."""
        return upfirdn2d(x, self.kernel, pad=(self.pad, self.pad))


class Upsample(Blur):
    """Double height and width with the FIR kernel, as in the ToRGB skip path."""

    def __init__(self) -> None:
        super().__init__(pad=2, gain=4.0)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2H, 2W]."""
        return upfirdn2d(x, self.kernel, up=2, pad=(self.pad, self.pad - 1))


class PixelNorm(nn.Module):
    """Scale each latent vector to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class FusedLeakyReLU(nn.Module):
    """``sqrt(2) * leaky_relu(x + bias, 0.2)``: StyleGAN2's variance-preserving activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same shape."""
        return F.leaky_relu(x + self.bias.to(x.dtype).view(1, -1, 1, 1), LEAKY_SLOPE) * LEAKY_GAIN


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate; ``lr_mul`` slows the mapping network down."""

    def __init__(
        self, c_in: int, c_out: int, bias_init: float = 0.0, lr_mul: float = 1.0, activation: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((c_out,), bias_init))
        self.scale = lr_mul / math.sqrt(c_in)
        self.lr_mul, self.activation = lr_mul, activation

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin] -> [N, Cout]."""
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(y, LEAKY_SLOPE) * LEAKY_GAIN if self.activation else y


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate and no bias (the activation after it adds one)."""

    def __init__(self, c_in: int, c_out: int, k: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, k, k))
        self.scale = 1.0 / math.sqrt(c_in * k**2)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H', W']."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class ConvLayer(nn.Sequential):
    """(Blur) + EqualConv2d + (FusedLeakyReLU), halving H and W if ``downsample``: encoder, discriminator."""

    def __init__(
        self, c_in: int, c_out: int, k: int, downsample: bool = False, activate: bool = True
    ) -> None:
        # Blurred with this padding, the stride-2 convolution halves the size
        before = [Blur(pad=(k + 1) // 2)] if downsample else []
        stride, padding = (2, 0) if downsample else (1, k // 2)
        after = [FusedLeakyReLU(c_out)] if activate else []
        super().__init__(*before, EqualConv2d(c_in, c_out, k, stride, padding), *after)


class ModulatedConv2d(nn.Module):
    """Convolution whose weights are scaled by a style and normalised (StyleGAN2, section 2.2)."""

    # Two equal formulations: "weights" builds one weight tensor per image and runs a grouped convolution (the
    # original); "activations" scales input and output channels around one shared convolution (cheaper to
    # train, and the seed of the deploy form).
    modulation_impl: Modulation = "weights"

    def __init__(
        self, c_in: int, c_out: int, k: int, demodulate: bool = True, upsample: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, k, k))
        self.scale = 1.0 / math.sqrt(c_in * k**2)
        self.modulation = EqualLinear(STYLE_DIM, c_in, bias_init=1.0)
        self.demodulate, self.upsample, self.padding = demodulate, upsample, k // 2
        if upsample:
            self.blur = Blur(pad=1, gain=4.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Convolve ``x`` [N, Cin, H, W] under the latent ``w`` [N, 512] -> [N, Cout, H or 2H, ...]."""
        style = self.modulation(w)  # [N, Cin]
        y = (self._scale_weights if self.modulation_impl == "weights" else self._scale_activations)(x, style)
        return self.blur(y) if self.upsample else y

    def _scale_weights(self, x: Tensor, style: Tensor) -> Tensor:
        n, c_in, height, width = x.shape
        weight = self.scale * self.weight * style.view(n, 1, c_in, 1, 1)  # [N, O, I, k, k]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, n * c_in, height, width)  # images become groups: [1, N*I, H, W]
        if self.upsample:
            weight = weight.transpose(1, 2).flatten(0, 1)  # [N*I, O, k, k]
            y = F.conv_transpose2d(x, weight, stride=2, groups=n)  # [1, N*O, 2H+1, 2W+1]
        else:
            y = F.conv2d(x, weight.flatten(0, 1), padding=self.padding, groups=n)  # [1, N*O, H, W]
        return y.view(n, -1, y.shape[2], y.shape[3])  # [N, O, ...]

    def _scale_activations(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.scale * self.weight[0]  # [O, I, k, k]
        x = x * style.to(x.dtype)[:, :, None, None]
        if self.upsample:
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [N, O, 2H+1, 2W+1]
        else:
            y = F.conv2d(x, weight, padding=self.padding)  # [N, O, H, W]
        if self.demodulate:
            energy = weight.square().sum(dim=(2, 3))  # [O, I]
            norm = torch.rsqrt(style.square() @ energy.T + 1e-8)  # [N, O]
            y = y * norm.to(y.dtype)[:, :, None, None]
        return y


class NoiseInjection(nn.Module):
    """Concatenate ``weight * noise`` to the features (GPEN's change to StyleGAN2, which adds it)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """[N, C, H, W] (and noise of the same shape) -> [N, 2C, H, W]."""
        if noise is None:  # above ``in_size`` no encoder map takes its place; zeros are deterministic
            noise = torch.randn_like(x) if self.training else torch.zeros_like(x)
        return torch.cat((x, self.weight.to(x.dtype) * noise), dim=1)


def noise_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weight of every :class:`NoiseInjection`, in order: at 0 nothing of the noise comes in."""
    return [module.weight for module in network.modules() if isinstance(module, NoiseInjection)]


class StyledConv(nn.Module):
    """Modulated convolution, concatenated noise, activation: one half of a GAN block."""

    def __init__(self, c_in: int, c_out: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(c_in, c_out, 3, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(2 * c_out)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """[N, Cin, H, W] -> [N, 2*Cout, H or 2H, ...]."""
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """Project features to RGB and add the upsampled image of the level below."""

    def __init__(self, c_in: int, upsample: bool = True) -> None:
        super().__init__()
        if upsample:
            self.upsample = Upsample()
        self.conv = ModulatedConv2d(c_in, 3, 1, demodulate=False)
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


class _Modulated(nn.Module):
    def set_modulation(self, impl: Modulation) -> Self:
        """Choose how every modulated convolution computes (see :class:`ModulatedConv2d`)."""
        for module in self.modules():
            if isinstance(module, ModulatedConv2d):
                module.modulation_impl = impl
        return self


class Generator(_Modulated):
    """The GAN prior: mapping network and StyleGAN2 synthesis with concatenated noise."""

    def __init__(self, config: GpenConfig) -> None:
        super().__init__()
        self.config = config
        self.style = nn.Sequential(PixelNorm())
        for _ in range(MAPPING_LAYERS):
            self.style.append(EqualLinear(STYLE_DIM, STYLE_DIM, lr_mul=0.01, activation=True))
        width = config.channels(4)
        self.input = ConstantInput(width)
        self.conv1 = StyledConv(width, width)
        self.to_rgb1 = ToRGB(2 * width, upsample=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for level in range(3, config.log_out + 1):
            out = config.channels(2**level)
            self.convs += [StyledConv(2 * width, out, upsample=True), StyledConv(2 * out, out)]
            self.to_rgbs.append(ToRGB(2 * out))
            width = out

    def forward(self, z: Tensor, noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """Map ``z`` [N, 512] to an image [N, 3, out_size, out_size], nominally in [-1, 1]."""
        return self.synthesis(self.latents(z), noise)

    def latents(self, z: Tensor) -> Tensor:
        """Return the latent ``w`` of every layer, [N, num_latents, 512]."""
        return self.style(z).unsqueeze(1).expand(-1, self.config.num_latents, -1)

    def synthesis(self, w: Tensor, noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """Grow an image from latents [N, num_latents, 512] and one map of noise per size, from 4 px up."""
        levels = self.config.log_out - 1
        maps = [*(noise or ()), *[None] * levels][:levels]
        x = self.conv1(self.input(w.shape[0]), w[:, 0], maps[0])  # [N, 2C, 4, 4]
        rgb = self.to_rgb1(x, w[:, 1])  # [N, 3, 4, 4]
        for level in range(1, levels):  # S = 4 * 2**level
            first = 2 * level - 1
            x = self.convs[first - 1](x, w[:, first], maps[level])  # [N, 2C, S, S]
            x = self.convs[first](x, w[:, first + 1], maps[level])  # [N, 2C, S, S]
            rgb = self.to_rgbs[level - 1](x, w[:, first + 2], rgb)  # [N, 3, S, S]
        return rgb

    def noise_maps(self, batch: int, seed: int) -> list[Tensor]:
        """Return seeded normal noise for :meth:`synthesis`, [batch, C, S, S] from 4 px up."""
        # A trained prior has seen noise in half of its channels: samples without it look flat
        random = torch.Generator().manual_seed(seed)
        sides = [2**level for level in range(2, self.config.log_out + 1)]
        maps = [torch.randn(batch, self.config.channels(s), s, s, generator=random) for s in sides]
        return [values.to(self.input.input.device) for values in maps]


class Gpen(_Modulated):
    """The embedded network: encoder, latent projection, and the GAN prior as decoder."""

    def __init__(self, config: GpenConfig) -> None:
        super().__init__()
        self.config = config
        self.task: str | None = None  # what the weights were trained for, where their file says so
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
        return [getattr(self, f"ecd{i}") for i in range(self.config.log_in - 1)]

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the latent ``z`` [N, 512] and the feature maps from 4 px up to ``in_size``."""
        x, features = image, []
        for stage in self.encoder:
            x = stage(x)  # [N, C, S, S], S halves with every stage
            features.append(x)
        return self.final_linear(x.flatten(1)), features[::-1]  # flattened: [N, C*4*4]

    def forward(self, image: Tensor) -> Tensor:
        """Restore RGB [N, 3, in_size, in_size] in [-1, 1] -> [N, 3, out_size, out_size], not clipped."""
        size = self.config.in_size
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(f"input of shape {tuple(image.shape)}: expected [N, 3, {size}, {size}]")
        z, features = self.encode(image)
        return self.generator(z, features)


class ResBlock(nn.Module):
    """Two convolutions and a linear skip, halving height and width: a block of the discriminator."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(c_in, c_in, 3)
        self.conv2 = ConvLayer(c_in, c_out, 3, downsample=True)
        self.skip = ConvLayer(c_in, c_out, 1, downsample=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H/2, W/2]."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2.0)


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator of images of ``config.out_size``; ``in_size`` is not used."""

    def __init__(self, config: GpenConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels(config.out_size)
        self.convs = nn.Sequential(ConvLayer(3, width, 1))
        for level in range(config.log_out - 1, 1, -1):
            out = config.channels(2**level)
            self.convs.append(ResBlock(width, out))
            width = out
        self.final_conv = ConvLayer(width + 1, width, 3)
        hidden = EqualLinear(width * 4 * 4, width, activation=True)
        self.final_linear = nn.Sequential(hidden, EqualLinear(width, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, 1] (high means real) for images [N, 3, S, S] in [-1, 1]."""
        return self.logits_and_features(image)[0]

    def logits_and_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [N, 1] and every block's features [N, C, H, W], from S px down to 4 px."""
        x, features = image, []
        for block in self.convs:
            x = block(x)  # [N, C, S, S], S halves with every block
            features.append(x)
        return self.head(x), features

    def head(self, features: Tensor) -> Tensor:
        """Return logits [N, 1] from the last block's features [N, C, 4, 4]."""
        x = torch.cat((features, minibatch_stddev(features)), dim=1)  # [N, C + 1, 4, 4]
        return self.final_linear(self.final_conv(x).flatten(1))  # flattened: [N, C*4*4]


def minibatch_stddev(x: Tensor) -> Tensor:
    """Return the mean standard deviation over groups of the batch as one channel [N, 1, H, W]."""
    # The group is the largest divisor of N up to 4; the original's min(N, 4) refuses other batches.
    n, _, h, w = x.shape
    group = max(g for g in range(1, STDDEV_GROUP + 1) if n % g == 0)
    grouped = x.view(group, n // group, -1, h, w)  # [g, N/g, C, H, W]
    std = torch.sqrt(grouped.var(dim=0, unbiased=False) + 1e-8)  # [N/g, C, H, W]
    return std.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1).repeat(group, 1, h, w)
