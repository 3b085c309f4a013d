"""How sure a difference is: bootstrap intervals over faces, and the word for what they show.

Faces are drawn with replacement; the two precisions of a face stay together, because their difference is
what is drawn. Intervals are bias-corrected and accelerated (BCa; Efron 1987), percentiles where those
are not defined. They speak of faces like those measured; with fewer than about twenty they are too narrow.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.data.pairs import Pack
from gpenlib.files import choice_error, progress
from gpenlib.images import Image
from gpenlib.infer.scoring import BASELINES, best_median_worst, in_parallel, rank
from gpenlib.metrics import LabArray, colourfulness, finite_psnr, perceptual_rows, to_lab

# ----------------------------------------------------------------------
# How sure a difference is: bootstrap intervals over faces, and the word for what they show.
#
# Faces are drawn with replacement; the two precisions of a face stay together, because their difference is
# what is drawn. Intervals are bias-corrected and accelerated (BCa; Efron 1987), percentiles where those
# are not defined. They speak of faces like those measured; with fewer than about twenty they are too narrow.

Verdict = Literal["drop", "gain", "no difference shown", "too few images"]
FEWEST = 5
CONFIDENCE = 0.95
RESAMPLES = 9999
RANK_RESAMPLES = 1999  # ranking every resample takes longer
BATCH = 500  # resamples held in memory at once
SEED = 0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes
    ----------
    value : float
    low, high : float or None
        Ends of the 95 % interval; None below :data:`FEWEST` faces.
    count : int
        Number of faces.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False if there is none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> Verdict:
        """Read the value as a loss: it is a drop, or a gain, only if the interval excludes zero."""
        if self.low is None:
            return "too few images"
        if not self.excludes_zero:
            return "no difference shown"
        return "drop" if self.value > 0 else "gain"


def mean_loss(losses: Sequence[float] | Floats, seed: int = SEED) -> Estimate:
    """Return the mean of paired differences with its bootstrap interval.

    Parameters
    ----------
    losses : sequence of float
        One per face: fp32's score minus this precision's, or any other signed difference.
    seed : int
        The same seed gives the same interval.

    Raises
    ------
    ValueError
        If there are none, or one is not finite.
    """
    values = _finite(losses)
    low, high = _interval((values,), np.mean, RESAMPLES, seed)
    return Estimate(float(values.mean()), low, high, len(values))


def rank_correlation(x: Sequence[float] | Floats, y: Sequence[float] | Floats, seed: int = SEED) -> Estimate:
    """Return Spearman's rank correlation of two properties of the same faces, with its bootstrap interval.

    If one of them does not vary, there is no order to compare: the correlation is given as 0.

    Raises
    ------
    ValueError
        If the lengths differ, there are no values, or one is not finite.
    """
    first, second = _finite(x), _finite(y)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values of one property and {len(second)} of the other")
    low, high = _interval((first, second), _spearman, RANK_RESAMPLES, seed)
    return Estimate(float(_spearman(first, second)), low, high, len(first))


def _interval(
    data: tuple[Floats, ...], statistic: Callable[..., Any], resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Return the ends of the interval, or None twice if there are too few faces."""
    if len(data[0]) < FEWEST:
        return None, None
    if any(np.ptp(values) == 0 for values in data):  # every resample gives the same
        value = float(statistic(*data))
        return value, value
    from scipy import stats  # takes a second to load, which no other stage should wait for

    ends: tuple[float, float] = (np.nan, np.nan)
    for method in ("BCa", "percentile"):  # BCa is undefined if all resamples lie on one side
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                data, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=BATCH,
                confidence_level=CONFIDENCE, method=method, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        ends = float(found.low), float(found.high)
        if np.isfinite(ends).all():
            break
    return ends


