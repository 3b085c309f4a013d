"""Bad settings: YAML that grows or lies, values that are none, numbers that nothing could hold."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from gpenlib.data.faces import embedded_faces, open_faces, open_folder, prior_faces
from gpenlib.images import write_image
from gpenlib.notebooks import main as run_notebooks
from gpenlib.run import Run
from gpenlib.settings import RunSettings, parse_overrides, read_yaml
from gpenlib.train.config import TrainSettings
from tests.bad_inputs.harness import Case, check

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


def yaml_file(text, name="bad.yaml"):
    def make(folder):
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def read(path, out):
    return RunSettings.from_yaml(path)


def notebooks(path, out, *words):
    """Run the command that reads parameters; what it prints is raised."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        assert run_notebooks(["--params", str(path), *words]) == 1
    raise ValueError(told.getvalue().strip())


def of_yaml(name, text, *says, call=read):
    return Case(name, yaml_file(text), call, ("bad.yaml", *says))


def of_values(name, values, *says, kind=RunSettings, **more):
    return Case(
        name, lambda folder: None, lambda made, out: kind.parse(values), says, "SettingsError", **more
    )


def pipe(folder):
    os.mkfifo(folder / "bad.yaml")
    return folder / "bad.yaml"


def three_faces(folder):
    for index, face in enumerate(map(embedded_faces(3, 16).read, range(3))):
        write_image(folder / f"{index}.png", face)
    return folder


def split(dataset_size, calib_size=1):
    def call(folder, out):
        run = Run.of({"data_dir": str(folder), "dataset_size": dataset_size, "calib_size": calib_size})
        return run.split

    return call


def nothing(folder):
    return folder


def deep(levels):
    values = []
    for _ in range(levels):
        values = [values]
    return values


def record(number, name, file):
    def call(made, out):
        return Run.of({"weights": "tiny-random"}).record(name, **{file: {}})

    return Case(f"record {number}", nothing, call, ("record", "plain name"), "SettingsError")


def faces_of(name, data_dir, count):
    says = ("count=", "200000", "lower dataset_size")
    return Case(name, nothing, lambda made, out: open_faces(data_dir, count), says, "DataError")


