"""Look into a GPEN: what its modules compute, what a prior's latents draw, what both cost."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from gpenlib.architecture.model import MAPPING_LAYERS, STYLE_DIM, Generator, Gpen, GpenConfig, Modulation
from gpenlib.images import Image, from_tensor

FLOAT_BYTES, RGB = 4, 3


@contextmanager
def capture(
    network: nn.Module, names: Iterable[str], what: Callable[[str, Any, Any], Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that named modules fill as they finish: output or ``what(name, inputs, output)``."""
    seen: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name in names:

            def keep(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                seen[name] = output if what is None else what(name, inputs, output)

            hooks.callback(network.get_submodule(name).register_forward_hook(keep).remove)
        yield seen


class ForwardPass(NamedTuple):
    """What a network computed on the way from one image to another, by side in pixels; float32 on the CPU."""

    output: Tensor  # [1, 3, out_size, out_size]
    encoder: dict[int, Tensor]  # [C, side, side]: output of the ``ecd`` stage, the decoder's noise
    decoder: dict[int, Tensor]  # [C, side, side]: what the second convolution of the level drew
    rgb: dict[int, Tensor]  # [3, side, side]: the image that has grown up to this level (the ToRGB skip path)
    rgb_added: dict[int, Tensor]  # [3, side, side]: what this level added to the upsampled image below


def record_forward(model: Gpen, image: Tensor) -> ForwardPass:
    """Run ``model`` on one image [1, 3, in_size, in_size] in [-1, 1] and return its intermediate maps."""
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"input of shape {tuple(image.shape)}: one image [1, 3, S, S] is recorded at a time")
    config, levels = model.config, model.config.log_out - 1
    sides = [4 * 2**level for level in range(levels)]
    encoder = [f"ecd{i}" for i in range(config.log_in - 1)]
    convs = ["generator.conv1", *(f"generator.convs.{2 * i + 1}" for i in range(levels - 1))]
    rgbs = ["generator.to_rgb1", *(f"generator.to_rgbs.{i}" for i in range(levels - 1))]
    below = [f"{name}.upsample" for name in rgbs[1:]]
    names = [*encoder, *convs, *rgbs, *below]
    on_cpu = capture(model, names, lambda name, inputs, output: output[0].float().cpu().clone())
    with torch.inference_mode(), on_cpu as maps:
        output = model(image).float().cpu()
        added = [maps[rgbs[0]], *(maps[a] - maps[b] for a, b in zip(rgbs[1:], below, strict=True))]
    return ForwardPass(
        output=output,
        encoder={maps[name].shape[-1]: maps[name] for name in encoder},
        # the other half of these channels is the encoder's map, scaled
        decoder={s: maps[name][: config.channels(s)] for s, name in zip(sides, convs, strict=True)},
        rgb={s: maps[name] for s, name in zip(sides, rgbs, strict=True)},
        rgb_added=dict(zip(sides, added, strict=True)),
    )


def strongest_channels(features: Tensor, count: int) -> Tensor:
    """Return the channels of highest variance, strongest first: [C, H, W] -> [min(count, C), H, W]."""
    variance = features.flatten(1).var(dim=1, unbiased=False)
    return features[torch.argsort(variance, descending=True, stable=True)[:count]]


# A prior's latent space: interpolation, style mixing (StyleGAN, section 3.1), truncation (appendix B: faces
# are more ordinary and have fewer faults). All pictures of one call have the same noise: they differ in the
# latent alone. ``noise`` is its strength, 1 as in training; with less, a young prior's faces are cleaner.


def draw_latents(prior: Generator, count: int, seed: int, truncation: float = 1.0) -> Tensor:
    """Return ``w`` of ``count`` random z, float32 [count, 512]; with ``truncation`` 0 all are the mean."""
    z = torch.randn(count, STYLE_DIM, generator=torch.Generator().manual_seed(seed))  # on every device alike
    w = prior.style(z.to(prior.input.input.device))
    return w if truncation == 1.0 else torch.lerp(mean_latent(prior), w, truncation)


def mean_latent(prior: Generator, count: int = 4096, seed: int = 0) -> Tensor:
    """Return the mean ``w`` of ``count`` random z, float32 [512]."""
    return draw_latents(prior, count, seed).mean(dim=0)


