"""Figures of faces: one face, many, the even colour's baseline, npz files, faces to look at, the command."""

import csv
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest

from gpenlib import metrics
from gpenlib.cluster.score import main
from gpenlib.data.faces import DataError, Faces, embedded_faces
from gpenlib.data.pairs import Pairs, read_pack, write_pack
from gpenlib.files import write_json
from gpenlib.images import from_levels, from_tensor, read_image, resize, to_grey, to_levels, to_tensor
from gpenlib.infer import scoring
from gpenlib.infer.scoring import (
    BASELINE_MEANS,
    MEANS,
    OUTPUT_MEANS,
    data_chroma,
    evaluate_npz,
    output_paths,
    read_output_npz,
    score,
    score_baselines,
)
from gpenlib.metrics import PSNR_CEILING, mean_colour, psnr, ssim, to_lab

COLOURS = ((200, 120, 100), (120, 160, 90), (90, 110, 180))
ROWS = [{"name": name, "psnr": value} for name, value in zip("abcde", (3, 5, 1, 4, 2), strict=True)]


@pytest.fixture(scope="module")
def truth():
    return embedded_faces(1, 64).read(0)


def as_output(image):
    return to_tensor(image)[0]


# One face


def pairs_of(truth, **sizes):
    return Pairs(Faces("one", ["0.png"], lambda _: truth, lambda _: ""), "color", len(truth), **sizes)


def assert_scores(row, answer, truth, suffix=""):
    lab, truth_lab = to_lab(answer), to_lab(truth)
    values = [psnr(answer, truth), ssim(answer, truth)]
    values += [metrics.delta_e2000(lab, truth_lab), metrics.chroma_error(lab, truth_lab)]
    values.append(metrics.colour_shift(answer, truth))
    for name, value in zip(scoring.SCORES, values, strict=True):
        assert row[f"{name}{suffix}"] == pytest.approx(value, abs=1e-6), name + suffix


def test_an_output_is_judged_by_every_score(truth):
    levels = to_levels(as_output(truth)[None] * 0.9)[0]
    row = score(levels, truth)
    assert set(row) == set(OUTPUT_MEANS)
    assert_scores(row, from_levels(levels), truth)


def test_every_baseline_is_judged_by_every_score(truth):
    calibration = even_pairs(*COLOURS)
    (row,) = score_baselines(pairs_of(truth), calibration).rows
    assert set(row) == set(BASELINE_MEANS)
    assert_scores(row, to_grey(truth), truth, "_input")
    _, (chroma,) = data_chroma(pairs_of(truth), calibration)
    assert_scores(row, scoring.coloured_with(to_grey(truth), chroma), truth, "_chroma_baseline")
    assert row["sharpness_truth"] == metrics.sharpness(truth)


def test_a_smaller_input_is_enlarged(truth):
    faces = pairs_of(truth)
    small = Mock(names=faces.names, inputs=lambda i: resize(truth, 32), truths=faces.truths, __len__=len)
    small.__len__ = lambda _: 1
    (row,) = score_baselines(small, even_pairs(*COLOURS)).rows
    assert row["psnr_input"] == psnr(resize(resize(truth, 32), 64), truth)


def test_a_perfect_answer_scores_finite(truth):
    row = score(truth.astype(np.float32), truth)
    assert row["psnr"] == PSNR_CEILING
    assert row["ssim"] == pytest.approx(1.0)
    assert row["colour_shift"] == row["delta_e2000"] == row["chroma_error"] == 0.0
    row |= score_baselines(pairs_of(truth)).rows[0]
    assert set(scoring.summarise([row])) == {f"{name}_mean" for name in MEANS}  # no times, no mean
    times = {10.0: 1.0, 20.0: 2.0, 30.0: 90.0}
    summary = scoring.summarise([{**row, "psnr": value, "ms": ms} for value, ms in times.items()])
    assert (summary["psnr_mean"], summary["ms_per_image"]) == (20.0, 2.0)


def test_each_rounding_scores_its_own_image():
    even, white = (np.full((32, 32, 3), level, np.uint8) for level in (100, 255))
    row = score(even + np.float32(0.8), even)  # 100.8: rounds to 101, truncates to 100
    assert row["psnr"] == pytest.approx(20 * np.log10(255), abs=1e-2)
    assert row["psnr_truncated"] == PSNR_CEILING and row["ssim"] < row["ssim_truncated"]
    row = score(to_levels(as_output(white)[None] * 1.5)[0], white)  # out of range: clipped in either rounding
    assert row["psnr"] == row["psnr_truncated"] == PSNR_CEILING


# The baseline of one even colour


def even_pairs(*colours):
    pictures = [np.full((32, 32, 3), colour, np.uint8) for colour in colours]
    names = [f"{index}.png" for index in range(len(pictures))]
    return Pairs(Faces("even", names, pictures.__getitem__, names.__getitem__), "color", 32)


