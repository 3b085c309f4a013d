"""Stages: built when needed and only then, hand-over by files, and errors in plain words."""

import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from gpenlib import run as infer_stage
from gpenlib import run as stages
from gpenlib.architecture import CheckpointError, save_checkpoint
from gpenlib.compile import build as compiler
from gpenlib.compile.calibrate import MODES, open_calibration_data
from gpenlib.data.faces import DataError, EmbeddedSource
from gpenlib.data.pairs import read_pack
from gpenlib.errors.report import SCORES, baselines
from gpenlib.files import sha256
from gpenlib.images import ImageError, read_image, to_tensor, write_image
from gpenlib.infer import RuntimeUnavailable
from gpenlib.infer.scoring import evaluate_npz
from gpenlib.metrics import psnr
from gpenlib.settings import OUTPUTS_VARIABLE, SettingsError

TINY = {"run": "test", "weights": "tiny-random", "dataset_size": 3, "calib_size": 4}
CONTRACT = {
    "images", "dtype", "backend", "psnr_mean", "ssim_mean", "psnr_input_mean", "ssim_input_mean",
    "ms_per_image", "rows",
}  # fmt: skip


def infer_settings(**changes):
    return stages.InferSettings.parse(TINY | changes)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """Outputs folder in which one int8 inference stands; tests that use it leave it standing."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("stages")
        patch.setenv(OUTPUTS_VARIABLE, str(root))
        assert stages.infer(infer_settings(dtype="int8"))["built"]
        yield root / "test"


@pytest.fixture
def portraits(tmp_path):
    """Folder of six pictures, ``2.png`` before ``10.png`` in natural order."""
    folder = tmp_path / "portraits"
    source = EmbeddedSource(6, 64)
    for index, number in enumerate((1, 2, 3, 9, 10, 11)):
        write_image(folder / f"{number}.png", source.read(index))
    return folder


def test_what_stands_is_not_built_again(one_run, monkeypatch):
    monkeypatch.setattr(infer_stage, "restore_pack", pytest.fail)
    monkeypatch.setattr(infer_stage, "compile_model", pytest.fail)
    again = stages.infer(infer_settings(dtype="int8"))
    assert again["built"] is False
    assert again["metrics"] == json.loads((one_run / "04_infer/int8/results.json").read_text())


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
    assert names == read_pack(one_run / "02_data/evaluation").names
    assert read_image(one_run / "04_infer/int8/images" / f"{names[0]}.png").shape == (64, 64, 3)


def test_every_stage_left_a_manifest_with_hashes(one_run):
    for stage in ("02_data", "03_compile/float", "03_compile/int8", "04_infer/int8"):
        manifest = json.loads((one_run / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage
        assert manifest["outputs"] and manifest["inputs"]
        assert all((one_run / stage / name).is_file() for name in manifest["outputs"])


def test_int8_was_calibrated_on_the_packed_images(one_run):
    manifest = json.loads((one_run / "03_compile/int8/artefact/manifest.json").read_text())
    assert manifest["quantisation"]["calibration_images"] == 4
    assert sum(manifest["quantisation"]["quantised"].values()) > 0


def test_the_settings_say_auto_and_the_artefact_what_it_came_to(one_run):
    manifest = json.loads((one_run / "03_compile/int8/manifest.json").read_text())
    assert manifest["settings"]["build"]["backend"]["type"] == "auto"
    assert manifest["metrics"]["backend"] in ("openvino", "onnxruntime")
    assert manifest["metrics"]["backend_reason"].startswith("fastest measured here")


def test_a_measured_choice_is_kept_until_the_artefact_is_built_again(outputs_root, monkeypatch):
    """The next measurement might come out otherwise: it must not be made while the stage stands."""
    for choice in ("onnxruntime", "openvino"):
        monkeypatch.setattr(
            compiler, "fastest_backend", lambda *_, choice=choice: (choice, "measured", [{"backend": choice}])
        )
        found = stages.infer(infer_settings())
        assert found["built"] == (choice == "onnxruntime")
        assert found["metrics"]["backend"] == "onnxruntime"


def test_a_torch_backend_is_compiled_and_run(outputs_root, monkeypatch):
    manifest = stages.infer(infer_settings(dtype="bf16", backend="torch"))
    artefact = outputs_root / "test/03_compile/bf16/artefact"
    assert (manifest["metrics"]["backend"], manifest["metrics"]["images"]) == ("torch", 3)
    assert manifest["inputs"]["artefact"] == sha256(artefact / "model.safetensors")
    assert stages.infer(infer_settings(dtype="bf16", backend="torch"))["built"] is False
    monkeypatch.setattr(infer_stage, "MEANS", infer_stage.MEANS[1:])  # as if other figures had been in use
    assert stages.infer(infer_settings(dtype="bf16", backend="torch"))["built"] is True


def test_other_precisions_share_data_and_float_graph(one_run):
    assert stages.data(infer_settings())["built"] is False
    path = one_run / "03_compile/float/model.onnx"
    before = path.stat().st_mtime_ns
    stages.compile(infer_settings(dtype="fp32"))
    assert path.stat().st_mtime_ns == before


@pytest.fixture
def faces(outputs_root):
    """Settings of a run of its own, with the data stage built."""
    settings = infer_settings()
    assert stages.data(settings)["built"]
    return settings, outputs_root / "test/02_data"


def test_a_changed_size_builds_anew_and_says_so(faces, caplog):
    with caplog.at_level(logging.WARNING, "gpenlib.stages"):
        manifest = stages.data(infer_settings(dataset_size=2))
    assert manifest["built"] and manifest["metrics"]["evaluation"] == 2
    assert "built anew: settings changed" in caplog.text
    assert len(read_pack(faces[1] / "evaluation")) == 2


def test_a_damaged_output_is_built_anew_and_named(faces, caplog):
    settings, folder = faces
    damaged = sorted((folder / "evaluation/input").iterdir())[1]
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-5])
    with caplog.at_level(logging.WARNING, "gpenlib.stages"):
        assert stages.data(settings)["built"]
    assert damaged.name in caplog.text and "missing or changed" in caplog.text
    assert damaged.read_bytes() == good


def test_a_half_written_stage_is_built_anew(faces, caplog):
    settings, folder = faces
    (folder / "manifest.json").unlink()
    (folder / "left_over.txt").write_text("from an interrupted run")
    with caplog.at_level(logging.WARNING, "gpenlib.stages"):
        assert stages.data(settings)["built"]
    assert "half-written (no manifest)" in caplog.text
    assert not (folder / "left_over.txt").exists()
    assert stages.data(settings)["built"] is False


def test_a_manifest_that_is_not_json_is_built_anew(faces):
    settings, folder = faces
    (folder / "manifest.json").write_text("{")
    assert stages.data(settings)["built"]


def test_an_interrupted_build_leaves_no_manifest(faces, monkeypatch):
    settings, folder = faces
    (folder / "manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(infer_stage, "write_pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stages.data(settings)
    assert not (folder / "manifest.json").exists()
    assert stages.data(settings)["built"]


def test_another_picture_under_the_same_name_is_noticed(portraits, outputs_root):
    settings = infer_settings(data_dir=str(portraits), calib_size=2)
    first = stages.data(settings)
    write_image(portraits / "2.png", EmbeddedSource(9, 64).read(8))
    second = stages.data(settings)
    assert second["built"] and first["inputs"]["evaluation"] != second["inputs"]["evaluation"]


def test_a_folder_is_taken_in_natural_order(portraits, outputs_root):
    manifest = stages.data(infer_settings(data_dir=str(portraits), dataset_size=4, calib_size=2))
    assert read_pack(f"{manifest['folder']}/evaluation").names == ["1", "2", "3", "9"]
    assert read_pack(f"{manifest['folder']}/calibration").names == ["10", "11"]


def test_calibration_shares_no_content_with_evaluation(portraits, outputs_root):
    for copy in ("10.png", "11.png"):
        (portraits / copy).write_bytes((portraits / "1.png").read_bytes())
    manifest = stages.data(infer_settings(data_dir=str(portraits), dataset_size=3, calib_size=3))
    packs = {name: read_pack(f"{manifest['folder']}/{name}") for name in ("evaluation", "calibration")}
    contents = {
        name: {pack.inputs(index).tobytes() for index in range(len(pack))} for name, pack in packs.items()
    }
    assert packs["calibration"].names == ["9"]
    assert not contents["evaluation"] & contents["calibration"]
    assert "dropped 2" in manifest["metrics"]["note"]


def test_a_small_folder_is_calibrated_on_embedded_images(portraits, outputs_root):
    manifest = stages.data(infer_settings(data_dir=str(portraits), dataset_size=6))
    assert "embedded" in manifest["metrics"]["note"]
    assert "portraits" in manifest["metrics"]["label"]
    assert manifest["metrics"]["calibration"] == 4


def test_a_calibration_folder_of_its_own(portraits, outputs_root):
    manifest = stages.data(infer_settings(calib_dir=str(portraits)))
    names = read_pack(f"{manifest['folder']}/calibration").names
    assert len(names) == 4 and set(names) <= {"1", "2", "3", "9", "10", "11"}


@pytest.mark.parametrize("damaged", ["2.png", "10.png"])
def test_a_damaged_picture_is_named(damaged, portraits, outputs_root):
    (portraits / damaged).write_bytes(b"this is no picture")
    with pytest.raises(ImageError, match=f"{damaged}: not a readable image"):
        stages.data(infer_settings(data_dir=str(portraits)))
    assert not (outputs_root / "test/02_data/manifest.json").exists()


def test_folders_without_pictures_are_named(tmp_path, outputs_root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image"):
        stages.data(infer_settings(data_dir=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="absent: no such folder"):
        stages.data(infer_settings(data_dir=str(tmp_path / "absent")))
    with pytest.raises(DataError, match="absent: no such folder"):
        stages.data(infer_settings(calib_dir=str(tmp_path / "absent")))


def test_more_images_than_there_are(portraits, outputs_root):
    with pytest.raises(DataError, match=r"dataset_size=7.*6 images"):
        stages.data(infer_settings(data_dir=str(portraits), dataset_size=7))


def test_unknown_weights_are_refused_before_anything_is_written(outputs_root):
    with pytest.raises(CheckpointError, match=r"tiny-randon.*did you mean 'tiny-random'"):
        stages.infer(infer_settings(weights="tiny-randon"))
    with pytest.raises(CheckpointError, match=r"no/such/file\.pth does not exist"):
        stages.infer(infer_settings(weights="no/such/file.pth"))
    assert not outputs_root.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "int3"}, r"dtype='int3'.*fp32.*bf16.*fp16.*int8"),
        ({"backend": "tensorflow"}, r"backend='tensorflow'.*auto.*openvino.*onnxruntime.*torch"),
        ({"device": "gpu"}, r"device='gpu'.*cpu.*cuda.*tensorrt"),
        ({"task": "sharpen"}, r"task='sharpen'.*color"),
        ({"dataset_size": 0}, "dataset_size=0.*greater than or equal to 1"),
        ({"batch_size": 0}, "batch_size=0.*greater than or equal to 1"),
        ({"dataset_size": "many"}, "dataset_size='many'"),
        ({"run": "../elsewhere"}, "plain folder name"),
        ({"batchsize": 2}, r"unknown key 'batchsize' \(did you mean 'batch_size'\?\)"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(changes, said):
    with pytest.raises(SettingsError, match=said):
        infer_settings(**changes)


@pytest.mark.parametrize("task", ["restore", "inpaint"])
def test_another_task_runs_through_to_the_scores(task, outputs_root):
    """Weights of another task are allowed; the baseline is that task's input."""
    settings = infer_settings(task=task, dtype="int8")
    results = stages.infer(settings)["metrics"]
    named = {"restore": "degraded input (do nothing)", "inpaint": "masked input (do nothing)"}
    assert (results["task"], results["baseline"]) == (task, named[task])
    pack = stages.evaluation_pack(settings)
    for index, row in enumerate(results["rows"]):
        assert row["psnr_input"] == pytest.approx(psnr(pack.inputs(index), pack.truths(index)))
    means = {f"{score}{suffix}": 0.0 for score in SCORES for suffix in ("", "_input")}
    lines = baselines([{"dtype": "fp32", **means}], task)["rows"]
    assert [line[0] for line in lines] == [named[task], "network, fp32"]


