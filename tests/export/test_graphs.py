"""Files of a network: contract, names, nothing of this machine inside, parity, no side effects."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.checkpoints import random_network
from gpenlib.export import (
    DeployGpen,
    ParityError,
    assert_parity,
    deploy_form,
    export_onnx,
    export_torchscript,
    export_training_form,
    graphs,
    mixed_precision,
    parity,
    summarise_graph,
)
from gpenlib.export.graphs import NAMED_OPERATORS, OPSET, example_input, name_nodes, run_onnx, try_exporters
from gpenlib.files import repository_root

EXPORTERS = {"dynamo": 10, "torchscript": 8}  # with the IR version that they write


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
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)] == [("", 18)]
    assert model.ir_version == EXPORTERS[exporter]
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
    assert weighted_names(tiny_onnx["dynamo"]) == weighted_names(tiny_onnx["torchscript"])


def test_training_form_at_batch_1(tiny_training_onnx, tiny_model):
    assert dimensions(onnx.load(tiny_training_onnx).graph.input[0]) == [1, 3, 64, 64]
    image = example_input(tiny_model.config)
    with torch.inference_mode():
        expected = tiny_model(image).numpy()
    assert_parity(expected, run_onnx(tiny_training_onnx, image.numpy()), "training form")
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


@pytest.fixture
def graph_path(tmp_path):
    """Four convolutions: constant weights, the same behind Identity, as Constant node, and computed."""
    weight = np.ones((2, 2, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["a"]),
        helper.make_node("Identity", ["weight"], ["copy"]),
        helper.make_node("ConvTranspose", ["a", "copy"], ["b"]),
        helper.make_node("Constant", [], ["literal"], value=numpy_helper.from_array(weight, "literal")),
        helper.make_node("Conv", ["b", "literal"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["style"], keepdims=1),
        helper.make_node("Mul", ["weight", "style"], ["computed"]),
        helper.make_node("Conv", ["c", "computed"], ["output"]),
    ]
    image, output = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("input", "output")
    )
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([0, 2, 3], np.int64), "axes"),
    ]
    graph = helper.make_graph(nodes, "four", [image], [output], constants)
    path = tmp_path / "four.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def test_counts(graph_path):
    summary = summarise_graph(str(graph_path))
    assert summary.to_dict() == {
        "nodes": 8,
        "operators": {"Conv": 3, "Identity": 1, "ConvTranspose": 1, "Constant": 1, "ReduceMean": 1, "Mul": 1},
        "constant_convolutions": 3, "runtime_convolutions": 1, "parameters": 4 + 3,
        "bytes": graph_path.stat().st_size, "opset": 18,
    }  # fmt: skip
    assert json.loads(json.dumps(summary.to_dict())) == summary.to_dict()
    assert next(iter(summary.operators)) == "Conv", "most frequent first"


def test_torchscript_equals_the_training_form_at_any_batch_size(tiny_model, tiny_deploy, tmp_path):
    script = torch.jit.load(str(export_torchscript(tiny_deploy, tmp_path / "new" / "deploy.pt")))
    for batch in (1, 3):
        image = example_input(tiny_model.config, batch)
        with torch.inference_mode():
            assert_parity(tiny_model(image).numpy(), script(image).numpy(), f"batch {batch}")
    assert list(script.parameters()) == [], "weights are frozen in"


@pytest.fixture
def reference():
    return np.tile(np.array([-0.5, 0.5], np.float32), 24).reshape(1, 3, 4, 4)  # standard deviation 0.5


def test_figures(reference):
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += 0.25
    difference = parity(reference, candidate)
    assert difference.max_abs == pytest.approx(0.25)
    assert difference.mean_abs == pytest.approx(0.25 / 48)
    assert difference.relative == pytest.approx(0.5)
    assert difference.psnr == pytest.approx(10 * math.log10(4 / (0.0625 / 48)))


def test_figures_of_extremes(reference):
    equal = parity(reference, reference.copy())
    assert math.isinf(equal.psnr)
    assert equal.to_dict() == {"max_abs": 0.0, "mean_abs": 0.0, "relative": 0.0, "psnr": None}
    reference = np.tile(np.array([60000, -60000], np.float16), 24)
    difference = parity(reference, -reference)  # neither it nor the variance is a number of float16
    assert difference.max_abs == 120000 and difference.relative == pytest.approx(2)
    flat = np.zeros((1, 3, 4, 4), np.float32)
    assert math.isfinite(parity(flat, flat + 1).relative)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_shapes_must_agree_and_values_be_finite(reference, value):
    with pytest.raises(ParityError, match=r"\(1, 3, 4, 4\) and \(3, 4, 4\)"):
        parity(reference, reference[0])
    wrong = reference.copy()
    wrong[0, 0, 0, 0] = value
    for pair in ((reference, wrong), (wrong, reference)):
        with pytest.raises(ParityError, match="NaN or infinity"):
            parity(*pair)


def test_tolerance(reference):
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += 1e-3  # 2e-3 of the standard deviation
    difference = assert_parity(reference, candidate, "this", tolerance=3e-3)
    assert difference.relative == pytest.approx(2e-3, rel=1e-3)
    with pytest.raises(ParityError, match=r"this: .*2\.00e-03.*1e-04"):
        assert_parity(reference, candidate, "this")


# What the caller gives is what it has afterwards


def snapshot(network: nn.Module) -> dict:
    """Every attribute of every module; of tensors identity, kind, layout and values."""
    state: dict = {}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, x in value.items():
                    kind = x is not None and (x.dtype, x.device, x.stride(), x.requires_grad, x.grad)
                    state[path, key] = kind and (id(x), x.data_ptr(), kind, x.detach().numpy().tobytes())
            elif name == "_modules" or "hooks" in name:
                state[path, name] = {key: id(item) for key, item in (value or {}).items()}
            else:
                state[path, name] = repr(value)
        state[path, "type"] = type(module)
    return state


def prepared(kind: type) -> nn.Module:
    """Return a small network in the state that careless exporters would change."""
    network = random_network(GpenConfig(32, 32, 1, 0.03125)).set_modulation("activations")
    network = network if kind is Gpen else deploy_form(network)
    network.requires_grad_(True).train()
    network.generator.to_rgbs[0].eval().requires_grad_(False)
    network.generator.register_forward_hook(lambda module, arguments, result: None)
    if kind is Gpen:  # its buffers move when the weight is read in training
        torch.nn.utils.parametrizations.spectral_norm(network.generator.conv1.conv, "weight")
    return network


ACTIONS = {
    "dynamo": lambda network, path: export_onnx(network, path),
    "torchscript": lambda network, path: export_onnx(network, path, "torchscript"),
    "script": lambda network, path: export_torchscript(network, path),
    "mixed": lambda network, _: mixed_precision(network, "bf16"),
    "training": lambda network, path: export_training_form(network, path),
    "deploy": lambda network, _: deploy_form(network),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", [Gpen, DeployGpen])
def test_the_network_stays_as_it_is_also_where_an_export_fails(tmp_path, monkeypatch, kind, action):
    if kind is DeployGpen and action in ("training", "deploy"):
        return  # they take a Gpen
    network, act = prepared(kind), ACTIONS[action]
    before = snapshot(network)
    act(network, tmp_path / "a.onnx")
    assert snapshot(network) == before

    def refuse(*arguments, **options):
        raise ParityError("they differ")

    if action in ("torchscript", "script", "training"):
        monkeypatch.setattr(graphs, "example_input" if action == "training" else "assert_parity", refuse)
        with pytest.raises(ParityError, match="they differ"):
            act(network, tmp_path / "new" / "a.onnx")
        assert snapshot(network) == before
        assert list((tmp_path / "new").iterdir()) == []


def test_a_file_that_computes_something_else_is_not_kept(tiny_deploy, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "run_onnx", lambda path, image: np.zeros_like(image))
    with pytest.raises(ParityError, match=r"wrong.onnx, batch 1"):
        export_onnx(tiny_deploy, tmp_path / "wrong.onnx", "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_with_an_open_batch_size_neither_exporter_writes_the_training_form(capfd):
    network = random_network(GpenConfig(32, 32, 1, 0.03125)).set_modulation("activations").train()
    before = snapshot(network)
    rows = try_exporters(network)
    outcome = {(row["exporter"], row["batch size"]): row["training form"] for row in rows}
    for exporter in EXPORTERS:
        assert outcome[exporter, "fixed"] == "works" and outcome[exporter, "open"].startswith("fails with ")
    assert capfd.readouterr().out == ""
    assert snapshot(network) == before
