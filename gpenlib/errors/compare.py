"""What each precision costs: the same faces restored in each, compared with fp32 face by face."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
import scipy  # loads scipy.stats, which takes a second, when it is first used
from numpy.typing import ArrayLike, NDArray

from gpenlib.data.pairs import Pack, Pairs
from gpenlib.files import choice_error, read_json, require
from gpenlib.images import Image
from gpenlib.infer.performance import slower
from gpenlib.infer.scoring import BASELINES, best_median_worst, rank, workers
from gpenlib.jobs import ahead, progress
from gpenlib.metrics import LabArray, colourfulness, finite_psnr, perceptual_rows, to_lab
from gpenlib.settings import REFERENCE

Row = Mapping[str, Any]
Statistic = Callable[..., Any]
Reader = Callable[[str], Image]  # name of a face -> restored image, uint8 [S, S, 3]

# Scores against the truth, and whether more is better; a drop is a loss of quality in either case.
SCORES = {"psnr": True, "ssim": True, "delta_e2000": False, "chroma_error": False}
PLAIN = ("psnr_truncated", "ssim_truncated", "colourfulness")
OF_BASELINES = tuple(f"{score}_{baseline}" for baseline in BASELINES for score in SCORES)
ENDS = {"": "value", "_low": "low", "_high": "high"}  # a drop and the ends of its interval
MEAN_COLOUR = ("lightness", "lab_a", "lab_b")


def analyse(
    results: Mapping[str, Mapping[str, Any]],
    readers: Mapping[str, Reader],
    pairs: Pairs | Pack,
    files: Mapping[str, Path | None] | None = None,
    features_are_inception: bool = False,
) -> dict[str, Any]:
    """Return everything that 05_errors says of the outputs; ``files`` are weights for ``perceptual_rows``."""
    reference = results[REFERENCE]
    rows: list[dict[str, Any]] = []
    for dtype, result in results.items():
        rows += compare_outputs(dtype, result["rows"], reference["rows"], readers[dtype], readers[REFERENCE])
    traits = face_traits(pairs)
    return {
        "table": summarise_comparison(rows, results),  # one row per dtype
        "rows": rows,  # one per dtype and face
        "traits": traits,  # one per face
        "groups": group_losses(rows, traits),  # one per dtype, group of faces and score
        "trends": trends(rows, traits),  # one per dtype, trait and score
        "perceptual": perceptual_rows(
            pairs, readers, **(files or {}), features_are_inception=features_are_inception
        ),
        "chroma_baseline": reference["chroma_baseline"],
    }


def compare_outputs(
    dtype: str, rows: Sequence[Row], reference_rows: Sequence[Row], read: Reader, read_reference: Reader
) -> list[dict[str, Any]]:
    """Return one row per face: scores, what it loses against fp32, and how far its pixels are from fp32's."""
    names, reference_names = ([row["name"] for row in each] for each in (rows, reference_rows))
    if names != reference_names:
        differing = sorted(set(names) ^ set(reference_names)) or ["their order"]
        raise ValueError(f"{dtype} and fp32 were run on different faces: {', '.join(differing[:5])}")

    def compare(row: Row, reference: Row) -> dict[str, Any]:
        output, expected = read(row["name"]), read_reference(row["name"])
        difference = output.astype(np.int16) - expected
        colour, reference_colour = ([each[name] for name in MEAN_COLOUR] for each in (row, reference))
        return {
            "dtype": dtype,
            **{name: row[name] for name in ("name", *SCORES, *PLAIN, *OF_BASELINES)},
            **{
                f"{score}_drop": (reference[score] - row[score]) * (1 if more_is_better else -1)
                for score, more_is_better in SCORES.items()
            },
            "psnr_to_fp32": finite_psnr(output, expected),  # dB; equal images count as 100
            "colour_shift_to_fp32": math.dist(colour, reference_colour),  # in CIELAB, of the images' means
            "largest_error": int(np.abs(difference).max()),  # grey levels, as bias
            "bias": float(difference.mean()),
            "ms": row["ms"],
        }

    pairs = zip(rows, reference_rows, strict=True)
    compared = ahead(pairs, lambda pair: compare(*pair), workers=workers())
    return list(progress(compared, total=len(rows), desc=f"compare {dtype}", unit="image"))


