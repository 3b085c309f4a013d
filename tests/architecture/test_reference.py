"""Parity with the original GPEN code, by the figures in tests/reference."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpenlib.architecture import Discriminator, Gpen, GpenConfig

TESTS = Path(__file__).resolve().parents[1]
FOLDER = TESTS / "reference"
spec = importlib.util.spec_from_file_location("reference_weights", TESTS / "reference_weights.py")
reference_weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference_weights)

TOLERANCE = 1e-4  # of the reference output's standard deviation
CASES = [
    ("gpen_64_narrow0.125", "weights"),
    ("gpen_64_narrow0.125", "activations"),
    ("gpen_bfr_256", "weights"),
    ("gpen_bfr_256", "activations"),
    ("gpen_sr_64_256_narrow0.25", "weights"),
    ("gpen_sr_64_256_narrow0.25", "activations"),
    ("gpen_512", "weights"),  # once: a forward pass takes seconds
]


def read(name):
    description = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"{name}.npz") as figures:
        return description, dict(figures)


def build(description):
    config = dict(description["config"])
    if description["kind"] == "discriminator":
        size = config.pop("size")
        return Discriminator(GpenConfig(size, size, **config))
    if "size" in config:
        config["in_size"] = config["out_size"] = config.pop("size")
    return Gpen(GpenConfig(**config))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.npz")))
def test_keys_shapes_and_parameters(name):
    description, _ = read(name)
    with torch.device("meta"):
        model = build(description)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == description["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == description["parameters"]


@pytest.mark.parametrize(("name", "modulation"), CASES)
def test_generator_outputs(name, modulation):
    description, figures = read(name)
    model = reference_weights.fill(build(description), description["zero_noise_keys"])
    model.set_modulation(modulation)
    image = reference_weights.input_image(model.config.in_size)
    with torch.inference_mode():
        z, features = model.encode(image)
        latents = model.generator.latents(z)
        output = model.generator(z, features)
    allowed = TOLERANCE * float(figures["std"])
    stride = int(figures["stride"])
    assert list(output.shape) == figures["shape"].tolist()
    assert np.abs(output[:, :, ::stride, ::stride].numpy() - figures["output_strided"]).max() < allowed
    assert abs(float(output.mean()) - float(figures["mean"])) < allowed
    assert abs(float(output.std()) - float(figures["std"])) < allowed
    assert latents.shape == (1, model.config.num_latents, 512)
    latent_error = np.abs(latents[:, 0].numpy() - figures["latent0"]).max()
    assert latent_error < TOLERANCE * figures["latent0"].std()


def test_discriminator_output():
    description, figures = read("discriminator_64_narrow0.25")
    model = reference_weights.fill(build(description))
    with torch.inference_mode():
        logit = model(reference_weights.input_image(64))
    assert list(logit.shape) == figures["shape"].tolist()
    expected = figures["output_strided"]
    assert np.abs(logit.numpy() - expected).max() < TOLERANCE * np.abs(expected).max()
