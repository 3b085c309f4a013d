"""Time of artefacts: in turn, the measured choice, by layer, under load in child processes, the command."""

import json
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from gpenlib.files import repository_root, write_json
from gpenlib.infer import RuntimeUnavailable, performance
from gpenlib.infer.artefact import MODEL_FILE
from gpenlib.infer.performance import (
    Combination,
    auto_candidates,
    fastest_backend,
    layer_times,
    run_instances,
    summary_row,
)
from gpenlib.infer.runtime import MOST_THREADS, TorchRuntime

NAP = 0.02
NOTHING = SimpleNamespace(backend="none", dtype="fp32", executed_precision="f32")


# Several runtimes in turn


def test_a_real_runtime_is_timed(fp32):
    (row,) = performance.interleaved_latency({"tiny": fp32}, repeats=5, warm_up=1, batch_size=2)
    ran = [row[name] for name in ("label", "backend", "dtype", "executed_precision", "batch_size")]
    assert ran == ["tiny", "openvino", "fp32", "f32", 2]
    assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] <= max(row["times_ms"])
    assert row["median_ms"] == pytest.approx(np.median(row["times_ms"])) and len(row["times_ms"]) == 6
    with pytest.raises(ValueError, match="batch_size=0"):
        performance.interleaved_latency({"tiny": fp32}, batch_size=0)


@pytest.fixture
def clock(monkeypatch):
    """Function that sets what successive measurements of ``int8`` find, as lists of times in ms."""

    def fix(*measured):
        made = Mock(side_effect=[{"int8": times} for times in measured])
        monkeypatch.setattr(performance, "interleaved_times", made)
        return made

    return fix


STEADY, SPREAD = [10.0, 10.5, 11.0, 10.0], [10.0, 10.0, 30.0, 31.0]


@pytest.mark.parametrize(
    ("measured", "earlier", "note"),
    [
        ([STEADY], {}, ""),
        ([STEADY], {"int8": 11.0, "fp32": 99.0}, ""),
        ([SPREAD, STEADY], {}, ""),
        ([SPREAD, SPREAD, SPREAD], {}, "timed on a busy machine: 8 of 10 times of int8 span a factor of 3.1"),
        ([[30.0, 31.0], STEADY], {"int8": 10.0}, ""),
        ([STEADY, STEADY, STEADY], {"int8": 20.0}, "busy machine: int8 took 20.0 ms earlier, 10.2 ms now"),
    ],
)
def test_disturbed_times_are_taken_again_or_said(fp32, clock, measured, earlier, note):
    made = clock(*measured)
    rows, told = performance.steady_latency({"int8": fp32}, 4, earlier=earlier)
    assert made.call_count == len(measured)
    assert note in told and bool(note) == bool(told)
    assert rows[0]["times_ms"] == (STEADY if STEADY in measured else SPREAD)


# The measured choice of a backend


@pytest.fixture
def slow(monkeypatch):
    """Function that fixes the times in ms per backend; returns the stand-in for the measurement."""

    def fix(**milliseconds):
        times = Mock(side_effect=lambda calls, repeats, *_: {n: [milliseconds[n]] * repeats for n in calls})
        monkeypatch.setattr(performance, "interleaved_times", times)
        return times

    return fix


@pytest.mark.parametrize(
    "times", [{"openvino": 31.24, "onnxruntime": 45.0}, {"openvino": 50.0, "onnxruntime": 45.0}]
)
def test_the_fastest_is_taken_and_the_reason_names_all(artefact, slow, times):
    made = slow(**times)
    backend, reason, rows = fastest_backend(artefact("openvino", "fp32"), "fp32")
    order = sorted(times, key=times.get)
    assert backend == order[0] and list(made.call_args.args[0]) == ["openvino", "onnxruntime"]
    more = times[order[1]] / times[order[0]]
    said = f"fastest measured here: {order[1]} takes {more:.1f} times as long"
    assert reason == f"{said} (medians of 6 calls in turns)"
    assert rows == [{"backend": n, "median_ms": times[n], "times_ms": [times[n]] * 6} for n in order]


