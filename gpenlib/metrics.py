"""Image quality figures: arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import xyz_tristimulus_values
from skimage.color.colorconv import xyz_from_rgb

Array = NDArray[Any]
LabArray = NDArray[np.float32]
PSNR_CEILING = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
STRIP = 64  # rows


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
    width = _check(a, b, data_range)
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
        total = sum(self._similarity(image, rows) for rows in _strips(height))
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


def to_lab(image: Array) -> LabArray:
    """Return the CIELAB coordinates (D65) of uint8 RGB, float32 [H, W, 3]; L in [0, 100].

    To the last bit what scikit-image's ``rgb2lab`` gives for ``image / 255`` in float32, three times as fast,
    because uint8 has only 256 values whose power need be taken.

    Raises
    ------
    ValueError
        If ``image`` is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{image.dtype} {image.shape}: expected uint8 RGB [H, W, 3]")
    linear, from_linear, white = _lab_constants()
    lab = np.empty(image.shape, dtype=np.float32)
    for rows in _strips(len(image)):
        xyz = linear[image[rows]] @ from_linear / white
        root = np.cbrt(xyz)
        dark = xyz <= 0.008856
        root[dark] = 7.787 * xyz[dark] + 16.0 / 116.0
        x, y, z = root[..., 0], root[..., 1], root[..., 2]
        lab[rows, :, 0] = 116.0 * y - 16.0
        lab[rows, :, 1] = 500.0 * (x - y)
        lab[rows, :, 2] = 200.0 * (y - z)
    return lab


@lru_cache(maxsize=1)
def _lab_constants() -> tuple[Array, Array, Array]:
    """Return linear light by sRGB level [256], the matrix from it to XYZ, and D65 white, all float32."""
    level = np.arange(256, dtype=np.float32) / 255
    linear = np.where(level > 0.04045, np.power((level + 0.055) / 1.055, 2.4), level / 12.92)
    white = xyz_tristimulus_values(illuminant="D65", observer="2", dtype=np.float32)
    return linear.astype(np.float32), xyz_from_rgb.T.astype(np.float32), white


def delta_e2000(a: LabArray, b: LabArray) -> float:
    """Return the mean colour difference CIEDE2000 over all pixels; about 1 is just visible.

    The same as scikit-image's ``deltaE_ciede2000`` up to the rounding of float32 (1e-7 in the mean), and
    three times as fast.

    Parameters
    ----------
    a, b : float [H, W, 3]
        CIELAB, as :func:`to_lab` gives it.

    Raises
    ------
    ValueError
        If the arrays are not of one shape, or are uint8 (not yet CIELAB).
    """
    _check_lab(a, b)
    total = sum(_ciede2000(a[rows], b[rows]).sum(dtype=np.float64) for rows in _strips(len(a)))
    return float(total) / (a.shape[0] * a.shape[1])


def _ciede2000(first: Array, second: Array) -> Array:
    """Return CIEDE2000 by pixel, in the steps of Sharma, Wu and Dalal (2005), radians for degrees.

    They treat hue apart where a colour has no chroma. There every term with a hue is multiplied by a chroma
    of 0, so that any hue will do.
    """
    l1, a1, b1 = np.ascontiguousarray(np.moveaxis(first, -1, 0))
    l2, a2, b2 = np.ascontiguousarray(np.moveaxis(second, -1, 0))
    stretch = 1.5 - 0.5 * _saturating(0.5 * (_length(a1, b1) + _length(a2, b2)))  # 1 + G
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = _length(a1, b1), _length(a2, b2)
    h1 = np.arctan2(b1, a1)
    dh = np.arctan2(b2, a2) - h1
    dh -= 2 * math.pi * np.rint(dh / (2 * math.pi))  # the shorter way round
    hue = h1 + 0.5 * dh  # the mean hue, up to whole turns
    chroma, light = 0.5 * (c1 + c2), (0.5 * (l1 + l2) - 50) ** 2
    t = 1 - 0.17 * np.cos(hue - math.radians(30)) + 0.24 * np.cos(2 * hue)
    t += 0.32 * np.cos(3 * hue + math.radians(6)) - 0.20 * np.cos(4 * hue - math.radians(63))
    from_blue = hue - math.radians(275)
    from_blue -= 2 * math.pi * np.floor((from_blue + math.radians(275)) / (2 * math.pi))
    turn = math.radians(60) * np.exp(-((from_blue / math.radians(25)) ** 2))  # 2 delta theta
    dl = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(0.5 * dh) / (1 + 0.015 * chroma * t)
    rotation = -2 * np.sin(turn) * _saturating(chroma)
    return np.asarray(np.sqrt(np.maximum(dl * dl + dc * dc + dh * dh + rotation * dc * dh, 0)))


def _length(a: Array, b: Array) -> Array:
    return np.asarray(np.sqrt(a * a + b * b))


def _saturating(chroma: Array) -> Array:
    """Return sqrt(C^7 / (C^7 + 25^7)); products are much faster than a power."""
    cube = chroma * chroma * chroma
    seventh = cube * cube * chroma
    return np.asarray(np.sqrt(seventh / (seventh + 25.0**7)))


def chroma_error(a: LabArray, b: LabArray) -> float:
    """Return the mean distance of the pixels in CIELAB's chroma plane, sqrt(da^2 + db^2).

    Unlike PSNR it sees colour alone: a grey image that is right in lightness still has the whole chroma
    of the truth as its error. Parameters and errors as :func:`delta_e2000`.
    """
    _check_lab(a, b)
    total = 0.0
    for rows in _strips(len(a)):
        difference = a[rows, :, 1:] - b[rows, :, 1:]
        difference *= difference
        total += float(np.sqrt(difference[..., 0] + difference[..., 1]).sum(dtype=np.float64))
    return total / (a.shape[0] * a.shape[1])


def mean_colour(lab: LabArray) -> NDArray[np.float64]:
    """Return the mean CIELAB coordinates of an image, float64 [3]."""
    return np.array(cv2.mean(lab)[:3])


def colour_shift(a: Array, b: Array) -> float:
    """Return the CIELAB distance (Delta E 1976) between the mean colours of two uint8 RGB images.

    It shows a veil of colour over the whole face, which PSNR and SSIM hardly see.
    """
    _check(a, b, None)
    return float(np.linalg.norm(mean_colour(to_lab(a)) - mean_colour(to_lab(b))))


def colourfulness(image: Array) -> float:
    """Return Hasler and Suesstrunk's colourfulness (2003) of uint8 RGB: 0 for grey, 30-60 for portraits."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def sharpness(image: Array) -> float:
    """Return the variance of the Laplacian of uint8 RGB's luma, 0 for a flat one; noise counts as well."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(luma, cv2.CV_32F).var())


def _strips(height: int) -> Iterator[slice]:
    """Yield slices of some rows each: what is computed in between stays in the processor's cache."""
    for start in range(0, height, STRIP):
        yield slice(start, min(start + STRIP, height))


def _check(a: Array, b: Array, data_range: float | None) -> float:
    """Validate a pair of images and return the width of their value range."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"images differ in kind: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if data_range is not None:
        return float(data_range)
    if a.dtype != np.uint8:
        raise ValueError(f"data_range is required for {a.dtype} images (2.0 for values in [-1, 1])")
    return 255.0


def _check_lab(a: Array, b: Array) -> None:
    """Raise unless both arrays may be CIELAB images of one shape."""
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3:
        raise ValueError(f"CIELAB images of shapes {a.shape} and {b.shape}: expected one shape [H, W, 3]")
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise ValueError(f"{a.dtype} and {b.dtype}: convert the images with to_lab first")