def generate(prior: Generator, latents: Tensor, seed: int, noise: float = 1.0) -> Tensor:
    """Return faces in [-1, 1], all with the same noise: [..., num_latents, 512] -> float32 [..., 3, S, S]."""
    flat = latents.reshape(-1, prior.config.num_latents, STYLE_DIM)  # [N, num_latents, 512]
    maps = [noise * values for values in prior.noise_maps(1, seed)]
    with torch.inference_mode():  # one at a time: at 1024 px a batch of them would fill the memory
        images = torch.cat([prior.synthesis(w[None], maps) for w in flat])  # [N, 3, S, S]
    return images.view(*latents.shape[:-2], *images.shape[1:])


def per_layer(prior: Generator, w: Tensor) -> Tensor:
    """Repeat latents [..., 512] for every layer -> [..., num_latents, 512]."""
    return w.unsqueeze(-2).expand(*w.shape[:-1], prior.config.num_latents, w.shape[-1])


def interpolate(
    prior: Generator, seed: int, rows: int, columns: int, truncation: float = 1.0, noise: float = 1.0
) -> Tensor:
    """Walk straight in ``w`` from latent 2r to 2r + 1: float32 [rows, columns, 3, S, S] in [-1, 1]."""
    if rows < 1 or columns < 2:
        raise ValueError(f"rows={rows}, columns={columns}: at least 1 and 2 are needed (both ends are shown)")
    with torch.inference_mode():
        ends = draw_latents(prior, 2 * rows, seed, truncation).view(rows, 2, 1, STYLE_DIM)
        along = torch.linspace(0, 1, columns, device=ends.device)[:, None]
        walks = torch.lerp(ends[:, 0], ends[:, 1], along)  # [rows, columns, 512]
        return generate(prior, per_layer(prior, walks), seed, noise)


class StyleGrid(NamedTuple):
    """Faces and their mixtures, float32 in [-1, 1] nominally."""

    left: Tensor  # [R, 3, S, S]; row r takes its coarse styles from face r
    top: Tensor  # [C, 3, S, S]; column c takes its fine styles from face c
    mixed: Tensor  # [R, C, 3, S, S]


def mix_styles(
    prior: Generator,
    seed: int,
    rows: int,
    columns: int,
    crossover: int,
    truncation: float = 1.0,
    noise: float = 1.0,
) -> StyleGrid:
    """Give the first ``crossover`` layers the latent of the face at the left, the others that at the top."""
    layers = prior.config.num_latents
    if not 0 <= crossover <= layers:
        raise ValueError(f"crossover={crossover}: allowed are 0 to {layers}, the layers with a style")
    with torch.inference_mode():
        w = per_layer(prior, draw_latents(prior, rows + columns, seed, truncation))
        coarse = (torch.arange(layers, device=w.device) < crossover)[:, None]
        mixed = torch.where(coarse, w[:rows, None], w[None, rows:])
        return StyleGrid(*(generate(prior, latents, seed, noise) for latents in (w[:rows], w[rows:], mixed)))


def to_pictures(images: Tensor) -> Image:
    """Return images [..., 3, S, S] in [-1, 1] as uint8 RGB [..., S, S, 3]."""
    flat = images.reshape(-1, *images.shape[-3:]).cpu().numpy()
    return from_tensor(flat).reshape(*images.shape[:-3], *images.shape[-2:], 3)


# Cost of one image in float32, counted by torch in one forward pass on the meta device (shapes, no data).
# MACs are those of convolutions, FIR filters and matrix products at the positions that PyTorch computes (of
# the output, or of the input of a transposed convolution). Element-wise work is left out: it is memory-bound
# and below one percent. The deploy form adds a matrix-vector product per demodulated convolution (< 0.1 %).
Part = Literal["encoder", "mapping", "decoder"]
OPERATIONS = {  # of the decoder's and filters' classes
    "Blur": "FIR blur",
    "Upsample": "FIR upsample * 2",
    "ConstantInput": "learned constant",
    "StyledConv": "conv 3x3",
    "ToRGB": "conv 1x1 to RGB",
}


