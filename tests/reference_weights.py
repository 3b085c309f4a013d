"""Stand-in weights and input of the reference figures, rebuilt from their written description.

Every entry of a state dict is standard normal noise from numpy's legacy generator, seeded by the CRC-32 of
the entry's name, then scaled and shifted by what the entry is for. So names and shapes decide everything,
and the same weights arise on any machine without a file. FIR kernels are left as the model registers them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

INPUT_SEED = 20210513


def scale_and_shift(name: str) -> tuple[float, float]:
    """Return (scale, shift) of the noise for one entry."""
    last_two = ".".join(name.split(".")[-2:])
    if last_two == "noise.weight":
        return 0.1, 0.3
    if last_two == "modulation.bias":
        return 0.1, 1.0
    if name.endswith("bias"):
        return 0.1, 0.0
    if name.startswith("generator.style."):
        return 100.0, 0.0  # the mapping network's learning-rate multiplier of 0.01 is taken out again
    return 1.0, 0.0


def stand_in(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the values of one entry."""
    scale, shift = scale_and_shift(name)
    noise = np.random.RandomState(zlib.crc32(name.encode("ascii"))).standard_normal(shape)
    return (shift + scale * noise).astype(np.float32)


def fill(model: nn.Module, zeroed: Iterable[str] = ()) -> nn.Module:
    """Load stand-in weights into ``model`` (strictly), with the entries ``zeroed`` set to zero; eval mode."""
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith(".kernel"):
            state[name] = torch.from_numpy(stand_in(name, tuple(tensor.shape))).view(tensor.shape)
    for name in zeroed:
        state[name] = torch.zeros_like(state[name])
    model.load_state_dict(state, strict=True)
    return model.eval()


def input_image(size: int) -> torch.Tensor:
    """Return the input [1, 3, size, size], uniform in [-1, 1)."""
    uniform = np.random.RandomState(INPUT_SEED).random_sample((1, 3, size, size))
    return torch.from_numpy((2.0 * uniform - 1.0).astype(np.float32))
