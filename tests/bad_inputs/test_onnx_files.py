"""Bad ONNX files, as weights and in artefacts: looked through before anything is computed, and refused."""

import json
import os
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpenlib import load_checkpoint, open_runtime
from gpenlib.architecture.checkpoints import load_weights
from gpenlib.export import export_onnx, gpen_from_onnx
from gpenlib.photos.find import YuNet
from gpenlib.photos.upscale import TiledUpscaler
from gpenlib.run import Run
from tests.bad_inputs.harness import Case, check

IMAGE = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 64, 64])
OUTPUT = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, 64, 64])
BIG = [100_000, 100_000]


def save(folder, nodes, constants=(), inputs=(IMAGE,), name="bad.onnx", **options):
    """Write a graph of these nodes, whatever it is."""
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "bad", list(inputs), [OUTPUT], tensors)
    imports = [helper.make_opsetid("", options.pop("opset", 18))]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, **options)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def node(kind, inputs, outputs=("output",), **attributes):
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def chain(*middle, **constants):
    """Return a maker of a file whose nodes stand before an Add that reads their ``big``."""
    return partial(save, nodes=[*middle, node("Add", ["input", "big"])], constants=constants.items())


def raw(content, name="bad.onnx"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def loop(folder):
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Add", ["x", "x"], ["y"])], "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, [1]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("go_on", TensorProto.BOOL, []), ("y", TensorProto.FLOAT, [1]))],
    )  # fmt: skip
    nodes = [node("Loop", ["trips", "go", "one"], ["big"], body=body), node("Add", ["input", "big"])]
    constants = {"trips": np.int64(2**62), "go": np.bool_(True), "one": np.ones(1, np.float32)}
    return save(folder, nodes, constants.items())


def branch(folder):
    parts = [
        helper.make_graph([node("Identity", ["one"], [f"{name}_out"])], name, [],
                          [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1])])
        for name in ("yes", "no")
    ]  # fmt: skip
    nodes = [
        node("If", ["go"], ["big"], then_branch=parts[0], else_branch=parts[1]),
        node("Add", ["input", "big"]),
    ]
    return save(folder, nodes, {"go": np.bool_(True), "one": np.ones(1, np.float32)}.items())


def external(location, offset=None, length=None):
    """Return a maker of a file one of whose tensors lies in another file."""

    def make(folder):
        (folder / "data.bin").write_bytes(bytes(64))
        (folder.parent / "given" / "secret.bin").write_bytes(bytes(64))
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        path = save(folder, [node("Add", ["input", "w"])])
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer.append(tensor)
        inner = folder / "inner"
        inner.mkdir()
        (inner / "bad.onnx").write_bytes(model.SerializeToString())
        (inner / "data.bin").write_bytes(bytes(64))
        (inner / "link.bin").symlink_to(folder / "secret.bin")
        return inner / "bad.onnx"

    return make


def changed(change):
    """Return a maker of the training form of a tiny network, changed."""

    def make(folder):
        from gpenlib.export import export_training_form

        path = export_training_form(load_weights("tiny-random").model, folder / "bad.onnx")
        model = onnx.load(path)
        change(model.graph)
        path.write_bytes(model.SerializeToString())
        return path

    return make


