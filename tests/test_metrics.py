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


def test_psnr_of_known_errors(picture):
    for offset in (1, 5, 10):
        assert psnr(picture, picture + np.uint8(offset)) == pytest.approx(20 * math.log10(255 / offset))
    one_wrong = flat((0, 0, 0), 10)
    one_wrong[4, 5] = (30, 0, 0)  # mean square error 900 / 300
    assert psnr(one_wrong, flat((0, 0, 0), 10)) == pytest.approx(10 * math.log10(255**2 / 3))
    black, white = flat((0, 0, 0)), flat((255, 255, 255))
    assert psnr(black, white) == psnr(white, black) == 0, "unsigned differences do not wrap around"


def test_equal_images(picture):
    assert psnr(picture, picture) == math.inf and finite_psnr(picture, picture) == 100
    assert ssim(picture, picture) == pytest.approx(1)
    assert colour_shift(picture, picture) == 0


def test_floats_agree_with_bytes(picture):
    """[-1, 1] with data range 2 and grey levels with data range 255 are one PSNR."""
    other = np.clip(picture.astype(int) + 7, 0, 255).astype(np.uint8)
    a, b = picture / 127.5 - 1, other / 127.5 - 1
    assert psnr(a, b, 2.0) == pytest.approx(psnr(picture, other))
    assert psnr(np.float32(a), np.float32(b), 2.0) == pytest.approx(psnr(picture, other), abs=1e-4)
    assert psnr(np.float32(picture), np.float32(other), 255.0) == pytest.approx(psnr(picture, other))
    assert ssim(a + 1, b + 1, 2.0) == pytest.approx(ssim(picture, other))


@pytest.mark.parametrize("measure", [psnr, ssim, colour_shift])
def test_images_of_different_kinds_are_refused(picture, measure):
    with pytest.raises(ValueError, match=r"\(48, 64, 3\) and uint8 \(47, 64, 3\)"):
        measure(picture, picture[:-1])
    with pytest.raises(ValueError, match="float32"):
        measure(picture, picture.astype(np.float32))
    with pytest.raises(ValueError, match="data_range is required for float64"):
        measure(picture / 255, picture / 255)


def test_ssim_of_flat_images():
    """Without any structure only the luminance term is left: (2ab + c) / (a^2 + b^2 + c), c = (0.01 L)^2."""
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + constant) / (100**2 + 150**2 + constant)
    assert ssim(flat((100,) * 3), flat((150,) * 3)) == pytest.approx(expected)


def test_colour_shift_of_known_colours():
    """CIELAB of black is (0, 0, 0), of white (100, 0, 0); of red (53.24, 80.09, 67.20)."""
    assert colour_shift(flat((0, 0, 0)), flat((255, 255, 255))) == pytest.approx(100, abs=0.02)
    assert colour_shift(flat((0, 0, 0)), flat((255, 0, 0))) == pytest.approx(117.34, abs=0.03)


def test_colourfulness_and_sharpness():
    assert colourfulness(flat((90, 90, 90))) == sharpness(flat((10, 200, 90))) == 0
    # Flat red: rg = 255, yb = 127.5, no deviation
    assert colourfulness(flat((255, 0, 0))) == pytest.approx(0.3 * math.hypot(255, 127.5))
    # Stripes one pixel wide: the Laplacian of +-v is -+4v along them, its variance (4v)^2
    stripes = np.where(np.arange(32)[:, None, None] % 2, 130, 110).repeat(32, 1).repeat(3, 2).astype(np.uint8)
    assert sharpness(stripes) == pytest.approx((4 * 10) ** 2, rel=1e-6)


def test_detail_counts_what_is_true_and_no_noise():
    truth = astronaut()[:128, 160:288]
    rng = np.random.default_rng(0)
    noisy = np.clip(truth + rng.normal(0, 12, truth.shape), 0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(truth, (0, 0), 1.5)
    half = (127.5 + 0.5 * (truth - 127.5)).astype(np.uint8)
    assert detail(truth, truth) == pytest.approx(1)
    assert detail(half, truth) == pytest.approx(0.5, abs=0.01)
    assert detail(255 - truth, truth) == pytest.approx(-1, abs=0.01)
    assert sharpness(noisy) > 2 * sharpness(truth) and detail(noisy, truth) == pytest.approx(1, abs=0.05)
    assert detail(blurred, truth) < 0.6
    assert detail(truth, flat((10, 200, 90), 128)) == detail(flat((1, 2, 3), 128), truth) == 0
    with pytest.raises(ValueError, match="shapes differ"):
        detail(truth[1:], truth)


@pytest.mark.parametrize("shape", [(48, 64, 3), (150, 40, 3), (11, 11, 3), (80, 70)])
def test_ssim_is_that_of_scikit_image(shape):
    """Also where the image takes several strips, and where one window fills it."""
    random = np.random.default_rng(0)
    a, b = (cv2.GaussianBlur(random.uniform(0, 255, shape), (0, 0), s).astype(np.uint8) for s in (1, 1.5))
    _, full = structural_similarity(
        a.astype(float), b.astype(float), data_range=255, channel_axis=2 if len(shape) == 3 else None,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-12)
    with pytest.raises(ValueError, match="smaller than SSIM's 11x11 window"):
        ssim(a[:10], b[:10])


def test_one_reference_serves_many_images(picture):
    reference = SsimReference(picture)
    for other in (picture, picture + np.uint8(3), picture + np.uint8(9)):
        assert reference.score(other) == ssim(other, picture)
    with pytest.raises(ValueError, match=r"\(48, 64, 3\)"):
        reference.score(picture[:-1])


def test_lab_is_that_of_scikit_image(picture):
    """Over the whole cube of colours; a bit of float32 near 100 is 8e-6."""
    colours = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    colours[0, :256] = np.arange(256)[:, None]
    np.testing.assert_allclose(to_lab(colours), rgb2lab(colours.astype(np.float32) / 255), rtol=0, atol=2e-5)
    np.testing.assert_allclose(to_lab(picture), rgb2lab(picture), atol=1e-3)
    np.testing.assert_allclose(mean_colour(to_lab(picture)), rgb2lab(picture).mean(axis=(0, 1)), atol=1e-3)
    assert to_lab(picture).dtype == np.float32
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


@pytest.mark.parametrize("measure", [delta_e2000, chroma_error])
def test_colours_must_be_lab_of_one_shape(measure, picture):
    with pytest.raises(ValueError, match="to_lab"):
        measure(picture, picture)
    with pytest.raises(ValueError, match="one shape"):
        measure(to_lab(picture), to_lab(picture)[:-1])
