"""From the tiny network to artefacts of every dtype, and everything that is refused on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.compile import QuantisationError, compile_model
from gpenlib.compile import build as compiler
from gpenlib.compile.build import LEAST_PSNR
from gpenlib.compile.calibrate import HELD_OUT, open_calibration_data
from gpenlib.compile.rounding import quantisable_layers
from gpenlib.compile.sensitivity import Probe
from gpenlib.compile.write import count_quantised, quantised_nodes
from gpenlib.data import DataError, make_pair, open_folder
from gpenlib.export import ParityError
from gpenlib.export.graphs import example_input, parity
from gpenlib.files import sha256
from gpenlib.images import to_tensor
from gpenlib.infer import DTYPES, RuntimeUnavailable, open_runtime
from gpenlib.settings import BuildConfig, SettingsError

FEW = {"sampler": {"get_data_num": 2}}  # calibration on two embedded faces


def read(artefact: Path) -> dict:
    return json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))


def int8(**quantize) -> dict:
    return {"backend": {"dtype": "int8", "type": "openvino", "quantize": quantize}, "dataset": FEW}


@pytest.fixture(scope="module")
def build(tiny_model, float_graph, tmp_path_factory):
    """Compile each configuration once per module; return the artefact folder."""
    done: dict[str, Path] = {}

    def build(configuration) -> Path:
        key = str(configuration)
        if key not in done:
            folder = tmp_path_factory.mktemp("artefact") / "artefact"
            done[key] = compile_model(tiny_model, configuration, folder, float_graph)
        return done[key]

    return build


@pytest.fixture(scope="module")
def names(float_graph) -> list[str]:
    return [node.name for node in quantisable_layers(onnx.load(float_graph))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(build, tiny_model, dtype):
    artefact = build({"backend": {"dtype": dtype, "type": "openvino"}, "dataset": FEW})
    assert sorted(path.name for path in artefact.iterdir()) == ["manifest.json", "model.onnx"]
    manifest = read(artefact)
    assert (manifest["kind"], manifest["dtype"], manifest["backend"]) == ("gpen-artefact", dtype, "openvino")
    assert (manifest["in_size"], manifest["out_size"]) == (64, 64)
    assert manifest["model_sha256"] == sha256(artefact / "model.onnx")
    assert manifest["model_bytes"] == (artefact / "model.onnx").stat().st_size
    assert manifest["parity"]["faces"] == HELD_OUT
    assert manifest["parity"]["worst"]["psnr"] >= LEAST_PSNR[dtype]
    assert BuildConfig.parse(manifest["build"]).backend.dtype == dtype, "the configuration can be used again"
    assert {"torch", "onnx", "openvino"} <= manifest["packages"].keys()
    runtime = open_runtime(artefact)
    image = example_input(tiny_model.config, 2).numpy()
    assert runtime.dtype == dtype and runtime(image).shape == (2, 3, 64, 64)
    assert runtime.executed_types() == manifest["executed_convolutions"]


def test_fp32_equals_the_network(build):
    manifest = read(build({"backend": {"dtype": "fp32", "type": "openvino"}, "dataset": FEW}))
    assert manifest["parity"]["worst"]["relative"] < 1e-4
    assert set(manifest["executed_convolutions"]) == {"f32"}


def test_bf16_is_the_float_graph(build):
    single, brain = (
        read(build({"backend": {"dtype": dtype, "type": "openvino"}, "dataset": FEW}))
        for dtype in ("fp32", "bf16")
    )
    assert single["model_sha256"] == brain["model_sha256"]


def test_fp16_holds_its_convolutions_in_half_precision(build):
    artefact = build({"backend": {"dtype": "fp16", "type": "openvino"}, "dataset": FEW})
    graph = onnx.load(artefact / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert {kinds[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
    assert read(artefact)["convolutions_by_weight_type"] == {"fp16": len(convolutions)}
    values = [*graph.input, *graph.output]
    assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}


def test_int8_is_int8(build, names):
    artefact = build({"backend": {"dtype": "int8", "type": "openvino"}, "dataset": FEW})
    manifest = read(artefact)
    report = manifest["quantisation"]
    assert [layer["name"] for layer in manifest["layers"]] == names
    assert sum(report["quantised"].values()) == len(names)
    assert report["quantised"] == count_quantised(onnx.load(artefact / "model.onnx"))
    assert report["quantised"]["Conv"] and report["quantised"]["ConvTranspose"]
    executed = manifest["executed_convolutions"]
    nodes = quantised_nodes(onnx.load(artefact / "model.onnx"))
    assert len(nodes) == len(names)
    assert executed.get("i8", 0) + executed.get("u8", 0) == len(nodes)
    assert report["calibration_images"] == 2 and report["excluded"] == []
    for layer in manifest["layers"]:
        assert (
            len(layer["activation_ranges"]) == len(layer["tensors"]) and min(layer["activation_ranges"]) > 0
        )
        assert layer["weight_scale_max"] >= layer["weight_scale_min"] > 0
        assert layer["weight_sqnr_db"] > 25


def test_int8_in_either_form_is_close_to_the_network(build):
    """Both are measured on held-out faces; rounding the outputs too costs a few dB at most."""
    distance = {}
    for backend, form in (("openvino", "qdq"), ("onnxruntime", "qoperator")):
        manifest = read(build({"backend": {"dtype": "int8", "type": backend}, "dataset": FEW}))
        assert (manifest["backend"], manifest["quantisation"]["forms"]) == (backend, {"model.onnx": form})
        assert manifest["executed_precision"] == "int8 convolutions, rest f32"
        distance[form] = manifest["parity"]["mean"]["psnr"]
    assert distance["qoperator"] > distance["qdq"] - 4


def test_the_form_of_the_file_can_be_chosen(build):
    options = {"dtype": "int8", "type": "onnxruntime", "quantize": {"format": "qdq"}}
    manifest = read(build({"backend": options, "dataset": FEW}))
    assert manifest["quantisation"]["forms"] == {"model.onnx": "qdq"}
    assert "f32" in manifest["executed_precision"] and set(manifest["executed_convolutions"]) == {"f32"}
    with pytest.raises(RuntimeUnavailable, match="openvino reads qdq"):
        build({"backend": {**options, "type": "openvino", "quantize": {"format": "qoperator"}}})


def test_layers_are_excluded_automatically(build, names, monkeypatch):
    """The most sensitive layers go until the loss fits the budget; none if it does at once."""
    quantize = {"exclude_layers": "auto", "max_drop_db": 50.0, "sensitivity_images": 2}
    config = {"backend": {"dtype": "int8", "type": "openvino", "quantize": quantize}, "dataset": FEW}
    manifest = read(build(config))
    found = manifest["quantisation"]["automatic"]
    assert {row["name"] for row in found["ranking"]} == set(names)
    assert (found["excluded"], found["images"], len(manifest["layers"])) == ([], 2, len(names))
    monkeypatch.setattr(Probe, "drop", lambda self, layers: 60.0 if len(layers) > len(names) - 2 else 1.0)
    quantize["max_drop_db"] = 49.0  # another configuration, built anew
    manifest = read(build(config))
    excluded = [row["name"] for row in found["ranking"][:2]]
    assert manifest["quantisation"]["automatic"]["excluded"] == excluded
    assert manifest["quantisation"]["excluded"] == [name for name in names if name in excluded]
    assert [layer["name"] for layer in manifest["layers"]] == [name for name in names if name not in excluded]


def test_another_mode_takes_the_calibration_from_the_cache(tiny_model, float_graph, tmp_path, monkeypatch):
    def build(mode):
        options = {"dtype": "int8", "type": "openvino", "quantize": {"calibrate_mode": mode}}
        target = compile_model(
            tiny_model, {"backend": options, "dataset": FEW}, tmp_path / mode, float_graph, tmp_path / "cache"
        )
        return read(target)["quantisation"]

    assert build("max")["calibration_cached"] is False
    monkeypatch.setattr("gpenlib.compile.build.calibrate", lambda *_: pytest.fail("calibrated again"))
    again = build("mse")
    assert again["calibration_cached"] is True and again["calibration_images"] == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_auto_measures_the_readers_of_the_onnx_file(build):
    manifest = read(build({"dataset": FEW}))
    rows = manifest["backend_times"]
    assert {row["backend"] for row in rows} == {"openvino", "onnxruntime"} == set(manifest["files"])
    assert manifest["backend"] == min(rows, key=lambda row: row["median_ms"])["backend"]
    assert manifest["backend_reason"].startswith(f"fastest measured here: {manifest['backend']} ")
    assert manifest["build"]["backend"]["type"] == "auto", "the configuration stays what it was"


@pytest.mark.parametrize("fastest", ["openvino", "onnxruntime", "torch"])
def test_auto_builds_for_whatever_is_fastest(tiny_model, float_graph, tmp_path, monkeypatch, fastest):
    measured = []

    def fix(folder, dtype, device, candidates):
        measured.append((dtype, device, list(candidates)))
        return fastest, "because", [{"backend": fastest}]

    monkeypatch.setattr(compiler, "fastest_backend", fix)
    configuration = {"backend": {"also": ["torch"]}, "dataset": FEW}
    artefact = compile_model(tiny_model, configuration, tmp_path / "artefact", float_graph)
    manifest = read(artefact)
    assert measured == [("fp32", "cpu", ["openvino", "onnxruntime", "torch"])]
    assert (manifest["backend"], manifest["backend_reason"]) == (fastest, "because")
    assert manifest["also"].keys() == {"torch"} - {fastest}, "the chosen one is described above"
    assert open_runtime(artefact).backend == fastest


def test_auto_with_one_backend_measures_nothing(build):
    manifest = read(build({"backend": {"dtype": "bf16"}, "dataset": FEW}))
    assert (manifest["backend"], manifest["backend_times"]) == ("openvino", [])
    assert manifest["backend_reason"] == "the only backend of this artefact that runs bf16 on cpu"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_artefact_serves_several(build, tiny_model, dtype):
    options = {"dtype": dtype, "type": "openvino", "also": ["torch", "torchscript"]}
    artefact = build({"backend": options, "dataset": FEW})
    manifest = read(artefact)
    names = ["manifest.json", "model.onnx", "model.pt", "model.safetensors"]
    assert sorted(path.name for path in artefact.iterdir()) == names
    onnx_backends = ["openvino", "onnxruntime"] if dtype == "fp32" else ["openvino"]
    assert list(manifest["files"]) == [*onnx_backends, "torch", "torchscript"]
    assert manifest["torch_files"].keys() == {"model.pt", "model.safetensors"}
    for name, file in manifest["torch_files"].items():
        assert file == {"sha256": sha256(artefact / name), "bytes": (artefact / name).stat().st_size}
    image = example_input(tiny_model.config, 2).numpy()
    expected = tiny_model(torch.from_numpy(image)).detach().numpy()
    for backend in manifest["files"]:
        output = open_runtime(artefact, backend=backend)(image)
        assert parity(expected, output).psnr > LEAST_PSNR[dtype]
    for backend in ("torch", "torchscript"):
        verified = manifest["also"][backend]
        assert verified["parity"]["faces"] == HELD_OUT
        assert verified["parity"]["worst"]["psnr"] >= LEAST_PSNR[dtype]
        assert verified["executed_convolutions"].keys() == {"f32" if dtype == "fp32" else "bf16"}


def test_a_further_backend_that_fails_its_check_fails_the_build(
    tiny_model, float_graph, tmp_path, monkeypatch
):
    write = compiler.write_torch_files

    def write_another(deploy, *arguments):
        return write(random_network(TINY, seed=7), *arguments)

    monkeypatch.setattr(compiler, "write_torch_files", write_another)
    configuration = {"backend": {"type": "openvino", "also": ["torch"]}, "dataset": FEW}
    with pytest.raises(ParityError, match=r"fp32 artefact reaches .* under torch on cpu"):
        compile_model(tiny_model, configuration, tmp_path / "artefact", float_graph)
    assert not (tmp_path / "artefact" / "manifest.json").exists()


def test_files_of_an_older_build_are_gone(build, tiny_model, float_graph, tmp_path):
    options = {"dtype": "fp32", "type": "openvino", "also": ["torch", "torchscript"]}
    shutil.copytree(build({"backend": options, "dataset": FEW}), tmp_path / "artefact")
    compile_model(
        tiny_model, {"backend": {"type": "openvino"}, "dataset": FEW}, tmp_path / "artefact", float_graph
    )
    names = sorted(path.name for path in (tmp_path / "artefact").iterdir())
    assert names == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"dtype": "int8", "also": ["torch"]}, "torch does not run int8 on cpu"),
        ({"dtype": "int8", "type": "torchscript"}, "torchscript does not run int8 on cpu"),
        ({"dtype": "fp16", "type": "torch"}, "torch does not run fp16 on cpu"),
        ({"type": "openvino", "device": "cuda"}, "openvino does not run fp32 on cuda"),
        ({"type": "torch", "device": "tensorrt"}, "torch does not run fp32 on tensorrt"),
        ({"dtype": "int8_bf16", "device": "cuda"}, "no backend runs int8_bf16 on cuda"),
        ({"type": "torch", "device": "cuda"}, "sees no CUDA device"),
        ({"device": "cuda"}, r"no backend can run fp32 on cuda here; onnxruntime: .* torch: "),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(tiny_model, tmp_path, monkeypatch, backend, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(compiler, "export_onnx", lambda *_: pytest.fail("export_onnx was called"))
    with pytest.raises(RuntimeUnavailable, match=message):
        compile_model(tiny_model, {"backend": backend}, tmp_path / "artefact")
    assert not (tmp_path / "artefact").exists()


def test_yaml_path(tiny_model, float_graph, tmp_path):
    artefact = compile_model(tiny_model, "params/build/fp16.yaml", tmp_path / "artefact", float_graph)
    assert (read(artefact)["name"], read(artefact)["dtype"]) == ("gpen_fp16", "fp16")


def test_exports_by_itself(tiny_model, tmp_path):
    configuration = BuildConfig.parse({"name": "own", "backend": {"type": "onnxruntime"}})
    artefact = compile_model(tiny_model, configuration, tmp_path / "artefact")
    assert read(artefact)["executed_convolutions"].keys() == {"f32"}


def test_exclude_layers_by_index_path_and_pattern(build, names):
    manifest = read(build(int8(exclude_layers=[0, names[3], "generator.convs.?.conv"])))
    excluded = manifest["quantisation"]["excluded"]
    assert {names[0], names[3], "generator.convs.0.conv"} <= set(excluded)
    assert [layer["name"] for layer in manifest["layers"]] == [name for name in names if name not in excluded]


def test_power2_scales_are_reported(build):
    layers = read(build(int8(weight_scale="power2")))["layers"]
    assert all(
        np.log2(layer[key]) % 1 == 0 for layer in layers for key in ("weight_scale_min", "weight_scale_max")
    )


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ({"exclude_layers": ["generator.convs.99.conv"]}, "no quantisable layer is called"),
        ({"exclude_layers": [99]}, r"index 99 is outside 0\.\."),
        ({"exclude_layers": ["*"]}, "leaves nothing to quantise"),
    ],
)
def test_int8_that_cannot_be_made(tiny_model, float_graph, tmp_path, quantize, message):
    with pytest.raises(QuantisationError, match=message):
        compile_model(tiny_model, int8(**quantize), tmp_path / "artefact", float_graph)
    assert list((tmp_path / "artefact").iterdir()) == [], "nothing is left that could pass for an artefact"


@pytest.mark.parametrize("shape", [{"input": [1, 3, 128, 128]}, {"image": [1, 3, 64, 64]}])
def test_frontend_shape_must_be_the_networks(tiny_model, tmp_path, shape):
    with pytest.raises(ParityError, match=r"this network takes input=\[N, 3, 64, 64\]"):
        compile_model(tiny_model, {"frontend": {"shape": shape}}, tmp_path / "artefact")
    assert not (tmp_path / "artefact").exists()


def test_frontend_shape_that_fits(build):
    assert read(build({"frontend": {"shape": {"input": [1, 3, 64, 64]}}}))["in_size"] == 64


def test_bf16_on_onnxruntime_is_refused_before_any_work(tiny_model, tmp_path, monkeypatch):
    for name in ("export_onnx", "open_calibration_data", "verify"):
        monkeypatch.setattr(compiler, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    with pytest.raises(
        RuntimeUnavailable, match=r"onnxruntime does not run bf16 on cpu; available .*openvino"
    ):
        compile_model(
            tiny_model, {"backend": {"dtype": "bf16", "type": "onnxruntime"}}, tmp_path / "artefact"
        )
    assert not (tmp_path / "artefact").exists()


def test_unknown_key_is_refused(tiny_model, tmp_path):
    with pytest.raises(SettingsError, match="unknown key 'backend.dtyp'"):
        compile_model(tiny_model, {"backend": {"dtyp": "int8"}}, tmp_path / "artefact")


def test_too_few_calibration_images(tiny_model, float_graph, tmp_path, picture_folder):
    configuration = int8()
    configuration["dataset"] = {"path": str(picture_folder(3)), "sampler": {"get_data_num": 4}}
    with pytest.raises(DataError, match=r"3 images, sampler.get_data_num asks for 4"):
        compile_model(tiny_model, configuration, tmp_path / "artefact", float_graph)


def test_calibration_folder(tiny_model, float_graph, tmp_path, picture_folder):
    folder = picture_folder(6)
    configuration = int8()
    configuration["dataset"] = {"path": str(folder), "sampler": {"get_data_num": 4, "suffix": "png"}}
    manifest = read(compile_model(tiny_model, configuration, tmp_path / "artefact", float_graph))
    assert manifest["quantisation"]["calibration_images"] == 4
    assert manifest["quantisation"]["calibration_source"] == "folder faces"
    assert manifest["parity"]["faces"] == 2, "the images beyond those of calibration"


def test_coloured_calibration_pictures_become_grey(picture_folder):
    folder = picture_folder(3)
    configuration = BuildConfig.parse({"dataset": {"path": str(folder), "sampler": {"get_data_num": 2}}})
    data = open_calibration_data(configuration.dataset, 64)
    assert np.ptp(open_folder(folder).read(0), axis=2).any(), "the pictures themselves are coloured"
    images = [*data.calibration(), *data.held_out()]
    assert len(images) == 3
    for image in images:
        assert image.shape == (1, 3, 64, 64) and image.dtype == np.float32
        assert (image[:, 0] == image[:, 1]).all() and (image[:, 0] == image[:, 2]).all()
        assert -1 <= image.min() < image.max() <= 1


def test_calibration_pictures_are_degraded_by_the_task(picture_folder):
    folder = picture_folder(3)
    configuration = BuildConfig.parse({"dataset": {"path": str(folder), "task": "restore"}})
    images = list(open_calibration_data(configuration.dataset, 64).calibration())
    for index, image in enumerate(images):
        given, _ = make_pair(open_folder(folder).read(index), "restore", 64, seed=index)
        assert np.array_equal(image, to_tensor(given))
    assert len(images) == 3


def test_an_artefact_that_fails_its_check_cannot_be_opened(
    build, tiny_model, float_graph, tmp_path, monkeypatch
):
    configuration = {"dataset": FEW}
    shutil.copytree(build(configuration), tmp_path / "artefact")  # an older, sound one lies there
    monkeypatch.setitem(LEAST_PSNR, "fp32", 999.0)
    with pytest.raises(ParityError, match=r"fp32 artefact reaches \d+\.\d dB .* at least 999"):
        compile_model(tiny_model, configuration, tmp_path / "artefact", float_graph)
    with pytest.raises(FileNotFoundError, match="not an artefact folder"):
        open_runtime(tmp_path / "artefact")


def test_an_older_artefact_is_replaced(build, tiny_model, float_graph, tmp_path):
    shutil.copytree(build({"dataset": FEW}), tmp_path / "artefact")
    compile_model(tiny_model, {"backend": {"dtype": "fp16"}}, tmp_path / "artefact", float_graph)
    assert read(tmp_path / "artefact")["dtype"] == "fp16"


def test_a_float_graph_of_another_network_is_found_out(build, float_graph, tmp_path):
    with pytest.raises(ParityError, match="fp32 artefact reaches"):
        compile_model(random_network(TINY, seed=7), {"dataset": FEW}, tmp_path / "artefact", float_graph)
