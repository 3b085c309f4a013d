"""Pixels: reading and writing, channel order, range and rounding."""

import cv2
import numpy as np
import pytest

from gpenlib.images import (
    SUFFIXES,
    ImageError,
    check_image,
    from_planar,
    from_tensor,
    read_image,
    resize,
    to_grey,
    to_planar,
    to_tensor,
    write_image,
)

LOSSLESS = [".png", ".bmp"]


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def all_levels() -> np.ndarray:
    """Every level in every channel, uint8 [16, 16, 3]."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)


# Reading and writing


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_round_trip(tmp_path, picture, suffix):
    path = write_image(tmp_path / f"a{suffix}", picture)
    assert np.array_equal(read_image(path), picture)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pure_red_reads_as_red(tmp_path, suffix):
    """OpenCV's own order is blue, green, red."""
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 0] = 255
    found = read_image(write_image(tmp_path / f"red{suffix}", red))
    assert found[16, 16].tolist() == pytest.approx([255, 0, 0], abs=4)  # jpg and webp are lossy


def test_red_written_by_opencv_reads_as_red(tmp_path):
    bgr = np.zeros((8, 8, 3), np.uint8)
    bgr[:, :, 2] = 255
    assert cv2.imwrite(str(tmp_path / "red.png"), bgr)
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_red_written_by_us_is_red_to_opencv(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :, 0] = 255
    write_image(tmp_path / "red.png", red)
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]


def test_non_ascii_path(tmp_path, picture):
    path = tmp_path / "Gesichter – 顔" / "Zoë.png"
    write_image(path, picture)
    assert np.array_equal(read_image(path), picture)


def test_grey_files_become_three_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 77, np.uint8))
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.full((8, 8, 3), 77))


def test_transparent_files_lose_their_alpha(tmp_path):
    bgra = np.full((8, 8, 4), (10, 20, 30, 128), np.uint8)
    cv2.imwrite(str(tmp_path / "alpha.png"), bgra)
    assert read_image(tmp_path / "alpha.png")[0, 0].tolist() == [30, 20, 10]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such image"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("content", [b"", b"text, not an image", b"\x89PNG\r\n\x1a\n"])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png: not a readable image"):
        read_image(tmp_path / "bad.png")


def test_unknown_suffix_and_wrong_arrays(tmp_path, picture):
    with pytest.raises(ImageError, match=r"image suffix='\.pgn'.*did you mean '\.png'"):
        write_image(tmp_path / "a.pgn", picture)
    for wrong in (picture.astype(np.float32), picture[:, :, 0], picture[:, :, :2]):
        with pytest.raises(ImageError, match=r"expected uint8 \[H, W, 3\]"):
            write_image(tmp_path / "a.png", wrong)
        with pytest.raises(ImageError, match="face 7"):
            check_image(wrong, "face 7")
    assert not list(tmp_path.iterdir())


# Size and colour


def test_resize(picture):
    assert resize(picture, (40, 24)) is picture
    assert resize(picture, 16).shape == (16, 16, 3)
    assert resize(picture, (10, 20)).shape == (20, 10, 3)
    assert np.array_equal(resize(picture, (20, 12)), cv2.resize(picture, (20, 12)))


def test_grey_is_opencvs(picture):
    grey = to_grey(picture)
    assert grey.shape == picture.shape
    assert np.array_equal(grey[:, :, 1], cv2.cvtColor(picture[:, :, ::-1].copy(), cv2.COLOR_BGR2GRAY))
    assert np.ptp(grey, axis=2).max() == 0


def test_planar_round_trip(picture):
    planar = to_planar(picture)
    assert planar.shape == (3, 24, 40)
    assert planar.flags.c_contiguous
    assert np.array_equal(planar[0], picture[:, :, 0])
    assert np.array_equal(from_planar(planar), picture)


# Tensors


def test_to_tensor_matches_the_cards_normalisation(picture):
    tensor = to_tensor(picture)
    assert tensor.shape == (1, 3, 24, 40)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    expected = (picture.astype(np.float64) / 255 - 0.5) / 0.5
    assert np.abs(tensor[0].transpose(1, 2, 0) - expected).max() < 2e-7
    assert to_tensor(all_levels()).min() == -1
    assert to_tensor(all_levels()).max() == 1


def test_to_tensor_takes_batches_and_lists(picture):
    stacked = np.stack([picture, 255 - picture])
    assert np.array_equal(to_tensor(stacked), to_tensor([picture, 255 - picture]))
    assert to_tensor(stacked).shape == (2, 3, 24, 40)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_to_tensor_refuses_other_arrays(wrong):
    with pytest.raises(ImageError, match="expected uint8"):
        to_tensor(wrong)


def test_all_levels_come_back_exactly():
    assert np.array_equal(from_tensor(to_tensor(all_levels()))[0], all_levels())


def test_round_and_truncate_differ_as_they_should():
    levels = np.arange(255, dtype=np.float32)
    three_quarters = (levels + 0.75) / 127.5 - 1  # of the way to the next level
    between = np.tile(three_quarters, (1, 3, 1, 1))
    assert from_tensor(between)[0, 0, :, 0].tolist() == list(range(1, 256))
    assert from_tensor(between, "truncate")[0, 0, :, 0].tolist() == list(range(255))


def test_truncation_darkens_by_half_a_level():
    tensor = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    difference = from_tensor(tensor).astype(int) - from_tensor(tensor, "truncate")
    assert set(np.unique(difference)) == {0, 1}
    assert difference.mean() == pytest.approx(0.5, abs=0.02)


def test_from_tensor_clips_and_keeps_half_precision():
    extreme = np.array([-7.0, -1.0, 0.0, 1.0, 9.0], np.float16).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert from_tensor(extreme)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds to even


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    tensor = np.zeros((1, 3, 4, 4), np.float32)
    tensor[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        from_tensor(tensor)


def test_unknown_rounding():
    with pytest.raises(ValueError, match=r"rounding='floor': allowed are round, truncate"):
        from_tensor(np.zeros((1, 3, 4, 4), np.float32), "floor")
