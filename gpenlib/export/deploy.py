"""The deploy form: GPEN's function with constant convolution weights, in float32 and in mixed precision.

StyleGAN2 scales and normalises ("demodulates") the convolution weights by the style ``s = A w + 1`` of each
image. With the equalised weight ``W`` [O, I, k, k] the same output is

    y_o = d_o (W * (s x))_o,    d_o = (sum_i s_i^2 Q_oi + 1e-8)^(-1/2),    Q_oi = sum_k W_oik^2,

where ``W`` and ``Q`` are constants. Two further factors cancel exactly and keep every intermediate within the
range of fp16: ``W_o`` is divided by its norm, and ``s`` by its largest magnitude ``m``; the 1e-8, which fp16
does not have, then becomes ``1e-8 / (m |W_o|)^2``.

Folded once, here: the scales of the equalised learning rate, ``lr_mul`` of the mapping network, the sqrt(2)
of the activations (leaky ReLU is positively homogeneous: a gain may stand before it), the gain of the blur.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.module_tracker import ModuleTracker

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture import model as ops
from gpenlib.files import choice_error, write_atomically

TINIEST_STYLE = 1e-12  # keeps the divisions defined for an all-zero style or weight


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
    # From a copy: a parametrised weight (spectral norm) is computed when it is read, and changes in training.
    source = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        return DeployGpen(source).eval().requires_grad_(False)


def deploy_copy(model: Gpen | DeployGpen) -> DeployGpen:
    """Return a deploy form that nobody else holds, in float32 and eval mode, for exporters to work on."""
    if isinstance(model, DeployGpen):
        return copy.deepcopy(model).float().eval().requires_grad_(False)
    return deploy_form(model)


def folded_linear(layer: ops.EqualLinear) -> nn.Linear:
    """Return a plain linear layer; a following activation's gain is folded in."""
    gain = ops.LEAKY_GAIN if layer.activation else 1.0
    plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    plain.weight.copy_(layer.weight * layer.scale * gain)
    plain.bias.copy_(layer.bias * layer.lr_mul * gain)
    return plain


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with StyleGAN2's slope; its gain is folded into what stands before it."""
    return F.leaky_relu(x, ops.LEAKY_SLOPE)


def in_type_of(x: Tensor, other: Tensor) -> Tensor:
    """Return ``x`` in the type of ``other``, without a traced cast between equal types."""
    return x if x.dtype == other.dtype else x.to(other.dtype)


def as_map(vector: Tensor, features: Tensor) -> Tensor:
    """Return factors [N, C] as [N, C, 1, 1] in the type of ``features``: here float32 styles meet maps."""
    return in_type_of(vector, features)[:, :, None, None]


def depthwise_blur(channels: int, padding: int) -> nn.Sequential:
    """Return the 4x4 FIR filter as depthwise convolution, [N, C, H, W] -> [N, C, H + 2 padding - 3, ...]."""
    conv = nn.Conv2d(channels, channels, 4, padding=padding, groups=channels, bias=False)
    conv.weight.copy_(ops.fir_kernel().expand(channels, 1, 4, 4))
    return nn.Sequential(OrderedDict(conv=conv))


