"""An ONNX graph with everything constant evaluated: what is left depends on the input."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.module_tracker import ModuleTracker

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.model import (
    FIR_TAPS,
    LEAKY_GAIN,
    LEAKY_SLOPE,
    ConvLayer,
    EqualConv2d,
    EqualLinear,
    FusedLeakyReLU,
    Generator,
    ModulatedConv2d,
    PixelNorm,
    StyledConv,
    ToRGB,
    fir_kernel,
)
from gpenlib.files import choice_error, write_atomically

# ----------------------------------------------------------------------
# An ONNX graph with everything constant evaluated: what is left depends on the input.

Array = NDArray[Any]
RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")
SHAPE_READERS = ("Shape", "Size")
CONVOLUTIONS = ("Conv", "ConvTranspose")
# Operators between a weighted operation and its bias that move values without changing them.
MOVES = (
    *("Cast", "Expand", "Flatten", "Identity", "Pad", "Reshape"),
    *("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)


class RecoverError(ValueError):
    """An ONNX file whose weights cannot be recovered; the message names what could not be matched."""


class FoldedGraph:
    """Nodes that depend on the input, and the value of every tensor that does not.

    Parameters
    ----------
    path : Path
        ONNX file; external data beside it is read too.

    Attributes
    ----------
    nodes : list of NodeProto
        Nodes that depend on the input, in topological order.
    constants : dict of str to ndarray
        Initialisers, and what constant nodes compute from them.

    Raises
    ------
    RecoverError
        If the file is not ONNX, an initialiser is damaged, a node reads a tensor that nothing produces,
        or the graph has not exactly one input and at least one output.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf's, onnx's and the file system's errors have no common type
            raise RecoverError(f"{path}: not a readable ONNX file ({error})") from error
        self.path = path
        self.constants: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            try:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise RecoverError(f"{path}: damaged initialiser {tensor.name!r} ({error})") from error
        inputs = [value for value in model.graph.input if value.name not in self.constants]
        if len(inputs) != 1 or not model.graph.output:
            names = ", ".join(value.name for value in inputs) or "none"
            raise RecoverError(f"{path}: a GPEN graph has one input and an output; found inputs: {names}")
        self.input = inputs[0]
        self.nodes: list[NodeProto] = []
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        for node in model.graph.node:
            self._add(node, opsets)

    def _add(self, node: NodeProto, opsets: dict[str, int]) -> None:
        """Evaluate ``node`` if its inputs are constant, else keep it."""
        for name in filter(None, node.input):
            if name not in self.constants and name not in self.producer and name != self.input.name:
                raise RecoverError(
                    f"{self.path}: node {node.name!r} ({node.op_type}) reads {name!r}, which is neither an "
                    "initialiser nor the output of an earlier node"
                )
        if all(name in self.constants for name in node.input if name) and self._evaluate(node, opsets):
            return
        self.nodes.append(node)
        for name in node.output:
            self.producer[name] = node
        for name in set(node.input):
            self.consumers[name].append(node)

    def _evaluate(self, node: NodeProto, opsets: dict[str, int]) -> bool:
        """Compute a constant node with the reference evaluator; False if it is random or unknown."""
        if node.op_type.startswith(RANDOM):
            return False
        if node.op_type == "Identity":
            self.constants[node.output[0]] = self.constants[node.input[0]]
            return True
        feeds = {name: self.constants[name] for name in node.input if name}
        try:
            results = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
        except Exception as error:  # the reference evaluator has no common error type
            if any(array.ndim >= 2 for array in feeds.values()):  # likely a weight of the wrong shape
                raise RecoverError(
                    f"{self.path}: constant node {node.name!r} ({node.op_type}) cannot be evaluated ({error})"
                ) from error
            return False
        self.constants.update(zip(node.output, map(np.asarray, results), strict=False))
        return True

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant tensor as float32, or None."""
        value = self.constants.get(name)
        return None if value is None else np.asarray(value, np.float32)

    def constant_operand(self, node: NodeProto) -> Array | None:
        """Return the constant operand of a two-operand node, or None."""
        return next((value for name in node.input if (value := self.constant(name)) is not None), None)

    def is_fir(self, node: NodeProto) -> bool:
        """Tell a depthwise low-pass filter, whose taps belong to the architecture."""
        if node.op_type not in CONVOLUTIONS or node.input[1] not in self.constants:
            return False
        return self.constants[node.input[1]].shape[1:] == (1, len(FIR_TAPS), len(FIR_TAPS))

    def next_after(self, node: NodeProto) -> tuple[NodeProto | None, str]:
        """Return the first node after ``node`` that changes values, and the tensor it reads.

        Moves and FIR filters are passed. The node is None at the output or where the data branches.
        """
        while True:
            tensor = node.output[0]
            readers = [reader for reader in self.consumers[tensor] if reader.op_type not in SHAPE_READERS]
            if len(readers) != 1:
                return None, tensor
            node = readers[0]
            if node.op_type not in MOVES and not self.is_fir(node):
                return node, tensor

    def ancestors(self, name: str) -> Iterator[NodeProto]:
        """Yield the nodes that tensor ``name`` depends on, nearest first (breadth first)."""
        seen: set[str] = set()
        queue = [name]
        for tensor in queue:  # grows while it is read
            node = self.producer.get(tensor)
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            yield node
            queue.extend(node.input)


def attribute(node: NodeProto, name: str, default: float) -> float:
    """Return a numeric attribute of ``node``."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else float(onnx.helper.get_attribute_value(found))


