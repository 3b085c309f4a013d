"""A browser looks at the pages and the report of a run, and works with notebooks in JupyterLab.

Chromium is the system's own. Without it the tests are skipped; with GPEN_BROWSER_REQUIRED=1 they fail.
Screenshots go to the folder ``screenshots`` among the outputs.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from gpenlib.files import repository_root, resolve_path, write_json
from gpenlib.notebooks import find_notebooks, write_pages
from gpenlib.settings import OUTPUTS_VARIABLE, read_yaml
from gpenlib.sweep import Cell, run_name, write_sweep_page

ROOT = repository_root()
SMOKE = read_yaml(ROOT / "params/smoke.yaml")
# Read while tests are collected: a fixture sends runs elsewhere later
SCREENSHOTS = resolve_path(os.environ.get(OUTPUTS_VARIABLE) or "outputs") / "screenshots"
TIME_LIMIT = 900_000  # ms for all cells of a notebook, on a busy machine
# Notebook 03 as other tests execute it takes minutes here; what a live kernel adds is seen with two dtypes
PARAMETERS = {"03_compile": {"dtypes": "fp32,bf16", "perf_instances": 1, "perf_threads": 1, "repeats": 4}}
# What is shown beyond the right edge, but for what scrolls in a frame of its own
CUT_OFF = """[...document.querySelectorAll("body *")].filter(
  (e) => e.checkVisibility() && !e.closest(".wide, pre, math")
    && e.getBoundingClientRect().right > innerWidth + 1
).map((e) => e.outerHTML.slice(0, 99))"""


@pytest.fixture(scope="module")
def chromium():
    """A browser, shared by all tests of a worker."""
    path = shutil.which("chromium")
    if path is None:
        reason = "no chromium (Debian: apt-get install chromium)"
        if os.environ.get("GPEN_BROWSER_REQUIRED") == "1":
            pytest.fail(f"{reason}; GPEN_BROWSER_REQUIRED=1 asks for it")
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Function that opens a page of its own, and what went wrong in it: errors and foreign requests."""
    contexts = []

    def open_page(width, scheme, *allowed):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, faults = context.new_page(), []
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on(
            "console", lambda m: faults.append(f"console: {m.text} {m.location}") if m.type == "error" else 0
        )
        page.on(
            "request", lambda request: None if request.url.startswith(allowed) else faults.append(request.url)
        )
        return page, faults

    yield open_page
    for context in contexts:
        context.close()


def screenshot(page, name, **options):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", **options)


def luminances(page):
    """Return the brightness, 0 to 1, of the page's ground and of its text."""
    colours = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    return [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in colours]


def wipe(page):
    """Drag the divider of the element that wipes, then press arrow keys; assert that it follows."""
    view = page.locator(".gpen-wipe-view").first
    picture = view.locator(".gpen-wipe-picture")

    def place():
        return float(picture.evaluate("e => e.style.getPropertyValue('--place')").rstrip("%"))

    def to(part):  # waits until the picture is in sight, at rest and not covered
        box = picture.bounding_box()
        picture.hover(position={"x": part * box["width"], "y": 0.3 * box["height"]})

    assert place() == 50
    to(0.5)
    page.mouse.down()
    to(0.4)
    to(0.2)
    page.mouse.up()
    assert place() == pytest.approx(20, abs=1), "it follows the mouse"
    to(0.8)
    assert place() == pytest.approx(20, abs=1), "only while the button is down"
    whole, shown = picture.bounding_box(), view.locator(".gpen-wipe-over").bounding_box()
    assert whole["width"] > 100 and shown["width"] == pytest.approx(whole["width"], abs=1), "not squeezed"
    before = place()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    after = place()
    assert before + 1 < after < 60, "it follows the arrow keys"
    page.keyboard.press("ArrowLeft")
    assert before < place() < after