CASES = [
    # YAML that costs more than it looks
    of_yaml("no letter", 'run: "\\UFFFFFFFF"\n', "not YAML"),
    of_yaml("laughs", LAUGHS, "line", "values, counting aliases"),
    of_yaml("merged laughs", LAUGHS.replace("[", "{k: [").replace("]", "]}"), "counting aliases"),
    of_yaml("alias of itself", "run: &a [*a]\n", "line 1", "alias"),
    of_yaml("deep lists", "run: " + "[" * 5000 + "]" * 5000, "line 1", "deep"),
    of_yaml("deep mappings", "".join(" " * n + "a:\n" for n in range(500)), "deep"),
    of_yaml("many values", "runs: [" + "a, " * 100_000 + "a]", "more than 10000 values"),
    of_yaml("large file", "# " + "x" * (2 << 20) + "\nrun: a\n", "larger than the 1 MiB"),
    of_yaml("many unknown keys", "".join(f"key{n}: 1\n" for n in range(4000)), "unknown key 'key0'", "more"),
    of_yaml("long value", f"dtype: {'x' * 500_000}\n", "dtype='xxx", "'fp32'"),
    of_yaml("long key", f"{'x' * 900}: 1\n", "unknown key", "allowed"),
    of_yaml("long digits", f"dataset_size: {'9' * 100_000}\n", "line 1", "number"),
    # YAML that reads as something else than it looks
    of_yaml("key twice", "run: a\nweights: b\nrun: c\n", "line 3", "'run'", "twice", "remove one"),
    of_yaml("python tag", "run: !!python/object/apply:os.system ['true']\n", "python", "plain values"),
    of_yaml("binary tag", "run: !!binary aGVsbG8=\n", "binary", "plain values"),
    of_yaml("set", "run: !!set {a, b}\n", "set", "plain values"),
    of_yaml("octal", "run: 010\n", "line 1", "'010'", "quotes"),
    of_yaml("sexagesimal", "dataset_size: 1:30\n", "'1:30'", "quotes"),
    of_yaml("hexadecimal", "seed: 0x10\n", "'0x10'", "quotes"),
    of_yaml("number as key", "1: a\n", "key '1'", "quotes"),
    of_yaml("truth as key", "on: a\n", "key 'on'", "quotes"),
    of_yaml("list as key", "? [a]\n: b\n", "key 'sequence'", "quotes"),
    of_yaml("merge of a number", "<<: 5\nrun: a\n", "line 1"),
    of_yaml("two documents", "run: a\n---\nrun: b\n", "line 2", "document"),
    of_yaml("NUL", 'run: "a\\0b"\n', "line 1", "text"),
    of_yaml("control character", b"run: a\x07\n", "not YAML"),
    of_yaml("UTF-16", "run: a\n".encode("utf-16"), "UTF-8"),
    of_yaml("infinite", "max_drop_db: .inf\n", "max_drop_db=inf", "finite"),
    of_yaml("not a number", "max_drop_db: .nan\n", "max_drop_db=nan", "finite"),
    of_yaml("a list at the top", "- run\n", "mapping of keys"),
    # What is no file of text
    Case("pipe", pipe, read, ("bad.yaml", "no regular file"), "SettingsError"),
    Case("device", nothing, lambda made, out: read_yaml(Path("/dev/zero")), ("/dev/zero", "no regular file")),
    Case("folder", nothing, lambda made, out: read_yaml(made), ("given", "no regular file")),
    Case("long path", nothing, lambda made, out: RunSettings.from_yaml("x" * 5000), ("xxx", "shorten")),
    Case("pipe of parameters", pipe, notebooks, ("bad.yaml", "no regular file")),
    Case(
        "override that grows",
        nothing,
        lambda made, out: parse_overrides(["runs=" + "[" * 5000 + "]" * 5000]),
        ("runs=[", "deep"),
        "SettingsError",
    ),
    Case("parameter that grows", yaml_file("run: a\n"),
         lambda path, out: notebooks(path, out, "-p", "runs", "[" * 30 + "]" * 30), ("runs=", "deep")),
    Case("parameter that is a mapping", yaml_file("run: {" + ", ".join(f"k{n}: 1" for n in range(999)) + "}"),
         notebooks, ("'run'", "mapping", "plain values")),
    # Values and names; tests/test_settings.py has more
    of_values("truths in a list", {"perf_threads": [1, True]}, "perf_threads=[1, True]", "true and false"),
    of_values("thousands of digits", {"worst": 10**5000}, "worst=", "digits"),
    of_values("deep values", {"dtypes": deep(3000)}, "too deep", "plain values"),
    of_values("name of a training", {"train": "...yaml"}, "train", "plain folder name", kind=TrainSettings),
    *(record(number, *words) for number, words in enumerate((("..", "a"), ("/tmp/a", "a"), ("a", "../b")))),
    # Numbers against what is there
    Case("a billion of three faces", three_faces, split(10**9), ("dataset_size=1000000000", "ask for 3")),
    Case("1e30 of three faces", three_faces, split(10**30), ("there are 3 images", "ask for 3")),
    Case("a billion to calibrate", three_faces, split(3, 10**9), ("count=1000000000", "lower", "calib_size")),
    faces_of("a billion of the default faces", "", 10**9),
    faces_of("a billion of a prior", "prior", 10**9),
    faces_of("a billion of embedded faces", "embedded", 10**9),
    Case("faces by a truth", nothing, lambda made, out: prior_faces("demo-prior", True), ("count=True",)),
    Case("split by nan", three_faces, lambda made, out: open_folder(made).split(float("nan"), 0),
         ("dataset_size=nan", "whole number")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_ends_in_one_clear_error(case, tmp_path):
    check(case, __file__, tmp_path)
