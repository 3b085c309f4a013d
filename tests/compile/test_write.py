"""The writers: QDQ against the definition in numpy, QOperator against QDQ, fp16, and the last bias."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from gpenlib.compile.calibrate import ChannelRange
from gpenlib.compile.rounding import OUTPUT_MARGIN, QuantisationError, round_layers
from gpenlib.compile.write import (
    CORRECTED,
    add_to_output,
    count_quantised,
    join_casts,
    quantised_nodes,
    to_half,
    write_qdq,
    write_qoperator,
)

RNG = np.random.default_rng(3)
LAYER, UP = "generator.convs.1.conv", "generator.convs.0.conv"
THRESHOLDS = {"input": 2.0, "middle": 1.5}  # below the largest values, so that clipping is tested too
LAYERS = ["first", "second"]


def interleaved(x):
    """DepthToSpace by its definition."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def run(model, image, names=None):
    if names is None:  # a watched tensor has no shape
        onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"input": image})[0]


def written(graph, layers, form, ranges=None):
    """Return a copy of a graph in one of the forms."""
    model = copy.deepcopy(graph)
    if form == "qdq":
        write_qdq(model, layers)
    else:
        write_qoperator(model, layers, ranges)
    return model


@pytest.fixture
def model(two_layers):
    return copy.deepcopy(two_layers.model)


@pytest.fixture
def small_image():
    return np.random.default_rng(2).standard_normal((1, 4, 6, 6)).astype(np.float32)


def rounded_weight(weight, axis, per_channel, power2):
    """Round every output channel on its own (or all alike), one channel at a time."""
    result = np.empty(weight.shape)
    for channel in range(weight.shape[axis]):
        where = [slice(None)] * 4
        where[axis] = channel
        part = weight[tuple(where)].astype(np.float64)
        scale = np.abs(part if per_channel else weight).max() / 127
        if power2:
            scale = 2.0 ** np.ceil(np.log2(scale))
        result[tuple(where)] = np.clip(np.round(part / scale), -127, 127) * scale
    return torch.from_numpy(result)


@pytest.mark.parametrize("power2", [False, True])
@pytest.mark.parametrize("per_channel", [True, False])
def test_qdq_agrees_with_the_definition(model, two_layers, small_image, per_channel, power2):
    def rounded(x, threshold):
        return torch.clamp(torch.round(x / (threshold / 127)), -128, 127) * (threshold / 127)

    write_qdq(model, round_layers(model, THRESHOLDS, LAYERS, per_channel, power2))
    first, second = (
        rounded_weight(two_layers.weights[name], axis, per_channel, power2)
        for name, axis in (("w1", 0), ("w2", 1))
    )
    x = F.conv2d(rounded(torch.from_numpy(small_image).double(), 2.0), first, padding=1)
    expected = F.conv_transpose2d(rounded(F.leaky_relu(x, 0.2), 1.5), second, stride=2).numpy()
    output = run(model, small_image)
    # A value of `middle` near the border of two levels may fall to either side in float32.
    assert np.isclose(output, expected, atol=1e-5 * expected.std()).mean() > 0.98
    assert np.abs(output - expected).max() < 0.05 * expected.std()


def plain_model(model_of):
    sizes = np.geomspace(0.01, 1, 6)  # output channels that differ by a factor of a hundred
    constants = {
        "w": RNG.standard_normal((6, 5, 3, 3)) * sizes[:, None, None, None],
        "b": RNG.standard_normal(6) * sizes,
    }
    node = helper.make_node("Conv", ["input", "w", "b"], ["output"], "conv", pads=[1] * 4, strides=[2, 2])
    return model_of([node], [1, 5, 7, 7], [1, 6, 4, 4], constants)


def up_model(model_of):
    nodes = [
        helper.make_node("ConvTranspose", ["input", "w"], ["raised"], "up", strides=[2, 2]),
        helper.make_node("Conv", ["raised", "fir"], ["output"], "blur", pads=[1] * 4, group=6),
    ]
    constants = {
        "w": RNG.standard_normal((5, 6, 3, 3)) * np.geomspace(0.01, 1, 6)[:, None, None],
        "fir": np.outer([1, 3, 3, 1], [1, 3, 3, 1])[None, None].repeat(6, 0) / 16,
    }
    return model_of(nodes, [1, 5, 7, 7], [1, 6, 14, 14], constants)


