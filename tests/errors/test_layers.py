"""Layer errors against brute force, a spoilt layer and what heals it, fp16 under stress, the stage."""

from dataclasses import asdict, replace
from itertools import groupby

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from gpenlib import run as run_module
from gpenlib.architecture.inspect import capture
from gpenlib.compile import build
from gpenlib.compile.calibrate import calibrate
from gpenlib.compile.rounding import fake_quantised, quantisable_layers, round_layers, split_halves
from gpenlib.compile.sensitivity import Probe, rank_layers
from gpenlib.compile.write import write_qdq
from gpenlib.errors import layers
from gpenlib.export import deploy_form
from gpenlib.files import read_json
from gpenlib.run import Run
from gpenlib.settings import RunSettings

VICTIM = "generator.convs.1.conv"
ORDINARY = 60.0  # dB against float32 that fp16 reaches where nothing overflows


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def rounded(float_graph, faces):
    """All quantisable layers; calibrated on the first face only, so that the second may be clipped."""
    model = split_halves(onnx.load(float_graph))
    nodes = quantisable_layers(model)
    ranges = calibrate(model, list(dict.fromkeys(name for n in nodes for name in n.inputs)), [], faces[:1])
    return round_layers(model, ranges.thresholds("percentile", 99.9), [node.name for node in nodes])


@pytest.fixture(scope="module")
def spoilt(rounded):
    """One layer rounded thirty times as coarsely."""
    scales = tuple(30 * scale for scale in rounded[VICTIM].activation_scales)
    return {**rounded, VICTIM: replace(rounded[VICTIM], activation_scales=scales)}


def write_int8(graph, chosen, path):
    model = split_halves(onnx.load(graph))
    write_qdq(model, chosen)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def spoilt_file(float_graph, spoilt, tmp_path_factory):
    return write_int8(float_graph, spoilt, tmp_path_factory.mktemp("spoilt") / "int8.onnx")


def inputs_and_outputs(deploy, names, faces):
    """Arrays [faces, C, H, W] that these modules read and write in PyTorch."""
    seen = []
    read_and_written = capture(deploy, names, lambda name, inputs, output: (inputs[0], output))
    with torch.inference_mode(), read_and_written as maps:
        for face in faces:
            deploy(torch.from_numpy(face))
            seen.append(dict(maps))
    return {
        name: [torch.cat(each).double() for each in zip(*(maps[name] for maps in seen), strict=True)]
        for name in names
    }


def test_figures_of_two_arrays_are_those_of_brute_force_and_always_finite():
    a, b = np.random.default_rng(1).normal(size=(2, 3, 18)).astype(np.float32)
    agreement = layers.Agreement()
    for pair in zip(a, b, strict=True):
        agreement.update(*pair)
    a, b = a.astype(float).ravel(), b.astype(float).ravel()
    assert agreement.sqnr_db == pytest.approx(10 * np.log10(a @ a / ((a - b) @ (a - b))))
    assert agreement.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    opposite = 10 * np.log10(1 / 4)
    for one, other, *figures in ((1, 1, 200, 1), (1, -1, opposite, -1), (0, 0, 200, 1), (0, 1, -200, 0)):
        agreement = layers.Agreement()
        agreement.update(np.full(4, one, np.float32), np.full(4, other, np.float32))
        assert [agreement.sqnr_db, agreement.cosine] == pytest.approx(figures)


def test_clipped_and_outermost_codes_are_counted():
    # codes: 127 at the threshold, 127 rounded down to it, 127 clipped, -127 within, -128 beyond, -128 clipped
    values = np.array([12.7, 12.74, 20.0, -12.7, -12.76, -20.0, 12.64, 0.0], np.float32)
    assert layers.count_codes(values, 0.1).tolist() == [8, 4, 5]


