"""The notebook runner, on tiny notebooks in a temporary folder."""

import html
import json
import re
import sys
import threading

import nbformat
import pytest

from gpenlib import notebooks
from gpenlib.files import repository_root, write_json
from gpenlib.notebooks import NotebookError, declared_parameters, find_notebooks, main, run_notebooks
from gpenlib.settings import SettingsError

SEVEN = [f"{number:02d}_step" for number in range(7)]


def write_notebook(
    folder, stem, parameters='run = "demo"  # run folder', code="", title=None, tags=("parameters",)
):
    cells = [nbformat.v4.new_markdown_cell(f"Some words.\n\n# {title or stem}", id="title")]
    for number, tag in enumerate(tags):
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": [tag]}, id=f"cell{number}"))
    cells.append(nbformat.v4.new_code_cell(code, id="work"))
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    path = folder / f"{stem}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture
def folder(tmp_path, outputs_root):
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


def test_runs_in_order_and_each_gets_what_it_declares(folder, executed_order):
    for stem in reversed(SEVEN):
        extra = '\ndtype = "fp32"  # precision' if stem.startswith("04") else ""
        write_notebook(folder, stem, f'run = "demo"  # run folder{extra}')
    write_notebook(folder, "out_by_hand")
    run_notebooks({"run": "r", "dtype": "int8"}, folder=folder)
    assert [stem for stem, _ in executed_order] == SEVEN
    assert dict(executed_order)["03_step"] == {"run": "r"}
    assert dict(executed_order)["04_step"] == {"run": "r", "dtype": "int8"}
    executed_order.clear()
    run_notebooks({"dtype": "int8"}, only=["06", "03"], folder=folder)  # that of 04 is known
    assert executed_order == [("03_step", {}), ("06_step", {})]
    with pytest.raises(NotebookError, match="'4': allowed are 00, 01"):
        find_notebooks(folder, ["4"])
    with pytest.raises(NotebookError, match="no notebooks"):
        find_notebooks(folder / "absent")


