"""The notebook runner, on tiny notebooks in a temporary folder."""

import html
import json
import sys

import nbformat
import pytest

from gpenlib import notebooks
from gpenlib.files import repository_root, write_json
from gpenlib.notebooks import NotebookError, declared_parameters, find_notebooks, main, run_notebooks
from gpenlib.settings import SettingsError

SEVEN = [f"{number:02d}_step" for number in range(7)]


def write_notebook(
    folder, stem, parameters='run = "demo"  # run folder', code="", title=None, tag="parameters"
):
    cells = [
        nbformat.v4.new_markdown_cell(f"Some words.\n\n# {title or stem}", id="title"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": [tag]}, id="parameters"),
        nbformat.v4.new_code_cell(code, id="work"),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    path = folder / f"{stem}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


@pytest.fixture
def executed_order(monkeypatch):
    """Replace the kernel by a record of what would be executed with which values."""
    record = []

    def execute(source, copy, values):
        record.append((source.stem, values))
        copy.write_bytes(source.read_bytes())

    monkeypatch.setattr(notebooks, "execute", execute)
    return record


def stdout_of(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.text for cell in cells for out in cell.get("outputs", []) if "text" in out)


def test_runs_in_order_and_each_gets_what_it_declares(folder, outputs_root, executed_order):
    for stem in reversed(SEVEN):
        extra = '\ndtype = "fp32"  # precision' if stem.startswith("04") else ""
        write_notebook(folder, stem, f'run = "demo"  # run folder{extra}')
    write_notebook(folder, "out_by_hand")
    run_notebooks({"run": "r", "dtype": "int8"}, folder=folder)
    assert [stem for stem, _ in executed_order] == SEVEN
    assert dict(executed_order)["03_step"] == {"run": "r"}
    assert dict(executed_order)["04_step"] == {"run": "r", "dtype": "int8"}


def test_only_selects_by_number(folder, outputs_root, executed_order):
    for stem in SEVEN:
        write_notebook(folder, stem)
    run_notebooks({}, only=["06", "04"], folder=folder)
    assert [stem for stem, _ in executed_order] == ["04_step", "06_step"]
    with pytest.raises(NotebookError, match="'4': allowed are 00, 01"):
        find_notebooks(folder, ["4"])


def test_executed_copy_page_and_index(folder, outputs_root, tmp_path, monkeypatch):
    code = "import os, sys\nprint(sys.executable)\nprint(os.getcwd())\nprint(run, size)"
    write_notebook(folder, "00_first", "run = 'x'  # name\nsize = 3  # px", code, title="First & <foremost>")
    # A registered kernel of the same name that belongs to something else must not be used.
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    write_json(
        foreign / "kernel.json", {"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    executed, index = run_notebooks({"run": "trial", "size": 8}, folder=folder)
    assert executed == outputs_root / "trial" / "notebooks"
    assert index == outputs_root / "trial" / "html" / "index.html"
    assert stdout_of(executed / "00_first.ipynb").splitlines() == [
        sys.executable,
        str(repository_root()),
        "trial 8",
    ]
    page = (index.parent / "00_first.html").read_text(encoding="utf-8")
    assert "trial 8" in page
    listing = index.read_text(encoding="utf-8")
    assert "First &amp; &lt;foremost&gt;</a>" in listing
    assert 'href="00_first.html"' in listing
    assert "run='trial', size=8" in html.unescape(listing)
    assert ">done<" in listing


def test_index_shows_defaults_and_what_an_earlier_run_left(folder, outputs_root):
    write_notebook(folder, "00_first", "run = 'x'  # name\nsize = 3  # px")
    write_notebook(folder, "01_second", "run = 'x'  # name")
    run_notebooks({"run": "t"}, folder=folder, only=["00"])
    _, index = run_notebooks({"run": "t"}, folder=folder, only=["01"])
    listing = html.unescape(index.read_text(encoding="utf-8"))
    assert listing.index("00_first.html") < listing.index("01_second.html")
    assert "run='t', size=3" in listing


def test_failure_keeps_the_partial_notebook_and_stops(folder, outputs_root, capsys):
    write_notebook(folder, "00_first", code="print('before')\nraise ValueError('dtype=int3 is not allowed')")
    write_notebook(folder, "01_second")
    stale = outputs_root / "demo" / "notebooks" / "01_second.ipynb"
    stale.parent.mkdir(parents=True)
    stale.write_text("from an earlier run", encoding="utf-8")
    with pytest.raises(NotebookError) as failure:
        run_notebooks({}, folder=folder)
    partial = outputs_root / "demo" / "notebooks" / "00_first.ipynb"
    assert str(partial) in str(failure.value)
    assert str(failure.value).endswith("ValueError: dtype=int3 is not allowed")
    assert "before" in stdout_of(partial)
    assert not stale.exists()
    listing = (outputs_root / "demo" / "html" / "index.html").read_text(encoding="utf-8")
    assert ">failed<" in listing and ">not run<" in listing and ">done<" not in listing


def test_dead_kernel_is_a_failure(folder, outputs_root):
    write_notebook(folder, "00_first", code="import os\nos._exit(1)")
    with pytest.raises(NotebookError, match="00_first failed"):
        run_notebooks({}, folder=folder)
    listing = (outputs_root / "demo" / "html" / "index.html").read_text(encoding="utf-8")
    assert ">failed<" in listing


def test_unknown_parameter_is_refused_before_anything_runs(folder, outputs_root, executed_order):
    write_notebook(folder, "00_first", "dataset_size = 16  # images\ncalib_size = 32  # images")
    with pytest.raises(NotebookError, match="'dataset_sise'.*nearest: dataset_size"):
        run_notebooks({"dataset_sise": 3}, folder=folder)
    with pytest.raises(NotebookError, match="is a mapping"):
        run_notebooks({"dataset_size": {"a": 1}}, folder=folder)
    assert executed_order == [] and not outputs_root.exists()


def test_a_parameter_of_another_notebook_is_known(folder, outputs_root, executed_order):
    write_notebook(folder, "00_first")
    write_notebook(folder, "04_later", "dtype = 'fp32'  # precision")
    run_notebooks({"dtype": "int8"}, only=["00"], folder=folder)
    assert executed_order == [("00_first", {})]


def test_parameters_cell_must_be_there_once(folder):
    with pytest.raises(NotebookError, match="0 code cells tagged"):
        declared_parameters(write_notebook(folder, "00_none", tag="other"))
    path = write_notebook(folder, "01_two")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]}))
    nbformat.write(notebook, path)
    with pytest.raises(NotebookError, match="2 code cells tagged"):
        declared_parameters(path)


