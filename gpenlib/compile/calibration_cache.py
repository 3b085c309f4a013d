"""Keep what calibration found: a file per model, images and preprocessing.

Every calibration mode and every form of int8 comes from the same pass, so that trying another mode costs
seconds where calibration costs minutes.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.compile.calibrate import Calibration, ChannelRange
from gpenlib.compile.histogram import BINS, MagnitudeHistogram
from gpenlib.run import fingerprint, write_atomically

log = logging.getLogger("gpenlib.compile")
FORMAT = 2  # raise it when the meaning of a field changes


def cache_key(model_digest: str, images_digest: str, settings: Any) -> str:
    """Return the name of a cache entry.

    Parameters
    ----------
    model_digest, images_digest : str
        Of the float graph's file, and of the calibration pictures in order.
    settings : JSON-like
        Everything else that changes what the layers see: preprocessing, task, size, watched tensors.
    """
    content = {"model": model_digest, "images": images_digest, "settings": settings, "bins": BINS}
    return fingerprint(content | {"format": FORMAT})


def save_calibration(found: Calibration, path: Path) -> None:
    """Write a calibration as npz."""
    arrays: dict[str, Any] = {"images": np.array(found.images), "picture_mean": found.picture_mean}
    for name, histogram in found.histograms.items():
        arrays[f"counts/{name}"] = histogram.counts
        arrays[f"range/{name}"] = np.array([histogram.limit, histogram.largest])
        arrays[f"mean/{name}"] = found.input_means[name]
    for name, seen in found.output_ranges.items():
        arrays[f"output/{name}"] = np.stack([seen.low, seen.high])
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_calibration(path: Path) -> Calibration | None:
    """Return a stored calibration; None if there is none, or the file is damaged (which is logged)."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            found = Calibration({}, picture_mean=arrays["picture_mean"], images=int(arrays["images"]))
            for key in arrays.files:
                kind, _, name = key.partition("/")
                if kind == "counts":
                    found.histograms[name] = _histogram(arrays[key], arrays[f"range/{name}"])
                elif kind == "mean":
                    found.input_means[name] = arrays[key]
                elif kind == "output":
                    found.output_ranges[name] = ChannelRange(*arrays[key])
            return found
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        log.warning("%s: damaged calibration cache, calibrating anew (%s)", path, error)
        return None


def _histogram(counts: np.ndarray, limits: np.ndarray) -> MagnitudeHistogram:
    """Restore a histogram from its arrays."""
    histogram = MagnitudeHistogram(len(counts))
    histogram.counts = counts
    histogram.limit, histogram.largest = float(limits[0]), float(limits[1])
    return histogram
