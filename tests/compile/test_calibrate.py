"""Thresholds against brute force; the pass over the images; its cache; the images themselves."""

import itertools
import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest

from gpenlib.architecture.checkpoints import TINY
from gpenlib.compile.calibrate import (
    BINS,
    LEVELS,
    CalibrationError,
    MagnitudeHistogram,
    cache_key,
    calibrate,
    candidate_thresholds,
    kl_divergence,
    load_calibration,
    open_calibration_data,
    sample_step,
    save_calibration,
)
from gpenlib.data import make_pair, open_folder
from gpenlib.data.pairs import Pairs, read_pack, write_pack
from gpenlib.images import resize, to_tensor
from gpenlib.settings import MODES, BuildConfig


def heavy_tailed(count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Mostly small values and a few large ones, as activations are."""
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=count) * rng.choice([0.3, 1.0, 3.0], size=count)).astype(np.float32)


def filled(values: np.ndarray, parts: int = 1) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for part in np.array_split(values, parts):
        histogram.update(part)
    return histogram


def quantisation_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / LEVELS
    restored = np.clip(np.rint(values / step), -LEVELS, LEVELS) * step
    return float(np.square(restored - values).mean())


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9])
def test_percentile_agrees_with_sorting(percentile):
    values = heavy_tailed(20_011)  # no percentile falls between two values
    histogram = filled(values, parts=5)
    exact = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert abs(histogram.threshold("percentile", percentile) - exact) <= histogram.limit / BINS


def test_mse_agrees_with_trying_every_candidate_on_the_raw_values():
    values = heavy_tailed()
    candidates = candidate_thresholds(float(np.abs(values).max()))
    errors = [quantisation_error(values, float(t)) for t in candidates]
    threshold = filled(values).threshold("mse")
    assert quantisation_error(values, threshold) <= min(errors) * 1.01
    assert threshold < np.abs(values).max()  # clipping pays on a heavy tail
    uniform = np.random.default_rng(1).uniform(-1, 1, 50_000).astype(np.float32)
    assert filled(uniform).threshold("mse") > 0.97  # and not without one


def test_kl_divergence_agrees_with_a_plain_loop():
    histogram = filled(heavy_tailed())
    counts, width = histogram.counts, histogram.limit / BINS
    best = (np.inf, 0.0)
    for threshold in candidate_thresholds(histogram.largest):
        used = min(max(int(np.ceil(threshold / width - 1e-9)), LEVELS + 1), len(counts))
        reference = counts[:used].copy()
        reference[-1] += counts[used:].sum()
        spread = np.zeros(used)
        for level in range(LEVELS + 1):
            bins = [b for b in range(used) if b * (LEVELS + 1) // used == level and counts[b] > 0]
            for b in bins:
                spread[b] = sum(counts[c] for c in bins) / len(bins)
        divergence = kl_divergence(reference, spread)
        if divergence < best[0]:
            best = (divergence, used * width)
    assert histogram.threshold("kl_divergence") == pytest.approx(min(best[1], histogram.largest))


def test_kl_divergence():
    p = np.array([1.0, 2.0, 3.0])
    assert kl_divergence(p, 10 * p) == pytest.approx(0.0)
    assert kl_divergence(p, np.ones(3)) == pytest.approx(sum(a / 6 * np.log(a / 2) for a in p))


DOUBLING = """
<ir_version: 9, opset_import: ["": 18]>
doubling (float[n, 3, 4, 4] input) => (float[n, 3, 4, 4] output) {
    middle = Add(input, input)
    output = Mul(middle, middle)
}"""


@pytest.fixture(scope="module")
def doubling_model():
    return onnx.parser.parse_model(DOUBLING)


def flat(value: float) -> np.ndarray:
    return np.full((1, 3, 4, 4), value, np.float32)


def test_one_pass_records_ranges_means_and_outputs(doubling_model):
    first = flat(0.25)
    first[:, 1] = 1.0  # one channel of its own
    seen = calibrate(doubling_model, ["middle", "input"], ["output"], iter([first, flat(-0.75), flat(0.5)]))
    assert seen.images == 3
    assert seen.thresholds("max", 100.0) == {"middle": 2.0, "input": 1.0}
    assert seen.histograms["middle"].counts.sum() == 3 * 48
    np.testing.assert_allclose(seen.input_means["input"], [0.0, 0.25, 0.0])
    np.testing.assert_allclose(seen.output_ranges["output"].low, [0.25, 1.0, 0.25])
    np.testing.assert_allclose(seen.output_ranges["output"].high, [2.25, 4.0, 2.25])


def test_tensors_that_give_no_range_are_named(doubling_model):
    """One half of a layer's input may be zero: encoder features that do not exist at this size."""
    seen = calibrate(doubling_model, ["middle", "input"], [], iter([flat(0.0)]))
    assert seen.thresholds("mse", 99.0) == {"middle": 0.0, "input": 0.0}
    with pytest.raises(CalibrationError, match="no calibration image"):
        calibrate(doubling_model, ["middle"], [], iter([]))
    with pytest.raises(CalibrationError, match="middle is not finite on calibration image 1"):
        calibrate(doubling_model, ["middle"], [], iter([flat(1.0), flat(np.inf)]))
    with pytest.raises(CalibrationError, match="middle, input"):
        seen.check_alive([("middle", "input")])
    seen.histograms["input"].update(flat(0.5))
    seen.check_alive([("middle", "input")])
    with pytest.raises(CalibrationError, match="middle$"):
        seen.check_alive([("input",), ("middle",)])


def rounding_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / LEVELS
    return float(np.square(np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values).mean())


def test_of_large_maps_a_part_of_the_values_is_counted_and_the_largest_is_exact():
    whole, part = MagnitudeHistogram(), MagnitudeHistogram()
    value = np.random.default_rng(0).standard_normal((1, 64, 512, 512), dtype=np.float32)
    value[0, 1, 3, 3] = 8.0  # on no row or column that is taken
    step = sample_step(64, 512, 512)
    few = value[:, :, ::step, ::step]
    assert few.shape == (1, 64, 103, 103) and 8.0 not in few
    assert sample_step(64, 128, 128) == sample_step(512, 32, 32) == 1  # smaller maps are taken whole
    whole.update(value)
    part.update(few, 8.0)
    assert part.threshold("max") == whole.threshold("max") == 8.0
    assert part.threshold("percentile", 99.0) == pytest.approx(whole.threshold("percentile", 99.0), rel=0.03)
    least, error = (rounding_error(value, seen.threshold("mse")) for seen in (whole, part))
    assert error < 1.25 * least  # the one value that is not counted is clipped
    values = {tuple(index) for index in np.argwhere(np.isin(value[0, 0], few[0, 0]))}
    assert {(row % 4, column % 4) for row, column in values} == {*itertools.product(range(4), repeat=2)}


def test_the_cache_gives_back_what_was_stored(doubling_model, tmp_path):
    seen = calibrate(doubling_model, ["middle"], ["output"], iter([flat(0.3), flat(-0.8)]))
    path = tmp_path / "cache" / "key.npz"
    assert load_calibration(path) is None
    save_calibration(seen, path)
    again = load_calibration(path)
    assert again is not None and again.images == 2
    for mode in MODES:
        assert again.thresholds(mode, 99.0) == seen.thresholds(mode, 99.0)
    np.testing.assert_array_equal(again.input_means["middle"], seen.input_means["middle"])
    np.testing.assert_array_equal(again.output_ranges["output"].high, seen.output_ranges["output"].high)
    np.testing.assert_array_equal(again.picture_means, seen.picture_means)


@pytest.mark.parametrize("damage", ["truncated", "other arrays", "another's"])
def test_a_cache_file_that_is_damaged_or_anothers_is_not_used(doubling_model, tmp_path, caplog, damage):
    caplog.set_level(logging.WARNING)
    path = tmp_path / "key.npz"
    save_calibration(calibrate(doubling_model, ["middle"], ["output"], iter([flat(0.3)])), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "other arrays":
        np.savez(path, counts=np.zeros(4))
    else:  # a copy under another key: other images, other preprocessing
        path = path.rename(tmp_path / "other.npz")
    assert load_calibration(path) is None
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("counts/middle", lambda old: old * np.nan),
        ("counts/middle", lambda old: old[:7]),
        ("counts/middle", lambda old: old.astype("S9")),
        ("range/middle", lambda old: -old),
        ("mean/middle", lambda old: old[None]),
        ("mean/middle", lambda old: np.array([{}], object)),
        ("output/output", lambda old: old[:1]),
        ("picture_means", lambda old: old[:, :2]),
        ("picture_means", lambda old: old[:0]),
    ],
)
def test_a_cache_file_with_wrong_values_is_not_used(doubling_model, tmp_path, caplog, name, change):
    path = tmp_path / "key.npz"
    save_calibration(calibrate(doubling_model, ["middle"], ["output"], iter([flat(0.3)])), path)
    assert load_calibration(path, ["middle"], ["output"]) is not None
    assert load_calibration(path, ["middle", "other"], ["output"]) is None
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {name: change(arrays[name])})
    assert load_calibration(path) is None
    assert str(path) in caplog.text