def test_damaged_notebooks_are_named(folder):
    path = folder / "00_broken.ipynb"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(NotebookError, match=r"00_broken\.ipynb: not a notebook"):
        declared_parameters(path)
    path = write_notebook(folder, "01_no_kernel")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metadata"] = {}
    write_json(path, content)
    with pytest.raises(NotebookError, match=r"01_no_kernel\.ipynb"):
        declared_parameters(path)


def test_run_must_be_a_plain_folder_name(folder, outputs_root, executed_order):
    write_notebook(folder, "00_first")
    with pytest.raises(SettingsError, match="run='../elsewhere'"):
        run_notebooks({"run": "../elsewhere"}, folder=folder)
    assert executed_order == []


def test_no_notebooks(folder):
    with pytest.raises(NotebookError, match="no notebooks"):
        find_notebooks(folder)


def test_command_line(tmp_path, folder, outputs_root, capsys, monkeypatch):
    write_notebook(
        folder, "00_first", "run = 'x'  # name\nrate = 1  # 1/s", "print(type(rate).__name__, rate)"
    )
    monkeypatch.setattr(notebooks, "repository_root", lambda: tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text("run: cli\nrate: 2\n", encoding="utf-8")
    assert main(["--params", str(params), "-p", "rate", "0.5"]) == 0
    printed = capsys.readouterr().out
    executed = outputs_root / "cli" / "notebooks"
    assert str(executed) in printed and str(outputs_root / "cli" / "html" / "index.html") in printed
    assert stdout_of(executed / "00_first.ipynb") == "float 0.5\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "rates", "2"], "nearest: rate"),
        (["--only", "07"], "notebook number='07'"),
        (["--params", "params/absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_command_line_errors_exit_with_1(
    tmp_path, folder, outputs_root, capsys, monkeypatch, arguments, message
):
    write_notebook(folder, "00_first", "rate = 1  # 1/s")
    monkeypatch.setattr(notebooks, "repository_root", lambda: tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text("rate: 2\n", encoding="utf-8")
    assert main(["--params", str(params), *arguments]) == 1
    assert message in capsys.readouterr().out
