"""What a GPEN costs: parameters, multiply-accumulates and output tensors per block, in closed form.

Nothing is built, allocated or run; the numbers follow from :class:`GpenConfig` alone and the tests hold them
against the modules.

Conventions
-----------
* One image (batch 1), float32.
* MACs are those of convolutions, FIR filters and matrix products, at the positions that PyTorch computes
  (output positions of a convolution, input positions of a transposed one). 1 GFLOP here is 0.5 GMAC: a
  multiplication and an addition count separately.
* Element-wise work (bias, activation, concatenation, scaling weights or activations by the style) is left
  out; it is memory-bound and below one percent of the arithmetic.
* The training form is counted. The deploy form has the same convolutions; it adds one matrix-vector
  product per demodulated convolution (under a thousandth of the total at 512 px).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from gpenlib.architecture.config import MAPPING_LAYERS, STYLE_DIM, GpenConfig
from gpenlib.architecture.memory import FLOAT_BYTES, RGB, live_activations

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
