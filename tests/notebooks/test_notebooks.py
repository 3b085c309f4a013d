"""Every notebook through papermill with params/smoke.yaml; judged by manifests and rows, not by text."""

import math

import nbformat
import papermill
import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.errors import compare
from gpenlib.files import read_json, repository_root, sha256
from gpenlib.images import write_image
from gpenlib.infer import scoring
from gpenlib.notebooks import NotebookError, SamePythonKernel, check_parameters, declared_parameters, execute
from gpenlib.settings import read_yaml
from tests.conftest import SMOKE

ROOT = repository_root()
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
EXPECTED = (
    "00_architecture", "01_export", "02_data", "03_compile", "04_infer", "05_errors", "06_train", "07_photos",
)  # fmt: skip
INFER_PARAMETERS = (
    "run", "weights", "key", "task", "data_dir", "input_dir", "dataset_size", "dtype", "backend", "device",
    "batch_size", "calib_dir", "calib_size", "save_images", "save_npz", "build", "calibrate_mode",
    "most_megapixels", "chroma", "engine",
)  # fmt: skip


@pytest.fixture
def executed(executed_notebook):
    """Function stem -> executed notebook."""
    return lambda stem: nbformat.read(executed_notebook(stem), as_version=4)


@pytest.fixture
def run_folder(executed_notebook):
    """Folder of the run that all notebooks share, as `make run` would make it."""
    return executed_notebook("00_architecture").parents[1]


def finite(rows):
    values = [value for row in rows for value in row.values() if isinstance(value, (int, float))]
    return bool(values) and all(math.isfinite(value) for value in values)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def figures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def pictures_under_divider(notebook):
    """How many pictures the element to wipe with holds; its output needs no kernel and no widget."""
    (cell,) = (cell for cell in notebook.cells if cell.id == "before-after")
    (output,) = (output for output in cell.outputs if output.output_type == "execute_result")
    assert output.data.keys() == {"text/html", "text/plain"} and len(output.data["text/plain"]) < 500
    return output.data["text/html"].count("data:image/")


def test_all_are_there():
    assert tuple(path.stem for path in NOTEBOOKS) == EXPECTED


@pytest.mark.parametrize("stem", [path.stem for path in NOTEBOOKS])
def test_notebook_runs_and_leaves_sound_manifests(stem, executed, run_folder):
    notebook = executed(stem)
    assert not notebook.metadata.papermill.exception
    shown = [o.metadata["image/png"] for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert shown and all(about["alt"] and about["width"] <= 1000 for about in shown)
    (finding,) = (cell for cell in notebook.cells if "finding" in cell.metadata.get("tags", ()))
    (said,) = finding.outputs
    assert any(character.isdigit() for character in said.data["text/markdown"]), "computed, not told"
    manifests = list((run_folder / stem).rglob("manifest.json"))
    stages = [read_json(path) | {"folder": path.parent} for path in manifests]
    stages = [manifest for manifest in stages if "stage" in manifest]  # artefacts have manifests of their own
    assert stages
    for manifest in stages:
        assert manifest["stage"].startswith(stem)
        for name, digest in manifest["outputs"].items():
            assert sha256(manifest["folder"] / name) == digest


def test_data_are_those_asked_for(executed, run_folder):
    executed("02_data")
    metrics = read_json(run_folder / "02_data/manifest.json")["metrics"]
    assert (metrics["evaluation"], metrics["calibration"]) == (SMOKE["dataset_size"], SMOKE["calib_size"])


def test_inference_writes_what_other_programs_read(executed, run_folder):
    assert pictures_under_divider(executed("04_infer")) == 2 * 3  # the photographs; input, fp32, truth
    results = read_json(run_folder / "04_infer/fp32/results.json")
    assert (results["images"], results["dtype"]) == (3, "fp32")
    assert results["backend"] in ("openvino", "onnxruntime"), "whichever was measured to be faster"
    assert {"psnr_mean", "ssim_mean", "psnr_input_mean", "ssim_input_mean", "ms_per_image"} <= results.keys()
    assert len(results["rows"]) == 3 and finite(results["rows"])
    assert len(list((run_folder / "04_infer/fp32/images").glob("*.png"))) == 3


def test_errors_compare_every_precision_on_every_face(executed, run_folder):
    executed("05_errors")
    results = read_json(run_folder / "05_errors/results.json")
    assert [row["dtype"] for row in results["table"]] == ["fp32", "bf16", "fp16", "int8"]
    assert len(results["rows"]) == 4 * 3 and finite(results["rows"]) and finite(results["table"])
    assert results["table"][0]["psnr_drop"] == 0


def test_training_learns_and_looks_into_the_latent_space(executed, run_folder):
    notebook = executed("06_train")
    assert figures(notebook) == 6  # losses and samples of both parts; walks and mixtures of a prior
    prior, embedded = (read_json(run_folder / f"06_train/small_{n}/results.json") for n in ("prior", "embed"))
    assert prior["steps"] == embedded["steps"] == SMOKE["steps"]
    assert finite(prior["terms"].values()) and finite(embedded["terms"].values())
    assert embedded["terms"]["content"]["last"] < embedded["terms"]["content"]["first"]


def test_03_says_how_to_run_what_it_found(executed):
    (cell,) = (cell for cell in executed("03_compile").cells if cell.id == "deploy")
    said = cell.outputs[0].data["text/markdown"]
    compile(said.split("```python\n")[1].split("```")[0], "recipe", "exec")
    assert "float32 [N, 3, 64, 64]" in said and len(declared_parameters(FOLDER / "03_compile.ipynb")) <= 14


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda results: results["rows"].pop(), "a row per image"),
        (lambda results: results.pop("ms_per_image"), "results.json holds"),
        (lambda results: results["rows"][0].update(psnr=math.nan), "scores are finite"),
    ],
)
def test_unsound_results_of_04_are_refused(change, said, executed, run_folder):
    executed("04_infer")
    folder = run_folder / "04_infer/fp32"
    results = read_json(folder / "results.json")
    scoring.check_results(results, folder, 3, saved=True)
    with pytest.raises(ValueError, match="a PNG per image"):
        scoring.check_results(results, folder, 3, saved=False)
    change(results)
    with pytest.raises(ValueError, match=said):
        scoring.check_results(results, folder, 3, saved=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda results: results["rows"].pop(), "the same faces"),
        (lambda results: results["rows"][0].update(bias=1.0), "does not differ from itself"),
        (lambda results: results["groups"].pop(), "every face once"),
        (lambda results: results["rows"][-1].update(psnr=math.inf), "figures are finite"),
    ],
)
def test_unsound_results_of_05_are_refused(change, said, executed, run_folder):
    executed("05_errors")
    file = run_folder / "05_errors/results.json"
    results = read_json(file)
    compare.check_results(results, file, 3)
    change(results)
    with pytest.raises(ValueError, match=said):
        compare.check_results(results, file, 3)


