"""Run a finished artefact on held-out faces against the float network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from gpenlib.compile.counts import quantised_nodes
from gpenlib.compile.layers import QuantisationError
from gpenlib.export import DeployGpen, ParityError, parity
from gpenlib.images import FloatArray
from gpenlib.infer import open_runtime
from gpenlib.infer.runtime import QUANTISED, Runtime

# The least PSNR against the float network (dB, data range 2) below which an artefact counts as broken.
# Sound ones lie far above: see notebook 03.
LEAST_PSNR = {"fp32": 90.0, "fp16": 50.0, "bf16": 35.0, "int8": 20.0, "int8_bf16": 20.0}


def verify(
    out_dir: Path, backend: str, device: str, images: Sequence[FloatArray], expected: Sequence[FloatArray]
) -> dict[str, Any]:
    """Run an artefact under one backend; return its figures for the manifest.

    Parameters
    ----------
    out_dir : Path
        The artefact folder.
    backend, device : str
    images : sequence of array
        Network inputs, float32 [1, 3, in_size, in_size] in [-1, 1].
    expected : sequence of array
        Outputs of the float network (:func:`float_outputs`).

    Returns
    -------
    dict
        ``parity`` (``faces``, ``mean``, ``worst``), ``executed_convolutions``, ``executed_precision``.

    Raises
    ------
    ParityError
        If the worst face lies below LEAST_PSNR.
    QuantisationError
        If the backend executes in float what it says to execute in int8.
    """
    runtime = open_runtime(out_dir, device=device, backend=backend)
    executed = runtime.executed_types()
    if runtime.dtype in QUANTISED and runtime.executed_precision.startswith("int8"):
        _check_executed_int8(executed, runtime)
    found = [parity(output, runtime(image)) for image, output in zip(images, expected, strict=True)]
    worst = min(found, key=lambda row: row.psnr)
    least = least_psnr(runtime)
    if worst.psnr < least:
        raise ParityError(
            f"{runtime.dtype} artefact reaches {worst.psnr:.1f} dB against the float network on its worst "
            f"held-out face under {backend} on {device}, at least {least} dB is expected"
        )
    mean = replace(
        worst, **{name: float(np.mean([getattr(row, name) for row in found])) for name in asdict(worst)}
    )
    return {
        "parity": {"faces": len(found), "mean": mean.to_dict(), "worst": worst.to_dict()},
        "executed_convolutions": executed,
        "executed_precision": runtime.executed_precision,
    }


def least_psnr(runtime: Runtime) -> float:
    """Return the limit for a runtime, in dB.

    TensorRT computes float32 in TF32, whose mantissa is as long as that of fp16, and ONNX Runtime has no
    option against it.
    """
    rounds_to_tf32 = runtime.device == "tensorrt" and runtime.dtype == "fp32"
    return LEAST_PSNR["fp16" if rounds_to_tf32 else runtime.dtype]


def float_outputs(deploy: DeployGpen, images: Sequence[FloatArray]) -> list[FloatArray]:
    """Run the float deploy form on every image, on its own device."""
    device = next(deploy.buffers()).device
    with torch.inference_mode():
        return [deploy(torch.from_numpy(image).to(device)).cpu().numpy() for image in images]


def _check_executed_int8(executed: Mapping[str, int], runtime: Runtime) -> None:
    """Fail unless the backend runs every quantised convolution in int8."""
    wanted = len(quantised_nodes(onnx.load(runtime.path)))
    ran = executed.get("i8", 0) + executed.get("u8", 0)
    if ran < wanted:
        raise QuantisationError(
            f"{runtime.backend} executes {ran} of {wanted} quantised convolutions in int8: {executed}"
        )
