"""The decoder in halves: the same function, fewer copies, a step for each half."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.compile.calibrate import calibrate
from gpenlib.compile.rounding import (
    activation_steps,
    bias_correction,
    convolution_layers,
    quantisable_layers,
    round_layers,
    split_halves,
)
from gpenlib.compile.write import count_quantised, quantised_nodes, write_qdq, write_qoperator
from gpenlib.export import export_onnx
from gpenlib.export.graphs import run_onnx

LAYER = "generator.convs.1.conv"


@pytest.fixture(scope="module")
def joined(float_graph):
    return onnx.load(float_graph)


@pytest.fixture(scope="module")
def split(joined):
    return split_halves(joined)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(4).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def calibration(split, image):
    layers = quantisable_layers(split)
    inputs = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    return calibrate(split, inputs, [layer.output for layer in layers], [image])


def operators(model, name):
    return sum(node.op_type == name for node in model.graph.node)


def test_the_function_is_the_same(split, float_graph, image, tmp_path):
    onnx.checker.check_model(split, full_check=True)
    onnx.save(split, tmp_path / "split.onnx")
    two = np.concatenate([image, image[..., ::-1]])
    expected = run_onnx(float_graph, two)
    np.testing.assert_allclose(run_onnx(tmp_path / "split.onnx", two), expected, atol=1e-5 * expected.std())


def test_no_layer_is_behind_a_concat(joined, split):
    """Every styled layer ends in a Concat, and every one is split away; the given graph is not changed."""
    styled = sum(
        ".to_rgb" not in layer.name and ".blur" not in layer.name
        for layer in convolution_layers(joined)
        if layer.name.startswith("generator.con")
    )
    assert (operators(joined, "Concat"), operators(split, "Concat")) == (styled, 0)
    assert not any(node.name.endswith(".skip") for node in joined.graph.node)


def test_a_layer_stays_one_layer(joined, split):
    before, after = convolution_layers(joined), convolution_layers(split)
    assert [layer.name for layer in after] == [layer.name for layer in before]
    assert [layer.output for layer in after] == [layer.output for layer in before]
    assert [layer.name for layer in quantisable_layers(split)] == [
        layer.name for layer in quantisable_layers(joined)
    ]
    halved = {layer.name for layer in after if len(layer.nodes) == 2}
    assert LAYER in halved and "generator.to_rgb1.conv" in halved
    assert "generator.conv1.conv" not in halved, "it reads the constant, which nothing is joined to"


def test_each_half_has_its_own_step(split, calibration):
    """The step of each half is that of its own range; the products with the weights' steps are equal."""
    thresholds = calibration.thresholds("max", 100)
    layer = round_layers(split, thresholds, [LAYER])[LAYER]
    assert layer.activation_scales == pytest.approx([thresholds[name] / 127 for name in layer.report.tensors])
    assert layer.activation_scales[0] != pytest.approx(layer.activation_scales[1], rel=1e-3)
    units = layer.scales * np.array(layer.activation_scales)[:, None]
    np.testing.assert_allclose(units[0], units[1], rtol=1e-6)
    each = layer.weight.shape[1] // 2
    np.testing.assert_allclose(layer.input_steps(), np.repeat(np.float32(layer.activation_scales), each))
    model = onnx.ModelProto.FromString(split.SerializeToString())
    write_qdq(model, {LAYER: layer})
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = [float(stored[f"{name}_scale"]) for name in layer.report.tensors]
    assert found == pytest.approx(layer.activation_scales)


