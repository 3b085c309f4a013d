"""Quality of several artefacts on the same faces: what the choice of a dtype and a calibration mode costs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack
from gpenlib.images import from_tensor, to_tensor
from gpenlib.infer import open_runtime
from gpenlib.metrics import finite_psnr
from gpenlib.progress import progress

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