def summarise_comparison(
    rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return means per dtype, and drops with interval and verdict, not corrected for their number."""
    frame = pd.DataFrame(rows)
    means = [*SCORES, *PLAIN, *OF_BASELINES, "psnr_to_fp32", "colour_shift_to_fp32", "bias"]
    table = []
    for dtype, result in results.items():
        faces = frame[frame["dtype"] == dtype]
        row = {"dtype": dtype, "backend": result["backend"]}
        row |= {"executed_precision": result["executed_precision"], "images": len(faces)}
        row |= {name: float(faces[name].mean(skipna=False)) for name in means}
        for score in SCORES:
            loss = mean_loss(faces[f"{score}_drop"])
            row |= {f"{score}_drop{end}": getattr(loss, name) for end, name in ENDS.items()}
            row[f"{score}_verdict"] = "reference" if dtype == REFERENCE else loss.verdict
        row["worst_psnr_drop"] = float(faces["psnr_drop"].max())
        row["largest_error"] = int(faces["largest_error"].max())
        table.append(row | {"ms_per_image": result["ms_per_image"]})
    return table


# How sure a difference is. Faces are drawn with replacement; the two precisions of a face stay together,
# because their difference is what is drawn. Intervals are bias-corrected and accelerated (BCa; Efron 1987),
# percentiles where those are not defined. They speak of faces like those measured.

Verdict = Literal["drop", "gain", "no difference shown", "too few images"]
NOT_SHOWN: Verdict = "no difference shown"
FEWEST = 5
ENOUGH = 20  # faces; intervals from fewer understate the uncertainty
CONFIDENCE = 0.95
RESAMPLES = 9999
RANK_RESAMPLES = 1999  # ranking every resample takes longer
BATCH = 500  # resamples held in memory at once


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and two-sided p-value, both None below five faces."""

    value: float
    low: float | None
    high: float | None
    p_value: float | None

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
            return NOT_SHOWN
        return "drop" if self.value > 0 else "gain"


def mean_loss(losses: ArrayLike, seed: int = 0) -> Estimate:
    """Return the mean of paired differences, one per face; the same seed gives the same interval."""
    return _estimate((losses,), np.mean, lambda x: scipy.stats.ttest_1samp(x, 0), RESAMPLES, seed)


def rank_correlation(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Estimate:
    """Return Spearman's rank correlation of two properties of the same faces; 0 if one does not vary."""
    return _estimate((x, y), _spearman, scipy.stats.spearmanr, RANK_RESAMPLES, seed)


def holm(estimates: Sequence[Estimate]) -> list[tuple[float | None, Verdict]]:
    """Return p-values and verdicts corrected for the number of tests (Holm 1979), however those depend."""
    family = pd.Series([each.p_value for each in estimates], dtype=float).dropna().sort_values()
    corrected = (family * np.arange(len(family), 0, -1)).cummax().clip(upper=1)
    p_values = [float(corrected[i]) if i in corrected.index else None for i in range(len(estimates))]
    return [
        (p, NOT_SHOWN if p is not None and p > 1 - CONFIDENCE else each.verdict)
        for p, each in zip(p_values, estimates, strict=True)
    ]


def _estimate(
    properties: Sequence[ArrayLike], statistic: Statistic, test: Statistic, resamples: int, seed: int
) -> Estimate:
    """Return a statistic of one or two properties of the same faces; no interval for too few faces."""
    data = [np.asarray(each, dtype=np.float64) for each in properties]
    shapes = {each.shape for each in data}
    if len(shapes) > 1 or not data[0].size or not all(np.isfinite(each).all() for each in data):
        raise ValueError(f"values of shape {shapes}: as many of each are needed, one or more, and all finite")
    value = float(statistic(*data))
    if len(data[0]) < FEWEST:
        return Estimate(value, None, None, None)
    if any(np.ptp(values) == 0 for values in data):  # every resample gives the same
        return Estimate(value, value, value, float(value == 0))
    ends: tuple[float, float] = (np.nan, np.nan)
    for method in ("BCa", "percentile"):  # BCa is undefined if all resamples lie on one side
        with warnings.catch_warnings(action="ignore"):
            interval = scipy.stats.bootstrap(
                data, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=BATCH,
                confidence_level=CONFIDENCE, method=method, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        ends = float(interval.low), float(interval.high)
        if np.isfinite(ends).all():
            break
    # The p-value is that of a t-test: at the levels that Holm needs (0.05/117) the bootstrap knows nothing.
    # Five losses of one sign, which chance gives once in 16, would have a p-value of 0.
    return Estimate(value, *ends, float(test(*data).pvalue))


def _spearman(x: NDArray[Any], y: NDArray[Any], axis: int = -1) -> Any:
    """Return rank correlations along ``axis``, as SciPy's bootstrap wants them; 0 where ranks do not vary."""
    a, b = (scipy.stats.rankdata(each, axis=axis) for each in (x, y))
    a, b = (ranks - ranks.mean(axis=axis, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    return np.divide((a * b).sum(axis=axis), scale, out=np.zeros_like(scale), where=scale > 0)


# Does a precision cost some people more than others? Losses by skin tone, brightness and colourfulness.
# Skin tone is the individual typology angle, ITA = arctan((L - 50) / b) in degrees (Chardin et al. 1991), of
# the truth's skin in CIELAB, with the usual six groups. It is measured in a picture: light and exposure move
# it, so it describes pictures of people rather than people. The skin is taken from three squares of the FFHQ
# layout (eyes at 0.47 of the height, mouth corners at 0.735): both cheeks and the forehead. Medians over all
# their pixels pass over a lock of hair or a highlight. In faces that are not aligned they may miss the skin.

SKIN_PLACES = ((0.36, 0.60), (0.64, 0.60), (0.50, 0.35))  # centres (x, y) as parts of the side
SKIN_SIDE = 0.07
LEAST_YELLOW = 1.0  # CIELAB b of any skin lies well above; below, the picture is grey
ITA_LIMITS = (-math.inf, -30.0, 10.0, 28.0, 41.0, 55.0, math.inf)  # degrees; a limit belongs to the darker
ITA_GROUPS = ("dark", "brown", "tan", "intermediate", "light", "very light")
NOT_MEASURED = "no skin colour found"
THIRDS = ("lowest third", "middle third", "highest third")
TRAITS = {"ita": "skin tone", "lightness": "brightness", "colourfulness": "colourfulness"}
FACES = {  # at the low and at the high end of each trait
    "ita": ("darker skin", "lighter skin"),
    "lightness": ("darker faces", "brighter faces"),
    "colourfulness": ("greyer faces", "more colourful faces"),
}
GROUP_SCORES = {"psnr": "PSNR", "ssim": "SSIM", "delta_e2000": "ΔE 2000"}


def typology_angle(lab: LabArray) -> float | None:
    """Return the ITA in degrees of an aligned face, CIELAB [S, S, 3], or None if there is no colour."""
    side = lab.shape[0]
    half = max(0.5, SKIN_SIDE * side / 2)
    patches = []
    for x, y in SKIN_PLACES:
        rows = slice(round(y * side - half), round(y * side + half))
        columns = slice(round(x * side - half), round(x * side + half))
        patches.append(lab[rows, columns].reshape(-1, 3))
    lightness, _, yellow = (float(value) for value in np.median(np.concatenate(patches), axis=0))
    return math.degrees(math.atan((lightness - 50) / yellow)) if yellow >= LEAST_YELLOW else None


def face_traits(pairs: Pairs | Pack) -> list[dict[str, Any]]:
    """Return ``ita`` (or None), ``lightness`` (mean L*) and ``colourfulness`` of every face's truth."""

    def measure(index: int) -> dict[str, Any]:
        truth = pairs.truths(index)
        lab = to_lab(truth)
        return {
            "name": pairs.names[index],
            "ita": typology_angle(lab),
            "lightness": float(lab[..., 0].mean(dtype=np.float64)),
            "colourfulness": colourfulness(truth),
        }

    measured = ahead(range(len(pairs)), measure, workers=workers())
    return list(progress(measured, total=len(pairs), desc="traits", unit="image", leave=False))


def copies(rows: Sequence[Row]) -> dict[str, str]:
    """Return the dtypes whose figures, but time, equal an earlier one's for every face, and that one."""
    faces: dict[str, list[Row]] = {}
    for row in rows:
        faces.setdefault(row["dtype"], []).append({k: row[k] for k in row if k not in ("dtype", "ms")})
    first = {dtype: next(other for other in faces if faces[other] == faces[dtype]) for dtype in faces}
    return {dtype: other for dtype, other in first.items() if other != dtype}


def left_out(rows: Sequence[Row]) -> tuple[dict[str, str], str]:
    """Return the :func:`copies` that tables and figures leave out, and say so; none where all are fp32's."""
    again = copies(rows)
    if len({row["dtype"] for row in rows}) == len(again) + 1:
        return {}, ""
    named = ", ".join(f"{dtype} (of {first}'s)" for dtype, first in again.items())
    return again, f"Left out as exact copies of another's outputs: {named}." if again else ""


def group_losses(rows: Sequence[Row], traits: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each dtype's loss in every group of faces; verdicts, not intervals, are corrected over all."""
    faces = _faces_with_traits(rows, traits)
    reference = faces[faces["dtype"] == REFERENCE].set_index("name")
    groups, estimates = [], []
    for dtype, of_dtype in faces[faces["dtype"] != REFERENCE].groupby("dtype", sort=False):
        for trait in TRAITS:
            for group, members in of_dtype.groupby(f"{trait}_group", observed=True):
                for score in GROUP_SCORES:
                    fp32 = float(reference.loc[members["name"], score].mean())
                    groups.append({"trait": trait, "group": group, "dtype": dtype, "score": score,
                                   "faces": len(members), "fp32": fp32})  # fmt: skip
                    estimates.append(mean_loss(members[f"{score}_drop"]))
    return [
        row | {f"drop{end}": getattr(loss, name) for end, name in ENDS.items()}
        | {"p_holm": p_holm, "verdict": verdict}
        for row, loss, (p_holm, verdict) in zip(groups, estimates, holm(estimates), strict=True)
    ]  # fmt: skip


def groups_note(groups: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return the sentences that belong beside the verdicts of :func:`group_losses`."""
    tested = [row for row in groups if row["p_holm"] is not None]
    alone = sum(row["drop_low"] > 0 or row["drop_high"] < 0 for row in tested)
    stand = [
        f"{row['verdict']} of {row['dtype']}'s {GROUP_SCORES[row['score']]} "
        f"({TRAITS[row['trait']]}: {row['group']})"
        for row in tested
        if row["verdict"] in ("drop", "gain")
    ]
    if not tested:
        return f"Nothing is tested: every group has fewer than {FEWEST} faces. {left_out(rows)[1]}".rstrip()
    return (
        f"{len(tested)} means, of {', '.join(GROUP_SCORES.values())}, are compared with zero. Each interval "
        f"is a single {CONFIDENCE:.0%} one, not corrected for that number; {alone} of them leave out zero. "
        f"The verdicts are corrected (Holm): the chance of even one false drop or gain is at most "
        f"{1 - CONFIDENCE:.0%}. {len(stand)} stand{': ' if stand else ''}{', '.join(stand)}. "
        f"Groups of fewer than {FEWEST} faces are not tested. {left_out(rows)[1]}"
    ).rstrip()


def standing(trends: Sequence[Row]) -> list[Row]:
    """Return those of the :func:`trends` that stand, the strongest first."""
    return sorted((row for row in trends if row["shown"]), key=lambda row: -abs(row["correlation"]))


def trends_note(trends: Sequence[Row]) -> str:
    """Say which of the :func:`trends` stand."""
    told = [
        f"{row['dtype']} loses more {GROUP_SCORES[row['score']]} on "
        f"{FACES[row['trait']][row['correlation'] > 0]} (rank correlation {abs(row['correlation']):.2f})"
        for row in standing(trends)
    ]
    return f"{'; '.join(told) or 'no loss is shown to follow a property of the face'}."


def trends(rows: Sequence[Row], traits: Sequence[Row]) -> list[dict[str, Any]]:
    """Return Spearman's correlation of each dtype's drops with each trait; positive: they grow with it."""
    faces = _faces_with_traits(rows, traits)
    pairs, estimates = [], []
    for dtype, of_dtype in faces[faces["dtype"] != REFERENCE].groupby("dtype", sort=False):
        for trait in TRAITS:
            measured = of_dtype.dropna(subset=[trait])
            for score in GROUP_SCORES if len(measured) else ():
                pairs.append({"trait": trait, "dtype": dtype, "score": score, "faces": len(measured)})
                estimates.append(rank_correlation(measured[trait], measured[f"{score}_drop"]))
    return [
        row | {"correlation": estimate.value, "low": estimate.low, "high": estimate.high}
        | {"p_holm": p_holm, "shown": verdict in ("drop", "gain")}
        for row, estimate, (p_holm, verdict) in zip(pairs, estimates, holm(estimates), strict=True)
    ]  # fmt: skip


def _faces_with_traits(rows: Sequence[Row], traits: Sequence[Row]) -> pd.DataFrame:
    """Return scores, traits and groups by dtype and face; raise unless every dtype has every face."""
    scores = pd.DataFrame(rows)[["dtype", "name", *GROUP_SCORES, *(f"{s}_drop" for s in GROUP_SCORES)]]
    names = {row["name"] for row in traits}
    for dtype, of_dtype in scores.groupby("dtype", sort=False):
        if differing := sorted(names ^ set(of_dtype["name"])):
            raise ValueError(f"{dtype}: scores and traits are of different faces: {', '.join(differing[:5])}")
    # Copies are not tested again: that would make Holm's correction too strict
    scores = scores[~scores["dtype"].isin(left_out(rows)[0])]
    faces = pd.DataFrame(traits)[["name", *TRAITS]].astype(dict.fromkeys(TRAITS, float))
    tones = pd.cut(faces["ita"], ITA_LIMITS, labels=ITA_GROUPS)
    order = (*reversed(ITA_GROUPS), NOT_MEASURED)
    faces["ita_group"] = tones.cat.set_categories(order).fillna(NOT_MEASURED)
    for trait in ("lightness", "colourfulness"):
        thirds = np.searchsorted(np.quantile(faces[trait], (1 / 3, 2 / 3)), faces[trait])
        faces[f"{trait}_group"] = pd.Categorical(np.array(THIRDS)[thirds], THIRDS)
    return faces.merge(scores, on="name")  # in the order of the traits: intervals depend on it


# What each precision costs to store and to run, beside what it costs in quality.

TIMES = {"latency_ms": "median_ms", "latency_p10_ms": "p10_ms", "latency_p90_ms": "p90_ms"}


def with_costs(
    table: Sequence[Row], artefacts: Mapping[str, Mapping[str, Any]], latency: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return the table with every dtype's size, and its time per image measured in turns with the others."""
    timed = {row["dtype"]: row for row in latency}
    rows = []
    for row in table:
        artefact, times = artefacts[row["dtype"]], timed[row["dtype"]]
        size = {"backend_reason": artefact["backend_reason"], "model_mib": artefact["model_bytes"] / 2**20}
        per_image = {name: times[key] / times["batch_size"] for name, key in TIMES.items()}
        rows.append({**row, **size, **per_image})
    return rows


def pareto_rows(table: Sequence[Row], latency: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what :func:`gpenlib.plots.compile.pareto_figure` draws: time per call, and loss."""
    timed = {row["dtype"]: {key: row[key] for key in TIMES.values()} for row in latency}
    losses = ("dtype", "psnr_drop", "psnr_to_fp32")
    return [{key: row[key] for key in losses} | timed[row["dtype"]] | {"mode": None} for row in table]


# Which precision to take: the fastest one whose loss is acceptable, and in a sentence why. Acceptable means
# that the upper end of the loss's interval is within its budget (one may be all but sure that no more is
# lost), and that the mean colour moves less than its budget. Of two that were timed in turns the one that
# takes longer in nine of ten turns is slower; otherwise they count as equally fast. What disturbs one call of
# a turn disturbs its neighbours, too, so that on a busy machine the order stands where percentiles overlap.


@dataclass(frozen=True)
class Recommendation:
    """A precision to take, in words why it and why not the others, and what weakens the choice."""

    dtype: str | None  # None: the measurement allows no choice
    reason: str
    others: Mapping[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()


def recommend(
    table: Sequence[Row],
    max_drop_db: float = 0.1,
    max_colour_shift: float = 0.5,
    timing_note: str = "",
    latency: Sequence[Row] = (),
) -> Recommendation:
    """Recommend, of the precisions as fast as the fastest acceptable one, that with the smallest loss.

    ``latency`` holds the times by turn (03_latency); without them, times whose percentiles overlap are equal.
    """
    rows = {row["dtype"]: row for row in table}
    if REFERENCE not in rows:
        raise ValueError(f"{', '.join(rows) or 'an empty table'}: {REFERENCE} must be among the precisions")
    reference, images = rows[REFERENCE], int(rows[REFERENCE]["images"])
    faces = f"{images} face{'s' if images != 1 else ''}"
    if any(row["psnr_drop_high"] is None for row in table):
        reason = (
            f"{faces} {'is' if images == 1 else 'are'} too few to say what a precision loses: an interval "
            f"needs at least {FEWEST}, and is to be trusted from about {ENOUGH}. Until then {REFERENCE} is "
            "the safe choice."
        )
        unknown = f"What it loses is not known well enough from {faces}."
        return Recommendation(None, reason, {dtype: unknown for dtype in rows if dtype != REFERENCE})
    budget = (max_drop_db, max_colour_shift)
    faults = {dtype: "" if row is reference else _fault(row, *budget) for dtype, row in rows.items()}
    acceptable = [row for dtype, row in rows.items() if not faults[dtype]]
    fastest = min(acceptable, key=lambda row: _times(row)[1])
    turns = {row["dtype"]: row["times_ms"] for row in latency}
    equal = [row for row in acceptable if not _slower(row, fastest, turns)]
    chosen = min(equal, key=lambda row: float(row["psnr_drop_high"]))  # of equals the first, and simplest
    others = {dtype: faults[dtype] or _why_not(row, chosen, row in equal) for dtype, row in rows.items()}
    del others[chosen["dtype"]]
    cautions = []
    if images < ENOUGH:
        cautions.append(f"Only {faces}: below about {ENOUGH}, intervals understate the uncertainty.")
    if timing_note:
        cautions.append(f"The times were {timing_note}. Run again when it is idle.")
    if any(row.get("latency_ms") is None for row in table):
        cautions.append("The times come from separate runs: small differences between them may be noise.")
    return Recommendation(chosen["dtype"], _why(chosen, reference, equal, *budget), others, tuple(cautions))


def _fault(row: Row, max_drop_db: float, max_colour_shift: float) -> str:
    """Return why a loss is not acceptable, or nothing."""
    if row["psnr_drop_high"] > max_drop_db:
        return (
            f"It may lose too much: it {_change(row['psnr_drop'])} of PSNR on average ({_interval(row)}), "
            f"where {max_drop_db:g} dB is the budget of the interval's upper end{_executed(row)}."
        )
    if row["colour_shift_to_fp32"] >= max_colour_shift:
        return (
            f"It shifts the colour: the mean colour of a face moves by ΔE {row['colour_shift_to_fp32']:.2f}, "
            f"where less than {max_colour_shift:g} is the budget{_executed(row)}."
        )
    return ""


def _why(chosen: Row, reference: Row, equal: Sequence[Row], max_drop_db: float, max_shift: float) -> str:
    """Return why the chosen one is recommended."""
    peers = ", ".join(f"{row['dtype']} ({_ms(row)})" for row in equal if row is not chosen)
    if chosen is reference:
        if not peers:
            return f"No other precision within the budget is as fast as {REFERENCE} ({_ms(chosen)})."
        return (
            f"It takes {_ms(chosen)} and loses nothing; within the spread of the times nothing acceptable is "
            f"faster (as fast: {peers})."
        )
    times = _times(reference)[1] / _times(chosen)[1]
    text = (
        f"It takes {_ms(chosen)}, {times:.1f} times as fast as {REFERENCE} ({_ms(reference)}). It "
        f"{_change(chosen['psnr_drop'])} of PSNR on average ({_interval(chosen)}; budget of its upper end "
        f"{max_drop_db:g} dB), {_change(chosen['worst_psnr_drop'])} on the worst face, and moves the mean "
        f"colour by ΔE {chosen['colour_shift_to_fp32']:.2f} (budget below {max_shift:g}){_executed(chosen)}."
    )
    return text + (f" As fast, within the spread, but not more accurate: {peers}." if peers else "")


def _why_not(row: Row, chosen: Row, equally_fast: bool) -> str:
    """Return why an acceptable precision is not the chosen one."""
    if equally_fast and row["psnr_drop_high"] == chosen["psnr_drop_high"]:
        return f"As fast as {chosen['dtype']} within the spread, and it loses as much{_executed(row)}."
    if equally_fast:
        ends = " against ".join(f"{each['psnr_drop_high']:+.4f} dB" for each in (row, chosen))
        return (
            f"As fast as {chosen['dtype']} within the spread of the times ({_ms(row)}), but not more "
            f"accurate: the upper end of its mean loss's interval is {ends}{_executed(row)}."
        )
    times = _times(row)[1] / _times(chosen)[1]
    loss = "It loses nothing" if row["dtype"] == REFERENCE else "Its loss is within the budget"
    if row["dtype"] != REFERENCE and row["psnr_drop"] == row["worst_psnr_drop"] == 0:
        loss = f"It gives {REFERENCE}'s pictures"
    return f"{loss}, but it takes {_ms(row)}, {times:.1f} times {chosen['dtype']}'s time{_executed(row)}."


def _slower(row: Row, fastest: Row, turns: Mapping[str, Sequence[float]]) -> bool:
    """Return whether a precision is slower than the fastest one."""
    dtypes = row["dtype"], fastest["dtype"]
    if turns.keys() >= {*dtypes}:
        return slower(*(turns[dtype] for dtype in dtypes))
    return _times(row)[0] > _times(fastest)[2]


def _times(row: Row) -> tuple[float, float, float]:
    """Return 10th percentile, median and 90th percentile in ms per image; three times one figure if alone."""
    if row.get("latency_ms") is None:
        return (row["ms_per_image"],) * 3
    return row["latency_p10_ms"], row["latency_ms"], row["latency_p90_ms"]


def _ms(row: Row) -> str:
    return f"{_times(row)[1]:.1f} ms per image"


def _change(drop: float) -> str:
    """Return a mean drop in words: a negative one is a gain."""
    return f"{'gains' if drop < 0 else 'loses'} {_decibels(abs(drop))}"


def _interval(row: Row) -> str:
    """Return the interval of the mean loss in words: it bounds the mean, not what a face loses."""
    low, high = (_decibels(row[f"psnr_drop_{end}"]) for end in ("low", "high"))
    return f"{CONFIDENCE:.0%} interval of the mean loss {low.removesuffix(' dB')} to {high}"


def _decibels(value: float) -> str:
    """Return decibels; ones that would be rounded to zero keep their size."""
    form = ".3f" if value == 0 or abs(value) >= 5e-4 else ".0e"
    return f"{value:{form}} dB".replace("-", "−")


def _executed(row: Row) -> str:
    return f"; executed as {row['executed_precision']}"


# The results of several runs: other weights, another calibration, another machine.

FIRST, DIFFERENT = "first run", "different faces: no paired test"
ABSENT, NOT_IN_FIRST = "not in this run", "not in the first run"


def compare_results(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every run's scores beside the first one's; equal faces are paired, and give the verdict."""
    if len(results) < 2:
        raise ValueError(f"runs {list(results)}: two or more are needed for a comparison")
    first = next(iter(results.values()))
    dtypes = dict.fromkeys(row["dtype"] for result in results.values() for row in result["table"])
    return [
        {"dtype": dtype, "score": score, "run": run, **_compared(first, result, dtype, score)}
        for dtype in dtypes
        for score in SCORES
        for run, result in results.items()
    ]


def _compared(first: Row, result: Row, dtype: str, score: str) -> dict[str, Any]:
    """Return what one run has in one dtype and score, and how it differs from the first."""
    row, first_row = (
        next((row for row in each["table"] if row["dtype"] == dtype), None) for each in (result, first)
    )
    compared: dict[str, Any] = dict.fromkeys(("images", "value", "difference", "low", "high"))
    if row is None:
        return compared | {"verdict": ABSENT}
    compared |= {"images": row["images"], "value": row[score]}
    if result is first:
        return compared | {"verdict": FIRST}
    if first_row is None:
        return compared | {"verdict": NOT_IN_FIRST}
    compared["difference"] = row[score] - first_row[score]
    if result["facts"]["faces_digest"] != first["facts"]["faces_digest"]:
        return compared | {"verdict": DIFFERENT}
    before = {face["name"]: face[score] for face in first["rows"] if face["dtype"] == dtype}
    after = {face["name"]: face[score] for face in result["rows"] if face["dtype"] == dtype}
    gain = mean_loss([after[name] - before[name] for name in after])
    better = "better" if (gain.value > 0) == SCORES[score] else "worse"
    verdict = better if gain.excludes_zero else gain.verdict
    return compared | {"low": gain.low, "high": gain.high, "verdict": verdict}


# Faces whose errors are worth looking at, with their outputs and error maps.

PHOTOGRAPH = "photograph"  # role of those that lead the default data
ROLES = {"best": "loses most", "median": "median loss", "worst": "loses least"}  # a high drop ranks first
ZOOM_SIDE = 0.26  # part of the side that is enlarged


@dataclass(frozen=True)
class FaceErrors:
    """One face restored in several precisions, and why it is shown (``role``)."""

    name: str
    role: str
    expected: Image  # fp32's output, uint8 [S, S, 3]
    outputs: Mapping[str, Image]  # the others' by dtype
    errors: Mapping[str, NDArray[np.int16]]  # their error maps [S, S] in grey levels
    hotspots: Mapping[str, tuple[float, float]]  # (x, y) where the error is largest, as parts of the side
    source: Image | None = None  # the network's input, if it was asked for
    truth: Image | None = None  # likewise


def faces_by_loss(rows: Sequence[Row], photographs: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """Return the dtype that loses most on average, and the faces on which it loses most, typically, least.

    Where there are photographs, these and the sample on which it loses most.
    """
    frame = pd.DataFrame(rows)
    others = frame[~frame["dtype"].isin([REFERENCE, *left_out(rows)[0]])]
    if others.empty:
        raise ValueError(f"no rows of another dtype than {REFERENCE}")
    dtype = str(others.groupby("dtype", sort=False)["psnr_drop"].mean().idxmax())
    of_dtype = [row for row in rows if row["dtype"] == dtype and row["name"] not in photographs]
    chosen = best_median_worst(of_dtype, "psnr_drop")
    roles = {of_dtype[index]["name"]: ROLES[role] for index, role in chosen.items()}
    if photographs:
        roles = dict.fromkeys(photographs, PHOTOGRAPH) | dict(list(roles.items())[:1])
    return dtype, roles


def worst_faces(
    rows: Sequence[Row], dtype: str, count: int, photographs: Sequence[str] = ()
) -> dict[str, str]:
    """Return the ``count`` faces on which a dtype loses most PSNR, the worst first, with what they lose.

    Photographs come before them, in their order.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    of_dtype = [row for row in rows if row["dtype"] == dtype]
    if not of_dtype:
        raise ValueError(choice_error("dtype", dtype, sorted({row["dtype"] for row in rows})))
    others = [row for row in of_dtype if row["name"] not in photographs]
    worst = [others[index] for index in rank(others, "best", count, "psnr_drop")]
    leading = [row for row in of_dtype if row["name"] in photographs]
    return {
        row["name"]: f"{'loses' if row['psnr_drop'] >= 0 else 'gains'} {abs(row['psnr_drop']):.3f} dB"
        for row in (*leading, *worst)
    }


def open_face_errors(
    faces: Mapping[str, str],
    readers: Mapping[str, Reader],
    read_source: Reader | None = None,
    read_truth: Reader | None = None,
) -> list[FaceErrors]:
    """Return outputs and error maps of the faces (name to role), in that order; fp32 is among the readers."""
    opened = []
    for name, role in faces.items():
        expected = readers[REFERENCE](name)
        outputs = {dtype: read(name) for dtype, read in readers.items() if dtype != REFERENCE}
        errors = {dtype: error_map(output, expected) for dtype, output in outputs.items()}
        hotspots = {dtype: hotspot(error) for dtype, error in errors.items()}
        asked = [read(name) if read else None for read in (read_source, read_truth)]
        opened.append(FaceErrors(name, role, expected, outputs, errors, hotspots, *asked))
    return opened


def error_map(output: Image, expected: Image) -> NDArray[np.int16]:
    """Return the largest absolute difference over the channels, in grey levels, int16 [H, W]."""
    largest: NDArray[np.int16] = np.abs(output.astype(np.int16) - expected).max(axis=2)
    return largest


def hotspot(error: NDArray[np.int16], side: float = ZOOM_SIDE) -> tuple[float, float]:
    """Return the centre (x, y), as parts of the side, of the square inside the picture with most error."""
    pixels = max(1, round(side * error.shape[0]))
    # Squares inside the picture only: the filter's value at the anchor (0, 0) sums down and right of it
    sums = cv2.boxFilter(error.astype(np.float32), -1, (pixels, pixels), anchor=(0, 0), normalize=False)
    inside = sums[: error.shape[0] - pixels + 1, : error.shape[1] - pixels + 1]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return (float(left) + pixels / 2) / error.shape[1], (float(top) + pixels / 2) / error.shape[0]


def check_results(results: Row, file: Path, images: int) -> None:
    """Refuse results of 05 that differ from their file, lack a face, or contradict themselves."""
    rows, table = pd.DataFrame(results["rows"]), pd.DataFrame(results["table"])
    names = rows.groupby("dtype")["name"].agg(list)
    own = rows[rows["dtype"] == REFERENCE]
    groups = pd.DataFrame(results["groups"]).groupby(["trait", "dtype", "score"])["faces"].sum()
    shown = table[table["psnr_verdict"].isin(["drop", "gain"])]
    one_side = shown["psnr_drop_low"] * shown["psnr_drop_high"] > 0
    require({
        "results.json is what the manifest says": read_json(file) == results,
        "all precisions cover the same faces": all(faces == names[REFERENCE] for faces in names),
        "there are as many faces as asked for": len(own) == images,
        "figures are finite": bool(np.isfinite(rows.drop(columns=["dtype", "name"]).to_numpy(float)).all()),
        "fp32 does not differ from itself": not own[["psnr_drop", "ssim_drop", "bias"]].any(axis=None),
        "no interval of a shown loss holds zero": bool(one_side.all()),
        "the groups hold every face once": bool((groups == len(own)).all()),
    })  # fmt: skip
