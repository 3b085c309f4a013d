"""Blind degradation for the task ``restore``: blur, downsampling, noise and JPEG, drawn at random.

``degraded = upsample(JPEG_q(downsample_s(truth * k) + n))``, GPEN paper (Yang et al., CVPR 2021), section
4.1: ``k`` a blur kernel, ``s`` the factor, ``n`` white noise, ``q`` the JPEG quality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from gpenlib.images import FloatArray, Image
from gpenlib.run import choice_error

KERNELS = ("isotropic", "anisotropic", "motion")
LEAST_SIDE = 4  # pixels that are left of a picture at least
Range = tuple[float, float]


def check_ranges(settings: object, limits: Mapping[str, Range]) -> None:
    """Raise ValueError unless each named (low, high) of ``settings`` lies in order within its limits."""
    for name, (least, most) in limits.items():
        low, high = getattr(settings, name)
        if not least <= low <= high <= most:
            raise ValueError(f"{name}={(low, high)}: needed is {least:g} <= low <= high <= {most:g}")


@dataclass(frozen=True)
class BlindDegradation:
    """Ranges of the blind degradation; calling it with an image and a generator degrades the image.

    Every value is drawn uniformly and anew for each picture. Lengths and the factor are given for pictures
    of ``side`` pixels and scaled with the picture: a face is blurred over the same part of its width and
    recorded with the same number of pixels (``side / factor``) at every size, so a degraded face looks the
    same at 128 and at 512 pixels. A picture smaller than ``side / factor`` keeps its pixels.

    Attributes
    ----------
    side : int
        Side of the pictures that the lengths are meant for, in pixels.
    blur : (float, float)
        Standard deviation of the Gaussian kernels along each axis, pixels.
    motion : (float, float)
        Length of the straight path of the motion kernels, pixels.
    factor : (float, float)
        How many times smaller the recorded picture is.
    noise : (float, float)
        Standard deviation of the noise, grey levels of 255; drawn for each channel of each recorded pixel.
    quality : (int, int)
        JPEG quality, 0 to 100, both ends included.
    kernels : tuple of str
        Kinds of kernel, all equally likely: ``"isotropic"``, ``"anisotropic"`` (Gaussians), ``"motion"``.

    Raises
    ------
    ValueError
        If a range is empty or outside what is possible, or a kind of kernel is unknown.
    """

    side: int
    blur: Range
    motion: Range
    factor: Range
    noise: Range
    quality: tuple[int, int]
    kernels: tuple[str, ...] = KERNELS

    def __post_init__(self) -> None:
        limits = {
            "blur": (1e-3, math.inf),
            "motion": (0.0, math.inf),
            "factor": (0.1, math.inf),
            "noise": (0.0, 255.0),
            "quality": (0, 100),
        }
        check_ranges(self, limits)
        if self.side < 1:
            raise ValueError(f"side={self.side}: must be at least 1")
        for kind in self.kernels or ("none",):
            if kind not in KERNELS:
                raise ValueError(choice_error("kernels", kind, KERNELS))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Degrade one picture.

        Parameters
        ----------
        image : uint8 RGB [H, W, 3]
            It is not changed.
        rng : numpy.random.Generator
            What it gives decides everything random.

        Returns
        -------
        uint8 RGB [H, W, 3]
            Enlarged to its former size (bilinear).
        """
        height, width = image.shape[:2]
        scale = max(height, width) / self.side
        blurred = cv2.filter2D(image, -1, self.kernel(rng, scale), borderType=cv2.BORDER_REFLECT_101)
        factor = max(1.0, scale * rng.uniform(*self.factor))
        small = tuple(max(LEAST_SIDE, round(length / factor)) for length in (width, height))
        # Averaging over areas: without it a factor of 20 would pick single pixels of the picture
        recorded = cv2.resize(blurred, small, interpolation=cv2.INTER_AREA).astype(np.float32)
        deviation = rng.uniform(*self.noise)
        recorded += deviation * rng.standard_normal(recorded.shape, dtype=np.float32)
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        stored = compress(np.clip(np.rint(recorded), 0, 255).astype(np.uint8), quality)
        return np.asarray(cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)

    def kernel(self, rng: np.random.Generator, scale: float) -> FloatArray:
        """Draw a blur kernel for pictures ``scale`` times as large as ``side``, float32 [K, K], sum 1."""
        kind = self.kernels[int(rng.integers(len(self.kernels)))]
        angle = rng.uniform(0, math.pi)
        if kind == "motion":
            return motion_kernel(scale * rng.uniform(*self.motion), angle)
        along, across = rng.uniform(*self.blur, size=2)
        return gaussian_kernel(scale * along, scale * (along if kind == "isotropic" else across), angle)


# The ranges that the paper names for faces of 1024 pixels: noise, factor and quality. It only says that the
# kernels are Gaussian and motion blur "with varying kernel sizes": ours are those of the released code at
# this size, and motion over up to the width of its kernels.
PAPER = BlindDegradation(
    side=1024, blur=(0.2, 20.0), motion=(2.0, 80.0), factor=(10.0, 200.0), noise=(0.0, 25.0), quality=(5, 50)
)
# What the released training code uses for 512 pixels (GFPGAN's ranges, which its authors call good enough),
# where both kinds of Gaussian are equally likely and nothing moves.
RELEASED = BlindDegradation(
    side=512, blur=(0.1, 10.0), motion=(0.0, 0.0), factor=(0.8, 8.0), noise=(0.0, 20.0), quality=(60, 100),
    kernels=("isotropic", "anisotropic"),
)  # fmt: skip


def gaussian_kernel(along: float, across: float, angle: float) -> FloatArray:
    """Return a Gaussian over three standard deviations, float32 [K, K], K odd, sum 1.

    Parameters
    ----------
    along, across : float
        Standard deviations along the axis at ``angle`` (radians) and across it, pixels, above 0.
    """
    x, y = _grid(3 * max(along, across))
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    weights = np.exp(-0.5 * ((u / along) ** 2 + (v / across) ** 2))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def motion_kernel(length: float, angle: float) -> FloatArray:
    """Return the blur of a straight, even motion: a line one pixel wide, float32 [K, K], K odd, sum 1.

    Parameters
    ----------
    length : float
        Of the path, pixels.
    angle : float
        Of the path, radians.
    """
    x, y = _grid(length / 2 + 1)
    along = np.clip(x * math.cos(angle) + y * math.sin(angle), -length / 2, length / 2)
    distance = np.hypot(x - along * math.cos(angle), y - along * math.sin(angle))
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def compress(image: Image, quality: int) -> Image:
    """Return an image as it is after JPEG (OpenCV's, chroma at half the side).

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    quality : int
        0 to 100.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def _grid(reach: float) -> tuple[FloatArray, FloatArray]:
    """Return the coordinates (x, y) of a kernel's pixels from its centre, at least 3 x 3."""
    radius = max(1, math.ceil(reach))
    line = np.arange(-radius, radius + 1, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x, y
