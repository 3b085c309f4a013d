"""Comparing precisions: drops and how sure they are, groups of faces, recommendation, runs, error maps."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from skimage.color import lab2rgb

from gpenlib.data.faces import open_folder
from gpenlib.data.pairs import Pairs
from gpenlib.errors import compare
from gpenlib.images import write_image
from gpenlib.infer.scoring import BASELINES
from gpenlib.metrics import PSNR_CEILING, to_lab

NAMES = ("a", "b")
NOT_SHOWN = "no difference shown"
RESULT = {"backend": "openvino", "executed_precision": "f32", "ms_per_image": 2.0}
COLOUR = {"lightness": 50.0, "lab_a": 10.0, "lab_b": 12.0}


def only(rows, **chosen):
    return [row for row in rows if all(row[key] == value for key, value in chosen.items())]


def make_rows(psnr=20.0, ssim=0.9, names=NAMES, **changes):
    scores = {"psnr": psnr, "ssim": ssim, "delta_e2000": 8.0, "chroma_error": 11.0}
    plain = dict.fromkeys(compare.PLAIN, 1.0)
    baselines = {f"{score}_{name}": 9.0 for score in scores for name in BASELINES}
    return [{"name": name, **scores, **plain, **baselines, **COLOUR, "ms": 2.0, **changes} for name in names]


def picture(name, offset=0):
    seed = NAMES.index(name)
    return np.random.default_rng(seed).integers(20, 200, (16, 16, 3), dtype=np.uint8) + np.uint8(offset)


def brighter(name):
    return picture(name, 3)


def test_a_known_offset_is_measured_and_less_quality_is_a_drop_in_every_score():
    worse = make_rows(19.0, 0.8, delta_e2000=8.5, chroma_error=11.25, lightness=52.0, lab_a=12.0, lab_b=11.0)
    rows = compare.compare_outputs("int8", worse, make_rows(), brighter, picture)
    assert [row["name"] for row in rows] == list(NAMES)
    for row in rows:
        assert (row["dtype"], row["bias"], row["largest_error"]) == ("int8", 3.0, 3)
        assert row["psnr_to_fp32"] == pytest.approx(20 * np.log10(255 / 3))
        drops = {score: row[f"{score}_drop"] for score in compare.SCORES}
        assert drops == pytest.approx({"psnr": 1.0, "ssim": 0.1, "delta_e2000": 0.5, "chroma_error": 0.25})
        assert row["colour_shift_to_fp32"] == pytest.approx(3.0)
    (darker, _) = compare.compare_outputs("int8", make_rows(), make_rows(), picture, brighter)
    assert darker["bias"] == -3.0 and darker["largest_error"] == 3  # uint8 does not wrap around
    (same, _) = compare.compare_outputs("fp32", make_rows(), make_rows(), picture, picture)
    assert same["psnr_drop"] == same["bias"] == same["colour_shift_to_fp32"] == same["largest_error"] == 0
    assert same["psnr_to_fp32"] == PSNR_CEILING


def test_table_has_one_row_per_dtype_with_verdicts():
    names = [str(number) for number in range(12)]
    reference, lossy = make_rows(names=names), make_rows(names=names)
    for number, row in enumerate(lossy):
        row["psnr"] -= 0.02 + 0.001 * (number % 3)  # on every face
        row["delta_e2000"] -= 0.1 + 0.01 * number  # better on every face
    readers = (lambda _: brighter("a"), lambda _: picture("a"))
    rows = compare.compare_outputs("fp32", reference, reference, readers[1], readers[1])
    rows += compare.compare_outputs("int8", lossy, reference, *readers)
    fp32, row = compare.summarise_comparison(rows, {"fp32": RESULT, "int8": RESULT})
    assert (fp32["dtype"], fp32["psnr_verdict"]) == ("fp32", "reference")
    assert (row["dtype"], row["images"], row["largest_error"], row["psnr_input"]) == ("int8", 12, 3, 9.0)
    assert (row["psnr_drop"], row["worst_psnr_drop"]) == pytest.approx((0.021, 0.022))
    assert 0.02 <= row["psnr_drop_low"] < 0.021 < row["psnr_drop_high"]
    verdicts = [row[f"{score}_verdict"] for score in ("psnr", "ssim", "delta_e2000")]
    assert verdicts == ["drop", NOT_SHOWN, "gain"]
    assert {type(value) for value in row.values()} == {str, int, float}, "goes into JSON"
    for others, named in {("a", "c"): "b, c", ("b", "a"): "their order", ("a",): "b"}.items():
        with pytest.raises(ValueError, match=f"int8 .*: {named}"):
            compare.compare_outputs("int8", make_rows(names=others), make_rows(), picture, picture)


def sample(mean, count=30, seed=0):
    values = np.random.default_rng(seed).normal(size=count)
    return mean + 0.1 * (values - values.mean()) / values.std(ddof=1)


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        (sample(0.2), "drop"), (sample(-0.2), "gain"), (sample(0.01), NOT_SHOWN),
        ([1.0, 1.1, 1.2, 0.9, 1.0], "drop"), ([0.0] * 8, NOT_SHOWN), ([0.25] * 8, "drop"),
    ],
)  # fmt: skip
def test_verdicts(losses, verdict):
    estimate = compare.mean_loss(losses)
    assert estimate.verdict == verdict
    assert (estimate.p_value < 0.05) == estimate.excludes_zero == (verdict != NOT_SHOWN)
    if np.ptp(losses) == 0:
        assert estimate.low == estimate.high == losses[0]


def test_intervals_are_those_of_students_t_finite_and_repeatable_and_need_five_faces():
    values = sample(0.04)
    estimate = compare.mean_loss(values)
    ends = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.04, *ends), abs=0.004)
    assert estimate.p_value == pytest.approx(stats.ttest_rel(values, np.zeros(30)).pvalue)
    few = compare.mean_loss([1.0] * (compare.FEWEST - 1))
    assert few == compare.Estimate(1.0, None, None, None) and few.verdict == "too few images"
    skewed = compare.mean_loss([0.0] * 30 + [0.1])
    assert 0 <= skewed.low <= skewed.value <= skewed.high < 0.1
    assert compare.mean_loss(values) == estimate != compare.mean_loss(values, seed=1)
    for unusable in ([], [1.0, math.nan], [math.inf] * 6):
        with pytest.raises(ValueError, match="finite"):
            compare.mean_loss(unusable)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)|\(2,\).*\(3,\)"):
        compare.rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0])


def test_holms_correction_by_hand():
    """Times 4, 3, 2, 1 in rising order, never falling; few faces are no test and do not count."""

    def corrected(*p_values, low=0.1):
        each = [compare.Estimate(1.0, None if p is None else low, 2.0, p) for p in p_values]
        return list(zip(*compare.holm(each), strict=True))

    p_values, verdicts = corrected(0.03, 0.001, None, 0.015, 0.016)
    assert p_values == (pytest.approx(0.045), pytest.approx(0.004), None, *[pytest.approx(0.045)] * 2)
    assert verdicts == ("drop", "drop", "too few images", "drop", "drop")
    assert corrected(0.03, 0.03) == [(pytest.approx(0.06),) * 2, (NOT_SHOWN,) * 2]
    assert corrected(0.9, 0.9)[0] == (1, 1)
    assert corrected(0.001, low=-0.1)[1] == (NOT_SHOWN,), "as its interval says"
    assert compare.holm([]) == []


def null_estimates(random, groups=120, faces=20):
    """Estimates of groups that share faces, where nothing is lost: intervals and p-values of Student's t."""
    losses = random.normal(size=(groups, faces)) + 0.3 * random.normal(size=faces)
    means, errors = losses.mean(axis=1), stats.sem(losses, axis=1) * stats.t.ppf(0.975, faces - 1)
    p_values = stats.ttest_1samp(losses, 0, axis=1).pvalue
    return [compare.Estimate(m, m - e, m + e, p) for m, e, p in zip(means, errors, p_values, strict=True)]