@pytest.fixture(scope="module")
def run_folder(executed_notebook, chromium):
    """The folder of a smoke run of all notebooks, with their pages."""
    sources = find_notebooks(ROOT / "notebooks")
    copies = [executed_notebook(source.stem) for source in sources]
    folder = copies[0].parents[1]
    for source in sources:
        write_pages(folder, sources, source.name)
    return folder


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The page of a sweep of three values with long names, whose runs are done, failed, and not run yet."""
    monkeypatch.setenv(OUTPUTS_VARIABLE, str(tmp_path))
    named = [{"dtype": d, "calibrate_mode": m, "weights": w} for d in ("fp32", "int8") for m in ("max", "mse")
             for w in ("demo-color", "/a/path/to/some/checkpoint-of-a-long-name.pth")]  # fmt: skip
    cells = [Cell(varied, {"run": run_name("sweep", varied)}, {}) for varied in named]
    figures = {"ssim": 0.95, "images": 16, "faces": "f", "mib": 31.25, "psnr_fp32": None, "at_once": True}
    results = {
        cell.name: {"dtype": cell.varied["dtype"], "psnr": 25 - 0.1 * n, "ms": 140.0 - 20 * n, **figures}
        for n, cell in enumerate(cells[:6])
    } | dict.fromkeys([cell.name for cell in cells[6:]])
    failed = {cells[6].name: "04_infer failed: DataError: " + "a long message of what was wrong " * 8}
    return write_sweep_page(tmp_path / "sweep/sweep.html", cells, results, failed)


def test_pages_and_report_are_whole_on_every_screen(run_folder, sweep, opened):
    paths = [*sorted((run_folder / "html").glob("*.html")), run_folder / "report.html"]
    notebooks = [path.stem for path in find_notebooks(ROOT / "notebooks")]
    assert [path.stem for path in paths] == [*notebooks, "index", "report"]
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            page, faults = opened(width, scheme, "file:", "data:")
            for path in (*paths, sweep):
                where = f"{path.stem} at {width} px, {scheme}"
                page.goto(path.as_uri())
                sides = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
                assert sides[0] <= sides[1], f"{where} scrolls sideways"
                broken = page.evaluate(
                    "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
                )
                wordless = page.evaluate("[...document.images].filter(i => !i.alt.trim()).length")
                assert (broken, wordless) == (0, 0), where
                ground, text = luminances(page)
                assert (ground - text > 0.6) if scheme == "light" else (text - ground > 0.6), where
                assert page.evaluate(CUT_OFF) == [], f"{where}: something is cut off"
                if scheme == "light" or width == 1280:
                    screenshot(page, f"{path.stem}-{width}-{scheme}", full_page=True)
            assert faults == []


def test_a_reader_finds_the_way_and_unfolds_code(run_folder, opened):
    page, faults = opened(1280, "light", "file:", "data:")
    page.goto((run_folder / "html/index.html").as_uri())
    assert page.locator(".card img").count() == page.locator(".card").count() == 8
    assert page.locator(".card .result").all_inner_texts() != ["", "", ""]
    page.get_by_role("link", name=re.compile("^04")).first.click()
    assert page.url.endswith("04_infer.html")
    page.get_by_role("link", name=re.compile("^← 03")).first.click()
    assert page.url.endswith("03_compile.html")
    page.get_by_role("link", name=re.compile("all notebooks$")).first.click()
    page.get_by_role("link", name=re.compile("^00")).first.click()
    assert page.url.endswith("00_architecture.html")
    assert page.locator("math").count() > 20 and page.locator("math").first.bounding_box()["width"] > 3
    page.locator(".contents a").nth(3).click()
    assert page.evaluate("document.querySelector(location.hash).getBoundingClientRect().top") < 300
    sources = page.locator("details.code .source")
    assert sources.count() > 5 and not sources.first.is_visible()
    page.get_by_role("button", name="show all code").click()
    assert all(sources.nth(index).is_visible() for index in range(sources.count()))
    assert not page.locator("details.plumbing .source").first.is_visible()
    page.get_by_role("button", name="hide all code").click()
    assert not sources.first.is_visible()
    page.goto((run_folder / "html/04_infer.html").as_uri())
    wipe(page)
    page.goto((run_folder / "report.html").as_uri())
    wipe(page)
    assert faults == []


@pytest.fixture
def lab(tmp_path, chromium):
    """Root address of a JupyterLab on copies of the notebooks with smoke parameters, and their folder."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for source in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        notebook = nbformat.read(source, as_version=4)
        values = SMOKE | PARAMETERS.get(source.stem, {})
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
        lines = [re.match(r"((\w+): \w+) = .*?(  # .*)$", line) for line in cell.source.splitlines()]
        cell.source = "\n".join(
            f"{line[1]} = {values[line[2]]!r}{line[3]}" if line[2] in values else line[0] for line in lines
        )
        nbformat.write(notebook, folder / source.name)
    settings = tmp_path / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    write_json(settings, {"fetchNews": "false", "checkForUpdates": False})  # asks the network otherwise
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython", OUTPUTS_VARIABLE: "outputs",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
        "--expose-app-in-browser",
    ]  # fmt: skip
    environment = os.environ | {name: str(tmp_path / place) for name, place in places.items()}
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
        )
        try:
            address = f"http://127.0.0.1:{port}"
            answers(f"{address}/api", server, tmp_path / "lab.log")
            yield address, folder
        finally:
            server.terminate()  # and its kernels with it
            server.wait(30)


