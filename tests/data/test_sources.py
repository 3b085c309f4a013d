"""Folders of images: which files, in which order, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from gpenlib.data.faces import DataError, natural_key, open_folder
from gpenlib.images import ImageError, write_image


def write_faces(folder: Path, names: list[str]) -> None:
    for level, name in enumerate(names):
        write_image(folder / name, np.full((16, 16, 3), level, np.uint8))


def test_natural_order(tmp_path):
    write_faces(tmp_path, ["10.png", "9.png", "100.png", "1.png", "2.png"])
    assert list(open_folder(tmp_path).names) == ["1.png", "2.png", "9.png", "10.png", "100.png"]


def test_natural_order_mixes_words_and_numbers():
    names = ["face10b", "face2", "Face1", "face10a", "12", "a", "7"]
    assert sorted(names, key=natural_key) == ["7", "12", "a", "Face1", "face2", "face10a", "face10b"]


def test_every_format_is_taken_and_other_files_are_not(tmp_path):
    write_faces(tmp_path, ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "f.png").mkdir()
    assert list(open_folder(tmp_path).names) == ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp"]


@pytest.mark.parametrize("suffix", ["png", ".png", "PNG"])
def test_suffix_filter(tmp_path, suffix):
    write_faces(tmp_path, ["a.jpg", "b.png"])
    assert list(open_folder(tmp_path, suffix).names) == ["b.png"]


def test_celebamask_layout(tmp_path):
    write_faces(tmp_path / "CelebA-HQ-img", ["0.jpg", "1.jpg", "10.jpg", "2.jpg"])
    write_faces(tmp_path / "CelebAMask-HQ-mask-anno", ["0.png"])
    source = open_folder(tmp_path)
    assert list(source.names) == ["0.jpg", "1.jpg", "2.jpg", "10.jpg"]
    assert "CelebA-HQ-img" in source.label


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_folder(tmp_path / "nowhere")


def test_empty_folder_names_suffixes_and_sub_folders(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no image with suffix \.jpg.*sub-folders: images"):
        open_folder(tmp_path)


def test_damaged_image_is_named_when_read(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but not really")
    source = open_folder(tmp_path)
    with pytest.raises(ImageError, match=r"bad\.png"):
        source.read(0)


def test_digests_follow_content_and_order(tmp_path):
    write_faces(tmp_path, ["a.png", "b.png"])
    write_image(tmp_path / "c.png", np.zeros((16, 16, 3), np.uint8))
    source = open_folder(tmp_path)
    assert source.digest(0) == source.digest(2) != source.digest(1)
    assert source.take([0, 1]).combined_digest() == source.take([2, 1]).combined_digest()
    assert source.take([0, 1]).combined_digest() != source.take([1, 0]).combined_digest()