def test_a_backend_that_the_machine_lacks_is_left_out_with_the_reason(artefact, slow, monkeypatch):
    slow(openvino=2.0, onnxruntime=1.0)
    folder = artefact("torch", "fp32")
    monkeypatch.setattr(TorchRuntime, "check_device", Mock(side_effect=RuntimeUnavailable("nothing here")))
    backend, reason, rows = fastest_backend(folder, "fp32")
    assert backend == "onnxruntime" and len(rows) == 2 and reason.endswith("; torch left out: nothing here")


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


# Layer by layer


def test_layer_times(artefact):
    folders = {backend: artefact(backend, "int8") for backend in ("openvino", "onnxruntime")}
    folders["torch"] = artefact("torch", "fp32")
    times = layer_times(folders, repeats=2)
    assert times.pop("torch") == []
    for backend, rows in times.items():
        graph = onnx.load(folders[backend] / MODEL_FILE).graph
        expected = {n.name for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "QLinearConv")}
        named = {row["name"] for row in rows if "conv" in row["kind"] or "filter" in row["kind"]}
        assert len(expected) > 20 and expected <= named | {"generator.to_rgbs.0.upsample"}
        assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
        assert all(0 <= row["ms"] < np.inf and row["kind"] in performance.KINDS for row in rows)
        precisions = {row["precision"] for row in rows if row["kind"] == "convolution"}
        assert "int8" in precisions and "f32" in precisions  # the layers at the ends stay in float
        assert sum(row["precision"] == "int8" for row in rows) > 10


# Instances at work at the same time


def nap():
    time.sleep(NAP)


def test_two_instances_overlap_and_go_on_for_the_seconds_asked_for():
    alone, alone_s = run_instances([nap], repeats=10)
    both, both_s = run_instances([nap, nap], repeats=10)
    assert (len(alone), len(both)) == (10, 20) and alone_s >= 10 * NAP
    assert 1.5 < (len(both) / both_s) / (len(alone) / alone_s) < 2.5
    times, wall = run_instances([nap, nap], repeats=1, seconds=0.2)
    assert 0.2 <= wall < 1 and len(times) > 4


def test_warm_up_is_not_timed_and_each_latency_is():
    pauses = iter([0.2, 0.2, 0.001, 0.06])
    times, wall = run_instances([lambda: time.sleep(next(pauses))], repeats=2, warm_up=2)
    assert len(times) == 2 and 1 <= times[0] < 50 <= times[1] < 200
    assert sum(times) <= wall * 1000 < 400


@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_failing_instance_raises_its_own_error(warm_up):
    with pytest.raises(OSError, match="out of order"):
        run_instances([nap, Mock(side_effect=OSError("out of order"))], repeats=2, warm_up=warm_up)


