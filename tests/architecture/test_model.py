"""Operators, generator and discriminator: against their definition and the original's figures."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpenlib.architecture import Discriminator, Gpen, GpenConfig
from gpenlib.architecture import model as ops
from gpenlib.architecture.checkpoints import random_network

TESTS = Path(__file__).resolve().parents[1]
REFERENCE = TESTS / "reference"
spec = importlib.util.spec_from_file_location("reference_weights", TESTS / "reference_weights.py")
reference_weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference_weights)

SMALL, SMALL_SR = GpenConfig(64, 64, 1, 0.03125), GpenConfig(64, 128, 1, 0.03125)
UP_AND_PAD = [(1, 0, 0), (1, 2, 2), (1, 5, 5), (2, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_definition(x, kernel, up, pad):
    """Zero insertion, padding, correlation with the flipped kernel: one step after the other."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h, up, w, up)
    spread[:, :, :, 0, :, 0] = x
    padded = F.pad(spread.reshape(n * c, 1, h * up, w * up), (*pad, *pad))
    y = F.conv2d(padded, kernel.flip(0, 1)[None, None])
    return y.view(n, c, *y.shape[2:])


@pytest.mark.parametrize(("up", "before", "after"), UP_AND_PAD)
def test_upfirdn2d_is_its_definition(up, before, after):
    taps = torch.tensor([1.0, 2.0, 4.0, 3.0])  # not symmetric: a flipped kernel would show
    kernel = torch.outer(taps, taps.flip(0))
    x = torch.randn(2, 3, 7, 5)
    y = ops.upfirdn2d(x, kernel, up, (before, after))
    assert y.shape == (2, 3, *(side * up + before + after - 3 for side in (7, 5)))
    torch.testing.assert_close(y, by_definition(x, kernel, up, (before, after)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (3, 3), (4, 4), (6, 3), (8, 4)])
def test_minibatch_stddev(batch, group):
    x = torch.randn(batch, 5, 4, 4)
    channel = ops.minibatch_stddev(x)
    count = batch // group
    for i in range(batch):
        members = x[i % count :: count]  # the images of one group stand ``count`` apart
        assert len(members) == group
        expected = torch.sqrt(members.var(dim=0, unbiased=False) + 1e-8).mean()
        torch.testing.assert_close(channel[i], expected.expand(1, 4, 4))
    assert Discriminator(SMALL)(torch.randn(batch, 3, 64, 64)).shape == (batch, 1)


@pytest.mark.parametrize(
    "fields",
    [
        *({"in_size": size} for size in (500, 16, 512.0, 1024)),
        *({"out_size": size} for size in (500, 4096, 256)),
        *({"channel_multiplier": value} for value in (0, 1.5)),
        *({"narrow": value} for value in (0.0, -1.0, 0.001)),
    ],
    ids=str,
)
def test_sizes_and_widths_that_are_refused(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=rf"{name}={value}\b"):
        GpenConfig(**fields)


@pytest.mark.parametrize("size", [64, 512, 1024, 2048])
def test_every_size_has_the_channels_of_stylegan2(size):
    config = GpenConfig(size, size)
    with torch.device("meta"):
        model, critic = Gpen(config), Discriminator(config)
        output = model(torch.empty(2, 3, size, size))
        logits = critic(output)
    assert output.shape == (2, 3, size, size) and logits.shape == (2, 1)
    expected = [512, 512, 512, 512, 512, 256, 128, 64, 32, 16][: config.log_out - 1]  # from 4 px up
    assert [stage[0][-1].bias.numel() for stage in model.encoder[::-1]] == expected
    twice = [width for width in expected[1:] for _ in range(2)]
    assert [conv.conv.weight.shape[1] for conv in model.generator.convs] == twice
    assert [conv.activate.bias.numel() for conv in model.generator.convs] == [2 * width for width in twice]


@pytest.mark.parametrize("impl", ["weights", "activations"])
@pytest.mark.parametrize("config", [SMALL, SMALL_SR], ids=str)
def test_batch_size_is_free_and_images_differ(impl, config):
    model = random_network(config).set_modulation(impl)
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert together.shape == (3, 3, config.out_size, config.out_size)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    if config == SMALL_SR:  # deterministic in evaluation only: above the input, training draws noise
        assert not torch.equal(model.train()(images).detach(), model(images).detach())


@pytest.mark.parametrize("config", [SMALL, SMALL_SR], ids=str)
def test_modulations_agree_in_value_and_gradient(config):
    model = random_network(config)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    results = {}
    for impl in ("weights", "activations"):
        model.set_modulation(impl).zero_grad()
        output = model(image)
        output.square().mean().backward()
        results[impl] = (output.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
    (output_w, grads_w), (output_a, grads_a) = results["weights"], results["activations"]
    torch.testing.assert_close(output_w, output_a, rtol=1e-4, atol=1e-5)
    assert len(grads_w) == len(grads_a) == len(list(model.parameters()))
    for ours, theirs in zip(grads_a, grads_w, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item() + 1e-9)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 128)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, 3, 64, 64\]"):
        Gpen(SMALL)(torch.zeros(shape))


# Parity with the original code, by the figures in tests/reference

TOLERANCE = 1e-4  # of the reference output's standard deviation
FAST = ("gpen_64_narrow0.125", "gpen_bfr_256", "gpen_sr_64_256_narrow0.25")  # gpen_512 takes seconds: once
CASES = [*itertools.product(FAST, ("weights", "activations")), ("gpen_512", "weights")]


def read(name):
    description = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(REFERENCE / f"{name}.npz") as figures:
        return description, dict(figures)


def build(description):
    config = dict(description["config"])
    if "size" in config:
        config["in_size"] = config["out_size"] = config.pop("size")
    kind = Discriminator if description["kind"] == "discriminator" else Gpen
    return kind(GpenConfig(**config))


@pytest.mark.parametrize("name", sorted(path.stem for path in REFERENCE.glob("*.npz")))
def test_keys_shapes_and_parameters_of_the_original(name):
    description, _ = read(name)
    with torch.device("meta"):
        model = build(description)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == description["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == description["parameters"]


@pytest.mark.parametrize(("name", "modulation"), CASES)
def test_outputs_of_the_original_generator(name, modulation):
    description, figures = read(name)
    model = reference_weights.fill(build(description), description["zero_noise_keys"])
    model.set_modulation(modulation)
    image = reference_weights.input_image(model.config.in_size)
    with torch.inference_mode():
        z, features = model.encode(image)
        latents = model.generator.latents(z)
        output = model.generator(z, features)
    allowed, stride = TOLERANCE * float(figures["std"]), int(figures["stride"])
    assert list(output.shape) == figures["shape"].tolist()
    assert np.abs(output[:, :, ::stride, ::stride].numpy() - figures["output_strided"]).max() < allowed
    assert abs(float(output.mean()) - float(figures["mean"])) < allowed
    assert abs(float(output.std()) - float(figures["std"])) < allowed
    assert latents.shape == (1, model.config.num_latents, 512)
    error = np.abs(latents[:, 0].numpy() - figures["latent0"]).max()
    assert error < TOLERANCE * figures["latent0"].std()


def test_output_of_the_original_discriminator():
    description, figures = read("discriminator_64_narrow0.25")
    model = reference_weights.fill(build(description))
    with torch.inference_mode():
        logit = model(reference_weights.input_image(64))
    assert list(logit.shape) == figures["shape"].tolist()
    expected = figures["output_strided"]
    assert np.abs(logit.numpy() - expected).max() < TOLERANCE * np.abs(expected).max()
