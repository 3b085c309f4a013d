"""The split: disjoint by content, seeded, with fall-backs that say what they did."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpenlib.data.faces import DataError, Faces, embedded_faces, open_folder
from gpenlib.images import write_image


def folder_of(folder: Path, levels: list[int]) -> Faces:
    """Write one flat image per level, named by position; equal levels are equal files."""
    for position, level in enumerate(levels):
        write_image(folder / f"{position}.png", np.full((16, 16, 3), level, np.uint8))
    return open_folder(folder)


def numbers(faces: Faces) -> list[int]:
    """Return the numbers in the names."""
    return [int(re.sub(r"\D", "", name)) for name in faces.names]


def contents(subset: Faces) -> set[str]:
    return {subset.digest(index) for index in range(len(subset))}


def test_evaluation_is_the_first_images_in_natural_order(tmp_path):
    parts = folder_of(tmp_path, list(range(12))).split(3, 4)
    assert list(parts.evaluation.names) == ["0.png", "1.png", "2.png"]
    assert parts.evaluation.read(2)[0, 0, 0] == 2
    assert len(parts.calibration) == 4
    assert not contents(parts.evaluation) & contents(parts.calibration)


def test_calibration_comes_from_beyond_in_natural_order_and_follows_the_seed(tmp_path):
    source = folder_of(tmp_path, list(range(40)))
    first, again, other = (numbers(source.split(10, 8, seed=seed).calibration) for seed in (0, 0, 1))
    assert first == again != other
    assert min(first) >= 10
    assert list(first) == sorted(set(first))
    assert "drawn with seed 1" in source.split(10, 8, seed=1).note


def test_evaluation_does_not_follow_seed_or_calib_size(tmp_path):
    source = folder_of(tmp_path, list(range(20)))
    assert source.split(5, 8, seed=3).evaluation.names == source.split(5, 0).evaluation.names


def test_all_of_the_rest_when_it_just_suffices(tmp_path):
    parts = folder_of(tmp_path, list(range(6))).split(2, 4)
    assert numbers(parts.calibration) == [2, 3, 4, 5]
    assert "seed" not in parts.note


def test_copies_of_evaluation_images_are_passed_over(tmp_path):
    parts = folder_of(tmp_path, [0, 1, 2, 0, 1, 5, 6]).split(3, 2)
    assert numbers(parts.calibration) == [5, 6]
    parts = open_folder(tmp_path).split(3, 4)
    assert numbers(parts.calibration) == [5, 6]
    assert "dropped 2 with the content of an evaluation image (3.png, 4.png)" in parts.note
    assert "fewer than the 4 asked for" in parts.note


def test_calibration_folder_of_its_own(tmp_path):
    source = folder_of(tmp_path / "faces", [0, 1, 2, 3, 4])
    other = folder_of(tmp_path / "calibration", [9, 1, 8, 7])
    parts = source.split(3, 10, calibration=other)
    assert contents(parts.calibration) == {other.digest(index) for index in (0, 2, 3)}
    assert "folder calibration: 3 of 4" in parts.note
    assert "(1.png)" in parts.note
    drawn = source.split(3, 2, calibration=other)
    assert len(drawn.calibration) == 2


def test_calibration_folder_with_nothing_else(tmp_path):
    source = folder_of(tmp_path / "faces", [0, 1, 2])
    other = folder_of(tmp_path / "copies", [2, 1])
    with pytest.raises(DataError, match=r"folder copies.*all 2 images are evaluation images"):
        source.split(3, 4, calibration=other)
    assert len(source.split(3, 0, calibration=other).calibration) == 0


def test_fall_back_to_embedded_when_nothing_is_left(tmp_path):
    parts = folder_of(tmp_path, [0, 1, 2]).split(3, 5)
    assert parts.calibration.label.startswith("embedded")
    assert len(parts.calibration) == 5
    assert "embedded images, as no image is left beyond dataset_size" in parts.note


def test_fall_back_to_embedded_when_only_copies_are_left(tmp_path):
    parts = folder_of(tmp_path, [0, 1, 0, 1]).split(2, 3)
    assert parts.calibration.label.startswith("embedded")
    assert "dropped 2" in parts.note


def test_embedded_source_keeps_its_sets_apart():
    ample = embedded_faces(20, 64).split(12, 8)
    assert numbers(ample.calibration) == list(range(12, 20))
    exhausted = embedded_faces(12, 64).split(12, 8)
    assert min(numbers(exhausted.calibration)) >= 10_000
    assert exhausted.calibration.read(0).shape == (64, 64, 3)
    assert not contents(exhausted.evaluation) & contents(exhausted.calibration)


def test_too_few_images_says_how_many_there_are(tmp_path):
    with pytest.raises(DataError, match="dataset_size=9, but there are 4 images"):
        folder_of(tmp_path, [0, 1, 2, 3]).split(9, 0)


@pytest.mark.parametrize(
    ("dataset_size", "calib_size", "seed"), [(0, 4, 0), (-1, 4, 0), (1, -1, 0), (1, 1, -1)]
)
def test_numbers_out_of_range(dataset_size, calib_size, seed):
    with pytest.raises(DataError, match="allowed are"):
        embedded_faces(4, 64).split(dataset_size, calib_size, seed=seed)


def test_no_calibration():
    parts = embedded_faces(4, 64).split(4, 0)
    assert len(parts.calibration) == 0
    assert list(parts.calibration.names) == []
    assert parts.note


def test_only_the_needed_files_are_hashed(tmp_path):
    """A folder of thousands is not read through to draw a few."""
    source = folder_of(tmp_path, list(range(30)))
    hashed: list[int] = []

    def digest(index: int) -> str:
        hashed.append(index)
        return source.digest(index)

    replace(source, digest=digest).split(2, 3)
    assert len(set(hashed)) == 5


def test_subset_of_a_subset():
    inner = embedded_faces(6, 64).take((5, 3, 1))
    outer = inner.take((2, 0))
    assert list(outer.names) == ["astronaut_0001.png", "astronaut_0005.png"]
    assert outer.digest(0) == embedded_faces(6, 64).digest(1)
    assert outer.label == inner.label