def chromas_of(*colours):
    return np.array([mean_colour(to_lab(np.full((8, 8, 3), colour, np.uint8)))[1:] for colour in colours])


def test_chroma_is_the_mean_of_the_calibration_truths():
    source, chromas = data_chroma(even_pairs(*COLOURS[1:]), even_pairs(*COLOURS[:2]))
    assert source == "mean of 2 calibration truths"
    np.testing.assert_allclose(chromas, [chromas_of(*COLOURS[:2]).mean(axis=0)] * 2, atol=1e-4)


@pytest.mark.parametrize("calibration", [None, even_pairs(), even_pairs((80, 80, 80), (190, 190, 190))])
def test_without_coloured_calibration_it_is_that_of_the_other_faces(calibration):
    source, chromas = data_chroma(even_pairs(*COLOURS), calibration)
    assert "other faces" in source
    a, b, c = chromas_of(*COLOURS)
    np.testing.assert_allclose(chromas, [(b + c) / 2, (a + c) / 2, (a + b) / 2], atol=1e-4)
    assert data_chroma(even_pairs(COLOURS[0]), calibration)[1] == ((0.0, 0.0),)  # alone: no colour


def test_lightness_stays_and_chroma_is_the_given_one(truth):
    grey = to_grey(truth)
    np.testing.assert_array_equal(scoring.coloured_with(grey, (0.0, 0.0)), grey)
    lab = to_lab(scoring.coloured_with(grey.clip(60, 190), (12.0, 18.0)))
    np.testing.assert_allclose(lab[..., 0], to_lab(grey.clip(60, 190))[..., 0], atol=0.5)
    np.testing.assert_allclose(lab[..., 1], 12, atol=1.0)
    np.testing.assert_allclose(lab[..., 2], 18, atol=1.5)


# Many faces through a runtime


@pytest.fixture(scope="module")
def saved(fp32, pack, tmp_path_factory):
    """Rows at batch size 1, and the folder of the images in ``png`` and of the outputs in ``npz``."""
    folder = tmp_path_factory.mktemp("restored")
    return scoring.restore_pairs(fp32, pack, 1, folder / "png", folder / "npz"), folder


def test_rows_are_scores_of_the_saved_images(saved, pack, fp32, faces):
    rows, folder = saved
    assert [row["name"] for row in rows] == list(pack.names)
    assert sorted(path.stem for path in (folder / "png").iterdir()) == sorted(pack.names)
    for index, row in enumerate(rows):
        assert row["ms"] > 0 and all(np.isfinite(row[name]) for name in MEANS)
        image, truth = read_image(folder / "png" / f"{row['name']}.png"), pack.truths(index)
        np.testing.assert_array_equal(image, from_tensor(fp32(faces[index : index + 1]))[0])
        assert (row["psnr"], row["ssim"]) == (psnr(image, truth), ssim(image, truth))


def test_impossible_batches_and_outputs_are_refused(fp32, pack):
    for batch_size in (0, 1.5):
        with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
            scoring.restore_pairs(fp32, pack, batch_size)
    broken = Mock(dtype="fp32", return_value=np.full((1, 3, 64, 64), np.nan, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        scoring.restore_pairs(broken, pack.take([0]))


# Outputs in npz files


@pytest.fixture
def folder(tmp_path, saved):
    """A copy of the outputs that were saved."""
    return shutil.copytree(saved[1] / "npz", tmp_path / "npz")


def test_files_hold_the_outputs_bit_for_bit_and_their_figures_are_those_of_the_direct_path(
    folder, pack, saved, fp32, faces
):
    paths = output_paths(folder, pack)
    assert [path.name for path in paths] == [f"{i:06d}_{name}.npz" for i, name in enumerate(pack.names)]
    for index, (path, name) in enumerate(zip(paths, pack.names, strict=True)):
        np.testing.assert_array_equal(read_output_npz(path, name, 64), fp32(faces[index : index + 1])[0])
        with np.load(path) as archive:
            assert set(archive.files) == {"output_0", "name"}
    times = [{"ms": row["ms"]} for row in saved[0]]
    assert [row | ms for row, ms in zip(evaluate_npz(folder, pack), times, strict=True)] == saved[0]


def test_files_that_do_not_belong_are_named(folder, pack, faces):
    surplus = scoring.write_output_npz(folder, 5, "stranger", faces[0])
    with pytest.raises(DataError, match=surplus.name):
        output_paths(folder, pack)
    surplus.unlink()
    first, second = output_paths(folder, pack)[:2]
    kept, content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content)  # exchanged contents
    with pytest.raises(DataError, match=f"{first.name}: holds the output of '{pack.names[1]}'"):
        evaluate_npz(folder, pack)
    first.write_bytes(kept)
    first.rename(folder / f"000001_{pack.names[0]}.npz")  # another order
    with pytest.raises(DataError, match=f"{first.name}: .*is missing; in its place.*another order"):
        output_paths(folder, pack)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no npz file"):
        output_paths(folder, pack)


@pytest.mark.parametrize(
    ("shape", "dtype", "value", "held"),
    [
        ((3, 64, 64), "float64", 0, "float64"), ((64, 64, 3), "float32", 0, r"\(64, 64, 3\)"),
        ((3, 64, 64), "float32", np.nan, "NaN or infinity"),
        ((3, 32, 32), "float32", 0, r"\(3, 32, 32\), expected float32 \[3, 64, 64\]"),
    ],
)  # fmt: skip
def test_other_arrays_are_refused(tmp_path, shape, dtype, value, held):
    path, array = tmp_path / "000000_a.npz", np.full(shape, value, dtype)
    np.savez(path, output_0=array, name=np.array("a"))
    with pytest.raises(DataError, match=f"000000_a.npz: output_0 .*{held}"):
        read_output_npz(path, "a", 64)
    if shape != (3, 32, 32):
        with pytest.raises(DataError, match="output_0"):
            scoring.write_output_npz(tmp_path, 0, "a", array)


def test_files_without_the_keys_or_damaged_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, output_0=np.zeros((3, 64, 64), np.float32))
    with pytest.raises(DataError, match="a.npz: holds output_0, expected also name"):
        read_output_npz(path, "a", 64)
    np.save(tmp_path / "b.npy", np.zeros(3))
    for damaged in (path.read_bytes()[:100], b"", (tmp_path / "b.npy").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="a.npz: not a readable npz file"):
            read_output_npz(path, "a", 64)


