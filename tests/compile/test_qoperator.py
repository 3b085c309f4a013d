"""The QOperator writer: against numpy on small graphs, and close to the QDQ form on a network."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpenlib.compile.calibrate import ChannelRange, calibrate
from gpenlib.compile.rounding import QuantisationError, quantisable_layers, round_layers, split_halves
from gpenlib.compile.write import OUTPUT_MARGIN, count_quantised, write_qdq, write_qoperator
from gpenlib.export.graphs import run_onnx

RNG = np.random.default_rng(3)
CHANNEL_SIZES = np.geomspace(0.01, 1, 6)  # output channels that differ by a factor of a hundred


def graph_of(nodes, constants, size):
    """A model input [1, 5, 7, 7] -> output."""
    shape = [1, 5, 7, 7]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 6, *size])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def plain_model():
    weight = RNG.standard_normal((6, 5, 3, 3)) * CHANNEL_SIZES[:, None, None, None]
    nodes = [helper.make_node("Conv", ["input", "w", "b"], ["output"], "conv", pads=[1] * 4, strides=[2, 2])]
    return graph_of(nodes, {"w": weight, "b": RNG.standard_normal(6) * CHANNEL_SIZES}, (4, 4))


def up_model(pads=(1, 1, 1, 1), strides=(2, 2)):
    weight = RNG.standard_normal((5, 6, 3, 3)) * CHANNEL_SIZES[:, None, None]
    nodes = [
        helper.make_node("ConvTranspose", ["input", "w"], ["raised"], "up", strides=list(strides)),
        helper.make_node("Conv", ["raised", "fir"], ["output"], "blur", pads=list(pads), group=6),
    ]
    fir = np.outer([1, 3, 3, 1], [1, 3, 3, 1])[None, None].repeat(6, 0) / 16
    return graph_of(nodes, {"w": weight, "fir": fir}, (14, 14))


def run(model, image):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": image})[0]


def converted(make, tensor, image, **options):
    """Return (float output, QDQ output, QOperator output) for one image that calibrates itself."""
    float_model, qdq, qoperator = make(), None, None
    forms = [onnx.ModelProto.FromString(float_model.SerializeToString()) for _ in range(3)]
    watched = forms[2]
    watched.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    name = next(node.name for node in float_model.graph.node if node.name in ("conv", "up"))
    session = onnxruntime.InferenceSession(watched.SerializeToString())
    value = session.run([tensor], {"input": image})[0]
    ranges = {tensor: ChannelRange(value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3)))}
    layers = round_layers(float_model, {"input": float(np.abs(image).max())}, [name], **options)
    qdq, qoperator = forms[:2]
    write_qdq(qdq, layers)
    write_qoperator(qoperator, layers, ranges)
    onnx.checker.check_model(qoperator)
    return run(float_model, image), run(qdq, image), run(qoperator, image), value


@pytest.mark.parametrize(("make", "tensor"), [(plain_model, "output"), (up_model, "raised")])
def test_differs_from_qdq_by_half_an_output_step(make, tensor):
    """Beside the rounding of the outputs, per channel, both forms compute the same numbers."""
    image = RNG.uniform(-1, 1, (1, 5, 7, 7)).astype(np.float32)
    _, qdq, qoperator, value = converted(make, tensor, image)
    low, high = np.minimum(value.min(axis=(0, 2, 3)), 0), np.maximum(value.max(axis=(0, 2, 3)), 0)
    step = ((high - low) / 255 * OUTPUT_MARGIN)[None, :, None, None]
    blur_gain = 4.0 if tensor == "raised" else 1.0  # the filter's taps sum to 4
    assert (np.abs(qoperator - qdq) <= (0.51 * blur_gain + 0.5) * step).all()
    assert np.abs(qoperator - qdq).max() > 0  # outputs really are rounded


def test_small_channels_keep_their_accuracy():
    """Every output channel has its own scale: the smallest is as accurate as the largest."""
    image = RNG.uniform(-1, 1, (1, 5, 7, 7)).astype(np.float32)
    expected, _, found, _ = converted(plain_model, "output", image)
    noise = np.square(found - expected).mean(axis=(0, 2, 3))
    signal = np.square(expected).mean(axis=(0, 2, 3))
    assert (10 * np.log10(signal / noise) > 30).all()


def test_the_runtime_computes_in_8_bits(tmp_path):
    image = RNG.uniform(-1, 1, (1, 5, 7, 7)).astype(np.float32)
    model = up_model()
    layers = round_layers(model, {"input": 1.0}, ["up"])
    write_qoperator(model, layers, {"raised": ChannelRange(np.full(6, -9.0), np.full(6, 9.0))})
    assert count_quantised(model) == {"Conv": 0, "ConvTranspose": 1}
    assert [node.op_type for node in model.graph.node].count("QLinearConv") == 4
    assert {entry.domain for entry in model.opset_import} == {""}  # standard operators only
    assert run(model, image).shape == (1, 6, 14, 14)


@pytest.mark.parametrize("options", [{"pads": (2, 2, 2, 2)}, {"strides": (1, 1)}])
def test_unknown_transposed_convolutions_are_refused(options):
    model = up_model(**options)
    layers = round_layers(model, {"input": 1.0}, ["up"])
    with pytest.raises(QuantisationError, match=r"up: .*qdq"):
        write_qoperator(model, layers, {"raised": ChannelRange(np.full(6, -9.0), np.full(6, 9.0))})


def test_on_a_network_it_is_as_close_as_qdq(float_graph, tmp_path):
    """Rounding the outputs costs less than 2 dB of the distance from the float network."""
    split = split_halves(onnx.load(float_graph))
    found_layers = quantisable_layers(split)
    image = RNG.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    inputs = list(dict.fromkeys(name for layer in found_layers for name in layer.inputs))
    found = calibrate(split, inputs, [layer.output for layer in found_layers], [image])
    thresholds = found.thresholds("max", 100)
    layers = round_layers(split, thresholds, [layer.name for layer in found_layers])
    errors = []
    expected = run_onnx(float_graph, image)
    for form in ("qdq", "qoperator"):
        model = split_halves(onnx.load(float_graph))
        if form == "qdq":
            write_qdq(model, layers)
        else:
            write_qoperator(model, layers, found.output_ranges)
        path = tmp_path / f"{form}.onnx"
        onnx.save(model, path)
        errors.append(np.square(run_onnx(path, image) - expected).mean())
        two = np.concatenate([image, image[..., ::-1]])
        np.testing.assert_allclose(run_onnx(path, two)[:1], run_onnx(path, image), atol=0.02)
    assert errors[1] < errors[0] * 10**0.2
