"""Distance of an image from its truth, whatever it consists of: PSNR and SSIM."""

from __future__ import annotations

import math

import cv2
import numpy as np

from gpenlib.metrics.arrays import Array, check_pair, strips

PSNR_CEILING = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels.

    Parameters
    ----------
    a, b : uint8 or float arrays of one shape
    data_range : float, optional
        Width of the value range: 255 for uint8; required for floats (2.0 for [-1, 1]).

    Returns
    -------
    float
        Infinity for equal arrays.

    Raises
    ------
    ValueError
        If shapes or types differ, or ``data_range`` is missing for floats.
    """
    width = check_pair(a, b, data_range)
    if a.dtype == np.uint8:  # OpenCV sums whole numbers: exact, and much faster
        error = cv2.norm(a.reshape(-1), b.reshape(-1), cv2.NORM_L2SQR) / a.size
    else:
        error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return math.inf if error == 0 else 10.0 * math.log10(width**2 / error)


def finite_psnr(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return :func:`psnr`, with 100 dB for equal images so that means stay finite."""
    return min(psnr(a, b, data_range), PSNR_CEILING)


def ssim(a: Array, b: Array, data_range: float | None = None) -> float:
    """Return the structural similarity index of Wang et al. 2004.

    11x11 Gaussian window, sigma 1.5, valid region only, computed per channel and averaged, which is
    what the vendor's evaluation script computes.

    Parameters
    ----------
    a, b : [H, W, 3] or [H, W], uint8 or float
    data_range : float, optional
        As :func:`psnr`.

    Raises
    ------
    ValueError
        As :func:`psnr`, or if an image is smaller than the window.
    """
    width = check_pair(a, b, data_range)
    return SsimReference(b, width).score(a)


class SsimReference:
    """SSIM of many images against one, whose local means and energies are filtered only once.

    Parameters
    ----------
    image : [H, W, 3] or [H, W], uint8 or float
    data_range : float
        Width of the value range. SSIM depends on where zero is: use values from 0 upwards.

    Raises
    ------
    ValueError
        If ``image`` is smaller than the window.
    """

    def __init__(self, image: Array, data_range: float = 255.0) -> None:
        if min(image.shape[:2]) < SSIM_WINDOW:
            raise ValueError(f"image of shape {image.shape} is smaller than SSIM's 11x11 window")
        self._values = image.astype(np.float64)
        self._mean = _window_mean(self._values)
        self._energy = _window_mean(self._values**2)
        self._c1, self._c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2

    def score(self, image: Array) -> float:
        """Return the SSIM of ``image``, an array of the same shape and value range.

        Raises
        ------
        ValueError
            If the shape differs.
        """
        if image.shape != self._values.shape:
            raise ValueError(f"images differ in shape: {image.shape} and {self._values.shape}")
        height = len(self._mean)
        total = sum(self._similarity(image, rows) for rows in strips(height))
        return total / self._mean.size

    def _similarity(self, image: Array, rows: slice) -> float:
        """Return the sum of the similarity over some rows of windows."""
        pixels = slice(rows.start, rows.stop + SSIM_WINDOW - 1)
        values, others = image[pixels].astype(np.float64), self._values[pixels]
        mean, other_mean = _window_mean(values), self._mean[rows]
        means = mean * other_mean
        squares = mean * mean
        squares += other_mean * other_mean
        covariance = _window_mean(values * others) - means
        variances = _window_mean(values * values) + self._energy[rows]
        variances -= squares
        similarity = (2 * means + self._c1) * (2 * covariance + self._c2)
        similarity /= (squares + self._c1) * (variances + self._c2)
        return float(similarity.sum())


def _window_mean(values: Array) -> Array:
    """Return Gaussian-weighted means over every window that lies inside the image, [H - 10, W - 10, ...].

    OpenCV's separable filter gives what scikit-image's ``structural_similarity`` computes, five times
    as fast.
    """
    profile = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_64F)
    inside = SSIM_WINDOW // 2
    return np.asarray(cv2.sepFilter2D(values, -1, profile, profile))[inside:-inside, inside:-inside]