@dataclass(frozen=True)
class _Cost:
    """Figures of a block or a network, and those that follow from them."""

    parameters: int  # trainable values; FIR kernels are buffers and count zero
    macs: int  # multiply-accumulates
    activation_bytes: int  # size of the outputs

    @property
    def gflops(self) -> float:
        """Floating-point operations in 1e9, two per multiply-accumulate."""
        return 2 * self.macs / 1e9

    @property
    def weight_bytes(self) -> int:
        """Size of the parameters in float32."""
        return self.parameters * FLOAT_BYTES


@dataclass(frozen=True)
class BlockCost(_Cost):
    """Cost of one block. A FIR filter has a row of its own; that of the module around it leaves it out."""

    name: str  # module path inside Gpen
    stage: str  # the group it belongs to, such as "decoder 256 px"
    part: Part  # "mapping" is the whole latent path: final_linear and the mapping network
    operation: str  # what it does, in words
    resolution: int  # side of the output in pixels, 1 for vectors
    channels: int  # of the output


@dataclass(frozen=True)
class TotalCost(_Cost):
    """Sums over the blocks of one network, and its peak of live activations."""

    config: GpenConfig
    peak_activation_bytes: int


def _on_meta(config: GpenConfig, impl: Modulation) -> tuple[Gpen, Tensor]:
    """Return a network and an image that have shapes and lifetimes but no data."""
    with torch.device("meta"):
        model = Gpen(config).eval().requires_grad_(False).set_modulation(impl)
        return model, torch.empty(1, RGB, config.in_size, config.in_size)


def block_costs(config: GpenConfig) -> list[BlockCost]:
    """Return the cost of every block in the order in which they finish; the sums are those of the network."""
    model, image = _on_meta(config, "weights")
    names = [name for name, module in model.named_modules() if type(module).__name__ in OPERATIONS]
    names += [*(f"ecd{i}" for i in range(config.log_in - 1)), "final_linear", "generator.style"]
    with FlopCounterMode(display=False) as counter, capture(model, names) as outputs:
        model(image)
    flops = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    rows = []
    for name, output in outputs.items():
        module = model.get_submodule(name)
        parameters = sum(p.numel() for p in module.parameters())
        inner = sum(flops[f"Gpen.{other}"] for other in names if other.startswith(f"{name}."))
        macs, size = (flops.get(f"Gpen.{name}", 0) - inner) // 2, FLOAT_BYTES * output.numel()
        side, words = output.shape[-1] if output.ndim == 4 else 1, _words(name, module, outputs)
        rows.append(BlockCost(parameters, macs, size, name, *words, side, output.shape[1]))
    return rows


def _words(name: str, module: nn.Module, outputs: Mapping[str, Tensor]) -> tuple[str, Part, str]:
    """Return the stage, the part and the operation of a block."""
    if name == "final_linear":
        return "projection to z", "mapping", "linear"
    if name == "generator.style":
        return "mapping network", "mapping", f"{MAPPING_LAYERS} linear"
    operation = OPERATIONS.get(type(module).__name__, "conv 1x1" if name == "ecd0" else "conv 3x3 / 2")
    if f"{name}.conv.blur" in outputs:
        operation = "transposed conv 3x3 * 2"
    around = re.match(r"ecd\d+|generator\.\w+(\.\d+)?", name)
    assert around is not None  # names are those of block_costs
    part: Part = "encoder" if name.startswith("ecd") else "decoder"
    return f"{part} {outputs[around[0]].shape[-1]} px", part, operation


def stage_costs(blocks: Iterable[BlockCost]) -> list[BlockCost]:
    """Merge the blocks of each stage into one row; resolution and channels are its widest tensor's."""
    stages: dict[str, list[BlockCost]] = {}
    for block in blocks:
        stages.setdefault(block.stage, []).append(block)
    rows = []
    for stage, members in stages.items():
        widest = max(members, key=lambda block: block.channels)
        rows.append(replace(widest, name=stage, operation="all of the stage", **_sums(members)))
    return rows


def total_cost(config: GpenConfig) -> TotalCost:
    """Return the sums over all blocks and the peak of the live activations."""
    peak = max(step.total_bytes for step in live_activations(config))
    return TotalCost(**_sums(block_costs(config)), config=config, peak_activation_bytes=peak)


