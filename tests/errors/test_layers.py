"""Layer errors against brute force, the layer that was spoilt, what heals it, and the stage."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from gpenlib import run as layers_stage
from gpenlib import run as stages
from gpenlib.compile import build as int8
from gpenlib.compile.calibrate import calibrate
from gpenlib.compile.rounding import fake_quantised, quantisable_layers, round_layers, split_halves
from gpenlib.compile.write import write_qdq
from gpenlib.errors import layers
from gpenlib.errors import layers as healing
from gpenlib.export import deploy_form, export_onnx
from gpenlib.files import read_json
from gpenlib.plots import errors as plots
from gpenlib.settings import SettingsError

VICTIM = "generator.convs.1.conv"


@pytest.fixture(scope="module")
def graph(tiny_model, tmp_path_factory):
    return export_onnx(tiny_model, tmp_path_factory.mktemp("layers") / "model.onnx")


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def rounded(graph, faces):
    """All quantisable layers; calibrated on the first face only, so that the second may be clipped."""
    model = split_halves(onnx.load(graph))
    nodes = quantisable_layers(model)
    found = calibrate(model, list(dict.fromkeys(name for n in nodes for name in n.inputs)), [], faces[:1])
    return round_layers(model, found.thresholds("percentile", 99.9), [node.name for node in nodes])


@pytest.fixture(scope="module")
def spoilt(rounded):
    """One layer rounded thirty times as coarsely."""
    victim = rounded[VICTIM]
    return {
        **rounded,
        VICTIM: replace(victim, activation_scales=tuple(30 * s for s in victim.activation_scales)),
    }


def write_int8(graph, chosen, path):
    model = split_halves(onnx.load(graph))
    write_qdq(model, chosen)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def analysed(tiny_model, graph, spoilt, faces, tmp_path_factory):
    file = write_int8(graph, spoilt, tmp_path_factory.mktemp("spoilt") / "int8.onnx")
    return healing.analyse_layers(graph, file, deploy_form(tiny_model), spoilt, faces)


def inputs_and_outputs(deploy, names, faces):
    """Arrays [faces, C, H, W] that these modules read and write in PyTorch."""
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append((inputs[0], output))

    handles = [deploy.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.inference_mode():
        for face in faces:
            deploy(torch.from_numpy(face))
    for handle in handles:
        handle.remove()
    joined = {name: [torch.cat(x).double() for x in zip(*found, strict=True)] for name, found in seen.items()}
    return {name: (x, y) for name, (x, y) in joined.items()}


def test_figures_of_two_arrays_are_those_of_brute_force():
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(1, 2, 3, 3)), rng.normal(size=(1, 2, 3, 3))) for _ in range(3)]
    found = layers.Agreement()
    for a, b in pairs:
        found.update(a.astype(np.float32), b.astype(np.float32))
    a, b = (np.concatenate([pair[i].astype(np.float32) for pair in pairs]).astype(float) for i in (0, 1))
    assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_equal_opposite_and_empty_arrays_have_finite_figures():
    x, zero = np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 1, 2, 2), np.float32)
    for a, b, sqnr, cosine in (
        (x, x, 200, 1),
        (x, -x, 10 * np.log10(1 / 4), -1),
        (zero, zero, 200, 1),
        (zero, x, -200, 0),
    ):
        found = layers.Agreement()
        found.update(a, b)
        assert (found.sqnr_db, found.cosine) == pytest.approx((sqnr, cosine))


def test_clipped_and_outermost_codes_are_counted():
    step = 0.1
    # codes: 127 at the threshold, 127 rounded down to it, 127 clipped, -127 within, -128 beyond, -128 clipped
    values = [12.7, 12.74, 20.0, -12.7, -12.76, -20.0, 12.64, 0.0]
    found = layers.CodeShares()
    found.update(np.array(values, np.float32), step)
    codes = np.clip(np.rint(np.array(values, np.float32) / np.float32(step)), -128, 127)
    assert found.shares() == {
        "clipped_share": 4 / 8,
        "saturation": np.isin(codes, (-128, 127)).mean(),
    }
    assert found.shares()["saturation"] == 5 / 8


def test_accumulated_errors_are_those_of_the_quantised_network(tiny_model, graph, rounded, faces, tmp_path):
    """By another way: the outputs of all convolutions in PyTorch, both faces pooled."""
    file = write_int8(graph, rounded, tmp_path / "int8.onnx")
    deploy = deploy_form(tiny_model)
    rows = {row["layer"]: row for row in layers.layer_errors(graph, file, deploy, rounded, faces)}
    rows.pop(None)
    expected = inputs_and_outputs(deploy, rows, faces)
    with fake_quantised(deploy, rounded):
        given = inputs_and_outputs(deploy, rows, faces)
    compared = 0
    for name, row in rows.items():
        a, b = expected[name][1], given[name][1]
        assert row["shape"] == list(a.shape[1:])
        noise, signal = float((a - b).square().sum()), float(a.square().sum())
        if noise:  # ties are rounded to either side, which moves the noise a little
            assert row["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=0.6), name
            cosine = float((a * b).sum()) / np.sqrt(signal * float(b.square().sum()))
            assert row["cosine"] == pytest.approx(cosine, abs=2e-4), name
            compared += 1
    assert compared > len(rounded)
    clipped = []
    for name, layer in rounded.items():
        x = given[name][0].numpy()  # the hook runs behind the rounding
        codes = np.rint(x / layer.input_steps()[:, None, None])
        one = 1.01 / x.size  # a value at the edge of the last code may fall to either side
        share = np.isin(codes, (-128, 127)).mean()
        assert rows[name]["saturation"] == pytest.approx(share, abs=max(one, 2e-4)), name
        clipped.append(rows[name]["clipped_share"])
    assert max(clipped) > 1e-4, "a percentile of 99.9 clips something"


def restored(layer):
    """The weight that integers and scales stand for, one input channel after the other."""
    weight = np.moveaxis(layer.weight, (1 - layer.axis, layer.axis), (0, 1)).astype(
        np.float32
    )  # [I, O, k, k]
    half = len(weight) // len(layer.scales)
    parts = [w * layer.scales[place // half][:, None, None] for place, w in enumerate(weight)]
    return np.moveaxis(np.stack(parts), (0, 1), (1 - layer.axis, layer.axis))


def test_isolated_error_is_that_of_rounding_input_and_weight(tiny_model, rounded, faces):
    deploy = deploy_form(tiny_model)
    names = ("ecd1.conv", "generator.convs.0.conv")  # plain and transposed
    found = layers.isolated_errors(deploy, {name: rounded[name] for name in names}, faces)
    expected = inputs_and_outputs(deploy, names, faces)
    for name in names:
        module, layer = deploy.get_submodule(name), rounded[name]
        x, y = expected[name]
        steps = torch.from_numpy(layer.input_steps())[:, None, None]
        q = torch.clamp(torch.round(x / steps), -128, 127) * steps
        w = torch.from_numpy(restored(layer)).double()
        call = F.conv2d if name.startswith("ecd") else F.conv_transpose2d
        options = {"stride": module.stride, "padding": module.padding}
        error = call(q, w, **options) - call(x, module.weight.double(), **options)
        sqnr = 10 * torch.log10(y.square().sum() / error.square().sum())
        assert found[name].sqnr_db == pytest.approx(float(sqnr), abs=0.05)


def test_maps_come_in_graph_order_with_their_stages(graph):
    model = onnx.load(graph)
    maps = layers.feature_maps(model)
    order = {node.output[0]: place for place, node in enumerate(model.graph.node)}
    assert [order[found.tensor] for found in maps] == sorted(order[found.tensor] for found in maps)
    stages_seen = list(dict.fromkeys(found.module for found in maps))
    assert stages_seen[:5] == [f"ecd{i}" for i in range(5)]
    assert stages_seen[5:10] == [
        f"generator.{n}" for n in ("conv1", "to_rgb1", "convs.0", "convs.1", "to_rgbs.0")
    ]
    runs = [a.module for a, b in zip(maps, [None, *maps], strict=False) if b is None or a.module != b.module]
    assert len(runs) == len(stages_seen), "the maps of a stage stand together"
    assert maps[-1].tensor == "output" and maps[-1].shape == (3, 64, 64)
    convolutions = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    assert sum(found.layer is not None for found in maps) == len(convolutions)
    assert all(found.shape[1] > 1 for found in maps), "styles are not maps"


def test_groups_keep_order_and_limit(graph):
    maps = layers.feature_maps(onnx.load(graph))
    limit = 2**20
    groups = list(layers.in_groups(maps, limit))
    assert len(groups) > 1 and [found for group in groups for found in group] == maps
    for group in groups:
        assert len(group) == 1 or sum(4 * int(np.prod(found.shape)) for found in group) <= limit


def test_the_size_of_the_groups_changes_nothing(monkeypatch, graph, spoilt, faces, tmp_path):
    file = write_int8(graph, spoilt, tmp_path / "int8.onnx")
    models = split_halves(onnx.load(graph)), onnx.load(file)
    maps = layers.feature_maps(models[0])
    whole, counts = layers.accumulated_errors(*models, maps, spoilt, faces[:1])
    split = layers.in_groups
    monkeypatch.setattr(layers, "in_groups", lambda maps: split(maps, 2**22))
    found, counted = layers.accumulated_errors(*models, maps, spoilt, faces[:1])
    assert {n: a.sqnr_db for n, a in found.items()} == pytest.approx(
        {n: a.sqnr_db for n, a in whole.items()}, abs=0.5
    )
    assert {n: c.values for n, c in counted.items()} == {n: c.values for n, c in counts.items()}


def test_the_spoilt_layer_is_found_first_and_healed_first(analysed):
    quantised = [row for row in analysed["rows"] if row["quantised"]]
    assert min(quantised, key=lambda row: row["isolated_sqnr_db"])["layer"] == VICTIM
    assert min(quantised, key=lambda row: row["output_psnr_alone"])["layer"] == VICTIM
    assert max(quantised, key=lambda row: row["output_psnr_without"])["layer"] == VICTIM
    assert analysed["ranking"][0]["name"] == VICTIM
    steps = analysed["healing"]
    assert [step["in_float"] for step in steps] == list(range(len(steps))) and len(steps) == 9
    assert (steps[0]["name"], steps[1]["name"]) == (None, VICTIM)
    assert steps[1]["psnr"] > steps[0]["psnr"] + 3
    gains = np.diff([step["psnr"] for step in steps])
    assert gains.argmax() == 0 and gains.min() > -0.5
    assert steps[1]["psnr"] == pytest.approx(analysed["ranking"][0]["output_psnr_without"], abs=0.1)


def test_before_the_first_quantised_layer_there_is_no_error(analysed):
    rows = analysed["rows"]
    first = next(place for place, row in enumerate(rows) if row["quantised"])
    assert first > 0 and all(row["sqnr_db"] > 100 for row in rows[:first])
    assert rows[first]["sqnr_db"] == pytest.approx(rows[first]["isolated_sqnr_db"], abs=0.1)


def test_without_a_face_there_is_nothing_to_compare(tiny_model, graph, rounded, tmp_path):
    file = write_int8(graph, rounded, tmp_path / "int8.onnx")
    with pytest.raises(ValueError, match="at least one face"):
        layers.layer_errors(graph, file, deploy_form(tiny_model), rounded, [])


def test_foreign_graphs_are_refused(graph):
    node = onnx.helper.make_node("Relu", ["input"], ["somewhere"])
    value = [onnx.helper.make_tensor_value_info(n, 1, [1, 3, 4, 4]) for n in ("input", "somewhere")]
    foreign = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    with pytest.raises(ValueError, match="no feature map in common"):
        layers.shared_maps(onnx.load(graph), foreign)


def test_figures_are_drawn_from_the_rows(analysed):
    assert isinstance(plots.depth_figure(analysed["rows"]), Figure)
    healed = plots.healing_figure(analysed["healing"])
    assert sum("+ convs.1\n" in text.get_text() for text in healed.axes[0].texts) == 1
    rows = [
        {"factor": 1.0, "original_psnr": 70.0, "deploy_psnr": 72.0},
        {"factor": 1e4, "original_psnr": None, "deploy_psnr": 72.0},
    ]
    rows = [row | {"original_overflow": None, "deploy_overflow": None} for row in rows]
    rows[1]["original_overflow"] = "Gpen.generator.conv1.conv: aten.square [2, 4, 4, 3, 3]"
    texts = [text.get_text() for text in plots.half_stress_figure(rows).axes[0].texts]
    assert texts[0] == "1" and "1  generator.conv1.conv,\n    square [2, 4, 4, 3, 3]" in texts[1]


@pytest.fixture(scope="module")
def settings():
    values = {"run": "layers", "weights": "tiny-random", "dataset_size": 2, "calib_size": 2, "layer_faces": 1}
    return stages.ErrorSettings.parse({**values, "dtypes": "fp32,int8", "backend": "onnxruntime"})


@pytest.fixture(scope="module")
def staged(settings, tmp_path_factory):
    """The stage's manifest, for an artefact in QOperator form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPEN_OUTPUTS", str(tmp_path_factory.mktemp("stage")))
        stages.compile(settings.for_dtype("int8"))
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(int8, "calibrate", refuse)  # the cache of the compile stage must serve
            manifest = stages.layer_errors(settings)
        yield manifest