def test_holm_keeps_the_chance_of_any_false_verdict():
    """Of 120 tests in which nothing is lost: one or more false verdicts in at most 5 % of the tables."""
    random = np.random.default_rng(0)
    tables = [null_estimates(random) for _ in range(400)]
    alone = np.mean([any(each.excludes_zero for each in table) for table in tables])
    corrected = np.mean([any(v != NOT_SHOWN for _, v in compare.holm(table)) for table in tables])
    assert alone > 0.9 and corrected < 0.07


def skin(lightness, a, b, side=64):
    lab = np.broadcast_to(np.float64((lightness, a, b)), (side, side, 3))
    return np.rint(255 * lab2rgb(lab)).astype(np.uint8)


def test_an_angle_on_a_limit_belongs_to_the_darker_group():
    groups = {
        55.1: "very light", 55: "light", 41.1: "light", 41: "intermediate", 28: "tan", 10: "brown",
        -29.9: "brown", -30: "dark", -90: "dark", None: compare.NOT_MEASURED,
    }  # fmt: skip
    for angle, group in groups.items():
        traits = [{"name": "face", "ita": angle, "lightness": 50.0, "colourfulness": 20.0}]
        losses = compare.group_losses(make_scores(traits, lambda _: 0.1), traits)
        assert {row["group"] for row in only(losses, trait="ita")} == {group}