def test_files_of_the_vendors_tool_go_by_their_order(tmp_path, pack, faces):
    for index, output in enumerate(faces):
        extra = np.array([{}], object)  # what else a file holds is not read
        np.savez(tmp_path / f"output_{index:06d}.npz", output_0=output[None], other=extra)
    with pytest.raises(DataError, match="is missing"):
        evaluate_npz(tmp_path, pack)
    paths = output_paths(tmp_path, pack, named=False)
    np.testing.assert_array_equal(read_output_npz(paths[3], None, 64), faces[3])
    assert [row["name"] for row in evaluate_npz(tmp_path, pack, named=False)] == list(pack.names)
    paths[4].unlink()
    with pytest.raises(DataError, match="4 npz files for 5 images"):
        output_paths(tmp_path, pack, named=False)


# Faces to look at


def test_rank_and_the_three_that_are_shown():
    ranks = {order: scoring.rank(ROWS, order, 2) for order in scoring.ORDERS}
    assert ranks == {"best": [1, 3], "worst": [2, 4], "median": [0, 4]}
    assert scoring.rank([], "best", 3) == [] and scoring.rank(ROWS[:2], "best", 9) == [1, 0]
    assert list(scoring.best_median_worst(ROWS).items()) == [(1, "best"), (0, "median"), (2, "worst")]
    assert scoring.best_median_worst(ROWS[:2]) == {1: "best", 0: "worst"}, "no face twice"


# The command


def test_command_prints_means_writes_rows_and_names_a_missing_file(folder, tmp_path, capsys):
    """With the calibration beside the pack, as 02_data lays them out and 04_infer takes it."""
    for name, count in (("evaluation", 5), ("calibration", 2)):
        write_pack(tmp_path / name, Pairs(embedded_faces(count, 64), "color", 64))
    assert main([str(folder), str(tmp_path / "evaluation")]) == 0
    pack, calibration = (read_pack(tmp_path / name) for name in ("evaluation", "calibration"))
    rows = evaluate_npz(folder, pack, baselines=score_baselines(pack, calibration))
    printed, mean = capsys.readouterr().out, np.mean([row["psnr"] for row in rows])
    assert f"{mean:.4f}" in printed and "mean of 2 calibration truths" in printed
    results = json.loads((tmp_path / "rows.json").read_text())
    assert results["rows"] == rows and results["psnr_mean"] == pytest.approx(mean)
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [float(row["psnr"]) for row in csv.DictReader(file)] == [row["psnr"] for row in rows]
    write_json(tmp_path / "manifest.json", {})
    assert main([str(folder), str(tmp_path / "evaluation")]) == 0
    beside = tmp_path.with_name(f"{tmp_path.name}-scores")
    assert (beside / "rows.json").is_file(), "a stage's folder takes no other files"
    missing = sorted(folder.iterdir())[2]
    missing.unlink()
    assert main([str(folder), str(pack.folder), "--out", str(tmp_path / "none")]) == 1
    assert missing.name in capsys.readouterr().err and not (tmp_path / "none").exists()
