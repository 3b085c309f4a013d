"""ONNX Runtime's execution providers by device; the sessions are stand-ins, no GPU is needed."""

import onnxruntime
import pytest

from gpenlib.infer import RuntimeUnavailable, open_runtime

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


def tensorrt(fp16: bool, int8: bool) -> tuple[str, dict]:
    return TENSORRT, {"trt_fp16_enable": fp16, "trt_int8_enable": int8}


@pytest.fixture
def opened(monkeypatch):
    """Let ONNX Runtime claim providers and note what sessions are asked for."""
    asked = []

    def claim(present, started=None):
        class Session:
            def __init__(self, path, options, providers):
                asked.append(providers)

            def get_inputs(self):
                return [type("Input", (), {"name": "input"})]

            def get_providers(self):
                return started or [name for name, _ in asked[-1]]

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return asked

    return claim


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "fp32", [(CPU, {})]),
        ("cuda", "fp32", [(CUDA, {"use_tf32": 0})]),
        ("cuda", "fp16", [(CUDA, {"use_tf32": 0})]),
        ("tensorrt", "fp32", [tensorrt(fp16=False, int8=False), (CUDA, {"use_tf32": 0})]),
        ("tensorrt", "fp16", [tensorrt(fp16=True, int8=False), (CUDA, {"use_tf32": 0})]),
        ("tensorrt", "int8", [tensorrt(fp16=False, int8=True), (CUDA, {"use_tf32": 0})]),
    ],
)
def test_providers_in_order(artefact, opened, device, dtype, expected):
    folder = artefact("onnxruntime", dtype)
    asked = opened([TENSORRT, CUDA, CPU])
    runtime = open_runtime(folder, device=device)
    assert asked == [expected]
    assert (runtime.device, runtime.backend) == (device, "onnxruntime")


def test_tensorrt_without_cuda_stands_alone(artefact, opened):
    folder = artefact("onnxruntime", "fp32")
    asked = opened([TENSORRT, CPU])
    open_runtime(folder, device="tensorrt")
    assert [name for name, _ in asked[0]] == [TENSORRT]


@pytest.mark.parametrize(("device", "wanted"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_a_provider_that_is_absent_is_named_with_those_present(artefact, opened, device, wanted):
    folder = artefact("onnxruntime", "fp32")
    asked = opened(["AzureExecutionProvider", CPU])
    with pytest.raises(
        RuntimeUnavailable, match=rf"no {wanted} here \(present: AzureExecutionProvider, {CPU}\)"
    ):
        open_runtime(folder, device=device)
    assert asked == []


def test_a_silent_fallback_is_refused(artefact, opened):
    folder = artefact("onnxruntime", "fp32")
    opened([CUDA, CPU], started=[CPU])
    with pytest.raises(RuntimeUnavailable, match=f"could not start {CUDA} and fell back to {CPU}"):
        open_runtime(folder, device="cuda")


def test_int8_claims_integer_arithmetic_only_under_tensorrt(artefact, opened):
    folder = artefact("onnxruntime", "int8")
    opened([TENSORRT, CUDA, CPU])
    assert "f32" in open_runtime(folder, device="cuda").executed_precision
    under_tensorrt = open_runtime(folder, device="tensorrt")
    assert under_tensorrt.executed_precision == "int8" and under_tensorrt.executed_types() == {}


@pytest.mark.parametrize("dtype", ["bf16", "int8_bf16"])
def test_tensorrt_is_not_offered_bf16(artefact, dtype):
    with pytest.raises(RuntimeUnavailable, match=rf"onnxruntime does not run {dtype} on tensorrt"):
        open_runtime(artefact("openvino", dtype), device="tensorrt", backend="onnxruntime")
