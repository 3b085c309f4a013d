"""From the tiny network to artefacts of every dtype, by call and by command, and all that is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gpenlib.architecture import load_checkpoint, save_checkpoint
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.compile import build as compiler
from gpenlib.compile import compile_model
from gpenlib.compile.build import LEAST_PSNR, STEPS, compile_file, least_psnr, main
from gpenlib.compile.calibrate import HELD_OUT, open_calibration_data
from gpenlib.compile.sensitivity import Probe
from gpenlib.compile.write import CORRECTED, count_quantised, quantised_nodes
from gpenlib.data.faces import DataError, embedded_faces
from gpenlib.export import ParityError, deploy_form, export_onnx
from gpenlib.export.graphs import example_input, parity
from gpenlib.files import sha256
from gpenlib.images import resize, to_grey, to_tensor
from gpenlib.infer import RuntimeUnavailable, open_runtime
from gpenlib.settings import DTYPES, QUANTISED, BuildConfig, as_build_config

VENDOR_FILE = Path(__file__).parents[1] / "data_files" / "vendor_build.yaml"
BAD_NAMES = ["..", ".calibration", "a/b", "../out", "/tmp/out", "a/"]
FEW = {"sampler": {"get_data_num": 2}}  # calibration on two embedded faces


def read(artefact: Path) -> dict:
    return json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def options(dtype="fp32", type="openvino", **more) -> dict:
    return {"backend": {"dtype": dtype, "type": type, **more}, "dataset": FEW}


@pytest.fixture(scope="module")
def build(tiny_model, float_graph, tmp_path_factory):
    """Compile each configuration once; return the artefact folder, which is not to be changed."""
    done: dict[str, Path] = {}

    def build(*arguments, **more) -> Path:
        key = str((arguments, more))
        if key not in done:
            folder = tmp_path_factory.mktemp("artefact") / "artefact"
            done[key] = compile_model(tiny_model, options(*arguments, **more), folder, float_graph)
        return done[key]

    return build


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(build, tiny_model, dtype):
    artefact = build(dtype)
    manifest = read(artefact)
    assert names_in(artefact) == ["manifest.json", "model.onnx"] and names_in(artefact.parent) == ["artefact"]
    assert (manifest["kind"], manifest["dtype"], manifest["backend"]) == ("gpen-artefact", dtype, "openvino")
    assert (manifest["in_size"], manifest["out_size"]) == (64, 64)
    assert manifest["model_sha256"] == sha256(artefact / "model.onnx")
    assert manifest["files_sha256"] == {"model.onnx": manifest["model_sha256"]}
    assert manifest["model_bytes"] == (artefact / "model.onnx").stat().st_size
    assert manifest["parity"]["faces"] == HELD_OUT
    assert manifest["parity"]["worst"]["psnr"] >= LEAST_PSNR[dtype]
    assert BuildConfig.parse(manifest["build"]).backend.dtype == dtype, "the configuration can be used again"
    assert {"torch", "onnx", "openvino"} <= manifest["packages"].keys()
    runtime = open_runtime(artefact)
    assert runtime.dtype == dtype and runtime.executed_types() == manifest["executed_convolutions"]
    assert runtime(example_input(tiny_model.config, 2).numpy()).shape == (2, 3, 64, 64)
    assert dtype != "fp32" or manifest["parity"]["worst"]["relative"] < 1e-4
    assert dtype != "bf16" or manifest["model_sha256"] == read(build())["model_sha256"], "the float graph"
    if dtype == "fp16":
        graph = onnx.load(artefact / "model.onnx").graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
        assert {kinds[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
        assert manifest["convolutions_by_weight_type"] == {"fp16": len(convolutions)}
    assert least_psnr(runtime) == LEAST_PSNR[dtype] >= 20
    tf32 = SimpleNamespace(dtype="fp32", device="tensorrt")  # whose mantissa is that of fp16
    assert least_psnr(tf32) == LEAST_PSNR["fp16"]


def test_int8_is_int8(build, calibrated):
    artefact, names = build("int8"), calibrated.names
    manifest, model = read(artefact), onnx.load(artefact / "model.onnx")
    report = manifest["quantisation"]
    assert [layer["name"] for layer in manifest["layers"]] == names
    assert report["quantised"] == count_quantised(model) and all(report["quantised"].values())
    executed = manifest["executed_convolutions"]
    blurs = sum(layer["output_rounded"] for layer in manifest["layers"])
    assert blurs == report["quantised"]["ConvTranspose"] > 0
    assert executed.get("i8", 0) + executed.get("u8", 0) == len(quantised_nodes(model)) == len(names) + blurs
    assert report["calibration_images"] == 2 and report["excluded"] == []
    quantize = {"exclude_layers": [0, names[3], "generator.convs.?.conv"], "weight_scale": "power2"}
    fewer = read(build("int8", quantize=quantize))
    excluded = fewer["quantisation"]["excluded"]
    assert {names[0], names[3], "generator.convs.0.conv"} <= set(excluded)
    assert [layer["name"] for layer in fewer["layers"]] == [name for name in names if name not in excluded]
    assert all(np.log2(layer["weight_scale_max"]) % 1 == 0 for layer in fewer["layers"])
    for layer in manifest["layers"]:
        assert len(layer["activation_ranges"]) == len(layer["tensors"])
        assert min(layer["activation_ranges"]) > 0
        assert layer["weight_scale_max"] >= layer["weight_scale_min"] > 0 and layer["weight_sqnr_db"] > 25


def test_int8_in_either_form_is_close_to_the_network(build):
    """Both are measured on held-out faces; rounding the outputs too costs a few dB at most."""
    distance = {}
    for backend, form in (("openvino", "qdq"), ("onnxruntime", "qoperator")):
        manifest = read(build("int8", backend))
        assert (manifest["backend"], manifest["quantisation"]["forms"]) == (backend, {"model.onnx": form})
        assert manifest["executed_precision"] == "int8 convolutions, rest f32"
        distance[form] = manifest["parity"]["mean"]["psnr"]
    assert distance["qoperator"] > distance["qdq"] - 4
    manifest = read(build("int8", "onnxruntime", quantize={"format": "qdq"}))
    assert manifest["quantisation"]["forms"] == {"model.onnx": "qdq"}
    assert set(manifest["executed_convolutions"]) == {"f32"}


def test_layers_are_excluded_automatically(build, calibrated, monkeypatch):
    """The most sensitive layers go until the loss fits the budget; none if it does at once."""
    names, quantize = calibrated.names, {"exclude_layers": "auto", "sensitivity_images": 2}
    manifest = read(build("int8", quantize={**quantize, "max_drop_db": 50.0}))
    automatic = manifest["quantisation"]["automatic"]
    assert {row["name"] for row in automatic["ranking"]} == set(names)
    assert (automatic["excluded"], automatic["images"], len(manifest["layers"])) == ([], 2, len(names))
    many = {"psnr": 50.0, "drop_db": 60.0}
    monkeypatch.setattr(
        Probe, "measure", lambda _, layers: many | ({} if len(layers) > len(names) - 2 else {"drop_db": 1.0})
    )
    manifest = read(build("int8", quantize={**quantize, "max_drop_db": 49.0}))
    excluded = [row["name"] for row in automatic["ranking"][:2]]
    assert manifest["quantisation"]["automatic"]["excluded"] == excluded
    assert manifest["quantisation"]["excluded"] == [name for name in names if name in excluded]
    assert [layer["name"] for layer in manifest["layers"]] == [name for name in names if name not in excluded]


def test_another_mode_takes_the_calibration_from_the_cache(tiny_model, float_graph, tmp_path, monkeypatch):
    def quantisation(mode):
        build = options("int8", quantize={"calibrate_mode": mode})
        cache = tmp_path / "cache"
        return read(compile_model(tiny_model, build, tmp_path / mode, float_graph, cache))["quantisation"]

    assert quantisation("max")["calibration_cached"] is False
    with monkeypatch.context() as patch:
        patch.setattr(compiler.calibrate, "calibrate", lambda *_: pytest.fail("calibrated again"))
        again = quantisation("mse")
    assert again["calibration_cached"] is True and again["calibration_images"] == 2
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"damaged")
    assert quantisation("mse") == again | {"calibration_cached": False}


def test_a_super_resolution_network_calibrates_on_a_folder(tmp_path, picture_folder):
    """Above the input's size the skip half is the bias alone: zeros in fresh weights, in either form."""
    model, folder = random_network(replace(TINY, out_size=128)), picture_folder(3)
    graph = export_onnx(model, tmp_path / "float.onnx")
    quantize = {"exclude_layers": "auto", "max_drop_db": 50.0, "sensitivity_images": 2}
    build = options("int8", also=["onnxruntime"], quantize=quantize)
    build["dataset"] = {"task": "restore", "path": str(folder), **FEW}
    manifest = read(compile_model(model, build, tmp_path / "artefact", graph))
    assert manifest["files_sha256"].keys() == {"model.onnx", "model_qoperator.onnx"}
    assert manifest["quantisation"]["calibration_images"] == 2
    assert manifest["quantisation"]["calibration_source"] == "folder faces"
    assert manifest["parity"]["faces"] == 1, "the picture beyond those of calibration"