def test_calibration_packs_are_not_degraded_twice(outputs_root):
    settings = infer_settings(task="inpaint", dtype="int8")
    folder = pathlib.Path(stages.data(settings)["folder"]) / "calibration"
    images = open_calibration_data(stages.build_config(settings).dataset, 64)
    for given, index in zip(images.calibration(), range(4), strict=True):
        assert np.array_equal(given, to_tensor(read_pack(folder).inputs(index)))


def test_task_and_seed_decide_what_is_built_again(outputs_root):
    def described(**changes):
        manifest = stages.data(infer_settings(**changes))
        assert manifest["settings"]["task"] == changes.get("task", "color")
        assert manifest["settings"]["seed"] == changes.get("seed", 0)
        return manifest["inputs"]["evaluation"]

    grey, again = described(), described(seed=1)
    assert grey == again, "nothing is drawn for the evaluation faces of color"
    first, second = described(task="inpaint"), described(task="inpaint", seed=1)
    assert len({grey, first, second, described(task="restore"), described(task="restore-mild")}) == 5
    assert stages.infer(infer_settings(task="inpaint"))["built"]
    assert stages.infer(infer_settings(task="inpaint", seed=1))["built"], "other masks, other scores"


def test_settings_take_what_papermill_passes():
    settings = infer_settings(dataset_size="8", save_images="False", data_dir="", calib_dir=None)
    assert settings.dataset_size == 8
    assert settings.save_images is False
    assert settings.data_dir is None and settings.calib_dir is None