def _spearman(x: Floats, y: Floats, axis: int = -1) -> Any:
    """Return rank correlations along ``axis``; 0 where ranks do not vary."""
    from scipy import stats

    a, b = stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis)
    a, b = a - a.mean(axis=axis, keepdims=True), b - b.mean(axis=axis, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    return np.divide((a * b).sum(axis=axis), scale, out=np.zeros_like(scale), where=scale > 0)


def _finite(values: Sequence[float] | Floats) -> Floats:
    """Return the values as an array; raise unless there are some and all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{array.shape} values, expected at least one and all finite")
    return array


# ----------------------------------------------------------------------
# Compare the outputs of several precisions on the same faces.

Row = Mapping[str, Any]
Reader = Callable[[str], Image]

# Scores against the truth, and whether more is better; a drop is a loss of quality in either case.
SCORES = {"psnr": True, "ssim": True, "delta_e2000": False, "chroma_error": False}
PLAIN = ("psnr_float", "ssim_float", "psnr_truncated", "ssim_truncated", "colourfulness")
REFERENCE = "fp32"


def compare_outputs(
    dtype: str,
    rows: Sequence[Row],
    reference_rows: Sequence[Row],
    read: Reader,
    read_reference: Reader,
) -> list[dict[str, Any]]:
    """Return one row per face: scores, differences from fp32's scores, distance from fp32's pixels.

    Parameters
    ----------
    dtype : str
    rows, reference_rows : sequences of mapping
        Results of 04_infer for ``dtype`` and for fp32, over the same faces in the same order.
    read, read_reference : callable
        Name of a face -> restored image, uint8 [S, S, 3]; called from several threads.

    Returns
    -------
    list of dict
        ``dtype``, ``name``, the scores against the truth (:data:`SCORES`, :data:`PLAIN`) and those of the
        baselines (``<score>_input``, ``<score>_chroma_baseline``); ``<score>_drop`` (what this dtype loses
        against fp32; positive is worse for every score); ``psnr_to_fp32`` (dB; equal images count as
        100), ``colour_shift_to_fp32`` (CIELAB distance of image means), ``largest_error`` (grey levels),
        ``bias`` (mean signed difference in grey levels), ``ms``.

    Raises
    ------
    ValueError
        If the two lists are not about the same faces.
    """
    names = [row["name"] for row in rows]
    reference_names = [row["name"] for row in reference_rows]
    if names != reference_names:
        differing = sorted(set(names) ^ set(reference_names)) or ["their order"]
        raise ValueError(f"{dtype} and fp32 were run on different faces: {', '.join(differing[:5])}")
    pairs = zip(rows, reference_rows, strict=True)
    jobs = (partial(_compare_face, dtype, row, other, read, read_reference) for row, other in pairs)
    return list(progress(in_parallel(jobs), total=len(rows), desc=f"compare {dtype}", unit="image"))


def summarise_comparison(
    rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row per dtype: means over the faces, intervals of the drops, and how it was run.

    Beside the means: ``<score>_drop_low``, ``<score>_drop_high`` (95 % bootstrap interval of the mean, None
    below five faces) and ``<score>_verdict``: ``"drop"`` or ``"gain"`` only where the interval excludes zero,
    else ``"no difference shown"``, or ``"too few images"``; fp32's is ``"reference"``.
    """
    baselines = [f"{score}_{baseline}" for baseline in BASELINES for score in SCORES]
    means = (*SCORES, *PLAIN, *baselines, "psnr_to_fp32", "colour_shift_to_fp32", "bias")
    table = []
    for dtype, result in results.items():
        own = [row for row in rows if row["dtype"] == dtype]
        table.append(
            {
                "dtype": dtype,
                "backend": result["backend"],
                "executed_precision": result["executed_precision"],
                "images": len(own),
                **{name: statistics.fmean(row[name] for row in own) for name in means},
                **_drops(dtype, own),
                "worst_psnr_drop": max(row["psnr_drop"] for row in own),
                "largest_error": max(row["largest_error"] for row in own),
                "ms_per_image": result["ms_per_image"],
            }
        )
    return table


def error_map(output: Image, expected: Image) -> np.ndarray:
    """Return the largest absolute difference over the channels, in grey levels, int [H, W]."""
    return np.abs(output.astype(np.int16) - expected).max(axis=2)


def _compare_face(
    dtype: str, row: Row, reference: Row, read: Reader, read_reference: Reader
) -> dict[str, Any]:
    """Return the row of one face."""
    output, expected = read(row["name"]), read_reference(row["name"])
    difference = output.astype(np.int16) - expected
    drops = {
        f"{score}_drop": (reference[score] - row[score]) * (1 if more_is_better else -1)
        for score, more_is_better in SCORES.items()
    }
    colour = ("lightness", "lab_a", "lab_b")
    return {
        "dtype": dtype,
        "name": row["name"],
        **{name: row[name] for name in (*SCORES, *PLAIN)},
        **{f"{score}_{baseline}": row[f"{score}_{baseline}"] for baseline in BASELINES for score in SCORES},
        **drops,
        "psnr_to_fp32": finite_psnr(output, expected),
        "colour_shift_to_fp32": math.dist([row[c] for c in colour], [reference[c] for c in colour]),
        "largest_error": int(np.abs(difference).max()),
        "bias": float(difference.mean()),
        "ms": row["ms"],
    }


def _drops(dtype: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the mean drop of every score with its interval and verdict."""
    found: dict[str, Any] = {}
    for score in SCORES:
        estimate = mean_loss([row[f"{score}_drop"] for row in rows])
        found |= {
            f"{score}_drop": estimate.value,
            f"{score}_drop_low": estimate.low,
            f"{score}_drop_high": estimate.high,
            f"{score}_verdict": "reference" if dtype == REFERENCE else estimate.verdict,
        }
    return found


# ----------------------------------------------------------------------
# Does a precision cost some people more than others? Losses by skin tone, brightness and colourfulness.
#
# Skin tone is the individual typology angle, ITA = arctan((L - 50) / b) in degrees (Chardin et al. 1991), of
# the truth's skin in CIELAB, with the usual six groups. It is measured in a picture: light and exposure move
# it, so it describes pictures of people rather than people.
#
# The skin is taken from three squares of the FFHQ layout (:mod:`gpenlib.data.align`: eyes at 0.47 of
# the height, mouth corners at 0.735): both cheeks and the forehead. Medians over all their pixels pass
# over a lock of hair or a highlight. In faces that are not aligned the squares may miss the skin.

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


# ----------------------------------------------------------------------
# Everything that 05_errors finds out, from the results and the saved images of 04_infer.


def analyse(
    results: Mapping[str, Mapping[str, Any]],
    readers: Mapping[str, Reader],
    pack: Pack,
    files: Mapping[str, Path | None] | None = None,
    features_are_inception: bool = False,
) -> dict[str, Any]:
    """Compare every dtype with fp32 on the same faces.

    Parameters
    ----------
    results : mapping of dtype to mapping
        Results of 04_infer; fp32's must be among them.
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3].
    pack : Pack
        The faces, with truths.
    files : mapping, optional
        ``lpips_weights`` and ``features_file`` of :func:`gpenlib.errors.perceptual.perceptual_rows`.
    features_are_inception : bool
        As there.

    Returns
    -------
    dict of lists of rows
        ``table`` (one per dtype), ``rows`` (one per dtype and face), ``traits`` (one per face), ``groups``
        (one per group of faces, dtype and score), ``trends`` (one per trait, dtype and score) and
        ``perceptual`` (one per metric and dtype). ``chroma_baseline`` says where that colour came from.

    Raises
    ------
    ValueError
        If dtypes were run on different faces, or a given file cannot be used.
    """
    reference = results[REFERENCE]
    rows: list[dict[str, Any]] = []
    for dtype, result in results.items():
        rows += compare_outputs(dtype, result["rows"], reference["rows"], readers[dtype], readers[REFERENCE])
    traits = face_traits(pack)
    return {
        "table": summarise_comparison(rows, results),
        "rows": rows,
        "traits": traits,
        "groups": group_losses(rows, traits),
        "trends": trends(rows, traits),
        "perceptual": perceptual_rows(
            pack, readers, **(files or {}), features_are_inception=features_are_inception
        ),
        "chroma_baseline": reference["chroma_baseline"],
    }


# ----------------------------------------------------------------------
# What each precision costs to store and to run, beside what it costs in quality.

MIB = 2**20


def with_costs(
    table: Sequence[Row], artefacts: Mapping[str, Mapping[str, Any]], latency: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return the table of 05_errors with size and time of every dtype.

    Parameters
    ----------
    table : sequence of mapping
        One row per ``dtype``.
    artefacts : mapping of dtype to mapping
        ``file_bytes`` (the file that its backend opens) and ``backend_reason``.
    latency : sequence of mapping
        Rows of :func:`gpenlib.infer.benchmark.interleaved_latency`, one per dtype of the table.

    Returns
    -------
    list of dict
        The rows with ``backend_reason``, ``model_mib`` and, in ms per image, ``latency_ms`` (median) and the
        10th and 90th percentile ``latency_p10_ms`` and ``latency_p90_ms``. ``ms_per_image``, which they
        hold already, comes from runs one after the other and compares dtypes less well.

    Raises
    ------
    KeyError
        If a dtype has no artefact or no time.
    """
    times = {row["dtype"]: row for row in latency}
    found = []
    for row in table:
        timed, artefact = times[row["dtype"]], artefacts[row["dtype"]]
        per_image = {
            f"latency_{short}": timed[key] / timed["batch_size"]
            for short, key in (("ms", "median_ms"), ("p10_ms", "p10_ms"), ("p90_ms", "p90_ms"))
        }
        found.append(
            {
                **row,
                "backend_reason": artefact["backend_reason"],
                "model_mib": artefact["file_bytes"] / MIB,
                **per_image,
            }
        )
    return found


def pareto_rows(table: Sequence[Row], latency: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what :func:`gpenlib.plots.quantisation.pareto_figure` draws: time and loss of every dtype."""
    times = {row["dtype"]: row for row in latency}
    timed = ("median_ms", "p10_ms", "p90_ms")
    return [
        {
            **{name: row[name] for name in ("dtype", "psnr_drop", "psnr_to_fp32")},
            **{name: times[row["dtype"]][name] for name in timed},
            "mode": None,
        }
        for row in table
    ]


# ----------------------------------------------------------------------
# Which precision to take: the fastest one whose loss is acceptable, and in a sentence why.

MAX_DROP_DB = 0.1
MAX_COLOUR_SHIFT = 0.5
ENOUGH = 20  # with fewer faces intervals are too narrow, see gpenlib.errors.statistics


@dataclass(frozen=True)
class Recommendation:
    """A precision to take.

    Attributes
    ----------
    dtype : str or None
        None if the measurement does not allow a choice.
    reason : str
        Why, in words, with the figures.
    others : mapping of dtype to str
        Why not the others.
    cautions : tuple of str
        What weakens the choice.
    """

    dtype: str | None
    reason: str
    others: Mapping[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def recommend(
    table: Sequence[Row], max_drop_db: float = MAX_DROP_DB, max_colour_shift: float = MAX_COLOUR_SHIFT
) -> Recommendation:
    """Recommend the fastest precision whose loss is acceptable.

    Parameters
    ----------
    table : sequence of mapping
        Of 05_errors, fp32 among them: ``dtype``, ``images``, ``psnr_drop`` with ``psnr_drop_low`` and
        ``psnr_drop_high`` (ends of the 95 % interval, None below five faces), ``colour_shift_to_fp32``,
        ``executed_precision``, and the times per image ``latency_ms``, ``latency_p10_ms``,
        ``latency_p90_ms`` (see :func:`gpenlib.errors.costs.with_costs`) or only ``ms_per_image``.
    max_drop_db : float
        A loss is acceptable if the upper end of its interval is not above this: one may be all but sure
        that no more is lost.
    max_colour_shift : float
        The mean colour must move less than this (CIELAB).

    Returns
    -------
    Recommendation
        Precisions whose times overlap with the fastest one's (10th to 90th percentile) count as equally fast;
        of those the one with the smallest upper end of the loss is taken. Without intervals none is.

    Raises
    ------
    ValueError
        If fp32 is not in the table.
    """
    rows = {row["dtype"]: row for row in table}
    if REFERENCE not in rows:
        raise ValueError(f"{', '.join(rows) or 'an empty table'}: {REFERENCE} must be among the precisions")
    images = int(rows[REFERENCE]["images"])
    if any(row["psnr_drop_high"] is None for row in table):
        return Recommendation(
            None,
            f"{_faces(images)} {'is' if images == 1 else 'are'} too few to say what a precision loses: an "
            f"interval needs at least {FEWEST}, and is to be trusted from about {ENOUGH}. Until then "
            f"{REFERENCE} is the safe choice.",
            {
                dtype: f"What it loses is not known well enough from {_faces(images)}."
                for dtype in rows
                if dtype != REFERENCE
            },
        )
    faults = {dtype: _fault(row, max_drop_db, max_colour_shift) for dtype, row in rows.items()}
    acceptable = [row for dtype, row in rows.items() if not faults[dtype] or dtype == REFERENCE]
    fastest = min(acceptable, key=lambda row: _times(row)[1])
    equal = [row for row in acceptable if _times(row)[0] <= _times(fastest)[2]]
    chosen = min(equal, key=lambda row: (row["psnr_drop_high"], _times(row)[1]))
    others = {
        dtype: faults[dtype] or _slower(row, chosen, row in equal)
        for dtype, row in rows.items()
        if row is not chosen
    }
    reason = _reason(chosen, rows[REFERENCE], equal, max_drop_db, max_colour_shift)
    return Recommendation(chosen["dtype"], reason, others, _cautions(table, images))


def _fault(row: Row, max_drop_db: float, max_colour_shift: float) -> str:
    """Return why a loss is not acceptable, or nothing."""
    if row["dtype"] == REFERENCE:
        return ""
    if row["psnr_drop_high"] > max_drop_db:
        return (
            f"It may lose too much: {row['psnr_drop']:.3f} dB of PSNR on average and up to "
            f"{row['psnr_drop_high']:.3f} dB at the upper end of the interval, where {max_drop_db:g} dB is "
            f"the budget{_executed(row)}."
        )
    if row["colour_shift_to_fp32"] >= max_colour_shift:
        return (
            f"It shifts the colour: the mean colour of a face moves by ΔE {row['colour_shift_to_fp32']:.2f}, "
            f"where less than {max_colour_shift:g} is the budget{_executed(row)}."
        )
    return ""


def _reason(chosen: Row, reference: Row, equal: Sequence[Row], drop: float, shift: float) -> str:
    """Return why the chosen one is recommended."""
    own = _times(chosen)[1]
    peers = [f"{row['dtype']} ({_ms(row)})" for row in equal if row is not chosen]
    if chosen is reference:
        if not peers:
            return f"No other precision within the budget is as fast as {REFERENCE} ({_ms(chosen)})."
        return (
            f"It takes {_ms(chosen)} and loses nothing; within the spread of the times nothing acceptable is "
            f"faster (as fast: {', '.join(peers)})."
        )
    times = _times(reference)[1] / own
    text = (
        f"It takes {_ms(chosen)}, {times:.1f} times as fast as {REFERENCE} ({_ms(reference)}). It loses "
        f"{chosen['psnr_drop']:.3f} dB of PSNR on average, at most {chosen['psnr_drop_high']:.3f} dB at the "
        f"upper end of the 95 % interval (budget {drop:g} dB), and moves the mean colour by ΔE "
        f"{chosen['colour_shift_to_fp32']:.2f} (budget below {shift:g}){_executed(chosen)}."
    )
    if peers:
        text += f" As fast within the spread of the times, but less accurate: {', '.join(peers)}."
    return text


def _slower(row: Row, chosen: Row, equally_fast: bool) -> str:
    """Return why an acceptable precision is not the chosen one."""
    if equally_fast:
        return (
            f"As fast as {chosen['dtype']} within the spread of the times ({_ms(row)}), but it may lose "
            f"more: up to {row['psnr_drop_high']:.4f} dB against {chosen['psnr_drop_high']:.4f} dB"
            f"{_executed(row)}."
        )
    times = _times(row)[1] / _times(chosen)[1]
    loss = "It loses nothing" if row["dtype"] == REFERENCE else "Its loss is within the budget"
    return f"{loss}, but it takes {_ms(row)}, {times:.1f} times {chosen['dtype']}'s time{_executed(row)}."


def _times(row: Row) -> tuple[float, float, float]:
    """Return 10th percentile, median and 90th percentile in ms per image; three times one figure if alone."""
    if row.get("latency_ms") is None:
        return (row["ms_per_image"],) * 3
    return row["latency_p10_ms"], row["latency_ms"], row["latency_p90_ms"]


def _cautions(table: Sequence[Row], images: int) -> tuple[str, ...]:
    """Return what weakens any choice from this table."""
    found = []
    if images < ENOUGH:
        found.append(f"Only {_faces(images)}: intervals from fewer than about {ENOUGH} faces are too narrow.")
    if any(row.get("latency_ms") is None for row in table):
        found.append("The times come from separate runs: small differences between them may be noise.")
    return tuple(found)


def _ms(row: Row) -> str:
    return f"{_times(row)[1]:.1f} ms per image"


def _faces(images: int) -> str:
    return f"{images} face{'s' if images != 1 else ''}"


def _executed(row: Row) -> str:
    return f"; executed as {row['executed_precision']}"


# ----------------------------------------------------------------------
# Compare the results of several runs: other weights, another calibration, another machine.

FIRST = "first run"
DIFFERENT = "different faces: no paired test"
ABSENT = "not in this run"
NOT_IN_FIRST = "not in the first run"


def compare_results(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every run's scores beside the first one's, by dtype.

    Parameters
    ----------
    results : mapping of run to mapping
        Results of 05_errors: ``table``, ``rows`` and ``facts``, whose ``faces_digest`` tells whether two runs
        restored the same pictures. The first run is what the others are compared with.

    Returns
    -------
    list of dict
        One row per dtype, score and run: ``dtype``, ``score``, ``run``, ``images``, ``value`` (mean score),
        ``difference`` (minus the first run's), ``low``, ``high`` (ends of the 95 % interval of the mean
        difference, paired face by face) and ``verdict``: ``"better"`` or ``"worse"`` only where the interval
        leaves out zero, else ``"no difference shown"`` or ``"too few images"``; without a test
        :data:`FIRST`, :data:`DIFFERENT`, :data:`ABSENT` or :data:`NOT_IN_FIRST`. What cannot be given, and
        the first run's difference from itself, is None.

    Raises
    ------
    ValueError
        If there are fewer than two runs.
    """
    if len(results) < 2:
        raise ValueError(f"runs {list(results)}: two or more are needed for a comparison")
    first = next(iter(results))
    dtypes = list(dict.fromkeys(row["dtype"] for found in results.values() for row in found["table"]))
    return [
        {"dtype": dtype, "score": score, "run": run, **_compared(results[first], found, dtype, score)}
        for dtype in dtypes
        for score in SCORES
        for run, found in results.items()
    ]


def same_faces(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two results are about the same pictures, in the same order."""
    return bool(a["facts"]["faces_digest"] == b["facts"]["faces_digest"])


def _compared(first: Mapping[str, Any], found: Mapping[str, Any], dtype: str, score: str) -> dict[str, Any]:
    """Return what one run has in one dtype and score, and how it differs from the first."""
    own, theirs = _own(found, dtype), _own(first, dtype)
    empty = {"images": None, "value": None, "difference": None, "low": None, "high": None}
    if own is None:
        return {**empty, "verdict": ABSENT}
    known = {**empty, "images": own["images"], "value": own[score]}
    if found is first:
        return {**known, "verdict": FIRST}
    if theirs is None:
        return {**known, "verdict": NOT_IN_FIRST}
    known["difference"] = own[score] - theirs[score]
    if not same_faces(first, found):
        return {**known, "verdict": DIFFERENT}
    before = {row["name"]: row[score] for row in first["rows"] if row["dtype"] == dtype}
    after = [(row["name"], row[score]) for row in found["rows"] if row["dtype"] == dtype]
    return {**known, **_tested([value - before[name] for name, value in after], SCORES[score])}


def _tested(differences: Sequence[float], more_is_better: bool) -> dict[str, Any]:
    """Return the interval of the mean difference and what it shows."""
    estimate = mean_loss(differences)
    verdict: str = estimate.verdict
    if estimate.excludes_zero:
        verdict = "better" if (estimate.value > 0) == more_is_better else "worse"
    return {"low": estimate.low, "high": estimate.high, "verdict": verdict}


def _own(found: Mapping[str, Any], dtype: str) -> Row | None:
    """Return the table row of a dtype, if the run has it."""
    return next((row for row in found["table"] if row["dtype"] == dtype), None)


# ----------------------------------------------------------------------
# Choose faces whose errors are worth looking at, and get their outputs and error maps.

ROLES = {"best": "loses most", "median": "median loss", "worst": "loses least"}  # a high drop ranks first
ZOOM_SIDE = 0.26  # part of the side that is enlarged


@dataclass(frozen=True)
class FaceErrors:
    """One face restored in several precisions.

    Attributes
    ----------
    name : str
    role : str
        Why it is shown.
    expected : uint8 [S, S, 3]
        fp32's output.
    outputs : mapping of dtype to uint8 [S, S, 3]
        The other precisions' outputs.
    errors : mapping of dtype to int [S, S]
        Absolute difference from ``expected`` in grey levels, the largest of the three channels.
    hotspots : mapping of dtype to (x, y)
        Where the error is largest, see :func:`hotspot`.
    source : uint8 [H, W, 3] or None
        The network's input, if it was asked for.
    """

    name: str
    role: str
    expected: Image
    outputs: Mapping[str, Image]
    errors: Mapping[str, NDArray[np.int16]]
    hotspots: Mapping[str, tuple[float, float]]
    source: Image | None = None


def faces_by_loss(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """Return the dtype that loses most on average, and the faces on which it loses most, typically, least.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of 05_errors: ``dtype``, ``name``, ``psnr_drop``. Those of fp32 are passed over.

    Returns
    -------
    (str, dict of name to role)
        No face twice; fewer than three if there are fewer.

    Raises
    ------
    ValueError
        If there is nothing but fp32.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["dtype"] != "fp32":
            groups.setdefault(row["dtype"], []).append(row)
    if not groups:
        raise ValueError("no rows of another dtype than fp32")
    dtype = max(groups, key=lambda name: statistics.fmean(row["psnr_drop"] for row in groups[name]))
    own = groups[dtype]
    chosen = best_median_worst(own, "psnr_drop")
    return dtype, {own[index]["name"]: ROLES[role] for index, role in chosen.items()}


def worst_faces(rows: Sequence[Mapping[str, Any]], dtype: str, count: int) -> dict[str, str]:
    """Return the faces on which a dtype loses most PSNR against fp32, the worst first.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of 05_errors: ``dtype``, ``name``, ``psnr_drop``.
    dtype : str
    count : int
        At most this many; fewer if there are fewer faces.

    Returns
    -------
    dict of name to role
        The role says the place and the loss, such as ``"1: +0.120 dB"``.

    Raises
    ------
    ValueError
        If there are no rows of ``dtype``, or ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    own = [row for row in rows if row["dtype"] == dtype]
    if not own:
        raise ValueError(choice_error("dtype", dtype, sorted({row["dtype"] for row in rows})))
    chosen = rank(own, "best", count, "psnr_drop")
    return {
        own[index]["name"]: f"{place}: {own[index]['psnr_drop']:+.3f} dB"
        for place, index in enumerate(chosen, 1)
    }


def hotspot(error: NDArray[np.int16], side: float = ZOOM_SIDE) -> tuple[float, float]:
    """Return the centre (x, y) of the square that holds most error, as parts of the picture's side.

    Parameters
    ----------
    error : int [S, S]
    side : float
        Side of the square as part of the picture's; it lies within the picture.
    """
    pixels = max(1, round(side * error.shape[0]))
    # Squares inside the picture only: the filter's value at the anchor (0, 0) sums down and right of it
    sums = cv2.boxFilter(error.astype(np.float32), -1, (pixels, pixels), anchor=(0, 0), normalize=False)
    inside = sums[: error.shape[0] - pixels + 1, : error.shape[1] - pixels + 1]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return (float(left) + pixels / 2) / error.shape[1], (float(top) + pixels / 2) / error.shape[0]


def open_face_errors(
    faces: Mapping[str, str],
    readers: Mapping[str, Callable[[str], Image]],
    read_source: Callable[[str], Image] | None = None,
) -> list[FaceErrors]:
    """Return outputs and error maps of the faces, in that order.

    Parameters
    ----------
    faces : mapping of name to role
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3]; ``"fp32"`` must be among them.
    read_source : callable, optional
        Name of a face -> the network's input.
    """
    found = []
    for name, role in faces.items():
        expected = readers["fp32"](name)
        outputs = {dtype: read(name) for dtype, read in readers.items() if dtype != "fp32"}
        errors = {dtype: error_map(output, expected) for dtype, output in outputs.items()}
        source = read_source(name) if read_source else None
        hotspots = {dtype: hotspot(error) for dtype, error in errors.items()}
        found.append(FaceErrors(name, role, expected, outputs, errors, hotspots, source))
    return found
