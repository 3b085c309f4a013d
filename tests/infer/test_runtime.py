"""Runtimes: what is supported, what is refused, that every batch size gives the same, who touches threads."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gpenlib import images
from gpenlib.compile import compile_model
from gpenlib.compile.write import count_quantised, quantised_nodes
from gpenlib.export import parity
from gpenlib.files import read_json, repository_root, sha256, write_json
from gpenlib.infer import RuntimeUnavailable, choose_backend, open_runtime
from gpenlib.infer import runtime as runtimes
from gpenlib.infer.runtime import MOST_THREADS, TABLE, OpenVinoRuntime, interleaved_times, recipe
from gpenlib.jobs import processor
from gpenlib.metrics import psnr
from gpenlib.settings import DTYPES

TORCH = ("torch", "torchscript")
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
RUNNABLE = [(backend, dtype) for backend, entry in TABLE.items() for dtype in entry.dtypes["cpu"]]
# PSNR (dB) that each dtype's output must reach against the torch network: rounding alone stays above.
LEAST_PSNR = {"fp32": 90.0, "bf16": 35.0, "fp16": 50.0, "int8": 20.0, "int8_bf16": 20.0}


def tolerance(executed, outputs):
    """Return how far batch sizes may differ: their kernels may round otherwise, in what was executed."""
    steps = {"int8": 2**-7, "8 bits": 2**-7, "int8_bf16": 2**-7, "bf16": 2**-7, "f16": 2**-10}
    step = next((size for name, size in steps.items() if name in executed.removeprefix("fp16 storage")), None)
    return 1e-4 if step is None else 4 * step * np.abs(outputs).max()


# What goes together


def test_auto_takes_the_first_that_runs_it():
    assert {choose_backend("auto", dtype)[0] for dtype in DTYPES} == {"openvino"}
    on_cuda = [choose_backend("auto", dtype, "cuda")[0] for dtype in ("int8", "bf16")]
    assert on_cuda == ["onnxruntime", "torch"]
    with pytest.raises(RuntimeUnavailable, match="no backend runs int8_bf16 on cuda"):
        choose_backend("auto", "int8_bf16", "cuda")


# What is computed


def test_the_chroma_of_answers_is_scaled(artefact, faces, fp32):
    vivid = open_runtime(artefact("openvino", "fp32"), chroma=1.5)(faces)
    np.testing.assert_array_equal(vivid, images.scale_chroma(fp32(faces), 1.5))
    for wrong in (0, 4.1, True, float("nan"), "2"):
        with pytest.raises(ValueError, match="chroma=.*above 0"):
            open_runtime(artefact("openvino", "fp32"), chroma=wrong)


@pytest.mark.parametrize(("backend", "dtype"), RUNNABLE)
def test_runtime_reproduces_the_network_at_every_batch_size(backend, dtype, artefact, faces, tiny_model):
    runtime = open_runtime(artefact(backend, dtype))
    assert (runtime.backend, runtime.dtype, runtime.in_size) == (backend, dtype, 64)
    with torch.inference_mode():
        expected = tiny_model(torch.from_numpy(faces)).numpy()
    whole = runtime(faces)
    assert whole.dtype == np.float32 and whole.shape == expected.shape
    assert psnr(np.clip(whole, -1, 1), np.clip(expected, -1, 1), 2.0) > LEAST_PSNR[dtype]
    for size in (1, 2):
        parts = np.concatenate([runtime(faces[i : i + size]) for i in range(0, len(faces), size)])
        np.testing.assert_allclose(parts, whole, atol=tolerance(runtime.executed_precision, whole))
    alone = open_runtime(artefact(backend, dtype), threads=1)(faces[:1])
    np.testing.assert_allclose(alone, whole[:1], atol=tolerance(runtime.executed_precision, whole))
    view = faces[::2]  # not contiguous
    np.testing.assert_array_equal(runtime(view), runtime(np.ascontiguousarray(view)))
    if backend in TORCH:
        (name,) = types = runtime.executed_types()
        assert name == dtype.replace("fp", "f") and types[name] > 25
        assert runtime.executed_precision.startswith(name)


def test_what_is_asked_for_is_executed(artefact, fp32):
    # OpenVINO takes bf16 by itself where the processor has it, unless told otherwise.
    assert fp32.executed_precision == "f32" and set(fp32.executed_types()) == {"f32"}
    folder = artefact("openvino", "int8")
    executed = open_runtime(folder).executed_types()
    quantised = len(quantised_nodes(onnx.load(folder / "model.onnx")))
    assert quantised > 10 and executed.get("i8", 0) + executed.get("u8", 0) == quantised
    folder = artefact("onnxruntime", "int8")
    runtime, counts = open_runtime(folder), count_quantised(onnx.load(folder / "model.onnx"))
    # An up-convolution is four convolutions, one per phase.
    assert runtime.executed_types()["i8"] == counts["Conv"] + 4 * counts["ConvTranspose"]
    assert runtime.executed_precision == "int8 convolutions, rest f32"


@pytest.mark.parametrize("dtype", ["bf16", "int8_bf16"])
def test_bf16_is_not_emulated(dtype, artefact, monkeypatch):
    """OpenVINO does, on processors with AVX-512 that have no bf16: three times as slow as in f32."""
    monkeypatch.setattr(runtimes, "has_bf16", lambda: False)
    with pytest.warns(UserWarning, match="no bf16"):
        runtime = open_runtime(artefact("openvino", dtype))
    assert runtime.executed_precision.endswith("f32") and "bf16" not in runtime.executed_types()


@pytest.mark.parametrize("threads", [0, 1.5, True, MOST_THREADS + 1])
def test_impossible_threads_are_refused_before_any_library_sees_them(threads):
    with pytest.raises(ValueError, match=rf"threads={threads}: .* 1 to {MOST_THREADS}"):
        open_runtime("nowhere", threads=threads)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 3, 64, 64), "float64"), ((1, 3, 64, 64), "uint8"), ((1, 3, 32, 64), "float32"),
        ((1, 64, 64, 3), "float32"), ((3, 64, 64), "float32"), ((0, 3, 64, 64), "float32"), ((), "float32"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_with_its_shape(shape, dtype, fp32):
    with pytest.raises(ValueError, match=r"expected float32 \[N, 3, 64, 64\]") as caught:
        fp32(np.zeros(shape, dtype))
    assert str(shape) in str(caught.value) and dtype in str(caught.value)


# A stream of batches, and calls from several threads


def test_a_stream_is_what_calls_are_in_their_order(fp32, faces):
    batches = [faces[:1], faces[1:4], faces[4:], faces[:1], faces[2:3]]
    expected = [fp32(batch) for batch in batches]
    for in_flight in (1, 2, 3, 9):
        outputs = list(fp32.stream(iter(batches), in_flight))
        assert [len(output) for output in outputs] == [1, 3, 1, 1, 1]
        assert all(map(np.array_equal, outputs, expected))
    assert list(fp32.stream([])) == []


def test_a_stream_overlaps_and_keeps_few_in_flight(fp32, faces, monkeypatch):
    taken, used, most, second = 0, 0, [], threading.Event()

    def batches():
        nonlocal taken
        for _ in range(12):
            taken += 1
            most.append(taken - used)
            if taken == 2:
                second.set()
            yield faces[:1]

    def run(batch, usual=fp32._run):
        assert second.wait(30), "the next batch is made while one runs"
        return usual(batch)

    monkeypatch.setattr(fp32, "_run", run)
    for _ in fp32.stream(batches(), 3):
        used += 1
    assert (taken, used, max(most)) == (12, 12, 3)
    taken = 0
    assert all(taken == used for used, _ in enumerate(fp32.stream(batches(), 1), 1))


@pytest.mark.parametrize("wrong", ["batch", "making"])
def test_an_error_comes_in_the_place_of_its_batch(wrong, fp32, faces):
    def batches():
        yield from (faces[:1], faces[1:2])
        if wrong == "making":
            raise OSError("third.png")
        yield faces[2:3] * np.nan
        yield faces[3:4]

    outputs, before = [], threading.active_count()
    with pytest.raises(OSError if wrong == "making" else ValueError, match=r"third\.png|NaN"):
        outputs.extend(fp32.stream(batches()))
    stream = fp32.stream(batches())
    outputs = [next(stream), next(stream)]
    assert np.array_equal(outputs[1], fp32(faces[1:2]))
    with pytest.raises((OSError, ValueError)):
        next(stream)
    assert list(stream) == [] and threading.active_count() == before
    with pytest.raises(ValueError, match="in_flight=0"):
        fp32.stream(batches(), 0)


@pytest.mark.parametrize("way", ["close", "leave"])
def test_leaving_a_stream_early_ends_its_thread(way, fp32, faces):
    taken, ended, before = [], [], threading.active_count()

    def batches():
        try:
            for number in range(10**9):
                taken.append(number)
                yield faces[:1]
        finally:
            ended.append(True)

    stream = fp32.stream(batches())
    for _ in stream:
        break
    assert threading.active_count() == before + 1
    if way == "close":
        stream.close()
    else:
        del stream
    assert threading.active_count() == before and len(taken) <= 4 and ended == [True]


@pytest.mark.parametrize("backend", TABLE)
def test_several_threads_may_call_a_runtime(backend, artefact, faces):
    runtime = open_runtime(artefact(backend, "fp32"))
    expected = [runtime(faces[index : index + 1]) for index in range(5)]
    with ThreadPoolExecutor(5) as pool:
        outputs = list(pool.map(lambda index: runtime(faces[index % 5][None]), range(40)))
    assert all(np.array_equal(output, expected[index % 5]) for index, output in enumerate(outputs))


FIRST_CALLS = """
import sys, threading
from gpenlib.infer.runtime import load_openvino

