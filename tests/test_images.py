"""Pixels: reading and writing, channel order, range and rounding."""

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from gpenlib import images

RED = np.full((32, 32, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_lossless_round_trip(tmp_path, picture):
    path = images.write_image(tmp_path / "Gesichter – 顔/Zoë.png", picture)
    assert np.array_equal(images.read_image(path), picture)


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_pure_red_reads_as_red(tmp_path, suffix):
    """OpenCV's own order is blue, green, red."""
    path = images.write_image(tmp_path / f"red{suffix}", RED)
    other = tmp_path / f"other{suffix}"
    Pillow.fromarray(RED).save(other)
    for image in (images.read_image(path), np.asarray(Pillow.open(path)), images.read_image(other)):
        assert image[16, 16].tolist() == pytest.approx([255, 0, 0], abs=4)  # jpg and webp are lossy


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P"])
def test_other_kinds_of_pixels_become_rgb_and_lose_their_alpha(tmp_path, mode):
    """Alpha is dropped, not blended: below a transparent pixel stands its own colour."""
    colours = np.tile(np.array([[255, 255, 255, 128], [0, 0, 0, 0]], np.uint8), (8, 4, 1))  # [8, 8, 4]
    source = Pillow.fromarray(colours if mode == "RGBA" else np.ascontiguousarray(colours[:, :, :3]))
    source.convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(images.read_image(tmp_path / "a.png"), colours[:, :, :3])


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path, shape):
    deep = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    expected = deep[:, :, ::-1] if deep.ndim == 3 else deep[:, :, None].repeat(3, axis=2)
    assert np.array_equal(images.read_image(tmp_path / "deep.png"), expected >> 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photographs_are_turned_as_their_exif_says(tmp_path, suffix, orientation, turns):
    picture = np.full((16, 32, 3), 200, np.uint8)
    picture[:, :16] = 30
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(picture).save(tmp_path / f"a{suffix}", exif=exif, quality=100)
    expected, turned = np.rot90(picture, turns).astype(int), images.read_image(tmp_path / f"a{suffix}")
    assert turned.shape == expected.shape and np.abs(turned - expected).mean() < 2


@pytest.mark.parametrize("content", [b"", b"text, not an image", b"\x89PNG\r\n\x1a\n"])
def test_missing_and_damaged_files_are_named(tmp_path, content):
    with pytest.raises(FileNotFoundError, match=r"bad\.png"):
        images.read_image(tmp_path / "bad.png")
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(images.ImageError, match=r"bad\.png"):
        images.read_image(tmp_path / "bad.png")


def test_unknown_suffix_and_wrong_arrays(tmp_path, picture):
    with pytest.raises(images.ImageError, match=r"'\.pgn'.*'\.png'"):
        images.write_image(tmp_path / "a.pgn", picture)
    for wrong in (picture.astype(np.float32), picture[:, :, 0], picture[:, :, :2]):
        with pytest.raises(images.ImageError, match=r"a\.png"):
            images.write_image(tmp_path / "a.png", wrong)
        with pytest.raises(images.ImageError, match="face 7"):
            images.check_image(wrong, "face 7")
        with pytest.raises(images.ImageError):
            images.to_tensor(wrong)
    assert not list(tmp_path.iterdir())


def test_size_grey_and_planes(picture):
    assert images.resize(picture, (40, 24)) is picture and images.resize(picture, 16).shape == (16, 16, 3)
    assert np.array_equal(images.resize(picture, (20, 12)), cv2.resize(picture, (20, 12))), "width first"
    grey = cv2.cvtColor(picture[:, :, ::-1].copy(), cv2.COLOR_BGR2GRAY)
    assert np.array_equal(images.to_grey(picture), grey[:, :, None].repeat(3, axis=2))
    planar = images.to_planar(picture)
    assert planar.flags.c_contiguous and np.array_equal(planar, picture.transpose(2, 0, 1))
    assert np.array_equal(images.from_planar(planar), picture)


def test_to_tensor_matches_the_cards_normalisation(picture):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)  # all, in every channel
    tensor = images.to_tensor(picture)
    assert tensor.shape == (1, 3, 24, 40) and tensor.dtype == np.float32 and tensor.flags.c_contiguous
    expected = (picture.astype(np.float64) / 255 - 0.5) / 0.5
    assert np.abs(tensor[0].transpose(1, 2, 0) - expected).max() < 2e-7
    assert images.to_tensor(levels).min() == -1 and images.to_tensor(levels).max() == 1
    stacked = np.stack([picture, 255 - picture])
    assert images.to_tensor(stacked).shape == (2, 3, 24, 40)
    assert np.array_equal(images.to_tensor(stacked), images.to_tensor([picture, 255 - picture]))
    assert np.array_equal(images.from_tensor(images.to_tensor(levels))[0], levels)


def test_round_and_truncate_differ_as_they_should():
    """Truncation darkens by half a level on average."""
    three_quarters = (np.arange(255, dtype=np.float32) + 0.75) / 127.5 - 1  # of the way to the next level
    between = np.tile(three_quarters, (1, 3, 1, 1))
    assert images.from_tensor(between)[0, 0, :, 0].tolist() == list(range(1, 256))
    assert images.from_tensor(between, "truncate")[0, 0, :, 0].tolist() == list(range(255))
    with pytest.raises(ValueError, match="floor"):
        images.from_tensor(between, "floor")


def test_from_tensor_clips_numbers_and_refuses_others():
    extreme = np.array([-7.0, -1.0, 0.0, 1.0, 9.0], np.float16).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert images.from_tensor(extreme)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds to even
    for value in (np.nan, np.inf, -np.inf):
        extreme[0, 1, 0, 3] = value
        with pytest.raises(ValueError, match="NaN or infinity"):
            images.from_tensor(extreme)
