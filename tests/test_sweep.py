"""Sweeps: the notebooks for every combination of some values, what stands and what fails, the comparison."""

import html
import re
import shutil
from pathlib import Path

import pytest

from gpenlib import notebooks, sweep
from gpenlib.data.faces import photographs
from gpenlib.files import read_json
from gpenlib.images import to_grey, write_image
from gpenlib.notebooks import NotebookError, main
from gpenlib.run import Run
from gpenlib.settings import SettingsError
from gpenlib.stages import write_manifest
from gpenlib.sweep import parse_grid, run_name, run_sweep
from tests.conftest import SLOW
from tests.test_notebooks_runner import write_notebook

GRID = {"dtype": ["fp32", "int8"], "calibrate_mode": ["max", "mse"]}
PSNR = {("fp32", "max"): 30.0, ("fp32", "mse"): 30.0, ("int8", "max"): 29.0, ("int8", "mse"): 29.75}
MS = {("fp32", "max"): 9.0, ("fp32", "mse"): 8.0, ("int8", "max"): 4.0, ("int8", "mse"): 4.0}


@pytest.fixture
def folder(tmp_path, outputs_root):
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


@pytest.fixture
def measured(folder, outputs_root, monkeypatch):
    """A notebook 04 that leaves stages of a cell's precision behind; the cells that ran, in order.

    A cell named in ``fails`` fails, with the exception that stands there.
    """
    parameters = ('run = "r"  # name', 'dtype = "fp32"  # precision', 'calibrate_mode = ""  # mode')
    write_notebook(folder, "04_infer", "\n".join((*parameters, "dataset_size = 2  # faces")))
    ran, fails = [], {}

    def execute(source, copy, values):
        cell = values["dtype"], values.get("calibrate_mode", "max")
        ran.append(cell)
        if cell in fails:
            raise fails[cell]
        key, run = {"inputs": {"evaluation": "faces"}}, outputs_root / values["run"]
        scores = {"psnr_mean": PSNR[cell], "ssim_mean": 0.9, "ms_per_image": MS[cell], "images": 2}
        for stage, metrics in (("04_infer", scores), ("03_compile", {"model_bytes": 3 << 20})):
            (run / stage / cell[0]).mkdir(parents=True, exist_ok=True)
            (run / stage / cell[0] / "results.json").write_text("{}")
            write_manifest(run / stage / cell[0], f"{stage}/{cell[0]}", key, metrics)
        copy.write_bytes(source.read_bytes())

    monkeypatch.setattr(notebooks, "execute", execute)
    return ran, fails


def rows_of(page):
    """Return the cells of the table's rows, as text, and the links."""
    body = page.read_text(encoding="utf-8").partition("<tbody>")[2]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    texts = [[re.sub(r"<[^>]+>", "", c).strip() for c in re.findall(r"<td[^>]*>(.*?)</td>", r)] for r in rows]
    return [[html.unescape(text) for text in row] for row in texts], re.findall(r'<a href="([^"]+)"', body)


def test_a_sweep_runs_every_cell_once_and_compares_them(measured, folder, outputs_root):
    ran, _ = measured
    page, failed = run_sweep({"run": "s"}, GRID, folder=folder)
    assert (page, failed, ran) == (outputs_root / "s/sweep.html", 0, [*PSNR])
    rows, links = rows_of(page)
    name = "s-calibrate_mode-max-dtype-int8"
    assert rows[2] == ["int8", "max", "29.000", "0.9000", "+1.000", "4.0", "3.0", name]
    assert [row[4] for row in rows] == ["–", "–", "+1.000", "+0.250"]
    assert links[2] == f"../{name}/html/index.html" and all((page.parent / link).is_file() for link in links)
    text = page.read_text(encoding="utf-8")
    assert text.count('<tr class="best">') == 2, "int8, mse, and the faster fp32"
    (alternative,) = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', text)
    assert "int8, mse 4.0 ms, 29.750 dB" in alternative and "int8, max" not in alternative
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", text), "no network"
    # Finished runs are not run again: in another order, and beside others
    ran.clear()
    assert run_sweep({"run": "s"}, dict(reversed(GRID.items())), folder=folder) == (page, 0) and ran == []
    run_sweep({"run": "s", "dataset_size": 2}, {"dtype": ["fp32"]}, folder=folder)
    assert ran == [("fp32", "max")] and rows_of(page)[0][0][0] == "fp32"


