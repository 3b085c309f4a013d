"""Faces drawn from a prior: the same for the same number, whatever else is asked for."""

import numpy as np
import pytest
import torch

from gpenlib import run as stages
from gpenlib.architecture import CheckpointError, Generator, load_generator, save_checkpoint
from gpenlib.architecture.checkpoints import TINY, load_weights, random_network
from gpenlib.architecture.inspect import draw_latents, generate, per_layer, to_pictures
from gpenlib.data.faces import (
    NOISE,
    TRUNCATION,
    DataError,
    embedded_faces,
    made_here,
    open_faces,
    prior_faces,
)
from gpenlib.images import write_image
from gpenlib.settings import OUTPUTS_VARIABLE


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(2)
    return save_checkpoint(Generator(TINY), tmp_path_factory.mktemp("prior") / "mine.safetensors")


@pytest.fixture(scope="module")
def source(file):
    return open_faces(f"prior:{file}", 3)


def test_faces_depend_on_their_number_alone(file, source):
    assert len(source.names) == 3
    more = open_faces(f"prior:{file}", 5)
    for index in range(3):
        face = source.read(index)
        assert (face.dtype, face.shape) == (np.uint8, (64, 64, 3))
        assert np.array_equal(face, more.read(index))
        assert (source.names[index], source.digest(index)) == (more.names[index], more.digest(index))
    assert len({more.digest(index) for index in range(5)}) == len(set(more.names)) == 5
    assert not np.array_equal(source.read(0), source.read(1))
    with pytest.raises(IndexError, match="there are 3"):
        source.read(3)


def test_latents_are_truncated_and_noise_is_reduced(file, source):
    prior, whole = load_generator(file), prior_faces(str(file), 1, truncation=1.0, noise=1.0)
    for each, truncation, noise in ((source, TRUNCATION, NOISE), (whole, 1.0, 1.0)):
        w = draw_latents(prior, 1, 0, truncation)
        expected = to_pictures(generate(prior, per_layer(prior, w), 0, noise))[0]
        assert np.abs(each.read(0).astype(int) - expected).max() <= 1
    assert not np.array_equal(source.read(0), whole.read(0))
    assert source.digest(0) != whole.digest(0), "another truncation, other pixels"


def test_label_says_in_distribution(source):
    assert "mine" in source.label and "in-distribution" in source.label


@pytest.mark.parametrize("wrong", [{"count": 0}, {"truncation": 0.0}, {"truncation": 1.5}, {"noise": -0.1}])
def test_out_of_range(file, wrong):
    values = {"name": str(file), "count": 1} | wrong
    with pytest.raises(DataError, match=r"count=.*truncation=.*allowed"):
        prior_faces(**values)


def test_what_else_a_data_dir_may_be(tmp_path, source):
    with pytest.raises(DataError, match=r"nothing\.safetensors does not exist"):
        open_faces(f"prior:{tmp_path}/nothing.safetensors", 1)
    write_image(tmp_path / "a.png", source.read(0))
    assert open_faces(str(tmp_path), 1).names == ["a.png"]
    assert open_faces("embedded", 3, 64).digest(2) == embedded_faces(3, 64).digest(2)
    with pytest.raises(DataError, match="no such folder"):
        open_faces(str(tmp_path / "nowhere"), 1)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        open_faces(f"prior:{tmp_path}/bad.safetensors", 1)


def test_without_data_dir_the_photograph_comes_before_samples_of_the_shipped_prior():
    faces = open_faces("", 3, 64)
    assert list(faces.names) == ["astronaut_0000.png", "prior_0000.png", "prior_0001.png"]
    assert "photograph" in faces.label and "demo-prior" in faces.label and "in-distribution" in faces.label
    assert np.array_equal(faces.read(0), embedded_faces(1, 64).read(0))
    samples = open_faces("prior", 2)
    assert "demo-prior" in samples.label
    assert np.array_equal(faces.read(2), samples.read(1)) and faces.digest(2) == samples.digest(1)
    assert open_faces(None, 1, 64).names == ["astronaut_0000.png"]
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="there are 3"):
            faces.read(wrong)


def test_a_prior_is_no_restoring_network():
    with pytest.raises(CheckpointError, match="is a GAN prior.*data_dir=prior.*demo-color") as caught:
        load_weights("demo-prior")
    assert "demo-prior, " not in str(caught.value), "it is not offered as a choice"


@pytest.mark.parametrize("data_dir", ["", None, "prior", "prior:mine.safetensors", "embedded"])
def test_faces_made_here_are_no_test_set(data_dir):
    assert made_here(data_dir) and not made_here("faces") and not made_here("priors")


def test_the_prior_inside_a_whole_network(tmp_path):
    path = save_checkpoint(random_network(TINY), tmp_path / "gpen.safetensors")
    assert open_faces(f"prior:{path}", 1).read(0).shape == (64, 64, 3)


def test_a_run_on_faces_of_a_prior(file, source, tmp_path, monkeypatch):
    monkeypatch.setenv(OUTPUTS_VARIABLE, str(tmp_path))
    settings = stages.DataSettings.parse(
        {"weights": "tiny-random", "data_dir": f"prior:{file}", "dataset_size": 3, "calib_size": 2}
    )
    metrics = stages.data(settings)["metrics"]
    assert (metrics["evaluation"], metrics["calibration"], metrics["label"]) == (3, 2, source.label)
    assert [f"{name}.png" for name in stages.evaluation_pack(settings).names] == source.names
