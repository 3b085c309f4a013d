"""The stages of a run: what they write, what they hand over, and errors in plain words."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch

from gpenlib.architecture import CheckpointError, save_checkpoint
from gpenlib.compile import build
from gpenlib.data.faces import DataError, embedded_faces
from gpenlib.data.pairs import read_pack
from gpenlib.errors.report import SCORES, baselines, papermill_command
from gpenlib.images import ImageError, read_image, to_grey, write_image
from gpenlib.infer import RuntimeUnavailable
from gpenlib.infer.scoring import evaluate_npz, score_baselines
from gpenlib.metrics import psnr
from gpenlib.run import Run
from gpenlib.settings import MODES, OUTPUTS_VARIABLE, RunSettings, SettingsError

TINY = {"run": "test", "weights": "tiny-random", "dataset_size": 3, "calib_size": 4}
CONTRACT = {
    "images", "dtype", "backend", "psnr_mean", "ssim_mean", "psnr_input_mean", "ssim_input_mean",
    "ms_per_image", "rows",
}  # fmt: skip


def settings(**changes):
    return RunSettings.parse(TINY | changes)


def run_of(**changes):
    return Run(settings(**changes))


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """Outputs folder in which one int8 inference stands; tests that use it leave it standing."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("stages")
        patch.setenv(OUTPUTS_VARIABLE, str(root))
        assert run_of().infer("int8")["built"]
        yield root / "test"


@pytest.fixture
def float_built(one_run, outputs_root):
    """A fresh outputs folder that holds the float graph already: its export takes seconds."""
    shutil.copytree(one_run / "03_compile/float", outputs_root / "test/03_compile/float")


@pytest.fixture
def portraits(tmp_path):
    """Folder of six pictures, ``2.png`` before ``10.png`` in natural order."""
    folder = tmp_path / "portraits"
    faces = embedded_faces(6, 64)
    for index, number in enumerate((1, 2, 3, 9, 10, 11)):
        write_image(folder / f"{number}.png", faces.read(index))
    return folder


def test_what_stands_is_not_built_again(one_run):
    again = run_of().infer("int8")
    assert again["built"] is False
    assert again["metrics"] == json.loads((one_run / "04_infer/int8/results.json").read_text())
    assert run_of().float_graph()["built"] is False


def test_results_hold_the_contract(one_run):
    results = json.loads((one_run / "04_infer/int8/results.json").read_text())
    assert results.keys() >= CONTRACT
    assert (results["images"], results["dtype"]) == (3, "int8")
    artefact = json.loads((one_run / "03_compile/int8/artefact/manifest.json").read_text())
    assert results["backend"] == artefact["backend"] == artefact["backend_times"][0]["backend"]
    assert len(results["rows"]) == 3
    assert results["psnr_mean"] == pytest.approx(np.mean([row["psnr"] for row in results["rows"]]))
    assert "embedded" in results["data"]


def test_images_lie_beside_the_results(one_run):
    names = sorted(path.stem for path in (one_run / "04_infer/int8/images").iterdir())
    assert names == run_of().evaluation.names
    assert read_image(one_run / "04_infer/int8/images" / f"{names[0]}.png").shape == (64, 64, 3)


def test_stage_folders_lie_flat_and_hold_what_they_list(one_run):
    manifests = sorted(one_run.rglob("manifest.json"))
    stages = [path.parent for path in manifests if "stage" in json.loads(path.read_text())]
    assert {str(path.relative_to(one_run)) for path in stages} >= {"03_compile/float", "03_compile/int8"}
    assert not any(inner.is_relative_to(outer) for inner in stages for outer in stages if inner != outer)
    for folder in stages:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["stage"] == str(folder.relative_to(one_run))
        assert manifest["outputs"] and manifest["inputs"] and manifest["code"]
        assert all((folder / name).is_file() for name in manifest["outputs"])


def test_the_settings_say_auto_and_the_artefact_what_it_came_to(one_run):
    manifest = json.loads((one_run / "03_compile/int8/manifest.json").read_text())
    assert manifest["settings"]["build"]["backend"]["type"] == "auto"
    assert manifest["metrics"]["backend"] in ("openvino", "onnxruntime")
    assert manifest["metrics"]["backend_reason"].startswith("fastest measured here")
    assert manifest["metrics"]["quantisation"]["calibration_images"] == 4


