"""Bad build files, artefact folders and manifests: nobody's file is replaced, nothing hangs or grows."""

import contextlib
import io
import json
import os

import pytest

from gpenlib import compile_model
from gpenlib.architecture.checkpoints import load_checkpoint
from gpenlib.compile.build import main as compile_main
from gpenlib.infer import open_runtime
from gpenlib.infer.performance import Combination, interleaved_latency
from gpenlib.infer.performance import main as bench_main
from gpenlib.run import Run
from gpenlib.settings import BuildConfig
from tests.bad_inputs.harness import Case, check

BUILD = "frontend: {checkpoint: tiny-random}\n"
ARTEFACT = {"kind": "gpen-artefact", "dtype": "fp32", "backend": "openvino", "in_size": 64, "out_size": 64}


def nothing(folder):
    return folder


def command(main, words):
    """Run a command; what it prints is raised."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        assert main([str(word) for word in words]) == 1
    raise ValueError(told.getvalue().strip())


def build_file(name, text, *says):
    def make(folder):
        (folder / "build.yaml").write_text(BUILD + text)
        return folder / "build.yaml"

    return Case(name, make, lambda path, out: command(compile_main, [path, f"workspace.path={out}"]), says)


def into(name, write, build, *says):
    """Return a case of a build into a folder that holds what somebody else wrote."""

    def make(folder):
        write(folder)
        return folder

    def call(folder, out):
        return compile_model(load_checkpoint("tiny-random"), build, folder)

    return Case(name, make, call, says)


def manifest(name, change, *says):
    """Return a case of an artefact folder whose manifest is not as it was."""

    def make(folder):
        (folder / "model.onnx").write_bytes(b"onnx")
        content = ARTEFACT | change if isinstance(change, dict) else change
        text = json.dumps(content) if isinstance(content, dict) else content
        (folder / "manifest.json").write_text(text)
        return folder

    says = ("manifest.json", *says, "anew with compile_model")
    return Case(name, make, lambda folder, out: open_runtime(folder), says, "RuntimeUnavailable")


def unhashed(folder):
    """Build an artefact for TorchScript, a program, and take its hashes away."""
    build = {"backend": {"type": "torchscript", "dtype": "fp32"}}
    artefact = compile_model(load_checkpoint("tiny-random"), build, folder / "artefact")
    content = json.loads((artefact / "manifest.json").read_text())
    content |= {"files_sha256": {}, "torch_files": {}, "model_sha256": None}
    (artefact / "manifest.json").write_text(json.dumps(content))
    return artefact


def compared(name, text):
    """Return a case of another run's results of the right beginning."""

    def call(made, out):
        for run in ("other", "demo"):
            (out / run / "05_errors").mkdir(parents=True)
            (out / run / "05_errors/results.json").write_text(text)
        return Run.of({"weights": "tiny-random", "runs": "other,demo"}).comparison()

    return Case(f"results: {name}", nothing, call, ("results.json", "make it again"), "DataError")


def results(name, text, *says):
    """Return a case of another run's results, with which this one is compared."""

    def call(made, out):
        (out / "other/05_errors").mkdir(parents=True)
        (out / "other/05_errors/results.json").write_text(text)
        return Run.of({"weights": "tiny-random", "runs": "other,demo"})._results_file("other")

    return Case(name, nothing, call, ("results.json", "papermill", *says), "DataError")


def too_large(made, out):
    artefact = compile_model(load_checkpoint("tiny-random"), FLOAT, out / "artefact")
    runtime = open_runtime(artefact)
    (artefact / "manifest.json").unlink()  # nothing is to stand after a case
    return interleaved_latency({"fp32": runtime}, repeats=1, batch_size=10**6)


def bench(name, *words):
    def make(folder):
        return folder

    says = (f"{words[0].lstrip('-').replace('-', '_').rstrip('s')}", str(words[-1])[:9])
    return Case(name, make, lambda folder, out: command(bench_main, [folder, *words]), says)


def text_at(name, text="mine"):
    return lambda folder: (folder / name).write_text(text)


FLOAT = {"backend": {"type": "openvino"}}
VENDOR = {"backend": {"type": "tvm_vacc", "dtype": "fp16"}}
OPERATORS = [{"type": "DecodeImage"}, {"type": "Resize"}, {"type": "Normalize"}, {"type": "ToTensor"}]


def operators(name, change, *says):
    values = {"dataset": {"process_ops": [*OPERATORS[:1], change, *OPERATORS[2:]]}}
    return Case(name, nothing, lambda made, out: BuildConfig.parse(values), ("process_ops", *says))


