"""Run folders and manifests: what stands is reused, what changed is found out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gpenlib import files as run
from gpenlib.files import (
    choice_error,
    fingerprint,
    nearest,
    repository_root,
    resolve_path,
    sha256,
    valid_manifest,
    write_atomically,
    write_json,
    write_manifest,
)

SETTINGS = {"dtype": "int8", "size": 64, "folder": Path("a/b")}
INPUTS = {"weights": "0" * 64}


@pytest.fixture
def stage(tmp_path):
    folder = tmp_path / "03_compile"
    write_json(folder / "model" / "graph.json", {"nodes": 3})
    (folder / "rows.csv").write_text("a,b\n", encoding="utf-8")
    write_manifest(folder, "03_compile", SETTINGS, INPUTS, {"psnr": np.float32(24.5)})
    return folder


def test_manifest_records_the_stage(stage):
    manifest = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["stage"] == "03_compile"
    assert manifest["settings"] == {"dtype": "int8", "size": 64, "folder": "a/b"}
    assert manifest["metrics"] == {"psnr": 24.5}
    assert manifest["outputs"] == {name: sha256(stage / name) for name in ("model/graph.json", "rows.csv")}
    assert manifest["packages"]["torch"] and manifest["packages"]["numpy"]


def test_same_work_is_recognised(stage):
    manifest, reason = valid_manifest(stage, SETTINGS, INPUTS)
    assert reason == ""
    assert manifest["outputs"].keys() == {"model/graph.json", "rows.csv"}


def test_nothing_there_is_no_reason_to_complain(tmp_path):
    assert valid_manifest(tmp_path / "absent", SETTINGS, INPUTS) == (None, "")
    (tmp_path / "empty").mkdir()
    assert valid_manifest(tmp_path / "empty", SETTINGS, INPUTS) == (None, "")


def changed_output(stage):
    (stage / "rows.csv").write_text("a,c\n", encoding="utf-8")


def removed_output(stage):
    (stage / "model" / "graph.json").unlink()


def removed_manifest(stage):
    (stage / "manifest.json").unlink()


def truncated_manifest(stage):
    text = (stage / "manifest.json").read_text(encoding="utf-8")
    (stage / "manifest.json").write_text(text[:100], encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (changed_output, "rows.csv is missing or changed"),
        (removed_output, "model/graph.json is missing or changed"),
        (removed_manifest, "half-written (no manifest)"),
        (truncated_manifest, "manifest is not JSON"),
    ],
)
def test_damage_is_found(stage, damage, reason):
    damage(stage)
    assert valid_manifest(stage, SETTINGS, INPUTS) == (None, reason)


def test_changed_settings_inputs_and_packages_are_found(stage, monkeypatch):
    assert valid_manifest(stage, SETTINGS | {"dtype": "fp16"}, INPUTS) == (None, "settings changed")
    assert valid_manifest(stage, SETTINGS | {"extra": 1}, INPUTS) == (None, "settings changed")
    assert valid_manifest(stage, SETTINGS, {"weights": "1" * 64}) == (None, "inputs changed")
    monkeypatch.setattr(run, "package_versions", lambda: {"torch": "0"})
    assert valid_manifest(stage, SETTINGS, INPUTS) == (None, "packages changed")


def test_rewriting_does_not_list_the_manifest_itself(stage):
    manifest = write_manifest(stage, "03_compile", SETTINGS, INPUTS, {})
    assert "manifest.json" not in manifest["outputs"]
    assert valid_manifest(stage, SETTINGS, INPUTS)[1] == ""


def test_atomic_write_replaces_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with write_atomically(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == path.parent
        temporary.write_text("new", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "new"
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_what_json_has_not(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"psnr": value})
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="object does not go into JSON"):
        write_json(tmp_path / "x.json", {"a": object()})


def test_fingerprint_is_about_content_not_order():
    assert fingerprint({"a": 1, "b": Path("x")}) == fingerprint({"b": "x", "a": np.int64(1)})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 16


def test_paths_are_resolved_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = repository_root()
    assert (root / "gpenlib" / "run.py").is_file()
    assert resolve_path("params/demo.yaml") == root / "params" / "demo.yaml"
    assert resolve_path(tmp_path) == tmp_path


def test_messages_name_the_nearest():
    assert nearest("int9", ["fp32", "int8", "bf16"])[0] == "int8"
    message = choice_error("dtype", "int9", ["fp32", "int8"])
    assert message == "dtype='int9': allowed are fp32, int8 (did you mean 'int8'?)"
    assert "did you mean" not in choice_error("dtype", "zzzz", ["fp32", "int8"])
