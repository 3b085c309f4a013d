"""What must hold for every input, tried on inputs that Hypothesis looks for."""

import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow

from gpenlib.architecture import GpenConfig
from gpenlib.architecture.checkpoints import random_network
from gpenlib.compile.calibrate import MagnitudeHistogram
from gpenlib.compile.rounding import LEVELS, activation_steps, along, quantise_weight, weight_scales
from gpenlib.data.faces import Faces, natural_key
from gpenlib.data.pairs import Pairs, distinct_stems, read_pack, write_pack
from gpenlib.export import assert_parity, deploy_form
from gpenlib.export.graphs import example_input
from gpenlib.images import (
    centre_square,
    from_planar,
    from_tensor,
    open_picture,
    read_image,
    resize,
    to_grey,
    to_planar,
    to_tensor,
    write_image,
    write_picture,
)
from gpenlib.jobs import Journal, ahead
from gpenlib.metrics import finite_psnr, ssims, to_lab
from gpenlib.settings import BuildConfig, PhotoSettings, RunSettings, SettingsError

# Equal on every machine and in every order: what fails here fails for the next one, too
settings.register_profile(
    "same", deadline=None, derandomize=True, database=None, max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("same")

sides = st.integers(1, 24)
images = st.tuples(sides, sides).flatmap(lambda s: arrays(np.uint8, (*s, 3)))
scales = st.floats(2.0**-20, 2.0**20, width=32)


# Pictures


@given(images)
def test_an_image_survives_the_way_to_the_network_and_back(image):
    tensor = to_tensor(image)
    assert tensor.dtype == np.float32 and np.abs(tensor).max() <= 1
    assert (from_tensor(tensor)[0] == image).all()
    assert (from_planar(to_planar(image)) == image).all()


@given(arrays(np.float32, (1, 3, 4, 4), elements=st.floats(-4, 4, width=32)))
def test_rounding_is_off_by_half_a_level_and_truncating_by_less_than_one(tensor):
    levels = (np.clip(tensor, -1, 1) * 0.5 + 0.5) * 255
    rounded, truncated = (from_tensor(tensor, how)[0].transpose(2, 0, 1) for how in ("round", "truncate"))
    assert np.abs(rounded - levels).max() <= 0.5 + 1e-4
    assert (levels - truncated).min() >= -1e-4 and (levels - truncated).max() < 1 + 1e-4


@given(images)
def test_grey_and_squares_keep_what_they_should(image):
    grey = to_grey(image)
    assert (grey == to_grey(grey)).all() and (np.ptp(grey, axis=2) == 0).all()
    square = centre_square(image)
    assert square.shape[0] == square.shape[1] == min(image.shape[:2])
    assert (centre_square(square) == square).all()
    small = resize(image, 8)
    assert image.min() <= small.min() and small.max() <= image.max()


@settings(max_examples=30)
@given(st.sampled_from([np.uint8, np.uint16]), st.booleans(), st.booleans(), st.data())
def test_a_png_is_read_as_it_was_written(kind, has_alpha, grey, data):
    shape = data.draw(st.tuples(sides, sides))
    most = int(np.iinfo(kind).max)
    pixels = data.draw(arrays(kind, (*shape, 3), elements=st.integers(0, most)))
    alpha = data.draw(arrays(kind, shape, elements=st.integers(0, most))) if has_alpha else None
    if grey:
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        Pillow.new("L" if grey else "RGB", shape[::-1]).save(f"{folder}/first.png")
        first = open_picture(f"{folder}/first.png")
        again = open_picture(write_picture(f"{folder}/again", first, pixels, alpha))
    assert again.pixels.dtype == kind and (again.pixels == pixels).all()
    assert again.grey == grey or (kind == np.uint16 and has_alpha)  # which is written as RGB with alpha
    assert (again.alpha is None) == (alpha is None) and (alpha is None or (again.alpha == alpha).all())


@given(images, st.sampled_from([".png", ".bmp"]))
def test_an_image_file_without_loss_is_read_as_it_was_written(image, suffix):
    with tempfile.TemporaryDirectory() as folder:
        assert (read_image(write_image(f"{folder}/a{suffix}", image)) == image).all()


@settings(max_examples=15)
@given(st.lists(arrays(np.uint8, (32, 32, 3)), min_size=1, max_size=4), st.sampled_from(["color", "inpaint"]))
def test_a_pack_holds_the_pairs_that_it_was_made_of(faces, task):
    names = [f"face {index}.png" for index in range(len(faces))]
    pairs = Pairs(Faces("drawn", names, faces.__getitem__, str), task, 32)
    with tempfile.TemporaryDirectory() as folder:
        write_pack(folder, pairs)
        pack = read_pack(folder)
        assert list(pack.names) == list(pairs.names)
        for index in range(len(faces)):
            assert (pack.inputs(index) == pairs.inputs(index)).all()
            assert (pack.truths(index) == pairs.truths(index)).all()


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)


