"""The streaming pipeline: rows, saved images, batch sizes, the do-nothing baseline."""

import numpy as np
import pytest

from gpenlib.data.pairs import Pack
from gpenlib.images import from_tensor, read_image
from gpenlib.infer.scoring import MEANS, output_paths, read_output_npz, restore_pack, summarise
from gpenlib.metrics import psnr, ssim


@pytest.fixture(scope="module")
def saved(fp32, pack, tmp_path_factory):
    """Rows at batch size 1 and the folder of the images."""
    folder = tmp_path_factory.mktemp("restored")
    return restore_pack(fp32, pack, 1, folder), folder


def test_one_row_per_image_in_pack_order(saved, pack):
    rows, _ = saved
    assert [row["name"] for row in rows] == pack.names
    for row in rows:
        assert row["ms"] > 0
        assert all(np.isfinite(row[name]) for name in MEANS)


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_scores_do_not_depend_on_the_batch_size(batch_size, fp32, pack, saved):
    rows = restore_pack(fp32, pack, batch_size)
    for row, expected in zip(rows, saved[0], strict=True):
        for name in MEANS:
            assert row[name] == pytest.approx(expected[name], abs=2e-3), name


def test_saved_images_are_the_rounded_outputs(saved, fp32, pack, faces):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.png" for name in pack.names)
    for index, name in enumerate(pack.names):
        expected = from_tensor(fp32(faces[index : index + 1]))[0]
        np.testing.assert_array_equal(read_image(folder / f"{name}.png"), expected)


def test_scores_are_those_of_the_saved_images(saved, pack):
    rows, folder = saved
    for index, row in enumerate(rows):
        output, truth = read_image(folder / f"{row['name']}.png"), pack.truths(index)
        assert row["psnr"] == psnr(output, truth)
        assert row["ssim"] == ssim(output, truth)


def test_baseline_is_the_input_scored_as_if_it_were_the_answer(saved, pack):
    for index, row in enumerate(saved[0]):
        assert row["psnr_input"] == psnr(pack.inputs(index), pack.truths(index))
        assert row["ssim_input"] == ssim(pack.inputs(index), pack.truths(index))


def test_nothing_is_written_unless_asked(fp32, pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    restore_pack(fp32, pack, 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(batch_size, fp32, pack):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        restore_pack(fp32, pack, batch_size)


def test_output_that_is_not_finite_is_refused(fp32, pack):
    class Broken:
        dtype = "fp32"

        def __call__(self, batch):
            return np.full_like(fp32(batch), np.nan)

    with pytest.raises(ValueError, match="NaN"):
        restore_pack(Broken(), Pack(pack.folder, pack.paths[:1]))


def test_npz_files_hold_the_unrounded_outputs(fp32, pack, faces, tmp_path):
    restore_pack(fp32, pack, 2, npz_to=tmp_path)
    for index, path in enumerate(output_paths(tmp_path, pack)):
        output = read_output_npz(path, pack.names[index], 64)
        np.testing.assert_allclose(output, fp32(faces[index : index + 1])[0], atol=1e-5)


def test_summary_is_means_and_the_median_time(saved):
    rows = [dict(saved[0][0], psnr=10.0, ms=1.0), dict(saved[0][0], psnr=20.0, ms=2.0)]
    rows.append(dict(saved[0][0], psnr=30.0, ms=90.0))
    summary = summarise(rows)
    assert summary["psnr_mean"] == 20.0
    assert summary["ms_per_image"] == 2.0
    assert set(summary) == {f"{name}_mean" for name in MEANS} | {"ms_per_image"}