f32, gate = load_openvino().Type.f32, threading.Barrier(8)
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=lambda: (gate.wait(), f32.to_dtype())) for _ in range(8)]
for step in (threading.Thread.start, threading.Thread.join):
    for thread in threads:
        step(thread)
"""


def test_the_first_calls_of_several_threads_do_not_wait_for_each_other():
    subprocess.run([sys.executable, "-c", FIRST_CALLS], check=True, timeout=120)
    modules = (repository_root() / "gpenlib").rglob("*.py")
    texts = [path.read_text(encoding="utf-8") for path in modules]
    assert sum(text.count("import openvino\n") for text in texts) == 1, "all others ask load_openvino"


def test_calls_are_timed_in_turns_of_both_orders(monkeypatch):
    calls = []
    # A clock that counts calls: a timed stretch holds exactly one.
    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: float(len(calls)))
    times = interleaved_times({name: lambda name=name: calls.append(name) for name in "ab"}, 1, 1)
    assert times == {"a": [1000.0] * 2, "b": [1000.0] * 2}
    assert "".join(calls) == "aabb" + "bbaa" + "aabb", "even turns: as many in one order as in the other"
    with pytest.raises(ValueError, match="repeats=0"):
        interleaved_times({}, 0)
    slow = interleaved_times({"slow": lambda: calls.append("slow")}, 20, 0, seconds=5)
    assert slow == {"slow": [1000.0] * 4}, "as many turns as began within the time, an even number"


def test_no_times_split_by_the_direction_of_the_turn(monkeypatch):
    """Threads of what ran before spin on for 50 ms, and slow all calls that begin meanwhile."""
    now, spinning = [0.0], {"fp32": 0.0, "bf16": 0.0}

    def call(name):
        slow = any(end > now[0] for other, end in spinning.items() if other != name)
        now[0] += {"fp32": 40.0, "bf16": 11.0}[name] + 7.0 * slow
        spinning[name] = now[0] + 50.0

    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: now[0] / 1000)
    for repeats in (1, 4, 5):
        times = interleaved_times({name: partial(call, name) for name in ("fp32", "bf16")}, repeats)
        assert {len(each) % 2 for each in times.values()} == {0}
        assert {name: set(np.round(each, 6)) for name, each in times.items()} == {"fp32": {40}, "bf16": {11}}


# Half floats: in the faster arithmetic


# Noise decides nothing.
@pytest.mark.parametrize(("f16_ms", "taken"), [(1420.0, "f32"), (600.0, "f16"), (940.0, "f32")])
def test_the_faster_arithmetic_is_taken(f16_ms, taken, monkeypatch):
    now, milliseconds = [0.0], {"f32": 950.0, "f16": f16_ms}

    def call(label):
        now[0] += milliseconds[label] / 1000

    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: now[0])
    assert runtimes.faster({label: partial(call, label) for label in milliseconds}) == taken


@pytest.mark.parametrize("winner", ["f32", "f16"])
def test_a_processor_with_fp16_runs_what_was_faster_there(winner, copied, monkeypatch):
    folder, measured = copied("openvino", "fp16", arithmetic=None), []

    def choose(calls):
        measured.append({label: call()[0].shape for label, call in calls.items()})
        return winner

    monkeypatch.setattr("openvino.Core.get_property", lambda *_: ["FP32", "FP16"])
    monkeypatch.setattr(OpenVinoRuntime, "_half_hints", {})
    monkeypatch.setattr(runtimes, "faster", choose)
    for _ in range(2):  # measured once per process
        assert open_runtime(folder)._properties["INFERENCE_PRECISION_HINT"] == winner
    assert measured == [dict.fromkeys(("f32", "f16"), (1, 3, 64, 64))]
    manifest = read_json(folder / "manifest.json")
    for kept in ("f32", "f16"):  # by the processor that built it: nothing is left to noise
        write_json(folder / "manifest.json", manifest | {"arithmetic": {processor(): kept}})
        monkeypatch.setattr(OpenVinoRuntime, "_half_hints", {})
        assert open_runtime(folder)._properties["INFERENCE_PRECISION_HINT"] == kept
    assert len(measured) == 1


# Artefact folders


@pytest.fixture
def copied(artefact, tmp_path):
    """Function (backend, dtype, changes of the manifest, None to remove) -> copy of an artefact folder."""

    def copy(backend="openvino", dtype="fp32", /, **changes):
        folder = shutil.copytree(artefact(backend, dtype), tmp_path / "artefact")
        manifest = {**read_json(folder / "manifest.json"), **changes}
        write_json(folder / "manifest.json", {k: v for k, v in manifest.items() if v is not None})
        return folder

    return copy


def test_one_artefact_serves_the_other_backend(artefact, faces, fp32):
    other = open_runtime(artefact("openvino", "fp32"), backend="onnxruntime")
    assert other.backend == "onnxruntime"
    np.testing.assert_allclose(other(faces[:1]), fp32(faces[:1]), atol=1e-3)
    assert open_runtime(artefact("torch", "fp32"), backend="auto").backend == "openvino"
    assert open_runtime(artefact("torch", "fp32")).backend == "torch"


def test_missing_files_are_named(tmp_path, copied):
    with pytest.raises(FileNotFoundError, match=r"nothing_here.*compile_model"):
        open_runtime(tmp_path / "nothing_here")
    folder = copied("torch")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        open_runtime(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.onnx"):
        open_runtime(folder)


def test_manifests_from_before_there_were_others_stay_valid(copied, faces, fp32):
    old = copied(files=None, torch_files=None, files_sha256=None, model_sha256=None)
    np.testing.assert_array_equal(open_runtime(old)(faces[:1]), fp32(faces[:1]))
    with pytest.raises(RuntimeUnavailable, match="serves openvino, onnxruntime; torch needs"):
        open_runtime(old, backend="torch")


@pytest.mark.parametrize(
    ("backend", "name", "kept"),
    [
        ("openvino", "model.onnx", "model_sha256"), ("openvino", "model.onnx", "files_sha256"),
        ("torch", "model.safetensors", "torch_files"), ("torchscript", "model.pt", "files_sha256"),
    ],
)  # fmt: skip
def test_a_changed_file_is_refused_by_every_record_of_it(backend, name, kept, artefact, copied, faces):
    digest = sha256(artefact(backend, "fp32") / name)
    digests, torch_files = {name: digest}, {name: {"sha256": digest}}
    records = {"model_sha256": digest, "files_sha256": digests, "torch_files": torch_files}
    folder = copied(backend, **dict.fromkeys(records) | {kept: records[kept]})
    assert open_runtime(folder)(faces[:1]).shape == (1, 3, 64, 64)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RuntimeUnavailable, match=rf"{name}: .*SHA-256.*compile_model"):
        open_runtime(folder)


@pytest.mark.parametrize(
    "content", [b"null", b"[]", b'"text"', b"", b"{", b'{"dtype": "\xff"}', b"[" * 10_000]
)
def test_a_manifest_that_is_no_object_is_refused(content, copied):
    folder = copied()
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(RuntimeUnavailable, match=r"manifest\.json.*compile_model"):
        open_runtime(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", 3), ("dtype", "int3"), ("dtype", ["fp32"]), ("dtype", None), ("backend", "other"),
        ("in_size", "64"), ("in_size", 0), ("in_size", None), ("out_size", [64]), ("files", ["model.onnx"]),
        ("files", {"openvino": 1}), ("files", {"openvino": "../model.onnx"}), ("files", {"openvino": ".."}),
        ("files", {"openvino": "/etc/passwd"}), ("files", {"openvino": "sub/model.onnx"}),
        ("files", {"openvino": ""}), ("network", 1), ("model_sha256", 1), ("torch_files", []),
        ("files_sha256", {"model.onnx": None}),
    ],
)  # fmt: skip
def test_an_entry_of_the_wrong_shape_is_named(name, value, copied):
    with pytest.raises(RuntimeUnavailable, match=rf"manifest\.json: {name}.*compile_model"):
        open_runtime(copied(**{name: value}))


@pytest.mark.parametrize("network", [{}, {"in_size": 64, "nonsense": 1}, {"in_size": 63}])
def test_a_network_that_cannot_be_is_refused(network, copied):
    with pytest.raises(RuntimeUnavailable):
        open_runtime(copied("torch", network=network))


@pytest.mark.parametrize("quantisation", [None, 3, [], {"forms": {}}])
def test_the_form_of_int8_is_not_believed_without_a_record(quantisation, copied):
    folder = copied("onnxruntime", "int8", quantisation=quantisation)
    assert open_runtime(folder).executed_precision == "f32 on values rounded to int8"


# OpenVINO's graph of one batch size: the style scales the weights of ToRGB layers


def test_for_one_image_the_style_scales_the_weights(float_graph):
    """The results are compared above, at every batch size."""
    import openvino

    one, two = (openvino.Core().read_model(float_graph) for _ in range(2))
    one.reshape([1, 3, 64, 64])
    two.reshape([2, 3, 64, 64])
    assert [runtimes.scale_rgb_weights(model) for model in (one, two)] == [5, 0]  # levels of 4 to 64 px
    for node in one.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            data, weights = (node.input_value(i).get_node().get_type_name() for i in (0, 1))
            to_rgb = "to_rgb" in node.get_friendly_name()
            assert weights == ("Multiply" if to_rgb else "Constant"), node.get_friendly_name()
            assert data != "Multiply" or not to_rgb


# ONNX Runtime's providers by device; the sessions are stand-ins, no GPU is needed


@pytest.fixture
def opened(monkeypatch):
    """Let ONNX Runtime claim providers and note what sessions are asked for."""
    asked = []

    def claim(present, started=None):
        def session(path, options, providers):
            asked.append(providers)
            names = started or [name for name, _ in providers]
            return Mock(get_inputs=lambda: [Mock()], get_providers=lambda: names)

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        return asked

    return claim


def tensorrt(fp16, int8):
    return TENSORRT, {"trt_fp16_enable": fp16, "trt_int8_enable": int8}


NO_TF32 = (CUDA, {"use_tf32": 0})


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "fp32", [(CPU, {})]), ("cuda", "fp32", [NO_TF32]), ("cuda", "fp16", [NO_TF32]),
        ("tensorrt", "fp32", [tensorrt(fp16=False, int8=False), NO_TF32]),
        ("tensorrt", "fp16", [tensorrt(fp16=True, int8=False), NO_TF32]),
        ("tensorrt", "int8", [tensorrt(fp16=False, int8=True), NO_TF32]),
    ],
)  # fmt: skip
def test_providers_in_order(artefact, opened, device, dtype, expected):
    folder = artefact("onnxruntime", dtype)
    asked = opened([TENSORRT, CUDA, CPU])
    runtime = open_runtime(folder, device=device)
    assert asked == [expected] and (runtime.device, runtime.backend) == (device, "onnxruntime")
    if device == "tensorrt":  # without CUDA it stands alone
        opened([TENSORRT, CPU])
        open_runtime(folder, device=device)
        assert asked[1] == expected[:1]
        assert runtime.executed_precision == dtype and runtime.executed_types() == {}


@pytest.mark.parametrize(("device", "absent"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_a_provider_that_is_absent_or_does_not_start_is_named(artefact, opened, device, absent):
    folder = artefact("onnxruntime", "fp32")
    asked = opened(["AzureExecutionProvider", CPU])
    with pytest.raises(RuntimeUnavailable, match=rf"no {absent} .*AzureExecutionProvider, {CPU}"):
        open_runtime(folder, device=device)
    assert asked == []
    opened([absent, CPU], started=[CPU])  # as ONNX Runtime does in silence
    with pytest.raises(RuntimeUnavailable, match=f"could not start {absent} and fell back to {CPU}"):
        open_runtime(folder, device=device)


# PyTorch


@pytest.mark.parametrize("backend", TORCH)
def test_threads_of_runtimes_at_work_together_do_not_change_each_others(artefact, faces, backend):
    """Set and put back around every call, one call took over the other's number, and put that back."""
    used, both = {1: [], 2: []}, threading.Barrier(2, timeout=300)
    before = torch.get_num_threads()
    assert before == 2
    folder = artefact(backend, "fp32")

    def work(count):
        runtime = open_runtime(folder, threads=count)
        call = runtime._for_batch(1)

        def watch(batch):
            both.wait()  # the two are inside at the same time, and leave in turn
            used[count].append(torch.get_num_threads())
            return call(batch)

        runtime._prepared[1] = watch
        for _ in range(3):
            runtime(faces[:1])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, used))
    assert used == {1: [1] * 3, 2: [2] * 3}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before == torch.get_num_threads()


