"""The QDQ writer on a hand-made graph, against a computation in numpy."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpenlib.compile.rounding import (
    LEVELS,
    QuantisationError,
    quantisable_layers,
    quantise_weight,
    round_layers,
    select_layers,
    sqnr_db,
    weight_scales,
)
from gpenlib.compile.write import count_quantised, write_qdq

THRESHOLDS = {"input": 2.0, "middle": 1.5}  # below the largest values, so that clipping is tested too
LAYERS = ["first", "second"]


def quantise(model, thresholds, layers, *args, **options):
    """Round and write in QDQ form; return the reports."""
    rounded = round_layers(model, thresholds, layers, *args, **options)
    write_qdq(model, rounded)
    return [layer.report for layer in rounded.values()]


def weights() -> dict[str, np.ndarray]:
    """Weights whose channels differ in size by a factor of a hundred."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal((5, 4, 3, 3)) * np.geomspace(0.01, 1, 5)[:, None, None, None]
    second = rng.standard_normal((5, 6, 2, 2)) * np.geomspace(1, 0.01, 6)[None, :, None, None]
    return {"w1": first.astype(np.float32), "w2": second.astype(np.float32)}


@pytest.fixture
def model() -> onnx.ModelProto:
    """input [1, 4, 6, 6] -> Conv 3x3 -> LeakyRelu -> ConvTranspose 2x2, stride 2 -> output [1, 6, 12, 12]."""
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["a"], ["middle"], "activation", alpha=0.2),
        helper.make_node("ConvTranspose", ["middle", "w2"], ["output"], "second", strides=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 6, 12, 12])],
        [numpy_helper.from_array(array, name) for name, array in weights().items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((1, 4, 6, 6)).astype(np.float32)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": image})[0]


def initialisers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def rounded(x: np.ndarray, threshold: float) -> np.ndarray:
    """Round to the 256 levels of s8, of which the largest is ``threshold``."""
    scale = threshold / 127
    return np.clip(np.round(x / scale), -128, 127) * scale


def rounded_weight(weight: np.ndarray, axis: int, per_channel: bool, power2: bool) -> np.ndarray:
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
    return result


def convolution(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3x3 convolution with padding 1, by its definition; x [C, H, W], weight [O, C, 3, 3]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    result = np.zeros((len(weight), *x.shape[1:]))
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            patch = padded[:, row : row + 3, column : column + 3]
            result[:, row, column] = (weight * patch).sum(axis=(1, 2, 3))
    return result


def transposed_convolution(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """2x2 transposed convolution with stride 2, by its definition; weight [C, O, 2, 2]."""
    result = np.zeros((weight.shape[1], 2 * x.shape[1], 2 * x.shape[2]))
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            stamp = np.einsum("c,coij->oij", x[:, row, column], weight)
            result[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += stamp
    return result


@pytest.mark.parametrize("power2", [False, True])
@pytest.mark.parametrize("per_channel", [True, False])
def test_agrees_with_the_definition(model, image, per_channel, power2):
    quantise(model, THRESHOLDS, LAYERS, per_channel, power2)
    float_weights = weights()
    x = rounded(image[0].astype(np.float64), 2.0)
    x = convolution(x, rounded_weight(float_weights["w1"], 0, per_channel, power2))
    x = rounded(np.where(x > 0, x, 0.2 * x), 1.5)
    expected = transposed_convolution(x, rounded_weight(float_weights["w2"], 1, per_channel, power2))
    found = run(model, image)[0]
    # A value of `middle` near the border of two levels may fall to either side in float32.
    close = np.isclose(found, expected, atol=1e-5 * expected.std())
    assert close.mean() > 0.98
    assert np.abs(found - expected).max() < 0.05 * expected.std()


def test_is_close_to_the_float_graph(model, image):
    expected = run(model, image)
    middle = convolution(image[0], weights()["w1"])
    middle = np.where(middle > 0, middle, 0.2 * middle)
    quantise(model, {"input": np.abs(image).max(), "middle": np.abs(middle).max()}, LAYERS)
    assert sqnr_db(expected, run(model, image)) > 30


def test_scales_lie_along_the_output_channels(model):
    layers = {layer.name: layer for layer in quantise(model, THRESHOLDS, LAYERS)}
    constants = initialisers(model)
    nodes = {node.name: node for node in model.graph.node}
    for name, source, axis in (("first", "w1", 0), ("second", "w2", 1)):
        node = nodes[f"{name}.weight_s8_dequantised"]
        assert [(attribute.name, attribute.i) for attribute in node.attribute] == [("axis", axis)]
        stored, scales = constants[node.input[0]], constants[node.input[1]]
        weight = weights()[source]
        assert stored.dtype == np.int8 and stored.shape == weight.shape
        other = tuple(i for i in range(4) if i != axis)
        assert np.allclose(scales, np.abs(weight).max(axis=other) / LEVELS)
        assert (np.abs(stored.astype(int)).max(axis=other) == LEVELS).all(), "every channel uses its levels"
        assert not constants[node.input[2]].any(), "symmetric"
        assert layers[name].weight_scale_min == pytest.approx(scales.min())
        assert layers[name].weight_scale_max == pytest.approx(scales.max())
        assert layers[name].weight_sqnr_db > 35


def test_report(model):
    first, second = quantise(model, THRESHOLDS, LAYERS)
    assert (first.name, first.operator, first.tensors) == ("first", "Conv", ("input",))
    assert (second.name, second.operator, second.tensors) == ("second", "ConvTranspose", ("middle",))
    assert [*first.activation_ranges, *second.activation_ranges] == pytest.approx([2.0, 1.5])
    assert first.activation_scales == pytest.approx((2.0 / 127,))
    assert first.to_dict()["name"] == "first"


def test_one_scale_per_layer_costs_small_channels(model):
    per_layer = quantise(copy.deepcopy(model), THRESHOLDS, LAYERS, per_channel=False)
    per_channel = quantise(model, THRESHOLDS, LAYERS)
    for coarse, fine in zip(per_layer, per_channel, strict=True):
        assert coarse.weight_scale_min == coarse.weight_scale_max == fine.weight_scale_max
        assert coarse.weight_sqnr_db < fine.weight_sqnr_db


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_power2_scales(axis, per_channel):
    weight = weights()["w1"]
    plain = weight_scales(weight, axis, per_channel, power2=False)
    rounded_up = weight_scales(weight, axis, per_channel, power2=True)
    assert rounded_up.shape == (weight.shape[axis],)
    assert (np.log2(rounded_up) % 1 == 0).all()
    assert (rounded_up >= plain).all() and (rounded_up < 2 * plain).all()
    assert (weight_scales(np.float32(127) * np.ones((2, 2, 1, 1), np.float32), 0, True, True) == 1).all()


def test_a_channel_of_zeros_stays_zero():
    weight = weights()["w1"]
    weight[2] = 0
    scales = weight_scales(weight, 0, per_channel=True, power2=False)
    assert np.isfinite(scales).all() and (scales > 0).all()
    assert not quantise_weight(weight, scales, 0)[2].any()


def test_only_the_asked_layers(model, image):
    (layer,) = quantise(model, THRESHOLDS, ["second"])
    assert layer.name == "second"
    assert count_quantised(model) == {"Conv": 0, "ConvTranspose": 1}
    assert "w1" in initialisers(model) and "w2" not in initialisers(model), "float weights are dropped"
    assert run(model, image).shape == (1, 6, 12, 12)


def test_counts(model):
    assert count_quantised(model) == {"Conv": 0, "ConvTranspose": 0}
    quantise(model, THRESHOLDS, LAYERS)
    assert count_quantised(model) == {"Conv": 1, "ConvTranspose": 1}


def test_readers_of_one_tensor_share_its_rounding(model, image):
    twin = helper.make_node("Conv", ["input", "w1"], ["unused"], "twin", pads=[1, 1, 1, 1])
    model.graph.node.insert(1, twin)
    quantise(model, THRESHOLDS, [*LAYERS, "twin"])
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2
    assert run(model, image).shape == (1, 6, 12, 12)


def test_a_layer_that_is_not_there(model):
    with pytest.raises(QuantisationError, match="not convolutions of this graph: activation, third"):
        quantise(model, THRESHOLDS, ["first", "third", "activation"])


def test_a_layer_that_was_not_calibrated(model):
    with pytest.raises(QuantisationError, match="second: .* middle was not calibrated"):
        quantise(model, {"input": 1.0}, LAYERS)


def test_a_layer_without_constant_weights(model):
    model.graph.node.insert(0, helper.make_node("Neg", ["w1"], ["computed"]))
    model.graph.node[1].input[1] = "computed"
    with pytest.raises(QuantisationError, match="first: weight is not constant"):
        quantise(model, THRESHOLDS, LAYERS)


def test_quantisable_layers(model):
    assert [node.name for node in quantisable_layers(model)] == LAYERS
    rgb = np.zeros((3, 6, 1, 1), np.float32)
    depthwise = np.zeros((6, 1, 2, 2), np.float32)
    for name, weight, group in (("to_rgb", rgb, 1), ("blur", depthwise, 6)):
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
        model.graph.node.append(
            helper.make_node("Conv", ["output", name], [f"{name}_out"], name, group=group)
        )
    assert [node.name for node in quantisable_layers(model)] == LAYERS, "RGB layers and filters stay in float"


NAMES = [
    "ecd1.conv",
    "ecd2.conv",
    "generator.conv1.conv",
    "generator.convs.0.conv",
    "generator.convs.10.conv",
]


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        ([], [0, 1, 2, 3, 4]),
        ([0, 4], [1, 2, 3]),
        (["ecd2.conv"], [0, 2, 3, 4]),
        (["ecd*"], [2, 3, 4]),
        (["generator.convs.?.conv", 0, "ecd1.conv"], [1, 2, 4]),
    ],
)
def test_select_layers(exclude, kept):
    assert select_layers(NAMES, exclude) == [NAMES[i] for i in kept]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([5], r"index 5 is outside 0\.\.4"),
        ([-1], r"index -1 is outside 0\.\.4"),
        (["generator.convs.1.conv"], r"called 'generator.convs.1.conv'; nearest: generator.convs.10.conv"),
        (["zzz*"], "called 'zzz\\*'; layers: ecd1.conv, "),
        (["*"], "leaves nothing to quantise"),
        ([0, 1, 2, 3, 4], "leaves nothing to quantise"),
    ],
)
def test_select_layers_refuses(exclude, message):
    with pytest.raises(QuantisationError, match=message):
        select_layers(NAMES, exclude)


def test_sqnr():
    signal = np.array([3.0, 4.0])
    assert sqnr_db(signal, signal) == 200.0
    assert sqnr_db(signal, signal + np.array([0.3, 0.4])) == pytest.approx(20.0)