@pytest.mark.parametrize("fastest", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_auto_builds_for_whatever_is_fastest(tiny_model, float_graph, tmp_path, monkeypatch, fastest, dtype):
    measured = []

    def fix(folder, dtype, device, candidates):
        measured.append((dtype, device, list(candidates)))
        return fastest, "because", [{"backend": fastest}]

    monkeypatch.setattr(compiler, "fastest_backend", fix)
    also = [] if dtype == "int8" else ["torch"]
    build = options(dtype, "auto", also=also)
    artefact = compile_model(tiny_model, build, tmp_path / "artefact", float_graph)
    manifest = read(artefact)
    assert manifest["build"]["backend"]["type"] == "auto", "the configuration stays what it was"
    assert measured == [(dtype, "cpu", ["openvino", "onnxruntime", *also])]
    assert (manifest["backend"], manifest["backend_reason"]) == (fastest, "because")
    assert manifest["also"].keys() == set(also), "the chosen one is described above"
    assert open_runtime(artefact).backend == fastest
    if dtype == "int8":  # of both forms the one that is used is kept, and corrected
        form = {"openvino": "qdq", "onnxruntime": "qoperator"}[fastest]
        assert manifest["quantisation"]["forms"] == {"model.onnx": form}
        assert manifest["quantisation"]["output_shift"].keys() == manifest["files_sha256"].keys()
        assert list(manifest["files_sha256"]) == ["model.onnx"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_artefact_serves_several(build, tiny_model, dtype):
    artefact = build(dtype, also=["torch", "torchscript"])
    manifest = read(artefact)
    files = ["model.onnx", "model.pt", "model.safetensors"]
    assert names_in(artefact) == ["manifest.json", *files]
    assert manifest["files_sha256"] == {name: sha256(artefact / name) for name in files}
    readers = ["openvino", "onnxruntime"] if dtype == "fp32" else ["openvino"]
    assert list(manifest["files"]) == [*readers, "torch", "torchscript"]
    for name, file in manifest["torch_files"].items():
        assert file == {"sha256": sha256(artefact / name), "bytes": (artefact / name).stat().st_size}
    image = example_input(tiny_model.config, 2).numpy()
    expected = tiny_model(torch.from_numpy(image)).detach().numpy()
    for backend in manifest["files"]:
        output = open_runtime(artefact, backend=backend)(image)
        assert parity(expected, output).psnr > LEAST_PSNR[dtype]
    for backend in ("torch", "torchscript"):
        verified = manifest["also"][backend]
        assert verified["parity"]["worst"]["psnr"] >= LEAST_PSNR[dtype]
        assert verified["executed_convolutions"].keys() == {"f32" if dtype == "fp32" else "bf16"}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


@pytest.fixture
def older(build, tmp_path) -> Path:
    """A folder with a sound artefact for several backends, and a file of the user's."""
    folder = shutil.copytree(build(also=["torch", "torchscript"]), tmp_path / "artefact")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_an_older_artefact_is_replaced_and_foreign_files_stay(older, tiny_model, float_graph, monkeypatch):
    moved, move = [], shutil.move
    monkeypatch.setattr(shutil, "move", lambda path, to: (moved.append(to), move(path, to)))
    compile_model(tiny_model, options("fp16"), older, float_graph)
    assert moved[-1] == older / "manifest.json", "the manifest is the last file"
    assert names_in(older) == ["manifest.json", "model.onnx", "notes.txt"]
    assert read(older)["dtype"] == "fp16" and names_in(older.parent) == ["artefact"]
    (older / "model.safetensors").write_bytes(b"weights of the user's, which no manifest lists")
    compile_model(tiny_model, options(), older, float_graph)
    assert (older / "model.safetensors").is_file()


@pytest.mark.parametrize("place", range(len(STEPS)), ids=[name for name, _ in STEPS])
def test_an_interrupt_leaves_the_older_artefact(older, tiny_model, float_graph, monkeypatch, place):
    def interrupted(build):
        STEPS[place][1](build)
        raise KeyboardInterrupt

    steps = [*STEPS]
    steps[place] = (STEPS[place][0], interrupted)
    monkeypatch.setattr(compiler, "STEPS", steps)
    before = contents(older)
    with pytest.raises(KeyboardInterrupt):
        compile_model(tiny_model, options("fp16"), older, float_graph)
    assert contents(older) == before and names_in(older.parent) == ["artefact"]
    assert open_runtime(older).dtype == "fp32"


def test_an_artefact_that_fails_its_check_takes_no_place(older, tiny_model, float_graph, monkeypatch):
    before = contents(older)
    with pytest.raises(ParityError, match="fp32 artefact reaches"):  # the graph of another network
        compile_model(random_network(TINY, seed=7), options(), older, float_graph)
    write = compiler.write_torch_files

    def write_another(deploy, *arguments):
        return write(random_network(TINY, seed=7), *arguments)

    monkeypatch.setattr(compiler, "write_torch_files", write_another)
    with pytest.raises(ParityError, match=r"fp32 artefact reaches .* under torch on cpu"):
        compile_model(tiny_model, options(also=["torch"]), older, float_graph)
    monkeypatch.setitem(LEAST_PSNR, "fp32", 999.0)
    with pytest.raises(ParityError, match=r"\d+\.\d dB .* at least 999"):
        compile_model(tiny_model, options(), older.parent / "new", float_graph)
    assert contents(older) == before and names_in(older.parent / "new") == []


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"dtype": "int8", "also": ["torch"]}, "torch does not run int8 on cpu"),
        ({"dtype": "bf16", "type": "onnxruntime"}, "onnxruntime does not run bf16 on cpu; .*openvino"),
        ({"dtype": "int8_bf16", "device": "cuda"}, "no backend runs int8_bf16 on cuda"),
        ({"type": "torch", "device": "cuda"}, "sees no CUDA device"),
        ({"device": "cuda"}, r"no backend can run fp32 on cuda here; onnxruntime: .* torch: "),
        ({"dtype": "int8", "type": "openvino", "quantize": {"format": "qoperator"}}, "openvino reads qdq"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(tiny_model, tmp_path, monkeypatch, backend, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(compiler, "export_onnx", lambda *_: pytest.fail("export_onnx was called"))
    with pytest.raises(RuntimeUnavailable, match=message):
        compile_model(tiny_model, {"backend": backend}, tmp_path / "artefact")
    assert not (tmp_path / "artefact").exists()


def mean_errors(model, folder: Path, build: dict) -> np.ndarray:
    """Return the mean error of every backend on the calibration images, [backends, 3]."""
    config = as_build_config(build)
    images = np.concatenate([*open_calibration_data(config.dataset, model.config).calibration()])
    with torch.inference_mode():
        expected = deploy_form(model)(torch.from_numpy(images)).numpy()
    runtimes = [open_runtime(folder, backend=name) for name in (config.backend.type, *config.backend.also)]
    return np.array([(runtime(images) - expected).mean(axis=(0, 2, 3)) for runtime in runtimes])


@pytest.mark.parametrize(("dtype", "also"), [("int8", ["onnxruntime"]), ("int8_bf16", [])])
def test_no_tint_on_the_calibration_images(build, tiny_model, dtype, also):
    """Every file is corrected by what it does itself."""
    plain = build(dtype, quantize={"bias_correction": False})
    without = mean_errors(tiny_model, plain, options(dtype))
    assert np.abs(without).max() > 1e-3, "there is something to correct"
    artefact = build(dtype, also=also)
    remaining = np.abs(mean_errors(tiny_model, artefact, options(dtype, also=also))).max()
    assert remaining < (1e-5 if dtype == "int8" else 2e-3), "bf16 keeps 8 bits of the last bias"
    report = read(artefact)["quantisation"]
    assert list(report["output_shift"]) == ["model.onnx", "model_qoperator.onnx"][: 1 + len(also)]
    assert len({tuple(shift) for shift in report["output_shift"].values()}) == 1 + len(also)
    names = [tensor.name for tensor in onnx.load(artefact / "model.onnx").graph.initializer]
    assert names.count(CORRECTED) == 1 and "output_shift_left" not in report


def test_a_correction_that_does_harm_is_left_out(build, tiny_model, float_graph, tmp_path, monkeypatch):
    add = compiler.write.add_to_output
    monkeypatch.setattr(compiler.write, "add_to_output", lambda model, change: add(model, 0.1 + 0 * change))
    artefact = compile_model(tiny_model, options("int8"), tmp_path / "artefact", float_graph)
    report = read(artefact)["quantisation"]
    assert (report["output_shift"], list(report["output_shift_left"])) == ({}, ["model.onnx"])
    names = {tensor.name for tensor in onnx.load(artefact / "model.onnx").graph.initializer}
    assert CORRECTED not in names and names_in(artefact) == ["manifest.json", "model.onnx"]
    assert read(artefact)["model_sha256"] == sha256(artefact / "model.onnx")


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [("fp32", "openvino"), ("fp16", "openvino"), ("int8", "openvino"), ("int8", "onnxruntime")],
)
def test_files_can_take_the_place_of_circulated_ones(build, tiny_model, dtype, backend):
    """One input called input, float32 RGB; the first output is the image; standard operators."""
    path = build(dtype, backend) / "model.onnx"
    model = onnx.load(path)
    (given,) = model.graph.input
    assert given.name == "input"
    for value in (given, model.graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] == [3, 64, 64]
    assert {entry.domain for entry in model.opset_import if entry.version} <= {"", "ai.onnx"}
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node) and not model.functions
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    face = to_grey(resize(embedded_faces(3).read(2), 64))
    crop = (face.astype(np.float32) / 255.0 - 0.5) / 0.5
    result = session.run(None, {"input": np.expand_dims(crop.transpose(2, 0, 1), axis=0)})[0]
    assert result.dtype == np.float32 and result.shape == (1, 3, 64, 64)
    with torch.inference_mode():
        expected = deploy_form(tiny_model)(torch.from_numpy(to_tensor(face))).numpy()
    assert parity(expected, result).psnr > (20 if dtype in QUANTISED else LEAST_PSNR[dtype])


