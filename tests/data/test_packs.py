"""Packs: the vendor's format, there and back, and what a damaged one says."""

from pathlib import Path

import numpy as np
import pytest

from gpenlib.data.faces import DataError, embedded_faces, open_folder
from gpenlib.data.pairs import Pack, Pairs, check_packs, distinct_stems, read_pack, unpack, write_pack
from gpenlib.data.tasks import make_pair
from gpenlib.images import ImageError, read_image, write_image

SIZE = 32


@pytest.fixture
def pack(tmp_path) -> Pack:
    write_pack(tmp_path / "pack", Pairs(embedded_faces(3, 64), "color", SIZE))
    return read_pack(tmp_path / "pack")


def save(path: Path, **arrays: np.ndarray) -> None:
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize("task", ["color", "restore", "restore-mild", "inpaint"])
def test_every_task_can_be_packed(tmp_path, task):
    source = embedded_faces(3, 64)
    write_pack(tmp_path / "pack", Pairs(source, task, SIZE, seed=(5, 1)))
    pack = read_pack(tmp_path / "pack")
    for index in range(3):
        given, truth = make_pair(source.read(index), task, SIZE, seed=(5, 1, index))
        assert np.array_equal(pack.inputs(index), given) and np.array_equal(pack.truths(index), truth)
    check_packs(pack, None, task)
    for path, truth in zip(unpack(pack, tmp_path / "pictures")[::2], range(3), strict=True):
        assert np.array_equal(read_image(path), pack.inputs(truth))


def test_pictures_of_a_pack_are_degraded_differently(tmp_path):
    source = embedded_faces(1, 64).take((0, 0, 0))
    write_pack(tmp_path / "pack", Pairs(source, "inpaint", SIZE))
    pack = read_pack(tmp_path / "pack")
    assert len({pack.inputs(index).tobytes() for index in range(3)}) == 3


def test_round_trip(pack):
    source = embedded_faces(3, 64)
    assert len(pack) == 3
    assert pack.names == ["astronaut_0000", "astronaut_0001", "astronaut_0002"]
    for index in range(3):
        given, truth = make_pair(source.read(index), "color", SIZE)
        assert np.array_equal(pack.inputs(index), given)
        assert np.array_equal(pack.truths(index), truth)


def test_vendor_format(pack):
    lines = (pack.folder / "datalist.txt").read_text().splitlines()
    assert lines == [f"input/astronaut_000{index}.npz" for index in range(3)]
    with np.load(pack.folder / lines[1]) as archive:
        assert archive.files == ["input_0"]
        planar = archive["input_0"]
    assert planar.dtype == np.uint8
    assert planar.shape == (3, SIZE, SIZE)
    with np.load(pack.folder / "truth" / "astronaut_0001.npz") as archive:
        assert archive.files == ["truth_0"]


def test_truth_is_rgb(tmp_path):
    red = np.zeros((SIZE, SIZE, 3), np.uint8)
    red[:, :, 0] = 255
    write_image(tmp_path / "faces" / "red.png", red)
    write_pack(tmp_path / "pack", Pairs(open_folder(tmp_path / "faces"), "color", SIZE))
    with np.load(tmp_path / "pack" / "truth" / "red.npz") as archive:
        assert archive["truth_0"].mean(axis=(1, 2)).tolist() == [255, 0, 0]


def test_order_is_that_of_the_source(tmp_path):
    source = embedded_faces(12, 64).take((11, 2, 10))
    write_pack(tmp_path, Pairs(source, "color", SIZE))
    assert read_pack(tmp_path).names == ["astronaut_0011", "astronaut_0002", "astronaut_0010"]


def test_super_resolution_sizes(tmp_path):
    write_pack(tmp_path, Pairs(embedded_faces(1, 128), "color", 32, 96))
    pack = read_pack(tmp_path)
    assert pack.inputs(0).shape == (32, 32, 3)
    assert pack.truths(0).shape == (96, 96, 3)