def test_precision_without_backend_is_refused(outputs_root):
    with pytest.raises(RuntimeUnavailable, match="onnxruntime does not run bf16"):
        stages.infer(infer_settings(dtype="bf16", backend="onnxruntime"))


def test_without_images_none_are_written(outputs_root):
    manifest = stages.infer(infer_settings(save_images=False, batch_size=2))
    assert set(manifest["outputs"]) == {"results.json"}
    assert manifest["metrics"]["images"] == 3 and manifest["metrics"]["batch_size"] == 2


def test_npz_files_give_exactly_the_figures_of_the_stage(outputs_root):
    manifest = stages.infer(infer_settings(save_images=False, save_npz=True))
    faces = read_pack(outputs_root / "test/02_data/evaluation")
    assert len([name for name in manifest["outputs"] if name.startswith("npz/")]) == 3
    rows = evaluate_npz(f"{manifest['folder']}/npz", faces)
    assert rows == [{k: v for k, v in row.items() if k != "ms"} for row in manifest["metrics"]["rows"]]
    assert manifest["metrics"]["chroma_baseline"] == "mean of 4 calibration truths"


@pytest.mark.parametrize("dtypes", ["fp32", "int8,bf16", "fp32,fp32", ""])
def test_a_comparison_needs_fp32_and_another(dtypes):
    with pytest.raises(SettingsError, match=r"dtypes"):
        stages.ErrorSettings.parse(TINY | {"dtypes": dtypes})


