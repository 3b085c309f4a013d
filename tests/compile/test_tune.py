"""The forms of a layer are one function; the fastest is taken, remembered by processor, and said."""

import copy
import itertools
import logging

import numpy as np
import onnx
import onnxruntime
import pytest

from gpenlib import open_runtime
from gpenlib.compile import compile_model, tune
from gpenlib.compile.write import FORMS, count_quantised, quantised_nodes, write_qdq
from gpenlib.files import read_json, write_json
from gpenlib.infer.artefact import log as runtime_log
from gpenlib.jobs import processor

UP, PLAIN = "generator.convs.2.conv", "generator.convs.3.conv"


@pytest.fixture
def build(tiny_model, float_graph, tmp_path):
    """Function that compiles int8 for OpenVINO with options of ``backend``; the artefact folder."""

    def make(**options):
        data = {"sampler": {"get_data_num": 2}}
        config = {"backend": {"type": "openvino", "dtype": "int8", **options}, "dataset": data}
        return compile_model(tiny_model, config, tmp_path / f"artefact{len(options)}", float_graph)

    return make


@pytest.fixture(scope="module")
def rounded(calibrated):
    return calibrated.round(output_ranges=calibrated.calibration.output_ranges)


@pytest.mark.parametrize("form", [form for forms in FORMS.values() for form in forms])
def test_all_forms_are_one_function_at_any_batch_size(calibrated, rounded, form):
    layer = UP if form in FORMS["ConvTranspose"] else PLAIN
    rounded = {layer: rounded[layer]}  # one alone: what is rounded elsewhere later is another number
    outputs = []
    for each in (FORMS["ConvTranspose" if layer == UP else "Conv"][0], form):
        model = copy.deepcopy(calibrated.graph)
        write_qdq(model, rounded, {layer: each})
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
        outputs.append(session.run(None, {"input": images})[0])
    operator = "ConvTranspose" if layer == UP else "Conv"
    assert count_quantised(model) == {"Conv": 0, "ConvTranspose": 0} | {operator: 1}
    blur = {"generator.convs.2.blur.conv"} if form in ("rounded", "wide") else set()
    assert {name for name in quantised_nodes(model) if "blur" in name} == blur
    error = np.abs(outputs[1] - outputs[0])
    scale = outputs[0].std()
    # Halves are summed in another order.
    assert error.mean() < (0.02 if form == "transposed" else 1e-4) * scale
    assert (error.max() > 1e-4 * scale) == (form == "transposed"), "its output alone is not rounded"


def several(calibrated, rounded):
    """Return the layers that have more than one form."""
    layers = [each for each in tune.convolution_layers(calibrated.graph) if each.name in rounded]
    return {each.name for each in layers if len(tune.possible_forms(each, rounded[each.name])) > 1}


@pytest.fixture
def times(monkeypatch):
    """Function that fixes the times in ms of the forms, and notes which layers were timed."""

    def fix(**milliseconds):
        timed = []

        def stand_in(graph, layer, *_):
            timed.append(layer.name)
            return {form: milliseconds.get(form, 10.0) for form in FORMS[layer.operator]}

        monkeypatch.setattr(tune, "time_forms", stand_in)
        monkeypatch.setattr(tune, "WORTH", 0)
        return timed

    return fix


def test_the_fastest_is_taken_if_it_is_clearly_faster(calibrated, rounded, times):
    timed = times(wide=8.0, halves=9.7)
    found = tune.tune(calibrated.graph, rounded, "f32")
    ups = {name for name in rounded if rounded[name].report.operator == "ConvTranspose"}
    assert found.forms == dict.fromkeys(ups, "wide"), "3 % decide nothing"
    assert (
        set(timed) == several(calibrated, rounded) and found.processor == processor() and not found.not_timed
    )
    (row,) = [row for row in found.rows if row["layer"] == UP and row["chosen"]]
    assert row == {"layer": UP, "form": "wide", "ms": 8.0, "chosen": True, "cached": False}


