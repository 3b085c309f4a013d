r"""The deploy form: GPEN's function with constant convolution weights.

StyleGAN2 scales and normalises convolution weights per image. With the style :math:`s` of an image and
the equalised weight :math:`W`, the same output is

.. math:: y_o = d_o \, (W * (s \odot x))_o, \qquad d_o = \Big(\sum_i s_i^2 Q_{oi} + 10^{-8}\Big)^{-1/2},
          \qquad Q_{oi} = \sum_k W_{oik}^2

where :math:`W` and :math:`Q` are constants. Two further factors cancel exactly and keep every intermediate
within the range of fp16: :math:`W_o` is divided by its norm, and :math:`s` by its largest magnitude
:math:`m`; then :math:`10^{-8}` becomes :math:`10^{-8} / (m \lVert W_o \rVert)^2`.

Folded once, here: equalised-learning-rate scales, ``lr_mul`` of the mapping network, the
:math:`\sqrt 2` gains of the activations (leaky ReLU is positively homogeneous), the gain of the blur.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.generator import Generator, ModulatedConv2d, StyledConv, ToRGB
from gpenlib.architecture.ops import (
    LEAKY_GAIN,
    LEAKY_SLOPE,
    ConvLayer,
    EqualConv2d,
    EqualLinear,
    FusedLeakyReLU,
    PixelNorm,
    fir_kernel,
)

TINIEST_STYLE = 1e-12  # keeps the division defined for an all-zero style


def deploy_form(model: Gpen) -> DeployGpen:
    """Return the deploy form of ``model``: same function, constant convolution weights.

    Parameters
    ----------
    model : Gpen

    Returns
    -------
    DeployGpen
        float32, in eval mode, on the model's device; its weights are copies.

    Raises
    ------
    TypeError
        If ``model`` is not a Gpen.
    """
    if not isinstance(model, Gpen):
        raise TypeError(f"deploy_form takes a Gpen, not {type(model).__name__}")
    with torch.no_grad():
        return DeployGpen(model).eval().requires_grad_(False)


def folded_linear(layer: EqualLinear) -> nn.Linear:
    """Return a plain linear layer; a following activation's gain is folded in."""
    gain = LEAKY_GAIN if layer.activation else 1.0
    plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    plain.weight.copy_(layer.weight * layer.scale * gain)
    plain.bias.copy_(layer.bias * layer.lr_mul * gain)
    return plain


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with StyleGAN2's slope; the gain is folded into what stands before it."""
    return F.leaky_relu(x, LEAKY_SLOPE)


def as_map(vector: Tensor, features: Tensor) -> Tensor:
    """Return per-channel factors [N, C] as [N, C, 1, 1] in the precision of ``features``.

    This is where float32 style vectors meet feature maps of :func:`gpenlib.export.mixed_precision`; between
    equal types no cast is traced, so that the float graph holds none.
    """
    return in_type_of(vector, features)[:, :, None, None]


def in_type_of(x: Tensor, other: Tensor) -> Tensor:
    """Return ``x`` in the type of ``other``, without a traced cast between equal types."""
    return x if x.dtype == other.dtype else x.to(other.dtype)


class DepthwiseBlur(nn.Module):
    """The 4x4 FIR filter as a depthwise convolution with constant weights."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 4, padding=padding, groups=channels, bias=False)
        self.conv.weight.copy_(fir_kernel().expand(channels, 1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H + 2 padding - 3, ...]."""
        return self.conv(x)


