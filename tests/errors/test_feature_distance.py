"""Frechet and kernel distance: closed forms, scipy's matrix root, and what extractors must give."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from gpenlib.metrics import (
    BATCH,
    FeatureError,
    features_of,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    open_extractor,
)


class Means(torch.nn.Module):
    """Mean of each channel."""

    def forward(self, images):
        return images.float().mean(dim=(2, 3))


class Detector(torch.nn.Module):
    """Gives features only when asked for them, as the Inception file does."""

    def forward(self, images, return_features: bool = False):
        means = images.float().mean(dim=(2, 3))
        return means if return_features else means[:, :1] * 0


def script(module, path):
    torch.jit.script(module).save(str(path))
    return path


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def test_gaussians_with_diagonal_covariances():
    """|m|^2 + sum (sqrt(a) - sqrt(b))^2."""
    mean = np.array([1.0, -2.0, 0.5])
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.0])
    expected = 5.25 + 1 + 0 + 9
    assert gaussian_distance(mean, np.diag(a), np.diag(b)) == pytest.approx(expected)
    assert gaussian_distance(-mean, np.diag(b), np.diag(a)) == pytest.approx(expected)


def test_frechet_distance_by_the_formula_of_the_paper():
    random = np.random.default_rng(0)
    a = random.normal(size=(200, 6)) @ random.normal(size=(6, 6))
    b = 1 + random.normal(size=(150, 6)) @ random.normal(size=(6, 6))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_equal_sets_have_no_distance_even_with_few_images():
    a = np.random.default_rng(0).normal(size=(5, 40))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 2) == pytest.approx(160, rel=1e-6)


def test_kernel_distance_by_sums_over_pairs():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 3)), random.normal(size=(4, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [
        np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)
    ]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_of_the_same_distribution_is_about_zero():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(400, 8)), random.normal(size=(400, 8))
    assert abs(kernel_distance(a, b)) < 0.05 < kernel_distance(a, b + 0.5)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_sets_that_do_not_fit_are_refused(measure):
    with pytest.raises(FeatureError, match=r"\(1, 4\)"):
        measure(np.zeros((1, 4)), np.zeros((5, 4)))
    with pytest.raises(FeatureError, match=r"\(5, 3\)"):
        measure(np.zeros((5, 3)), np.zeros((5, 4)))


def test_features_of_more_images_than_one_batch(tmp_path):
    images = pictures(BATCH + 3)
    found = features_of(images, open_extractor(script(Means(), tmp_path / "means.pt")))
    np.testing.assert_allclose(found, [image.mean(axis=(0, 1)) for image in images], rtol=1e-6)


def test_inception_is_asked_for_its_features(tmp_path):
    path = script(Detector(), tmp_path / "detector.pt")
    assert features_of(pictures(2), open_extractor(path, inception=True)).shape == (2, 3)
    assert features_of(pictures(2), open_extractor(path)).shape == (2, 1)


def test_what_is_no_extractor_is_named(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("not a network")
    with pytest.raises(FeatureError, match="notes.pt: not a readable TorchScript file"):
        open_extractor(path)

    class Sum(torch.nn.Module):
        def forward(self, images):
            return images.float().sum()

    with pytest.raises(FeatureError, match=r"sum.pt: gave \(\) for 2 images, expected \[N, D\]"):
        features_of(pictures(2), open_extractor(script(Sum(), tmp_path / "sum.pt")))
    with pytest.raises(FeatureError, match="no image"):
        features_of([], open_extractor(script(Means(), tmp_path / "means.pt")))