def test_the_command_with_the_vendors_file(tmp_path, picture_folder, tiny_training_onnx, capsys):
    operators = "[{type: DecodeImage}, {type: Resize, size: [64, 64]}, {type: Normalize}, {type: ToTensor}]"
    overrides = [
        f"dataset.path={picture_folder(4)}",
        "dataset.sampler={suffix: png, get_data_num: 3}",
        f"dataset.process_ops={operators}",
        "frontend.shape={input: [1, 3, 64, 64]}",
        "backend.type=openvino",
        "backend.quantize.exclude_layers=[1]",
        f"workspace.path={tmp_path / 'deploy_weights'}",
    ]
    assert main([str(VENDOR_FILE), "frontend.checkpoint=tiny-random", *overrides]) == 0
    artefact = tmp_path / "deploy_weights" / "official_gpen_int8"
    quantisation = read(artefact)["quantisation"]
    assert (read(artefact)["dtype"], quantisation["calibrate_mode"]) == ("int8", "mse")
    assert (quantisation["calibration_images"], len(quantisation["excluded"])) == (3, 1)
    printed = capsys.readouterr().out
    assert "official_gpen_int8: int8 for openvino" in printed and " dB" in printed
    assert "backend.compile.data_transport_mode" in printed  # every key that is not used is named
    # People who have only an ONNX file in the original formulation can compile it.
    words = [
        f"frontend.checkpoint={tiny_training_onnx}",
        "frontend.type=onnx",
        "backend.dtype=fp32",
        *overrides,
    ]
    assert main([str(VENDOR_FILE), *words]) == 0
    assert read(artefact)["parity"]["worst"]["relative"] < 1e-3


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "restore-mild"), ({"dataset": {"task": "inpaint"}}, "inpaint")]
)
def test_calibration_degrades_as_in_the_task_of_the_weights(
    tmp_path, tiny_model, monkeypatch, given, expected
):
    path = save_checkpoint(tiny_model, tmp_path / "mine.safetensors", notes={"task": "restore-mild"})
    build, tasks = {"frontend": {"checkpoint": str(path)}} | given, []

    def note(config, *_):
        tasks.append(config.task)
        raise DataError("seen enough")

    monkeypatch.setattr(compiler, "open_calibration_data", note)
    for start in (
        lambda: compile_file(BuildConfig.parse(build)),
        lambda: compile_model(load_checkpoint(path), build, tmp_path / "artefact"),
    ):
        with pytest.raises(DataError, match="seen enough"):
            start()
    assert tasks == [expected, expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frontend.checkpoint=null"], "frontend.checkpoint is not set"),
        (["frontend.checkpoint=tiny-random", "frontend.type=onnx"], "does not go with"),
        (["backend.dtyp=int8"], "backend.dtyp"),
        (["frontend.checkpoint=/no/such/file.pth"], "does not exist"),
        *((["frontend.checkpoint=tiny-random", f"name={name}"], f"name={name!r}") for name in BAD_NAMES),
    ],
)
def test_what_is_wrong_is_said(words, message, capsys):
    assert main([str(VENDOR_FILE), *words]) == 1
    assert message in capsys.readouterr().err