@pytest.mark.parametrize("side", [64, 256])
def test_only_cheeks_and_forehead_count_and_a_covered_forehead_does_not(side):
    image = skin(25, 2, 5, side)  # dark hair everywhere
    for x, y in compare.SKIN_PLACES[:2]:
        rows = slice(int((y - 0.06) * side), int((y + 0.06) * side))
        columns = slice(int((x - 0.06) * side), int((x + 0.06) * side))
        image[rows, columns] = skin(70, 12, 14, 1)[0, 0]
    assert compare.typology_angle(to_lab(image)) == pytest.approx(math.degrees(math.atan(20 / 14)), abs=2)


def test_traits_of_pictures(tmp_path):
    colours = [(40, 5, 8), (60, 12, 18), (75, 10, 14), (60, 0, 0)]
    for index, colour in enumerate(colours):
        write_image(tmp_path / f"pictures/{index}.png", skin(*colour))
    traits = compare.face_traits(Pairs(open_folder(tmp_path / "pictures"), "color", 64))
    assert [row["lightness"] for row in traits] == pytest.approx([40, 60, 75, 60], abs=0.5)
    angles = [math.degrees(math.atan((lightness - 50) / b)) for lightness, _, b in colours[:3]]
    assert [row["ita"] for row in traits[:3]] == pytest.approx(angles, abs=2)
    assert traits[3]["ita"] is None, "grey pictures have no skin tone"
    assert traits[0]["colourfulness"] < traits[1]["colourfulness"]


def make_traits(count=12):
    return [
        {"name": f"f{i}", "ita": -50.0 if i < 6 else 60.0, "lightness": float(i), "colourfulness": 20.0}
        for i in range(count)
    ]


def make_scores(traits, drop, dtypes=("fp32", "int8")):
    scores = {"psnr": 24.0, "ssim": 0.9, "delta_e2000": 8.0}
    return [
        {"dtype": dtype, "name": row["name"], **scores}
        | {f"{score}_drop": drop(row) if dtype != "fp32" else 0.0 for score in scores}
        for dtype in dtypes
        for row in traits
    ]


def test_a_loss_on_one_skin_tone_is_found_there_and_only_there():
    traits = make_traits()
    rows = make_scores(traits, lambda row: 0.5 + 0.001 * row["lightness"] if row["ita"] < 0 else 0.0)
    losses = compare.group_losses(rows, traits)
    light, dark = only(losses, trait="ita", score="psnr")
    assert (light["group"], light["faces"], light["verdict"]) == ("very light", 6, NOT_SHOWN)
    assert (dark["group"], dark["faces"], dark["verdict"]) == ("dark", 6, "drop")
    assert 0.5 < dark["drop_low"] < dark["drop"] < dark["drop_high"] < 0.51
    assert dark["fp32"] == 24.0 and {row["dtype"] for row in losses} == {"int8"}
    thirds = only(losses, trait="lightness", score="psnr")
    assert [(row["group"], row["faces"]) for row in thirds] == [(third, 4) for third in compare.THIRDS]
    assert all(row["verdict"] == "too few images" and row["drop_low"] is None for row in thirds)
    (same,) = only(losses, trait="colourfulness", score="psnr")  # all alike: no thirds to be told apart
    assert same["faces"] == 12


