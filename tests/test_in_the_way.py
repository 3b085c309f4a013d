"""What stands where results go, too long names, what may not be read: it is said, and nothing is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpenlib.data.faces import DataError
from gpenlib.data.pairs import DATALIST, distinct_stems, read_pack
from gpenlib.files import StorageError, keep_aside, locked, write_text
from gpenlib.images import write_image
from gpenlib.jobs import JOURNAL, Journal
from gpenlib.run import Run
from gpenlib.settings import PhotoSettings, SettingsError
from gpenlib.stages import StageError
from gpenlib.train.config import TrainSettings
from gpenlib.train.trainer import CHECKPOINT, LOG, TrainingError, clear_training, read_log


def small(**values):
    return Run.of({"weights": "tiny-random", "dataset_size": 1, "calib_size": 1, "run": "r", **values})


OURS = ("r/.locks/02_data.lock", "r/.locks/02_data.json")  # as files these are what a run makes itself


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *((place, "file") for place in ("", "r", "r/.locks", "r/02_data")),
        *((place, "folder") for place in OURS),
    ],
)
def test_what_stands_in_the_way_of_a_stage_is_named(tmp_path, monkeypatch, place, kind):
    monkeypatch.setenv("GPEN_OUTPUTS", str(tmp_path / "outputs"))
    path = tmp_path / "outputs" / place
    mine = path / "notes.txt" if kind == "folder" else path
    write_text(mine, "mine")
    with pytest.raises((StageError, StorageError), match=f"(?i){path}.*(move|choose)"):
        small().data()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["a" * 300, "ä" * 130, "🙂" * 64], ids=["a", "umlaut", "emoji"])
def test_a_name_that_cannot_be_is_told(tmp_path, name):
    with pytest.raises(StorageError, match="longer than a name can be; shorten it"):
        write_text(tmp_path / name, "x")
    write_text(tmp_path / "pack" / DATALIST, f"input/{name}.npz\n")
    with pytest.raises(DataError, match="is not there"):
        read_pack(tmp_path / "pack")


def test_a_file_where_a_folder_must_be_is_told_when_a_file_is_written(tmp_path):
    write_text(tmp_path / "a", "mine")
    (tmp_path / "b").mkdir()
    for path, culprit in ((tmp_path / "a/b/c.txt", "a is a file"), (tmp_path / "b", "b is a folder")):
        with pytest.raises(StorageError, match=f"{culprit} and stands in the way"):
            write_text(path, "x")
    with pytest.raises(StorageError, match="stands in the way"), locked(tmp_path / "b", lambda: None):
        pass


@pytest.mark.parametrize("stem", ["n" * 251, "ü" * 125, "🙂" * 62], ids=["n", "u", "emoji"])
def test_the_longest_names_work(outputs_root, tmp_path, stem):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, suffix in enumerate((".png", ".bmp")):
        write_image(folder / "a.png", np.full((96, 96, 3), (99, 150, 60 + number), np.uint8))
        (folder / "a.png").rename(folder / f"{stem}{suffix}")
    values = {"weights": "tiny-random", "photos": str(folder), "run": "r", "aligned": True}
    made = Run.of(values, PhotoSettings).photos()
    rows = json.loads((Path(made["folder"]) / "results.json").read_text())
    assert not rows["failures"]
    files = {row["file"] for row in rows["photos"]}
    assert len(files) == 2 and all((Path(made["folder"]) / file).is_file() for file in files)
    small(data_dir=str(folder), save_packs=True).data()


def test_cut_names_stay_distinct():
    stems = ["n" * 240 + end for end in ("a", "b", "A")]
    names = distinct_stems(f"{stem}.png" for stem in stems)
    assert len({name.casefold() for name in names}) == 3 and max(len(name.encode()) for name in names) <= 205
    assert distinct_stems(["ok.png"]) == ["ok"]


def test_a_result_that_may_not_be_read_is_built_anew(outputs_root, monkeypatch):
    run = small()
    run.data()

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("gpenlib.stages.sha256", denied)
        assert Run(run.settings).data()["built"]
    assert not Run(run.settings).data()["built"]


def test_an_error_of_the_system_about_results_says_what_to_do(outputs_root, monkeypatch):
    run = small()
    folder = Path(run.data()["folder"])

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("gpenlib.stages.read_manifest", denied)
    with pytest.raises(StageError, match=r"02_data: permission denied. Move it .* or mend its permissions"):
        Run(run.settings).data()
    assert folder.is_dir()


def test_a_result_that_was_kept_aside_is_not_lost_to_a_dangling_link(tmp_path):
    write_text(tmp_path / "07/a.txt", "mine")
    (tmp_path / "07.kept-1").symlink_to(tmp_path / "gone")
    keep_aside(tmp_path / "07")
    assert (tmp_path / "07.kept-2/a.txt").read_text() == "mine" and (tmp_path / "07.kept-1").is_symlink()


def test_a_folder_in_place_of_a_journal_is_told(tmp_path):
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(StorageError, match="stands in the way"):
        Journal(tmp_path).add("a", 1, [])


BAD_LINES = [
    *("[]", "null", "1", '"a"', "{}", "\x00", "[" * 100_000),
    *(
        f'{{"step": {step}, "l1": 1}}'
        for step in ('"a"', "[1]", "true", "null", "-1", "1e400", "1" + "0" * 400)
    ),
    *(f'{{"step": 2, "l1": {value}}}' for value in ('"x"', "[1]", "true", "1" + "0" * 400, "1" + "0" * 5000)),
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_line_of_the_log_that_holds_no_numbers_is_passed_over(tmp_path, line):
    write_text(tmp_path / LOG, f'{{"step": 1, "l1": 0.5}}\n{line}\n{{"step": 2, "l1": 0.25}}\n')
    assert read_log(tmp_path) == [{"step": 1, "l1": 0.5}, {"step": 2, "l1": 0.25}]


def test_a_folder_in_place_of_a_checkpoint_is_told(tmp_path):
    (tmp_path / CHECKPOINT).mkdir()
    with pytest.raises(TrainingError, match=f"holds {CHECKPOINT}, which no training wrote"):
        clear_training(tmp_path)


@pytest.mark.parametrize("begun", ["{", '{"faces": "others"}', None])
def test_a_checkpoint_of_another_beginning_is_kept(outputs_root, begun):
    run = Run.of({"train": ("params/train/small_prior.yaml",), "run": "t", "steps": 1}, TrainSettings)
    (made,) = run.train().values()
    folder = Path(made["folder"])
    (folder / "manifest.json").unlink()
    (folder / "inputs.json").unlink()
    if begun:
        write_text(folder / "inputs.json", begun)
    before = (folder / CHECKPOINT).read_bytes()
    (again,) = Run(run.settings).train().values()
    assert again["built"] and (folder.with_name(f"{folder.name}.kept-1") / CHECKPOINT).read_bytes() == before


def test_weights_whose_header_names_another_task_are_blamed_and_not_the_parameter(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "w.safetensors", {"task": "image-to-image"})
    with pytest.raises(SettingsError, match="w.safetensors.*its header names the task 'image-to-image'"):
        small(weights=str(tmp_path / "w.safetensors"))