class EncoderStage(nn.Module):
    """(Blur), plain convolution with bias, leaky ReLU."""

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        modules = list(layer)
        source, activation = cast(EqualConv2d, modules[-2]), cast(FusedLeakyReLU, modules[-1])
        c_out, c_in, k, _ = source.weight.shape
        self.blur = DepthwiseBlur(c_in, padding=2) if len(modules) == 3 else None
        self.conv = nn.Conv2d(c_in, c_out, k, stride=source.stride, padding=source.padding)
        self.conv.weight.copy_(source.weight * source.scale * LEAKY_GAIN)
        cast(Tensor, self.conv.bias).copy_(activation.bias * LEAKY_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H or H/2, ...]."""
        return leaky_relu(self.conv(x if self.blur is None else self.blur(x)))


class StyleScale(nn.Module):
    """Style of a layer from the latent, split into direction and magnitude: ``s = m * direction``."""

    def __init__(self, modulation: EqualLinear) -> None:
        super().__init__()
        self.affine = folded_linear(modulation)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [N, 512] -> (direction [N, Cin] with entries in [-1, 1], m [N, 1])."""
        style = self.affine(w)
        magnitude = style.abs().amax(dim=1, keepdim=True).clamp_min(TINIEST_STYLE)
        return style / magnitude, magnitude


class StyledStage(nn.Module):
    """Modulated convolution, encoder features, activation, around one constant convolution."""

    energy: Tensor
    epsilon: Tensor
    bias: Tensor
    skip_bias: Tensor
    skip_gain: Tensor

    def __init__(self, layer: StyledConv) -> None:
        super().__init__()
        source: ModulatedConv2d = layer.conv
        weight = source.weight[0] * source.scale  # [O, I, k, k]
        norm = weight.flatten(1).norm(dim=1).clamp_min(TINIEST_STYLE)  # [O]
        weight = weight / norm[:, None, None, None]
        c_out, c_in, k, _ = weight.shape
        self.style = StyleScale(source.modulation)
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if source.upsample:
            # The blur's gain of 4 goes into the convolution's output scale below.
            self.conv = nn.ConvTranspose2d(c_in, c_out, k, stride=2, bias=False)
            self.conv.weight.copy_(weight.transpose(0, 1))
            self.blur: DepthwiseBlur | None = DepthwiseBlur(c_out, padding=1)
        else:
            self.conv = nn.Conv2d(c_in, c_out, k, padding=source.padding, bias=False)
            self.conv.weight.copy_(weight)
            self.blur = None
        self.gain = LEAKY_GAIN * (4.0 if source.upsample else 1.0)
        self.register_buffer("energy", weight.square().sum(dim=(2, 3)).T.contiguous())  # [I, O]
        self.register_buffer("epsilon", 1e-8 / norm.square())  # [O]
        bias = layer.activate.bias * LEAKY_GAIN
        self.register_buffer("bias", bias[:c_out].view(1, -1, 1, 1).clone())
        self.register_buffer("skip_bias", bias[c_out:].view(1, -1, 1, 1).clone())
        self.register_buffer("skip_gain", layer.noise.weight.detach() * LEAKY_GAIN)

    def demodulation(self, direction: Tensor, magnitude: Tensor) -> Tensor:
        """Return the output scale [N, Cout] that normalises the modulated weights."""
        power = direction.square() @ self.energy + self.epsilon / magnitude.square()
        return torch.rsqrt(power) * self.gain

    def forward(self, x: Tensor, w: Tensor, feature: Tensor | None) -> Tensor:
        """[N, Cin, H, W], latent [N, 512], encoder feature -> [N, 2 Cout, H or 2H, ...]."""
        direction, magnitude = self.style(w)
        y = self.conv(x * as_map(direction, x))
        if self.blur is not None:
            y = self.blur(y)
        y = y * as_map(self.demodulation(direction, magnitude), y) + self.bias
        # Above in_size the encoder has no feature: its half is the bias alone.
        skip = torch.zeros_like(y) if feature is None else feature * in_type_of(self.skip_gain, feature)
        return leaky_relu(torch.cat((y, skip + self.skip_bias), dim=1))


