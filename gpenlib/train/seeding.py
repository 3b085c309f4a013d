"""Start a network from trained weights, also from those of a smaller one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gpenlib.architecture import CheckpointError, Discriminator, Generator, Gpen, load_discriminator
from gpenlib.architecture.generator import noise_weights
from gpenlib.weights import discriminator_file

# Encoder and discriminator count their stages from the largest size down, the decoder from 4 px up.
TOP_DOWN = re.compile(r"^(ecd|convs\.)(\d+)(\..*)$")

NEW_COLOURS = re.compile(r"^to_rgbs\.\d+\.(conv\.weight|bias)$")


def find_discriminator(weights: Path) -> Discriminator | None:
    """Return the discriminator that was trained with weights, if it was kept.

    A training checkpoint holds it under ``d``; beside ``NAME.safetensors`` it lies in
    ``NAME.discriminator.safetensors``.

    Raises
    ------
    CheckpointError
        If it is there and cannot be loaded.
    """
    if weights.suffix == ".safetensors":
        beside = discriminator_file(weights)
        return load_discriminator(beside) if beside.is_file() else None
    try:
        return load_discriminator(weights, key="d")
    except (CheckpointError, FileNotFoundError):
        return None  # a generator's state dict alone, or a name such as tiny-random


def seed_generator(prior: Generator, trained: Generator) -> None:
    """Copy the levels that ``trained`` has; new levels begin by adding nothing to the picture.

    Raises
    ------
    ValueError
        If the trained network is larger, or of another width.
    """
    new = _copy(prior, trained.state_dict(), trained.config.out_size, prior.config.out_size)
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if name in new and NEW_COLOURS.match(name):
                parameter.zero_()


def seed_discriminator(model: Discriminator, trained: Discriminator) -> None:
    """Copy the trained blocks to the same sizes in pixels; blocks above them stay new."""
    shift = model.config.log_out - trained.config.log_out
    _copy(
        model,
        shifted(trained.state_dict(), shift),
        trained.config.out_size,
        model.config.out_size,
    )


def seed_gpen(model: Gpen, trained: Gpen) -> None:
    """Copy decoder levels and encoder stages of the same sizes in pixels."""
    seed_generator(model.generator, trained.generator)
    shift = model.config.log_in - trained.config.log_in
    state = {
        name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("generator.")
    }
    _copy(model, shifted(state, shift), trained.config.in_size, model.config.in_size)


def open_skips(model: Gpen) -> None:
    """Let the encoder's features into a decoder that starts from random weights.

    StyleGAN2 starts its noise at weight 0; without a trained prior the features are the main path.
    """
    for weight in noise_weights(model):
        nn.init.ones_(weight)


def shifted(state: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """Rename top-down stages for a network with ``by`` more sizes; the first one (from RGB) stays behind."""
    if by == 0:
        return dict(state)
    renamed = {}
    for name, tensor in state.items():
        match = TOP_DOWN.match(name)
        if match is None:
            renamed[name] = tensor
        elif int(match[2]) > 0:
            renamed[f"{match[1]}{int(match[2]) + by}{match[3]}"] = tensor
    return renamed


def _copy(model: nn.Module, state: Mapping[str, Tensor], size: int, target_size: int) -> set[str]:
    """Copy every entry of ``state`` into ``model``; return the names that it does not have."""
    if size > target_size:
        raise ValueError(f"trained weights of {size} px cannot seed a network of {target_size} px")
    own = model.state_dict()
    wrong = [name for name in state if name not in own or own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"trained weights of another width or kind: {', '.join(wrong[:5])} do not fit")
    model.load_state_dict(dict(state), strict=False)
    return set(own) - set(state)