def test_trends_are_spearmans_over_the_faces_that_have_the_trait():
    traits, random = make_traits(20), np.random.default_rng(0)
    traits[0]["ita"] = None
    rows = make_scores(traits, lambda row: row["lightness"] // 3 + 3 * random.normal())  # with ties
    toned, rising, flat = only(compare.trends(rows, traits), score="psnr")
    drops = [row["psnr_drop"] for row in only(rows, dtype="int8")]
    lightness = [row["lightness"] for row in traits]
    assert rising["correlation"] == pytest.approx(stats.spearmanr(lightness, drops).statistic)
    assert -1 <= rising["low"] < rising["correlation"] < rising["high"] <= 1
    assert (flat["correlation"], flat["low"], flat["high"], flat["shown"]) == (0, 0, 0, False)
    assert (rising["faces"], toned["faces"]) == (20, 19)
    groups = only(compare.group_losses(rows, traits), trait="ita", score="psnr")
    counts = [(row["group"], row["faces"]) for row in groups]
    assert counts == [("very light", 14), ("dark", 5), (compare.NOT_MEASURED, 1)]
    assert only(compare.trends(rows, [row | {"ita": None} for row in traits]), trait="ita") == []
    with pytest.raises(ValueError, match=r"fp32: .* f19"):
        compare.group_losses(make_scores(traits[:-1], lambda row: 0.0), traits)


def test_the_verdicts_of_all_groups_are_corrected_together_and_the_note_counts_them():
    traits, random = make_traits(40), np.random.default_rng(0)
    scores = make_scores(traits, lambda _: random.normal(), ("fp32", "bf16", "fp16", "int8", "int8_bf16"))
    table = compare.group_losses(scores, traits)
    alone = sum(row["drop_low"] > 0 or row["drop_high"] < 0 for row in table)
    assert alone > 0 and {row["verdict"] for row in table} == {NOT_SHOWN}
    note = compare.groups_note(table, scores)
    assert note.startswith(f"{len(table)} means, of PSNR, SSIM, ΔE 2000, are")
    assert f" {alone} of " in note and " 0 stand. " in note
    table[0]["verdict"], named = "drop", compare.TRAITS[table[0]["trait"]]
    note = compare.groups_note(table, scores)
    assert f"1 stand: drop of bf16's PSNR ({named}: {table[0]['group']}). " in note
    assert "Left out" not in note


def test_trends_of_every_score_are_told_the_strongest_first():
    row = {"trait": "lightness", "score": "psnr", "dtype": "int8", "correlation": 0.754, "shown": True}
    dark = row | {"trait": "ita", "score": "ssim", "correlation": -0.8}
    note = compare.trends_note([row, dark, row | {"dtype": "fp16", "shown": False}])
    assert note == (
        "int8 loses more SSIM on darker skin (rank correlation 0.80); "
        "int8 loses more PSNR on brighter faces (rank correlation 0.75)."
    )
    assert compare.trends_note([row | {"shown": False}]).startswith("no loss is shown")


def test_what_gives_the_very_outputs_of_another_is_neither_tested_nor_listed_again():
    traits, random = make_traits(12), np.random.default_rng(0)
    scores = make_scores(traits, lambda _: random.normal())
    again = [row | {"dtype": copy, "ms": i} for copy, dtype in (("bf16", "fp32"), ("int8_bf16", "int8"))
             for i, row in enumerate(only(scores, dtype=dtype))]  # fmt: skip
    assert compare.copies(scores + again) == {"bf16": "fp32", "int8_bf16": "int8"}
    table = compare.group_losses(scores, traits)
    assert compare.group_losses(scores + again, traits) == table
    assert compare.trends(scores + again, traits) == compare.trends(scores, traits)
    note = compare.groups_note(table, scores + again)
    assert compare.left_out(scores) == ({}, "")
    assert note.endswith(
        " Left out as exact copies of another's outputs: bf16 (of fp32's), int8_bf16 (of int8's)."
    )
    equal = [row for row in scores + again if row["dtype"] in ("fp32", "bf16")]
    table = compare.group_losses(equal, traits)
    assert {row["dtype"] for row in table} == {"bf16"}, "there is nothing else to be told"
    assert "Left out" not in compare.groups_note(table, equal)
    again[-1]["psnr_drop"] += 1e-9
    assert compare.copies(scores + again) == {"bf16": "fp32"}


def timed(dtype, ms, high=0.0, spread=0.1, shift=0.0, images=40, **changes):
    return {
        "dtype": dtype, "images": images, "psnr_drop": high / 2, "psnr_drop_low": 0.0, "psnr_drop_high": high,
        "worst_psnr_drop": 3 * high, "colour_shift_to_fp32": shift,
        "executed_precision": f"{dtype} units", "ms_per_image": 100.0,
        "latency_ms": ms, "latency_p10_ms": ms - spread, "latency_p90_ms": ms + spread,
    } | changes  # fmt: skip


def test_the_fastest_within_the_budget_is_taken():
    table = [timed("fp32", 30.0), timed("bf16", 15.0, 0.02), timed("int8", 10.0, 0.05, shift=0.2)]
    choice = compare.recommend(table)
    assert choice.dtype == "int8" and choice.cautions == () and choice.others.keys() == {"fp32", "bf16"}
    for figure in ("10.0 ms", "3.0 times", "30.0 ms", "0.025 dB", "ΔE 0.20", "int8 units"):
        assert figure in choice.reason
    assert "mean loss 0.000 to 0.050 dB; budget" in choice.reason and "0.150 dB on the worst" in choice.reason
    assert "at most" not in choice.reason, "an interval of the mean bounds no face"
    assert "15.0 ms" in choice.others["bf16"] and "1.5 times" in choice.others["bf16"]
    gain = compare.recommend([table[0], timed("int8", 10.0, -0.004, psnr_drop_low=-0.03)]).reason
    assert "gains 0.002 dB" in gain and "−0.030 to −0.004 dB" in gain and "-" not in gain
    tiny = compare.recommend([table[0], timed("int8", 10.0, 0.02, psnr_drop=2e-5)]).reason
    assert "loses 2e−05 dB" in tiny


def test_a_loss_is_refused_by_the_end_of_its_interval_and_a_shift_of_colour_too():
    """The mean, 0.06 dB, is within the budget; the upper end is not."""
    table = [timed("fp32", 30.0), timed("bf16", 15.0, 0.02), timed("int8", 10.0, 0.12)]
    choice = compare.recommend(table)
    assert choice.dtype == "bf16" and "0.120 dB" in choice.others["int8"]
    assert compare.recommend(table, max_drop_db=0.12).dtype == "int8"
    assert compare.recommend(table, max_drop_db=0.01).dtype == "fp32"
    table = [timed("fp32", 30.0), timed("int8", 10.0, 0.01, shift=0.5)]
    choice = compare.recommend(table)
    assert choice.dtype == "fp32" and "ΔE 0.50" in choice.others["int8"]
    assert compare.recommend(table, max_colour_shift=0.51).dtype == "int8"


def test_of_equal_ones_the_simplest_is_taken():
    """Where a processor has no bf16, int8_bf16 runs as int8 does, a hair faster or slower."""
    choice = compare.recommend(
        [timed("fp32", 30.0), timed("int8", 10.0, 0.05), timed("int8_bf16", 9.95, 0.05)]
    )
    assert choice.dtype == "int8" and "loses as much" in choice.others["int8_bf16"]


def test_of_equally_fast_ones_the_more_accurate_is_taken():
    table = [timed("fp32", 30.0), timed("bf16", 10.5, 0.01, 0.6), timed("int8", 10.0, 0.05, 0.2)]
    choice = compare.recommend(table)
    assert choice.dtype == "bf16" and "int8 (10.0 ms" in choice.reason
    table[1] |= {"latency_p10_ms": 10.3}  # no longer overlaps with the 10.2 ms of int8
    assert compare.recommend(table).dtype == "int8"
    noisy = [90.0, 170.0, 95.0, 400.0, 92.0] * 4  # a busy machine: turns differ, their order does not
    turns = [{"dtype": "bf16", "times_ms": [1.2 * ms for ms in noisy]}, {"dtype": "int8", "times_ms": noisy}]
    busy = [timed("fp32", 400.0), timed("bf16", 114.0, 0.01, 90.0), timed("int8", 95.0, 0.05, 90.0)]
    assert compare.recommend(busy).dtype == "bf16"
    fp32 = {"dtype": "fp32", "times_ms": [9 * ms for ms in noisy]}
    assert compare.recommend(busy, latency=[*turns, fp32]).dtype == "int8"
    turns[0]["times_ms"] = noisy[1:] + noisy[:1]  # now one is faster, now the other
    assert compare.recommend(busy, latency=[*turns, fp32]).dtype == "bf16"
    choice = compare.recommend([timed("fp32", 10.0, spread=1.0), timed("fp16", 9.8, 0.001, spread=1.0)])
    assert choice.dtype == "fp32" and "fp16 (9.8 ms" in choice.reason


def test_few_faces_and_times_of_separate_runs_are_cautioned_against():
    table = [timed("fp32", 30.0, images=19), timed("int8", 10.0, images=19)]
    assert "19 faces" in compare.recommend(table).cautions[0]
    choice = compare.recommend([row | {"latency_ms": None, "images": 20} for row in table])
    assert choice.dtype in ("fp32", "int8") and "100.0 ms" in choice.reason and len(choice.cautions) == 1
    few = {"psnr_drop_low": None, "psnr_drop_high": None, "images": 1}
    choice = compare.recommend([row | few for row in table])
    assert choice.dtype is None and choice.others.keys() == {"int8"} and "1 face is" in choice.reason
    with pytest.raises(ValueError, match="int8: fp32"):
        compare.recommend(table[1:])


OFFSETS = (0.1, -0.2, 0.3, 0.05, -0.1, 0.2)


def result(shift=0.0, dtypes=("fp32", "int8"), digest="same", count=6, reverse=False):
    """Results of 05_errors in which every score is moved by about ``shift``."""
    rows = [
        {"dtype": dtype, "name": f"face {i}"}
        | dict.fromkeys(compare.SCORES, 20 + 3 * i + shift * (1 + offset))
        for dtype in dtypes
        for i, offset in enumerate(OFFSETS[:count])
    ]
    means = pd.DataFrame(rows).groupby("dtype", as_index=False).mean(numeric_only=True).assign(images=count)
    table = means.to_dict("records")
    return {"table": table, "rows": rows[::-1] if reverse else rows, "facts": {"faces_digest": digest}}


def compared(run, *others, dtype="int8", score="psnr", first=None):
    results = {"a": first or result()} | dict(zip("bc", others, strict=False))
    (row,) = only(compare.compare_results(results), dtype=dtype, score=score, run=run)
    return row


def test_paired_differences_have_an_interval_and_a_verdict():
    """The faces differ far more than the runs: only a paired test sees the difference."""
    row = compared("b", result(0.5))
    mean = 0.5 * (1 + sum(OFFSETS) / 6)
    assert (row["difference"], row["value"]) == pytest.approx((mean, 27.5 + mean))
    assert 0 < row["low"] < mean < row["high"] and row["verdict"] == "better"
    assert compared("b", result(0.5), score="delta_e2000")["verdict"] == "worse"
    first = compared("a", result(0.5))
    assert (first["verdict"], first["difference"], first["low"]) == (compare.FIRST, None, None)
    equal = compared("c", result(-0.5), result(reverse=True), dtype="fp32", score="ssim")
    assert (equal["difference"], equal["high"], equal["verdict"]) == (0, 0, NOT_SHOWN), "paired by name"


def test_without_the_same_faces_and_dtypes_there_is_no_test():
    other = compared("b", result(0.5, digest="other"))
    assert other["verdict"] == compare.DIFFERENT and other["low"] is None
    assert other["difference"] == pytest.approx(0.5, abs=0.1)
    assert compared("b", result(0.5, count=4), first=result(count=4))["verdict"] == "too few images"
    bf16, int8 = (result(dtypes=("fp32", dtype)) for dtype in ("bf16", "int8"))
    assert compared("b", int8, dtype="bf16", first=bf16)["verdict"] == compare.ABSENT
    alone = compared("b", int8, first=bf16)
    assert alone["verdict"] == compare.NOT_IN_FIRST and alone["value"] == pytest.approx(27.5)
    with pytest.raises(ValueError, match="'a'"):
        compare.compare_results({"a": result()})


def test_faces_by_loss_and_the_worst_ones():
    drops = {"fp32": (9, 9, 9), "bf16": (0.1, 0.3, 0.2), "int8": (0.5, -0.2, 1.0)}
    rows = [
        {"dtype": dtype, "name": name, "psnr_drop": value}
        for dtype, values in drops.items()
        for name, value in zip("abc", values, strict=True)
    ]
    roles = {"c": "loses most", "a": "median loss", "b": "loses least"}
    assert compare.faces_by_loss(rows) == ("int8", roles), "of the dtype that loses most"
    assert compare.worst_faces(rows, "int8", 2) == {"c": "loses 1.000 dB", "a": "loses 0.500 dB"}
    assert list(compare.worst_faces(rows, "bf16", 9)) == ["b", "c", "a"]
    assert compare.faces_by_loss(rows, ["b"])[1] == {"b": "photograph", "c": "loses most"}
    leading = {"b": "gains 0.200 dB", "c": "loses 1.000 dB"}
    assert compare.worst_faces(rows, "int8", 1, ["b"]) == leading
    gain = [row | {"psnr_drop": -1.0 if row["dtype"] == "int8" else 0.0} for row in rows]
    assert compare.faces_by_loss(gain)[0] == "int8", (
        "bf16 is a copy of fp32, though what loses most by its figures"
    )
    assert compare.faces_by_loss([row for row in gain if row["dtype"] != "int8"])[0] == "bf16", "nothing else"
    with pytest.raises(ValueError, match="fp32"):
        compare.faces_by_loss(rows[:3])
    for dtype, count, named in (("int9", 2, "int9.*bf16, fp32, int8"), ("int8", 0, "count=0")):
        with pytest.raises(ValueError, match=named):
            compare.worst_faces(rows, dtype, count)


@pytest.mark.parametrize(("row", "column"), [(30, 50), (0, 0), (63, 63), (63, 0)])
def test_hotspot_holds_the_error_and_stays_inside(row, column):
    error = np.ones((64, 64), np.int16)
    error[row, column] = 200
    x, y = compare.hotspot(error)
    half = compare.ZOOM_SIDE / 2
    assert abs(x - (column + 0.5) / 64) <= half + 0.01 and abs(y - (row + 0.5) / 64) <= half + 0.01
    assert half - 0.01 <= x <= 1 - half + 0.01 and half - 0.01 <= y <= 1 - half + 0.01


def test_face_errors_hold_the_largest_error_of_every_pixel():
    expected, output = np.zeros((2, 2, 2, 3), np.uint8)
    output[0, 1] = (1, 200, 7)
    for pair in ((output, expected), (expected, output)):
        np.testing.assert_array_equal(compare.error_map(*pair), [[0, 200], [0, 0]])
    (face,) = compare.open_face_errors({"b": "worst"}, {"fp32": picture, "int8": brighter}, brighter)
    assert (face.expected == picture("b")).all() and (face.source == brighter("b")).all()
    assert list(face.outputs) == ["int8"] and (face.errors["int8"] == 3).all()