@pytest.mark.parametrize("change", ["result", "manifest", "notebook", "parameter", "code", "weights"])
def test_a_cell_stands_as_long_as_a_stage_would(change, measured, folder, outputs_root, monkeypatch):
    ran, grid = measured[0], {"dtype": ["fp32", "int8"]}
    run_sweep({"run": "s"}, grid, folder=folder)
    ran.clear()
    values, again = {"run": "s"}, ["fp32", "int8"]
    if change in ("result", "manifest"):
        again = ["int8"]
        place = "04_infer/int8/results.json" if change == "result" else "manifest.json"
        path = outputs_root / "s-dtype-int8" / place
        path.write_text(path.read_text().replace("}", " }", 1).replace("29.", "39."))
    elif change == "notebook":
        write_notebook(folder, "04_infer", 'run = "r"  # name\ndtype = "fp32"  # precision', "1 + 1")
    elif change == "code":
        monkeypatch.setattr(sweep, "code_digest", lambda parts: "another")
    else:
        values |= {"dataset_size": 3} if change == "parameter" else {}
        monkeypatch.setattr("gpenlib.run.Run._weights_input", lambda run: {"weights": change})
    run_sweep(values, grid, folder=folder)
    assert [dtype for dtype, _ in ran] == again


def test_a_cell_that_fails_is_a_row_and_the_others_go_on(measured, folder, outputs_root, capsys):
    ran, fails = measured
    message = "04_infer failed; as far as it came: here\nTraceback\nValueError: <b>no</b> faces"
    fails["fp32", "mse"] = NotebookError(message)
    page, failed = run_sweep({"run": "s"}, GRID, folder=folder)
    assert failed == 1 and len(ran) == 4
    rows, _ = rows_of(page)
    assert rows[1] == ["fp32", "mse", "failed: 04_infer failed: ValueError: <b>no</b> faces",
                       "s-calibrate_mode-mse-dtype-fp32"]  # fmt: skip
    assert [row[4] for row in rows if len(row) > 4] == ["–", "+1.000", "–"], "int8, mse has no fp32"
    assert "[2/4] s-calibrate_mode-mse-dtype-fp32  failed" in capsys.readouterr().out
    assert "was not run with the same values" in page.read_text(encoding="utf-8")
    ran.clear()
    fails.clear()
    assert run_sweep({"run": "s"}, GRID, folder=folder) == (page, 0) and ran == [("fp32", "mse")]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["dtype"], "'dtype': expected name=value,value"),
        (["dtype=fp32,"], "'dtype=fp32,': expected"),
        (["dtype=fp32,fp32"], "once"),
        (["dtype=fp32", "dtype=int8"], "once"),
        (["run=a,b"], "named by their values"),
        (["dtpye=fp32,int8"], "nearest: dtype"),
        (["dtype=fp32,int7"], "dtype='int7'"),
        (["dataset_size=2,0"], "dataset_size=0"),
        (["dtype=fp32,int8", "size=256,512"], "'size': no notebook has it"),
    ],
)
def test_wrong_grids_are_refused_before_anything_runs(words, named, measured, folder, outputs_root):
    with pytest.raises((SettingsError, NotebookError), match=re.escape(named)):
        run_sweep({"run": "s"}, parse_grid(words), folder=folder)
    assert measured[0] == [] and not outputs_root.exists()


def test_values_that_hold_commas_stand_in_quotes():
    grid = parse_grid(['dtypes="fp32,int8","fp32, bf16"', "size=128,256"])
    assert grid == {"dtypes": ["fp32,int8", "fp32, bf16"], "size": [128, 256]}


def test_names_of_cells_are_plain_and_differ():
    assert run_name("demo", {"size": 256, "dtype": "int8"}) == "demo-dtype-int8-size-256"
    values = ["/path/to/a.pth", "/path_to/a.pth", "x" * 90, "x" * 91]
    names = [run_name("demo", {"weights": value}) for value in values]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"\w[\w.-]{0,99}", name) and name.startswith("demo-weights-") for name in names)