# ----------------------------------------------------------------------
# The deploy form: GPEN's function with constant convolution weights.
#
# StyleGAN2 scales and normalises convolution weights per image. With the style :math:`s` of an image and
# the equalised weight :math:`W`, the same output is
#
# .. math:: y_o = d_o \, (W * (s \odot x))_o, \qquad d_o = \Big(\sum_i s_i^2 Q_{oi} + 10^{-8}\Big)^{-1/2},
#           \qquad Q_{oi} = \sum_k W_{oik}^2
#
# where :math:`W` and :math:`Q` are constants. Two further factors cancel exactly and keep every intermediate
# within the range of fp16: :math:`W_o` is divided by its norm, and :math:`s` by its largest magnitude
# :math:`m`; then :math:`10^{-8}` becomes :math:`10^{-8} / (m \lVert W_o \rVert)^2`.
#
# Folded once, here: equalised-learning-rate scales, ``lr_mul`` of the mapping network, the
# :math:`\sqrt 2` gains of the activations (leaky ReLU is positively homogeneous), the gain of the blur.

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


# ----------------------------------------------------------------------
# fp16 arithmetic on processors that have none, and the first tensor in which it fails.
#
# Processors without fp16 compute "fp16" models in float32 and remove roundings on the way, so that an
# overflow does not show. Here every operator on fp16 tensors is computed in float32 and its result rounded to
# fp16, as GPUs with float32 accumulation do.

CASTS = ("aten._to_copy", "aten.to", "aten.copy_")


@dataclass(frozen=True)
class Overflow:
    """The first result that is not finite though its inputs are.

    Attributes
    ----------
    module : str
        Path of the innermost module, such as ``Gpen.generator.convs.3.conv``.
    operator : str
        Such as ``aten.rsqrt``.
    shape : tuple of int
    """

    module: str
    operator: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.module}: {self.operator} {list(self.shape)}"