class EncoderStage(nn.Module):
    """(Blur), plain convolution with bias, leaky ReLU."""

    def __init__(self, layer: ops.ConvLayer) -> None:
        super().__init__()
        modules = list(layer)
        source, activation = cast(ops.EqualConv2d, modules[-2]), cast(ops.FusedLeakyReLU, modules[-1])
        c_out, c_in, k, _ = source.weight.shape
        self.blur = depthwise_blur(c_in, padding=2) if len(modules) == 3 else None
        self.conv = nn.Conv2d(c_in, c_out, k, stride=source.stride, padding=source.padding)
        self.conv.weight.copy_(source.weight * source.scale * ops.LEAKY_GAIN)
        cast(Tensor, self.conv.bias).copy_(activation.bias * ops.LEAKY_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H or H/2, ...]."""
        return leaky_relu(self.conv(x if self.blur is None else self.blur(x)))


class StyleScale(nn.Module):
    """Style of a layer from the latent, split into direction and magnitude: ``s = m * direction``."""

    def __init__(self, modulation: ops.EqualLinear) -> None:
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

    def __init__(self, layer: ops.StyledConv) -> None:
        super().__init__()
        source = layer.conv
        weight = source.weight[0] * source.scale  # W [O, I, k, k]
        norm = weight.flatten(1).norm(dim=1).clamp_min(TINIEST_STYLE)  # |W_o| [O]
        weight = weight / norm[:, None, None, None]
        c_out, c_in, k, _ = weight.shape
        self.style = StyleScale(source.modulation)
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if source.upsample:
            # The blur's gain of 4 goes into the convolution's output scale below.
            self.conv = nn.ConvTranspose2d(c_in, c_out, k, stride=2, bias=False)
            self.conv.weight.copy_(weight.transpose(0, 1))
            self.blur: nn.Sequential | None = depthwise_blur(c_out, padding=1)
        else:
            self.conv = nn.Conv2d(c_in, c_out, k, padding=source.padding, bias=False)
            self.conv.weight.copy_(weight)
            self.blur = None
        self.gain = ops.LEAKY_GAIN * (4.0 if source.upsample else 1.0)
        self.register_buffer("energy", weight.square().sum(dim=(2, 3)).T.contiguous())  # Q^T / |W_o|^2 [I, O]
        self.register_buffer("epsilon", 1e-8 / norm.square())  # [O]
        bias = layer.activate.bias * ops.LEAKY_GAIN
        self.register_buffer("bias", bias[:c_out].view(1, -1, 1, 1).clone())
        self.register_buffer("skip_bias", bias[c_out:].view(1, -1, 1, 1).clone())
        self.register_buffer("skip_gain", layer.noise.weight.detach() * ops.LEAKY_GAIN)

    def demodulation(self, direction: Tensor, magnitude: Tensor) -> Tensor:
        """Return ``m |W_o| d_o`` times the folded gains, [N, Cout]: the scale of the convolution's output."""
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

    def __init__(self, layer: ops.ToRGB, upsample: bool) -> None:
        super().__init__()
        weight = layer.conv.weight[0] * layer.conv.scale  # [3, I, 1, 1]
        self.style = StyleScale(layer.conv.modulation)
        self.conv = nn.Conv2d(weight.shape[1], 3, 1, bias=False)
        self.conv.weight.copy_(weight)
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.upsample: nn.ConvTranspose2d | None = None
        if upsample:
            self.upsample = nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1, groups=3, bias=False)
            self.upsample.weight.copy_(ops.fir_kernel(gain=4.0).expand(3, 1, 4, 4))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
        """[N, C, H, W] and image [N, 3, H/2, W/2] -> [N, 3, H, W]."""
        direction, magnitude = self.style(w)
        rgb = self.conv(x * as_map(direction, x))
        rgb = rgb * as_map(magnitude, rgb) + self.bias
        return rgb if self.upsample is None or skip is None else rgb + self.upsample(skip)


class DeployGenerator(nn.Module):
    """Mapping network and synthesis; ``convs`` and ``to_rgbs`` count as in the original generator."""

    constant: Tensor

    def __init__(self, generator: ops.Generator) -> None:
        super().__init__()
        self.pixel_norm = ops.PixelNorm()
        mapping = list(generator.style)[1:]
        self.style = nn.ModuleList(folded_linear(cast(ops.EqualLinear, layer)) for layer in mapping)
        self.register_buffer("constant", generator.input.input.detach().clone())
        self.conv1 = StyledStage(generator.conv1)
        self.to_rgb1 = RgbStage(generator.to_rgb1, upsample=False)
        self.convs = nn.ModuleList(StyledStage(cast(ops.StyledConv, layer)) for layer in generator.convs)
        self.to_rgbs = nn.ModuleList(RgbStage(cast(ops.ToRGB, layer), True) for layer in generator.to_rgbs)

    def forward(self, z: Tensor, features: list[Tensor | None]) -> Tensor:
        """[N, 512] and one feature map (or None) per level, from 4 px up -> [N, 3, out_size, out_size]."""
        w = self.pixel_norm(z)
        for layer in self.style:
            w = leaky_relu(layer(w))
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
        self.task = model.task
        for index, stage in enumerate(model.encoder):
            setattr(self, f"ecd{index}", EncoderStage(cast(ops.ConvLayer, cast(nn.Sequential, stage)[0])))
        self.final_linear = folded_linear(cast(ops.EqualLinear, model.final_linear[0]))
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


# Mixed precision: low-precision feature maps, float32 style path.
#
# As in the fp16 ONNX file, feature maps (rank 4) and convolution weights take the low precision; the mapping
# network, the style affines and demodulation work on vectors and stay float32: sums of squares leave the
# range of fp16, 1e-8 lies below it, and there is nothing to gain on vectors. The casts are part of the module
# and not left to ``torch.autocast``: that decides per operator, so that it would run the linear layers of the
# style path in low precision, casts the weights again at every call, and is a state of the caller that a
# saved file does not carry. Explicit casts trace to TorchScript as they are.

