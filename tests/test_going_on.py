"""Whatever stops a run - a kill, Ctrl-C, a full disk - it goes on, and ends as if nothing had happened."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gpenlib import files
from gpenlib.data.faces import embedded_faces, whole_photographs
from gpenlib.files import StorageError, repository_root, sha256, write_text
from gpenlib.images import write_image
from gpenlib.infer import Runtime, scoring
from gpenlib.jobs import JOURNAL, Journal, command
from gpenlib.photos import folder as photos_folder
from gpenlib.run import Run
from gpenlib.settings import PhotoSettings
from gpenlib.stages import StageError
from tests.processes import processes
from tests.traces import keep_traces

KILLS = 20  # at random moments, of all flows together
FACES = 50
FRAMES = 16


def slowly(outputs):
    """Prepare a process of its own, in which the network takes long enough to be interrupted."""
    os.environ["GPEN_OUTPUTS"] = str(outputs)
    keep_traces()
    call = Runtime.__call__
    Runtime.__call__ = lambda self, batch: (time.sleep(0.02 * len(batch)), call(self, batch))[1]
    scored = scoring._score_baselines
    scoring._score_baselines = lambda *face: (time.sleep(0.2), scored(*face))[1]


def of_faces(outputs, faces, run):
    slowly(outputs)
    parameters = {"weights": "tiny-random", "data_dir": str(faces), "dataset_size": FACES, "calib_size": 2}
    return Run.of({**parameters, "run": run, "batch_size": 2, "save_npz": True})


def baselines(outputs, faces, run):
    """What 04 scores without a network."""
    of_faces(outputs, faces, run).baselines()


def infer(outputs, faces, run):
    """Stage 04."""
    of_faces(outputs, faces, run).infer("fp32")


def photos(outputs, frames, run):
    """Stage 07, on frames, each of which depends on the one before."""
    slowly(outputs)
    parameters = {"weights": "tiny-random", "photos": str(frames), "frames": True, "run": run}
    Run.of({**parameters, "task": "restore"}, PhotoSettings).photos()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder, pictures = tmp_path_factory.mktemp("faces"), embedded_faces(FACES + 2, 64)
    for index in range(FACES + 2):  # those beyond calibrate
        write_image(folder / f"{index}.png", pictures.read(index))
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder, picture = tmp_path_factory.mktemp("frames"), whole_photographs()["astronaut"][:256, 100:356]
    for index in range(FRAMES):
        noise = np.random.default_rng(index).normal(0, 4, picture.shape)
        moved = np.roll(picture + noise, index, axis=1)
        write_image(folder / f"{index}.png", np.clip(moved, 0, 255).astype(np.uint8))
    (folder / "7.png").write_bytes(b"no picture")
    return folder


def run_to_its_end(kind, *arguments):
    process = processes.Process(target=kind, args=arguments)
    process.start()
    process.join(300)
    return process.exitcode


def finished_in(folder, stage):
    """Return the lines of a stopped stage's journal by name."""
    lines = []
    for path in folder.glob(f".{stage.replace('/', '-')}-building-*/{JOURNAL}"):
        with suppress(FileNotFoundError):  # the stage ends at this very moment
            lines += path.read_text().splitlines()
    entries = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last one, cut off
        assert entry["name"] not in entries, f"{entry['name']} was done twice"
        entries[entry["name"]] = entry["results"]
    return entries


