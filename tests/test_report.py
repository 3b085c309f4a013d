"""The page of a run: complete in itself, the figures of summary.csv, nothing unescaped."""

import csv
import html
import re
import shlex

import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.errors.compare import Recommendation, groups_note, open_face_errors, trends_note, worst_faces
from gpenlib.errors.report import NOTEBOOK_05, gallery_dtype, papermill_command, signed, write_report
from gpenlib.files import read_json, repository_root, sha256
from gpenlib.images import write_image
from gpenlib.notebooks import declared_parameters
from gpenlib.run import Run
from gpenlib.settings import OUTPUTS_VARIABLE, RunSettings

NAMES = ["<b>bold", 'quo"te & co', "plain", "four", "five", "six"]
FIGURES = ("psnr", "ssim", "delta_e2000", "model_mib", "latency_ms")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over six faces with awkward names, and its manifest."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("report")
        patch.setenv(OUTPUTS_VARIABLE, str(root / "outputs"))
        faces = embedded_faces(6, 64)
        for index, name in enumerate(NAMES):
            write_image(root / "faces & co" / f"{name}.png", faces.read(index))
        values = {
            "run": "page", "weights": "tiny-random", "data_dir": str(root / "faces & co"), "dataset_size": 6,
            "calib_size": 4, "dtypes": "fp32,int8", "repeats": 2, "worst": 6, "max_drop_db": 50,
        }  # fmt: skip
        run = Run(RunSettings.parse(values))
        yield run, run.errors()


@pytest.fixture(scope="module")
def page(run):
    return (run[0].folder / "report.html").read_text(encoding="utf-8")


