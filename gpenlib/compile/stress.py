"""Stress fp16 with styles far from 1: the original formulation breaks, the deploy form does not.

Demodulation divides the size of a style out again, so that in exact arithmetic large and tiny styles give the
same picture (up to the 1e-8 under the root). In fp16, sums of squares leave its range (65504) or vanish.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from gpenlib.compile.half import quiet_conversion, to_half
from gpenlib.export import parity
from gpenlib.export.onnx_export import module_path
from gpenlib.images import FloatArray

FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4)
# The layers that give the styles of demodulated convolutions, in either form; ToRGB has no demodulation, its
# style is a real change of the picture.
STYLE_LAYER = re.compile(r"generator\.conv(1|s\.\d+)\.(conv\.modulation|style\.affine)")


def scale_styles(model: onnx.ModelProto, factor: float) -> int:
    """Multiply the styles of all demodulated layers by a factor, in place; return how many layers that are.

    Parameters
    ----------
    model : ModelProto
        Written by :func:`gpenlib.export.export_training_form` or :func:`gpenlib.export_onnx`.
    factor : float
    """
    changed = 0
    for node in model.graph.node:
        if node.op_type != "Gemm" or not any(map(STYLE_LAYER.fullmatch, (node.name, module_path(node)))):
            continue
        kept = [entry for entry in node.attribute if entry.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(
            [*kept, *(helper.make_attribute(name, float(factor)) for name in ("alpha", "beta"))]
        )
        changed += 1
    return changed


def stress_half(
    training_graph: Path, deploy_graph: Path, images: FloatArray, factors: Sequence[float] = FACTORS
) -> list[dict[str, Any]]:
    """Compare both formulations in fp16 with the deploy form in fp32, for styles of several sizes.

    Parameters
    ----------
    training_graph, deploy_graph : Path
        One network in both forms, float32.
    images : float32 [N, 3, S, S]
    factors : sequence of float
        What the styles are multiplied by.

    Returns
    -------
    list of dict
        ``factor``; ``original_psnr`` and ``deploy_psnr`` against fp32 in dB (data range 2; None: the output
        holds NaN or infinity); ``change_psnr``: fp32 with scaled against fp32 with unscaled styles.

    Raises
    ------
    ValueError
        If the files do not hold the same number of styles.
    """
    unscaled = _run(onnx.load(deploy_graph), images)
    rows = []
    for factor in factors:
        original, deploy = onnx.load(training_graph), onnx.load(deploy_graph)
        styles = scale_styles(original, factor), scale_styles(deploy, factor)
        if not styles[0] == styles[1] > 0:
            raise ValueError(f"{styles[0]} styles in {training_graph}, {styles[1]} in {deploy_graph}")
        expected = _run(deploy, images)
        with quiet_conversion():
            naive = convert_float_to_float16(original, keep_io_types=True)
        rows.append(
            {
                "factor": factor,
                "original_psnr": _psnr(expected, _run(naive, images)),
                "deploy_psnr": _psnr(expected, _run(to_half(deploy)[0], images)),
                "change_psnr": _psnr(unscaled, expected),
            }
        )
    return rows


def _run(model: onnx.ModelProto, images: FloatArray) -> FloatArray:
    """Run a graph image by image; the training form is fixed at batch 1."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {feed: image[None]})[0] for image in images])


def _psnr(expected: FloatArray, found: FloatArray) -> float | None:
    """Return the PSNR (100 dB for equal outputs), or None if an output is not finite."""
    return min(parity(expected, found).psnr, 100.0) if np.isfinite(found).all() else None
