"""Settings: frozen, nothing unknown, errors in plain words."""

from typing import Literal

import numpy as np
import pytest
from pydantic import Field, ValidationError

from gpenlib.settings import (
    BuildConfig,
    PhotoSettings,
    RunSettings,
    Settings,
    SettingsError,
    parse_overrides,
    read_yaml,
    set_dotted,
)
from gpenlib.train.config import TrainConfig, TrainSettings


class Backend(Settings):
    dtype: Literal["fp32", "int8"] = "fp32"
    threads: int | None = None


class Build(Settings):
    name: str
    rate: float = Field(1e-3, gt=0)
    backend: Backend = Backend()
    fallback: Backend | None = None


def test_values_defaults_and_numbers_given_as_text():
    build = Build.parse({"name": "a", "rate": "1e-2", "backend": {"dtype": "int8"}})
    assert build == Build(name="a", rate=0.01, backend=Backend(dtype="int8"))
    assert build.backend.threads is None


def test_settings_are_frozen():
    build = Build(name="a")
    with pytest.raises(ValidationError, match="frozen"):
        build.rate = 2.0


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, ["missing key 'name'"]),
        ({"name": "a", "ratee": 1}, ["unknown key 'ratee'", "did you mean 'rate'?", "allowed: name, rate"]),
        (
            {"name": "a", "backend": {"dtyp": "int8"}},
            ["unknown key 'backend.dtyp'", "did you mean 'dtype'?", "allowed: dtype, threads"],
        ),
        (
            {"name": "a", "fallback": {"thread": 1}},
            ["unknown key 'fallback.thread'", "did you mean 'threads'?"],
        ),
        ({"name": "a", "backend": {"dtype": "int3"}}, ["backend.dtype='int3'", "'fp32' or 'int8'"]),
        ({"name": "a", "rate": "fast"}, ["rate='fast'", "number"]),
        ({"name": "a", "rate": 0}, ["rate=0", "greater than 0"]),
        ({"rate": -1, "colour": "red"}, ["missing key 'name'", "rate=-1", "unknown key 'colour'"]),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(values, parts):
    with pytest.raises(SettingsError) as refusal:
        Build.parse(values, source="build.yaml")
    message = str(refusal.value)
    assert message.startswith("build.yaml: ")
    assert [part for part in parts if part not in message] == []


