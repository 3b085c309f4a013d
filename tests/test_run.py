"""Runs: what stands is reused, what changed is found out, and nothing of the user's is ever removed."""

import ast
import inspect
import json
import logging
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from gpenlib import run as run_module
from gpenlib import stages as stages_module
from gpenlib.files import repository_root, sha256, write_json
from gpenlib.run import Run
from gpenlib.settings import RunSettings, SettingsError
from gpenlib.stages import MANIFEST, StageError, code_digest, seal, stage


class Toy(Run):
    """Two small stages, the second built from the first."""

    waiting = threading.Event()
    entered = threading.Event()

    @stage("one", "size")
    def one(self, work):
        (work.folder / "deep").mkdir()
        (work.folder / "deep" / "size.txt").write_text(str(work.settings.size))
        (work.folder / "same.txt").write_text("same")
        return {"size": work.settings.size}

    @stage("two/{dtype}", "dtype", uses=lambda run: {"one": run.one()})
    def two(self, work):
        text = (Path(work.used["one"]["folder"]) / "deep" / "size.txt").read_text()
        if self.settings.worst == 99:  # only the test of two processes asks for it
            self.entered.set()
            assert self.waiting.wait(30)
        (work.folder / "two.txt").write_text(f"{work.settings.dtype} of {text}")
        return {"read": text}

    @stage("greedy", "size")
    def greedy(self, work):
        return {"seed": work.settings.seed}


def toy(**changes):
    return Toy(RunSettings.parse({"run": "toy", "weights": "tiny-random"} | changes))


@pytest.fixture
def one(outputs_root):
    """Folder of a built first stage."""
    assert toy().one()["built"]
    return outputs_root / "toy/one"


# Keys


def test_a_stage_is_built_once_and_records_what_it_is(one):
    again = toy().one()
    assert again["built"] is False and again["folder"] == again["where"] == str(one)
    assert (again["stage"], again["metrics"]) == ("one", {"size": 512})
    assert set(again["outputs"]) == {"deep/size.txt", "same.txt"}
    assert again["packages"]["torch"] and again["settings"] == {"size": 512}


def test_a_declared_setting_decides_and_another_does_not(one, caplog):
    assert toy(seed=7).one()["built"] is False
    with caplog.at_level(logging.WARNING, "gpenlib.run"):
        assert toy(size=256).one()["metrics"] == {"size": 256}
    assert "built anew: settings changed" in caplog.text


def test_a_setting_that_is_not_declared_cannot_be_read(outputs_root):
    with pytest.raises(AttributeError, match="seed"):
        toy().greedy()
    assert not (outputs_root / "toy/greedy").exists()


def test_no_stage_reads_settings_past_its_key():
    """Stages see their declared settings as ``work.settings``; ``self.settings`` would go past the key."""
    tree = ast.parse(inspect.getsource(run_module))
    stages = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and any("stage(" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert len(stages) >= 10
    assert [node.name for node in stages if "self.settings" in ast.unparse(node)] == []


def test_what_a_stage_uses_is_part_of_its_key(one, outputs_root):
    assert toy().two("int8")["metrics"] == {"read": "512"}
    assert toy().two("int8")["built"] is False
    changed = toy(size=64).two("int8")
    assert changed["built"] and changed["metrics"] == {"read": "64"}
    assert (outputs_root / "toy/two/int8/two.txt").read_text() == "int8 of 64"


@pytest.mark.parametrize("what", ["package_versions", "code_digest"])
def test_another_version_builds_anew(one, monkeypatch, what):
    monkeypatch.setattr(stages_module, what, lambda *_: {"torch": "0"})
    assert toy().one()["built"]


def test_code_counts_and_its_comments_do_not(tmp_path, monkeypatch):
    package = tmp_path / "gpenlib"
    package.mkdir()
    monkeypatch.setattr(stages_module, "__file__", str(package / "run.py"))

    def digest(source):
        (package / "data.py").write_text(source)
        code_digest.cache_clear()
        return code_digest(("data",))

    first = digest('"""Doc."""\n\ndef f(x):\n    """Say."""\n    return x + 1\n')
    assert digest("def f(x):\n    # why\n    return (x + 1)\n") == first
    assert digest("def f(x):\n    return x + 2\n") != first
    code_digest.cache_clear()


def test_in_one_process_each_file_is_hashed_once(one, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        stages_module, "sha256", lambda path, real=stages_module.sha256: hashed.append(path) or real(path)
    )
    run = toy()
    for _ in range(3):
        run.one()
        run.with_(dtype="bf16").one()
    assert sorted(path.name for path in hashed) == ["same.txt", "size.txt"]


# Damage


def write(text):
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


def edit(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        write("null"), write("[]"), write("{"), write(b"\xff\xfe\x00"), write('"text"'), write("[" * 100_000),
        edit(outputs=["deep/size.txt"]), edit(outputs=None), edit(outputs={}), edit(metrics={"size": 9}),
        edit(stage=7), Path.unlink,
    ],
)  # fmt: skip
def test_a_manifest_of_any_form_is_built_anew(one, damage):
    damage(one / MANIFEST)
    manifest = toy().one()
    assert manifest["built"] and manifest["metrics"] == {"size": 512}
    assert toy().one()["built"] is False


