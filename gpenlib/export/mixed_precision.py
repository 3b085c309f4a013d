"""The deploy form in mixed precision: low-precision feature maps, float32 style path.

As in the fp16 ONNX file (``gpenlib/compile/half.py``), feature maps (rank 4) and convolution weights take the
low precision; the mapping network, the style affines and demodulation work on vectors and stay float32: sums
of squares leave the range of fp16, 1e-8 lies below it, and there is nothing to gain on vectors.

The casts are part of the module and not left to ``torch.autocast``: that decides per operator, so that it
would run the linear layers of the style path in low precision, casts the weights again at every call, and is
a state of the caller that a saved file does not carry. Explicit casts trace to TorchScript as they are.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.export.deploy import DeployGpen, deploy_form
from gpenlib.run import choice_error, write_atomically

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
