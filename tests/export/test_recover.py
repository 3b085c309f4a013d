"""The way in: weights recovered from anonymised ONNX files of the training form."""

import copy
import random
import re
import warnings
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from gpenlib import gpen_from_onnx
from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture import model as ops
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.export import RecoverError, export_training_form
from gpenlib.export.graphs import example_input

CONFIGS = {
    "multiplier 2": GpenConfig(64, 64, 2, 0.03125),
    "widths differ": GpenConfig(128, 128, 1, 0.0625),  # 8, 16, then 32 channels
    "super-resolution": GpenConfig(64, 128, 1, 0.0625),
}


def network(config: GpenConfig) -> Gpen:
    """Random network in which no two biases or noise weights are equal."""
    model = random_network(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "noise.weight")):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def export_torchscript_onnx(model: Gpen, path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(model, (example_input(model.config),), path, dynamo=False, opset_version=17)


EXPORTERS = {"dynamo": export_training_form, "torchscript": export_torchscript_onnx}


def anonymise(path: Path) -> None:
    """Replace every initialiser, value and node name; drop what else could tell names."""
    model = onnx.load(path)
    graph, names = model.graph, {"": ""}

    def anonymous(name: str) -> str:
        return names.setdefault(name, f"onnx::Any_{len(names)}")

    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = anonymous(value.name)
        del value.metadata_props[:]
        value.doc_string = ""
    for index, node in enumerate(graph.node):
        node.name, node.doc_string = f"n{index}", ""
        node.input[:] = [anonymous(name) for name in node.input]
        node.output[:] = [anonymous(name) for name in node.output]
        del node.metadata_props[:]
    del graph.value_info[:]
    del model.metadata_props[:]
    graph.name, graph.doc_string = "g", ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def shuffle(source: Path, path: Path) -> Path:
    """Put the nodes into another topological order."""
    model = onnx.load(source)
    chooser, waiting, order = random.Random(0), list(model.graph.node), []
    known = {"", *(value.name for value in (*model.graph.initializer, *model.graph.input))}
    while waiting:
        node = chooser.choice([node for node in waiting if known.issuperset(node.input)])
        waiting.remove(node)
        known.update(node.output)
        order.append(copy.deepcopy(node))
    del model.graph.node[:]
    model.graph.node.extend(order)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def assert_recovered(path: Path, model: Gpen) -> None:
    recovered = gpen_from_onnx(path)
    assert recovered.config == model.config and not recovered.training
    state = recovered.state_dict()
    unknown = {
        f"generator.convs.{2 * level - 6 + i}.noise.weight"
        for level in range(model.config.log_in + 1, model.config.log_out + 1)
        for i in (0, 1)
    }
    for name, expected in model.state_dict().items():
        if name not in unknown:
            limit = 1e-5 * max(1.0, float(expected.abs().max()))  # the mapping network's entries reach 400
            assert (state[name] - expected).abs().max() <= limit, name
    image = example_input(model.config, 2)
    with torch.inference_mode():
        torch.testing.assert_close(recovered(image), model(image), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory):
    """The tiny network and its file without names, by exporter."""
    folder, files = tmp_path_factory.mktemp("anonymous"), {}
    for exporter, export in EXPORTERS.items():
        files[exporter] = (network(TINY), folder / f"{exporter}.onnx")
        export(*files[exporter])
        anonymise(files[exporter][1])
    return files


@pytest.mark.parametrize("name", ["as written", "shuffled", "zero biases", *CONFIGS])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_recovers_without_names_whatever_the_order_and_size(anonymous, tmp_path, tiny_model, exporter, name):
    """A fresh network's zero biases are left out or shared by exporters."""
    model, path = anonymous[exporter]
    if name in ("zero biases", *CONFIGS):
        model = network(CONFIGS[name]) if name in CONFIGS else copy.deepcopy(tiny_model)
        path = tmp_path / "any.onnx"
        EXPORTERS[exporter](model, path)
        anonymise(path)
    elif name == "shuffled":
        path = shuffle(path, tmp_path / "any.onnx")
    assert "generator" not in str(onnx.load(path).graph.node)
    assert_recovered(path, model)


def test_native_operators_of_the_original_code(tmp_path, monkeypatch):
    """Padded and cropped FIR filters, and biases that are added after a bare matrix product."""
    linear = ops.EqualLinear.forward

    def native(x, kernel, up=1, down=1, pad=(0, 0)):
        """One-channel filter over zero-inserted, padded rows, as ``upfirdn2d_native``."""
        n, c, h, w = x.shape
        x = x.reshape(-1, 1, h, 1, w, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, h * up, w * up)
        x = F.conv2d(F.pad(x, (*pad, *pad)), kernel.flip(0, 1)[None, None])
        return x.reshape(n, c, x.shape[2], x.shape[3])[:, :, ::down, ::down]

    def bias_afterwards(layer, x):
        if not layer.activation:
            return linear(layer, x)
        y = x @ (layer.weight * layer.scale).T
        return F.leaky_relu(y + layer.bias * layer.lr_mul, ops.LEAKY_SLOPE) * ops.LEAKY_GAIN

    model, path = network(TINY), tmp_path / "native.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(ops, "upfirdn2d", native)
        patch.setattr(ops.EqualLinear, "forward", bias_afterwards)
        export_training_form(model, path)
    anonymise(path)
    assert "MatMul" in {node.op_type for node in onnx.load(path).graph.node}
    assert_recovered(path, model)


def test_nodes_may_stand_in_any_order(anonymous, tmp_path):
    for model, path in anonymous.values():
        graph = onnx.load(path)
        nodes = [*graph.graph.node][::-1]
        del graph.graph.node[:]
        graph.graph.node.extend(nodes)
        (tmp_path / "reversed.onnx").write_bytes(graph.SerializeToString())
        assert_recovered(tmp_path / "reversed.onnx", model)


def damage(model: onnx.ModelProto, how: str) -> str:
    """Damage a model and return what its refusal must name."""
    graph = model.graph
    weight = next(tensor for tensor in graph.initializer if list(tensor.dims) == [16, 3, 1, 1])
    linear = [node for node in graph.node if node.op_type == "Gemm"][4]
    named = {"missing layer": "missing: generator.style.8.weight", "input": "mask"}.get(how, "damaged.onnx")
    if how == "transposed":
        weight.dims[:] = [3, 16, 1, 1]
    elif how == "truncated":
        named, weight.raw_data = weight.name, weight.raw_data[:40]
    elif how == "removed":
        named = weight.name
        graph.initializer.remove(weight)
    elif how == "missing layer":  # of the mapping network, so that the last one is missing
        graph.node.remove(linear)
        for node in graph.node:
            node.input[:] = [linear.input[0] if name == linear.output[0] else name for name in node.input]
    elif how == "slope":
        for node in graph.node:
            if node.op_type == "LeakyRelu":
                node.attribute[0].f = 0.5
    else:
        graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    return named


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("how", ["transposed", "truncated", "removed", "missing layer", "slope", "input"])
def test_damaged_graph(anonymous, tmp_path, exporter, how):
    model, path = onnx.load(anonymous[exporter][1]), tmp_path / "damaged.onnx"
    named = damage(model, how)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RecoverError, match=re.escape(named)):
        gpen_from_onnx(path)


