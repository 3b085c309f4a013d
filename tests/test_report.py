"""The page of a run: complete in itself, the figures of summary.csv, nothing unescaped."""

import csv
import html
import re
import shlex

import pytest

from gpenlib import run as stages
from gpenlib.data.faces import embedded_faces
from gpenlib.errors.compare import Recommendation
from gpenlib.errors.report import signed, write_report
from gpenlib.files import read_json, repository_root, sha256
from gpenlib.images import write_image
from gpenlib.notebooks import declared_parameters
from gpenlib.run import NOTEBOOK_PARAMETERS, _gallery
from gpenlib.settings import OUTPUTS_VARIABLE

NAMES = ["<b>bold</b>".replace("/", "|"), 'quo"te & co', "plain", "four", "five", "six"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Settings and manifest of a run over six faces with awkward names."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("report")
        patch.setenv(OUTPUTS_VARIABLE, str(root / "outputs"))
        source = embedded_faces(6, 64)
        for index, name in enumerate(NAMES):
            write_image(root / "faces & co" / f"{name}.png", source.read(index))
        settings = stages.ErrorSettings.parse(
            {
                "run": "page", "weights": "tiny-random", "data_dir": str(root / "faces & co"),
                "dataset_size": 6, "calib_size": 4, "dtypes": "fp32,int8", "repeats": 2, "worst": 6,
                "max_drop_db": 50,
            }
        )  # fmt: skip
        manifest = stages.errors(settings)
        yield settings, manifest


@pytest.fixture(scope="module")
def page(run):
    return (run[0].folder / "report.html").read_text(encoding="utf-8")


def cells(page):
    """Return the text of every table cell, tags and escapes undone."""
    return [html.unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", page)]


def test_the_page_needs_nothing_else(page):
    sources = re.findall(r"\b(?:src|href)\s*=\s*(.{6})", page)
    assert set(sources) == {'"data:'}
    assert not re.search(r"<(?:script|link|iframe)|url\(|@import|https?://", page)
    images = re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    assert len(images) == 4 and all(len(image) > 10_000 for image in images)
    assert len(page) < 5_000_000


def test_the_recommendation_stands_on_the_page(run, page):
    choice = run[1]["recommendation"]
    assert choice["dtype"] in ("fp32", "int8")
    assert f"Recommended: <b>{choice['dtype']}</b>" in page
    text = html.unescape(page)
    assert choice["reason"] in text and all(why in text for why in choice["others"].values())
    assert "Only 6 faces" in text


def test_its_tables_are_those_of_the_summary(run, page):
    with (run[0].folder / "05_errors/summary.csv").open(encoding="utf-8") as file:
        summary = list(csv.DictReader(file))
    assert [row["dtype"] for row in summary] == ["fp32", "int8"]
    assert [row["dtype"] for row in run[1]["metrics"]["table"]] == ["fp32", "int8"]
    found = cells(page)
    for row in summary:
        start = found.index(row["dtype"])
        line = found[start : start + 10]
        assert line[1] == f"{float(row['psnr']):.3f}" and line[3] == f"{float(row['ssim']):.4f}"
        assert line[5] == f"{float(row['delta_e2000']):.2f}" and line[7] == f"{float(row['model_mib']):.1f}"
        assert line[8] == f"{float(row['latency_ms']):.1f}"
        assert row["backend_reason"] in found
        found = found[start + 1 :]
    assert f"{float(summary[1]['psnr_drop']):+.3f} (" in line[2]


def test_small_differences_keep_their_size():
    assert [signed(value, 3) for value in (0.0, 0.0004, -2e-7, 0.0016, None)] == [
        "+0.000", "+4e-04", "-2e-07", "+0.002", "–",
    ]  # fmt: skip


def test_names_are_escaped(page):
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
    assert 'quo"te' not in page and "quo&#34;te &amp; co" in page


def test_own_faces_carry_no_warning_and_embedded_ones_do(run, page, tmp_path):
    assert "do not judge a network" not in page
    settings, manifest = run
    results = manifest["metrics"] | {"facts": manifest["metrics"]["facts"] | {"made_here": True}}
    choice = Recommendation(None, "too few")
    runs = {dtype: stages.infer(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    gallery = _gallery(settings, results, choice, runs)
    assert gallery[0] == "int8", "nothing is recommended: the precision that loses most is shown"
    text = write_report(tmp_path / "page.html", results, choice, gallery, "command").read_text()
    assert "do not judge a network" in text and "No recommendation" in text


def test_it_is_written_once_and_restored_if_lost(run):
    settings, manifest = run
    stage = settings.folder / "05_errors/report"
    before = (stage / "report.html").stat().st_mtime_ns
    (settings.folder / "report.html").unlink()
    again = stages.errors(settings)
    assert again["built"] is False and again["report"] == manifest["report"]
    assert (stage / "report.html").stat().st_mtime_ns == before
    assert (
        sha256(settings.folder / "report.html")
        == read_json(stage / "manifest.json")["outputs"]["report.html"]
    )


def test_the_command_repeats_the_run(run, page):
    settings, _ = run
    command = stages.papermill_command(settings)
    assert command in html.unescape(page)
    words = shlex.split(command)
    assert words[:3] == ["papermill", "notebooks/05_errors.ipynb", "out.ipynb"]
    values = dict(zip(words[4::3], words[5::3], strict=True))
    assert set(words[3::3]) == {"-p"}
    assert stages.ErrorSettings.parse(values) == settings


def test_the_command_knows_the_parameters_of_the_notebook(run):
    declared = declared_parameters(repository_root() / "notebooks/05_errors.ipynb")
    assert set(NOTEBOOK_PARAMETERS) == set(declared)
    other = stages.ErrorSettings.parse({"seed": 3, "runs": "a,b"})
    command = stages.papermill_command(other)
    assert "-p runs a,b" in command and command.endswith("# and, set in Python: seed=3")
