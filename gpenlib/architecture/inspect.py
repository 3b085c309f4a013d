"""Look inside one forward pass of a GPEN: feature maps of both halves and the growing RGB image."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from gpenlib.architecture.model import (
    MAPPING_LAYERS,
    STYLE_DIM,
    Generator,
    Gpen,
    GpenConfig,
    Modulation,
    ToRGB,
)
from gpenlib.images import Image, from_tensor

# ----------------------------------------------------------------------
# Look inside one forward pass of a GPEN: feature maps of both halves and the growing RGB image.


@dataclass(frozen=True)
class ForwardPass:
    """What a network computed on the way from one image to another; tensors are on the CPU, float32.

    Attributes
    ----------
    output : Tensor
        Result [1, 3, out_size, out_size].
    encoder : dict of int to Tensor
        By side in pixels: output [C, side, side] of the ``ecd`` stage, which the decoder takes as noise.
    decoder : dict of int to Tensor
        By side: the half [C, side, side] of the decoder's features that came out of the second modulated
        convolution of the level, after its activation (the other half is the encoder's map, scaled).
    rgb : dict of int to Tensor
        By side: the image [3, side, side] that has grown up to this level (the ToRGB skip path).
    rgb_added : dict of int to Tensor
        By side: what this level's ToRGB added to the upsampled image of the level below.
    """

    output: Tensor
    encoder: dict[int, Tensor] = field(default_factory=dict)
    decoder: dict[int, Tensor] = field(default_factory=dict)
    rgb: dict[int, Tensor] = field(default_factory=dict)
    rgb_added: dict[int, Tensor] = field(default_factory=dict)


def record_forward(model: Gpen, image: Tensor) -> ForwardPass:
    """Run ``model`` on one image and collect its intermediate maps with forward hooks.

    Parameters
    ----------
    model : Gpen
        Put it in eval mode for a repeatable answer; its mode and hooks are as before afterwards.
    image : Tensor
        [1, 3, in_size, in_size], RGB in [-1, 1].

    Returns
    -------
    ForwardPass
        The maps by resolution.

    Raises
    ------
    ValueError
        If the batch is not one image, or its shape is not the network's.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"input of shape {tuple(image.shape)}: one image [1, 3, S, S] is recorded at a time")
    seen = ForwardPass(output=torch.empty(1, 3, model.config.out_size, model.config.out_size))
    generator = model.generator
    levels = [2**level for level in range(2, model.config.log_out + 1)]
    second_convs = [generator.conv1, *list(generator.convs)[1::2]]
    to_rgbs: list[nn.Module] = [generator.to_rgb1, *generator.to_rgbs]
    handles = [stage.register_forward_hook(_keep(seen.encoder)) for stage in model.encoder]
    for side, conv, to_rgb in zip(levels, second_convs, to_rgbs, strict=True):
        handles.append(conv.register_forward_hook(_keep(seen.decoder, first=model.config.channels(side))))
        handles.append(to_rgb.register_forward_hook(_keep_rgb(seen)))
    try:
        with torch.inference_mode():
            seen.output.copy_(model(image))
    finally:
        for handle in handles:
            handle.remove()
    return seen


Hook = Callable[[nn.Module, Any, Tensor], None]


def _keep(store: dict[int, Tensor], first: int | None = None) -> Hook:
    """Return a hook that stores the first channels of a map under its side."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        store[output.shape[-1]] = output[0, :first].detach().float().cpu().clone()

    return hook


def _keep_rgb(seen: ForwardPass) -> Hook:
    """Return a hook that stores a ToRGB's image and what it added to the one below."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, ToRGB)  # registered on nothing else
        below = inputs[2] if len(inputs) > 2 else None
        added = output if below is None else output - module.upsample(below)
        side = output.shape[-1]
        seen.rgb[side] = output[0].detach().float().cpu().clone()
        seen.rgb_added[side] = added[0].detach().float().cpu().clone()

    return hook


def strongest_channels(features: Tensor, count: int) -> Tensor:
    """Return the ``count`` channels of highest spatial variance, strongest first.

    Parameters
    ----------
    features : Tensor
        [C, H, W].
    count : int
        How many; fewer come back if C is smaller.

    Returns
    -------
    Tensor
        [min(count, C), H, W].
    """
    variance = features.flatten(1).var(dim=1, unbiased=False)
    order = torch.argsort(variance, descending=True, stable=True)
    return features[order[:count]]


# ----------------------------------------------------------------------
# Looks into a prior's latent space: interpolation, style mixing, truncation (StyleGAN, sections 3 and B).
#
# All pictures of one call are made with the same noise, so what differs between them is the latent alone.

MEAN_OF = 4096  # latents that the mean is taken of
MEAN_SEED = 0


def draw_latents(prior: Generator, count: int, seed: int, truncation: float = 1.0) -> Tensor:
    """Return ``w`` of ``count`` random z, float32 [count, 512].

    Parameters
    ----------
    prior : Generator
    count : int
    seed : int
        Of z.
    truncation : float
        What is left of the distance to the mean latent: 1 changes nothing, 0 makes all latents the mean.
        Below 1 faces are more ordinary and have fewer faults (StyleGAN, appendix B).
    """
    w = prior.style(_normal(prior, count, seed))
    return w if truncation == 1.0 else torch.lerp(mean_latent(prior), w, truncation)


def mean_latent(prior: Generator, count: int = MEAN_OF, seed: int = MEAN_SEED) -> Tensor:
    """Return the mean ``w`` of ``count`` random z, float32 [512]."""
    return prior.style(_normal(prior, count, seed)).mean(dim=0)


def generate(prior: Generator, latents: Tensor, seed: int, noise: float = 1.0) -> Tensor:
    """Return the faces of latents, all with the same noise.

    Parameters
    ----------
    prior : Generator
    latents : Tensor
        float32 [..., num_latents, 512], one for every layer (see :func:`per_layer`).
    seed : int
        Of the noise.
    noise : float
        Its strength, 1 as in training. A prior that learned for a short time makes its texture of noise: with
        less of it faces are cleaner, and softer.

    Returns
    -------
    Tensor
        float32 [..., 3, S, S], nominally in [-1, 1].
    """
    layers = prior.config.num_latents
    flat = latents.reshape(-1, layers, STYLE_DIM)
    maps = [noise * values for values in prior.noise_maps(1, seed)]
    with torch.inference_mode():  # one at a time: at 1024 px a batch of them would fill the memory
        images = torch.cat([prior.synthesis(w[None], maps) for w in flat])
    return images.view(*latents.shape[:-2], *images.shape[1:])


def per_layer(prior: Generator, w: Tensor) -> Tensor:
    """Repeat latents [..., 512] for every layer -> [..., num_latents, 512]."""
    return w.unsqueeze(-2).expand(*w.shape[:-1], prior.config.num_latents, w.shape[-1])


def interpolate(
    prior: Generator, seed: int, rows: int, columns: int, truncation: float = 1.0, noise: float = 1.0
) -> Tensor:
    """Walk from one face to another in straight lines in ``w``.

    Parameters
    ----------
    prior : Generator
    seed : int
        Row r goes from latent 2r to latent 2r + 1 of ``draw_latents(prior, 2 * rows, seed, truncation)``.
    rows, columns : int
        Columns count both ends; at least 2.
    truncation : float
        See :func:`draw_latents`.
    noise : float
        See :func:`generate`.

    Returns
    -------
    Tensor
        float32 [rows, columns, 3, S, S], nominally in [-1, 1].

    Raises
    ------
    ValueError
        If there are fewer than 2 columns or no row.
    """
    if rows < 1 or columns < 2:
        raise ValueError(f"rows={rows}, columns={columns}: at least 1 and 2 are needed (both ends are shown)")
    with torch.inference_mode():
        ends = draw_latents(prior, 2 * rows, seed, truncation).view(rows, 2, 1, STYLE_DIM)
        along = torch.linspace(0, 1, columns, device=ends.device)[:, None]
        return generate(prior, per_layer(prior, torch.lerp(ends[:, 0], ends[:, 1], along)), seed, noise)


@dataclass(frozen=True)
class StyleGrid:
    """Faces and their mixtures, float32 in [-1, 1] nominally.

    Attributes
    ----------
    left : Tensor
        [R, 3, S, S]; row r takes its coarse styles from face r.
    top : Tensor
        [C, 3, S, S]; column c takes its fine styles from face c.
    mixed : Tensor
        [R, C, 3, S, S].
    """

    left: Tensor
    top: Tensor
    mixed: Tensor


def mix_styles(
    prior: Generator,
    seed: int,
    rows: int,
    columns: int,
    crossover: int,
    truncation: float = 1.0,
    noise: float = 1.0,
) -> StyleGrid:
    """Give the first layers the latent of one face and the others that of a second (StyleGAN, section 3.1).

    Parameters
    ----------
    prior : Generator
    seed : int
        The faces at the left are the first ``rows`` of ``draw_latents(prior, rows + columns, seed,
        truncation)``, those at the top the others.
    rows, columns : int
    crossover : int
        Layers, from 4 px up, with the styles of the left; 0 gives the top's faces, ``num_latents`` the
        left's.
    truncation : float
        See :func:`draw_latents`.
    noise : float
        See :func:`generate`.

    Raises
    ------
    ValueError
        If ``crossover`` is not between 0 and the number of layers.
    """
    layers = prior.config.num_latents
    if not 0 <= crossover <= layers:
        raise ValueError(
            f"crossover={crossover}: allowed are 0 to {layers}, the number of layers with a style"
        )
    with torch.inference_mode():
        w = per_layer(prior, draw_latents(prior, rows + columns, seed, truncation))
        left, top = w[:rows, None], w[None, rows:]
        coarse = (torch.arange(layers, device=w.device) < crossover)[:, None]
        sources = generate(prior, w, seed, noise)
        mixed = generate(prior, torch.where(coarse, left, top), seed, noise)
    return StyleGrid(sources[:rows], sources[rows:], mixed)


def to_pictures(images: Tensor) -> Image:
    """Return images [..., 3, S, S] in [-1, 1] as uint8 RGB [..., S, S, 3]."""
    flat = from_tensor(images.reshape(-1, *images.shape[-3:]).cpu().numpy())
    return np.stack(list(flat)).reshape(*images.shape[:-3], *images.shape[-2:], 3)


def _normal(prior: Generator, count: int, seed: int) -> Tensor:
    """Return seeded z, the same on every device, [count, 512]."""
    z = torch.randn(count, STYLE_DIM, generator=torch.Generator().manual_seed(seed))
    return z.to(prior.input.input.device)


# ----------------------------------------------------------------------
# What a GPEN costs: parameters, multiply-accumulates and output tensors per block, in closed form.
#
# Nothing is built, allocated or run; the numbers follow from :class:`GpenConfig` alone and the tests hold
# them
# against the modules.
#
# Conventions
# -----------
# * One image (batch 1), float32.
# * MACs are those of convolutions, FIR filters and matrix products, at the positions that PyTorch computes
#   (output positions of a convolution, input positions of a transposed one). 1 GFLOP here is 0.5 GMAC: a
#   multiplication and an addition count separately.
# * Element-wise work (bias, activation, concatenation, scaling weights or activations by the style) is left
#   out; it is memory-bound and below one percent of the arithmetic.
# * The training form is counted. The deploy form has the same convolutions; it adds one matrix-vector
#   product per demodulated convolution (under a thousandth of the total at 512 px).

Part = Literal["encoder", "mapping", "decoder"]
FIR_AREA = 16  # taps of the 4x4 FIR kernel


class _Derived:
    """Figures that follow from parameters and multiply-accumulates."""

    parameters: int
    macs: int

    @property
    def gflops(self) -> float:
        """Floating-point operations in 1e9, two per multiply-accumulate."""
        return 2 * self.macs / 1e9

    @property
    def weight_bytes(self) -> int:
        """Size of the parameters in float32."""
        return self.parameters * FLOAT_BYTES


@dataclass(frozen=True)
class BlockCost(_Derived):
    """Cost of one block for one image in float32.

    Attributes
    ----------
    name : str
        Module path inside :class:`~gpenlib.architecture.Gpen`. A FIR filter has a row of its own, and the row
        of the module around it does not count it again.
    stage : str
        The group it belongs to, such as ``"decoder 256 px"``.
    part : {"encoder", "mapping", "decoder"}
        ``"mapping"`` is the whole latent path: ``final_linear`` and the mapping network.
    operation : str
        What it does, in words.
    resolution, channels : int
        Side in pixels (1 for vectors) and channels of the output tensor.
    parameters : int
        Trainable values; FIR kernels are buffers and count zero.
    macs : int
        Multiply-accumulates.
    activation_bytes : int
        Size of the output tensor.
    """

    name: str
    stage: str
    part: Part
    operation: str
    resolution: int
    channels: int
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class TotalCost(_Derived):
    """Sums over the blocks of one network, and its peak of live activations in bytes."""

    config: GpenConfig
    parameters: int
    macs: int
    activation_bytes: int
    peak_activation_bytes: int


def block_costs(config: GpenConfig) -> list[BlockCost]:
    """Return the cost of every block, in the order in which the outputs appear.

    Parameters
    ----------
    config : GpenConfig
        The network; nothing of it is built.

    Returns
    -------
    list of BlockCost
        Their parameters add up to the module's, their MACs to those of one forward pass.
    """
    return [*_encoder_costs(config), *_mapping_costs(config), *_decoder_costs(config)]


def stage_costs(blocks: Iterable[BlockCost]) -> list[BlockCost]:
    """Merge the blocks of each stage into one row; resolution and channels are its widest tensor's."""
    stages: dict[str, BlockCost] = {}
    for block in blocks:
        seen = stages.get(block.stage)
        if seen is None:
            stages[block.stage] = replace(block, name=block.stage, operation="all of the stage")
            continue
        widest = max(seen, block, key=lambda row: row.channels)
        stages[block.stage] = replace(
            seen,
            resolution=widest.resolution,
            channels=widest.channels,
            parameters=seen.parameters + block.parameters,
            macs=seen.macs + block.macs,
            activation_bytes=seen.activation_bytes + block.activation_bytes,
        )
    return list(stages.values())


def total_cost(config: GpenConfig) -> TotalCost:
    """Return the sums over all blocks and the peak of the live activations."""
    blocks = block_costs(config)
    return TotalCost(
        config=config,
        parameters=sum(block.parameters for block in blocks),
        macs=sum(block.macs for block in blocks),
        activation_bytes=sum(block.activation_bytes for block in blocks),
        peak_activation_bytes=max(step.total_bytes for step in live_activations(config)),
    )


def _block(
    name: str, stage: str, part: Part, operation: str, shape: tuple[int, int], parameters: int, macs: int
) -> BlockCost:
    """Return a row; ``shape`` is (side, channels) of the output."""
    side, channels = shape
    return BlockCost(
        name, stage, part, operation, side, channels, parameters, macs, side**2 * channels * FLOAT_BYTES
    )


def _fir(name: str, stage: str, part: Part, operation: str, side: int, channels: int) -> BlockCost:
    """Return the row of a depthwise 4x4 filter without resampling (``side`` of its output)."""
    return _block(name, stage, part, operation, (side, channels), 0, side**2 * channels * FIR_AREA)


def _encoder_costs(config: GpenConfig) -> list[BlockCost]:
    size, width = config.in_size, config.channels(config.in_size)
    macs = size**2 * RGB * width
    first = _block(
        "ecd0", f"encoder {size} px", "encoder", "conv 1x1", (size, width), RGB * width + width, macs
    )
    rows = [first]
    for index, level in enumerate(range(config.log_in - 1, 1, -1), start=1):
        side, out = 2**level, config.channels(2**level)
        stage = f"encoder {side} px"
        # The stride-2 convolution wants 2 * side + 1 pixels: 4x4 filter with two zeros on each side.
        rows.append(_fir(f"ecd{index}.0.0", stage, "encoder", "FIR blur", 2 * side + 1, width))
        weights = out * width * 9
        rows.append(
            _block(
                f"ecd{index}", stage, "encoder", "conv 3x3 / 2", (side, out), weights + out, side**2 * weights
            )
        )
        width = out
    return rows


def _mapping_costs(config: GpenConfig) -> list[BlockCost]:
    project = config.channels(4) * 4 * 4 * STYLE_DIM
    layers = MAPPING_LAYERS * STYLE_DIM**2
    biases = MAPPING_LAYERS * STYLE_DIM
    vector = (1, STYLE_DIM)
    return [
        _block("final_linear", "projection to z", "mapping", "linear", vector, project + STYLE_DIM, project),
        _block(
            "generator.style",
            "mapping network",
            "mapping",
            f"{MAPPING_LAYERS} linear",
            vector,
            layers + biases,
            layers,
        ),
    ]


def _decoder_costs(config: GpenConfig) -> list[BlockCost]:
    width = config.channels(4)
    stage = "decoder 4 px"
    rows = [
        _block("generator.input", stage, "decoder", "learned constant", (4, width), 16 * width, 0),
        _styled_conv("generator.conv1", stage, 4, width, width, positions=4**2, operation="conv 3x3"),
        _to_rgb("generator.to_rgb1", stage, 4, 2 * width),
    ]
    for index, level in enumerate(range(3, config.log_out + 1)):
        side, out = 2**level, config.channels(2**level)
        stage = f"decoder {side} px"
        up, conv = (f"generator.convs.{2 * index + i}" for i in (0, 1))
        rgb = f"generator.to_rgbs.{index}"
        upsample = (side // 2) ** 2 * RGB * FIR_AREA  # transposed: counted at its input positions
        rows += [
            _fir(f"{up}.conv.blur", stage, "decoder", "FIR blur", side, out),
            _styled_conv(up, stage, side, 2 * width, out, (side // 2) ** 2, "transposed conv 3x3 * 2"),
            _styled_conv(conv, stage, side, 2 * out, out, side**2, "conv 3x3"),
            _block(f"{rgb}.upsample", stage, "decoder", "FIR upsample * 2", (side, RGB), 0, upsample),
            _to_rgb(rgb, stage, side, 2 * out),
        ]
        width = out
    return rows


def _styled_conv(
    name: str, stage: str, side: int, width: int, out: int, positions: int, operation: str
) -> BlockCost:
    """Return the row of a StyledConv: style affine, 3x3 convolution, noise strength, activation bias."""
    affine, weights = STYLE_DIM * width, out * width * 9
    parameters = affine + width + weights + 1 + 2 * out
    return _block(
        name, stage, "decoder", operation, (side, 2 * out), parameters, affine + positions * weights
    )


def _to_rgb(name: str, stage: str, side: int, width: int) -> BlockCost:
    """Return the row of a ToRGB: style affine, 1x1 convolution, bias."""
    affine, weights = STYLE_DIM * width, RGB * width
    parameters = affine + width + weights + RGB
    return _block(
        name, stage, "decoder", "conv 1x1 to RGB", (side, RGB), parameters, affine + side**2 * weights
    )


# ----------------------------------------------------------------------
# Activation memory of a GPEN at inference: what is alive when, without allocating any of it.
#
# Two answers for one image in float32. :func:`live_activations` is what a runtime needs that frees every
# buffer after its last reader and runs element-wise operations in place. :func:`eager_peak_bytes` is what
# PyTorch takes in eager mode, found by running the network on the meta device.

MemoryPart = Literal["encoder", "decoder"]
FLOAT_BYTES = 4
RGB = 3


@dataclass(frozen=True)
class LiveActivations:
    """Bytes alive while one operation runs.

    Attributes
    ----------
    name : str
        Module path of the operation (a styled convolution has two: its convolution and the concatenation).
    part : {"encoder", "decoder"}
        The latent path between them works on vectors and is left out.
    side : int
        Resolution of the stage in pixels.
    skip_bytes : int
        Encoder feature maps that the decoder has not read yet.
    working_bytes : int
        Everything else: what the operation reads and writes, and the RGB image.
    """

    name: str
    part: MemoryPart
    side: int
    skip_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.skip_bytes + self.working_bytes


@dataclass(frozen=True)
class _Step:
    """One operation of the forward pass: the tensors it reads, the one it writes, and that one's size."""

    name: str
    part: MemoryPart
    side: int
    reads: tuple[str, ...]
    writes: str
    elements: int


def live_activations(config: GpenConfig) -> list[LiveActivations]:
    """Return the activation bytes that are alive during each operation of one inference.

    Parameters
    ----------
    config : GpenConfig
        The network; nothing of it is built.

    Returns
    -------
    list of LiveActivations
        In execution order. The maximum of ``total_bytes`` is the peak.

    Notes
    -----
    Liveness analysis over the forward pass in its written order. Every convolution, FIR filter and
    concatenation writes a buffer of its own; bias, activation and addition run in place; a buffer is freed
    after the operation that reads it last. So an encoder feature map lives from its ``ecd`` stage to the
    second styled convolution of the decoder level with its resolution. Weights and the workspaces of
    convolution algorithms are not counted.
    """
    steps = _steps(config)
    last_read = {tensor: index for index, step in enumerate(steps) for tensor in step.reads}
    alive = {"image": RGB * config.in_size**2}
    rows = []
    for index, step in enumerate(steps):
        alive[step.writes] = step.elements
        skip = sum(size for tensor, size in alive.items() if tensor.startswith("feature"))
        working = sum(alive.values()) - skip
        rows.append(
            LiveActivations(step.name, step.part, step.side, skip * FLOAT_BYTES, working * FLOAT_BYTES)
        )
        alive = {tensor: size for tensor, size in alive.items() if last_read.get(tensor, -1) > index}
    return rows


def _steps(config: GpenConfig) -> list[_Step]:
    """Return the forward pass as reads and writes; encoder maps are named ``feature <side>``."""
    size = config.in_size
    width = config.channels(size)
    steps = [_Step("ecd0", "encoder", size, ("image",), f"feature {size}", size**2 * width)]
    for index, level in enumerate(range(config.log_in - 1, 1, -1), start=1):
        side, out = 2**level, config.channels(2**level)
        blurred, feature = f"blurred {side}", f"feature {side}"
        above, elements = f"feature {2 * side}", (2 * side + 1) ** 2 * width
        steps.append(_Step(f"ecd{index}.0.0", "encoder", side, (above,), blurred, elements))
        steps.append(_Step(f"ecd{index}", "encoder", side, (blurred,), feature, side**2 * out))
        width = out
    for level in range(2, config.log_out + 1):
        steps += _decoder_steps(config, level)
    return steps


def _decoder_steps(config: GpenConfig, level: int) -> list[_Step]:
    """Return the steps of the decoder level with ``2**level`` pixels."""
    side, out = 2**level, config.channels(2**level)
    maps, image = side**2 * out, side**2 * RGB
    noise = (f"feature {side}",) if side <= config.in_size else ()

    def step(name: str, reads: tuple[str, ...], writes: str, elements: int) -> _Step:
        return _Step(f"generator.{name}", "decoder", side, reads, f"{writes} {side}", elements)

    if level == 2:
        return [
            step("conv1.conv", (), "second", maps),
            step("conv1", ("second 4", *noise), "level", 2 * maps),
            step("to_rgb1", ("level 4",), "rgb", image),
        ]
    up, conv, rgb = f"convs.{2 * level - 6}", f"convs.{2 * level - 5}", f"to_rgbs.{level - 3}"
    return [
        step(f"{up}.conv", (f"level {side // 2}",), "transposed", (side + 1) ** 2 * out),
        step(f"{up}.conv.blur", (f"transposed {side}",), "first", maps),
        step(up, (f"first {side}", *noise), "half", 2 * maps),
        step(f"{conv}.conv", (f"half {side}",), "second", maps),
        step(conv, (f"second {side}", *noise), "level", 2 * maps),
        step(f"{rgb}.upsample", (f"rgb {side // 2}",), "upsampled", image),
        step(rgb, (f"level {side}", f"upsampled {side}"), "rgb", image),
    ]


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of the tensors that operations make, on any device; ``peak`` is their maximum.

    Storages are counted once, however many views they have, and until Python drops the last of them.

    Parameters
    ----------
    existing : sequence of Tensor
        Tensors whose storage does not count, such as parameters.
    """

    def __init__(self, existing: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()
        for tensor in existing:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and take note of the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        return result

    def track(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` from now until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = True
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


def eager_peak_bytes(config: GpenConfig, impl: Modulation = "activations") -> int:
    """Return the peak of activation bytes of one eager PyTorch inference, batch 1, float32.

    The network is built and run on the meta device, where tensors have shapes and lifetimes but no data, so
    it takes neither memory nor much time. The input image counts; weights, workspaces of convolution
    algorithms and the allocator's rounding do not.

    Parameters
    ----------
    config : GpenConfig
        The network.
    impl : {"weights", "activations"}
        Formulation of the modulated convolutions. From 256 px on both have the same peak, which the bias
        and activation of the last decoder level set.
    """
    with torch.device("meta"):
        model: nn.Module = Gpen(config).eval().set_modulation(impl)
        image = torch.empty(1, RGB, config.in_size, config.in_size)
    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers()]) as memory:
        memory.track(image)
        model(image)
    return memory.peak