def data_of(network=TINY, calibration=None, **dataset):
    return open_calibration_data(BuildConfig.parse({"dataset": dataset}).dataset, network, calibration)


def test_every_part_of_the_key_counts(picture_folder):
    """Model, pictures, task, both sizes, number of images and operators."""
    grey = {"type": "CvtColor", "code": "COLOR_RGB2GRAY"}
    folder = str(picture_folder(3))
    two = {"get_data_num": 2}
    cases = [
        data_of(path=folder),
        data_of(path=folder, task="inpaint"),
        data_of(path=folder, sampler=two),
        data_of(path=folder, process_ops=[{"type": "DecodeImage"}, grey, {"type": "Resize"}]),
        data_of(replace(TINY, out_size=128), path=folder),
        data_of(replace(TINY, in_size=32, out_size=32), path=folder),
        data_of(),
    ]
    keys = [cache_key("model", data.chosen.digest(), data.preprocessing()) for data in cases]
    keys.append(cache_key("other", cases[0].chosen.digest(), cases[0].preprocessing()))
    assert len(set(keys)) == len(keys)
    again = data_of(path=folder)
    assert cache_key("model", again.chosen.digest(), again.preprocessing()) == keys[0]


@pytest.mark.parametrize("task", ["color", "restore"])
@pytest.mark.parametrize("out_size", [64, 128])
def test_pictures_are_degraded_by_the_task_at_the_size_of_the_output(picture_folder, task, out_size):
    """For a super-resolution network as well: there the degradation used to act on the small picture."""
    folder = picture_folder(4)
    sampler = {"get_data_num": 3}
    data = data_of(replace(TINY, out_size=out_size), path=str(folder), task=task, sampler=sampler)
    for index, (image, (_, truth)) in enumerate(zip(data.calibration(), data.pairs(3), strict=True)):
        picture = open_folder(folder).read(index)
        degraded, _ = make_pair(picture, task, out_size, seed=index)
        assert image.dtype == np.float32 and np.array_equal(image, to_tensor(resize(degraded, 64)))
        assert np.array_equal(truth, resize(picture, out_size)) and np.ptp(truth, axis=2).any()
    (image,) = data.held_out()
    assert image.shape == (1, 3, 64, 64) and (task != "color" or not np.ptp(image, axis=1).any())


def test_folder_pack_and_pairs_of_a_super_resolution_network_are_alike(picture_folder, tmp_path):
    network = replace(TINY, out_size=128)
    folder = picture_folder(4)
    pairs = Pairs(open_folder(folder).take(range(3)), "restore", 64, 128, seed=())
    write_pack(tmp_path / "pack", pairs)
    sources = [
        data_of(network, path=str(folder), task="restore", sampler={"get_data_num": 3}),
        data_of(network, path=str(tmp_path / "pack"), task="restore"),
        data_of(network, pairs, path="/nowhere"),
        data_of(network, read_pack(tmp_path / "pack")),
    ]
    first, *others = ([*data.calibration()] for data in sources)
    for images in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, images, strict=True))
    truths = [[truth for _, truth in data.pairs(9)] for data in sources]
    assert all(np.array_equal(a, b) for other in truths for a, b in zip(truths[0], other, strict=True))
    held_out = [len([*data.held_out()]) for data in sources]
    assert held_out == [1, 4, 4, 4], "the rest of a folder, or else embedded faces"
