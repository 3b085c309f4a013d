"""Look inside one forward pass of a GPEN: feature maps of both halves and the growing RGB image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gpenlib.architecture.generator import Gpen, ToRGB


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