@pytest.mark.parametrize("backend", TORCH)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_on_cuda(tiny_model, faces, tmp_path, backend, dtype):
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False: no GPU or a CPU build of PyTorch")
    build = {"backend": {"type": backend, "dtype": dtype, "device": "cuda"}}
    runtime = open_runtime(compile_model(tiny_model, build, tmp_path / "artefact"), device="cuda")
    with torch.inference_mode():
        expected = tiny_model(torch.from_numpy(faces)).numpy()
    for _ in range(2):  # recorded, then replayed
        for size in (5, 2):
            assert parity(expected[:size], runtime(faces[:size])).psnr > LEAST_PSNR[dtype]


def test_a_batch_beyond_the_free_memory_is_refused_with_the_largest_that_fits(artefact, faces, monkeypatch):
    runtime = open_runtime(artefact("openvino", "fp32"))
    monkeypatch.setattr(runtimes, "free_memory", lambda device: 5 << 20)
    runtime(faces[:1])
    runtime.check_batch(10**9, images=1)  # no batch is larger than what is there
    with pytest.raises(ValueError, match=r"batch_size=100: 100 images of 64 px .* at most 2 fit"):
        runtime.check_batch(100)
    with pytest.raises(ValueError, match="at most 2 fit"):
        runtime(faces)
    with pytest.raises(ValueError, match="at most 1 fit"):
        runtime.check_batch(2, at_once=2)
    runtime(faces[:2])
    for wrong in (0, True, 1.5, "2", None):
        with pytest.raises(ValueError, match="batch_size="):
            runtime.check_batch(wrong)


@pytest.mark.parametrize("task", ["color", "restore"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("openvino", "int8"), ("onnxruntime", "fp32"), ("torchscript", "fp32"), ("torch", "fp32")],
)
def test_the_recipe_for_deployment_does_what_the_runtime_does(
    backend, dtype, task, artefact, pack, tmp_path, monkeypatch
):
    folder = artefact(backend, dtype)
    face = pack.truths(0)
    given = images.to_grey(face) if task == "color" else face
    images.write_image(tmp_path / "face.png", face)
    monkeypatch.chdir(tmp_path)
    exec(recipe(folder, task), {})
    expected = images.from_tensor(open_runtime(folder)(images.to_tensor(given)))[0]
    difference = np.abs(images.read_image(tmp_path / "restored.png").astype(int) - expected)
    # The runtime lets styles scale the weights of ToRGB: other sums, and int8 may round a value elsewhere.
    assert difference.max() <= (3 if dtype == "int8" else 1) and difference.mean() < 0.05


def test_openvino_sends_no_usage_data():
    code = "import gpenlib.infer.runtime, openvino, sys; print([m for m in sys.modules if 'telemetry' in m])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "telemetry_stub" in ran.stdout and "openvino_telemetry." not in ran.stdout
