"""Files of a network: contract, names, nothing of this machine inside, parity, no side effects."""

import json
import math
from functools import partial
from pathlib import Path

import cv2
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
from gpenlib.export.graphs import (
    NAMED_OPERATORS,
    OPSET,
    example_input,
    extreme_inputs,
    name_nodes,
    run_onnx,
    save_onnx,
    try_exporters,
)
from gpenlib.files import repository_root

EXPORTERS = {"dynamo": 9, "torchscript": 8}  # with the IR version that they write


def dimensions(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def assert_same(model, other, batch=1):
    """The other function, of arrays, computes what the model does."""
    image = example_input(model.config, batch)
    with torch.inference_mode():
        assert_parity(model(image).numpy(), other(image.numpy()), f"batch {batch}")


def weighted_names(path):
    """Operator by name of every node that holds weights."""
    nodes = onnx.load(path).graph.node
    return {node.name: node.op_type for node in nodes if node.op_type in NAMED_OPERATORS}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_contract(tiny_onnx, tiny_model, exporter):
    path = tiny_onnx[exporter]
    model, content = onnx.load(path), path.read_bytes()
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)] == [("", 18)]
    assert model.ir_version == EXPORTERS[exporter]
    (image,), (output,) = model.graph.input, model.graph.output
    assert (image.name, output.name) == ("input", "output")
    for value in (image, output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert isinstance(dimensions(value)[0], str), "the batch size is free"
        assert dimensions(value)[1:] == [3, 64, 64]
    assert len(list(path.parent.iterdir())) == len(tiny_onnx), "one file, no data beside it"
    for word in (str(repository_root()), str(Path.home()) + "/", "site-packages", "stack_trace", ".py"):
        assert word.encode() not in content, word
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for batch in (1, 2, 5):
        assert_same(tiny_model, partial(run_onnx, path), batch)


@pytest.mark.parametrize("name", [*EXPORTERS, "training"])
def test_flat_and_extreme_pictures_are_finite_and_right(tiny_onnx, tiny_training_onnx, tiny_model, name):
    """A picture of zeros meets no bias in fresh weights: only the epsilons keep it from 0 / 0."""
    path = tiny_training_onnx if name == "training" else tiny_onnx[name]
    for image in extreme_inputs(64):
        with torch.inference_mode():
            assert_parity(tiny_model(image).numpy(), run_onnx(path, image.numpy()), f"{image.mean()}")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    norm = 9 if name == "training" else 0  # demodulations; the deploy form has constants of its own for them
    readers = [node for node in onnx.load(path).graph.node if node.op_type == "Add"]
    tiny = [
        name for node in readers for name in node.input if np.allclose(constants.get(name, 1), 1e-8, 0, 0)
    ]
    assert name == "torchscript" or len(tiny) == 1 + norm


def test_a_file_that_differs_on_a_flat_picture_alone_is_not_kept(tiny_deploy, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "LEAST_ADDEND", 0.0)  # the exporter's own way
    with pytest.raises(ParityError, match=r"a\.onnx, flat and extreme pictures: .*NaN"):
        export_onnx(tiny_deploy, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_opencv_reads_and_runs_the_float_file(tiny_onnx, tiny_model, exporter):
    def run(image):
        network = cv2.dnn.readNetFromONNX(str(tiny_onnx[exporter]))
        network.setInput(image)
        return network.forward()

    assert_same(tiny_model, run)


def test_unsqueeze_gets_one_axis_at_a_time(tmp_path):
    nodes = [
        helper.make_node("Unsqueeze", ["input", "axes"], ["high"], "n"),
        helper.make_node("Unsqueeze", ["high", "axes"], ["output"], "m"),
    ]
    shapes = {"input": [2, 3], "output": [1, 1, 1, 2, 1, 3]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.array([2, 0]), "axes")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save_onnx(model, tmp_path / "a.onnx")
    written = onnx.load(tmp_path / "a.onnx")
    assert written.ir_version == 9 and len(written.graph.node) == 4
    assert [list(tensor.dims) for tensor in written.graph.initializer] == [[1], [1]]
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = np.expand_dims(np.expand_dims(image, (0, 2)), (0, 2))
    assert np.array_equal(run_onnx(tmp_path / "a.onnx", image), expected)


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


def test_graph_has_no_run_time_weights(tiny_onnx, tiny_training_onnx):
    before, after = summarise_graph(tiny_training_onnx), summarise_graph(tiny_onnx["dynamo"])
    assert before.runtime_convolutions > 0
    assert after.runtime_convolutions == 0
    assert after.constant_convolutions == before.constant_convolutions + before.runtime_convolutions
    assert after.nodes < summarise_graph(tiny_onnx["torchscript"]).nodes
    assert weighted_names(tiny_onnx["dynamo"]) == weighted_names(tiny_onnx["torchscript"])


def test_fixed_batch_size_of_training_form_and_super_resolution(tiny_training_onnx, tiny_model, tmp_path):
    with pytest.raises(ParityError, match="has no constant weight"):
        name_nodes(onnx.load(tiny_training_onnx))
    larger = random_network(GpenConfig(64, 128, 1, 0.03125))
    path = export_onnx(larger, tmp_path / "sr.onnx", dynamic_batch=False)
    for model, file, size in ((tiny_model, tiny_training_onnx, 64), (larger, path, 128)):
        graph = onnx.load(file).graph
        assert dimensions(graph.input[0]) == [1, 3, 64, 64]
        assert dimensions(graph.output[0]) == [1, 3, size, size]
        assert_same(model, partial(run_onnx, file))


def test_counts(tmp_path):
    """Four convolutions: constant weights, the same behind Identity, as Constant node, and computed."""
    weight, path = (
        numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "weight"),
        tmp_path / "four.onnx",
    )
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["a"]),
        helper.make_node("Identity", ["weight"], ["copy"]),
        helper.make_node("ConvTranspose", ["a", "copy"], ["b"]),
        helper.make_node("Constant", [], ["literal"], value=weight),
        helper.make_node("Conv", ["b", "literal"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["style"], keepdims=1),
        helper.make_node("Mul", ["weight", "style"], ["computed"]),
        helper.make_node("Conv", ["c", "computed"], ["output"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in ("input", "output")]
    constants = [weight, numpy_helper.from_array(np.array([0, 2, 3], np.int64), "axes")]
    graph = helper.make_graph(nodes, "four", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    summary = json.loads(json.dumps(summarise_graph(str(path)).to_dict()))
    assert summary == {
        "nodes": 8,
        "operators": {"Conv": 3, "Identity": 1, "ConvTranspose": 1, "Constant": 1, "ReduceMean": 1, "Mul": 1},
        "constant_convolutions": 3, "runtime_convolutions": 1, "parameters": 4 + 3,
        "bytes": path.stat().st_size, "opset": 18,
    }  # fmt: skip


def test_torchscript_equals_the_training_form_at_any_batch_size(tiny_model, tiny_deploy, tmp_path):
    script = torch.jit.load(str(export_torchscript(tiny_deploy, tmp_path / "new" / "deploy.pt")))
    for batch in (1, 3):
        assert_same(tiny_model, lambda image: script(torch.from_numpy(image)).numpy(), batch)
    assert list(script.parameters()) == [], "weights are frozen in"


def test_figures():
    reference = np.tile(np.array([-0.5, 0.5], np.float32), 24).reshape(1, 3, 4, 4)  # deviation 0.5
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += 0.25
    difference = assert_parity(reference, candidate, "this", tolerance=0.6)
    assert difference.max_abs == pytest.approx(0.25)
    assert difference.mean_abs == pytest.approx(0.25 / 48)
    assert difference.relative == pytest.approx(0.5)
    assert difference.psnr == pytest.approx(10 * math.log10(4 / (0.0625 / 48)))
    with pytest.raises(ParityError, match=r"this: .*5\.00e-01.*1e-04"):
        assert_parity(reference, candidate, "this")
    equal = parity(reference, reference.copy())
    assert math.isinf(equal.psnr)
    assert equal.to_dict() == {"max_abs": 0.0, "mean_abs": 0.0, "relative": 0.0, "psnr": None}
    half = np.tile(np.array([60000, -60000], np.float16), 24)
    difference = parity(half, -half)  # neither it nor the variance is a number of float16
    assert difference.max_abs == 120000 and difference.relative == pytest.approx(2)
    assert math.isfinite(parity(0 * reference, 0 * reference + 1).relative)


def test_shapes_must_agree_and_values_be_finite():
    zeros = np.zeros((1, 3, 4, 4), np.float32)
    with pytest.raises(ParityError, match=r"\(1, 3, 4, 4\) and \(3, 4, 4\)"):
        parity(zeros, zeros[0])
    for value in (np.nan, np.inf):
        for pair in ((zeros, zeros + value), (zeros + value, zeros)):
            with pytest.raises(ParityError, match="NaN or infinity"):
                parity(*pair)


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
    "dynamo": export_onnx,
    "torchscript": lambda network, path: export_onnx(network, path, "torchscript"),
    "script": export_torchscript,
    "mixed": lambda network, _: mixed_precision(network, "bf16"),
    "training": export_training_form,
    "deploy": lambda network, _: deploy_form(network),
}
OF_BOTH = ("dynamo", "torchscript", "script", "mixed")  # the others take a Gpen
CASES = [*((Gpen, action) for action in ACTIONS), *((DeployGpen, action) for action in OF_BOTH)]


@pytest.mark.parametrize(("kind", "action"), CASES)
def test_the_network_stays_as_it_is_also_where_an_export_fails(tmp_path, monkeypatch, kind, action):
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
        assert snapshot(network) == before and list((tmp_path / "new").iterdir()) == []


def test_with_an_open_batch_size_neither_exporter_writes_the_training_form(capfd):
    network = random_network(GpenConfig(32, 32, 1, 0.03125)).set_modulation("activations").train()
    before = snapshot(network)
    outcome = {(row["exporter"], row["batch size"]): row["training form"] for row in try_exporters(network)}
    for exporter in EXPORTERS:
        assert outcome[exporter, "fixed"] == "works" and outcome[exporter, "open"].startswith("fails with ")
    assert capfd.readouterr().out == "" and snapshot(network) == before