@given(st.lists(texts, max_size=8))
def test_stems_differ_and_the_natural_order_is_one(names):
    stems = distinct_stems(names)
    assert len({stem.casefold() for stem in stems}) == len(names)
    keys = [natural_key(name) for name in names]
    assert sorted(names, key=natural_key) == [key[1] for key in sorted(keys)]


@given(images.filter(lambda image: min(image.shape[:2]) >= 11), st.data())
def test_figures_of_quality_are_what_they_must_be(image, data):
    other = data.draw(arrays(np.uint8, image.shape))
    ssim = [ssims([b], a)[0] for a, b in ((image, other), (other, image))]
    assert ssim[0] == pytest.approx(ssim[1], abs=2e-5) and -1 <= ssim[0] <= 1 + 2e-5
    assert ssims([image], image)[0] == pytest.approx(1, abs=2e-5)
    assert finite_psnr(image, other) == finite_psnr(other, image) <= finite_psnr(image, image) == 100
    lab = to_lab(image)
    assert np.isfinite(lab).all() and lab[..., 0].min() >= -1e-3 and lab[..., 0].max() <= 100.001


# Rounding


@given(
    arrays(np.float32, (4, 3, 2, 2), elements=st.floats(-1, 1, width=32)), scales,
    st.sampled_from([0, 1]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_rounded_weight_is_off_by_half_a_step(weight, factor, axis, per_channel, power2):
    weight = weight * np.float32(factor)
    steps = weight_scales(weight, axis, per_channel, power2)
    levels = quantise_weight(weight, steps, axis)
    error = np.abs(weight - levels * along(steps, axis, 4))
    assert (error <= along(steps, axis, 4) * (0.5 + 1e-5 * LEVELS)).all()
    assert np.abs(levels.astype(int)).max() <= LEVELS
    assert per_channel or len(set(steps.tolist())) == 1
    assert not power2 or (np.log2(steps) == np.rint(np.log2(steps))).all()


@given(st.lists(scales, min_size=1, max_size=2), st.booleans())
def test_steps_reach_the_thresholds(thresholds, power2):
    steps = activation_steps(thresholds, power2)
    assert all(LEVELS * step >= t * (1 - 1e-6) for step, t in zip(steps, thresholds, strict=True))
    if power2:
        ratio = np.log2(max(steps) / min(steps))
        assert ratio == pytest.approx(round(ratio), abs=1e-5)


@settings(max_examples=25)
@given(st.lists(arrays(np.float32, 40, elements=st.floats(-1, 1, width=32)), min_size=1, max_size=4), scales)
def test_a_histogram_counts_all_in_any_order_and_its_thresholds_lie_inside(parts, factor):
    parts = [part * np.float32(factor) for part in parts]
    one, two = MagnitudeHistogram(), MagnitudeHistogram()
    for histogram, order in ((one, parts), (two, parts[::-1])):
        for part in order:
            histogram.update(part)
    largest = max(float(np.abs(part).max()) for part in parts)
    assert one.largest == two.largest == largest
    assert one.counts.sum() == two.counts.sum() == 40 * len(parts)
    if largest > 0:
        for mode in ("max", "percentile", "mse", "kl_divergence"):
            assert 0 < one.threshold(mode) <= largest * (1 + 1e-6)


@settings(max_examples=12)
@given(
    st.sampled_from([(32, 32), (32, 64), (64, 64), (32, 128)]), st.integers(1, 2),
    st.sampled_from([1 / 64, 1 / 32, 3 / 64, 1 / 16]), st.integers(0, 10**6), st.integers(1, 3),
)  # fmt: skip
def test_the_deploy_form_is_the_training_form(sizes, multiplier, narrow, seed, batch):
    config = GpenConfig(*sizes, multiplier, narrow)
    model = random_network(config, seed)
    image = example_input(config, batch)
    with torch.inference_mode():
        expected, output = model(image).numpy(), deploy_form(model)(image).numpy()
    assert_parity(expected, output, "deploy form", 1e-4)


# Settings

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@settings(max_examples=300)
@given(st.sampled_from([RunSettings, PhotoSettings, BuildConfig]), st.data())
def test_any_value_is_taken_or_refused_in_words(kind, data):
    keys = st.sampled_from([*kind.model_fields, "unknown"])
    mapping = data.draw(st.dictionaries(keys, values, max_size=3))
    try:
        first = kind.parse(mapping)
    except SettingsError as error:
        assert any(key in str(error) for key in mapping) and len(str(error)) < 4000
    else:
        assert kind.parse(first.model_dump(exclude_unset=True)) == first


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dataset_size": st.integers(1, 1000), "seed": st.integers(0, 1000),
            "max_drop_db": st.floats(0, 9),
            "save_npz": st.booleans(), "dtype": st.sampled_from(["fp32", "int8"]),
            "perf_threads": st.lists(st.integers(1, 4), min_size=1, max_size=3),
            "dtypes": st.lists(st.sampled_from(["fp32", "bf16"]), min_size=1, max_size=2, unique=True),
        },
    )
)  # fmt: skip
def test_text_means_what_the_value_means(mapping):
    """``papermill -r`` passes text, ``-p`` a value, lists come with commas or from YAML."""
    as_text = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in mapping.items()
    }
    again = yaml.safe_load(yaml.safe_dump(mapping))
    assert RunSettings.parse(mapping) == RunSettings.parse(as_text) == RunSettings.parse(again)


# Long tasks


@given(st.lists(st.integers(), max_size=30), st.integers(0, 4), st.integers(1, 4))
def test_steps_on_threads_are_a_map(items, depth, workers):
    assert list(ahead(ahead(items, lambda x: x + 1, depth), lambda x: 2 * x, depth, workers)) == [
        2 * (x + 1) for x in items
    ]


@given(
    st.dictionaries(texts, st.dictionaries(st.text(string.ascii_letters, max_size=4), plain), max_size=6),
    st.integers(0, 400),
)
def test_a_journal_that_is_cut_anywhere_holds_the_lines_before(entries, cut):
    entries = {
        name: {key: value for key, value in row.items() if value == value and value not in (np.inf, -np.inf)}
        for name, row in entries.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        for name, row in entries.items():
            journal.add(name, row, [])
        (path,) = [*Path(folder).iterdir()] or [None]
        if path is not None:
            whole = path.read_bytes()
            path.write_bytes(whole[: max(0, len(whole) - cut)])
            kept = path.read_bytes().count(b"\n")
            held = list(Journal(Path(folder)).finished.items())
            # A line whose line feed alone is lost is whole
            assert held in (list(entries.items())[:kept], list(entries.items())[: kept + 1])
