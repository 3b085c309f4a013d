"""Folders and frames: order, names, failures, memory, steady squares; the stage and its rows."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from gpenlib import Run
from gpenlib.data.faces import DataError
from gpenlib.images import open_picture, to_grey, write_image
from gpenlib.photos.find import find_faces
from gpenlib.photos.folder import FrameFinder, ahead, enhance_files, photo_files, rows_of, suited
from gpenlib.settings import PhotoSettings, SettingsError


@pytest.fixture
def networks(colourer, restorer):
    return {"colour": {"fp32": colourer}, "restore": {"fp32": restorer}}


@pytest.fixture
def folder(tmp_path, astronaut):
    """Two pictures of one stem, one without a face, one of macOS's hidden files, two that are no pictures."""
    root = tmp_path / "photos"
    root.mkdir()
    write_image(root / "a.jpg", astronaut)
    write_image(root / "a.png", to_grey(astronaut))
    write_image(root / "b.2.png", np.full((40, 50, 3), 9, np.uint8))
    (root / "._a.jpg").write_bytes(b"hidden")
    (root / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:5000])
    (root / "page.png").write_text("<!doctype html><p>not found")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder_is_made_whole_but_for_what_cannot_be_read(folder, networks, tmp_path):
    out = tmp_path / "out"
    results = rows_of(enhance_files(photo_files([folder]), networks, out), out)
    assert [row["photo"] for row in results["photos"]] == ["a.jpg", "a.png", "b.2.png"]
    assert [row["weights"] for row in results["photos"]] == ["restore", "colour", "colour"]  # what suits each
    files = [row["file"] for row in results["photos"]]
    assert files == ["fp32/a.jpg", "fp32/a_2.png", "fp32/b.2.png"]
    for row in results["photos"]:
        before, after = open_picture(row["source"]), open_picture(out / row["file"])
        assert before.pixels.shape == after.pixels.shape
        assert (row["note"].startswith("no face")) == (row["faces"] == 0) == (row["photo"] == "b.2.png")
    assert {Path(row["photo"]).name for row in results["failures"]} == {"broken.jpg", "page.png"}
    assert all("damaged" in row["reason"] or "web page" in row["reason"] for row in results["failures"])
    assert results["note"] == "5 pictures; 2 could not be used; no face was found in 1"
    assert len(results["faces"]) == 2
    for face in results["faces"]:
        assert np.shape(face["square"]) == (4, 2) and np.shape(face["points"]) == (5, 2)
        assert {path.name for path in (out / "faces").glob(f"{Path(face['crops']).name}_*")} == {
            f"{Path(face['crops']).name}_{label}.png" for label in ("input", "fp32")
        }
    json.dumps(results, allow_nan=False)


def test_paths_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(DataError, match="absent"):
        photo_files([tmp_path / "absent"])
    with pytest.raises(DataError, match="holds no picture"):
        photo_files([tmp_path])


def test_the_network_is_chosen_by_the_photograph(networks):
    assert suited(networks, monochrome=False) == "restore" and suited(networks, monochrome=True) == "colour"
    assert suited({"colour": networks["colour"]}, monochrome=False) == "colour"


@pytest.mark.parametrize(("task", "left"), [(None, True), ("color", False)])
def test_photographs_with_colours_are_not_coloured_anew_unless_asked(
    networks, astronaut, tmp_path, task, left
):
    path = write_image(tmp_path / "a.png", astronaut)
    (result,) = enhance_files([path], {"colour": networks["colour"]}, tmp_path / "out", task=task)
    same = (open_picture(result.files["fp32"]).pixels == astronaut).all()
    assert same == left == result.made["fp32"].faces[0].done.startswith("left as it was")


def test_steps_overlap_in_order_and_never_run_far_ahead():
    taken, running, most = [], set(), []
    both = threading.Barrier(2, timeout=30)

    def first(number):
        running.add(number)
        most.append(len(running))
        if number == 3:
            both.wait()  # the second step is at work on an earlier item meanwhile
        return number

    def second(number):
        if number == 1:
            both.wait()
        return number

    for number in ahead(ahead(range(50), first), second):
        taken.append(number)
        running.discard(number)
    assert taken == list(range(50)) and max(most) <= 8


