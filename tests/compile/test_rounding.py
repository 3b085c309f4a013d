"""Halves of layers, steps and scales, bias correction, and what-if quantisation in PyTorch."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from gpenlib.compile.rounding import (
    LEVELS,
    QuantisationError,
    activation_steps,
    bias_correction,
    convolution_layers,
    fake_quantised,
    quantisable_layers,
    select_layers,
)
from gpenlib.compile.write import write_qdq
from gpenlib.export import deploy_form
from gpenlib.export.graphs import run_onnx

LAYER = "generator.convs.1.conv"  # in halves
PARTS = ["ecd1", "ecd2", "generator.conv1", "generator.convs.0", "generator.convs.10"]
NAMES = [f"{part}.conv" for part in PARTS]


@pytest.fixture(scope="module")
def joined(float_graph):
    return onnx.load(float_graph)


def test_halves_compute_the_same(calibrated, float_graph, image, tmp_path):
    onnx.checker.check_model(calibrated.graph, full_check=True)
    onnx.save(calibrated.graph, tmp_path / "split.onnx")
    two = np.concatenate([image, image[..., ::-1]])
    expected = run_onnx(float_graph, two)
    np.testing.assert_allclose(run_onnx(tmp_path / "split.onnx", two), expected, atol=1e-5 * expected.std())


def test_every_concat_is_split_away_and_a_layer_stays_one(joined, calibrated):
    assert any(node.op_type == "Concat" for node in joined.graph.node), "the given graph is not changed"
    assert not any(node.op_type == "Concat" for node in calibrated.graph.graph.node)
    before, after = convolution_layers(joined), convolution_layers(calibrated.graph)
    assert [(layer.name, layer.output) for layer in after] == [(layer.name, layer.output) for layer in before]
    assert calibrated.names == [layer.name for layer in quantisable_layers(joined)]
    halved = {layer.name for layer in after if len(layer.nodes) == 2}
    assert LAYER in halved and "generator.to_rgb1.conv" in halved
    assert "generator.conv1.conv" not in halved, "it reads the constant, which nothing is joined to"


def test_each_half_has_its_own_step(calibrated):
    """The step of each half is that of its own range; the products with the weights' steps are equal."""
    layer = calibrated.round([LAYER])[LAYER]
    expected = [calibrated.thresholds[name] / LEVELS for name in layer.report.tensors]
    assert layer.activation_scales == pytest.approx(expected)
    assert layer.activation_scales[0] != pytest.approx(layer.activation_scales[1], rel=1e-3)
    units = layer.scales * np.array(layer.activation_scales)[:, None]
    np.testing.assert_allclose(units[0], units[1], rtol=1e-6)
    assert (np.log2(calibrated.round([LAYER], power2=True)[LAYER].scales) % 1 == 0).all()
    each = layer.weight.shape[1] // 2
    np.testing.assert_allclose(layer.input_steps(), np.repeat(np.float32(layer.activation_scales), each))


def test_bias_correction_is_that_of_both_halves(calibrated):
    means = calibrated.calibration.input_means
    layer = calibrated.round([LAYER], input_means=means)[LAYER]
    parts = next(found for found in convolution_layers(calibrated.graph) if found.name == LAYER)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in calibrated.graph.graph.initializer}
    expected = 0
    for node, stored, scales in zip(parts.nodes, layer.weights(), layer.scales, strict=True):
        error = weights[node.input[1]] - stored * scales[:, None, None, None]
        correction = bias_correction(node, error, means[node.input[0]])
        assert np.abs(correction).max() > 0
        expected = expected + correction
    np.testing.assert_allclose(layer.bias, expected, rtol=1e-4, atol=1e-7 * np.abs(expected).max())


