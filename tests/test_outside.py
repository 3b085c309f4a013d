"""Whatever lies among the results, nothing outside of them is written or removed; edits do not count."""

import json

import numpy as np
import pytest

from gpenlib.data.faces import DataError
from gpenlib.files import fingerprint, write_text
from gpenlib.images import write_image
from gpenlib.jobs import JOURNAL, Journal
from gpenlib.run import Run
from gpenlib.settings import PhotoSettings
from gpenlib.stages import StageError
from gpenlib.train.trainer import TrainingError, clear_training


@pytest.fixture
def victim(tmp_path):
    """A folder of somebody's files, which must be the same afterwards."""
    folder = tmp_path / "victim"
    for name in ("a.txt", "b.png"):
        write_text(folder / name, "mine")
    yield folder
    assert {path.name: path.read_text() for path in folder.rglob("*")} == {"a.txt": "mine", "b.png": "mine"}


def small(**values):
    return Run.of({"weights": "tiny-random", "dataset_size": 1, "calib_size": 1, "run": "r", **values})


def test_a_journal_follows_no_link(tmp_path, victim):
    (tmp_path / "work").symlink_to(victim)
    Journal(tmp_path / "work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/images").symlink_to(victim)
    Journal(tmp_path / "other")
    assert not (tmp_path / "other/images").exists()


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_stage_follows_no_link_in_place_of_its_work_folder(outputs_root, victim, monkeypatch, goes_on):
    run, keys, stand = small(), [], Run._stand

    def noted(self, name, key, *rest, **options):
        keys.append(key)
        return stand(self, name, key, *rest, **options)

    monkeypatch.setattr(Run, "_stand", noted)
    build = run.baselines if goes_on else run.data
    name = build()["stage"]
    (run.folder / name).rename(outputs_root / "aside")
    work = run.folder / f".{name}-building-{fingerprint(keys[-1])}"
    work.symlink_to(victim)
    assert build()["built"] and not work.exists() and not (run.folder / name).is_symlink()


@pytest.mark.parametrize("place", [".locks", "06_train/t/samples"])
def test_links_in_place_of_our_folders_are_refused(outputs_root, victim, place):
    run = small()
    link = run.folder / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    with pytest.raises((StageError, TrainingError), match=f"{place}.* a link.*move it"):
        clear_training(link.parent) if "train" in place else run.data()


ENTRY = {"name": "a", "results": {"psnr": 1.5}, "files": {}}


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(ENTRY),  # no digest
        json.dumps({**ENTRY, "results": {"psnr": 99.0}, "digest": fingerprint(ENTRY)}),
        *("[]", "{}", "null", "[" * 100_000, "\x00" * 5_000_000, '{"digest": 1, "files": null}'),
        json.dumps({"name": [], "results": 1, "files": {}, "digest": 1}),
        json.dumps({**ENTRY, "files": {"../b.png": "x"}, "digest": 1}),
    ],
    ids=range(10),
)
def test_lines_of_a_journal_that_nobody_wrote_do_not_count(tmp_path, line):
    journal = Journal(tmp_path)
    journal.add("whole", {"psnr": 2.0}, [])
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(line + "\n")
    (tmp_path / JOURNAL).write_bytes(b"\xed\xa0\x80\n" + (tmp_path / JOURNAL).read_bytes())
    assert Journal(tmp_path).finished == {"whole": {"psnr": 2.0}}


def test_a_name_that_is_not_utf8_is_told(outputs_root, tmp_path):
    write_image(tmp_path / "a.png", np.full((96, 96, 3), 99, np.uint8))
    (tmp_path / "a.png").rename(tmp_path / "caf\udce9.png")
    photos = Run.of({"weights": "tiny-random", "photos": str(tmp_path), "run": "r"}, PhotoSettings)
    for call in (photos.photos, small(data_dir=str(tmp_path)).data):
        with pytest.raises(DataError, match=r"caf.*not UTF-8; rename"):
            call()