# Combinations


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repeats", 0), ("batch_size", 0), ("instances", -1), ("threads", 1.5), ("threads", MOST_THREADS + 1),
        ("warm_up", -1), ("seconds", -0.1), ("seconds", float("nan")),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused_before_anything_runs(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Combination("nowhere", **{name: value})
    with pytest.raises(ValueError, match=r"threads=\[\]: give at least one"):
        performance.performance_test("nowhere", threads=[])


def test_percentiles_are_numpys_and_rows_say_what_they_cannot_support():
    times = list(np.random.default_rng(0).gamma(2.0, 10.0, 100))
    row = summary_row(Combination("a", batch_size=4, instances=2), NOTHING, times, 5.0, {})
    figures = [row[name] for name in ("p50_ms", "p95_ms", "p99_ms", "mean_ms", "images_per_s")]
    assert figures == pytest.approx([*np.percentile(times, (50, 95, 99)), np.mean(times), 100 * 4 / 5])
    assert (row["calls"], row["enough_for_p99"], row["times_ms"]) == (100, True, times)
    for threads in (1, 2):
        combination = Combination("a", instances=performance.processors(), threads=threads)
        row = summary_row(combination, NOTHING, times[:99], 1.0, {})
        assert (row["enough_for_p99"], row["oversubscribed"]) == (False, threads == 2)


# Child processes


def test_peak_memory_of_a_child_is_what_it_holds():
    """Read from getrusage, it would begin at that of its parent."""
    held = np.ones(300 << 17)  # 300 MiB here, which must not show there
    code = """
        import json
        import numpy as np
        from gpenlib.infer.performance import Combination, measure

        class Hungry:
            backend = dtype = executed_precision = "none"
            in_size = 8
            def __init__(self):
                self.held = np.ones(201 << 17)
            def check_batch(self, size, at_once):
                assert size == at_once == 1
            def __call__(self, batch):
                return batch

        print(json.dumps(measure(Combination("a", repeats=2), lambda *_, **__: Hungry())))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=repository_root())
    row = json.loads(done.stdout)
    assert held.nbytes == 300 << 20
    assert row["peak_memory_mib"] - row["base_memory_mib"] == pytest.approx(201, abs=15)


def test_faults_of_a_child_are_told(tmp_path):
    """What a user can put right as by open_runtime, anything else with its traceback."""
    manifest = {"backend": "onnxruntime", "dtype": "fp32", "in_size": 64, "out_size": 64}
    write_json(tmp_path / "manifest.json", manifest)
    nodes = [  # takes a channel whose number is a value of the picture
        onnx.helper.make_node("Mul", ["input", "large"], ["product"]),
        onnx.helper.make_node("Cast", ["product"], ["numbers"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("ReduceMax", ["numbers"], ["place"], keepdims=0),
        onnx.helper.make_node("Gather", ["input", "place"], ["channel"], axis=1),
        onnx.helper.make_node("Unsqueeze", ["channel", "one"], ["again"]),
        onnx.helper.make_node("Add", ["input", "again"], ["output"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 3, 64, 64]) for name in ("input", "output")]
    constants = {"large": np.float32(1e6), "one": np.array([1])}
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    sets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=sets, ir_version=9), tmp_path / "model.onnx")
    with pytest.raises(RuntimeUnavailable, match="openvino does not run fp32 on cuda"):
        performance.performance_test(tmp_path, backend="openvino", device="cuda")
    with pytest.raises(RuntimeError, match=r"batch 3, 1 instances of 1 threads: the process failed") as fault:
        performance.performance_test(tmp_path, batch_sizes=[3])
    assert "InvalidArgument" in str(fault.value)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(RuntimeUnavailable, match=r"model\.onnx: .* build the artefact anew"):
        performance.performance_test(tmp_path, batch_sizes=[3])


# The command


def test_command_prints_a_table_and_writes_complete_rows(artefact, tmp_path, capsys):
    target, folder = tmp_path / "sub" / "performance.json", str(artefact("onnxruntime", "fp32"))
    arguments = [folder, "--batch", "1", "2", "--instances", "2", "--repeats", "3", "--json", str(target)]
    assert performance.main(arguments) == 0
    printed, stored = capsys.readouterr().out, json.loads(target.read_text(encoding="utf-8"))
    assert all(title in printed for title in performance.TABLE.values())
    assert "onnxruntime, fp32" in printed and "fewer than 100 calls" in printed
    assert stored["artefact"] == folder and {"numpy", "onnxruntime"} <= set(stored["packages"])
    assert [(r["batch_size"], r["instances"], r["threads"]) for r in stored["rows"]] == [(1, 2, 1), (2, 2, 1)]
    for row in stored["rows"]:
        assert set(performance.TABLE) <= set(row)
        assert (row["backend"], row["dtype"], row["device"]) == ("onnxruntime", "fp32", "cpu")
        assert row["executed_precision"] == "fp32" and row["calls"] == 6 == len(row["times_ms"])
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= max(row["times_ms"])
        assert row["images_per_s"] == pytest.approx(6 * row["batch_size"] / row["wall_s"])
        assert 0 < row["base_memory_mib"] < row["peak_memory_mib"]
    assert performance.main([folder, "--repeats", "0"]) == 1
    assert capsys.readouterr().err == "error: repeats=0: must be a whole number, at least 1\n"