def _sums(blocks: Sequence[BlockCost]) -> dict[str, Any]:
    return {f.name: sum(getattr(block, f.name) for block in blocks) for f in fields(_Cost)}


# Activation memory at inference: what a runtime needs that frees every buffer after its last reader and runs
# bias, activation and addition in place, and what PyTorch takes in eager mode. One image in float32; weights
# and the workspaces of convolution algorithms are not counted.


class LiveActivations(NamedTuple):
    """Bytes alive while one operation runs."""

    name: str  # module path (a styled convolution has two: its convolution and the concatenation)
    part: Part  # never "mapping": the latent path works on vectors and is left out
    side: int  # resolution of the stage in pixels
    skip_bytes: int  # encoder feature maps that the decoder has not read yet
    working_bytes: int  # everything else: what the operation reads and writes, and the RGB image

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.skip_bytes + self.working_bytes


def live_activations(config: GpenConfig) -> list[LiveActivations]:
    """Return the bytes alive during each convolution, FIR filter and concatenation, in execution order."""
    steps: list[tuple[str, int, int, str, tuple[str, ...]]] = []

    def step(name: str, side: int, elements: int, writes: str, *reads: str) -> None:
        steps.append((name, side, elements, writes, reads))

    for index in range(config.log_in - 1):
        side, above, source = config.in_size >> index, 2 * config.in_size >> index, "image"
        if index:
            blurred, source = (above + 1) ** 2 * config.channels(above), f"blurred {side}"
            step(f"ecd{index}.0.0", side, blurred, source, f"feature {above}")
        step(f"ecd{index}", side, side**2 * config.channels(side), f"feature {side}", source)
    for level in range(2, config.log_out + 1):  # what is read and was never written takes nothing
        side, below, i = 2**level, 2 ** (level - 1), level - 3
        maps, image, noise = side**2 * config.channels(side), side**2 * RGB, f"feature {side}"
        up, conv, rgb = f"generator.convs.{2 * i}", f"generator.convs.{2 * i + 1}", f"generator.to_rgbs.{i}"
        if level == 2:
            conv, rgb = "generator.conv1", "generator.to_rgb1"
        else:
            transposed = (side + 1) ** 2 * config.channels(side)
            step(f"{up}.conv", side, transposed, f"transposed {side}", f"level {below}")
            step(f"{up}.conv.blur", side, maps, f"first {side}", f"transposed {side}")
            step(up, side, 2 * maps, f"half {side}", f"first {side}", noise)
        step(f"{conv}.conv", side, maps, f"second {side}", f"half {side}")
        step(conv, side, 2 * maps, f"level {side}", f"second {side}", noise)
        if level > 2:
            step(f"{rgb}.upsample", side, image, f"upsampled {side}", f"rgb {below}")
        step(rgb, side, image, f"rgb {side}", f"level {side}", f"upsampled {side}")

    last_read = {tensor: index for index, (*_, reads) in enumerate(steps) for tensor in reads}
    alive = {"image": RGB * config.in_size**2}
    rows = []
    for index, (name, side, elements, writes, _) in enumerate(steps):
        alive[writes] = elements
        skip = FLOAT_BYTES * sum(size for tensor, size in alive.items() if tensor.startswith("feature"))
        working = FLOAT_BYTES * sum(alive.values()) - skip
        part: Part = "encoder" if name.startswith("ecd") else "decoder"
        rows.append(LiveActivations(name, part, side, skip, working))
        alive = {tensor: size for tensor, size in alive.items() if last_read.get(tensor, -1) > index}
    return rows


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of storages made by operations, ``existing`` ones aside, until the last view goes."""

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in existing})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in filter(torch.is_tensor, tree_leaves(result)):
            self.track(leaf)
        return result

    def track(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` from now until it is freed."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = True
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.live -= size


def eager_peak_bytes(config: GpenConfig, impl: Modulation = "activations") -> int:
    """Return the peak of activation bytes of one eager inference, the input image included."""
    model, image = _on_meta(config, impl)
    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers()]) as memory:
        memory.track(image)
        model(image)
    return memory.peak