def test_times_are_remembered_by_shape_and_processor(
    calibrated, rounded, times, tmp_path, monkeypatch, caplog
):
    timed, path = times(wide=8.0), tmp_path / "times.json"
    first = tune.tune(calibrated.graph, rounded, "f32", path)
    count = len(timed)
    again = tune.tune(calibrated.graph, rounded, "f32", path)
    assert again.forms == first.forms and len(timed) == count and all(row["cached"] for row in again.rows)
    for change in ("hint", "processor", "damage"):
        with monkeypatch.context() as patch:
            if change == "processor":
                patch.setattr(tune, "processor", lambda: "another")
            elif change == "damage":
                content = read_json(path)
                write_json(path, content | {"key": {"wide": -1}})
            tune.tune(calibrated.graph, rounded, "bf16" if change == "hint" else "f32", path)
        assert len(timed) == 2 * count, change
        del timed[count:]
    assert "damaged" in caplog.text


def test_the_time_is_bounded(calibrated, rounded, times, monkeypatch):
    timed, clock = times(wide=8.0), itertools.count(step=25.0)
    monkeypatch.setattr(tune.time, "perf_counter", lambda: next(clock))
    found = tune.tune(calibrated.graph, rounded, "f32")
    assert 0 < len(timed) < 4 and {*timed, *found.not_timed} == several(calibrated, rounded)
    assert set(found.forms) <= set(timed)


def test_real_times_of_a_block(calibrated, rounded):
    layers = {layer.name: layer for layer in tune.convolution_layers(calibrated.graph)}
    shapes = tune.tensor_shapes(calibrated.graph)
    for name in (UP, PLAIN, "ecd1.conv"):
        inputs = {tensor: shapes[tensor] for tensor in layers[name].inputs}
        found = tune.time_forms(calibrated.graph, layers[name], rounded[name], inputs, "f32")
        expected = FORMS[layers[name].operator][: 1 if name == "ecd1.conv" else None]
        assert tuple(found) == expected and min(found.values()) > 0


def test_an_artefact_names_its_processor_and_says_so_elsewhere(build, times, caplog, monkeypatch):
    times(wide=8.0)
    folder = build()
    manifest = read_json(folder / "manifest.json")
    assert manifest["tuning"]["processor"] == processor() and manifest["parity"]["worst"]["psnr"] > 20
    assert manifest["files"] == {"openvino": "model.onnx"}, "older ONNX Runtimes do not read it"
    names = quantised_nodes(onnx.load(folder / "model.onnx"))
    assert f"{UP}.wide" in names and manifest["quantisation"]["quantised"]["ConvTranspose"] > 1
    caplog.set_level(logging.WARNING, runtime_log.name)
    open_runtime(folder)
    assert not caplog.text
    monkeypatch.setattr("gpenlib.infer.artefact.processor", lambda: "another one")
    open_runtime(folder)
    assert "were tuned for" in caplog.text and "another one" in caplog.text
    usual = read_json(build(tune="off") / "manifest.json")
    assert "tuning" not in usual and set(usual["files"]) == {"openvino", "onnxruntime"}


@pytest.mark.parametrize("flags", ["amx_int8", "avx512_vnni"])
def test_the_file_for_onnxruntime_is_written_for_amx_where_that_is(build, flags, caplog, monkeypatch):
    monkeypatch.setattr("gpenlib.compile.build.processor", lambda: f"pretended ({flags})")
    monkeypatch.setattr("gpenlib.compile.write.PRODUCT_CHANNELS", 1)
    folder = build(type="onnxruntime")
    model = onnx.load(folder / "model.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = {int(z) for n in model.graph.node if n.op_type == "QLinearConv" for z in constants[n.input[5]]}
    assert zeros == ({-1} if flags == "amx_int8" else {0})
    caplog.set_level(logging.WARNING, runtime_log.name)
    open_runtime(folder)
    assert ("were tuned for pretended" in caplog.text) == (flags == "amx_int8")
    assert "tuning" not in read_json(build(type="onnxruntime", tune="off") / "manifest.json")
