"""Scores: hand-computed cases, and the reference figures of the vendor's metric code."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.data import astronaut
from skimage.metrics import structural_similarity

from gpenlib.images import read_image, to_grey
from gpenlib.metrics import (
    SsimReference,
    chroma_error,
    colour_shift,
    colourfulness,
    delta_e2000,
    detail,
    finite_psnr,
    mean_colour,
    psnr,
    sharpness,
    ssim,
    to_lab,
)

REFERENCE = json.loads((Path(__file__).parent / "reference" / "metrics.json").read_text())["rows"]


@pytest.fixture
def picture() -> np.ndarray:
    smooth = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(48, 64, 3)), (0, 0), 3)
    return np.rint(128 + 500 * smooth).clip(10, 245).astype(np.uint8)


def flat(colour: tuple[int, int, int], side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: Path(row["image"]).stem)
def test_reference_figures(shared, row):
    truth = read_image(shared / "faces" / row["image"])
    grey, blurred = to_grey(truth), cv2.GaussianBlur(truth, (0, 0), 2)
    assert psnr(grey, truth) == pytest.approx(row["gray_psnr"], abs=1e-6)
    assert ssim(grey, truth) == pytest.approx(row["gray_ssim"], abs=1e-6)
    assert psnr(blurred, truth) == pytest.approx(row["blur_psnr"], abs=1e-6)
    assert ssim(blurred, truth) == pytest.approx(row["blur_ssim"], abs=1e-6)


def test_known_errors(picture):
    """CIELAB of black is (0, 0, 0), of white (100, 0, 0); of red (53.24, 80.09, 67.20)."""
    black, white = flat((0, 0, 0)), flat((255, 255, 255))
    for offset in (1, 5, 10):
        assert psnr(picture, picture + np.uint8(offset)) == pytest.approx(20 * math.log10(255 / offset))
    one_wrong = black.copy()
    one_wrong[4, 5] = (48, 0, 0)  # mean square error 48^2 / (3 * 256) = 3
    assert psnr(one_wrong, black) == pytest.approx(10 * math.log10(255**2 / 3))
    assert psnr(black, white) == psnr(white, black) == 0, "unsigned differences do not wrap around"
    assert psnr(picture, picture) == math.inf and finite_psnr(picture, picture) == 100
    assert ssim(picture, picture) == pytest.approx(1) and colour_shift(picture, picture) == 0
    assert colour_shift(black, white) == pytest.approx(100, abs=0.02)
    assert colour_shift(black, flat((255, 0, 0))) == pytest.approx(117.34, abs=0.03)


def test_floats_agree_with_bytes(picture):
    """[-1, 1] with data range 2 and grey levels with data range 255 are one PSNR."""
    other = np.clip(picture.astype(int) + 7, 0, 255).astype(np.uint8)
    a, b = picture / 127.5 - 1, other / 127.5 - 1
    assert psnr(a, b, 2.0) == pytest.approx(psnr(picture, other))
    assert psnr(np.float32(a), np.float32(b), 2.0) == pytest.approx(psnr(picture, other), abs=1e-4)
    assert psnr(np.float32(picture), np.float32(other), 255.0) == pytest.approx(psnr(picture, other))
    assert ssim(a + 1, b + 1, 2.0) == pytest.approx(ssim(picture, other))


@pytest.mark.parametrize("measure", [psnr, ssim, colour_shift, delta_e2000, chroma_error])
def test_images_of_different_kinds_are_refused(picture, measure):
    if measure in (delta_e2000, chroma_error):
        cases = {"to_lab": (picture, picture), "shape": (to_lab(picture), to_lab(picture)[:-1])}
    else:
        floats = picture.astype(np.float32)
        cases = {
            r"\(47, 64, 3\)": (picture, picture[:-1]),
            "float32": (picture, floats),
            "data_range": (floats,) * 2,
        }
    for named, images in cases.items():
        with pytest.raises(ValueError, match=named):
            measure(*images)


def test_colourfulness_and_sharpness():
    assert colourfulness(flat((90, 90, 90))) == sharpness(flat((10, 200, 90))) == 0
    # Flat red: rg = 255, yb = 127.5, no deviation
    assert colourfulness(flat((255, 0, 0))) == pytest.approx(0.3 * math.hypot(255, 127.5))
    # Stripes one pixel wide: the Laplacian of +-v is -+4v along them, its variance (4v)^2
    stripes = np.where(np.arange(32)[:, None, None] % 2, 130, 110).repeat(32, 1).repeat(3, 2).astype(np.uint8)
    assert sharpness(stripes) == pytest.approx((4 * 10) ** 2, rel=1e-6)


def test_detail_counts_what_is_true_and_no_noise():
    truth = astronaut()[:128, 160:288]
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    noisy = np.clip(truth + noise, 0, 255).astype(np.uint8)
    half = (127.5 + 0.5 * (truth - 127.5)).astype(np.uint8)
    assert detail(truth, truth) == pytest.approx(1)
    assert detail(half, truth) == pytest.approx(0.5, abs=0.01)
    assert detail(255 - truth, truth) == pytest.approx(-1, abs=0.01)
    assert sharpness(noisy) > 2 * sharpness(truth) and detail(noisy, truth) == pytest.approx(1, abs=0.05)
    assert detail(cv2.GaussianBlur(truth, (0, 0), 1.5), truth) < 0.6
    assert detail(truth, flat((10, 200, 90), 128)) == detail(flat((1, 2, 3), 128), truth) == 0


@pytest.mark.parametrize("shape", [(48, 64, 3), (150, 40, 3), (11, 11, 3), (80, 70)])
def test_ssim_is_that_of_scikit_image(shape):
    """Also where the image takes several strips, where one window fills it, and with a kept reference."""
    random = np.random.default_rng(0)
    a, b = (cv2.GaussianBlur(random.uniform(0, 255, shape), (0, 0), s).astype(np.uint8) for s in (1, 1.5))
    _, full = structural_similarity(
        a.astype(float), b.astype(float), data_range=255, channel_axis=2 if len(shape) == 3 else None,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-12)
    reference = SsimReference(b)
    assert [reference.score(each) for each in (a, b)] == [ssim(a, b), ssim(b, b)]
    for refused in (lambda: ssim(a[:10], b[:10]), lambda: reference.score(a[:-1])):
        with pytest.raises(ValueError, match=r"11x11|\("):
            refused()


def test_lab_is_that_of_scikit_image(picture):
    """Over the whole cube of colours; a bit of float32 near 100 is 8e-6."""
    colours = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    colours[0, :256] = np.arange(256)[:, None]
    np.testing.assert_allclose(to_lab(colours), rgb2lab(colours.astype(np.float32) / 255), rtol=0, atol=2e-5)
    np.testing.assert_allclose(mean_colour(to_lab(picture)), rgb2lab(picture).mean(axis=(0, 1)), atol=1e-3)
    with pytest.raises(ValueError, match="float64"):
        to_lab(picture / 255)


# Test data of Sharma, Wu and Dalal (2005): blue, grey, hues on both sides of 180 degrees, far colours
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, -0.001, 2.49), (50, 0.0009, -2.49), 4.8045),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ],
)
def test_delta_e_of_published_pairs(first, second, expected):
    a, b = (np.broadcast_to(np.float32(colour), (70, 2, 3)) for colour in (first, second))
    assert delta_e2000(a, b) == pytest.approx(expected, abs=1e-4)


def test_delta_e_is_that_of_scikit_image():
    """Over all colours, greys among them; pixel by pixel, in rows of one."""
    random = np.random.default_rng(0)
    a, b = (random.uniform((0, -90, -90), (100, 90, 90), (4000, 1, 3)).astype(np.float32) for _ in range(2))
    a[:500, :, 1:] = 0
    b[250:750, :, 1:] = 0
    expected = deltaE_ciede2000(a.astype(np.float64), b.astype(np.float64))
    found = [delta_e2000(a[i : i + 1], b[i : i + 1]) for i in range(len(a))]
    np.testing.assert_allclose(found, expected[:, 0], rtol=0, atol=2e-4)
    assert delta_e2000(a, b) == pytest.approx(expected.mean(), abs=1e-6)  # the mean over pixels


def test_chroma_error(picture):
    a = np.zeros((100, 4, 3), np.float32)
    b = a.copy()
    b[:50] += (40, 3, 4)  # lightness does not count
    assert chroma_error(a, b) == chroma_error(b, a) == pytest.approx(2.5)
    lab = to_lab(picture)  # of a grey image it is the chroma of the truth
    expected = np.hypot(lab[..., 1], lab[..., 2]).mean()
    assert chroma_error(to_lab(to_grey(picture)), lab) == pytest.approx(expected, abs=0.02)
