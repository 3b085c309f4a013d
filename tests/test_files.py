"""Files: written whole or not at all, by the user's own umask; digests, messages, paths, progress."""

import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpenlib.files import (
    choice_error,
    fingerprint,
    from_root,
    nearest,
    repository_root,
    resolve_path,
    write_atomically,
    write_csv,
    write_json,
)


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


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_files_get_the_rights_of_the_users_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "x.json", {})
        with write_atomically(tmp_path / "x.safetensors") as temporary:  # makes a file of mode 600
            save_file({"x": np.zeros(1)}, temporary)
    finally:
        os.umask(before)
    for name in ("x.json", "x.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_names_as_long_as_the_system_allows(tmp_path):
    assert write_json(tmp_path / ("x" * 250 + ".json"), 1).is_file()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_what_json_has_not(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"psnr": value})
    assert list(tmp_path.iterdir()) == []


def test_json_takes_numpy_and_paths_and_refuses_objects(tmp_path):
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": Path("c/d")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 0.5, "b": "c/d"}
    with pytest.raises(TypeError, match="object"):
        write_json(tmp_path / "y.json", {"a": object()})


def test_csv_leaves_the_field_of_none_empty(tmp_path):
    write_csv(tmp_path / "x.csv", [{"a": 1, "b": None}, {"a": 2, "b": "c"}])
    assert (tmp_path / "x.csv").read_text().split() == ["a,b", "1,", "2,c"]


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
    assert from_root(root / "outputs" / "a") == "outputs/a" and from_root(tmp_path) == str(tmp_path)


def test_messages_name_the_nearest():
    assert nearest("int9", ["fp32", "int8", "bf16"])[0] == "int8"
    message = choice_error("dtype", "int9", ["fp32", "int8"])
    assert message == "dtype='int9': allowed are fp32, int8 (did you mean 'int8'?)"
    assert "did you mean" not in choice_error("dtype", "zzzz", ["fp32", "int8"])