CASES = [
    # Where a build file leads
    build_file("name of a parent", "name: ..\n", "build.yaml", "name='..'", "plain folder name"),
    build_file("absolute name", "name: /tmp/out\n", "name='/tmp/out'", "plain folder name"),
    build_file("name of the cache", "name: .calibration\n", "name='.calibration'", "plain folder name"),
    build_file("vendor's dtype", "backend: {type: tvm_vacc, dtype: bf16}\n", "fp16 and int8, not bf16"),
    build_file("exclude a truth", "backend: {quantize: {exclude_layers: [true]}}\n", "exclude_layers"),
    build_file("images for nobody", "backend: {type: openvino, dtype: int8}\n"
               "dataset: {sampler: {get_data_num: 1000000000}}\n", "count=1000000000", "get_data_num"),
    build_file("also", "backend: {also: [../openvino]}\n", "also", "'openvino'"),
    into("workspace of a parent", nothing, VENDOR | {"workspace": {"path": "../out"}},
         "workspace.path='../out'", "relative"),
    into("workspace elsewhere", nothing, VENDOR | {"workspace": {"path": "/tmp"}},
         "workspace.path='/tmp'", "relative"),
    # Folders with somebody's files
    into("somebody's model", text_at("model.onnx"), FLOAT, "model.onnx", "move it away"),
    into("somebody's manifest", text_at("manifest.json"), FLOAT, "manifest.json", "another folder"),
    into("somebody's manifest of JSON", text_at("manifest.json", '{"kind": "website"}'), {}, "manifest.json",
         "no build wrote"),
    into("somebody's weights", text_at("model.safetensors"), {"backend": {"type": "torch"}},
         "model.safetensors", "no build wrote"),
    into("a pipe as manifest", lambda folder: os.mkfifo(folder / "manifest.json"), {}, "manifest.json"),
    into("somebody's build file", text_at("build.yaml"), VENDOR, "build.yaml", "move it away"),
    into("somebody's log", text_at("vamc.log"), VENDOR, "vamc.log", "move it away"),
    Case("a file as folder", lambda folder: text_at("out")(folder) and folder / "out",
         lambda path, out: compile_model(load_checkpoint("tiny-random"), {}, path), ("no folder", "move")),
    Case("a batch that does not fit", text_at("model.onnx"), too_large, ("batch_size=1000000", "at most")),
    Case("a program without a hash", unhashed, lambda folder, out: open_runtime(folder), ("no SHA-256", "anew")),
    compared("facts alone", '{"facts": {}}'),
    compared("an empty table", '{"facts": {}, "table": []}'),
    compared("text for a table", '{"facts": {}, "table": "abc", "rows": 3}'),
    Case("a folder in a file", lambda folder: text_at("out")(folder) and folder / "out/artefact",
         lambda path, out: compile_model(load_checkpoint("tiny-random"), {}, path), ("no folder", "move")),
    # Manifests
    manifest("file of a parent", {"files": {"openvino": "../model.onnx"}}, "files.openvino='../model.onnx'"),
    manifest("absolute file", {"files": {"openvino": "/etc/passwd"}}, "files.openvino='/etc/passwd'"),
    manifest("NUL in a file", {"files": {"openvino": "a\0b"}}, "files.openvino"),
    manifest("number as file", {"files": {"openvino": 1}}, "files.openvino=1"),
    manifest("giant side", {"in_size": 10**9}, "in_size=1000000000", "2048"),
    manifest("true side", {"in_size": True}, "in_size=True"),
    manifest("long value", {"dtype": "x" * 10_000_000}, "dtype='xxx"),
    manifest("deep", "[" * 100_000 + "]" * 100_000),
    manifest("large", '{"task": "' + "x" * (70 << 20) + '"}', "64 MiB"),
    manifest("half", "{"),
    # Results of other runs
    results("a list of results", "[]", "older version"),
    results("a number of results", "7", "older version"),
    results("no JSON", "{", "not JSON"),
    results("deep results", "[" * 100_000, "not JSON"),
    results("many values", "[" + "[]," * 9_000_000 + "[]]", "more than 8000000 values"),
    # Numbers of the performance test
    bench("threads", "--threads", 10**6),
    bench("negative threads", "--threads", -1),
    bench("instances", "--instances", 10**6),
    bench("repeats", "--repeats", 10**9),
    bench("no seconds", "--seconds", "nan"),
    Case("true threads", nothing, lambda made, out: Combination("a", threads=True), ("=True",)),
    # Preprocessing
    operators("giant size", {"type": "Resize", "size": [10**9, 10**9]}, "size of Resize", "4096"),
    operators("negative size", {"type": "Resize", "size": -1}, "size of Resize=-1", "from 1"),
    operators("true size", {"type": "Resize", "size": True}, "size of Resize=True"),
    operators("three sizes", {"type": "CenterCrop", "size": [1, 2, 3]}, "size of CenterCrop", "a list of 2"),
    operators("list as type", {"type": ["Resize"]}, "type", "allowed"),
    operators("division by zero", {"type": "Normalize", "std": [0, 1, 1]}, "std of Normalize"),
    operators("mean of words", {"type": "Normalize", "mean": ["a", 1, 1]}, "mean of Normalize"),
    operators("mean of nothing", {"type": "Normalize", "mean": [float("nan")] * 3}, "mean of Normalize"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_ends_in_one_clear_error(case, tmp_path):
    check(case, __file__, tmp_path)
