"""Image quality figures: arrays in, numbers out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

Array = NDArray[Any]
PSNR_CEILING = 100.0


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
    width = _check(a, b, data_range)
    error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return math.inf if error == 0 else 10.0 * math.log10(width**2 / error)


def finite_psnr(a: Array, b: Array) -> float:
    """Return the PSNR of two uint8 images, with 100 dB for equal ones so that means stay finite."""
    return min(psnr(a, b), PSNR_CEILING)


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
    width = _check(a, b, data_range)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"image of shape {a.shape} is smaller than SSIM's 11x11 window")
    _, full = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=width,
        channel_axis=2 if a.ndim == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(np.mean(full[5:-5, 5:-5]))  # scikit-image's own mean ignores `truncate`; crop explicitly


def colour_shift(a: Array, b: Array) -> float:
    """Return the CIELAB distance (Delta E 1976) between the mean colours of two uint8 RGB images.

    It shows a veil of colour over the whole face, which PSNR and SSIM hardly see.
    """
    _check(a, b, None)
    mean_a = rgb2lab(a).reshape(-1, 3).mean(axis=0)
    mean_b = rgb2lab(b).reshape(-1, 3).mean(axis=0)
    return float(np.linalg.norm(mean_a - mean_b))


def colourfulness(image: Array) -> float:
    """Return Hasler and Suesstrunk's colourfulness (2003) of uint8 RGB: 0 for grey, 30-60 for portraits."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def _check(a: Array, b: Array, data_range: float | None) -> float:
    """Validate a pair of images and return the width of their value range."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"images differ in kind: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if data_range is not None:
        return float(data_range)
    if a.dtype != np.uint8:
        raise ValueError(f"data_range is required for {a.dtype} images (2.0 for values in [-1, 1])")
    return 255.0
