"""Does a precision cost some people more than others? Losses by skin tone, brightness and colourfulness.

Skin tone is the individual typology angle, ITA = arctan((L - 50) / b) in degrees (Chardin et al. 1991), of
the truth's skin in CIELAB, with the usual six groups. It is measured in a picture: light and exposure move
it, so it describes pictures of people rather than people.

The skin is taken from three squares of the FFHQ layout (:mod:`gpenlib.data.align`: eyes at 0.47 of
the height, mouth corners at 0.735): both cheeks and the forehead. Medians over all their pixels pass
over a lock of hair or a highlight. In faces that are not aligned the squares may miss the skin.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpenlib.data.packs import Pack
from gpenlib.errors.compare import REFERENCE
from gpenlib.errors.statistics import mean_loss, rank_correlation
from gpenlib.infer.scoring import in_parallel
from gpenlib.metrics import LabArray, colourfulness, to_lab
from gpenlib.progress import progress

Row = Mapping[str, Any]
SKIN_PLACES = ((0.36, 0.60), (0.64, 0.60), (0.50, 0.35))  # centres (x, y) as parts of the side
SKIN_SIDE = 0.07
LEAST_YELLOW = 1.0  # CIELAB b of any skin lies well above; below, the picture is grey
ITA_GROUPS = (
    ("very light", 55.0), ("light", 41.0), ("intermediate", 28.0), ("tan", 10.0), ("brown", -30.0),
    ("dark", -math.inf),
)  # name, lower end in degrees  # fmt: skip
TRAITS = {"ita": "skin tone", "lightness": "brightness", "colourfulness": "colourfulness"}
THIRDS = ("lowest third", "middle third", "highest third")
NOT_MEASURED = "no skin colour found"
GROUP_SCORES = ("psnr", "ssim", "delta_e2000")


def typology_angle(lab: LabArray) -> float | None:
    """Return the ITA of an aligned face in degrees, or None if the picture holds no colour there.

    Parameters
    ----------
    lab : float32 [S, S, 3]
        CIELAB of the truth.
    """
    side = lab.shape[0]
    half = max(0.5, SKIN_SIDE * side / 2)
    patches = []
    for x, y in SKIN_PLACES:
        rows = slice(round(y * side - half), round(y * side + half))
        columns = slice(round(x * side - half), round(x * side + half))
        patches.append(lab[rows, columns].reshape(-1, 3))
    lightness, _, yellow = (float(value) for value in np.median(np.concatenate(patches), axis=0))
    if yellow < LEAST_YELLOW:
        return None
    return math.degrees(math.atan((lightness - 50) / yellow))


def ita_group(angle: float | None) -> str:
    """Return the name of the ITA group; an angle on a limit belongs to the darker one."""
    if angle is None:
        return NOT_MEASURED
    return next(name for name, lowest in ITA_GROUPS if angle > lowest)


def face_traits(pack: Pack) -> list[dict[str, Any]]:
    """Return the traits of every face, from its truth.

    Parameters
    ----------
    pack : Pack
        With truths, aligned in FFHQ layout.

    Returns
    -------
    list of dict
        ``name``, ``ita`` (degrees, or None), ``lightness`` (mean L*) and ``colourfulness``.
    """
    jobs = (partial(_traits, pack, index) for index in range(len(pack)))
    return list(progress(in_parallel(jobs), total=len(pack), desc="traits", unit="image", leave=False))


def group_losses(rows: Sequence[Row], traits: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what every dtype loses in every group of faces.

    Parameters
    ----------
    rows : sequence of mapping
        Of 05_errors, fp32's among them.
    traits : sequence of mapping
        As :func:`face_traits` gives them; the same faces.

    Returns
    -------
    list of dict
        ``trait``, ``group``, ``dtype``, ``score``, ``faces``, ``fp32`` (fp32's mean score), ``drop`` (mean;
        positive is worse), ``drop_low``, ``drop_high`` (95 % interval, None below five faces), ``verdict``.
        Groups without faces are left out.

    Raises
    ------
    ValueError
        If a row is about a face without traits.
    """
    members = {trait: _members(trait, traits) for trait in TRAITS}
    by_dtype = _by_dtype(rows, traits)
    found = []
    for dtype, own in by_dtype.items():
        if dtype == REFERENCE:
            continue
        for trait, groups in members.items():
            for group, names in groups.items():
                for score in GROUP_SCORES:
                    estimate = mean_loss([own[name][f"{score}_drop"] for name in names])
                    found.append(
                        {
                            "trait": trait, "group": group, "dtype": dtype, "score": score,
                            "faces": estimate.count,
                            "fp32": statistics.fmean(by_dtype[REFERENCE][name][score] for name in names),
                            "drop": estimate.value, "drop_low": estimate.low, "drop_high": estimate.high,
                            "verdict": estimate.verdict,
                        }
                    )  # fmt: skip
    return found


def trends(rows: Sequence[Row], traits: Sequence[Row]) -> list[dict[str, Any]]:
    """Return Spearman's correlation of each dtype's drops with each trait.

    Returns
    -------
    list of dict
        ``trait``, ``dtype``, ``score``, ``faces`` (those whose trait was measured), ``correlation``
        (positive: the loss grows with the trait), ``low``, ``high`` (95 % interval, None below five
        faces), ``shown`` (whether the interval excludes zero).

    Raises
    ------
    ValueError
        As :func:`group_losses`.
    """
    found = []
    for dtype, own in _by_dtype(rows, traits).items():
        for trait in TRAITS if dtype != REFERENCE else ():
            measured = [row for row in traits if row[trait] is not None]
            for score in GROUP_SCORES if measured else ():
                drops = [own[row["name"]][f"{score}_drop"] for row in measured]
                estimate = rank_correlation([row[trait] for row in measured], drops)
                found.append(
                    {
                        "trait": trait, "dtype": dtype, "score": score, "faces": estimate.count,
                        "correlation": estimate.value, "low": estimate.low, "high": estimate.high,
                        "shown": estimate.excludes_zero,
                    }
                )  # fmt: skip
    return found


def _traits(pack: Pack, index: int) -> dict[str, Any]:
    """Return the traits of one face."""
    truth = pack.truths(index)
    lab = to_lab(truth)
    return {
        "name": pack.paths[index].stem,
        "ita": typology_angle(lab),
        "lightness": float(lab[..., 0].mean(dtype=np.float64)),
        "colourfulness": colourfulness(truth),
    }


def _members(trait: str, traits: Sequence[Row]) -> dict[str, list[str]]:
    """Return the names of the faces in each group of one trait, in the order of the groups."""
    if trait == "ita":
        order: tuple[str, ...] = (*(name for name, _ in ITA_GROUPS), NOT_MEASURED)
        groups = [ita_group(row[trait]) for row in traits]
    else:
        order = THIRDS
        values = np.array([row[trait] for row in traits])
        groups = [THIRDS[place] for place in np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values)]
    found: dict[str, list[str]] = {group: [] for group in order}
    for row, group in zip(traits, groups, strict=True):
        found[group].append(row["name"])
    return {group: names for group, names in found.items() if names}


def _by_dtype(rows: Sequence[Row], traits: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Return rows by dtype and name; raise unless every dtype has every face with traits."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["dtype"], {})[row["name"]] = row
    wanted = {row["name"] for row in traits}
    for dtype, own in found.items():
        if differing := sorted(wanted ^ own.keys()):
            raise ValueError(f"{dtype}: scores and traits are of different faces: {', '.join(differing[:5])}")
    return found