def test_the_same_images_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_pack(tmp_path / name, Pairs(embedded_faces(2, 64), "color", SIZE))
    for file in sorted((tmp_path / "a").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_unpack_and_pack_again(tmp_path, pack):
    written = unpack(pack, tmp_path / "pictures")
    assert len(written) == 6
    assert np.array_equal(read_image(tmp_path / "pictures" / "input" / "astronaut_0001.png"), pack.inputs(1))
    write_pack(tmp_path / "again", Pairs(open_folder(tmp_path / "pictures" / "truth"), "color", SIZE))
    again = read_pack(tmp_path / "again")
    for index in range(3):
        assert np.array_equal(again.inputs(index), pack.inputs(index))
        assert np.array_equal(again.truths(index), pack.truths(index))


def test_files_with_one_stem_stay_apart(tmp_path):
    for level, name in enumerate(["a.bmp", "a.jpg", "a.png", "a_2.png"]):
        write_image(tmp_path / "faces" / name, np.full((SIZE, SIZE, 3), 60 * level, np.uint8))
    source = open_folder(tmp_path / "faces")
    write_pack(tmp_path / "pack", Pairs(source, "color", SIZE))
    pack = read_pack(tmp_path / "pack")
    assert len(set(pack.names)) == 4
    for index, name in enumerate(source.names):
        expected = read_image(tmp_path / "faces" / name)
        assert np.array_equal(pack.truths(index), expected), name


def test_distinct_stems():
    assert distinct_stems(["a.jpg", "b.png"]) == ["a", "b"]
    assert distinct_stems(["a.jpg", "a.png", "a_2.png", "A.bmp"]) == ["a", "a_3", "a_2", "A_4"]
    assert distinct_stems(["two\nlines.png"]) == ["two_lines"]
    assert distinct_stems(["Jürgen Müller.v2.png"]) == ["Jürgen Müller.v2"]


def test_names_beyond_ascii_and_with_spaces(tmp_path):
    write_image(tmp_path / "faces" / "Zoë – Москва 1.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    write_pack(tmp_path / "pack", Pairs(open_folder(tmp_path / "faces"), "color", SIZE))
    assert read_pack(tmp_path / "pack").names == ["Zoë – Москва 1"]


def test_damaged_picture_is_named_and_leaves_no_pack(tmp_path):
    write_pack(tmp_path / "pack", Pairs(embedded_faces(1, 64), "color", SIZE))
    write_image(tmp_path / "faces" / "1.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    (tmp_path / "faces" / "2.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"2\.png"):
        write_pack(tmp_path / "pack", Pairs(open_folder(tmp_path / "faces"), "color", SIZE))
    with pytest.raises(DataError, match=r"datalist\.txt: no such file"):
        read_pack(tmp_path / "pack")
    assert not list((tmp_path / "pack").rglob(".*"))  # no temporary file is left


def test_missing_or_empty_datalist(tmp_path):
    with pytest.raises(DataError, match=r"datalist\.txt: no such file"):
        read_pack(tmp_path)
    (tmp_path / "datalist.txt").write_text("\n \n")
    with pytest.raises(DataError, match="lists no file"):
        read_pack(tmp_path)
    (tmp_path / "datalist.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a UTF-8 text file"):
        read_pack(tmp_path)


@pytest.mark.parametrize("folder", ["input", "truth"])
def test_missing_file(pack, folder):
    (pack.folder / folder / "astronaut_0001.npz").unlink()
    with pytest.raises(DataError, match=rf"{folder}.astronaut_0001\.npz"):
        read_pack(pack.folder)


def test_windows_line_ends_and_vendor_packs_without_truths(tmp_path):
    (tmp_path / "npz").mkdir()
    save(tmp_path / "npz" / "x.npz", input_0=np.full((3, 8, 8), 7, np.uint8))
    (tmp_path / "datalist.txt").write_bytes(b"npz/x.npz\r\n")
    pack = read_pack(tmp_path)
    assert pack.inputs(0).shape == (8, 8, 3)
    with pytest.raises(DataError, match=r"truth.x\.npz: no such file"):
        pack.truths(0)
    assert [path.name for path in unpack(pack, tmp_path / "pictures")] == ["x.png"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input": np.zeros((3, 8, 8), np.uint8)}, "holds input, expected input_0"),
        ({"input_0": np.zeros((3, 8, 8), np.float32)}, r"float32 \(3, 8, 8\), expected uint8 \[3, H, W\]"),
        ({"input_0": np.zeros((8, 8, 3), np.uint8)}, r"uint8 \(8, 8, 3\), expected"),
        ({"input_0": np.zeros((3, 64), np.uint8)}, r"uint8 \(3, 64\), expected"),
        ({"input_0": np.zeros((3, 0, 8), np.uint8)}, r"uint8 \(3, 0, 8\), expected"),
        ({"input_0": np.array([{}], dtype=object)}, "not a readable npz file"),
    ],
)
def test_wrong_content_is_named(pack, arrays, message):
    path = pack.paths[1]
    save(path, **arrays)
    with pytest.raises(DataError, match=message) as error:
        pack.inputs(1)
    assert str(path) in str(error.value)


def test_damaged_files_are_named(pack):
    path = pack.paths[0]
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytearray(whole)
    for offset in range(middle - 20, middle + 20):
        flipped[offset] ^= 0xFF
    for content in (b"", b"no zip", whole[:middle], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"astronaut_0000\.npz: not a readable npz file"):
            pack.inputs(0)
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DataError, match="a single array"):
        pack.inputs(0)


def test_sound_packs_pass(tmp_path, pack):
    write_pack(tmp_path / "other", Pairs(embedded_faces(5, 64).take((3, 4)), "color", SIZE))
    check_packs(pack, read_pack(tmp_path / "other"), "color")
    check_packs(pack, None, "color")


def test_shared_pictures_are_found_by_their_pixels(tmp_path, pack):
    """The same pixels in two files, which the split cannot see, are seen in the packs."""
    write_image(tmp_path / "faces" / "copy.bmp", embedded_faces(3, 64).read(2))
    write_pack(tmp_path / "other", Pairs(open_folder(tmp_path / "faces"), "color", SIZE))
    with pytest.raises(DataError, match="calibration/copy is the same picture as evaluation/astronaut_0002"):
        check_packs(pack, read_pack(tmp_path / "other"), "color")


def test_coloured_input_is_refused(pack):
    tinted = np.zeros((3, SIZE, SIZE), np.uint8)
    tinted[0] = 9
    save(pack.paths[1], input_0=tinted)
    with pytest.raises(DataError, match=r"astronaut_0001\.npz: the input of task 'color' is not grey"):
        check_packs(pack, None, "color")


def test_several_sizes_are_refused(pack):
    save(pack.paths[2], input_0=np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(DataError, match="several sizes"):
        check_packs(pack, None, "color")
