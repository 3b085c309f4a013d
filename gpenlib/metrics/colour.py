"""Colour: CIELAB, differences in it, colourfulness."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import xyz_tristimulus_values
from skimage.color.colorconv import xyz_from_rgb

from gpenlib.metrics.arrays import Array, check_pair, strips

LabArray = NDArray[np.float32]


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
    for rows in strips(len(image)):
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
    total = sum(_ciede2000(a[rows], b[rows]).sum(dtype=np.float64) for rows in strips(len(a)))
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
    for rows in strips(len(a)):
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
    check_pair(a, b, None)
    return float(np.linalg.norm(mean_colour(to_lab(a)) - mean_colour(to_lab(b))))


def colourfulness(image: Array) -> float:
    """Return Hasler and Suesstrunk's colourfulness (2003) of uint8 RGB: 0 for grey, 30-60 for portraits."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def _check_lab(a: Array, b: Array) -> None:
    """Raise unless both arrays may be CIELAB images of one shape."""
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3:
        raise ValueError(f"CIELAB images of shapes {a.shape} and {b.shape}: expected one shape [H, W, 3]")
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise ValueError(f"{a.dtype} and {b.dtype}: convert the images with to_lab first")
