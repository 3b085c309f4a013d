"""Activation memory of a GPEN at inference: what is alive when, without allocating any of it.

Two answers for one image in float32. :func:`live_activations` is what a runtime needs that frees every
buffer after its last reader and runs element-wise operations in place. :func:`eager_peak_bytes` is what
PyTorch takes in eager mode, found by running the network on the meta device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from gpenlib.architecture.config import GpenConfig
from gpenlib.architecture.generator import Gpen, Modulation

Part = Literal["encoder", "decoder"]
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
    part: Part
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
    part: Part
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
