"""StyleGAN2's operators in pure torch: nothing is compiled, every device works.

An operator with a fast form keeps a slow reference beside it (``impl="reference"``), which the tests
compare; the idea and the ``upfirdn2d`` signature follow StyleGAN2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2.0)
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(gain: float = 1.0) -> Tensor:
    """Return StyleGAN2's separable low-pass kernel, float32 [4, 4], summing to ``gain``."""
    taps = torch.tensor(FIR_TAPS)
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum() * gain


def upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int] = (0, 0),
    impl: Literal["fast", "reference"] = "fast",
) -> Tensor:
    """Upsample by zero insertion, pad, filter with an FIR kernel, and downsample.

    Parameters
    ----------
    x : Tensor
        Input [N, C, H, W].
    kernel : Tensor
        FIR kernel [k, k]; applied as a true convolution (flipped correlation).
    up, down : int
        Integer factors. ``up > 1`` is fastest without ``down`` and with ``0 <= pad[0] - pad[1] < up``.
    pad : (int, int)
        Zeros before and after each spatial axis, counted after upsampling.
    impl : {"fast", "reference"}
        ``"reference"`` follows the definition step by step.

    Returns
    -------
    Tensor
        [N, C, (H*up + pad0 + pad1 - k) // down + 1, likewise W].
    """
    channels = x.shape[1]
    weight = kernel.flip(0, 1).to(x.dtype)[None, None].expand(channels, 1, -1, -1)  # [C, 1, kh, kw]
    if impl == "fast" and up > 1 and down == 1 and pad[0] < kernel.shape[0] and 0 <= pad[0] - pad[1] < up:
        # Zero insertion followed by filtering is a transposed convolution with the unflipped kernel.
        crop = kernel.shape[0] - 1 - pad[0]
        extra = pad[1] - pad[0] + up - 1
        weight = kernel.to(x.dtype)[None, None].expand(channels, 1, -1, -1)
        return F.conv_transpose2d(x, weight, stride=up, padding=crop, output_padding=extra, groups=channels)
    if up > 1:
        n, c, h, w = x.shape
        spread = x.new_zeros(n, c, h, up, w, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(n, c, h * up, w * up)
    if impl == "fast":
        if pad[0] == pad[1]:
            return F.conv2d(x, weight, stride=down, padding=pad[0], groups=channels)
        return F.conv2d(F.pad(x, (*pad, *pad)), weight, stride=down, groups=channels)
    x = F.conv2d(F.pad(x, (*pad, *pad)), weight, groups=channels)
    return x[:, :, ::down, ::down]


class Blur(nn.Module):
    """FIR low-pass before downsampling or after upsampling (buffer ``kernel``)."""

    kernel: Tensor

    def __init__(self, pad: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain))
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Filter [N, C, H, W]; the size changes by ``pad0 + pad1 - 3``."""
        return upfirdn2d(x, self.kernel, pad=self.pad)


class Upsample(nn.Module):
    """Double height and width with the FIR kernel, as in the ToRGB skip path."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain=4.0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2H, 2W]."""
        return upfirdn2d(x, self.kernel, up=2, pad=(2, 1))


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
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_mul: float = 1.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init))
        self.scale = lr_mul / math.sqrt(in_features)
        self.lr_mul = lr_mul
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] -> [N, out_features]."""
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(y, LEAKY_SLOPE) * LEAKY_GAIN if self.activation else y


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate and no bias (the activation after it adds one)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H', W']."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class ConvLayer(nn.Sequential):
    """(Blur) + EqualConv2d + (FusedLeakyReLU): the encoder's and the discriminator's layer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        downsample: bool = False,
        activate: bool = True,
    ) -> None:
        layers: list[nn.Module] = []
        if downsample:
            total = 2 + (kernel_size - 1)  # keeps the stride-2 convolution's output at half the input size
            layers.append(Blur(pad=((total + 1) // 2, total // 2)))
            layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride=2))
        else:
            layers.append(EqualConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))
        if activate:
            layers.append(FusedLeakyReLU(out_channels))
        super().__init__(*layers)