def no_numbers(graph):
    tensor = max(graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    value = numpy_helper.to_array(tensor).copy()
    value.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def negative(graph):
    graph.initializer[0].dims[:] = [-5]


def longer(graph):
    max(graph.initializer, key=lambda tensor: np.prod(tensor.dims)).dims[0] = 1 << 40


def without_a_layer(graph):
    last = max(i for i, entry in enumerate(graph.node) if entry.op_type == "Conv")
    del graph.node[last]


def twice(graph):
    graph.node.append(graph.node[0])


def half_input(graph):
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def deploy(folder):
    return export_onnx(load_weights("tiny-random").model, folder / "bad.onnx")


def pipe(folder):
    os.mkfifo(folder / "bad.onnx")
    return folder / "bad.onnx"


def load(path, out):
    return load_checkpoint(path)


def run(path, out):
    return Run.of({"run": "bad", "weights": str(path), "dataset_size": 1, "calib_size": 1}).infer("fp32")


def recover(path, out):
    return gpen_from_onnx(path)


def elsewhere(folder):
    """Write a network whose constant lies in a file beside it."""
    path = save(
        folder,
        [node("Mul", ["input", "k"])],
        {"k": np.ones(2000, np.float32)[:1] * np.ones(1000, np.float32)},
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="k.bin", size_threshold=0)
    return path


def enlarge(path, out):
    return TiledUpscaler(path)(np.zeros((64, 64, 3), np.uint8), 2)


def in_artefact(name, make, *says, **ends):
    """Return a case of a file that lies in an artefact folder whose manifest names no hash."""

    def lay(folder):
        make(folder).rename(folder / "model.onnx")
        manifest = {"dtype": "fp32", "backend": "openvino", "in_size": 64, "out_size": 64} | ends
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    says = ("model.onnx", *says, "anew with compile_model")
    return Case(f"{name} in an artefact", lay, lambda folder, out: open_runtime(folder), says)


def case(name, make, says=(), call=load):
    return Case(name, make, call, ("bad.onnx", *([says] if isinstance(says, str) else says)))


shape = np.array(BIG, np.int64)
one = np.ones(1, np.float32)
CASES = [
    # What takes the machine
    case("a loop of constants", loop, "Loop"),
    case("a branch", branch, "If"),
    case("zeros without end", chain(node("ConstantOfShape", ["s"], ["big"]), s=shape), "ConstantOfShape"),
    case("zeros without end in a run", chain(node("ConstantOfShape", ["s"], ["big"]), s=shape),
         "ConstantOfShape", run),
    case("a constant that grows", chain(node("Expand", ["x", "s"], ["big"]), x=one, s=shape), "Expand"),
    case("tiles", chain(node("Tile", ["x", "s"], ["big"]), x=np.ones((1, 1), np.float32), s=shape), "Tile"),
    case("a long range", chain(node("Range", ["a", "b", "c"], ["big"]), a=np.float32(0), b=np.float32(1e10),
                               c=np.float32(1)), "Range"),
    case("wide padding", chain(node("Pad", ["x", "s"], ["big"]), x=one,
                               s=np.array([0, 10**10], np.int64)), "Pad"),
    case("random numbers", chain(node("RandomNormal", [], ["big"], shape=BIG)), "RandomNormal"),
    case("a large product", chain(node("MatMul", ["a", "b"], ["big"]), a=np.ones((60_000, 1), np.float32),
                                  b=np.ones((1, 60_000), np.float32)), "MatMul"),
    case("a large resize", chain(node("Resize", ["x", "", "s"], ["big"]), x=np.ones((1, 1, 8, 8), np.float32),
                                 s=np.array([1, 1, 1e4, 1e4], np.float32)), "Resize"),
    case("one hot", chain(node("OneHot", ["i", "d", "v"], ["big"]), i=np.array([0], np.int64),
                          d=np.int64(10**10), v=np.array([0, 1], np.float32)), "OneHot"),
    case("a node that feeds itself", partial(save, nodes=[node("Add", ["input", "output"])]), "output"),
    case("nodes in a circle", partial(save, nodes=[node("Add", ["input", "b"], ["a"]), node("Relu", ["a"], ["b"]),
                                                   node("Identity", ["a"])]), "read before"),
    case("too many nodes", partial(save, nodes=[node("Relu", ["input"], [f"n{i}"]) for i in range(30_000)]),
         "nodes"),
    case("a giant input", partial(save, nodes=[node("Relu", ["input"])], inputs=[
        helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 100_000, 100_000])])),
    case("an open size", partial(save, nodes=[node("Relu", ["input"])], inputs=[
        helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])]), "open"),
    case("somebody's operator", partial(save, nodes=[node("Evil", ["input"], domain="com.evil")]), "Evil"),
    case("an operator of ONNX Runtime's", partial(save, nodes=[node("FusedConv", ["input"],
                                                                    domain="com.microsoft")]), "FusedConv"),
    # Data elsewhere
    case("data in a parent", external("../secret.bin"), "secret.bin"),
    case("data at the root", external("/etc/passwd"), "/etc/passwd"),
    case("data behind a link", external("link.bin"), "link.bin"),
    case("data that are not there", external("absent.bin"), "absent.bin"),
    case("data beyond the end", external("data.bin", 32, 64), "data.bin"),
    case("data before the beginning", external("data.bin", -64, 64)),
    case("data of another length", external("data.bin", 0, 4), "data.bin"),
    case("data in a parent in a run", external("../secret.bin"), "secret.bin", run),
    # Another kind of file
    case("nothing", raw(b""), "no ONNX file"),
    case("a web page", raw(b"<!DOCTYPE html><html>404</html>"), "web page"),
    case("a pointer", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"), "pointer"),
    case("noise", raw(np.random.default_rng(0).bytes(4096)), "no ONNX file"),
    case("noise in a run", raw(np.random.default_rng(1).bytes(4096)), "no ONNX file", run),
    case("a pipe", pipe, "pipe"),
    case("a folder", lambda folder: (folder / "bad.onnx").mkdir() or folder / "bad.onnx"),
    # Another network
    case("no nodes", partial(save, nodes=[]), "no ONNX file"),
    case("two inputs", partial(save, nodes=[node("Add", ["input", "x"])], inputs=[
        IMAGE, helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]), "one input"),
    case("half floats", changed(half_input), "float32"),
    case("a single activation", partial(save, nodes=[node("LeakyRelu", ["input"])]), "training form"),
    case("the deploy form", deploy, ("training form",)),
    case("the deploy form, recovered", deploy, ("training form",), recover),
    case("no numbers in the weights", changed(no_numbers)),
    case("a negative size", changed(negative), "negative"),
    case("a tensor longer than its data", changed(longer)),
    case("a layer left out", changed(without_a_layer)),
    case("a node twice", changed(twice), "twice"),
    # In an artefact's folder
    in_artefact("a loop of constants", loop, "Loop"),
    in_artefact("a branch", branch, "If"),
    in_artefact("zeros without end", chain(node("ConstantOfShape", ["s"], ["big"]), s=shape), "ConstantOfShape"),
    in_artefact("somebody's operator", partial(save, nodes=[node("Evil", ["input"], domain="com.evil")]), "Evil"),
    in_artefact("data in a parent", external("../secret.bin"), "secret.bin"),
    in_artefact("noise", raw(np.random.default_rng(0).bytes(4096)), "no ONNX file"),
    in_artefact("a network of another size", deploy, "128", in_size=128, out_size=128),
    # As a super-resolution network or a detector for 07
    case("a loop of constants, to enlarge", loop, "Loop", enlarge),
    case("zeros without end, to enlarge", chain(node("ConstantOfShape", ["s"], ["big"]), s=shape),
         "ConstantOfShape", enlarge),
    case("data elsewhere, to enlarge", elsewhere, ("k.bin", "in the file itself"), enlarge),
    case("no numbers, to enlarge", chain(zero=np.float32(0), big=np.float32(np.nan)), "NaN", enlarge),
    case("the deploy form, to find faces", deploy, "no YuNet detector",
         lambda path, out: YuNet(path)(np.zeros((320, 320, 3), np.uint8), 0.5)),
    case("an operator set of the future", partial(save, nodes=[node("Relu", ["input"])], opset=99)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_ends_in_one_clear_error(case, tmp_path):
    check(case, __file__, tmp_path)