def test_yaml_with_overrides(tmp_path):
    path = tmp_path / "build.yaml"
    path.write_text("name: a\nrate: 1e-2\nbackend:\n  dtype: fp32\n", encoding="utf-8")
    build = Build.from_yaml(path, {"backend.dtype": "int8", "fallback.threads": 2})
    assert build.rate == 0.01
    assert build.backend.dtype == "int8"
    assert build.fallback == Backend(threads=2)
    with pytest.raises(SettingsError, match=r"build\.yaml: .*backend\.dtype='int4'"):
        Build.from_yaml(path, {"backend.dtype": "int4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "expected a mapping"), ("", "expected a mapping"), ("a: [1,\n", "not YAML")],
)
def test_unusable_yaml(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        read_yaml(path)


def test_absent_yaml(tmp_path):
    with pytest.raises(SettingsError, match=r"absent\.yaml: no such file"):
        Build.from_yaml(tmp_path / "absent.yaml")


def test_dotted_key_through_a_plain_value():
    with pytest.raises(SettingsError, match="name is not a mapping"):
        set_dotted({"name": "a"}, "name.first", 1)


def test_overrides_are_read_as_yaml():
    words = ["a=1", "b=true", "c=text", "d=", "e=[1, 2]", "f=x=y"]
    assert parse_overrides(words) == {"a": 1, "b": True, "c": "text", "d": None, "e": [1, 2], "f": "x=y"}


@pytest.mark.parametrize("word", ["dtype", "=int8"])
def test_override_without_key_or_equals(word):
    with pytest.raises(SettingsError, match="expected key=value"):
        parse_overrides([word])


TRAIN = {"stage": "prior", "data_dir": "faces", "run_dir": "out", "steps": 1}
LONG = "é" * 101


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        *((RunSettings, {name: True}, f"{name}=True: true and false are no value") for name in (
            "dataset_size", "seed", "batch_size", "healed", "max_drop_db", "size", "run", "perf_batch")),
        (RunSettings, {"perf_batch": (1, True)}, "perf_batch=(1, True): true and false"),
        (BuildConfig, {"backend": {"quantize": {"percentile": True}}}, "percentile=True: true and false"),
        (BuildConfig, {"backend": {"compile": {"output_ddr": [True]}}}, "output_ddr=[True]: true and false"),
        (BuildConfig, {"frontend": {"shape": {"input": [True, 3]}}}, "true and false"),
        (BuildConfig, {"frontend": {"shape": {"input": [-1, 3]}}}, "shape.input.0=-1"),
        (TrainConfig, TRAIN | {"steps": True}, "steps=True: true and false"),
        (TrainConfig, TRAIN | {"jitter": {"contrast": [True, 1]}}, "contrast=[True, 1]: true and false"),
        (TrainSettings, {"steps": False}, "steps=False: true and false"),
        *((RunSettings, {name: value}, f"{name}={value!r}: should be ") for name, value in (
            ("healed", -1), ("healed", 10**9), ("batch_size", 10**9), ("repeats", 10**30), ("seed", 10**30),
            ("perf_repeats", -1), ("seed", -1), ("worst", 10**9), ("layer_faces", 0), ("choice_faces", "nan"),
            ("dataset_size", 0), ("dataset_size", 1e30), ("max_drop_db", "inf"))),
        (RunSettings, {"size": 100}, "size=100: in_size=100: must be a power of two"),
        (RunSettings, {"perf_threads": 10**6}, "perf_threads.0=1000000: should be less"),
        (RunSettings, {"perf_threads": "-1"}, "perf_threads.0='-1': should be greater"),
        (RunSettings, {"perf_instances": 10**6}, "perf_instances.0=1000000: should be less"),
        (TrainConfig, TRAIN | {"narrow": 1e30}, "narrow=1e+30"),
        (TrainConfig, TRAIN | {"size": 100}, "size=100: must be a power of two"),
        (TrainConfig, TRAIN | {"workers": 10**6}, "workers=1000000"),
        *((RunSettings, {"run": name}, "plain folder name") for name in (
            "..", "/tmp/a", "a/b", ".a", "", "a\0b", "a\nb", LONG)),
        *((BuildConfig, {"name": name}, "plain folder name") for name in ("..", "/tmp/a", "a/b", LONG)),
        (RunSettings, {"weights": {"a": 1}}, "weights={'a': 1}: should be a valid string"),
        (PhotoSettings, {"weights": [1, [2]]}, "weights=[1, [2]]: name one, or several with commas"),
        (RunSettings, {"seed": np.bool_(True)}, "true and false"),
        (RunSettings, {"runs": "a,../b"}, "runs.1='../b': must be a plain folder name"),
    ],
)  # fmt: skip
def test_what_is_no_value_is_refused_in_one_line(kind, values, says):
    with pytest.raises(SettingsError) as refusal:
        kind.parse(values)
    assert says in str(refusal.value) and len(str(refusal.value)) < 600


def test_plain_yaml_keeps_aliases_merges_and_words(tmp_path):
    text = "a: &a {x: 1, y: 0}\nb: {<<: *a, y: -2}\nrun: 2024-01-02\nc: [1.5, 1e-3, .5, ~, yes, '010', =]\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8-sig")
    content = read_yaml(tmp_path / "x.yaml")
    assert content["b"] == {"x": 1, "y": -2} and content["run"] == "2024-01-02"
    assert content["c"] == [1.5, "1e-3", 0.5, None, True, "010", "="]
