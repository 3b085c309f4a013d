"""The page of benchmarks/cost_of_many.py: it reckons as the program does, and fits every screen."""

import itertools
import json

import pytest

from tests.test_browser import CUT_OFF, chromium, luminances, opened, screenshot  # noqa: F401
from tests.test_docs import ROOT, load

COSTS = {"wall": 0.031, "cpu": 0.047, "bytes_in": 31_234.5, "bytes_out": 28_911, "largest": "run"}
GIVEN = {"faces": 2.5e6, "machines": 7, "cores": 12, "workers": 12, "price": 0.7, "storage": 0.03}
GIVEN |= {"read": 600, "write": 250}


@pytest.fixture(scope="module")
def program():
    pytest.importorskip("pyarrow")
    return load(ROOT / "benchmarks/cost_of_many.py")


@pytest.fixture(scope="module")
def page_file(program, tmp_path_factory):
    steps = {"read and decode": [0.001, 0.001], "run": [0.02, 0.02], "paste": [0.004, 0.007]}
    about = {"job": "photos", "dtype": "int8", "side": 128, "processor": "A processor of a long name (avx2)"}
    about |= {"processors": 2, "given": False, "rest": 0.019, "steps": steps}
    rates = {"faces": 2500, "measured": 30.1, "whole": 25.0, "reckoned": 32.3}
    checked = [{"workers": n, **{name: n * rate for name, rate in rates.items()}} for n in (1, 2, 4)]
    return program.write_page(tmp_path_factory.mktemp("cost") / "cost.html", COSTS | about, checked)


def test_what_is_reckoned(program):
    """By hand: 84 cores / 0.047 s are 1787.2 faces/s, and 600 MB/s hold 19,209."""
    made = program.reckon(COSTS, GIVEN)
    assert made["limit"] == "processor" and made["rate"] == pytest.approx(84 / 0.047)
    assert made["hours"] == pytest.approx(2.5e6 * 0.047 / 84 / 3600)
    assert made["money_storage"] == pytest.approx(2.5e6 * 60_145.5 / 1e9 * 0.03)
    assert made["money"] - made["money_storage"] == pytest.approx(made["hours"] * 7 * 0.7)
    assert made["saturated"] == pytest.approx(250e6 / 28_911 / (12 / 0.047))
    assert program.reckon(COSTS | {"largest": "read and decode"}, GIVEN)["limit"] == "decode"
    assert program.reckon(COSTS | {"wall": 0.2}, GIVEN)["limit"] == "waiting"
    assert program.reckon(COSTS, GIVEN | {"read": 1})["limit"] == "read"
    assert program.reckon(COSTS, GIVEN | {"write": 1})["rate"] == pytest.approx(1e6 / 28_911)
    few, many = (program.reckon(COSTS, GIVEN | {"machines": n}) for n in (1000, 2000))
    assert few["limit"] == many["limit"] == "write" and few["hours"] == many["hours"]


def test_a_steady_rate_needs_faces_enough(program, tmp_path):
    rates = program.Rates(tmp_path, 100, workers=1)
    rates.stop()
    for seen in ([], [(1.0, 0, 0.0), (2.0, 1, 0.0)], [(1.0, 1, 0.0), (2.0, 2, 0.0)]):
        rates.seen = seen
        with pytest.raises(ValueError, match="100 faces were . parts .* more faces"):
            rates.steady()
    rates.seen = [(10.0, 2, 0.0), (20.0, 4, 0.0), (30.0, 9, 0.0), (31.0, 10, 0.0)]
    assert rates.steady() == pytest.approx(7 * 10 / 20), "ten faces a part"


def test_the_page_reckons_as_the_program_does(program, page_file, opened):  # noqa: F811
    page, faults = opened(1280, "light", "file:")
    page.goto(page_file.as_uri())
    seen = set()
    for largest, wall, machines, (read, write) in itertools.product(
        ("run", "read and decode"), (0.031, 0.2), (1, 7, 3000), ((600, 250), (0.5, 250), (600, 0.5))
    ):
        costs = COSTS | {"largest": largest, "wall": wall}
        given = GIVEN | {"machines": machines, "read": read, "write": write}
        made = page.evaluate(f"reckon({json.dumps(costs)}, {json.dumps(given)})")
        assert made == program.reckon(costs, given), "to the last bit"
        seen.add(made["limit"])
    assert seen == {"waiting", "processor", "decode", "read", "write"}
    assert faults == []


def test_what_is_entered_is_what_is_shown(program, page_file, opened):  # noqa: F811
    page, faults = opened(390, "dark", "file:")
    page.goto(page_file.as_uri())
    for name, value in GIVEN.items():
        if name != "workers":
            page.locator(f"[name={name}]").fill(str(value))
    assert page.evaluate("entered()") == GIVEN
    made, text = program.reckon(COSTS, GIVEN), page.locator("output").inner_text()
    assert f"{60 * made['hours']:.1f} min" in text and f"{made['money']:.2f}" in text
    rows = page.locator("#more tbody tr")
    assert page.locator("#more tr.entered td").first.inner_text() == "7"
    assert rows.last.inner_text().endswith("write"), "it goes on until the storage is saturated"
    page.locator("[name=cores]").fill("")
    assert "Enter positive numbers" in page.locator("output").inner_text() and rows.count() == 0
    assert faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_whole_on_every_screen(page_file, opened, width, scheme):  # noqa: F811
    page, faults = opened(width, scheme, "file:")
    page.goto(page_file.as_uri())
    sides = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert sides[0] <= sides[1] and page.evaluate(CUT_OFF) == []
    ground, text = luminances(page)
    assert (ground - text > 0.6) if scheme == "light" else (text - ground > 0.6)
    screenshot(page, f"cost_of_many-{width}-{scheme}", full_page=True)
    assert faults == []