def test_steps():
    assert activation_steps([12.7], False) == pytest.approx((0.1,))
    assert activation_steps([12.7, 2.54], False) == pytest.approx((0.1, 0.02))
    coarse, fine = activation_steps([12.7, 2.54], True)
    assert (coarse, coarse / fine) == (pytest.approx(0.1), 4.0), "raised to a quarter, not clipped"
    assert activation_steps([0.0, 12.7], False) == pytest.approx((0.1, 0.1)), "any step serves zeros"


def test_quantisable_layers(two_layers):
    model = copy.deepcopy(two_layers.model)
    assert [layer.name for layer in quantisable_layers(model)] == ["first", "second"]
    rgb, depthwise = np.zeros((3, 6, 1, 1), np.float32), np.zeros((6, 1, 2, 2), np.float32)
    for name, weight, group in (("to_rgb", rgb, 1), ("blur", depthwise, 6)):
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
        model.graph.node.append(
            helper.make_node("Conv", ["output", name], [f"{name}_out"], name, group=group)
        )
    assert [layer.name for layer in quantisable_layers(model)] == ["first", "second"]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([5], r"index 5 is outside 0\.\.4"),
        (["generator.convs.1.conv"], r"'generator.convs.1.conv'; nearest: generator.convs.10.conv"),
        (["zzz*"], "'zzz\\*'; layers: ecd1.conv, "),
        (["*"], "leaves nothing to quantise"),
        (["ecd1.conv", 3, "ecd1.conv"], "'ecd1.conv' is there twice"),
        ([True], "True is no index"),
    ],
)
def test_select_layers_refuses(exclude, message):
    with pytest.raises(QuantisationError, match=message):
        select_layers(NAMES, exclude)


@pytest.mark.parametrize("stride", [None, 2])
def test_bias_correction_is_the_mean_error_of_rounding_weights(stride):
    """Against a brute-force convolution with a constant input, whose interior has exactly that error."""
    rng = np.random.default_rng(5)
    means = rng.standard_normal(4)
    shape = (3, 4, 3, 3) if stride is None else (4, 3, 3, 3)
    error = rng.standard_normal(shape)
    x = torch.from_numpy(np.broadcast_to(means[None, :, None, None], (1, 4, 12, 12)).copy())
    if stride is None:
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        out = torch.nn.functional.conv2d(x, torch.from_numpy(error))
    else:
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[stride, stride])
        out = torch.nn.functional.conv_transpose2d(x, torch.from_numpy(error), stride=stride)[..., 4:-5, 4:-5]
    assert out.shape[-1] % (stride or 1) == 0
    np.testing.assert_allclose(bias_correction(node, error, means), out.mean((0, 2, 3)).numpy(), rtol=1e-9)


def test_what_if_agrees_with_the_written_file(tiny_model, float_graph, image, calibrated, tmp_path):
    layers = calibrated.round()
    model = copy.deepcopy(calibrated.graph)
    write_qdq(model, layers)
    onnx.save(model, tmp_path / "int8.onnx")
    with torch.inference_mode(), fake_quantised(deploy_form(tiny_model), layers) as deploy:
        output = deploy(torch.from_numpy(image)).numpy()
    # Rounding ties and summation order differ between the libraries; a step more or less here and there.
    expected = run_onnx(tmp_path / "int8.onnx", image)
    error = np.square(expected - run_onnx(float_graph, image)).mean()
    assert np.square(output - expected).mean() < 0.1 * error


def test_the_network_is_as_before_afterwards(tiny_model, image, calibrated):
    deploy, batch = deploy_form(tiny_model), torch.from_numpy(image)
    with torch.inference_mode():
        before = deploy(batch)
        with pytest.raises(KeyError), fake_quantised(deploy, calibrated.round()):
            assert not torch.equal(deploy(batch), before)
            raise KeyError
        assert torch.equal(deploy(batch), before)
        unknown = {**calibrated.round(), "no.such.layer": calibrated.round([LAYER])[LAYER]}
        with pytest.raises(AttributeError), fake_quantised(deploy, unknown):
            pass
        assert torch.equal(deploy(batch), before)
