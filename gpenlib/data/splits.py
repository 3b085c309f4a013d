"""Which images are scored and which calibrate: two disjoint sets of one or two sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpenlib.data.embedded import EmbeddedSource
from gpenlib.data.sources import DataError, ImageSource
from gpenlib.images import Image

FAR = 10_000  # embedded calibration images begin at a multiple of this number, beyond all evaluation images


@dataclass(frozen=True)
class Subset:
    """Some images of a source, in the given order; itself an :class:`~gpenlib.data.sources.ImageSource`.

    Parameters
    ----------
    source : ImageSource
    indices : tuple of int
        Positions in ``source``; may be empty.
    """

    source: ImageSource
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def label(self) -> str:
        """The label of the whole source."""
        return self.source.label

    @property
    def names(self) -> Sequence[str]:
        """Names of the chosen images."""
        names = self.source.names
        return [names[index] for index in self.indices]

    def read(self, index: int) -> Image:
        """Return chosen image ``index`` as uint8 RGB [H, W, 3]."""
        return self.source.read(self.indices[index])

    def digest(self, index: int) -> str:
        """Return the content hash of chosen image ``index``."""
        return self.source.digest(self.indices[index])


@dataclass(frozen=True)
class Split:
    """Evaluation and calibration images that share no content.

    Attributes
    ----------
    evaluation : Subset
        The images that are scored, at least one.
    calibration : Subset
        The images that set quantisation ranges; may be empty.
    note : str
        In words, where the calibration images come from and what was dropped or is short.

    Raises
    ------
    DataError
        If an image is in both.
    """

    evaluation: Subset
    calibration: Subset
    note: str

    def __post_init__(self) -> None:
        scored = _digests(self.evaluation)
        both = [
            self.calibration.names[i]
            for i in range(len(self.calibration))
            if self.calibration.digest(i) in scored
        ]
        if both:
            raise DataError(f"calibration images that are also evaluation images: {', '.join(both[:5])}")


def split(
    source: ImageSource,
    dataset_size: int,
    calib_size: int,
    calib_source: ImageSource | None = None,
    seed: int = 0,
) -> Split:
    """Choose evaluation and calibration images.

    Evaluation takes the first ``dataset_size`` images of ``source``. Calibration draws ``calib_size`` images
    at random, without replacement, from ``calib_source``, or else from the rest of ``source``, or else (no
    rest) takes embedded ones. Images whose content is an evaluation image's are passed over. Both sets are in
    the order of their source.

    Parameters
    ----------
    source : ImageSource
        In natural order.
    dataset_size : int
        At least 1.
    calib_size : int
        0 for no calibration set. If fewer are to be had, those are used and ``note`` says so.
    calib_source : ImageSource, optional
    seed : int
        Of the draw.

    Raises
    ------
    DataError
        If ``source`` has fewer than ``dataset_size`` images, a number is out of range, or
        ``calib_source`` holds nothing but evaluation images.
    """
    count = len(source.names)
    if dataset_size < 1 or calib_size < 0:
        raise DataError(
            f"dataset_size={dataset_size}, calib_size={calib_size}: allowed are at least 1 and at least 0"
        )
    if seed < 0:
        raise DataError(f"seed={seed}: allowed are whole numbers from 0")
    if count < dataset_size:
        raise DataError(
            f"dataset_size={dataset_size}, but there are {count} images ({source.label}): "
            f"ask for {count} or fewer"
        )
    evaluation = Subset(source, tuple(range(dataset_size)))
    if calib_size == 0:
        return Split(evaluation, Subset(source, ()), "no calibration images were asked for")

    scored = _digests(evaluation)
    if calib_source is not None:
        everything = range(len(calib_source.names))
        calibration, note = _draw(calib_source, everything, calib_size, seed, scored)
        if not calibration.indices:
            raise DataError(
                f"calibration ({calib_source.label}): all {len(everything)} images are evaluation images "
                "too; name another calib_dir, or none to use images beyond dataset_size"
            )
        return Split(evaluation, calibration, f"calibration from {calib_source.label}: {note}")

    calibration, note = _draw(source, range(dataset_size, count), calib_size, seed, scored)
    if calibration.indices:
        return Split(evaluation, calibration, f"calibration from the images beyond dataset_size: {note}")
    embedded, first = _embedded_beyond(source, calib_size)
    rest = range(first, first + calib_size)
    calibration, drawn = _draw(embedded, rest, calib_size, seed, scored)
    reason = "no image is left beyond dataset_size" + (f" ({note})" if count > dataset_size else "")
    return Split(evaluation, calibration, f"calibration from the embedded images, as {reason}: {drawn}")


def _draw(
    source: ImageSource, candidates: range, wanted: int, seed: int, excluded: frozenset[str]
) -> tuple[Subset, str]:
    """Draw ``wanted`` of the candidates whose digest is not excluded; return them and a note.

    Only as many images are hashed as the draw needs, so a folder of 30,000 costs no more than a small one.
    """
    order = np.random.default_rng(seed).permutation(len(candidates))
    chosen: list[int] = []
    dropped: list[int] = []
    for position in order:
        if len(chosen) == wanted:
            break
        index = candidates[int(position)]
        (dropped if source.digest(index) in excluded else chosen).append(index)
    note = f"{len(chosen)} of {len(candidates)}"
    if len(chosen) < len(candidates):
        note += f", drawn with seed {seed}"
    if dropped:
        names = source.names
        few = ", ".join(names[index] for index in sorted(dropped)[:3])
        more = ", ..." if len(dropped) > 3 else ""
        note += f"; dropped {len(dropped)} with the content of an evaluation image ({few}{more})"
    if len(chosen) < wanted:
        note += f"; fewer than the {wanted} asked for"
    return Subset(source, tuple(sorted(chosen))), note


def _embedded_beyond(source: ImageSource, calib_size: int) -> tuple[EmbeddedSource, int]:
    """Return embedded images and the first index that no evaluation image has."""
    if not isinstance(source, EmbeddedSource):
        return EmbeddedSource(calib_size), 0
    first = FAR * (1 + source.count // FAR)
    return replace(source, count=first + calib_size), first


def _digests(subset: Subset) -> frozenset[str]:
    """Return the content hashes of a set of images."""
    return frozenset(subset.digest(index) for index in range(len(subset)))