def answers(address, server, log):
    """Wait until a server answers."""
    end = time.monotonic() + 90
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab does not answer:\n{Path(log).read_text()[-3000:]}")


NOTEBOOK = "jupyterapp.shell.currentWidget"
IDLE = f"window.jupyterapp && {NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'"


def cells_of(page):
    return page.evaluate(f"{NOTEBOOK}.content.model.toJSON().cells")


def outputs_of(page):
    return [output for cell in cells_of(page) for output in cell.get("outputs", [])]


def first_picture(page):
    """Number of the first cell that shows a picture."""
    shown = [json.dumps(cell.get("outputs", [])) for cell in cells_of(page)]
    return next(number for number, text in enumerate(shown) if "<img" in text or "image/" in text)


def settle(page):
    """Wait until the picture under the divider stays where it is: JupyterLab lays out cells bit by bit."""
    seen = []
    while len(seen) < 4 or len({*seen[-4:]}) > 1:
        page.locator(".gpen-wipe-picture").first.scroll_into_view_if_needed()
        seen.append(str(page.locator(".gpen-wipe-picture").first.bounding_box()))
        page.wait_for_timeout(250)
        assert len(seen) < 120, "it never comes to rest"


def check_outputs(page):
    """Assert that no cell failed and that every widget is shown."""
    errors = [output["evalue"] for output in outputs_of(page) if output["output_type"] == "error"]
    assert errors == []
    page.wait_for_function("!document.querySelector('.jp-Notebook').innerText.includes('Loading widget')")
    text = page.locator(".jp-Notebook").inner_text()
    assert not re.search(r"Error displaying widget|widget model not found|Failed to load", text)
    # JupyterLab attaches only cells near the view, and slow machines some time later.
    page.evaluate(f"() => {NOTEBOOK}.content.scrollToItem({first_picture(page)})")
    page.locator(".jp-Notebook img").first.wait_for(state="attached")
    page.wait_for_function("[...document.images].every((image) => !image.src || image.naturalWidth)")


@pytest.mark.parametrize("stem", ["03_compile", "04_infer", "07_photos"])
def test_a_notebook_runs_in_jupyterlab(stem, lab, opened):
    address, folder = lab
    page, faults = opened(1280, "light", address, "data:", "blob:", address.replace("http", "ws"))
    page.goto(f"{address}/lab/tree/{stem}.ipynb")
    page.wait_for_function(IDLE, timeout=90_000)
    page.evaluate(
        "() => { jupyterapp.commands.execute('notebook:run-all-cells')"
        ".then(() => { window.ran = 'all' }, (error) => { window.ran = String(error) }) }"
    )
    page.wait_for_function("window.ran", timeout=TIME_LIMIT)
    assert page.evaluate("window.ran") == "all"
    page.wait_for_function(IDLE, timeout=30_000)
    check_outputs(page)
    if stem == "07_photos":
        assert page.locator(".jp-OutputArea .widget-upload").count() == 1, "a field for a photograph"
    if stem != "03_compile":
        settle(page)
        wipe(page)
        screenshot(page, f"lab-{stem}-before-after")
        in_cell = f"{NOTEBOOK}.content.activeCell.node.contains(document.activeElement)"
        assert page.evaluate(in_cell), "the arrow keys did not lead to another cell"
    screenshot(page, f"lab-{stem}")
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function(f"!{NOTEBOOK}.context.model.dirty", timeout=30_000)
    stored = json.loads((folder / f"{stem}.ipynb").read_text(encoding="utf-8"))
    assert sum(len(cell.get("outputs", [])) for cell in stored["cells"]) > 5
    page.reload()
    page.wait_for_function(IDLE, timeout=90_000)
    check_outputs(page)
    if stem != "03_compile":
        settle(page)
        screenshot(page, f"lab-{stem}-reloaded")
        wipe(page)  # its script runs again in what was stored
    assert faults == []
