"""Rank layers by what int8 costs there, exclude until a budget of PSNR is met, compare finished artefacts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpenlib.compile.rounding import QuantisationError, RoundedLayer, fake_quantised
from gpenlib.data.pairs import Pack, Pairs
from gpenlib.export import DeployGpen
from gpenlib.images import Image, from_tensor, to_tensor
from gpenlib.infer import open_runtime
from gpenlib.jobs import progress
from gpenlib.metrics import finite_psnr


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding this layer alone does to the output."""

    name: str  # module path
    psnr: float  # of the output against the float network's, dB, data range 2; low is sensitive
    share: float  # of the summed squared errors of all layers, 0 to 1


class Probe:
    """The float network's outputs for float32 [N, 3, S, S]; only drops need ``truths``, uint8 [T, T, 3]."""

    def __init__(self, deploy: DeployGpen, inputs: Tensor, truths: Sequence[Image] = ()) -> None:
        self.deploy, self.inputs, self.truths = deploy, inputs, truths
        self.reference = self.run({})
        self._scores = self._score(self.reference)

    def run(self, layers: Mapping[str, RoundedLayer]) -> Tensor:
        """Return the outputs with these layers rounded, [N, 3, T, T]; one image at a time to save memory."""
        with torch.inference_mode(), fake_quantised(self.deploy, layers) as network:
            return torch.cat([network(image[None]) for image in self.inputs])

    def error(self, layers: Mapping[str, RoundedLayer]) -> float:
        """Return the mean squared difference from the float network."""
        return self._error(self.run(layers))

    def measure(self, layers: Mapping[str, RoundedLayer]) -> dict[str, float]:
        """Return ``psnr`` against the float network and ``drop_db`` against the truths (negative: a gain)."""
        outputs = self.run(layers)
        drops = self._scores - self._score(outputs)
        return {"psnr": decibels(self._error(outputs)), "drop_db": float(np.mean(drops))}

    def _error(self, outputs: Tensor) -> float:
        return float((outputs - self.reference).double().square().mean())

    def _score(self, outputs: Tensor) -> np.ndarray:
        if not self.truths:
            return np.zeros(0)
        images = from_tensor(outputs.numpy())
        return np.array([finite_psnr(a, b) for a, b in zip(images, self.truths, strict=True)])


def decibels(error: float) -> float:
    """Return the PSNR of a mean squared error at data range 2; at most 126 dB."""
    return 10 * math.log10(4 / max(error, 1e-12))


def rank_layers(probe: Probe, layers: Mapping[str, RoundedLayer]) -> list[LayerSensitivity]:
    """Quantise one layer at a time; return all, the most sensitive first."""
    bar = progress(layers.items(), desc="sensitivity", unit="layer")
    errors = {name: probe.error({name: layer}) for name, layer in bar}
    total = sum(errors.values()) or 1.0
    order = sorted(errors, key=lambda name: -errors[name])
    return [LayerSensitivity(name, decibels(errors[name]), errors[name] / total) for name in order]


def choose_exclusions(
    drop: Callable[[Sequence[str]], float], ranking: Sequence[str], max_drop_db: float
) -> tuple[list[str], list[dict[str, Any]]]:
    """Exclude the most sensitive layers until the ``drop`` of the rest (dB) fits; return them and steps."""
    steps: list[dict[str, Any]] = []
    lost = 0.0
    for count in range(len(ranking)):
        lost = drop(ranking[count:])
        steps.append({"excluded": count, "drop_db": lost})
        if lost <= max_drop_db:
            return list(ranking[:count]), steps
    raise QuantisationError(
        f"exclude_layers auto: with all but one layer in float the loss is still {lost:.3f} dB, "
        f"max_drop_db={max_drop_db} allows less; raise it, or use another dtype"
    )


Label = tuple[str, str | None, int]  # of an artefact: dtype, calibration mode or None, draw of its images
REFERENCE: Label = ("fp32", None, 0)


def compare_artefacts(
    artefacts: Mapping[Label, Path], pairs: Pairs | Pack, faces: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Score artefacts on the first faces, one after the other.

    Rows of means in dB: ``psnr`` (to the truth), ``psnr_drop`` (fp32's less this) and ``psnr_to_fp32``.
    """
    count = min(faces, len(pairs))
    references: list[Image] = []
    rows: dict[Label, dict[str, Any]] = {}
    for label in sorted(artefacts, key=lambda label: label != REFERENCE):  # fp32 first
        runtime = open_runtime(artefacts[label], device=device)
        psnr, psnr_to_fp32 = [], []
        told = f"choice, {' '.join(str(part) for part in label if part)}"
        for index in progress(range(count), desc=told, unit="image", leave=False):
            picture = from_tensor(runtime(to_tensor([pairs.inputs(index)])))[0]
            if label == REFERENCE:
                references.append(picture)
            psnr.append(finite_psnr(picture, pairs.truths(index)))
            psnr_to_fp32.append(finite_psnr(picture, references[index]))
        del runtime  # before the next one takes its memory
        means = {"psnr": statistics.fmean(psnr), "psnr_to_fp32": statistics.fmean(psnr_to_fp32)}
        rows[label] = dict(zip(("dtype", "mode", "draw"), label, strict=True)) | means
    reference = rows[REFERENCE]["psnr"]
    return [rows[label] | {"psnr_drop": reference - rows[label]["psnr"]} for label in artefacts]