def test_a_measured_choice_is_kept_until_the_artefact_is_built_again(float_built, monkeypatch):
    """The next measurement might come out otherwise: it must not be made while the stage stands."""
    for choice in ("onnxruntime", "openvino"):
        monkeypatch.setattr(
            build, "fastest_backend", lambda *_, choice=choice: (choice, "measured", [{"backend": choice}])
        )
        manifest = run_of().infer()
        assert manifest["built"] == (choice == "onnxruntime")
        assert manifest["metrics"]["backend"] == "onnxruntime"


def test_a_torch_backend_is_compiled_and_run(float_built):
    manifest = run_of(backend="torch").infer("bf16")
    assert (manifest["metrics"]["backend"], manifest["metrics"]["images"]) == ("torch", 3)
    assert run_of(backend="torch").infer("bf16")["built"] is False


# Each change of a setting or input that decides a stage, and the stages that it must void.
@pytest.mark.parametrize(
    ("changes", "void"),
    [
        ({"dataset_size": 2}, {"data", "compile", "infer"}),  # calibration begins behind the scored faces
        ({"calib_size": 3}, {"data", "compile", "infer"}),
        ({"seed": 1}, {"data"}),  # color draws nothing, and all of the four candidates calibrate
        ({"seed": 1, "task": "inpaint"}, {"data", "compile", "infer"}),
        ({"task": "inpaint"}, {"data", "compile", "infer"}),
        ({"data_dir": "embedded"}, {"data", "compile", "infer"}),
        ({"calibrate_mode": "mse"}, {"compile", "infer"}),
        ({"backend": "openvino"}, {"compile", "infer"}),
        ({"batch_size": 2}, {"infer"}),
        ({"save_images": False}, {"infer"}),
        ({"save_npz": True}, {"infer"}),
        ({"save_packs": True}, {"data"}),
        ({"weights": "random-256"}, {"data", "compile", "infer"}),
        ({"repeats": 3, "worst": 1, "max_drop_db": 1.0, "runs": "a,b", "perf_batch": 2}, set()),
    ],
)
def test_the_key_of_a_stage_is_complete(one_run, monkeypatch, changes, void):
    run_of().data()
    built = only_noted(monkeypatch)
    run = run_of(**{"dtype": "int8"} | changes)
    run.data(), run.compile(), run.infer()
    names = {"data": "02_data", "compile": "03_compile/int8", "infer": "04_infer/int8"}
    assert {name for name, folder in names.items() if folder in built} == void


def only_noted(monkeypatch):
    """Return a list that will name the stages that would be built; none is."""
    built = []

    def note(self, name, key, *rest, **more):
        manifest, _ = self._standing(self.folder / name, key)
        if manifest is None:
            built.append(name)
        return (manifest or {"digest": f"new {name}", "metrics": {}}) | {"folder": str(self.folder / name)}

    monkeypatch.setattr(Run, "_stand", note)
    return built


def test_packs_are_written_where_they_are_asked_for(portraits, outputs_root):
    run = run_of(data_dir=str(portraits), dataset_size=4, calib_size=2, save_packs=True)
    folder = pathlib.Path(run.data()["folder"])
    for name, pairs, names in (
        ("evaluation", run.evaluation, ["1", "2", "3", "9"]),
        ("calibration", run.calibration, ["10", "11"]),
    ):
        pack = read_pack(folder / name)
        assert pack.names == pairs.names == names
        for index in range(len(pairs)):
            assert np.array_equal(pack.inputs(index), pairs.inputs(index))
            assert np.array_equal(pack.truths(index), pairs.truths(index))
    assert "evaluation" not in str(run.with_(save_packs=False).data()["outputs"])


def test_another_picture_under_the_same_name_is_noticed(portraits, outputs_root):
    changes = {"data_dir": str(portraits), "calib_size": 2}
    first = run_of(**changes).data()
    write_image(portraits / "2.png", embedded_faces(9, 64).read(8))
    second = run_of(**changes).data()
    assert second["built"] and first["inputs"]["evaluation"] != second["inputs"]["evaluation"]


def test_calibration_shares_no_content_with_evaluation(portraits, outputs_root):
    for copy in ("10.png", "11.png"):
        (portraits / copy).write_bytes((portraits / "1.png").read_bytes())
    run = run_of(data_dir=str(portraits), dataset_size=3, calib_size=3)
    assert run.calibration.names == ["9"]
    assert "dropped 2" in run.data()["metrics"]["note"]


