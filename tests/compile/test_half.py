"""fp16: the style path stays float32 throughout, and extreme styles change nothing."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from gpenlib.architecture import Gpen
from gpenlib.compile.half import join_casts, to_half
from gpenlib.compile.stress import scale_styles, stress_half
from gpenlib.export import export_training_form


@pytest.fixture(scope="module")
def training_graph(tiny_model: Gpen, tmp_path_factory):
    return export_training_form(tiny_model, tmp_path_factory.mktemp("training") / "training.onnx")


def test_no_value_of_the_style_path_passes_through_fp16(float_graph):
    """A vector is cast to fp16 only where a feature map takes it up."""
    half, _ = to_half(onnx.load(float_graph))
    narrowed = {
        node.output[0]
        for node in half.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16
    }
    readers = {name: node.op_type for node in half.graph.node for name in node.input if name in narrowed}
    assert narrowed and set(readers.values()) <= {"Mul", "Add", "Conv"}
    assert "Cast" not in readers.values()
    assert join_casts(half) == 0  # nothing is left to join


def test_extreme_styles_break_the_original_and_not_the_deploy_form(training_graph, float_graph):
    """In exact arithmetic the size of a style cancels; in fp16 it does only in the deploy form."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    factors = (1e-3, 1.0, 1e3, 1e6)
    rows = {row["factor"]: row for row in stress_half(training_graph, float_graph, images, factors)}
    assert all(row["change_psnr"] > 60 for row in rows.values())  # the function itself is the same
    ordinary = rows[1.0]["deploy_psnr"]
    assert all(abs(row["deploy_psnr"] - ordinary) < 3 for row in rows.values()) and ordinary > 60
    for factor in (1e3, 1e6):
        broken = rows[factor]["original_psnr"]
        assert broken is None or broken < ordinary - 20


def test_styles_are_found_in_both_graphs(training_graph, float_graph, tiny_model):
    layers = 1 + len(tiny_model.generator.convs)
    for path in (training_graph, float_graph):
        assert scale_styles(onnx.load(path), 2.0) == layers


def test_files_without_styles_are_refused(float_graph, tmp_path):
    model = onnx.load(float_graph)
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "anonymous.onnx")
    with pytest.raises(ValueError, match="0 styles in .*anonymous"):
        stress_half(tmp_path / "anonymous.onnx", float_graph, np.zeros((1, 3, 64, 64), np.float32), (1.0,))