def cells(page):
    """Return the text of every table cell, tags and escapes undone."""
    return [html.unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", page)]


def test_the_page_needs_nothing_else_and_says_in_words_what_its_figures_show(run, page):
    assert set(re.findall(r"\b(?:src|href)\s*=\s*(.{6})", page)) == {'"data:'}
    assert not re.search(r"<(?:script [^>]*src|link|iframe)|url\(|@import|https?://", page)
    images = re.findall(
        r'<figure><div class="wide figure"><img src="data:image/png;base64,([A-Za-z0-9+/=]+)" alt="([^"]+)"',
        page,
    )
    wiped = re.findall(r'<td><img [^>]*src="data:image/[^"]+" alt="([^"]+): ([^":]+)"', page)
    assert [label for _, label in wiped] == ["input", "fp32", "int8", "truth"] * 6
    assert {html.unescape(face).rpartition(" (")[0] for face, _ in wiped} == set(NAMES)
    assert len(images) == 4 and all(len(image) > 10_000 for image, _ in images)
    pareto, drops, worst, _ = (html.unescape(words) for _, words in images)
    metrics = run[1]["metrics"]
    times = {row["dtype"]: row["median_ms"] for row in metrics["latency"]}
    loss = signed(metrics["table"][1]["psnr_drop"], 3)
    assert f"int8 {times['int8']:.1f} ms, {loss} dB" in pareto and f"int8 {loss} (" in drops
    assert all(name in worst for name in NAMES)
    small = [signed(value, 3) for value in (0.0, 0.0004, -2e-7, -0.0016, None)]
    assert small == ["+0.000", "+0.000", "+0.000", "−0.002", "–"], "decimals are fixed"


def test_the_recommendation_stands_on_the_page_and_names_are_escaped(run, page):
    choice, text = run[1]["recommendation"], html.unescape(page)
    assert choice["dtype"] in ("fp32", "int8") and f"<b>{choice['dtype']}</b>" in page
    assert all(why in text for why in (choice["reason"], *choice["cautions"], *choice["others"].values()))
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
    assert 'quo"te' not in page and "quo&#34;te &amp; co" in page


def test_the_cautions_stand_beside_the_recommendation_and_the_budget_is_told(run, page):
    box = html.unescape(page[page.index('<div class="summary">') : page.index("<dl>")])
    choice = run[1]["recommendation"]
    assert choice["cautions"] and all(caution in box for caution in choice["cautions"])
    assert box.index(choice["reason"]) < box.index(choice["cautions"][0]) < box.index("<ul>")
    assert f"more than the budget of {run[0].settings.max_drop_db:g} dB" in page


def test_the_worst_faces_are_those_of_the_recommended_dtype_or_the_fastest_other(run, page):
    times = {"fp32": 1.0, "bf16": 3.0, "int8": 2.0}
    table = [{"dtype": dtype, "latency_ms": time} for dtype, time in times.items()]
    shown = {choice: gallery_dtype(table, choice) for choice in ("bf16", "int8", "fp32", None)}
    assert shown == {"bf16": "bf16", "int8": "int8", "fp32": "int8", None: "int8"}
    assert "<h2>The worst faces of int8</h2>" in page
    explained = "is recommended, and the others are measured against it" in page
    assert explained == (run[1]["recommendation"]["dtype"] == "fp32")


def test_its_tables_are_those_of_the_summary(run, page):
    with (run[0].folder / "05_errors/summary.csv").open(encoding="utf-8") as file:
        summary = list(csv.DictReader(file))
    texts = cells(page)
    for row in summary:
        start = texts.index(row["dtype"])
        line, texts = texts[start : start + 10], texts[start + 1 :]
        psnr, ssim, delta_e, size, time = (float(row[name]) for name in FIGURES)
        assert [line[1], *line[4:6]] == [f"{time:.1f}", f"{psnr:.3f}", f"{ssim:.4f}"]
        assert [line[7], line[9]] == [f"{delta_e:.3f}", f"{size:.1f}"]
        assert html.unescape(page).count(f"by {row['backend']}, {row['backend_reason']}</dd>") >= 1
    assert f"{signed(float(summary[1]['psnr_drop']), 3)} (" in line[2]
    gain = float(summary[0]["psnr"]) - float(summary[0]["psnr_input"])
    assert f"PSNR of fp32: {signed(gain, 3)} dB over grey input" in page


def test_it_shows_the_corrected_verdicts_of_the_groups(run, page):
    groups, texts = run[1]["metrics"]["groups"], cells(page)
    assert groups_note(groups, run[1]["metrics"]["rows"]) in html.unescape(page)
    assert trends_note(run[1]["metrics"]["trends"]) in html.unescape(page)
    shown = [row for row in groups if row["score"] == "psnr"]
    start = texts.index("skin tone") - 1
    lines = [texts[start + 8 * i : start + 8 * i + 8] for i in range(len(shown))]
    expected = [(row["group"], str(row["faces"]), row["verdict"]) for row in shown]
    assert [(line[2], line[3], line[7]) for line in lines] == expected


def test_own_faces_carry_no_warning_and_embedded_ones_do(run, page, tmp_path):
    assert "do not judge a network" not in page
    run, manifest = run
    results = manifest["metrics"] | {"facts": manifest["metrics"]["facts"] | {"made_here": True}}
    assert "very outputs" not in page
    own = [row for row in results["rows"] if row["dtype"] == "fp32"]
    results["rows"] = own + [row | {"dtype": "int8"} for row in own]
    readers = {dtype: run.output_reader(dtype) for dtype in ("fp32", "int8")}
    faces = open_face_errors(worst_faces(results["rows"], "int8", 1), readers, readers["fp32"])
    row = {"dtype": "int8", "score": "psnr", "images": 6, "difference": 0.5, "low": None, "high": None}
    runs = {"a": 20.0, "b": 20.5}.items()
    rows = [row | {"run": name, "value": value, "verdict": "new"} for name, value in runs]
    comparison = {"rows": rows, "runs": dict.fromkeys("ab", results["facts"])}
    choice = Recommendation(None, "too few")
    said = ("int8", faces), "command", comparison
    path = write_report(tmp_path / "page.html", results, choice, *said, photographs=NAMES)
    text = path.read_text(encoding="utf-8")
    assert "do not judge a network" in text and "too few" in text
    assert "<h2>Photographs, and the worst samples, in int8</h2>" in text
    assert "int8 gave fp32's very outputs: nothing more was rounded." in html.unescape(text)
    assert "int8 PSNR [dB] b 6 20.000 20.500 +0.500 – – new" in " ".join(cells(text))


def test_it_is_written_once_and_restored_if_lost(run):
    run, manifest = run
    stage, page = run.folder / "05_report", run.folder / "report.html"
    before = (stage / "report.html").stat().st_mtime_ns
    page.unlink()
    again = run.errors()
    assert again["built"] is False and again["report"] == manifest["report"]
    assert (stage / "report.html").stat().st_mtime_ns == before
    assert sha256(page) == read_json(stage / "manifest.json")["outputs"]["report.html"]
    page.write_text("edited by hand")
    run.errors()
    assert (run.folder / "report.html.kept-1").read_text() == "edited by hand"
    assert sha256(page) == read_json(stage / "manifest.json")["outputs"]["report.html"]


def test_the_command_repeats_the_run(run, page):
    command = papermill_command(run[0].settings)
    assert command in html.unescape(page)
    words = shlex.split(command)
    assert words[:3] == ["papermill", "notebooks/05_errors.ipynb", "out.ipynb"]
    assert RunSettings.parse(dict(zip(words[4::3], words[5::3], strict=True))) == run[0].settings
    assert set(NOTEBOOK_05) == set(declared_parameters(repository_root() / "notebooks/05_errors.ipynb"))
    other = papermill_command(RunSettings.parse({"seed": 3, "runs": "a,b"}))
    assert "-p runs a,b" in other and other.endswith("seed=3")