@pytest.mark.parametrize(("make", "tensor"), [(plain_model, "output"), (up_model, "raised")])
def test_qoperator_differs_from_qdq_by_half_an_output_step(model_of, make, tensor):
    """Beside the rounding of the outputs, per channel, both forms compute the same numbers."""
    image = RNG.uniform(-1, 1, (1, 5, 7, 7)).astype(np.float32)
    graph = make(model_of)
    watched = copy.deepcopy(graph)
    if tensor != "output":
        watched.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    value = run(watched, image, [tensor])
    ranges = {tensor: ChannelRange(value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3)))}
    layers = round_layers(graph, {"input": float(np.abs(image).max())}, [graph.graph.node[0].name])
    qdq, qoperator = (run(written(graph, layers, form, ranges), image) for form in ("qdq", "qoperator"))
    low, high = np.minimum(value.min(axis=(0, 2, 3)), 0), np.maximum(value.max(axis=(0, 2, 3)), 0)
    step = ((high - low) / 255 * OUTPUT_MARGIN)[None, :, None, None]
    blur_gain = 4.0 if tensor == "raised" else 1.0  # the filter's taps sum to 4
    assert (np.abs(qoperator - qdq) <= (0.51 * blur_gain + 0.5) * step).all()
    assert np.abs(qoperator - qdq).max() > 0  # outputs really are rounded
    if tensor == "output":  # every channel has its own scale: the smallest is as accurate as the largest
        noise, signal = (np.square(x).mean(axis=(0, 2, 3)) for x in (qoperator - value, value))
        assert (10 * np.log10(signal / noise) > 30).all()
    else:
        assert count_quantised(written(graph, layers, "qoperator", ranges)) == {"Conv": 0, "ConvTranspose": 1}


def test_an_output_that_a_blur_reads_is_rounded_and_the_blur_is_exact(model_of):
    image = RNG.uniform(-1, 1, (1, 5, 7, 7)).astype(np.float32)
    graph = up_model(model_of)
    watched = copy.deepcopy(graph)
    watched.graph.output.append(helper.make_tensor_value_info("raised", TensorProto.FLOAT, None))
    value = run(watched, image, ["raised"])
    ranges = {"raised": ChannelRange(value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3)))}
    seen = {"input": float(np.abs(image).max())}
    without, with_it = (round_layers(graph, seen, ["up"], output_ranges=given) for given in (None, ranges))
    assert [layers["up"].report.output_rounded for layers in (without, with_it)] == [False, True]
    model = written(graph, with_it, "qdq")
    assert quantised_nodes(model) == {"up": "ConvTranspose", "blur": "Conv"}
    assert count_quantised(model) == {"Conv": 0, "ConvTranspose": 1}, "a blur is no layer"
    steps = with_it["up"].output_steps
    np.testing.assert_allclose(steps, OUTPUT_MARGIN * np.abs(value).max(axis=(0, 2, 3)) / 127, rtol=1e-6)
    plain, rounded = (run(written(graph, layers, "qdq"), image) for layers in (without, with_it))
    difference = np.abs(rounded - plain) / steps[:, None, None]
    assert 0 < difference.max() <= 0.5 * 4 + 1e-3  # the taps sum to 4
    assert difference.mean() < 0.5  # but sixteen errors do not add up
    taps = next(t for t in graph.graph.initializer if t.name == "fir")
    odd = numpy_helper.to_array(taps).copy()
    odd[0, 0, 0, 0] *= 1.3
    taps.CopyFrom(numpy_helper.from_array(odd, "fir"))
    with pytest.raises(QuantisationError, match="blur: its taps"):
        written(graph, with_it, "qdq")