def test_parameters_of_04_are_the_contract():
    declared = declared_parameters(FOLDER / "04_infer.ipynb")
    assert tuple(declared) == INFER_PARAMETERS
    defaults = {"run": '"demo"', "task": '""', "dtype": '"fp32"', "backend": '"auto"', "device": '"cpu"'}
    defaults |= {"batch_size": "1", "calib_size": "32", "save_images": "True"}
    assert {name: declared[name] for name in defaults} == defaults


@pytest.mark.parametrize("params", ["smoke", "demo"])
def test_parameter_files_hold_only_known_parameters(params):
    check_parameters(read_yaml(ROOT / f"params/{params}.yaml"), NOTEBOOKS)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dtype": "int3"}, r"int3.*fp32.*bf16.*fp16.*int8"),
        ({"dtpye": "int8"}, r"dtpye.*did you mean 'dtype'"),
    ],
)
def test_wrong_parameters_stop_the_notebook_with_what_is_allowed(wrong, said, tmp_path, outputs_root):
    """papermill itself only warns of a name that the notebook does not have."""
    values = {"run": "bad", "weights": "tiny-random", **wrong}
    with pytest.raises(NotebookError, match=said):
        execute(FOLDER / "04_infer.ipynb", tmp_path / "out.ipynb", values)
    assert not (outputs_root / "bad").exists()


def test_text_values_own_folder_and_no_images(tmp_path, outputs_root):
    """Values as ``papermill -r`` passes them, run in notebooks/; the strips need recomputed outputs."""
    source = embedded_faces(7, 64)
    for index in range(7):
        write_image(tmp_path / "faces" / f"{index}.png", source.read(index))
    papermill.execute_notebook(
        FOLDER / "04_infer.ipynb",
        tmp_path / "out.ipynb",
        parameters={
            "run": "own",
            "weights": "tiny-random",
            "data_dir": str(tmp_path / "faces"),
            "dataset_size": "2",
            "calib_size": "4",
            "dtype": "int8",
            "batch_size": "2",
            "save_images": "False",
        },
        kernel_name="python3",
        language="python",
        cwd=str(FOLDER),
        kernel_manager_class=SamePythonKernel,
        progress_bar=False,
    )
    folder = outputs_root / "own/04_infer/int8"
    results = read_json(folder / "results.json")
    assert [row["name"] for row in results["rows"]] == ["0", "1"]
    assert results["data"] == "folder faces" and results["batch_size"] == 2
    assert not (folder / "images").exists()
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert figures(notebook) >= 5
    assert pictures_under_divider(notebook) == 2 * 4  # faces; input, fp32, int8, truth
