"""PyTorch's runtimes: what they hold, what they refuse, and the call that is kept per batch size."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from gpenlib.files import read_json, write_json
from gpenlib.infer import RuntimeUnavailable, check_support, open_runtime
from gpenlib.infer import runtime as torch_runtimes
from gpenlib.infer.runtime import write_torch_files

BOTH = ("torch", "torchscript")


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(("dtype", "name"), [("fp32", "f32"), ("bf16", "bf16")])
def test_every_convolution_has_the_type_asked_for(artefact, tiny_model, backend, dtype, name):
    runtime = open_runtime(artefact(backend, dtype))
    types = runtime.executed_types()
    assert set(types) == {name} and types[name] > 25
    assert runtime.executed_precision.startswith(name)
    assert types == open_runtime(artefact("torch", dtype)).executed_types()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("dtype", ["int8", "int8_bf16"])
def test_int8_is_refused_before_anything_is_loaded(backend, dtype, artefact, monkeypatch):
    with pytest.raises(RuntimeUnavailable, match=rf"{backend} does not run {dtype} on cpu.*openvino"):
        check_support(backend, dtype)
    folder = artefact("openvino", dtype)
    monkeypatch.setattr("gpenlib.infer.runtime.runtime_class", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.raises(RuntimeUnavailable, match=f"{backend} does not run {dtype}"):
        open_runtime(folder, backend=backend)


@pytest.mark.parametrize("backend", BOTH)
def test_a_folder_without_the_file_says_what_it_serves(artefact, backend):
    said = rf"serves openvino, onnxruntime; {backend} needs model\.\w+.*backend\.also: \[{backend}\]"
    with pytest.raises(RuntimeUnavailable, match=said):
        open_runtime(artefact("openvino", "fp32"), backend=backend)


def test_manifests_from_before_there_were_others_stay_valid(artefact, tmp_path, faces, fp32):
    old = tmp_path / "old"
    old.mkdir()
    (old / "model.onnx").hardlink_to(artefact("openvino", "fp32") / "model.onnx")
    manifest = read_json(artefact("openvino", "fp32") / "manifest.json")
    write_json(old / "manifest.json", {name: value for name, value in manifest.items() if name != "files"})
    np.testing.assert_array_equal(open_runtime(old)(faces[:1]), fp32(faces[:1]))
    with pytest.raises(RuntimeUnavailable, match="serves openvino, onnxruntime; torch needs"):
        open_runtime(old, backend="torch")


def test_auto_takes_the_first_that_serves_the_folder(artefact):
    assert open_runtime(artefact("torch", "fp32"), backend="auto").backend == "openvino"
    assert open_runtime(artefact("torch", "fp32")).backend == "torch"


def test_a_promised_file_that_is_gone_is_named(artefact, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    for name in ("model.onnx", "manifest.json"):
        (folder / name).hardlink_to(artefact("torch", "fp32") / name)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        open_runtime(folder)


@pytest.mark.parametrize("backend", BOTH)
def test_the_number_of_threads_is_put_back(artefact, faces, backend, monkeypatch):
    used = []
    runtime = open_runtime(artefact(backend, "fp32"), threads=1)
    runtime._for_batch(1)
    module = runtime._calls[1]
    monkeypatch.setitem(
        runtime._calls, 1, lambda batch: (used.append(torch.get_num_threads()), module(batch))[1]
    )
    before = torch.get_num_threads()
    runtime(faces[:1])
    assert used == [1] and torch.get_num_threads() == before == 2


def test_a_call_is_prepared_once_per_batch_size(artefact, faces, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        torch_runtimes, "warm_up", lambda module, example, calls: prepared.append((len(example), calls))
    )
    runtime = open_runtime(artefact("torchscript", "fp32"))
    for size in (1, 2, 1, 2, 3):
        runtime(faces[:size])
    assert prepared == [(1, 2), (2, 2), (3, 2)]


def test_outputs_do_not_share_memory(artefact, faces):
    runtime = open_runtime(artefact("torch", "fp32"))
    first = runtime(faces[:1])
    kept = first.copy()
    runtime(faces[1:2])
    np.testing.assert_array_equal(first, kept)


def test_a_recorded_graph_is_fed_through_its_buffers(monkeypatch):
    """The logic around the graph; a stand-in replays it on the CPU."""
    example, output, replays = torch.zeros(2, 3), torch.zeros(2, 3), []

    def module(batch):
        assert batch is example, "a graph reads only the memory that it was recorded with"
        return torch.mul(batch, 2, out=output)

    class Graph:
        def replay(self):
            replays.append(module(example))

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    stand_ins = {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": Stream,
        "graph": lambda graph: nullcontext(),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    before = torch.backends.cudnn.allow_tf32
    call = torch_runtimes.record_cuda_graph(module, example)
    assert torch.backends.cudnn.allow_tf32 == before, "the process's settings are put back"
    for value in (1.0, 3.0):
        assert (call(torch.full((2, 3), value)) == 2 * value).all()
    assert len(replays) == 2


@pytest.mark.parametrize("backend", BOTH)
def test_cuda_without_a_gpu_says_so(artefact, backend):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable, match=r"PyTorch .* sees no CUDA device here.*device='cpu'"):
        open_runtime(artefact(backend, "fp32"), device="cuda")


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(("dtype", "least"), [("fp32", 90.0), ("bf16", 35.0), ("fp16", 50.0)])
def test_on_cuda(tiny_model, faces, tmp_path, backend, dtype, least):
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False: no GPU or a CPU build of PyTorch")
    from gpenlib.compile import compile_model
    from gpenlib.export import parity

    build = {"backend": {"type": backend, "dtype": dtype, "device": "cuda"}}
    runtime = open_runtime(compile_model(tiny_model, build, tmp_path / "artefact"), device="cuda")
    with torch.inference_mode():
        expected = tiny_model(torch.from_numpy(faces)).numpy()
    for _ in range(2):  # recorded, then replayed
        for size in (5, 2):
            assert parity(expected[:size], runtime(faces[:size])).psnr > least


def test_files_are_written_only_for_those_asked_for(tiny_model, tmp_path):
    assert write_torch_files(tiny_model, "int8", tmp_path, ["openvino", "onnxruntime"]) == []
    assert [path.name for path in write_torch_files(tiny_model, "bf16", tmp_path, ["torch", "openvino"])] == [
        "model.safetensors"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(ValueError, match="dtype='int8'"):
        write_torch_files(tiny_model, "int8", tmp_path, ["torch"])
