"""The embedded faces: deterministic, distinct, near the photograph, and honest about it."""

import time

import cv2
import numpy as np
import pytest

from gpenlib.data.faces import DataError, Variation, apply, embedded_faces, variation, variation_matrix
from gpenlib.images import resize
from gpenlib.metrics import colour_shift, psnr, ssim

SIZE = 128
SOME = range(24)


@pytest.fixture(scope="module")
def source() -> embedded_faces:
    return embedded_faces(64, SIZE)


def test_kind_and_names(source):
    image = source.read(5)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert source.names[:2] == ["astronaut_0000.png", "astronaut_0001.png"]
    assert len(source.names) == len(set(source.names)) == 64
    assert embedded_faces(1).read(0).shape == (512, 512, 3)


def test_label_says_what_scores_mean(source):
    assert "one public-domain photograph" in source.label
    assert "not how good the model is" in source.label


def test_image_depends_on_its_index_alone(source):
    assert np.array_equal(source.read(7), embedded_faces(8, SIZE).read(7))
    assert source.digest(7) == embedded_faces(8, SIZE).digest(7)


def test_images_and_digests_are_distinct(source):
    digests = [source.digest(index) for index in range(64)]
    assert len(set(digests)) == 64
    assert len({source.read(index).tobytes() for index in SOME}) == len(SOME)
    assert source.digest(3) != embedded_faces(64, 2 * SIZE).digest(3)


def test_first_image_is_the_photograph_and_no_caller_can_change_it(source):
    first = source.read(0)
    first[:] = 0
    assert source.read(0).mean() > 50
    assert variation(0) == Variation()


def test_mirror_and_back(source):
    mirrored = apply(Variation(mirror=True), SIZE)
    assert psnr(np.ascontiguousarray(mirrored[:, ::-1]), source.read(0)) > 45


@pytest.mark.parametrize("index", SOME)
def test_variations_stay_near_the_photograph(source, index):
    """Undo the geometry; what remains is a mild change of tone."""
    how = variation(index)
    image = source.read(index)
    forward = np.vstack([variation_matrix(how, SIZE), [0, 0, 1]])
    base = np.vstack([variation_matrix(Variation(), SIZE), [0, 0, 1]])
    back = (base @ np.linalg.inv(forward))[:2]
    undone = cv2.warpAffine(image, back, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    middle = slice(SIZE // 8, -SIZE // 8)
    found, photograph = undone[middle, middle], source.read(0)[middle, middle]
    assert psnr(found, photograph) > 15
    assert ssim(found, photograph) > 0.8
    assert colour_shift(found, photograph) < 15


def test_skin_stays_skin(source):
    """Cheeks are orange-pink in every variation: hue 5 to 45 degrees, not burnt out."""
    for index in SOME:
        how = variation(index)
        cheek = variation_matrix(how, SIZE) @ (252.0, 120.0, 1.0)  # in the photograph; beside the highlights
        x, y = np.rint(cheek).astype(int)
        red, green, blue = source.read(index)[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(axis=0)
        assert red > green > blue
        assert red < 250
        hue = 60 * (green - blue) / (red - blue)
        assert 5 < hue < 45


def test_sizes_show_one_picture():
    large, small = embedded_faces(9, 256).read(8), embedded_faces(9, 128).read(8)
    assert psnr(resize(large, 128), small) > 30


def test_saturation_keeps_the_grey():
    plain, pale = apply(Variation(mirror=True), SIZE), apply(Variation(mirror=True, saturation=0.0), SIZE)
    grey = cv2.cvtColor(plain, cv2.COLOR_RGB2GRAY)
    assert np.ptp(pale, axis=2).max() == 0
    assert np.abs(pale[:, :, 0].astype(int) - grey).max() <= 1


def test_building_is_cheap():
    source = embedded_faces(12)
    source.read(0)
    seconds = []
    for index in range(1, 12):
        start = time.perf_counter()
        source.read(index)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # 12 ms on a quiet core; the bound leaves room for a busy machine


def test_out_of_range():
    with pytest.raises(IndexError, match="there are 4"):
        embedded_faces(4).read(4)
    with pytest.raises(IndexError):
        embedded_faces(4).digest(-1)
    with pytest.raises(DataError, match="count=0"):
        embedded_faces(0)
    with pytest.raises(DataError, match="size=8"):
        embedded_faces(1, 8)


def test_digest_follows_the_variation(monkeypatch, source):
    """A stage built from other ranges must not pass for the present one."""
    before = [source.digest(index) for index in (0, 3)]
    monkeypatch.setattr("gpenlib.data.faces.EXPOSURE_RANGE", (-0.1, 0.1))
    after = embedded_faces(64, SIZE)
    assert after.digest(0) == before[0]
    assert after.digest(3) != before[1]
