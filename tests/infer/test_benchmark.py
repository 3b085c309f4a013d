"""Interleaved timing."""

import pytest

from gpenlib.infer import performance as benchmark
from gpenlib.infer.performance import interleaved_latency, interleaved_times


class Recorder:
    """A runtime that writes down its calls."""

    backend, dtype, executed_precision, in_size = "none", "fp32", "f32", 8

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __call__(self, batch):
        self.calls.append((self.name, batch.shape, str(batch.dtype)))
        return batch


def test_runtimes_are_called_in_turn():
    calls = []
    interleaved_latency({name: Recorder(name, calls) for name in "ab"}, repeats=3, warm_up=1, batch_size=2)
    turns = ["".join(name for name, _, _ in calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert len(turns) == 4 and set(turns) == {"ab", "ba"}  # both orders, so that neither is favoured
    assert {shape for _, shape, _ in calls} == {(2, 3, 8, 8)}
    assert {dtype for _, _, dtype in calls} == {"float32"}


def test_warm_up_is_not_timed():
    (row,) = interleaved_latency({"a": Recorder("a", [])}, repeats=4, warm_up=3)
    assert len(row["times_ms"]) == 4


def test_a_call_that_leads_in_is_not_timed(monkeypatch):
    calls = []
    # A clock that counts calls: a timed stretch holds exactly one.
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(len(calls)))
    times = interleaved_times({name: lambda name=name: calls.append(name) for name in "ab"}, 2, 1, lead_in=2)
    assert times == {"a": [1000.0] * 2, "b": [1000.0] * 2}
    assert "".join(calls) == "aaabbb" + "bbbaaa" + "aaabbb"


def test_a_real_runtime_is_timed(fp32):
    (row,) = interleaved_latency({"tiny": fp32}, repeats=5, warm_up=1, batch_size=2)
    assert row["label"] == "tiny"
    assert (row["backend"], row["dtype"], row["batch_size"]) == ("openvino", "fp32", 2)
    assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] <= max(row["times_ms"])
    assert row["median_ms"] == pytest.approx(sorted(row["times_ms"])[2])
