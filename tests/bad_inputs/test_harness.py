"""The harness finds every way in which a bad input can do harm, and lets one clear error pass."""

import importlib
import time
from pathlib import Path

import numpy as np
import pytest

from tests.bad_inputs.harness import Case, check
from tests.processes import PRELOADED


def make(folder):
    path = folder / "bad.txt"
    path.write_text("bad")
    return path


def refuse(path, out):
    raise ValueError(f"{path}: bad; write it anew")


def wander(path, out):
    path.with_name("other.txt").write_text("there")
    refuse(path, out)


def replace(path, out):
    path.write_text("good")
    refuse(path, out)


def leave_results(path, out):
    (out / "run/04_infer").mkdir(parents=True)
    (out / "run/04_infer/manifest.json").write_text("{}")
    refuse(path, out)


def take_memory(path, out):
    assert np.ones(300_000_000).all()
    refuse(path, out)


def take_time(path, out):
    time.sleep(3600)


def blunder(path, out):
    return {}["no such key"]


def die(path, out):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def talk(path, out):
    raise ValueError(f"{path}: try weights_only=False")


CASES = [
    Case(call.__name__, make, call, ("bad.txt", "anew"))
    for call in (wander, replace, leave_results, take_memory, take_time, blunder, die, talk)
]
GOOD = Case("good", make, refuse, ("bad.txt", "anew"))
SILENT = Case("silent", make, lambda path, out: 1, ())
CASES += [GOOD, SILENT]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("wander", "changed outside"),
        ("replace", "changed outside"),
        ("leave_results", "for valid"),
        ("take_memory", "GiB"),
        ("take_time", "no answer"),
        ("blunder", "KeyError"),
        ("die", "died"),
        ("talk", "weights_only"),
        ("silent", "no error"),
    ],
)
def test_what_a_bad_input_does_is_found_out(name, fault, tmp_path, monkeypatch):
    if name == "take_time":
        monkeypatch.setattr("tests.bad_inputs.harness.SECONDS", 4)
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(AssertionError, match=fault):
        check(case, __file__, tmp_path)


def test_there_are_many_and_each_has_a_name_of_its_own():
    counts = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.bad_inputs.{path.stem}")
        names = [case.name for case in module.CASES]
        assert len(names) == len(set(names)), path.name
        counts[path.name] = len(names)
    assert sum(counts.values()) >= 300, counts


def test_one_clear_error_passes(tmp_path):
    check(GOOD, __file__, tmp_path)


def test_a_process_imports_nothing_anew(tmp_path):
    """Else hundreds of inputs take minutes more."""
    for name in PRELOADED:
        importlib.import_module(name)
    module = importlib.import_module("tests.bad_inputs.test_settings")
    check(module.CASES[0], module.__file__, tmp_path / "first")
    started = time.monotonic()
    check(module.CASES[0], module.__file__, tmp_path / "second")
    assert time.monotonic() - started < 2