def test_precisions_are_put_in_order_and_unknown_ones_refused():
    assert stages.ErrorSettings.parse(TINY | {"dtypes": "int8, fp32"}).dtypes == ("fp32", "int8")
    with pytest.raises(SettingsError, match="int3"):
        stages.ErrorSettings.parse(TINY | {"dtypes": "fp32,int3"})


def test_comparison_has_a_row_per_precision_and_face(one_run):
    settings = stages.ErrorSettings.parse(TINY | {"dtypes": "fp32,int8"})
    manifest = stages.errors(settings)
    table, rows = manifest["metrics"]["table"], manifest["metrics"]["rows"]
    assert [row["dtype"] for row in table] == ["fp32", "int8"]
    assert [(row["dtype"], row["name"]) for row in rows] == [
        (dtype, name)
        for dtype in ("fp32", "int8")
        for name in read_pack(one_run / "02_data/evaluation").names
    ]
    assert table[0]["psnr_drop"] == table[0]["bias"] == 0
    assert 20 < table[1]["psnr_to_fp32"] < 100
    assert table[1]["psnr_verdict"] == "too few images"
    found = manifest["metrics"]
    assert {row["trait"] for row in found["groups"]} == {"ita", "lightness", "colourfulness"}
    assert len(found["traits"]) == 3 and len(found["trends"]) == 9
    assert [row["metric"] for row in found["perceptual"]] == ["lpips", "fid", "kid"]
    assert stages.errors(settings)["built"] is False


def test_a_file_that_is_not_there_is_refused_before_anything_runs():
    for name in ("lpips_weights", "features_file"):
        with pytest.raises(SettingsError, match=f"{name}='no/such.pt'.*no such file"):
            stages.ErrorSettings.parse(TINY | {name: "no/such.pt"})


def test_sensitivity_is_measured_once(outputs_root):
    settings = infer_settings(dtype="int8")
    found = stages.sensitivity(settings, healed=1)
    assert found["built"] and not stages.sensitivity(settings, healed=1)["built"]
    ranking, steps = found["metrics"]["ranking"], found["metrics"]["steps"]
    assert len(ranking) == len(stages.compile(settings)["metrics"]["layers"])
    assert [step["excluded"] for step in steps] == [0, 1]
    assert steps[1]["psnr"] > steps[0]["psnr"]  # without the worst layer the output is closer to float


def test_choice_covers_every_dtype_and_mode(outputs_root):
    settings = {dtype: infer_settings(dtype=dtype, backend="openvino") for dtype in ("fp32", "int8")}
    found = stages.choice(settings, faces=2)
    assert found["built"] and not stages.choice(settings, faces=2)["built"]
    rows = {(row["dtype"], row["mode"]): row for row in found["metrics"]["rows"]}
    assert set(rows) == {("fp32", None), *(("int8", mode) for mode in MODES)}
    assert rows["fp32", None]["psnr_drop"] == 0 and rows["fp32", None]["psnr_to_fp32"] == 100
    for row in rows.values():
        assert row["psnr"] + row["psnr_drop"] == pytest.approx(rows["fp32", None]["psnr"])
    left = [path.name for path in pathlib.Path(found["folder"]).iterdir()]
    assert left == ["manifest.json"]  # the artefacts were only measured