def without_times(value):
    if isinstance(value, dict):
        return {
            key: without_times(entry)
            for key, entry in value.items()
            if key not in ("ms", "ms_per_image", "ms_per_image_mean") and not key.endswith("_s")
        }
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def contents(folder):
    """Return everything in a stage's folder: files by hash, results without times."""
    return {
        path.relative_to(folder).as_posix(): without_times(json.loads(path.read_text()))
        if path.name == "results.json"
        else sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize(
    ("stage", "kind", "count", "kills"),
    [
        ("04_baselines", baselines, FACES, KILLS // 4),
        ("04_infer/fp32", infer, FACES, KILLS // 2),
        ("07_photos", photos, FRAMES, KILLS // 4),
    ],
)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    stage, kind, count, kills, outputs, faces, frames
):
    """Nothing lost, nothing done twice, nothing half-written: rows keep the time at which they were made."""
    given, folder = frames if kind is photos else faces, outputs / "killed"
    assert run_to_its_end(kind, outputs, given, "whole") == 0
    for earlier in {path.name for path in (outputs / "whole").iterdir()} - {stage.split("/")[0]}:
        shutil.copytree(outputs / "whole" / earlier, folder / earlier, dirs_exist_ok=True)
    random.seed(0)
    seen, killed = {}, 0
    while killed < kills:
        process = processes.Process(target=kind, args=(outputs, given, "killed"))
        process.start()
        if killed % 2:  # at any moment
            process.join(random.uniform(0, 2))
        else:  # soon after another image is finished
            while process.is_alive() and len(finished_in(folder, stage)) <= len(seen):
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed, now = killed + 1, finished_in(folder, stage)
        assert {name: now.get(name) for name in seen} == seen, "what was finished is lost, or was done again"
        seen = now
    assert killed >= 3 * kills // 4 and seen
    assert run_to_its_end(kind, outputs, given, "killed") == 0
    assert contents(folder / stage) == contents(outputs / "whole" / stage)
    assert not list(folder.glob(".*-building-*"))
    results = json.loads((folder / stage / "results.json").read_text())
    if kind is infer:
        rows = {row["name"]: row for row in results["rows"]}
        assert all(rows[name] == row for name, row in seen.items())
    made = [*results["photos"], *results["failures"]] if kind is photos else results["rows"]
    assert len(made) == count


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    for name in "abc":
        journal.add(name, {"psnr": 1.5}, [write_text(tmp_path / f"images/{name}.txt", name)])
    return journal


def lines_of(journal):
    return (journal.folder / JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True)


def test_a_journal_is_read_as_it_was_written(journal):
    assert Journal(journal.folder).finished == journal.finished == {name: {"psnr": 1.5} for name in "abc"}
    again = Journal(journal.folder)
    again.keep(["b"])
    assert list(Journal(journal.folder).finished) == ["b"]
    assert [path.name for path in (journal.folder / "images").iterdir()] == ["b.txt"]


def test_what_is_cut_off_changed_gone_or_of_nobody_does_not_count(journal):
    folder = journal.folder
    (folder / JOURNAL).write_text("".join(lines_of(journal))[:-20], encoding="utf-8")  # c is cut off
    (folder / "images/a.txt").write_text("A")
    (folder / "images/.b.temporary.txt").write_text("half")
    journal = Journal(folder)
    assert list(journal.finished) == ["b"] and len(lines_of(journal)) == 1
    assert [path.name for path in (folder / "images").iterdir()] == ["b.txt"]
    journal.add("c", {}, [])
    (folder / "images/b.txt").unlink()
    assert list(Journal(folder).finished) == ["c"]
    for damaged in ("", "[]\n", '{"name": 1}\n', "\x00\x00", '{"name": "a", "results": 1, "files": [1]}\n'):
        (folder / JOURNAL).write_text(damaged)
        assert Journal(folder).finished == {}


def test_lines_with_paths_that_lead_out_do_not_count(journal):
    outside = write_text(journal.folder.parent / "outside.txt", "mine")
    entry = {"name": "x", "results": {}, "files": {f"../{outside.name}": sha256(outside)}}
    (journal.folder / JOURNAL).write_text(json.dumps(entry) + "\n")
    journal = Journal(journal.folder)
    journal.keep([])
    assert outside.is_file() and journal.finished == {}


PARAMETERS = {"weights": "tiny-random", "dataset_size": 6, "calib_size": 2, "run": "full"}


def test_a_full_disk_is_said_in_a_sentence_and_what_was_finished_stays(faces, outputs_root, monkeypatch):
    run = Run.of({**PARAMETERS, "data_dir": str(faces)})
    run.compile()
    write, attempts = Path.write_bytes, itertools.count()

    def fill(path, data):
        if path.suffix == ".png" and next(attempts) >= 3:  # whichever thread it is
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(StorageError, match=r"images/.*\.png .*no space left.*free some space.*run again"):
            run.infer()
    rows = finished_in(run.folder, "04_infer/fp32")
    assert len(rows) == 3 and not (run.folder / "04_infer").exists()
    results = Run.of({**PARAMETERS, "data_dir": str(faces)}).infer()["metrics"]["rows"]
    assert {row["name"]: row for row in results if row["name"] in rows} == rows  # written in any order


def test_a_full_disk_that_a_library_does_not_name_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr("gpenlib.files.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(StorageError, match="no space left"), files.write_atomically(tmp_path / "a.pt"):
        raise RuntimeError("unexpected pos 64 vs 0")  # as torch says it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/outputs", "/dev/null/outputs", "a file"])
def test_a_place_that_cannot_be_written_to_is_named(place, tmp_path, monkeypatch):
    folder = write_text(tmp_path / "file", "") if place == "a file" else Path(place)
    monkeypatch.setenv("GPEN_OUTPUTS", str(folder))
    with pytest.raises(OSError, match=str(folder)):
        Run.of(PARAMETERS).compile()


def test_a_folder_of_photographs_on_a_full_disk_stops_instead_of_blaming_them(
    frames, outputs_root, monkeypatch
):
    def fail(*arguments):
        raise StorageError("no space left")

    monkeypatch.setattr("gpenlib.photos.folder.write_picture", fail)
    run = Run.of({**PARAMETERS, "photos": str(frames), "task": "restore"}, PhotoSettings)
    with pytest.raises(StorageError, match="no space left"):
        run.photos()


@pytest.mark.parametrize("stage", ["infer", "photos"])
def test_a_file_that_changes_while_it_is_used_is_noticed(stage, tmp_path, outputs_root, monkeypatch):
    for index in range(3):
        write_image(tmp_path / f"faces/{index}.png", whole_photographs()["astronaut"][:128, 150:278])
    picture = tmp_path / "faces/1.png"
    module, name = (scoring, "score") if stage == "infer" else (photos_folder, "enhance_photo")
    original = getattr(module, name)

    def change(*arguments, **options):
        write_image(picture, np.zeros((128, 128, 3), np.uint8))
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, change)
    given = {"data_dir": str(tmp_path / "faces"), "dataset_size": 2, "calib_size": 1}
    if stage == "photos":
        given = {"photos": str(tmp_path / "faces"), "task": "restore"}
    run = Run.of({**PARAMETERS, **given}, PhotoSettings)
    with pytest.raises(StageError, match=r"(evaluation|1\.png) changed while.*run again"):
        getattr(run, stage)()
    assert not (run.folder / f"0{4 if stage == 'infer' else 7}_{stage}").exists()


def test_a_command_ends_in_one_line(capsys):
    def main(arguments=None):
        raise arguments

    for error, status in ((KeyboardInterrupt(), 130), (StorageError("full"), 1), (ValueError("bad"), 1)):
        assert command(main)(error) == status
        written = capsys.readouterr()
        assert written.out == "" and written.err.count("\n") == 1
    with pytest.raises(ZeroDivisionError):  # a fault of the code keeps its traceback
        command(main)(ZeroDivisionError())


LOSING_AN_INTERRUPT = """
import signal, sys
from gpenlib.jobs import command

class Lost:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # Python prints what is raised here, and goes on

def main(arguments=None):
    Lost()
    print("going on")
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
status = command(main)()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(status)
"""


def test_an_interrupt_that_a_library_loses_still_counts():
    # In a process of its own: a signal raised in this one would end the tests' worker.
    words = [sys.executable, "-c", LOSING_AN_INTERRUPT]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130 and ended.stdout == "going on\n"
    assert ended.stderr.strip().splitlines()[-1].startswith("interrupted; ")


def test_ctrl_c_ends_the_notebooks_in_one_line(faces, tmp_path):
    words = ["--params", "params/smoke.yaml", "--only", "04", "-p", "data_dir", str(faces)]
    words += ["-p", "dataset_size", str(FACES), "-p", "calib_size", "2", "-p", "run", "stopped"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpenlib", "notebooks", *words],
        env={**os.environ, "GPEN_OUTPUTS": str(tmp_path)}, cwd=repository_root(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stopped/.locks/*float*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors + out and "Dead" not in errors
    assert errors.strip().splitlines()[-1].startswith("interrupted; ")
    kernels = [path for path in Path("/proc").glob("[0-9]*/environ") if str(tmp_path) in environment(path)]
    assert kernels == [], "a kernel is left behind"


def environment(path):
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # it has ended, or is another user's
