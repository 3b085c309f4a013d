"""Stress fp16 with styles far from 1: the original formulation breaks, the deploy form does not.

Demodulation divides the size of a style out again, so that in exact arithmetic large and tiny styles give the
same picture (up to the 1e-8 under the root). In fp16, sums of squares leave its range (65504) or vanish.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpenlib.architecture import Gpen
from gpenlib.architecture.generator import StyledConv
from gpenlib.export import parity
from gpenlib.export.half_arithmetic import HalfArithmetic, Overflow
from gpenlib.export.mixed_precision import mixed_precision

FACTORS = (1e-3, 1.0, 1e2, 1e4)


def scaled_styles(model: Gpen, factor: float) -> Gpen:
    """Return a copy whose demodulated layers get ``factor`` times their styles.

    ToRGB layers are left alone: they have no demodulation, and their style is a real change of the picture.
    """
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for module in scaled.modules():
            if isinstance(module, StyledConv):
                module.conv.modulation.weight.mul_(factor)
                module.conv.modulation.bias.mul_(factor)
    return scaled


def stress_half(model: Gpen, images: Tensor, factors: Sequence[float] = FACTORS) -> list[dict[str, Any]]:
    """Compare both formulations in fp16 with float32, for styles of several sizes.

    Parameters
    ----------
    model : Gpen
        float32; not changed.
    images : float32 [N, 3, S, S]
    factors : sequence of float
        What the styles are multiplied by.

    Returns
    -------
    list of dict
        ``factor``; for each form ``original`` and ``deploy``: ``<form>_psnr`` against float32 with the same
        styles in dB (data range 2, at most 100; None: NaN or infinity in the output) and ``<form>_overflow``
        (the first tensor that is not finite, or None); ``change_psnr``: float32 with scaled against
        float32 with unscaled styles, i.e. how much the function itself changes.
    """
    rows = []
    with torch.inference_mode():
        unscaled = model(images)
        for factor in factors:
            scaled = scaled_styles(model, factor)
            expected = scaled(images)
            row: dict[str, Any] = {"factor": factor, "change_psnr": _psnr(unscaled, expected)}
            forms = {"original": copy.deepcopy(scaled).half(), "deploy": mixed_precision(scaled, "fp16")}
            for form, network in forms.items():
                found, overflow = run_in_half(network, images.half() if form == "original" else images)
                row[f"{form}_psnr"] = _psnr(expected, found)
                row[f"{form}_overflow"] = None if overflow is None else str(overflow)
            rows.append(row)
    return rows


def run_in_half(network: nn.Module, images: Tensor) -> tuple[Tensor, Overflow | None]:
    """Run a network that holds fp16 tensors with fp16 arithmetic; return output and first overflow."""
    lost = (
        Overflow(name, "constant", tuple(value.shape))
        for name, value in network.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    )
    constant = next(lost, None)  # too large for fp16 before anything was computed
    with HalfArithmetic() as arithmetic:
        output = network(images)
    return output.float(), constant or arithmetic.overflow


def _psnr(expected: Tensor, found: Tensor) -> float | None:
    """Return the PSNR, or None if an output is not finite."""
    if not bool(torch.isfinite(found).all()):
        return None
    return min(parity(expected.numpy(), found.numpy()).psnr, 100.0)