def test_executed_copy_page_and_index(folder, outputs_root, tmp_path, monkeypatch):
    code = "import os, sys\nprint(sys.executable)\nprint(os.getcwd())\nprint(run, size)"
    write_notebook(
        folder, "00_first", "run = 'x'  # name\nsize = 3  # px", code, title="First & `<foremost>`"
    )
    write_notebook(folder, "01_second", "run = 'x'  # name")
    # A registered kernel of the same name that belongs to something else must not be used.
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    spec = {"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}
    write_json(foreign / "kernel.json", spec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    executed, index = run_notebooks({"run": "trial", "size": 8}, ["00"], folder)
    assert executed == outputs_root / "trial" / "notebooks"
    assert index == outputs_root / "trial" / "html" / "index.html"
    printed = stdout_of(executed / "00_first.ipynb").splitlines()
    assert printed == [sys.executable, str(repository_root()), "trial 8"]
    assert "trial 8" in (index.parent / "00_first.html").read_text(encoding="utf-8")
    listing = index.read_text(encoding="utf-8")
    assert "First &amp; &lt;foremost&gt;</a>" in listing
    values = re.findall(r"<dt><code>(\w+)</code></dt><dd><code>(.*?)</code>", html.unescape(listing))
    assert values == [("run", "'trial'"), ("size", "8")] and ">done<" in listing
    run_notebooks({"run": "trial"}, ["01"], folder)
    listing = html.unescape(index.read_text(encoding="utf-8"))
    assert listing.index('href="00_first.html"') < listing.index('href="01_second.html"')
    # What a killed process left half of is listed, and no more in the way.
    (executed / "00_first.ipynb").write_text('{"cells": [', encoding="utf-8")
    run_notebooks({"run": "trial"}, ["01"], folder)
    listing = index.read_text(encoding="utf-8")
    assert ">failed<" in listing and ">done<" in listing and "00_first.html" not in listing


@pytest.mark.parametrize("death", ["raise ValueError('dtype=int3 is not allowed')", "import os\nos._exit(1)"])
def test_failure_keeps_the_partial_notebook_and_stops(folder, outputs_root, death):
    write_notebook(folder, "00_first", code=f"print('before', flush=True)\n{death}")
    write_notebook(folder, "01_second")
    stale = outputs_root / "demo" / "notebooks" / "01_second.ipynb"
    stale.parent.mkdir(parents=True)
    stale.write_text("from an earlier run", encoding="utf-8")
    with pytest.raises(NotebookError, match="00_first failed") as failure:
        run_notebooks({}, folder=folder)
    partial = outputs_root / "demo" / "notebooks" / "00_first.ipynb"
    assert partial.is_file() and str(partial) in str(failure.value)
    if "raise" in death:
        assert str(failure.value).endswith("ValueError: dtype=int3 is not allowed")
        assert "before" in stdout_of(partial)
    assert not stale.exists()
    listing = (outputs_root / "demo" / "html" / "index.html").read_text(encoding="utf-8")
    assert ">failed<" in listing and ">not run<" in listing and ">done<" not in listing


def test_a_second_run_on_one_folder_waits_for_the_first(folder, outputs_root, monkeypatch, capsys):
    write_notebook(folder, "00_first")
    copy, entered, leave = (
        outputs_root / "demo/notebooks/00_first.ipynb",
        threading.Event(),
        threading.Event(),
    )

    def execute(source, target, values):
        target.write_bytes(source.read_bytes())
        entered.set()
        leave.wait(20)

    monkeypatch.setattr(notebooks, "execute", execute)
    runs = [threading.Thread(target=run_notebooks, args=({}, (), folder)) for _ in range(2)]
    runs[0].start()
    assert entered.wait(20)
    stamp = copy.stat()
    runs[1].start()
    runs[1].join(0.5)
    assert runs[1].is_alive() and copy.stat().st_ino == stamp.st_ino, "removed under the first"
    printed = capsys.readouterr().out
    assert "waiting" in printed and str(outputs_root / "demo") in printed
    leave.set()
    for run in runs:
        run.join(20)
        assert not run.is_alive()
    assert copy.is_file()


@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"dataset_sise": 3}, NotebookError, "'dataset_sise'.*nearest: dataset_size"),
        ({"dataset_size": {"a": 1}}, NotebookError, "is a mapping"),
        ({"run": "../elsewhere"}, SettingsError, "run='../elsewhere'"),
    ],
)
def test_wrong_values_are_refused_before_anything_runs(
    folder, outputs_root, executed_order, values, error, named
):
    write_notebook(folder, "00_first", "run = 'x'  # name\ndataset_size = 16  # images")
    with pytest.raises(error, match=named):
        run_notebooks(values, folder=folder)
    assert executed_order == [] and not outputs_root.exists()


def test_malformed_notebooks_are_named(folder):
    for tags in (("other",), ("parameters", "parameters")):
        with pytest.raises(NotebookError, match=f"{tags.count('parameters')} code cells tagged"):
            declared_parameters(write_notebook(folder, "00_cells", tags=tags))
    path = folder / "00_cells.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    for text in ("{", json.dumps(content | {"metadata": {}})):  # no kernel
        path.write_text(text, encoding="utf-8")
        with pytest.raises(NotebookError, match=r"00_cells\.ipynb"):
            declared_parameters(path)


def test_command_line(tmp_path, folder, outputs_root, capsys, monkeypatch):
    code = "print(type(rate).__name__, rate)"
    write_notebook(folder, "00_first", "run = 'x'  # name\nrate = 1  # 1/s", code)
    monkeypatch.setattr(notebooks, "repository_root", lambda: tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text("run: cli\nrate: 2\n", encoding="utf-8")
    for words, named in (
        (["-p", "rates", "2"], "nearest: rate"),
        (["--only", "07"], "notebook number='07'"),
        (["--params", "params/absent.yaml"], "absent.yaml: no such file"),
    ):
        assert main(["--params", str(params), *words]) == 1
        assert named in capsys.readouterr().err
    assert main(["--params", str(params), "-p", "rate", "0.5"]) == 0
    printed = capsys.readouterr().out
    executed = outputs_root / "cli" / "notebooks"
    assert str(executed) in printed and str(outputs_root / "cli" / "html" / "index.html") in printed
    assert stdout_of(executed / "00_first.ipynb") == "float 0.5\n"
