"""Run the deploy form in PyTorch with some layers rounded to int8: what-if without writing a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gpenlib.compile.histogram import LEVELS
from gpenlib.compile.layers import RoundedLayer
from gpenlib.export import DeployGpen


@contextmanager
def fake_quantised(deploy: DeployGpen, layers: Mapping[str, RoundedLayer]) -> Iterator[DeployGpen]:
    """Round inputs and weights of some layers while the context lasts.

    The arithmetic is that of the QDQ file: q = clip(round(x / step), -128, 127), computed in float32.

    Parameters
    ----------
    deploy : DeployGpen
        Changed inside the context and restored behind it.
    layers : mapping of module path to RoundedLayer
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_rounded(deploy.get_submodule(name), layer))
        yield deploy


@contextmanager
def _rounded(module: nn.Module, layer: RoundedLayer) -> Iterator[None]:
    """Round one convolution."""
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    weight, bias = module.weight, module.bias
    restored = layer.restored_weight()
    steps = torch.from_numpy(layer.input_steps()).to(weight)[:, None, None]

    def round_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (round_to_int8(inputs[0], steps),)

    handle = module.register_forward_pre_hook(round_input)
    try:
        module.weight = nn.Parameter(torch.from_numpy(restored).to(weight), requires_grad=False)
        if layer.bias is not None:
            module.bias = nn.Parameter(torch.from_numpy(layer.bias).to(weight), requires_grad=False)
        yield
    finally:
        handle.remove()
        module.weight, module.bias = weight, bias


def round_to_int8(x: Tensor, step: float | Tensor) -> Tensor:
    """Quantise and dequantise with a symmetric step, or one per channel; clipped to -128..127 as in ONNX."""
    return torch.clamp(torch.round(x / step), -LEVELS - 1, LEVELS) * step
