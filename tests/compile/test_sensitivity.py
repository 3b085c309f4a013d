"""What-if quantisation in PyTorch, ranking of layers, and the budget."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from gpenlib.compile.calibrate import calibrate
from gpenlib.compile.rounding import (
    QuantisationError,
    bias_correction,
    fake_quantised,
    quantisable_layers,
    round_layers,
    split_halves,
)
from gpenlib.compile.sensitivity import Probe, choose_exclusions, rank_layers
from gpenlib.compile.write import write_qdq
from gpenlib.export import deploy_form
from gpenlib.export.graphs import run_onnx


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def rounded(float_graph, image):
    """Function that rounds all quantisable layers of the tiny network."""
    split = split_halves(onnx.load(float_graph))
    nodes = quantisable_layers(split)
    found = calibrate(split, list(dict.fromkeys(name for n in nodes for name in n.inputs)), [], [image])

    def build(names=None, **options):
        names = names or [node.name for node in nodes]
        return round_layers(split, found.thresholds("max", 100), names, **options)

    build.means = found.input_means
    return build


def test_agrees_with_the_written_file(tiny_model, float_graph, image, rounded, tmp_path):
    layers = rounded()
    model = split_halves(onnx.load(float_graph))
    write_qdq(model, layers)
    onnx.save(model, tmp_path / "int8.onnx")
    deploy = deploy_form(tiny_model)
    with torch.inference_mode(), fake_quantised(deploy, layers):
        found = deploy(torch.from_numpy(image)).numpy()
    # Rounding ties and summation order differ between the libraries; a step more or less here and there.
    expected = run_onnx(tmp_path / "int8.onnx", image)
    error = np.square(expected - run_onnx(float_graph, image)).mean()
    assert np.square(found - expected).mean() < 0.1 * error


def test_the_network_is_as_before_afterwards(tiny_model, image, rounded):
    deploy = deploy_form(tiny_model)
    batch = torch.from_numpy(image)
    with torch.inference_mode():
        before = deploy(batch)
        with pytest.raises(KeyError), fake_quantised(deploy, rounded()):
            assert not torch.equal(deploy(batch), before)
            raise KeyError
        assert torch.equal(deploy(batch), before)


def test_ranking_finds_the_layer_that_was_spoilt(tiny_model, image, rounded):
    layers = rounded()
    victim = "generator.convs.1.conv"
    spoilt = rounded([victim], per_channel=True)[victim]
    worse = replace(spoilt, activation_scales=tuple(30 * step for step in spoilt.activation_scales))
    probe = Probe(deploy_form(tiny_model), torch.from_numpy(image))
    ranking = rank_layers(probe, {**layers, victim: worse})
    assert ranking[0].name == victim
    assert [row.psnr for row in ranking] == sorted(row.psnr for row in ranking)
    assert sum(row.share for row in ranking) == pytest.approx(1)


def test_drop_is_measured_against_the_truth(tiny_model, image, rounded):
    deploy = deploy_form(tiny_model)
    with torch.inference_mode():
        output = deploy(torch.from_numpy(image))
    truth = ((output[0].permute(1, 2, 0).numpy().clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    probe = Probe(deploy, torch.from_numpy(image), [truth])
    assert probe.drop({}) == 0
    assert probe.drop(rounded()) > 10  # the float output is the truth here, int8 is some 40 dB away from it


def test_the_budget_decides_how_many_are_excluded():
    cost = {"a": 0.5, "b": 0.2, "c": 0.01, "d": 0.0}

    def drop(kept):
        return sum(cost[name] for name in kept)

    assert choose_exclusions(drop, "abcd", 1.0)[0] == []
    excluded, steps = choose_exclusions(drop, "abcd", 0.05)
    assert excluded == ["a", "b"]
    assert [step["excluded"] for step in steps] == [0, 1, 2]
    assert [step["drop_db"] for step in steps] == pytest.approx([0.71, 0.21, 0.01])
    with pytest.raises(QuantisationError, match=r"all but one layer.*0\.100 dB.*max_drop_db=0\.05"):
        choose_exclusions(lambda kept: 0.1, "abcd", 0.05)


@pytest.mark.parametrize("stride", [None, 2])
def test_bias_correction_is_the_mean_error_of_rounding_weights(stride):
    """Against a brute-force convolution with a constant input, whose interior has exactly that error."""
    rng = np.random.default_rng(5)
    means = rng.standard_normal(4)
    shape = (3, 4, 3, 3) if stride is None else (4, 3, 3, 3)
    error = rng.standard_normal(shape)
    x = torch.from_numpy(np.broadcast_to(means[None, :, None, None], (1, 4, 12, 12)).copy())
    if stride is None:
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
        out = torch.nn.functional.conv2d(x, torch.from_numpy(error))
    else:
        node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[stride, stride])
        out = torch.nn.functional.conv_transpose2d(x, torch.from_numpy(error), stride=stride)[..., 4:-5, 4:-5]
    assert out.shape[-1] % (stride or 1) == 0
    np.testing.assert_allclose(bias_correction(node, error, means), out.mean((0, 2, 3)).numpy(), rtol=1e-9)


@pytest.mark.parametrize("name", ["ecd1.conv", "generator.convs.1.conv"])  # whole, and in halves
def test_correction_takes_the_shift_out_of_a_layer(float_graph, image, rounded, tiny_model, name):
    """The mean output of a layer on its float input comes closer to that of the float layer."""
    deploy = deploy_form(tiny_model)
    seen = {}
    handle = deploy.get_submodule(name).register_forward_hook(lambda m, i, o: seen.update(x=i[0], y=o))
    with torch.inference_mode():
        deploy(torch.from_numpy(image))
        handle.remove()
        shifts = []
        for options in ({}, {"input_means": rounded.means}):
            with fake_quantised(deploy, rounded([name], **options)):
                found = deploy.get_submodule(name)(seen["x"])
            shifts.append(float((found - seen["y"]).mean((0, 2, 3)).abs().mean()))
    assert shifts[1] < 0.5 * shifts[0]