MAP_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAP_RANK = 4


class MixedPrecisionGpen(nn.Module):
    """A deploy form whose maps and convolutions have one type, between float32 input and output.

    Its maps are channels-last, which is the faster layout: on two cores of a processor with AVX-512 and bf16,
    the 128-px ``demo-color`` took 78 ms in place of 87 in float32, and 41 ms in place of 51 in bfloat16
    (PyTorch 2.13, medians of 15 interleaved calls). On GPUs it is what tensor cores work on.
    ``network`` is used and changed, not copied.
    """

    def __init__(self, network: DeployGpen, dtype: str) -> None:
        super().__init__()
        if dtype not in MAP_TYPES:
            raise ValueError(choice_error("dtype", dtype, tuple(MAP_TYPES)))
        self.config, self.network, self.map_type = network.config, network, MAP_TYPES[dtype]
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(self.map_type)  # their biases too
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == MAP_RANK:
                tensor.data = tensor.data.to(self.map_type).contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Float32 [N, 3, in_size, in_size] in [-1, 1] -> float32 [N, 3, out_size, out_size]."""
        maps = image.to(dtype=self.map_type, memory_format=torch.channels_last)
        output: Tensor = self.network(maps)
        return output.to(dtype=torch.float32, memory_format=torch.contiguous_format)


def mixed_precision(model: Gpen | DeployGpen, dtype: str) -> MixedPrecisionGpen:
    """Return a copy as deploy form with maps and convolutions in fp32, bf16 or fp16, on the same device."""
    return MixedPrecisionGpen(deploy_copy(model), dtype).eval()


def write_mixed_precision(module: MixedPrecisionGpen, path: str | Path) -> Path:
    """Write the weights in their types as safetensors, under the deploy form's own keys."""
    tensors = {name: tensor.contiguous() for name, tensor in module.network.state_dict().items()}
    with write_atomically(Path(path)) as temporary:
        save_file(tensors, temporary)
    return Path(path)


def read_mixed_precision(path: str | Path, config: GpenConfig, dtype: str) -> MixedPrecisionGpen:
    """Load what :func:`write_mixed_precision` wrote; ValueError for the weights of another network."""
    with torch.device("meta"):  # the shapes alone: every tensor comes from the file
        network = deploy_form(Gpen(config))
    try:
        network.load_state_dict(load_file(path), assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold a deploy form of {config}: {error}") from error
    return MixedPrecisionGpen(network.requires_grad_(False), dtype).eval()


CASTS = ("aten._to_copy", "aten.to", "aten.copy_")


@dataclass(frozen=True)
class Overflow:
    """The first result that is not finite though its inputs are."""

    module: str  # path of the innermost module, such as ``Gpen.generator.convs.3.conv``
    operator: str  # such as ``aten.rsqrt``
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.module}: {self.operator} {list(self.shape)}"


class HalfArithmetic(TorchDispatchMode):
    """Context in which operators on fp16 tensors give what fp16 hardware gives; notes the first ``overflow``.

    Processors without fp16 compute "fp16" models in float32 and remove roundings on the way, so that an
    overflow does not show. Here every operator on fp16 tensors is computed in float32 and its result rounded
    to fp16, as GPUs with float32 accumulation do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.overflow: Overflow | None = None
        self._tracker = ModuleTracker()

    def __enter__(self) -> HalfArithmetic:
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tracker.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator; fp16 inputs are widened and the result is narrowed again."""
        call = (args, kwargs or {})
        inputs = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
        name = str(func).rpartition(".")[0]
        if name in CASTS or not any(value.dtype == torch.float16 for value in inputs):
            result = func(*call[0], **call[1])
        else:
            wide = tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.float16 else x, call)
            result = func(*wide[0], **wide[1])
            result = tree_map_only(Tensor, lambda x: x.half() if x.dtype == torch.float32 else x, result)
        if self.overflow is None and not _is_finite(result) and all(map(_is_finite, inputs)):
            module = max(self._tracker.parents - {"Global"}, key=len, default="(outside)")
            self.overflow = Overflow(module, name, tuple(result.shape))
        return result


def _is_finite(value: Any) -> bool:
    return not (isinstance(value, Tensor) and value.is_floating_point()) or bool(torch.isfinite(value).all())
