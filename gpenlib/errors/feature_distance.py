"""Distances between two sets of images in the space of a network's features.

Frechet distance (Heusel et al. 2017) and kernel distance (Binkowski et al. 2018). They are FID and KID only
if the features are those of the standard Inception network; on others they are figures of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpenlib.images import Image, to_planar

Features = NDArray[np.float64]
Extractor = Callable[[NDArray[np.uint8]], Features]
BATCH = 16
KERNEL_DEGREE = 3


class FeatureError(ValueError):
    """A feature extractor that cannot be opened or does not give one row per image."""


def open_extractor(path: str | Path, inception: bool = False) -> Extractor:
    """Open a TorchScript file as a function from images to features.

    Parameters
    ----------
    path : path
        It takes uint8 RGB [N, 3, H, W] in [0, 255], does its own resizing, and gives [N, D].
    inception : bool
        Whether this is the Inception network of the original FID as TorchScript (the file
        ``inception-2015-12-05.pt`` of the StyleGAN projects); its features are asked for by name.

    Raises
    ------
    FeatureError
        If the file is missing or no TorchScript.
    """
    path = Path(path)
    try:
        network: Any = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FeatureError(f"{path}: not a readable TorchScript file ({reason})") from None
    options = {"return_features": True} if inception else {}

    def extract(batch: NDArray[np.uint8]) -> Features:
        with torch.inference_mode():
            found = network(torch.from_numpy(batch), **options)
        if not isinstance(found, torch.Tensor) or found.ndim < 2 or len(found) != len(batch):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise FeatureError(f"{path}: gave {shape} for {len(batch)} images, expected [N, D]")
        return found.flatten(1).double().numpy()

    return extract


def features_of(images: Iterable[Image], extract: Extractor) -> Features:
    """Return the features of images, float64 [N, D]; a few images are held at a time.

    Raises
    ------
    FeatureError
        If there is no image, or features are not finite.
    """
    found: list[Features] = []
    few: list[NDArray[np.uint8]] = []
    for image in images:
        few.append(to_planar(image))
        if len(few) == BATCH:
            found.append(extract(np.stack(few)))
            few = []
    if few:
        found.append(extract(np.stack(few)))
    if not found:
        raise FeatureError("no image to take features of")
    features = np.concatenate(found)
    if not np.isfinite(features).all():
        raise FeatureError("features hold NaN or infinity")
    return features


def frechet_distance(a: Features, b: Features) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``. The trace of the root is computed from the
    symmetric ``C_a^(1/2) C_b C_a^(1/2)``, which has the same eigenvalues and stays real where covariances are
    singular, as they are with fewer images than features.

    Parameters
    ----------
    a, b : float64 [N, D], [M, D]

    Raises
    ------
    FeatureError
        If a set has fewer than two rows, or the widths differ.
    """
    _check_pair(a, b)
    mean = a.mean(axis=0) - b.mean(axis=0)
    return gaussian_distance(mean, np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T)))


def gaussian_distance(mean_difference: Features, covariance_a: Features, covariance_b: Features) -> float:
    """Return the Frechet distance between two Gaussians: difference of means [D], covariances [D, D]."""
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    between = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = np.sqrt(np.clip(between, 0, None)).sum()
    total = mean_difference @ mean_difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return float(max(0.0, total))


def kernel_distance(a: Features, b: Features) -> float:
    """Return the squared maximum mean discrepancy under KID's kernel ``(x . y / D + 1)^3``, unbiased.

    It may be slightly negative where the sets do not differ. Unlike the Frechet distance it does not depend
    on the number of images. Parameters and errors as :func:`frechet_distance`.
    """
    _check_pair(a, b)
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    n, m = len(a), len(b)
    same_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    same_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(same_a + same_b - 2 * _kernel(a, b).mean())


def _kernel(a: Features, b: Features) -> Features:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** KERNEL_DEGREE)


def _check_pair(a: Features, b: Features) -> None:
    """Raise unless both are [N, D] of one width with at least two rows."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise FeatureError(f"features {a.shape} and {b.shape}: expected two of [N, D], N at least 2")
