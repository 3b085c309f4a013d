"""The measured choice of a backend."""

import pytest

from gpenlib.infer import RuntimeUnavailable, fastest_backend
from gpenlib.infer import performance as choice
from gpenlib.infer.performance import auto_candidates
from gpenlib.infer.runtime import TorchBase


@pytest.fixture
def slow(monkeypatch):
    """Function that fixes the times in ms per backend; returns the list of calls that were made."""

    def fix(**milliseconds):
        made = []

        def times(calls, repeats):
            for name, call in calls.items():
                assert call().shape == (1, 3, 64, 64)
                made.append(name)
            return {name: [milliseconds[name]] * repeats for name in calls}

        monkeypatch.setattr(choice, "interleaved_times", times)
        return made

    return fix


@pytest.mark.parametrize(
    ("times", "fastest"),
    [
        ({"openvino": 31.24, "onnxruntime": 45.0}, "openvino"),
        ({"openvino": 50.0, "onnxruntime": 45.0}, "onnxruntime"),
    ],
)
def test_the_fastest_is_taken_and_the_reason_names_all(artefact, slow, times, fastest):
    made = slow(**times)
    backend, reason, rows = fastest_backend(artefact("openvino", "fp32"), "fp32")
    assert backend == fastest and made == ["openvino", "onnxruntime"]
    order = sorted(times, key=times.get)
    listed = ", ".join(f"{name} {times[name]:.1f} ms" for name in order)
    assert reason == f"fastest measured here: {listed} (median of 5 interleaved calls)"
    assert [(row["backend"], row["median_ms"]) for row in rows] == [(name, times[name]) for name in order]


def test_real_times(artefact):
    backend, reason, rows = fastest_backend(artefact("torch", "fp32"), "fp32", repeats=3)
    assert {row["backend"] for row in rows} == {"openvino", "onnxruntime", "torch"}
    assert rows[0]["backend"] == backend and "median of 3" in reason
    medians = [row["median_ms"] for row in rows]
    assert medians == sorted(medians) and medians[0] > 0
    assert all(len(row["times_ms"]) == 3 for row in rows)


def test_a_single_candidate_is_not_timed(artefact, slow):
    made = slow()
    found = fastest_backend(artefact("openvino", "bf16"), "bf16")
    assert found == ("openvino", "the only backend of this artefact that runs bf16 on cpu", [])
    assert made == []


def test_a_backend_that_the_machine_lacks_is_left_out_with_the_reason(artefact, slow, monkeypatch):
    slow(openvino=2.0, onnxruntime=1.0)

    def absent(cls, device):
        raise RuntimeUnavailable("nothing here")

    folder = artefact("torch", "fp32")
    monkeypatch.setattr(TorchBase, "check_device", classmethod(absent))
    backend, reason, rows = fastest_backend(folder, "fp32")
    assert backend == "onnxruntime" and len(rows) == 2
    assert reason.endswith("; torch left out: nothing here")


def test_nothing_to_choose_from(artefact):
    with pytest.raises(
        RuntimeUnavailable, match=r"none of torch runs .* on cpu \(it serves openvino, onnxruntime\)"
    ):
        fastest_backend(artefact("openvino", "fp32"), "fp32", candidates=["torch"])
    with pytest.raises(ValueError, match=r"dtype='bf16': .* is an artefact in fp32"):
        fastest_backend(artefact("openvino", "fp32"), "bf16")
    with pytest.raises(FileNotFoundError, match="compile_model"):
        fastest_backend("nothing_here", "fp32")


def test_candidates_of_auto(monkeypatch):
    assert auto_candidates("fp32") == ["openvino", "onnxruntime"]
    assert auto_candidates("fp32", also=["torchscript"]) == ["openvino", "onnxruntime", "torchscript"]
    assert auto_candidates("bf16") == ["openvino"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert auto_candidates("fp16", "cuda") == ["torch", "torchscript"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeUnavailable, match=r"fp16 on cuda here; onnxruntime: .*torch: .*torchscript: "):
        auto_candidates("fp16", "cuda")
    with pytest.raises(RuntimeUnavailable, match="no backend runs bf16 on tensorrt"):
        auto_candidates("bf16", "tensorrt")