class RgbStage(nn.Module):
    """1x1 modulated convolution without demodulation, plus the upsampled image below."""

    def __init__(self, layer: ToRGB, upsample: bool) -> None:
        super().__init__()
        weight = layer.conv.weight[0] * layer.conv.scale  # [3, I, 1, 1]
        self.style = StyleScale(layer.conv.modulation)
        self.conv = nn.Conv2d(weight.shape[1], 3, 1, bias=False)
        self.conv.weight.copy_(weight)
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.upsample = (
            nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1, groups=3, bias=False) if upsample else None
        )
        if self.upsample is not None:
            self.upsample.weight.copy_(fir_kernel(gain=4.0).expand(3, 1, 4, 4))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
        """[N, C, H, W] and image [N, 3, H/2, W/2] -> [N, 3, H, W]."""
        direction, magnitude = self.style(w)
        rgb = self.conv(x * as_map(direction, x))
        rgb = rgb * as_map(magnitude, rgb) + self.bias
        return rgb if self.upsample is None or skip is None else rgb + self.upsample(skip)


class DeployGenerator(nn.Module):
    """Mapping network and synthesis; ``convs`` and ``to_rgbs`` count as in the original generator."""

    constant: Tensor

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.pixel_norm = PixelNorm()
        self.style = nn.ModuleList(
            folded_linear(cast(EqualLinear, layer)) for layer in list(generator.style)[1:]
        )
        self.register_buffer("constant", generator.input.input.detach().clone())
        self.conv1 = StyledStage(generator.conv1)
        self.to_rgb1 = RgbStage(generator.to_rgb1, upsample=False)
        self.convs = nn.ModuleList(StyledStage(cast(StyledConv, layer)) for layer in generator.convs)
        self.to_rgbs = nn.ModuleList(
            RgbStage(cast(ToRGB, layer), upsample=True) for layer in generator.to_rgbs
        )

    def latent(self, z: Tensor) -> Tensor:
        """Apply the mapping network: z [N, 512] -> w [N, 512]."""
        w = self.pixel_norm(z)
        for layer in self.style:
            w = leaky_relu(layer(w))
        return w

    def forward(self, z: Tensor, features: list[Tensor | None]) -> Tensor:
        """[N, 512] and one feature map (or None) per level, from 4 px up -> [N, 3, out_size, out_size]."""
        w = self.latent(z)
        x = self.conv1(self.constant, w, features[0])
        rgb = self.to_rgb1(x, w, None)
        for level, to_rgb in enumerate(self.to_rgbs, start=1):
            x = self.convs[2 * level - 2](x, w, features[level])
            x = self.convs[2 * level - 1](x, w, features[level])
            rgb = to_rgb(x, w, rgb)
        return rgb


class DeployGpen(nn.Module):
    """GPEN with constant convolution weights; build it with :func:`deploy_form`.

    Stages are called as in the original (``ecd0``, ``generator.convs.3``, ``generator.to_rgbs.0``), and
    exported graphs and build configurations use these paths.
    """

    def __init__(self, model: Gpen) -> None:
        super().__init__()
        self.config: GpenConfig = model.config
        for index, stage in enumerate(model.encoder):
            setattr(self, f"ecd{index}", EncoderStage(cast(ConvLayer, cast(nn.Sequential, stage)[0])))
        self.final_linear = folded_linear(cast(EqualLinear, model.final_linear[0]))
        self.generator = DeployGenerator(model.generator)
        self.to(next(model.parameters()).device)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, in_size, in_size] in [-1, 1] -> [N, 3, out_size, out_size]; see :class:`Gpen`."""
        features: list[Tensor | None] = []
        x = image
        for index in range(self.config.log_in - 1):
            x = getattr(self, f"ecd{index}")(x)
            features.append(x)
        z = leaky_relu(self.final_linear(in_type_of(x.flatten(1), self.final_linear.weight)))
        missing: list[Tensor | None] = [None] * (self.config.log_out - self.config.log_in)
        return self.generator(z, features[::-1] + missing)
