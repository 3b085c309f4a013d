"""Detail: how sharp an image is, and how much of that is the truth's."""

from __future__ import annotations

import cv2
import numpy as np

from gpenlib.metrics.arrays import Array

DETAIL_RADIUS = 2.0  # pixels


def sharpness(image: Array) -> float:
    """Return the variance of the Laplacian of uint8 RGB's luma, 0 for a flat one; noise counts as well."""
    return float(cv2.Laplacian(_luma(image), cv2.CV_32F).var())


def detail(image: Array, truth: Array) -> float:
    """Return how much of the truth's fine detail an image shows; noise and invented detail do not count.

    Parameters
    ----------
    image, truth : uint8 RGB [H, W, 3]
        Of the same shape.

    Returns
    -------
    float
        Slope of the least-squares line through the origin from the truth's detail to the image's: 1 if all of
        the truth's detail is there in full contrast, 0 if none is, above 1 where it is exaggerated; 0 for a
        flat truth. Detail is luma less its blur with a standard deviation of :data:`DETAIL_RADIUS` pixels.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if image.shape != truth.shape:
        raise ValueError(f"shapes differ: {image.shape} and {truth.shape}")
    shown, wanted = (_fine_detail(picture) for picture in (image, truth))
    energy = float(np.square(wanted).mean())
    flat = energy < 1e-6  # grey levels squared: what rounding leaves
    return 0.0 if flat else float((shown * wanted).mean()) / energy


def _fine_detail(image: Array) -> Array:
    luma = _luma(image)
    return np.asarray(luma - cv2.GaussianBlur(luma, (0, 0), DETAIL_RADIUS))


def _luma(image: Array) -> Array:
    """Return the luma of uint8 RGB in grey levels, float32 [H, W]."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.float32)