class HalfArithmetic(TorchDispatchMode):
    """Context in which operators on fp16 tensors give what fp16 hardware gives.

    Attributes
    ----------
    overflow : Overflow or None
        Found so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.overflow: Overflow | None = None
        self._tracker = ModuleTracker()

    def __enter__(self) -> HalfArithmetic:
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._tracker.__exit__(kind, value, traceback)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator; fp16 inputs are widened and the result is narrowed again."""
        kwargs = kwargs or {}
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        name = str(func).rpartition(".")[0]
        if name in CASTS or not any(value.dtype == torch.float16 for value in inputs):
            result = func(*args, **kwargs)
        else:
            wide_args, wide_kwargs = tree_map(_widen, (args, kwargs))
            result = tree_map(_narrow, func(*wide_args, **wide_kwargs))
        if self.overflow is None and isinstance(result, Tensor) and result.is_floating_point():
            self._look(name, inputs, result)
        return result

    def _look(self, name: str, inputs: list[Tensor], result: Tensor) -> None:
        """Note the operator if its result is the first that is not finite."""
        if bool(torch.isfinite(result).all()):
            return
        if all(bool(torch.isfinite(value).all()) for value in inputs if value.is_floating_point()):
            module = max(self._tracker.parents - {"Global"}, key=len, default="(outside)")
            self.overflow = Overflow(module, name, tuple(result.shape))


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _narrow(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


# ----------------------------------------------------------------------
# The deploy form in mixed precision: low-precision feature maps, float32 style path.
#
# As in the fp16 ONNX file (``gpenlib/compile/half.py``), feature maps (rank 4) and convolution weights
# take the
# low precision; the mapping network, the style affines and demodulation work on vectors and stay float32:
# sums
# of squares leave the range of fp16, 1e-8 lies below it, and there is nothing to gain on vectors.
#
# The casts are part of the module and not left to ``torch.autocast``: that decides per operator, so that it
# would run the linear layers of the style path in low precision, casts the weights again at every call,
# and is
# a state of the caller that a saved file does not carry. Explicit casts trace to TorchScript as they are.

MAP_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAP_RANK = 4


class MixedPrecisionGpen(nn.Module):
    """A deploy form whose maps and convolutions have one type, between float32 input and output.

    Its maps are channels-last, which is the faster layout: on two cores of a processor with AVX-512 and bf16,
    the 128-px ``demo-color`` took 78 ms in place of 87 in float32, and 41 ms in place of 51 in bfloat16
    (PyTorch 2.13, medians of 15 interleaved calls). On GPUs it is what tensor cores work on.

    Parameters
    ----------
    network : DeployGpen
        With its convolutions and rank-4 tensors in ``map_type``; it is used, not copied.
    map_type : torch.dtype
    """

    def __init__(self, network: DeployGpen, map_type: torch.dtype) -> None:
        super().__init__()
        self.config = network.config
        self.network = network
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == MAP_RANK:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self.map_type = map_type

    def forward(self, image: Tensor) -> Tensor:
        """Float32 [N, 3, in_size, in_size] in [-1, 1] -> float32 [N, 3, out_size, out_size]."""
        maps = image.to(dtype=self.map_type, memory_format=torch.channels_last)
        output: Tensor = self.network(maps)
        return output.to(dtype=torch.float32, memory_format=torch.contiguous_format)


def mixed_precision(model: Gpen | DeployGpen, dtype: str) -> MixedPrecisionGpen:
    """Return a copy of ``model`` as deploy form with maps and convolutions in ``dtype``.

    Parameters
    ----------
    model : Gpen or DeployGpen
    dtype : {"fp32", "bf16", "fp16"}

    Returns
    -------
    MixedPrecisionGpen
        In eval mode, on the model's device.

    Raises
    ------
    ValueError
        If ``dtype`` is another one.
    """
    map_type = _map_type(dtype)
    network = copy.deepcopy(model) if isinstance(model, DeployGpen) else deploy_form(model)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(map_type)  # their biases too
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.ndim == MAP_RANK:
                tensor.data = tensor.data.to(map_type)
    return MixedPrecisionGpen(network, map_type).eval()


def write_mixed_precision(module: MixedPrecisionGpen, path: str | Path) -> Path:
    """Write the weights in their types as safetensors, under the deploy form's own keys."""
    tensors = {name: tensor.contiguous() for name, tensor in module.network.state_dict().items()}
    with write_atomically(Path(path)) as temporary:
        save_file(tensors, temporary)
    return Path(path)


def read_mixed_precision(path: str | Path, config: GpenConfig, dtype: str) -> MixedPrecisionGpen:
    """Load the weights that :func:`write_mixed_precision` wrote.

    Raises
    ------
    ValueError
        If ``dtype`` has no such form, or the file holds the weights of another network.
    """
    map_type = _map_type(dtype)
    with torch.device("meta"):  # the shapes alone: every tensor comes from the file
        network = deploy_form(Gpen(config))
    try:
        network.load_state_dict(load_file(path), assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold a deploy form of {config}: {error}") from error
    return MixedPrecisionGpen(network.requires_grad_(False), map_type).eval()


def _map_type(dtype: str) -> torch.dtype:
    """Return torch's type for the maps of a dtype."""
    if dtype not in MAP_TYPES:
        raise ValueError(choice_error("dtype", dtype, tuple(MAP_TYPES)))
    return MAP_TYPES[dtype]