@pytest.mark.parametrize("damaged", ["2.png", "10.png"])
def test_a_damaged_picture_is_named(damaged, portraits, outputs_root):
    (portraits / damaged).write_bytes(b"this is no picture")
    with pytest.raises(ImageError, match=damaged):
        run_of(data_dir=str(portraits), calib_size=3).infer("int8")
    assert not (outputs_root / "test/04_infer/int8").exists()


def test_folders_that_cannot_be_used_are_named(portraits, tmp_path, outputs_root):
    (tmp_path / "empty").mkdir()
    for changes, said in (
        ({"data_dir": str(tmp_path / "empty")}, "empty: no image"),
        ({"data_dir": str(tmp_path / "absent")}, "absent: no such folder"),
        ({"calib_dir": str(tmp_path / "absent")}, "absent: no such folder"),
        ({"data_dir": str(portraits), "dataset_size": 7}, r"dataset_size=7.*6 images"),
    ):
        with pytest.raises(DataError, match=said):
            run_of(**changes).data()


def test_real_inputs_are_scored_against_their_truths(portraits, tmp_path, float_built):
    for number in (1, 3, 9, 10):
        write_image(tmp_path / "lq" / f"{number}.bmp", read_image(portraits / f"{number}.png")[:, 8:] // 2)
    changes = {"data_dir": str(portraits), "input_dir": str(tmp_path / "lq")}
    changes |= {"dataset_size": 2, "calib_size": 2}
    run = run_of(**changes)
    results, pairs = run.infer()["metrics"], run.evaluation
    assert [row["name"] for row in results["rows"]] == pairs.names == ["1", "3"]
    assert results["rows"][1]["psnr_input"] == pytest.approx(psnr(pairs.inputs(1), pairs.truths(1)))
    assert pairs.inputs(1).max() < 128 and results["baseline"] == "input (do nothing)"
    assert run.calibration.names == ["9", "10"] and run.calibration.inputs(0).max() < 128
    left_out, cropped = results["notes"]
    assert left_out == "truths without an input: 2 (2.png, 11.png)" and "2 of 2 pictures were" in cropped
    assert f"-p input_dir {tmp_path}" in papermill_command(run.settings)
    write_image(tmp_path / "lq/3.bmp", read_image(portraits / "3.png"))
    assert run_of(**changes).evaluation.digest() != pairs.digest()
    for number in (9, 10):
        (tmp_path / "lq" / f"{number}.bmp").unlink()
    alone = run_of(**changes).calibration
    assert (alone.task, alone.names[0]) == ("color", "astronaut_0000"), "no input is left to calibrate on"


def test_grey_pictures_are_sent_to_the_notebook_for_photographs(portraits, outputs_root):
    noise = np.random.default_rng(0).normal(0, 2, (64, 64, 3))  # and a JPEG's on top
    changes = {"data_dir": str(portraits), "calib_size": 2}
    some, every = r"1 of the 3 .*\(1\.jpg\).*remove.*07_photos", "all 3 .*07_photos"
    for numbers, said in (((1,), some), ((2, 3), every)):
        for number in numbers:
            grey = to_grey(read_image(portraits / f"{number}.png")) + noise
            write_image(portraits / f"{number}.jpg", np.clip(grey, 0, 255).astype(np.uint8))
            (portraits / f"{number}.png").unlink()
        for stage in (Run.infer, Run.data):
            with pytest.raises(DataError, match=said):
                stage(run_of(**changes))
    assert not (outputs_root / "test/03_compile").exists(), "refused before the long work"
    assert run_of(**changes, task="restore").data()["built"]


def test_unknown_weights_are_refused_before_anything_is_written(outputs_root):
    for weights, said in (("tiny-randon", "'tiny-random'"), ("no/such/file.pth", r"file\.pth")):
        with pytest.raises(CheckpointError, match=said):
            run_of(weights=weights).infer()
    assert not outputs_root.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "int3"}, r"dtype='int3'.*fp32.*bf16.*fp16.*int8"),
        ({"backend": "tensorflow"}, r"backend='tensorflow'.*auto.*openvino.*onnxruntime.*torch"),
        ({"device": "gpu"}, r"device='gpu'.*cpu.*cuda.*tensorrt"),
        ({"input_dir": "no/such"}, "input_dir='no/such': no such folder"),
        ({"input_dir": "tests"}, "input_dir='tests' with data_dir='': name the folder with the truths"),
        ({"input_dir": "tests", "data_dir": "tests/"}, "input_dir='tests' is data_dir too"),
        ({"task": "sharpen"}, r"task='sharpen'.*color"),
        ({"dataset_size": 0}, "dataset_size=0"),
        ({"dataset_size": True}, "dataset_size=True"),
        ({"healed": -1}, "healed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dataset_size": "many"}, "dataset_size='many'"),
        ({"perf_threads": "1,0"}, "perf_threads.*0"),
        ({"run": "../elsewhere"}, "plain folder name"),
        ({"batchsize": 2}, r"unknown key 'batchsize' \(did you mean 'batch_size'\?\)"),
        ({"dtypes": "fp32,int3"}, "int3"),
        ({"dtypes": ""}, "dtypes"),
        ({"runs": "one"}, "runs"),
        ({"runs": "a,a"}, "runs"),
        ({"runs": "a,../b"}, "runs"),
        ({"lpips_weights": "no/such.pt"}, "lpips_weights='no/such.pt'"),
        ({"features_file": "no/such.pt"}, "features_file='no/such.pt'"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(changes, said):
    with pytest.raises(SettingsError, match=said):
        settings(**changes)


def test_settings_take_what_papermill_and_yaml_pass():
    parsed = settings(dataset_size="8", save_images="False", data_dir="", calib_dir=None, perf_batch=4)
    assert (parsed.dataset_size, parsed.save_images, parsed.perf_batch) == (8, False, (4,))
    assert parsed.data_dir is None and parsed.calib_dir is None
    for dtypes in ("int8, fp32", ["int8", "fp32"], "int8"):
        assert settings(dtypes=dtypes).dtypes == ("fp32", "int8")
    assert settings(perf_threads="1,2").perf_threads == settings(perf_threads=[1, 2]).perf_threads == (1, 2)
    assert settings(runs="").runs == ()
    inception = settings(features_file=f"inception:{__file__}")
    assert (inception.features_file, inception.features_are_inception) == (__file__, True)
    assert f"features_file inception:{__file__}" in papermill_command(inception)


def test_the_task_is_what_the_weights_were_trained_for(tiny_model, tmp_path):
    path = save_checkpoint(tiny_model, tmp_path / "mine.safetensors", notes={"task": "restore-mild"})
    assert RunSettings.parse({"weights": str(path)}).task == "restore-mild"
    assert RunSettings.parse({"weights": str(path), "task": ""}).task == "restore-mild"
    assert RunSettings.parse({"weights": str(path), "task": "color"}).task == "color"
    assert settings().task == RunSettings.parse({}).task == "color"
    unknown = save_checkpoint(tiny_model, tmp_path / "other.safetensors", notes={"task": "paint"})
    with pytest.raises(SettingsError, match="names the task 'paint'.*say with task"):
        RunSettings.parse({"weights": str(unknown)})


def test_another_key_takes_other_weights_and_builds_anew(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv(OUTPUTS_VARIABLE, str(tmp_path / "outputs"))
    state = tiny_model.state_dict()
    shifted = {name: tensor * (1.5 if name.endswith("bias") else 1) for name, tensor in state.items()}
    torch.save({"g_ema": state, "g": shifted}, tmp_path / "two.pth")
    run = run_of(weights=str(tmp_path / "two.pth"))
    made = [run.with_(key=key).float_graph() for key in ("", "g", "g")]
    assert [manifest["built"] for manifest in made] == [True, True, False]
    assert len({json.dumps(manifest["outputs"]) for manifest in made}) == 2
    assert run.with_(key="g").build_config().frontend.key == "g"
    assert "-p key g" in papermill_command(run.with_(key="g").settings)


@pytest.mark.parametrize("task", ["restore", "inpaint"])
def test_another_task_runs_through_to_the_scores(task, float_built):
    """Weights of another task are allowed; the baseline is that task's input."""
    run = run_of(task=task, calib_size=8)
    results = run.infer("int8")["metrics"]
    named = {"restore": "degraded input (do nothing)", "inpaint": "masked input (do nothing)"}
    assert (results["task"], results["baseline"]) == (task, named[task])
    for index, row in enumerate(results["rows"]):
        pairs = run.evaluation
        assert row["psnr_input"] == pytest.approx(psnr(pairs.inputs(index), pairs.truths(index)))
    means = {f"{score}{suffix}": 0.0 for score in SCORES for suffix in ("", "_input", "_drop")}
    lines = baselines([{"dtype": "fp32", **means}], task)["rows"]
    assert [line[0] for line in lines] == [named[task], "network, fp32"]


def test_task_and_seed_decide_the_digest_of_the_pairs(outputs_root):
    def digest(**changes):
        return run_of(**changes).evaluation.digest()

    assert digest() == digest(seed=1), "nothing is drawn for the evaluation faces of color"
    tasks = [digest(task=task) for task in ("color", "inpaint", "restore", "restore-mild")]
    assert len({*tasks, digest(task="inpaint", seed=1)}) == 5


def test_precision_without_backend_is_refused(outputs_root):
    with pytest.raises(RuntimeUnavailable, match="onnxruntime does not run bf16"):
        run_of(backend="onnxruntime").infer("bf16")


def test_without_images_none_are_written(float_built):
    manifest = run_of(save_images=False, batch_size=2).infer()
    assert set(manifest["outputs"]) == {"results.json"}
    assert manifest["metrics"]["images"] == 3 and manifest["metrics"]["batch_size"] == 2


def test_npz_files_give_exactly_the_figures_of_the_stage(float_built):
    run = run_of(save_images=False, save_npz=True, save_packs=True)
    manifest, packs = run.infer(), pathlib.Path(run.data()["folder"])
    assert len([name for name in manifest["outputs"] if name.startswith("npz/")]) == 3
    baselines = score_baselines(run.evaluation, run.calibration)
    rows = evaluate_npz(f"{manifest['folder']}/npz", read_pack(packs / "evaluation"), baselines=baselines)
    assert rows == [{k: v for k, v in row.items() if k != "ms"} for row in manifest["metrics"]["rows"]]
    assert manifest["metrics"]["chroma_baseline"] == "mean of 4 calibration truths"


def test_a_comparison_needs_another_precision(outputs_root):
    with pytest.raises(SettingsError, match="dtypes=fp32"):
        run_of(dtypes="fp32").errors()


def test_comparison_has_a_row_per_precision_and_face(one_run):
    run = run_of(dtypes="fp32,int8")
    manifest = run.errors()
    assert manifest["built"]
    metrics = manifest["metrics"]
    timed = run.latency()
    assert not timed["built"] and metrics["latency"] == timed["metrics"]["rows"], "one timing for all"
    assert metrics["timing_note"] == timed["metrics"]["note"]
    table, rows = metrics["table"], metrics["rows"]
    assert [row["dtype"] for row in table] == ["fp32", "int8"]
    assert [(row["dtype"], row["name"]) for row in rows] == [
        (dtype, name) for dtype in ("fp32", "int8") for name in run.evaluation.names
    ]
    assert table[0]["psnr_drop"] == table[0]["bias"] == 0
    assert 20 < table[1]["psnr_to_fp32"] < 100
    assert table[1]["psnr_verdict"] == "too few images"
    assert {row["trait"] for row in metrics["groups"]} == {"ita", "lightness", "colourfulness"}
    assert len(metrics["traits"]) == 3 and len(metrics["trends"]) == 9
    assert [row["metric"] for row in metrics["perceptual"]] == ["lpips", "fid", "kid"]
    assert run_of(dtypes="fp32,int8").errors()["built"] is False


def test_errors_that_stand_read_each_file_once(one_run, monkeypatch):
    from gpenlib import run as run_module
    from gpenlib import stages
    from gpenlib.data import faces

    run_of(dtypes="fp32,int8").errors()
    hashed = []
    for module in (run_module, stages, faces):
        real = module.sha256
        monkeypatch.setattr(module, "sha256", lambda path, real=real: hashed.append(str(path)) or real(path))
    run = run_of(dtypes="fp32,int8")
    run.errors(), run.layers(), run.errors()
    again = {path for path in hashed if hashed.count(path) > 1 and not path.endswith("report.html")}
    assert again == set() and any("model.onnx" in path for path in hashed)


def test_sensitivity_is_measured_once(float_built):
    run = run_of(healed=1)
    measured = run.sensitivity()
    assert measured["built"] and not run_of(healed=1).sensitivity()["built"]
    ranking, steps = measured["metrics"]["ranking"], measured["metrics"]["steps"]
    assert len(ranking) == len(run.compile("int8")["metrics"]["layers"])
    assert [step["excluded"] for step in steps] == [0, 1]
    assert steps[1]["psnr"] > steps[0]["psnr"]  # without the worst layer the output is closer to float


def test_choice_covers_every_dtype_and_mode_and_other_draws(float_built, portraits, monkeypatch, tmp_path):
    changes = {"dtypes": "fp32,int8", "backend": "openvino", "choice_faces": 2}
    changes |= {"data_dir": str(portraits), "dataset_size": 2, "calib_size": 3}
    choice = run_of(**changes).choice()
    assert choice["built"] and not run_of(**changes).choice()["built"]
    drawn = [row for row in choice["metrics"]["rows"] if row["draw"]]
    labels = [(row["dtype"], row["mode"], row["draw"]) for row in drawn]
    assert labels == [("int8", "max", 2)], "seed 1 happens to draw the images of seed 0"
    rows = {(row["dtype"], row["mode"]): row for row in choice["metrics"]["rows"] if not row["draw"]}
    assert drawn[0]["psnr_to_fp32"] != rows["int8", "max"]["psnr_to_fp32"], "other images, other scales"
    assert set(rows) == {("fp32", None), *(("int8", mode) for mode in MODES)}
    assert rows["fp32", None]["psnr_drop"] == 0 and rows["fp32", None]["psnr_to_fp32"] == 100
    for row in rows.values():
        assert row["psnr"] + row["psnr_drop"] == pytest.approx(rows["fp32", None]["psnr"])
    left = [path.name for path in pathlib.Path(choice["folder"]).iterdir()]
    assert left == ["manifest.json"]  # the artefacts were only measured
    (tmp_path / "low.yaml").write_text("backend: {quantize: {percentile: 97}}")
    built = only_noted(monkeypatch)
    run_of(**changes, build=str(tmp_path / "low.yaml")).choice()
    assert "03_compile/choice" in built, "percentile is part of the key"


def test_the_vendors_file_names_what_is_replaced():
    """Every key of the file is used, replaced by a setting and named, or listed as not used."""
    path = pathlib.Path(__file__).parent / "data_files" / "vendor_build.yaml"
    run = run_of(dtype="int8", build=str(path))
    replaced = set(run.replaced_keys())
    assert {"backend.type", "dataset.path", "frontend.checkpoint", "dataset.sampler.get_data_num"} <= replaced
    assert "backend.quantize.calibrate_mode" not in replaced and "dataset.process_ops" not in replaced
    config = run.build_config()
    assert config.backend.quantize.calibrate_mode == "mse"
    assert "backend.compile.opt_level" in config.unused_keys()
    assert run_of().replaced_keys() == []


def test_runs_are_compared(one_run):
    """The same faces twice, int8 calibrated on other numbers of images, and once other faces."""
    common = {"dtypes": "fp32,int8", "repeats": 1}
    run_of(**common).errors()
    for name in ("fewer", "again"):  # what is the same, such as the float graph, is not built again
        shutil.copytree(one_run, one_run.parent / name)
    run_of(**common, run="fewer", dataset_size=2).errors()
    run = run_of(**common | {"run": "again", "calib_size": 2, "runs": "test,again,fewer"})
    comparison = run.errors()["comparison"]
    rows = comparison["metrics"]["rows"]
    verdicts = {
        row["run"]: row["verdict"] for row in rows if (row["dtype"], row["score"]) == ("int8", "psnr")
    }
    assert verdicts == {
        "test": "first run", "again": "too few images", "fewer": "different faces: no paired test",
    }  # fmt: skip
    fp32 = next(r for r in rows if (r["dtype"], r["score"], r["run"]) == ("fp32", "psnr", "again"))
    assert fp32["difference"] == 0, "the same network on the same faces"
    written = run.folder / "05_comparison"
    assert len((written / "comparison.csv").read_text().splitlines()) == len(rows) + 1
    assert json.loads((written / "comparison.json").read_text())["rows"] == rows
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Compared with other runs" in page and "different faces: no paired test" in page
    assert run.comparison()["built"] is False
    run.with_(runs="").errors()
    assert "Compared with other runs" not in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_run_that_is_not_there_is_named_with_what_makes_it(outputs_root):
    results = outputs_root / "first/05_errors/results.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    with pytest.raises(DataError, match=r"run 'frst' has no results.*did you mean 'first'.*-p run frst"):
        run_of(runs="frst,first").comparison()
    with pytest.raises(DataError, match=r"run 'first'.*older version.*-p run first"):
        run_of(runs="first,frst").comparison()