class MustNotRun(Exception):
    """What must not be called was called."""


def refuse(*args, **options):
    raise MustNotRun


def test_the_stage_writes_what_it_returns(staged, settings):
    assert staged["built"] and staged["stage"] == "05_errors/layers"
    found = staged["metrics"]
    assert read_json(settings.folder / "05_errors/layers/layers.json") == found
    assert list(staged["outputs"]) == ["layers.json"]
    assert "QOperator" in found["arithmetic"] and len(found["faces"]) == 1
    quantised = {row["layer"] for row in found["rows"] if row["quantised"]}
    assert quantised == {row["name"] for row in found["ranking"]}
    assert [row["factor"] for row in found["half"]] == list(layers_stage.STRESS_FACTORS)


def test_the_stage_stands_until_something_changes(staged, settings, monkeypatch):
    monkeypatch.setattr(layers_stage, "analyse_layers", refuse)
    assert stages.layer_errors(settings)["built"] is False
    with pytest.raises(MustNotRun):
        stages.layer_errors(settings.model_copy(update={"layer_faces": 2}))


def test_layers_that_the_build_excluded_stay_in_float(staged, settings, monkeypatch, tmp_path):
    build = tmp_path / "build.yaml"
    build.write_text("backend:\n  quantize:\n    exclude_layers: ['generator.convs.*']\n")
    given = []
    monkeypatch.setattr(layers_stage, "analyse_layers", lambda *args: given.append(args[3]) or {})
    monkeypatch.setattr(layers_stage, "stress_half", lambda *args: [])
    own = settings.model_copy(update={"build": str(build), "run": "excluded"})
    shutil.copytree(settings.folder, own.folder)  # saves exporting the network again
    found = stages.layer_errors(own)["metrics"]
    assert found["excluded"] and all(name.startswith("generator.convs.") for name in found["excluded"])
    assert set(given[0]) and not set(found["excluded"]) & set(given[0])


def test_without_int8_the_stage_says_what_to_do(settings):
    floats = settings.model_copy(update={"dtypes": ("fp32", "bf16")})
    assert stages.quantised_dtype(floats) is None
    with pytest.raises(SettingsError, match=r"dtypes=fp32,bf16: .* add one of int8, int8_bf16"):
        stages.layer_errors(floats)
