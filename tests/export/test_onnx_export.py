"""ONNX files: contract of inputs and outputs, names, batch sizes, nothing of this machine inside."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gpenlib.architecture import GpenConfig
from gpenlib.architecture.checkpoints import random_network
from gpenlib.export import ParityError, deploy_form, export_onnx, summarise_graph
from gpenlib.export import graphs as onnx_export
from gpenlib.export.graphs import NAMED_OPERATORS, OPSET, assert_parity, example_input, name_nodes, run_onnx
from gpenlib.files import repository_root

EXPORTERS = ("dynamo", "torchscript")


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def weighted_names(path: Path) -> dict[str, str]:
    """Operator by name of every node that holds weights."""
    nodes = onnx.load(path).graph.node
    return {node.name: node.op_type for node in nodes if node.op_type in NAMED_OPERATORS}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_contract(tiny_onnx, exporter):
    model = onnx.load(tiny_onnx[exporter])
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    (image,), (output,) = model.graph.input, model.graph.output
    assert (image.name, output.name) == ("input", "output")
    for value in (image, output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert isinstance(dimensions(value)[0], str), "the batch size is free"
        assert dimensions(value)[1:] == [3, 64, 64]
    assert len(list(tiny_onnx[exporter].parent.iterdir())) == len(tiny_onnx), "one file, no data beside it"


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_any_batch_size(tiny_onnx, tiny_model, exporter, batch):
    image = example_input(tiny_model.config, batch)
    with torch.inference_mode():
        expected = tiny_model(image).numpy()
    assert_parity(expected, run_onnx(tiny_onnx[exporter], image.numpy()), f"{exporter}, batch {batch}")


def test_exporters_agree(tiny_onnx, tiny_model):
    image = example_input(tiny_model.config, 2).numpy()
    first, second = (run_onnx(tiny_onnx[exporter], image) for exporter in EXPORTERS)
    assert_parity(first, second, "exporters")
    assert weighted_names(tiny_onnx["dynamo"]) == weighted_names(tiny_onnx["torchscript"])


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_weighted_nodes_are_named_by_their_modules(tiny_onnx, tiny_deploy, exporter):
    modules = dict(tiny_deploy.named_modules())
    kinds = {"Conv": "Conv2d", "ConvTranspose": "ConvTranspose2d", "Gemm": "Linear"}
    names = weighted_names(tiny_onnx[exporter])
    for name, operator in names.items():
        if operator == "MatMul":
            assert name.endswith(".energy") and hasattr(modules[name.removesuffix(".energy")], "energy")
        else:
            assert type(modules[name]).__name__ == kinds[operator], name
    expected = [name for name, module in modules.items() if type(module).__name__ in kinds.values()]
    assert set(expected) <= set(names)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_no_trace_of_this_machine(tiny_onnx, exporter):
    content = tiny_onnx[exporter].read_bytes()
    for word in (str(repository_root()), str(Path.home()) + "/", "site-packages", "stack_trace", ".py"):
        assert word.encode() not in content, word
    model = onnx.load(tiny_onnx[exporter])
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_graph_has_no_run_time_weights(tiny_onnx, tiny_training_onnx):
    before, after = summarise_graph(tiny_training_onnx), summarise_graph(tiny_onnx["dynamo"])
    assert before.runtime_convolutions > 0
    assert after.runtime_convolutions == 0
    assert after.constant_convolutions == before.constant_convolutions + before.runtime_convolutions
    assert after.nodes < summarise_graph(tiny_onnx["torchscript"]).nodes


def test_training_form_at_batch_1(tiny_training_onnx, tiny_model):
    assert dimensions(onnx.load(tiny_training_onnx).graph.input[0]) == [1, 3, 64, 64]
    image = example_input(tiny_model.config)
    with torch.inference_mode():
        expected = tiny_model(image).numpy()
    assert_parity(expected, run_onnx(tiny_training_onnx, image.numpy()), "training form")


def test_names_are_refused_where_weights_are_computed(tiny_training_onnx):
    with pytest.raises(ParityError, match="has no constant weight"):
        name_nodes(onnx.load(tiny_training_onnx))


def test_super_resolution_at_a_fixed_batch_size(tmp_path):
    model = random_network(GpenConfig(64, 128, 1, 0.03125))
    path = export_onnx(model, tmp_path / "sr.onnx", dynamic_batch=False)
    graph = onnx.load(path).graph
    assert dimensions(graph.input[0]) == [1, 3, 64, 64]
    assert dimensions(graph.output[0]) == [1, 3, 128, 128]
    image = example_input(model.config)
    with torch.inference_mode():
        assert_parity(model(image).numpy(), run_onnx(path, image.numpy()), "super-resolution")


def test_a_file_that_disagrees_is_not_kept(tiny_model, tmp_path, monkeypatch):
    def zeros(path, image):
        return np.zeros_like(image)

    monkeypatch.setattr(onnx_export, "run_onnx", zeros)
    with pytest.raises(ParityError, match="wrong.onnx, batch 1"):
        export_onnx(deploy_form(copy.deepcopy(tiny_model)), tmp_path / "wrong.onnx", "torchscript")
    assert list(tmp_path.iterdir()) == []