def test_the_vendors_file_in_a_stage_names_what_is_replaced():
    """Every key of the file is used, replaced by a setting and named, or listed as not used."""
    path = pathlib.Path(__file__).parent / "data_files" / "vendor_build.yaml"
    settings = infer_settings(dtype="int8", build=str(path))
    replaced = stages.replaced_keys(settings)
    assert {"backend.type", "dataset.path", "frontend.checkpoint", "dataset.sampler.get_data_num"} <= set(
        replaced
    )
    assert "backend.quantize.calibrate_mode" not in replaced and "dataset.process_ops" not in replaced
    config = stages.build_config(settings)
    assert config.backend.quantize.calibrate_mode == "mse"
    assert "backend.compile.opt_level" in config.unused_keys()
    assert stages.replaced_keys(infer_settings()) == []


@pytest.mark.parametrize("runs", ["one", "a,a", "a,../b"])
def test_runs_to_compare_are_two_or_more_names(runs):
    with pytest.raises(SettingsError, match="runs"):
        stages.ErrorSettings.parse(TINY | {"runs": runs})
    assert stages.ErrorSettings.parse(TINY | {"runs": ""}).runs == ()


def test_runs_are_compared(one_run):
    """The same faces twice, int8 calibrated on other numbers of images, and once other faces."""
    common = TINY | {"dtypes": "fp32,int8", "repeats": 1}
    stages.errors(stages.ErrorSettings.parse(common))
    for name in ("fewer", "again"):  # what is the same, such as the float graph, is not built again
        shutil.copytree(one_run, one_run.parent / name)
    fewer = stages.ErrorSettings.parse(common | {"run": "fewer", "dataset_size": 2})
    stages.errors(fewer)
    settings = stages.ErrorSettings.parse(
        common | {"run": "again", "calib_size": 2, "runs": "test,again,fewer"}
    )
    manifest = stages.errors(settings)
    comparison = manifest["comparison"]
    rows = comparison["metrics"]["rows"]
    verdicts = {
        row["run"]: row["verdict"] for row in rows if (row["dtype"], row["score"]) == ("int8", "psnr")
    }
    assert verdicts == {
        "test": "first run", "again": "too few images", "fewer": "different faces: no paired test",
    }  # fmt: skip
    fp32 = next(r for r in rows if (r["dtype"], r["score"], r["run"]) == ("fp32", "psnr", "again"))
    assert fp32["difference"] == 0, "the same network on the same faces"
    written = settings.folder / "05_errors/comparison"
    assert len((written / "comparison.csv").read_text().splitlines()) == len(rows) + 1
    assert json.loads((written / "comparison.json").read_text())["rows"] == rows
    page = (settings.folder / "report.html").read_text(encoding="utf-8")
    assert "Compared with other runs" in page and "different faces: no paired test" in page
    assert stages.compare_runs(settings.runs, settings)["built"] is False
    stages.errors(stages.ErrorSettings.parse(common | {"run": "again", "calib_size": 2}))
    assert "Compared with other runs" not in (settings.folder / "report.html").read_text(encoding="utf-8")


def test_a_run_that_is_not_there_is_named_with_what_makes_it(outputs_root):
    settings = stages.ErrorSettings.parse(TINY)
    results = outputs_root / "first/05_errors/results.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    with pytest.raises(DataError, match=r"run 'frst' has no results.*did you mean 'first'.*-p run frst"):
        stages.compare_runs(("frst", "first"), settings)
    with pytest.raises(DataError, match=r"run 'first'.*older version.*-p run first"):
        stages.compare_runs(("first", "frst"), settings)


def test_the_task_is_what_the_weights_were_trained_for(tiny_model, tmp_path):
    path = save_checkpoint(tiny_model, tmp_path / "mine.safetensors", notes={"task": "restore-mild"})
    assert stages.DataSettings.parse({"weights": str(path)}).task == "restore-mild"
    assert stages.InferSettings.parse({"weights": str(path), "task": ""}).task == "restore-mild"
    assert stages.DataSettings.parse({"weights": str(path), "task": "color"}).task == "color"
    assert infer_settings().task == stages.DataSettings.parse({}).task == "color"
    unknown = save_checkpoint(tiny_model, tmp_path / "other.safetensors", notes={"task": "paint"})
    with pytest.raises(SettingsError, match="task='paint'"):
        stages.DataSettings.parse({"weights": str(unknown)})
