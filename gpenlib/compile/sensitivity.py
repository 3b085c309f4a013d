"""Rank layers by what int8 costs there, and keep as many in float as a budget of PSNR demands."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpenlib.compile.rounding import QuantisationError, RoundedLayer, fake_quantised
from gpenlib.data.pairs import Pack
from gpenlib.export import DeployGpen
from gpenlib.files import progress
from gpenlib.images import Image, from_tensor, to_tensor
from gpenlib.infer import open_runtime
from gpenlib.metrics import finite_psnr

# ----------------------------------------------------------------------
# Rank layers by what int8 costs there, and keep as many in float as a budget of PSNR demands.


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding this layer alone does to the output.

    Attributes
    ----------
    name : str
        Module path.
    psnr : float
        Output against the float network's, dB, data range 2; low is sensitive.
    share : float
        Of the summed squared errors of all layers, 0 to 1.
    """

    name: str
    psnr: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


class Probe:
    """Outputs of the float network on a few calibration images, to measure what-if networks against.

    Parameters
    ----------
    deploy : DeployGpen
    inputs : float32 [N, 3, S, S]
    truths : sequence of uint8 [T, T, 3], optional
        Needed for :meth:`drop`.
    """

    def __init__(self, deploy: DeployGpen, inputs: Tensor, truths: Sequence[Image] = ()) -> None:
        self.deploy = deploy
        self.inputs = inputs
        self.truths = truths
        self.reference = self.run({})
        self._scores = self._score(self.reference)

    def run(self, layers: Mapping[str, RoundedLayer]) -> Tensor:
        """Return the outputs with these layers rounded, [N, 3, T, T]; one image at a time to save memory."""
        with torch.inference_mode(), fake_quantised(self.deploy, layers) as network:
            return torch.cat([network(image[None]) for image in self.inputs])

    def error(self, layers: Mapping[str, RoundedLayer]) -> float:
        """Return the mean squared difference from the float network."""
        return self._error(self.run(layers))

    def drop(self, layers: Mapping[str, RoundedLayer]) -> float:
        """Return the mean loss of PSNR against the truths in dB (negative: a gain)."""
        return self._drop(self.run(layers))

    def measure(self, layers: Mapping[str, RoundedLayer]) -> dict[str, float]:
        """Return ``psnr`` against the float network and ``drop_db`` against the truths, from one run."""
        outputs = self.run(layers)
        return {"psnr": decibels(self._error(outputs)), "drop_db": self._drop(outputs)}

    def _error(self, outputs: Tensor) -> float:
        return float((outputs - self.reference).double().square().mean())

    def _drop(self, outputs: Tensor) -> float:
        return float(np.mean(self._scores - self._score(outputs)))

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
    """Exclude the most sensitive layers, one after another, until the loss fits the budget.

    Parameters
    ----------
    drop : callable
        Names of the layers that are quantised -> loss of PSNR in dB.
    ranking : sequence of str
        All quantisable layers, the most sensitive first.
    max_drop_db : float

    Returns
    -------
    (list of str, list of dict)
        The excluded layers, and for every step ``excluded`` (how many) and ``drop_db``.

    Raises
    ------
    QuantisationError
        If the budget is missed with only one layer left.
    """
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


# ----------------------------------------------------------------------
# Quality of several artefacts on the same faces: what the choice of a dtype and a calibration mode costs.

REFERENCE = ("fp32", None)


def compare_artefacts(
    artefacts: Mapping[tuple[str, str | None], Path], pack: Pack, faces: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Run artefacts face by face and compare them with fp32's.

    Parameters
    ----------
    artefacts : mapping of (dtype, calibration mode or None) to Path
        ``("fp32", None)`` must be among them.
    pack : Pack
        With truths.
    faces : int
        The first so many.
    device : str

    Returns
    -------
    list of dict
        One per artefact: ``dtype``, ``mode``, means over the faces: ``psnr`` (against the truth, dB),
        ``psnr_drop`` (fp32's minus this), ``psnr_to_fp32`` (equal pictures count as 100 dB).
    """
    runtimes = {label: open_runtime(path, device=device) for label, path in artefacts.items()}
    found: dict[tuple[str, str | None], dict[str, list[float]]] = {
        label: defaultdict(list) for label in artefacts
    }
    for index in progress(range(min(faces, len(pack))), desc="choice", unit="image"):
        batch, truth = to_tensor([pack.inputs(index)]), pack.truths(index)
        pictures = {label: from_tensor(runtime(batch))[0] for label, runtime in runtimes.items()}
        for label, picture in pictures.items():
            found[label]["psnr"].append(finite_psnr(picture, truth))
            found[label]["psnr_to_fp32"].append(finite_psnr(picture, pictures[REFERENCE]))
    reference = statistics.fmean(found[REFERENCE]["psnr"])
    rows = []
    for (dtype, mode), figures in found.items():
        means = {name: statistics.fmean(values) for name, values in figures.items()}
        rows.append({"dtype": dtype, "mode": mode, **means, "psnr_drop": reference - means["psnr"]})
    return rows