@pytest.mark.parametrize("damage", [write("changed"), Path.unlink])
def test_a_damaged_output_is_built_anew_and_named(one, damage, caplog):
    damage(one / "same.txt")
    with caplog.at_level(logging.WARNING, "gpenlib.run"):
        assert toy().one()["built"]
    assert "same.txt is missing or changed" in caplog.text
    assert (one / "same.txt").read_text() == "same"


def test_what_no_manifest_lists_is_kept(one):
    """A folder whose manifest is gone may hold anything: it is moved aside."""
    (one / MANIFEST).unlink()
    (one / "notes.txt").write_text("mine")
    assert toy().one()["built"]
    assert (one.with_name("one.kept-1") / "notes.txt").read_text() == "mine"
    assert not (one / "notes.txt").exists()


def test_an_interrupted_build_leaves_what_stood(one, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = {path: path.read_bytes() for path in one.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            toy(size=64).one()
    assert {path: path.read_bytes() for path in one.rglob("*") if path.is_file()} == before
    assert toy().one()["built"] is False
    assert [path.name for path in one.parent.iterdir() if "building" in path.name] == []


def test_what_a_killed_process_left_is_cleared(one):
    left = one.parent / ".one-building-0badcafe"
    left.mkdir()
    (left / "half").write_text("")
    toy(size=64).one()
    assert not left.exists()


# What belongs to the user


def test_a_foreign_file_in_a_stage_folder_stops_the_build(one):
    (one / "deep" / "mine.png").write_text("mine")
    with pytest.raises(StageError, match="mine.png"):
        toy(size=64).one()
    assert (one / "deep" / "mine.png").read_text() == "mine"
    assert (one / "deep" / "size.txt").read_text() == "512"
    assert toy().one()["built"] is False


def test_a_link_in_a_stage_folder_is_foreign_and_its_target_stays(one, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "1.png").write_text("mine")
    (one / "faces").symlink_to(tmp_path / "faces")
    with pytest.raises(StageError, match="faces"):
        toy(size=64).one()
    assert (tmp_path / "faces" / "1.png").read_text() == "mine"


def test_copied_results_in_a_stage_folder_are_the_users(one):
    """``cp -r`` of a stage brings its manifest along: the copy is still nobody's but the user's."""
    toy().two("fp32"), toy().two("int8")
    two = one.with_name("two")
    shutil.copytree(two / "fp32", two / "int8" / "fp32")
    with pytest.raises(StageError, match="fp32/two.txt"):
        toy(size=64).two("int8")
    assert (two / "int8" / "fp32" / "two.txt").read_text() == "fp32 of 512"


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_lies_in_the_place_of_a_stage_folder_stays(one, tmp_path, what):
    moved = one.rename(tmp_path / "elsewhere")
    one.symlink_to(moved) if what == "link" else one.write_text("mine")
    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    with pytest.raises(StageError, match=f"is a {what}"):
        toy(size=64).one()
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    assert [path.name for path in one.parent.iterdir() if path.name != ".locks"] == ["one"]
    assert one.is_symlink() if what == "link" else one.read_text() == "mine"


def test_a_record_lies_in_the_run_and_leaves_other_stages(one):
    for name in ("../escaped", "", ".", str(one)):
        with pytest.raises(SettingsError, match="record"):
            toy().record(name, results={})
    toy().two("int8")
    toy().record("two", results={"a": 1})
    assert (one.with_name("two.kept-1") / "int8" / "two.txt").read_text() == "int8 of 512"


def test_a_changed_manifest_is_not_handed_to_the_next(one):
    run = toy()
    run.one()["metrics"]["size"] = -1
    run.one()["metrics"]["size"] = -1
    assert run.one()["metrics"] == {"size": 512}


def test_litter_of_file_managers_does_not_stop_a_build(one):
    (one / ".DS_Store").write_text("")
    (one / "Thumbs.db").mkdir()
    assert toy(size=64).one()["built"]
    assert sorted(path.name for path in one.parent.iterdir()) == [".locks", "one"]


def test_a_manifest_cannot_name_files_elsewhere(one):
    (one.parent / "mine.txt").write_text("mine")
    edit(outputs={"../mine.txt": "0" * 64, "deep/size.txt": "", "same.txt": ""})(one / MANIFEST)
    assert toy().one()["built"]
    assert (one.parent / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../mine.txt", "{}/mine.txt", "a\0b", ".", "deep"])
def test_a_sealed_manifest_cannot_either(one, name):
    mine = one.parent / "mine.txt"
    mine.write_text("mine")
    manifest = json.loads((one / MANIFEST).read_text())
    manifest["outputs"][name.format(one.parent)] = sha256(mine)
    (one / MANIFEST).write_text(json.dumps(manifest | {"digest": seal(manifest)}))
    assert toy(size=64).one()["built"]
    assert mine.read_text() == "mine"


def test_stages_of_an_older_version_inside_another_are_ours(one):
    """05_errors once held 05_errors/layers, with a manifest of its own."""
    inner = one / "layers"
    inner.mkdir()
    (inner / "layers.json").write_text("{}")
    (inner / MANIFEST).write_text(json.dumps({"stage": "one/layers", "outputs": {"layers.json": ""}}))
    assert toy(size=64).one()["built"]
    assert not inner.exists()


@pytest.mark.parametrize("name", ["data_dir", "calib_dir", "weights", "build", "image"])
@pytest.mark.parametrize("place", ["deep", "", "deep/size.txt"])
def test_inputs_inside_a_stage_folder_are_refused(one, name, place):
    before = sorted(one.rglob("*"))
    with pytest.raises(SettingsError, match=name):
        toy(**{name: str(one / place), "size": 64}).one()
    assert sorted(one.rglob("*")) == before


def test_a_prior_inside_a_stage_folder_is_refused_too(one):
    with pytest.raises(SettingsError, match="data_dir"):
        toy(data_dir=f"prior:{one / 'same.txt'}").one()


# Two processes

BUILD = """
    import sys, time, pathlib
    from gpenlib.run import Run
    from gpenlib.stages import stage
    from gpenlib.settings import RunSettings

    class Slow(Run):
        @stage("slow", "size")
        def slow(self, work):
            with open(sys.argv[1], "a") as file:
                file.write("built\\n")
            time.sleep(3)
            (work.folder / "x.txt").write_text("x")
            return {}

    print(Slow(RunSettings.parse({"run": "two", "weights": "tiny-random"})).slow()["built"])
"""


def test_a_holder_that_has_not_said_yet_who_it_is_is_waited_for(outputs_root, caplog):
    run = toy()
    path = run.folder / ".locks" / "one.lock"
    path.parent.mkdir(parents=True)
    taken = threading.Event()

    def hold():
        with FileLock(path):
            taken.set()
            time.sleep(0.3)
            write_json(path.with_suffix(".json"), {"pid": 7, "since": "noon"})
            time.sleep(0.3)

    threading.Thread(target=hold).start()
    assert taken.wait(30)
    assert run.one()["built"]
    assert "waiting for process 7, since noon" in caplog.text


def test_a_second_process_waits_and_finds_the_result(outputs_root, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(tmp_path / "count.txt")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": repository_root()}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(out.split()[-1] for out, _ in outputs) == ["False", "True"]
    assert (tmp_path / "count.txt").read_text() == "built\n"
    assert "waiting for process" in "".join(err for _, err in outputs)


def test_results_of_inputs_that_changed_under_the_build_are_not_kept(one, outputs_root):
    """Another process gives the first stage other settings while the second is built from it."""
    failures = []

    def build():
        try:
            toy(worst=99).two("int8")
        except StageError as error:
            failures.append(str(error))

    Toy.entered.clear(), Toy.waiting.clear()
    thread = threading.Thread(target=build)
    thread.start()
    assert Toy.entered.wait(30)
    toy(size=64).one()
    Toy.waiting.set()
    thread.join()
    assert len(failures) == 1 and "one" in failures[0]
    assert not (outputs_root / "toy/two/int8").exists()


# Parameters of a notebook


def test_a_run_takes_the_variables_that_are_settings(outputs_root):
    run = Run.of(
        {"run": "a", "weights": "tiny-random", "dataset_size": "3", "perf_batch": 4, "unrelated": [1]}
    )
    assert run.settings.dataset_size == 3 and run.settings.perf_batch == (4,)
    assert run.folder == outputs_root / "a"
    assert "dataset_size=3" in repr(run) and "unrelated" not in repr(run)
    again = Run.of({"run": run, "weights": "tiny-random"})  # the cell is run a second time
    assert again.settings.run == "a"


def test_a_parameter_that_papermill_was_given_and_nobody_has_is_refused():
    cells = ["run = 'demo'  # any", "# Parameters\ndtpye = 'int8'\n"]
    with pytest.raises(SettingsError, match=r"dtpye.*did you mean 'dtype'"):
        Run.of({"In": cells, "run": "demo", "dtpye": "int8"})