def test_errors_and_leaving_early_end_the_steps():
    def fail(number):
        if number == 2:
            raise RuntimeError("two")
        return number

    with pytest.raises(RuntimeError, match="two"):
        list(ahead(range(1000), fail))
    results = ahead(ahead(range(1000), fail), str)
    assert [next(results), next(results)] == ["0", "1"], "those before it are not lost"
    with pytest.raises(RuntimeError, match="two"):
        next(results)
    seen = []
    for number in ahead(range(10**9), seen.append):
        assert number is None
        break
    assert len(seen) <= 4
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool") and not t.daemon][8:]


def noisy(photo, seed):
    noise = np.random.default_rng(seed).normal(0, 6, photo.shape)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def test_squares_stand_still_where_the_film_does_and_follow_where_it_moves(astronaut, detector):
    finder = FrameFinder(detector)
    squares = [finder(noisy(astronaut, seed))[0].square for seed in range(14)]
    side = np.linalg.norm(squares[0][1] - squares[0][0])
    moved = [np.abs(square - squares[0]).max() / side for square in squares]
    assert max(moved) < 0.01
    shifted = np.roll(astronaut, 40, axis=1)  # a cut: the face is elsewhere at once
    (face,) = finder(shifted)
    assert np.abs(face.square - find_faces(shifted, detector)[0].square).max() / side < 0.06
    assert finder(np.full_like(astronaut, 120)) == []


def test_frames_keep_order_and_names(astronaut, networks, tmp_path):
    small = np.ascontiguousarray(astronaut[:256, 100:356])
    for number in (2, 10, 1):
        write_image(tmp_path / f"frame {number}.png", noisy(small, number))
    made = list(enhance_files(photo_files([tmp_path]), networks, tmp_path / "out", frames=True))
    assert [result.files["fp32"].name for result in made] == ["frame 1.png", "frame 2.png", "frame 10.png"]
    assert all(result.picture is None and not result.made["fp32"].image.size for result in made)


@pytest.fixture
def run(folder, outputs_root):
    settings = {"weights": "tiny-random", "photos": str(folder), "calib_size": 2, "backend": "torch"}
    return lambda **changes: Run(PhotoSettings.parse(settings | changes))


def test_the_stage_stands_until_something_changes_and_keeps_what_is_not_its_own(run, folder, tmp_path):
    (folder / "more").mkdir()
    manifest = run().photos()
    assert manifest["built"] and not run().photos()["built"]
    assert "sub-folders were passed over: more" in manifest["metrics"]["note"]
    written = Path(manifest["folder"])
    assert len((written / "failures.jsonl").read_text().splitlines()) == 2
    assert (written / "fp32/a.jpg").is_file() and (folder / "a.jpg").is_file()
    assert run(strength=0.5).photos()["built"]
    write_image(folder / "a.jpg", np.zeros((30, 30, 3), np.uint8))
    assert run(strength=0.5).photos()["built"]
    with pytest.raises(
        SettingsError, match="photos"
    ):  # its results would be replaced by what is made of them
        run(photos=f"{written / 'fp32'}").photos()
    other = write_image(tmp_path / "other.png", np.zeros((30, 30, 3), np.uint8))
    run(photos=str(other)).photos()
    assert (written / "fp32/other.png").is_file()
    assert (written.with_name("07_photos.kept-1") / "fp32/a.jpg").is_file()


def test_several_dtypes_and_the_examples(run):
    manifest = run(photos="", dtype="fp32,bf16", weights="tiny-random").photos()
    rows, folder = manifest["metrics"]["photos"], Path(manifest["folder"])
    assert {row["dtype"] for row in rows} == {"fp32", "bf16"} and len(rows) == 4
    assert all((folder / row["source"]).is_file() and row["faces"] == 1 for row in rows)


@pytest.mark.parametrize(
    "wrong",
    [{"faces": "some"}, {"upscale": "3"}, {"upscaler": "x.onnx"}, {"strength": "2"}, {"reach": 0.5},
     {"dtype": "fp32,int9"}, {"weights": ""}, {"strenght": 1}],
)  # fmt: skip
def test_wrong_parameters_are_named(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        PhotoSettings.parse(wrong)


def test_natural_values_are_understood():
    settings = PhotoSettings.parse(
        {"photos": "a, b", "dtype": ["int8", "fp32"], "upscale": "2", "faces": 2, "strength": "1e-1"}
    )
    assert settings.photos == ("a", "b") and settings.dtype == "int8" and settings.upscale == 2
    assert settings.photo_dtypes == ("int8", "fp32") and settings.faces == "2" and settings.strength == 0.1
    assert settings.with_(dtype="bf16").dtype == "bf16"
