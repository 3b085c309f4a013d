"""The second baseline of colouring: the grey input under one even colour, the mean of other faces."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from gpenlib.data.packs import DATALIST, TRUTH_FOLDER, Pack, read_pack
from gpenlib.images import Image, to_grey
from gpenlib.metrics import mean_colour, to_lab
from gpenlib.progress import progress

Chroma = tuple[float, float]
CALIBRATION = "calibration"
GREY = 1.0  # mean chroma below this is no colour: a grey picture, up to rounding


@dataclass(frozen=True)
class DataChroma:
    """The chroma that the baseline gives to each face; never drawn from that face.

    Attributes
    ----------
    source : str
        In words, where it comes from.
    per_face : tuple of (a, b)
        CIELAB coordinates, in the order of the pack.
    """

    source: str
    per_face: tuple[Chroma, ...]


def data_chroma(pack: Pack) -> DataChroma:
    """Return the mean chroma of the data set for every face of a pack.

    It is the mean of CIELAB a and b over all pixels of the calibration truths: those of the pack in the
    folder ``calibration`` beside this one, which shares no picture with it. If there is none, or if
    it is grey, it is the mean over all other faces of this pack; a face alone gets no colour, (0, 0).

    Parameters
    ----------
    pack : Pack
        With truths.
    """
    beside = pack.folder.parent / CALIBRATION
    if (
        (beside / DATALIST).is_file()
        and (beside / TRUTH_FOLDER).is_dir()
        and not beside.samefile(pack.folder)
    ):
        means = _mean_chromas(read_pack(beside))
        a, b = means.mean(axis=0)
        if np.hypot(a, b) >= GREY:
            source = f"mean of {len(means)} calibration truths"
            return DataChroma(source, ((float(a), float(b)),) * len(pack))
    means = _mean_chromas(pack)
    others = (means.sum(axis=0) - means) / max(1, len(means) - 1)
    if len(means) == 1:
        others[:] = 0
    return DataChroma("mean of the other faces' truths", tuple((float(a), float(b)) for a, b in others))


def coloured_with(image: Image, chroma: Chroma) -> Image:
    """Return an image in its own lightness and one even chroma; colours that sRGB lacks are clipped.

    Parameters
    ----------
    image : uint8 [H, W, 3]
        Its grey is taken (equal channels stay as they are).
    chroma : (a, b)
        CIELAB coordinates.

    Returns
    -------
    uint8 [H, W, 3]
    """
    return _coloured_levels(chroma)[to_grey(image)[:, :, 0]]


@lru_cache(maxsize=16)
def _coloured_levels(chroma: Chroma) -> Image:
    """Return what every grey level becomes in one chroma, uint8 [256, 3]."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]  # [1, 256, 3]
    lab = rgb2lab(levels)
    lab[..., 1], lab[..., 2] = chroma
    return np.rint(255 * _to_rgb(lab)[0]).astype(np.uint8)


def _to_rgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB in [0, 1], clipped; scikit-image warns where it clips, which is expected here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.clip(lab2rgb(lab), 0, 1)


def _mean_chromas(pack: Pack) -> NDArray[np.float64]:
    """Return the mean (a, b) of every truth, float64 [N, 2]."""
    bar = progress(range(len(pack)), desc="mean chroma", unit="image", leave=False)
    return np.array([mean_colour(to_lab(pack.truths(index)))[1:] for index in bar])
