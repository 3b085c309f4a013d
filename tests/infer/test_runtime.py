"""Runtimes: what is supported, what is refused, and that every batch size gives the same."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gpenlib.compile.write import count_quantised, quantised_nodes
from gpenlib.infer import RuntimeUnavailable, check_support, choose_backend, open_runtime
from gpenlib.infer.runtime import BACKENDS, DTYPES, SUPPORTED
from gpenlib.metrics import psnr

RUNNABLE = [(backend, dtype) for backend, devices in SUPPORTED.items() for dtype in devices["cpu"]]
# PSNR (dB) that each dtype's output must reach against the torch network: rounding alone stays above.
LEAST_PSNR = {"fp32": 90.0, "bf16": 35.0, "fp16": 50.0, "int8": 20.0, "int8_bf16": 20.0}
SAME = {
    "fp32": 1e-4,
    "fp16": 1e-4,
    "bf16": 0.05,
    "int8": 0.05,
    "int8_bf16": 0.05,
}  # batch sizes may take other kernels


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("openvin", "fp32", "cpu"), r"backend='openvin'.*openvino, onnxruntime.*did you mean 'openvino'"),
        (("openvino", "int3", "cpu"), r"dtype='int3'.*fp32, bf16, fp16, int8.*did you mean 'int8'"),
        (("openvino", "fp32", "cuda0"), r"device='cuda0'.*cpu, cuda, tensorrt.*did you mean 'cuda'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(values, said):
    with pytest.raises(ValueError, match=said):
        check_support(*values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("onnxruntime", "bf16", "cpu"), r"onnxruntime does not run bf16 on cpu.*openvino \(.*bf16"),
        (("openvino", "fp32", "cuda"), r"openvino does not run fp32 on cuda.*onnxruntime"),
        (("onnxruntime", "bf16", "cuda"), r"onnxruntime does not run bf16 on cuda.*torch \(.*bf16"),
        (("torch", "fp16", "cpu"), r"torch does not run fp16 on cpu.*openvino \(.*fp16"),
        (("torch", "fp32", "tensorrt"), r"torch does not run fp32 on tensorrt.*onnxruntime \("),
    ],
)
def test_unsupported_combinations_name_what_there_is(values, said):
    with pytest.raises(RuntimeUnavailable, match=said):
        check_support(*values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_takes_openvino_on_the_cpu(dtype):
    assert choose_backend("auto", dtype)[0] == "openvino"


def test_auto_on_cuda():
    assert choose_backend("auto", "int8", "cuda")[0] == "onnxruntime"
    assert choose_backend("auto", "bf16", "cuda")[0] == "torch"
    with pytest.raises(RuntimeUnavailable, match="no backend runs int8_bf16 on cuda"):
        choose_backend("auto", "int8_bf16", "cuda")


def test_an_explicit_backend_is_checked():
    assert choose_backend("onnxruntime", "fp16") == ("onnxruntime", "asked for")
    with pytest.raises(RuntimeUnavailable, match="bf16"):
        choose_backend("onnxruntime", "bf16")


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
        np.testing.assert_allclose(parts, whole, atol=SAME[dtype])


def test_int8_is_executed_in_int8(artefact):
    folder = artefact("openvino", "int8")
    quantised = len(quantised_nodes(onnx.load(folder / "model.onnx")))
    executed = open_runtime(folder).executed_types()
    assert quantised > 10
    assert executed.get("i8", 0) + executed.get("u8", 0) == quantised


def test_int8_on_onnxruntime_is_executed_in_int8(artefact):
    folder = artefact("onnxruntime", "int8")
    runtime = open_runtime(folder)
    quantised = count_quantised(onnx.load(folder / "model.onnx"))
    # An up-convolution is four convolutions, one per phase.
    assert runtime.executed_types()["i8"] == quantised["Conv"] + 4 * quantised["ConvTranspose"]
    assert runtime.executed_precision == "int8 convolutions, rest f32"


def test_fp32_is_executed_in_fp32(fp32):
    """OpenVINO takes bf16 by itself where the processor has it, unless told otherwise."""
    assert fp32.executed_precision == "f32"
    assert set(fp32.executed_types()) == {"f32"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_number_of_threads_does_not_change_the_result(backend, artefact, faces):
    one = open_runtime(artefact(backend, "fp32"), threads=1)
    two = open_runtime(artefact(backend, "fp32"), threads=2)
    np.testing.assert_allclose(one(faces[:2]), two(faces[:2]), atol=1e-4)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 64, 64), np.float64),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 3, 32, 64), np.float32),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((0, 3, 64, 64), np.float32),
    ],
    ids=lambda batch: f"{batch.dtype}{batch.shape}",
)
def test_wrong_input_is_refused_with_its_shape(batch, fp32):
    with pytest.raises(ValueError, match=r"expected float32 \[N, 3, 64, 64\]") as caught:
        fp32(batch)
    assert str(batch.shape) in str(caught.value) and str(batch.dtype) in str(caught.value)


def test_a_view_that_is_not_contiguous_is_accepted(fp32, faces):
    np.testing.assert_array_equal(fp32(faces[::2]), fp32(np.ascontiguousarray(faces[::2])))


def test_cuda_without_a_gpu_build_says_so(artefact):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the GPU build")
    with pytest.raises(RuntimeUnavailable, match=r"CUDAExecutionProvider.*onnxruntime-gpu.*cpu"):
        open_runtime(artefact("onnxruntime", "fp32"), device="cuda")


def test_an_artefact_of_openvino_is_refused_on_cuda(artefact):
    with pytest.raises(RuntimeUnavailable, match="openvino does not run fp32 on cuda"):
        open_runtime(artefact("openvino", "fp32"), device="cuda")


def test_one_artefact_serves_the_other_backend(artefact, faces, fp32):
    other = open_runtime(artefact("openvino", "fp32"), backend="onnxruntime")
    assert other.backend == "onnxruntime"
    np.testing.assert_allclose(other(faces[:1]), fp32(faces[:1]), atol=1e-3)


def test_missing_artefact_is_named(tmp_path, artefact):
    with pytest.raises(FileNotFoundError, match=r"nothing_here.*compile_model"):
        open_runtime(tmp_path / "nothing_here")
    half = shutil.copytree(artefact("openvino", "fp32"), tmp_path / "half")
    (half / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.onnx"):
        open_runtime(half)