def test_bias_correction_is_that_of_both_halves(split, calibration):
    thresholds = calibration.thresholds("max", 100)
    layer = round_layers(split, thresholds, [LAYER], input_means=calibration.input_means)[LAYER]
    parts = next(found for found in convolution_layers(split) if found.name == LAYER)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in split.graph.initializer}
    expected = 0
    for node, stored, scales in zip(parts.nodes, layer.weights(), layer.scales, strict=True):
        error = weights[node.input[1]] - stored * scales[:, None, None, None]
        own = bias_correction(node, error, calibration.input_means[node.input[0]])
        assert np.abs(own).max() > 0
        expected = expected + own
    np.testing.assert_allclose(layer.bias, expected, rtol=1e-4, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_halves_are_quantised_together_and_count_as_one(split, calibration, form):
    up = "generator.convs.0.conv"
    layers = round_layers(split, calibration.thresholds("max", 100), [LAYER, up])
    model = onnx.ModelProto.FromString(split.SerializeToString())
    if form == "qdq":
        write_qdq(model, layers)
        expected = set(layers)
    else:
        write_qoperator(model, layers, calibration.output_ranges)
        expected = {LAYER, *(f"{up}.phase{row}{column}" for row in "01" for column in "01")}
    assert quantised_nodes(model).keys() == expected
    assert count_quantised(model) == {"Conv": 1, "ConvTranspose": 1}


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_8_bit_data_is_joined_for_one_convolution(split, calibration, form):
    layers = round_layers(split, calibration.thresholds("max", 100), [LAYER])
    model = onnx.ModelProto.FromString(split.SerializeToString())
    if form == "qdq":
        write_qdq(model, layers)
    else:
        write_qoperator(model, layers, calibration.output_ranges)
    (join,) = [node for node in model.graph.node if node.op_type == "Concat"]
    assert [name.removesuffix("_quantised") for name in join.input] == list(layers[LAYER].report.tensors)
    assert not any(node.name in (f"{LAYER}.skip", f"{LAYER}.sum") for node in model.graph.node)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_joined_convolution_is_the_sum_of_the_rounded_halves(
    split, calibration, image, tmp_path, per_channel
):
    """One convolution with the first half's step stands for both halves with a step each."""
    rounded = round_layers(split, calibration.thresholds("max", 100), [LAYER], per_channel=per_channel)
    layer, parts = rounded[LAYER], next(found for found in convolution_layers(split) if found.name == LAYER)
    model = onnx.ModelProto.FromString(split.SerializeToString())
    write_qdq(model, rounded)
    names = [*parts.inputs, parts.output]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(model, tmp_path / "joined.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "joined.onnx", providers=["CPUExecutionProvider"])
    *inputs, found = session.run(names, {"input": image})
    expected = 0
    for data, step, weight, scales in zip(
        inputs, layer.activation_scales, layer.weights(), layer.scales, strict=True
    ):
        levels = np.clip(np.rint(data / np.float32(step)), -128, 127)
        whole = torch.from_numpy(weight.astype(np.float64) * scales[:, None, None, None])
        expected = expected + F.conv2d(torch.from_numpy(levels.astype(np.float64) * step), whole, padding=1)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.std()))


def test_steps():
    assert activation_steps([12.7], False) == pytest.approx((0.1,))
    assert activation_steps([12.7, 2.54], False) == pytest.approx((0.1, 0.02))
    coarse, fine = activation_steps([12.7, 2.54], True)
    assert (coarse, coarse / fine) == (pytest.approx(0.1), 4.0), "raised to a quarter, not clipped"
    assert activation_steps([0.0, 12.7], False) == pytest.approx((0.1, 0.1)), (
        "any step serves a half of zeros"
    )


def test_power2_scales_in_both_halves(split, calibration):
    layer = round_layers(split, calibration.thresholds("max", 100), [LAYER], power2=True)[LAYER]
    assert layer.scales.shape[0] == 2 and (np.log2(layer.scales) % 1 == 0).all()


def test_a_network_whose_upper_layers_have_no_encoder_features(image, tmp_path):
    """Above the input's size the skip half is the bias alone: zeros in fresh weights."""
    path = export_onnx(random_network(replace(TINY, out_size=128)), tmp_path / "up.onnx")
    split = split_halves(onnx.load(path))
    layers = quantisable_layers(split)
    inputs = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    found = calibrate(split, inputs, [layer.output for layer in layers], [image])
    found.check_alive(layer.inputs for layer in layers)
    thresholds = found.thresholds("mse", 100)
    expected = run_onnx(path, image)
    for form in ("qdq", "qoperator"):
        written = onnx.ModelProto.FromString(split.SerializeToString())
        rounded = round_layers(split, thresholds, [layer.name for layer in layers])
        if form == "qdq":
            write_qdq(written, rounded)
        else:
            write_qoperator(written, rounded, found.output_ranges)
        onnx.save(written, tmp_path / "int8.onnx")
        error = run_onnx(tmp_path / "int8.onnx", image) - expected
        assert np.square(error).mean() < 0.03 * expected.var()