def test_accumulated_errors_are_those_of_the_quantised_network(
    tiny_model, float_graph, rounded, faces, tmp_path
):
    """By another way: the outputs of all convolutions in PyTorch, both faces pooled."""
    deploy = deploy_form(tiny_model)
    found = layers.layer_errors(
        float_graph, write_int8(float_graph, rounded, tmp_path / "int8.onnx"), deploy, rounded, faces
    )
    rows = {row["layer"]: row for row in found if row["layer"]}
    expected = inputs_and_outputs(deploy, rows, faces)
    with fake_quantised(deploy, rounded):
        quantised = inputs_and_outputs(deploy, rows, faces)
    compared = 0
    for name, row in rows.items():
        a, b = expected[name][1], quantised[name][1]
        assert row["shape"] == list(a.shape[1:])
        noise, signal = float((a - b).square().sum()), float(a.square().sum())
        if noise:  # ties are rounded to either side, which moves the noise a little
            assert row["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=0.6), name
            cosine = float((a * b).sum()) / np.sqrt(signal * float(b.square().sum()))
            assert row["cosine"] == pytest.approx(cosine, abs=2e-4), name
            compared += 1
    assert compared > len(rounded)
    for name, layer in rounded.items():
        x = quantised[name][0].numpy()  # the hook runs behind the rounding
        share = np.isin(np.rint(x / layer.input_steps()[:, None, None]), (-128, 127)).mean()
        one = 1.01 / x.size  # a value at the edge of the last code may fall to either side
        assert rows[name]["saturation"] == pytest.approx(share, abs=max(one, 2e-4)), name
    assert max(rows[name]["clipped_share"] for name in rounded) > 1e-4, "a percentile of 99.9 clips something"


def test_isolated_error_is_that_of_rounding_input_and_weight(tiny_model, rounded, faces):
    deploy = deploy_form(tiny_model)
    names = ("ecd1.conv", "generator.convs.0.conv")  # plain and transposed
    agreements = layers.isolated_errors(deploy, {name: rounded[name] for name in names}, faces)
    expected = inputs_and_outputs(deploy, names, faces)
    for name in names:
        module, layer = deploy.get_submodule(name), rounded[name]
        x, y = expected[name]
        steps = torch.from_numpy(layer.input_steps())[:, None, None]
        q = torch.clamp(torch.round(x / steps), -128, 127) * steps
        w = torch.from_numpy(layer.restored_weight()).double()
        call = F.conv2d if name.startswith("ecd") else F.conv_transpose2d
        options = {"stride": module.stride, "padding": module.padding}
        error = call(q, w, **options) - call(x, module.weight.double(), **options)
        sqnr = 10 * torch.log10(y.square().sum() / error.square().sum())
        assert agreements[name].sqnr_db == pytest.approx(float(sqnr), abs=0.05)


def test_maps_come_in_graph_order_with_their_stages(float_graph):
    model = onnx.load(float_graph)
    maps = layers.feature_maps(model)
    order = {node.output[0]: place for place, node in enumerate(model.graph.node)}
    assert [order[each.tensor] for each in maps] == sorted(order[each.tensor] for each in maps)
    stages = [name for name, _ in groupby(each.module for each in maps)]
    decoder = ("conv1", "to_rgb1", "convs.0", "convs.1", "to_rgbs.0")
    assert stages[:10] == [*(f"ecd{i}" for i in range(5)), *(f"generator.{name}" for name in decoder)]
    assert len(set(stages)) == len(stages), "a stage's maps together"
    assert maps[-1].tensor == "output" and maps[-1].shape == [3, 64, 64]
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert sum(each.layer is not None for each in maps) == len(convolutions)
    assert all(each.shape[1] > 1 for each in maps), "styles are not maps"


def test_groups_keep_order_and_limit_and_change_nothing(monkeypatch, float_graph, spoilt, spoilt_file, faces):
    models = split_halves(onnx.load(float_graph)), onnx.load(spoilt_file)
    maps, limit = layers.feature_maps(models[0]), 2**22
    groups = list(layers.in_groups(maps, limit))
    assert len(groups) > 1 and [each for group in groups for each in group] == maps
    for group in groups:
        assert len(group) == 1 or sum(4 * int(np.prod(each.shape)) for each in group) <= limit
    whole, counts = layers.accumulated_errors(*models, maps, spoilt, faces[:1])
    monkeypatch.setattr(layers, "in_groups", lambda maps: groups)
    split, counted = layers.accumulated_errors(*models, maps, spoilt, faces[:1])
    expected = {name: agreement.sqnr_db for name, agreement in whole.items()}
    assert {name: agreement.sqnr_db for name, agreement in split.items()} == pytest.approx(expected, abs=0.5)
    assert {name: count[0] for name, count in counted.items()} == {n: c[0] for n, c in counts.items()}


def test_the_spoilt_layer_is_found_first(tiny_model, float_graph, spoilt, spoilt_file, faces):
    """With a ranking that was measured on another face and knows a layer that the build left in float."""
    deploy = deploy_form(tiny_model)
    ranking = [asdict(row) for row in rank_layers(Probe(deploy, torch.from_numpy(faces[1])), spoilt)]
    ranking.insert(1, {"name": "left in float", "psnr": 1.0, "share": 0.0})
    result = layers.analyse_layers(float_graph, spoilt_file, deploy, spoilt, faces, ranking)
    rows = result["rows"]
    quantised = {row["layer"]: row for row in rows if row["quantised"]}
    assert quantised.keys() == spoilt.keys()
    assert {name: row["output_psnr_alone"] for name, row in quantised.items()} == {
        row["name"]: row["psnr"] for row in ranking if row["name"] != "left in float"
    }, "measured once, in 03"
    assert min(quantised, key=lambda name: quantised[name]["isolated_sqnr_db"]) == VICTIM
    assert max(quantised, key=lambda name: quantised[name]["output_psnr_without"]) == VICTIM
    first = next(place for place, row in enumerate(rows) if row["quantised"])
    assert first > 0 and all(row["sqnr_db"] > 100 for row in rows[:first]), "no error before it"
    assert rows[first]["sqnr_db"] == pytest.approx(rows[first]["isolated_sqnr_db"], abs=0.1)


def test_what_does_not_belong_together_is_refused(tiny_model, float_graph, spoilt, spoilt_file, faces):
    deploy = deploy_form(tiny_model)
    with pytest.raises(ValueError, match="face"):
        layers.layer_errors(float_graph, spoilt_file, deploy, spoilt, [])
    with pytest.raises(ValueError, match=VICTIM):
        layers.analyse_layers(float_graph, spoilt_file, deploy, {VICTIM: spoilt[VICTIM]}, faces, [])


def test_the_deploy_form_holds_where_the_original_breaks_in_fp16_and_the_tensor_is_named(tiny_model, faces):
    rows = layers.stress_half(tiny_model, torch.from_numpy(np.concatenate(faces)), (1e-4, 1.0, 1e3, 1e6))
    stressed = {row["factor"]: row for row in rows}
    for row in stressed.values():
        assert row["deploy_psnr"] > ORDINARY and row["deploy_overflow"] is None
    assert stressed[1.0]["original_psnr"] > ORDINARY and stressed[1.0]["original_overflow"] is None
    assert stressed[1e3]["change_psnr"] > 90 and stressed[1e6]["change_psnr"] > 90, "the same function"
    assert stressed[1e-4]["original_psnr"] is None  # NaN: 1e-8 and the squares vanish, the root divides
    assert "conv1.conv: aten.rsqrt" in stressed[1e-4]["original_overflow"]
    assert stressed[1e3]["original_psnr"] < 20
    assert "conv1.conv: aten" in stressed[1e3]["original_overflow"]
    assert "constant" in stressed[1e6]["original_overflow"]


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A run and its manifest, for an artefact in QOperator form."""
    values = {"run": "layers", "weights": "tiny-random", "dataset_size": 2, "calib_size": 2, "layer_faces": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPEN_OUTPUTS", str(tmp_path_factory.mktemp("stage")))
        patch.setattr(run_module, "STRESS_FACTORS", (1.0,))  # more of them: see above
        run = Run(RunSettings.parse({**values, "dtypes": "fp32,int8", "backend": "onnxruntime"}))
        run.compile("int8")
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(build.calibrate, "calibrate", refuse)  # the cache of the compile stage must serve
            manifest = run.layers()
        yield run, manifest


def refuse(*args, **options):
    raise AssertionError("must not run")


def test_the_stage_writes_what_it_returns_and_stands_until_something_changes(staged, monkeypatch):
    run, manifest = staged
    metrics, measured = manifest["metrics"], run.sensitivity()
    assert manifest["built"] and not measured["built"]
    assert read_json(run.folder / "05_layers/layers.json") == metrics
    assert "QOperator" in metrics["arithmetic"] and len(metrics["faces"]) == 1
    quantised = {row["layer"]: row["output_psnr_alone"] for row in metrics["rows"] if row["quantised"]}
    assert quantised == {row["name"]: row["psnr"] for row in measured["metrics"]["ranking"]}
    monkeypatch.setattr(layers, "analyse_layers", refuse)
    assert run.layers()["built"] is False
    with pytest.raises(AssertionError, match="must not run"):
        run.with_(layer_faces=2).layers()
    assert run.with_(dtypes=("fp32", "bf16")).layers() is None


def test_layers_that_the_build_excluded_stay_in_float(staged, monkeypatch, tmp_path):
    path = tmp_path / "build.yaml"
    path.write_text("backend:\n  quantize:\n    exclude_layers: ['generator.convs.*']\n")
    calls = []
    monkeypatch.setattr(layers, "analyse_layers", lambda *args: calls.append(args) or {})
    monkeypatch.setattr(layers, "stress_half", lambda *args: [])
    excluded = staged[0].with_(build=str(path)).layers()["metrics"]["excluded"]
    assert excluded and all(name.startswith("generator.convs.") for name in excluded)
    (_, _, _, quantised, _, ranking), *_ = calls
    assert quantised and not set(excluded) & quantised.keys()
    assert {row["name"] for row in ranking} == {*excluded, *quantised}