def test_other_networks_are_refused(tmp_path, tiny_onnx):
    for path in tiny_onnx.values():
        with pytest.raises(RecoverError, match="not a GPEN training form"):
            gpen_from_onnx(path)
    kind = "float16[1, 3, 64, 64]"
    half = f'<ir_version: 9, opset_import: ["": 18]> g ({kind} x) => ({kind} y) {{ y = Relu(x) }}'
    onnx.save(onnx.parser.parse_model(half), tmp_path / "half.onnx")
    (tmp_path / "text.onnx").write_text("no protobuf")
    cases = {"half": (RecoverError, "float32"), "text": (RecoverError, ""), "absent": (FileNotFoundError, "")}
    for name, (error, said) in cases.items():
        with pytest.raises(error, match=rf"{name}\.onnx.*{said}"):
            gpen_from_onnx(tmp_path / f"{name}.onnx")


# External data: tensors in files beside the ONNX file


def write_external(source: Path, path: Path, together: bool = True) -> Path:
    """Move every tensor, those of constant nodes too, out of the ONNX file."""
    path.parent.mkdir()
    onnx.save(
        onnx.load(source), path, save_as_external_data=True, all_tensors_to_one_file=together,
        location="weights.data" if together else None, size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_tensors_in_side_files_are_read(anonymous, tmp_path, monkeypatch, exporter, together):
    model, source = anonymous[exporter]
    path = write_external(source, tmp_path / "here" / "external.onnx", together)
    assert len(list(path.parent.iterdir())) == 2 if together else len(list(path.parent.iterdir())) > 50
    assert path.stat().st_size < source.stat().st_size / 10
    assert_recovered(path, model)
    monkeypatch.chdir(path.parent)
    state, expected = (gpen_from_onnx(file).state_dict() for file in (path.name, source))
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("place", ["../weights.data", "{folder}/weights.data", "link.data", "absent", "cut"])
def test_side_files_that_are_elsewhere_missing_or_cut_are_named(anonymous, tmp_path, place):
    path = write_external(anonymous["dynamo"][1], tmp_path / "here" / "external.onnx")
    moved = (path.parent / "weights.data").rename(tmp_path / "weights.data")
    (path.parent / "link.data").symlink_to(moved)
    (path.parent / "cut").write_bytes(moved.read_bytes()[:100])
    named = "external.onnx" if place in ("absent", "cut") else place.format(folder=tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in (*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place.format(folder=tmp_path)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RecoverError, match=re.escape(named)):
        gpen_from_onnx(path)
