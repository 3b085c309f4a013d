"""The embedded default: variations of one public-domain photograph, for runs without any data folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from gpenlib.data.align import Landmarks, Matrix, ffhq_matrix, warp
from gpenlib.data.sources import DataError, check_index
from gpenlib.images import FloatArray, Image

VERSION = "astronaut variations 1"  # change it whenever the same Variation gives other pixels
SEED = 20210511

# Read off an eightfold enlargement of scikit-image's astronaut (512 x 512), to about half a pixel.
ASTRONAUT_LANDMARKS = Landmarks(
    left_eye=(203.0, 101.5), right_eye=(247.0, 103.2), left_mouth=(203.3, 140.0), right_mouth=(246.3, 140.3)
)

MAX_TURN = 5.0  # degrees
MAX_SHIFT = 0.025  # of the side
SCALE_RANGE = (0.94, 1.08)
EXPOSURE_RANGE = (-0.45, 0.18)  # stops, in linear light
GAMMA_RANGE = (0.90, 1.12)
MAX_TEMPERATURE = 0.11  # stops by which red rises and blue falls, or the reverse
CONTRAST_RANGE = (0.90, 1.10)  # slope at the mean tone
SATURATION_RANGE = (0.85, 1.12)
BLURRED_PART = 0.3  # of the images
MAX_BLUR = 0.7 / 256  # standard deviation, of the side
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Variation:
    """How one embedded image differs from the photograph.

    Attributes
    ----------
    mirror : bool
    turn : float
        Degrees, positive clockwise in the picture.
    scale : float
        Enlargement of the face.
    shift : (float, float)
        To the right and down, as a part of the side.
    exposure : float
        Stops, in linear light.
    temperature : float
        Stops by which red is raised and blue lowered; negative is cooler.
    gamma : float
        Exponent on display values; above 1 is darker in the middle tones.
    contrast : float
        Slope around the middle tone.
    saturation : float
        Factor on the distance from grey, which keeps the hue.
    blur : float
        Standard deviation of a Gaussian, as a part of the side.
    """

    mirror: bool = False
    turn: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    exposure: float = 0.0
    temperature: float = 0.0
    gamma: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    blur: float = 0.0


def variation(index: int) -> Variation:
    """Return the variation of image ``index``; 0 is the photograph itself. It depends on ``index`` alone."""
    if index == 0:
        return Variation()
    rng = np.random.default_rng((SEED, index))
    return Variation(
        mirror=bool(rng.random() < 0.5),
        turn=float(rng.uniform(-MAX_TURN, MAX_TURN)),
        scale=float(rng.uniform(*SCALE_RANGE)),
        shift=(float(rng.uniform(-MAX_SHIFT, MAX_SHIFT)), float(rng.uniform(-MAX_SHIFT, MAX_SHIFT))),
        exposure=float(rng.uniform(*EXPOSURE_RANGE)),
        temperature=float(rng.uniform(-MAX_TEMPERATURE, MAX_TEMPERATURE)),
        gamma=float(rng.uniform(*GAMMA_RANGE)),
        contrast=float(rng.uniform(*CONTRAST_RANGE)),
        saturation=float(rng.uniform(*SATURATION_RANGE)),
        blur=float(rng.uniform(0.3, 1.0) * MAX_BLUR) if rng.random() < BLURRED_PART else 0.0,
    )


@dataclass(frozen=True)
class EmbeddedSource:
    """Faces that need no download: scikit-image's ``astronaut`` in FFHQ layout and variations of it.

    The photograph is NASA's portrait of Eileen Collins (public domain). Image 0 is the FFHQ crop, image k > 0
    the variation :func:`variation` gives for k: mirrored or not, slightly turned, scaled and shifted, with
    another exposure, white balance, gamma, contrast and saturation, some a little soft. Image k is the same
    however many images are asked for, and the same picture at every size.

    The FFHQ square is 176 pixels wide in the photograph, so every size above that is an enlargement (2.9
    times at 512): the images are softer than real data of their size. All show one person, so scores on
    them show that a pipeline works and say little about a model.

    Parameters
    ----------
    count : int
        How many images there are, at least 1; no upper limit.
    size : int
        Side in pixels, at least 16.

    Raises
    ------
    DataError
        If ``count`` or ``size`` is too small.
    """

    count: int
    size: int = 512

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16:
            raise DataError(
                f"embedded images: count={self.count}, size={self.size}; needed are at least 1 and 16"
            )

    @property
    def label(self) -> str:
        """What scores on these images mean."""
        return (
            "embedded: variations of one public-domain photograph; scores show that the pipeline works, "
            "not how good the model is"
        )

    @property
    def names(self) -> Sequence[str]:
        """``astronaut_0000.png`` and on."""
        return [f"astronaut_{index:04d}.png" for index in range(self.count)]

    def read(self, index: int) -> Image:
        """Return image ``index`` as uint8 RGB [size, size, 3].

        Raises
        ------
        IndexError
            If ``index`` is not in 0 .. count - 1.
        """
        check_index(index, self.count, "embedded image")
        return apply(variation(index), self.size)

    def digest(self, index: int) -> str:
        """Return a hash of everything that decides the pixels, without building them."""
        check_index(index, self.count, "embedded image")
        how = (variation(index), self.size, ASTRONAUT_LANDMARKS)
        content = f"{VERSION}|{index}|{how}|{_photograph_digest()}"
        return hashlib.sha256(content.encode()).hexdigest()


def apply(how: Variation, size: int) -> Image:
    """Return the photograph's FFHQ crop, varied.

    Geometry is one resampling of the photograph, so turning and shifting bring in its real surroundings
    instead of mirrored margins, and nothing is interpolated twice.

    Parameters
    ----------
    how : Variation
    size : int
        Side in pixels.

    Returns
    -------
    uint8 RGB [size, size, 3]
    """
    moved = warp(_photograph(), variation_matrix(how, size), size)
    if how == Variation():
        return moved
    toned: FloatArray = np.asarray(cv2.LUT(moved, _tone_tables(how)), dtype=np.float32)
    grey = toned @ LUMA  # [H, W]
    toned *= how.saturation
    toned += ((1 - how.saturation) * grey)[:, :, None]
    if how.blur:
        toned = np.asarray(cv2.GaussianBlur(toned, (0, 0), how.blur * size), dtype=np.float32)
    return np.clip(np.rint(toned), 0, 255).astype(np.uint8)


def variation_matrix(how: Variation, size: int) -> Matrix:
    """Return the transform from the photograph to the varied crop, float64 [2, 3], in pixels."""
    angle = np.deg2rad(how.turn)
    cosine, sine = how.scale * np.cos(angle), how.scale * np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    if how.mirror:
        turn = turn @ np.diag([-1.0, 1.0])
    middle = np.full(2, (size - 1) / 2)
    offset = middle - turn @ middle + size * np.asarray(how.shift)
    base = ffhq_matrix(ASTRONAUT_LANDMARKS, size)
    return np.column_stack([turn @ base[:, :2], turn @ base[:, 2] + offset])


def _tone_tables(how: Variation) -> FloatArray:
    """Return the tone curve of each channel over the 256 levels, float32 [1, 256, 3] in [0, 255]."""
    levels = np.arange(256) / 255.0
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)  # sRGB
    stops = how.exposure + how.temperature * np.array([1.0, 0.0, -1.0])
    exposed = np.clip(linear[:, None] * 2.0**stops, 0.0, 1.0)  # [256, 3]
    display = np.where(exposed <= 0.0031308, exposed * 12.92, 1.055 * exposed ** (1 / 2.4) - 0.055)
    toned = display**how.gamma
    # An S curve with fixed ends: its slope is `contrast` in the middle, and nothing new is clipped.
    toned = toned + (how.contrast - 1) * 4 * toned * (1 - toned) * (toned - 0.5)
    return np.asarray(255.0 * np.clip(toned, 0.0, 1.0), dtype=np.float32)[None]


@lru_cache(maxsize=1)
def _photograph() -> Image:
    """Return scikit-image's astronaut, uint8 RGB [512, 512, 3], which comes with the package."""
    from skimage import data  # imported here: most runs bring their own images

    photograph: Image = np.asarray(data.astronaut(), dtype=np.uint8)
    photograph.setflags(write=False)  # it is shared by all callers
    return photograph


@lru_cache(maxsize=1)
def _photograph_digest() -> str:
    """Return the SHA-256 of the photograph's pixels."""
    return hashlib.sha256(_photograph().tobytes()).hexdigest()
