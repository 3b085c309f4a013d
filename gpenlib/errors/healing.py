"""What each layer's rounding costs the picture, and which layers heal it when they stay in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpenlib.compile.layers import RoundedLayer
from gpenlib.compile.sensitivity import Probe, decibels, rank_layers
from gpenlib.errors.layers import layer_errors
from gpenlib.export import DeployGpen
from gpenlib.images import FloatArray
from gpenlib.progress import progress

MOST_IN_FLOAT = 8


def analyse_layers(
    float_graph: Path,
    int8_file: Path,
    deploy: DeployGpen,
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
) -> dict[str, Any]:
    """Return ``rows``, ``ranking`` and ``healing`` of one quantised network.

    Parameters
    ----------
    float_graph, int8_file, deploy, layers, images
        As :func:`gpenlib.errors.layers.layer_errors` takes them.

    Returns
    -------
    dict
        ``rows``: those of :func:`gpenlib.errors.layers.layer_errors` with ``output_psnr_alone`` and
        ``output_psnr_without`` (None but for quantised layers); ``ranking``: see :func:`rank_by_output`;
        ``healing``: see :func:`healing_steps`.
    """
    rows = layer_errors(float_graph, int8_file, deploy, layers, images)
    probe = Probe(deploy, torch.from_numpy(np.concatenate(images)))
    ranking = rank_by_output(probe, layers)
    by_name = {row["name"]: row for row in ranking}
    keys = ("output_psnr_alone", "output_psnr_without")
    none = dict.fromkeys(keys)
    for row in rows:
        ranked = by_name.get(row["layer"])
        row |= none if ranked is None else {key: ranked[key] for key in keys}
    names = [row["name"] for row in ranking]
    return {"rows": rows, "ranking": ranking, "healing": healing_steps(probe, layers, names)}


def rank_by_output(probe: Probe, layers: Mapping[str, RoundedLayer]) -> list[dict[str, Any]]:
    """Rank layers by what each does to the picture.

    Returns
    -------
    list of dict
        The most sensitive first: ``name``; ``output_psnr_alone``, the output with only this layer in 8 bits
        against the float network's, dB, data range 2; ``output_psnr_without``, with all but this one;
        ``share`` of the summed squared errors of all layers alone, 0 to 1.
    """
    ranking = rank_layers(probe, layers)
    return [
        {
            "name": row.name,
            "output_psnr_alone": row.psnr,
            "output_psnr_without": output_psnr(probe, layers, [row.name]),
            "share": row.share,
        }
        for row in progress(ranking, desc="all but one", unit="layer")
    ]


def healing_steps(
    probe: Probe, layers: Mapping[str, RoundedLayer], ranking: Sequence[str], most: int = MOST_IN_FLOAT
) -> list[dict[str, Any]]:
    """Leave the first 0, 1, 2, ... layers of a ranking in float; at least one stays quantised.

    Returns
    -------
    list of dict
        ``in_float`` (how many), ``name`` (the one that this step adds; None at 0), ``psnr`` of the output
        against the float network's in dB, data range 2.
    """
    counts = range(min(most, len(ranking) - 1) + 1)
    return [
        {
            "in_float": count,
            "name": ranking[count - 1] if count else None,
            "psnr": output_psnr(probe, layers, ranking[:count]),
        }
        for count in progress(counts, desc="healing", unit="step")
    ]


def output_psnr(probe: Probe, layers: Mapping[str, RoundedLayer], in_float: Sequence[str]) -> float:
    """Return the PSNR of the output with all but ``in_float`` quantised, against the float network's."""
    return decibels(probe.error({name: layer for name, layer in layers.items() if name not in in_float}))