def test_the_figures_are_those_of_the_stages(outputs_root, monkeypatch, float_graph):
    def execute(source, copy, values):
        Run.of(values).infer()  # what the notebook does, in this process
        copy.write_bytes(source.read_bytes())

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr("gpenlib.run.export_onnx", lambda model, path: Path(shutil.copy(float_graph, path)))
    values = {"run": "s", "weights": "tiny-random", "dataset_size": 2, "calib_size": 2}
    page, failed = run_sweep(values, {"dtype": ["fp32", "int8"]}, ["04"])
    rows, links = rows_of(page)
    assert failed == 0 and [row[0] for row in rows] == ["fp32", "int8"]
    for row in rows:
        results = read_json(outputs_root / row[-1] / "04_infer" / row[0] / "results.json")
        mib = (outputs_root / row[-1] / "03_compile" / row[0] / "artefact/model.onnx").stat().st_size / 2**20
        assert row[1:3] == [f"{results['psnr_mean']:.3f}", f"{results['ssim_mean']:.4f}"]
        assert row[4:6] == [f"{results['ms_per_image']:.1f}", f"{mib:.1f}"]
    assert (
        rows[0][3] == "–"
        and abs(float(rows[1][3].replace("−", "-")) - float(rows[0][1]) + float(rows[1][1])) < 2e-3
    )
    assert [(page.parent / link).is_file() for link in links] == [True, True]


def test_the_command_of_a_sweep(measured, folder, outputs_root, capsys, monkeypatch):
    ran, fails = measured
    monkeypatch.setattr(notebooks, "repository_root", lambda: folder.parent)
    words = ["-p", "run", "s", "--sweep", "dtype=fp32,int8"]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "[1/2] s-dtype-fp32  to run\n[2/2] s-dtype-int8  to run\n"
    assert ran == [] and not outputs_root.exists()
    with pytest.raises(SystemExit):
        main(["-p", "run", "s", "--dry-run"])
    capsys.readouterr()
    fails["int8", "max"] = KeyboardInterrupt()
    assert main(words) == 130
    told = capsys.readouterr()
    assert "[1/2] s-dtype-fp32  done" in told.out and told.err.count("\n") == 1 and "interrupted" in told.err
    assert [row[1] for row in rows_of(outputs_root / "s/sweep.html")[0]] == ["30.000", "not run"]
    fails["int8", "max"] = ValueError("no")
    ran.clear()
    assert main(words) == 1 and ran == [("int8", "max")]
    told = capsys.readouterr().out
    assert "[1/2] s-dtype-fp32  finished" in told and "failed: no" in told and "sweep.html" in told
    fails.clear()
    assert main(words) == 0


@SLOW
def test_ray_runs_each_cell_by_a_command_of_its_own(tmp_path, outputs_root):
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[data]')")
    face = photographs(64).read(0)
    folders = [str(tmp_path / name) for name in ("grey", "colour")]
    for folder, picture in zip(folders, (to_grey(face), face), strict=True):
        for index in range(2):
            write_image(Path(folder) / f"{index}.png", picture)
    values = {"run": "s", "weights": "tiny-random", "dataset_size": 1, "calib_size": 1}
    try:
        page, failed = run_sweep(values, {"data_dir": folders}, ["02"], "ray")
    finally:
        ray.shutdown()
    assert failed == 1
    (grey, colour), _ = rows_of(page)
    assert grey[1].startswith("failed: 02_data failed: ") and "are grey" in grey[1]
    assert colour[1:-1] == ["–"] * 5 and (outputs_root / colour[-1] / "02_data/manifest.json").is_file()
    assert run_sweep(values, {"data_dir": folders[1:]}, ["02"]) == (page, 0), "found finished, without Ray"


def test_without_ray_a_sentence_says_what_to_install(folder, measured, outputs_root, monkeypatch):
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    with pytest.raises(NotebookError, match="pip install 'ray"):
        run_sweep({"run": "s"}, {"dtype": ["fp32"]}, engine="ray", folder=folder)
    assert not outputs_root.exists()
