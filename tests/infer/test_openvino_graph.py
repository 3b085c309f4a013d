"""What is changed in a graph for one batch size: the style scales the weights of ToRGB layers."""

import numpy as np
import pytest

from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.export import export_onnx
from gpenlib.export.graphs import run_onnx
from gpenlib.infer.runtime import scale_rgb_weights

openvino = pytest.importorskip("openvino")
LEVELS = 5  # of the tiny network's ToRGB layers: 4 to 64 px


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return export_onnx(random_network(TINY), tmp_path_factory.mktemp("graph") / "float.onnx")


def load(path, batch):
    model = openvino.Core().read_model(path)
    model.reshape([batch, 3, TINY.in_size, TINY.in_size])
    return model


def run(model, images):
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", properties)(images)[0]


def rgb_layers(model):
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution" and "to_rgb" in node.get_friendly_name()
    ]


def test_one_image_has_scaled_weights_and_the_same_result(path):
    model = load(path, 1)
    assert scale_rgb_weights(model) == LEVELS
    for node in rgb_layers(model):
        data, weights = (node.input_value(i).get_node() for i in (0, 1))
        assert (data.get_type_name() != "Multiply", weights.get_type_name()) == (True, "Multiply")
        assert list(weights.get_output_shape(0))[::2] == [3, 1]
    image = np.random.default_rng(5).uniform(-1, 1, (1, 3, TINY.in_size, TINY.in_size)).astype(np.float32)
    expected = run_onnx(path, image)
    np.testing.assert_allclose(run(model, image), expected, atol=1e-4 * expected.std())


def test_several_images_need_weights_of_their_own(path):
    assert scale_rgb_weights(load(path, 2)) == 0


def test_other_layers_keep_constant_weights(path):
    model = load(path, 1)
    scale_rgb_weights(model)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution" and "to_rgb" not in node.get_friendly_name():
            assert node.input_value(1).get_node().get_type_name() == "Constant", node.get_friendly_name()