def test_phases_are_interleaved_without_an_8_bit_depth_to_space_at_any_batch_size(calibrated):
    """ONNX Runtime before 1.21 has none."""
    model = written(calibrated.graph, calibrated.round(), "qoperator", calibrated.calibration.output_ranges)
    assert not any(node.op_type == "DepthToSpace" for node in model.graph.node)
    names = [f"{UP}_phases", f"{UP}_interleave4"]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = RNG.uniform(-1, 1, (3, 3, 64, 64)).astype(np.float32)
    output, phases, whole = session.run(None, {"input": images})
    assert phases.std() > 1 and np.array_equal(interleaved(phases), whole)
    each = [session.run(None, {"input": image[None]})[0] for image in images]
    np.testing.assert_allclose(np.concatenate(each), output, atol=1e-5)


def test_with_amx_the_wide_layers_have_another_zero_point_and_the_same_output(calibrated, image, monkeypatch):
    layers, ranges = calibrated.round(), calibrated.calibration.output_ranges
    plain = written(calibrated.graph, layers, "qoperator", ranges)
    widths = {min(layer.weight.shape[:2]) for layer in layers.values()}
    monkeypatch.setattr("gpenlib.compile.write.PRODUCT_CHANNELS", max(widths))
    shifted = copy.deepcopy(calibrated.graph)
    write_qoperator(shifted, layers, ranges, amx=True)
    zeros = {
        t.name.removesuffix(".weight_zero"): set(numpy_helper.to_array(t).tolist())
        for t in shifted.graph.initializer
        if t.name.endswith(".weight_zero")
    }
    wide = {name for name, layer in layers.items() if min(layer.weight.shape[:2]) == max(widths)}
    assert len(widths) > 1 and {name for name, values in zeros.items() if values == {-1}} == wide
    assert np.array_equal(run(shifted, image), run(plain, image))


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_halves_are_joined_in_8_bits_and_count_as_one(calibrated, form):
    layers = calibrated.round([LAYER, UP])
    model = written(calibrated.graph, layers, form, calibrated.calibration.output_ranges)
    phases = {f"{UP}.phase{row}{column}" for row in "01" for column in "01"}
    assert quantised_nodes(model).keys() == ({LAYER, UP} if form == "qdq" else {LAYER} | phases)
    assert count_quantised(model) == {"Conv": 1, "ConvTranspose": 1}
    joins = {node.output[0]: node for node in model.graph.node if node.op_type == "Concat"}
    join = joins[f"{LAYER}.joined" if form == "qdq" else f"{LAYER}_joined"]
    assert [name.removesuffix("_quantised") for name in join.input] == list(layers[LAYER].report.tensors)
    assert not any(node.name in (f"{LAYER}.skip", f"{LAYER}.sum") for node in model.graph.node)


def test_no_value_of_the_style_path_passes_through_fp16(float_graph):
    """A vector is cast to fp16 only where a feature map takes it up."""
    half, _ = to_half(onnx.load(float_graph))
    onnx.checker.check_model(half, full_check=True)  # nodes are sorted, recorded types are right
    narrowed = {
        node.output[0]
        for node in half.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16
    }
    readers = {name: node.op_type for node in half.graph.node for name in node.input if name in narrowed}
    assert narrowed and set(readers.values()) <= {"Mul", "Add", "Conv"}
    before = half.SerializeToString()
    join_casts(half)
    assert half.SerializeToString() == before, "nothing is left to join"


def test_the_last_bias_is_changed_and_a_shared_one_keeps_its_value_elsewhere(model_of):
    nodes = [
        helper.make_node("Add", ["input", "bias"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Add", ["b", "bias"], ["output"]),
    ]
    shape, bias = [1, 3, 2, 2], {"bias": np.ones((1, 3, 1, 1))}
    model = model_of(nodes, shape, shape, bias)
    add_to_output(model, np.array([0.5, 0.0, -0.5]))
    constants = {tensor.name: numpy_helper.to_array(tensor).ravel() for tensor in model.graph.initializer}
    assert constants["bias"].tolist() == [1, 1, 1] and constants[CORRECTED].tolist() == [1.5, 1.0, 0.5]
    assert model.graph.node[0].input[1] == "bias" and model.graph.node[2].input[1] == CORRECTED
    nodes[1] = helper.make_node("Mul", ["a", "a"], ["output"])
    with pytest.raises(QuantisationError, match="nothing to correct"):
        add_to_output(model_of(nodes[:2], shape, shape, bias), np.zeros(3))
