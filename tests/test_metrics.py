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
    ssims,
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
    for kind, image in {"gray": to_grey(truth), "blur": cv2.GaussianBlur(truth, (0, 0), 2)}.items():
        figures = (row[f"{kind}_psnr"], row[f"{kind}_ssim"])
        assert (psnr(image, truth), ssim(image, truth)) == pytest.approx(figures, abs=1e-6)


def test_known_errors(picture):
    """CIELAB of black is (0, 0, 0), of white (100, 0, 0); of red (53.24, 80.09, 67.20)."""
    black, white = flat((0, 0, 0)), flat((255, 255, 255))
    for offset in (1, 5, 10):
        assert psnr(picture, picture + np.uint8(offset)) == pytest.approx(20 * math.log10(255 / offset))
    a, b = (image / np.float32(127.5) - 1 for image in (picture, picture + np.uint8(7)))  # [-1, 1]
    assert psnr(a, b, 2.0) == pytest.approx(20 * math.log10(255 / 7), abs=1e-4)
    assert ssim(a + 1, b + 1, 2.0) == pytest.approx(ssim(picture, picture + np.uint8(7)), abs=1e-5)
    assert psnr(black, white) == psnr(white, black) == 0  # unsigned differences do not wrap around
    assert psnr(picture, picture) == math.inf and finite_psnr(picture, picture) == 100
    assert ssim(picture, picture) == pytest.approx(1) and colour_shift(picture, picture) == 0
    assert colour_shift(black, white) == pytest.approx(100, abs=0.02)
    assert colour_shift(black, flat((255, 0, 0))) == pytest.approx(117.34, abs=0.03)


@pytest.mark.parametrize("measure", [psnr, ssim, colour_shift, delta_e2000, chroma_error])
def test_images_of_different_kinds_are_refused(picture, measure):
    if measure in (delta_e2000, chroma_error):
        cases = {"to_lab": (picture, picture), "shape": (to_lab(picture), to_lab(picture)[:-1])}
    else:
        floats = picture.astype(np.float32)
        cases = {"float32": (picture, floats), "data_range": (floats, floats)}
        cases[r"\(47, 64, 3\)"] = (picture, picture[:-1])
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
    """Also where the image takes several strips, where one window fills it, and for several images."""
    random = np.random.default_rng(0)
    a, b = (cv2.GaussianBlur(random.uniform(0, 255, shape), (0, 0), s).astype(np.uint8) for s in (1, 1.5))
    _, full = structural_similarity(
        a.astype(float), b.astype(float), data_range=255, channel_axis=2 if len(shape) == 3 else None,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=2e-7)
    assert ssims([a, b], b) == [ssim(a, b), ssim(b, b)]
    for refused in (lambda: ssim(a[:10], b[:10]), lambda: ssims([a[:-1]], b)):
        with pytest.raises(ValueError, match=r"11x11|\("):
            refused()


def test_lab_is_that_of_scikit_image(picture):
    """Over the whole cube of colours; a bit of float32 in XYZ is 3e-5 in a, and b."""
    colours = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    colours[0, :256] = np.arange(256)[:, None]
    np.testing.assert_allclose(
        to_lab(colours), rgb2lab(colours.astype(np.float32) / 255), rtol=0, atol=1.5e-4
    )
    np.testing.assert_allclose(mean_colour(to_lab(picture)), rgb2lab(picture).mean(axis=(0, 1)), atol=1e-3)
    with pytest.raises(ValueError, match="float64"):
        to_lab(picture / 255)


def test_delta_e_is_that_of_scikit_image_and_the_errors_are_means():
    """Over all colours, greys and hues on both sides of 180 degrees among them; in rows of one pixel."""
    random = np.random.default_rng(0)
    a, b = (random.uniform((0, -90, -90), (100, 90, 90), (4000, 1, 3)).astype(np.float32) for _ in range(2))
    a[:500, :, 1:] = b[250:750, :, 1:] = 0
    a[:2, 0] = (50, 2.49, -0.001)
    b[:2, 0] = ((50, -2.49, 0.0009), (50, -2.49, 0.0011))  # Sharma, Wu and Dalal (2005), as the two values
    expected = deltaE_ciede2000(a.astype(np.float64), b.astype(np.float64))
    found = [delta_e2000(a[i : i + 1], b[i : i + 1]) for i in range(len(a))]
    assert found[:2] == pytest.approx([7.1792, 7.2195], abs=1e-4)
    np.testing.assert_allclose(found, expected[:, 0], rtol=0, atol=2e-4)
    assert delta_e2000(a, b) == pytest.approx(expected.mean(), abs=1e-6)
    assert chroma_error(a, b) == pytest.approx(np.hypot(*(a - b)[..., 1:].T).mean(), rel=1e-5)
