"""Pages of executed notebooks: what they show, fold, link and escape. tests/test_browser.py looks at them."""

import base64
import html
import re

import cv2
import nbformat
import numpy as np
import pytest

from gpenlib.files import write_json
from gpenlib.notebooks import formula, markdown, write_pages

HOSTILE = "</pre><script>alert(1)</script>"
BARS = (
    "\rcalibrate:   0%|          | 0/4 [00:00<?, ?image/s]",
    "\rcalibrate: 100%|██████████| 4/4 [00:01<00:00,  3.35image/s]",
    "\nSomeWarning: look out\n",
    "\rreading: 7image [00:01, 6.12image/s]",
)


def png(height, width):
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[: height // 2] = (0, 0, 255)  # BGR
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def figure(alt=None, size=(300, 960)):
    metadata = {} if alt is None else {"image/png": {"alt": alt}}
    data = {"image/png": png(*size), "text/plain": "<Figure size 9x9 with 1 Axes>"}
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


def printed(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def result(text, kind="text/plain"):
    return nbformat.v4.new_output("execute_result", {kind: text, "text/plain": "<object>"} | {kind: text})


def code(source, *outputs, tags=()):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def notebook(title, *cells, **record):
    head = nbformat.v4.new_markdown_cell(f"# {title}")
    parameters = code('run = "r"  # run folder', tags=["parameters"])
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    metadata = {"kernelspec": kernel, "papermill": {"duration": 61.26, "exception": None, **record}}
    return nbformat.v4.new_notebook(cells=[head, parameters, *cells], metadata=metadata)


@pytest.fixture
def pages(tmp_path):
    """Function of notebooks by stem -> texts of their pages and of the index, all in a run folder."""

    def write(**notebooks):
        for stem, content in notebooks.items():
            path = tmp_path / "notebooks" / f"{stem.strip('n')}.ipynb"
            path.parent.mkdir(exist_ok=True)
            nbformat.write(content, path)
            write_pages(tmp_path, [], path.name)
        return {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "html").glob("*.html")}

    return write


def test_a_page_folds_code_and_plumbing_and_shows_results(pages):
    cells = (
        code("x = 1  # plain", printed("seen\n")),
        code(
            "import os  # plumbing",
            result("Run(kept back)"),
            printed("kept back, too", "stderr"),
            printed("sound: 3 images"),
            result("<b>table</b>", "text/html"),
            tags=["plumbing"],
        ),
        code("print(HOSTILE)", printed(HOSTILE)),
    )
    page = pages(n00_a=notebook("A", *cells))["00_a"]
    folded = re.findall(r'<details class="(\w+)">(.*?)</details>', page, re.DOTALL)
    assert [kind for kind, _ in folded] == ["plumbing", "code", "plumbing", "code"], "parameters come first"
    assert ["kept back" in text for _, text in folded] == [False, False, True, False]
    open_text = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert "seen" in open_text and "<b>table</b>" in open_text and "kept back" not in open_text
    assert "sound: 3 images" in open_text, "what a check prints is told"
    assert "plain" not in open_text and page.count('<details class="code">') == 2
    assert 'querySelectorAll("details.code")' in page, "the control leaves plumbing alone"
    assert HOSTILE not in page and html.escape("<script>alert(1)") in page
    assert 'name="viewport" content="width=device-width' in page
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", page), "no network"


def test_bars_are_one_folded_line_each_and_warnings_stay(pages):
    page = pages(n00_a=notebook("A", code("work()", *(printed(text, "stderr") for text in BARS))))["00_a"]
    data = {"text/plain": BARS[1].strip()}
    line = nbformat.v4.new_output("display_data", data, metadata={"progress": True})
    written = pages(n01_b=notebook("B", code("", printed("sound"), line)))
    assert re.findall(r"progress, 1 line</summary>\n<pre>(calibrate: 100%)", written["01_b"])
    assert written["01_b"].count("4/4") == 1 and card(written["index"], "01_b")[0] == "sound"
    (bars,) = re.findall(
        r'<details class="progress"><summary>(.*?)</summary>\s*<pre>(.*?)</pre>', page, re.DOTALL
    )
    assert bars[0] == "progress, 2 lines"
    assert [line.split(":")[0] for line in bars[1].split("\n") if line] == ["calibrate", "reading"]
    assert "100%" in bars[1] and "  0%" not in bars[1]
    assert re.findall(r'<pre class="note">(.*?)</pre>', page, re.DOTALL)[0].strip() == "SomeWarning: look out"


def test_every_picture_says_in_words_what_it_is(pages):
    cells = (
        code("", figure("the alt of the metadata"), figure()),
        nbformat.v4.new_markdown_cell("## Size & *time*\n\nwords\n\n### `int8` layers"),
        code("", figure(), figure()),
    )
    page = pages(n00_a=notebook("A", *cells))["00_a"]
    found = [html.unescape(text) for text in re.findall(r'<img src="data:image/png[^>]*alt="([^"]*)"', page)]
    assert found == [
        "the alt of the metadata",
        "A, figure 2",
        "int8 layers, figure 1",
        "int8 layers, figure 2",
    ]
    contents = re.findall(r'<li[^>]*><a href="#([^"]*)">(.*?)</a>', page)
    assert [html.unescape(text) for _, text in contents] == ["Size & time", "int8 layers"]
    assert all(f'id="{anchor}"' in page for anchor, _ in contents)


def test_formulas_are_mathml_and_what_is_none_stays_readable():
    text = markdown(r"With $s = \hat A w$ and" "\n\n" r"$$ \frac{\lambda}{\sqrt{k^2}} $$")
    assert text.count("<math ") == 2 and 'display="block"' in text and "$" not in text and "\\" not in text
    assert "<mfrac>" in text and "<msqrt>" in text
    for broken in (r"\frac{", r"\unheard{x}", r"a_b_c & <b>"):
        assert formula("inline", broken) == f"<code>{html.escape(broken)}</code>"


def test_pages_link_to_their_neighbours_whenever_they_come(pages):
    linked = re.compile(r'<a rel="(prev|next)" href="([^"]+)">')
    first = pages(n00_a=notebook("A"))
    assert linked.findall(first["00_a"]) == [] and 'href="index.html"' in first["00_a"]
    pages(n02_c=notebook("C"))
    written = pages(n01_b=notebook("B <&>"))
    ways = {stem: sorted(set(linked.findall(text))) for stem, text in written.items() if stem != "index"}
    assert ways["00_a"] == [("next", "01_b.html")]
    assert ways["01_b"] == [("next", "02_c.html"), ("prev", "00_a.html")]
    assert ways["02_c"] == [("prev", "01_b.html")]


def card(index, stem):
    """Return the result, status and time of a card."""
    (text,) = [
        each for each in re.findall(r'<li class="card">.*?</li>', index, re.DOTALL) if f"{stem}.html" in each
    ]
    result, state = re.findall(
        r'<div class="result">(.*?)</div>.*?<p class="state">(.*?)</p>', text, re.DOTALL
    )[0]
    return html.unescape(re.sub(r"<[^>]+>", "", result)).strip(), re.sub(r"<[^>]+>", "", state)


def test_a_card_tells_what_was_found(pages):
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no <such> thing", traceback=["x"])
    found = code(
        "", result("int8 is **2 times** as fast", "text/markdown"), printed("more"), tags=["finding"]
    )
    later, last = code("", printed("another"), tags=["finding"]), code("", printed("one\nsound: 3 < 4\n"))
    index = pages(
        n00_a=notebook("A", found, later, last, code("figure", figure())),
        n01_b=notebook("B", last, code("frame", result("<b>x</b>", "text/html"))),
        n02_c=notebook("C", found, code("", error), exception=True),
        n03_d=notebook("D"),
        n04_e=notebook("E", code("", result("**It** holds. " * 40, "text/markdown"), tags=["finding"])),
    )["index"]
    assert card(index, "00_a") == ("int8 is 2 times as fast", "done, 61.3 s")
    assert card(index, "01_b") == ("sound: 3 < 4", "done, 61.3 s")
    assert card(index, "02_c") == ("ValueError: no <such> thing", "failed, 61.3 s")
    assert card(index, "03_d") == ("", "done, 61.3 s")
    assert re.fullmatch(r"(It holds\. ){19,28}It holds\.", card(index, "04_e")[0]), "whole sentences"
    (picture,) = re.findall(r'<img src="data:image/\w+;base64,([^"]+)" alt="first figure of A"', index)
    small = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (150, 480, 3) and small[10, 10, 2] > 240 > 20 > small[10, 10, 0], "red above"


def test_a_page_opens_with_what_was_found(pages):
    """It stands behind the title, and once; a page of a notebook that failed promises nothing."""
    markdown = result("int8 is **2 times** as fast", "text/markdown")
    found = code("", markdown, printed("more"), figure(), tags=["finding"])
    texts = pages(
        n00_a=notebook("A", nbformat.v4.new_markdown_cell("## How"), found),
        n01_b=notebook("B", found, exception=True),
        n02_c=notebook("C", code("", printed("last"))),
    )
    told = "int8 is <strong>2 times</strong> as fast"
    assert texts["00_a"].count(told) == 1 and "more" in texts["00_a"]
    marks = ('<section class="summary"', ">A<a", ">How<a")
    summary, title, how = (texts["00_a"].index(mark) for mark in marks)
    assert title < summary < texts["00_a"].index(told) < how
    assert texts["01_b"].count(told) == 1 and '<section class="summary"' not in texts["01_b"] + texts["02_c"]


def test_warnings_come_without_the_place_in_our_code(pages):
    warning = "/a b/c.py:193: UserWarning: no bf16: f32 computes\n  runtime = open_it(folder)\nplain\n"
    page = pages(n00_a=notebook("A", code("", printed(warning, "stderr"))))["00_a"]
    assert "UserWarning: no bf16: f32 computes\nplain" in html.unescape(page) and "open_it" not in page


def test_the_index_opens_with_the_recommendation_of_this_run(pages, tmp_path):
    assert "ecommend" not in pages(n05_errors=notebook("Errors"))["index"]
    choice = {"dtype": "int8", "reason": "It is <fast>.", "others": {}, "cautions": ["Only 6 faces."]}
    write_json(tmp_path / "05_report/manifest.json", {"metrics": {"recommendation": choice}})
    write_json(tmp_path / "05_errors/results.json", {"facts": {"made_here": True}})
    index = pages(n05_errors=notebook("Errors"))["index"]
    place = [
        index.index(text) for text in ("<b>int8</b>", "It is &lt;fast&gt;.", "do not judge", "Only 6 faces.")
    ]
    card_05 = nbformat.v4.new_markdown_cell("## How")
    told = result("**Take int8.** It is 2.5 times as fast. It loses little.", "text/markdown")
    chosen = code("", figure("chosen; more"), tags=["thumbnail"])
    cells = (card_05, code("", told, figure("first"), tags=["finding"]), chosen)
    shown = pages(n05_errors=notebook("Errors", *cells))["index"]
    assert card(shown, "05_errors")[0] == "Take int8. It is 2.5 times as fast." and 'alt="chosen"' in shown
    assert (
        place == sorted(place) and 'href="../report.html"' in index and place[-1] < index.index("<ul class")
    )
    assert "<b>int8</b>" not in pages(n05_errors=notebook("Errors", exception=True))["index"], (
        "an earlier one's"
    )
    (tmp_path / "05_report/manifest.json").write_text("{")
    assert "ecommend" not in pages(n05_errors=notebook("Errors"))["index"]
