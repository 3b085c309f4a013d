"""Histograms of activation magnitudes and the clipping thresholds drawn from them.

Quantisation is symmetric s8, so only magnitudes matter: 127 levels between 0 and the threshold. One
histogram serves every mode. Its memory is fixed: when a larger value arrives, neighbouring bins merge and
the range doubles.
"""

from __future__ import annotations

import logging
import math
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from gpenlib.data.faces import DataError, embedded_faces, open_folder
from gpenlib.data.pairs import DATALIST, Pack, Pairs, ProcessOp, preprocess, read_pack
from gpenlib.files import choice_error, fingerprint, progress, resolve_path, write_atomically
from gpenlib.images import RGB_CHANNELS, FloatArray, Image, resize
from gpenlib.settings import DatasetConfig

# ----------------------------------------------------------------------
# Histograms of activation magnitudes and the clipping thresholds drawn from them.
#
# Quantisation is symmetric s8, so only magnitudes matter: 127 levels between 0 and the threshold. One
# histogram serves every mode. Its memory is fixed: when a larger value arrives, neighbouring bins merge and
# the range doubles.

LEVELS = 127  # symmetric s8
BINS = 4096
CANDIDATES = 256  # thresholds that mse and kl_divergence try
SMALLEST_SHARE = 1 / 32  # of the largest magnitude; below it a bin is no longer narrower than a level
MODES = ("max", "percentile", "kl_divergence", "mse")
Counts = NDArray[np.float64]


class MagnitudeHistogram:
    """Histogram of ``|x|`` over any number of arrays, in constant memory.

    Attributes
    ----------
    counts : float64 [bins]
    limit : float
        Upper edge of the last bin; 0 before the first value.
    largest : float
        The exact largest magnitude.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 2 * LEVELS or bins % 2:
            raise ValueError(f"bins={bins}: must be even and at least {2 * LEVELS}")
        self.counts: Counts = np.zeros(bins)
        self.limit = 0.0
        self.largest = 0.0

    def update(self, values: NDArray[np.float32]) -> None:
        """Add an array of any shape; values must be finite."""
        magnitudes = torch.from_numpy(np.ascontiguousarray(values)).abs().flatten()
        top = float(magnitudes.max())
        self.largest = max(self.largest, top)
        if self.limit == 0.0:
            self.limit = top
        if self.limit == 0.0:  # all zeros so far; any range will do for them later
            self.counts[0] += magnitudes.numel()
            return
        while top > self.limit:
            self._double()
        self.counts += torch.histc(magnitudes, len(self.counts), 0.0, self.limit).double().numpy()

    def _double(self) -> None:
        half = len(self.counts) // 2
        merged = self.counts.reshape(half, 2).sum(axis=1)
        self.counts = np.concatenate([merged, np.zeros(half)])
        self.limit *= 2

    @property
    def centres(self) -> Counts:
        """Centres of the bins, [bins]."""
        return bin_centres(len(self.counts), self.limit)

    def threshold(self, mode: str, percentile: float = 99.99) -> float:
        """Return the largest magnitude that stays representable under ``mode``.

        Parameters
        ----------
        mode : {"max", "percentile", "kl_divergence", "mse"}
            ``"max"`` clips nothing; ``"percentile"`` clips the given share; ``"kl_divergence"`` keeps the
            most information (Migacz, TensorRT, 2017); ``"mse"`` minimises the mean square error of rounding
            and clipping together.
        percentile : float
            Share in per cent that ``"percentile"`` keeps, in (0, 100].

        Raises
        ------
        ValueError
            If the mode is unknown, the percentile out of range, or nothing but zeros was seen.
        """
        if mode not in MODES:
            raise ValueError(choice_error("calibrate_mode", mode, MODES))
        if not self.largest > 0:
            raise ValueError("no value other than zero was seen")
        if mode == "percentile":
            return min(percentile_threshold(self.counts, self.limit, percentile), self.largest)
        if mode == "mse":
            return mse_threshold(self.counts, self.limit, self.largest)
        if mode == "kl_divergence":
            return min(kl_threshold(self.counts, self.limit, self.largest), self.largest)
        return self.largest

    def summary(self, percentile: float = 99.99, bins: int = 128) -> dict[str, Any]:
        """Return what a report needs: ``limit``, coarse ``counts`` [bins], ``thresholds`` by mode."""
        return {
            "limit": self.limit,
            "counts": self.counts.reshape(bins, -1).sum(axis=1).tolist(),
            "thresholds": {mode: self.threshold(mode, percentile) for mode in MODES},
        }

    def clipped_share(self, threshold: float) -> float:
        """Return the share of values in bins that lie wholly above ``threshold``."""
        lower_edges = self.centres - 0.5 * self.limit / len(self.counts)
        return float(self.counts[lower_edges >= threshold].sum() / max(self.counts.sum(), 1.0))


def bin_centres(bins: int, limit: float) -> Counts:
    """Return the centres of ``bins`` equal bins between 0 and ``limit``."""
    return (np.arange(bins, dtype=np.float64) + 0.5) * (limit / bins)


def percentile_threshold(counts: Counts, limit: float, percentile: float) -> float:
    """Return the upper edge of the first bin by which ``percentile`` per cent of the values lie."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile}: must be in (0, 100]")
    cumulative = np.cumsum(counts)
    place = int(np.searchsorted(cumulative, cumulative[-1] * percentile / 100.0))
    return (min(place, len(counts) - 1) + 1) * limit / len(counts)


def candidate_thresholds(largest: float) -> Counts:
    """Return the thresholds to try, from a share of ``largest`` up to it."""
    return np.linspace(SMALLEST_SHARE, 1.0, CANDIDATES) * largest


def mse_threshold(counts: Counts, limit: float, largest: float) -> float:
    """Return the candidate with the least mean square error of quantised bin centres."""
    centres = bin_centres(len(counts), limit)
    candidates = candidate_thresholds(largest)
    steps = candidates[:, None] / LEVELS  # [T, 1]
    restored = np.minimum(np.rint(centres / steps), LEVELS) * steps  # [T, bins]
    return float(candidates[np.argmin(np.square(restored - centres) @ counts)])


def kl_threshold(counts: Counts, limit: float, largest: float) -> float:
    """Return the candidate whose quantised distribution loses the least information.

    The reference is the histogram below the threshold with everything above it added to its last bin; the
    candidate spreads the content of each of 128 levels evenly over its non-empty bins.
    """
    best, best_threshold = np.inf, largest
    width = limit / len(counts)
    for threshold in candidate_thresholds(largest):
        used = int(np.ceil(threshold / width - 1e-9))
        used = min(max(used, LEVELS + 1), len(counts))
        inside = counts[:used]
        reference = inside.copy()
        reference[-1] += counts[used:].sum()
        groups = (np.arange(used) * (LEVELS + 1)) // used  # [used] level of each bin
        filled = inside > 0
        totals = np.bincount(groups, weights=inside, minlength=LEVELS + 1)
        sizes = np.bincount(groups, weights=filled, minlength=LEVELS + 1)
        spread = np.where(filled, totals[groups] / np.maximum(sizes[groups], 1), 0.0)
        divergence = kl_divergence(reference, spread)
        if divergence < best:
            best, best_threshold = divergence, used * width
    return float(best_threshold)


def kl_divergence(reference: Counts, candidate: Counts, floor: float = 1e-9) -> float:
    """Return KL(reference || candidate) in nats, both normalised; empty candidate bins count as ``floor``."""
    p = reference / reference.sum()
    q = candidate / max(candidate.sum(), floor)
    mask = p > 0
    return float(np.sum(p[mask] * np.log(p[mask] / np.maximum(q[mask], floor))))


# ----------------------------------------------------------------------
# Calibration: one streaming pass that records what the quantised layers read and write.


class CalibrationError(RuntimeError):
    """Calibration that cannot give usable ranges."""


@dataclass
class ChannelRange:
    """Smallest and largest value of every channel, float64 [C] each."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def update(self, values: NDArray[np.float32]) -> None:
        """Widen by an array [N, C, H, W]."""
        channels = torch.from_numpy(values)  # torch reduces on all cores, numpy on one
        self.low = np.minimum(self.low, channels.amin(dim=(0, 2, 3)).numpy())
        self.high = np.maximum(self.high, channels.amax(dim=(0, 2, 3)).numpy())


@dataclass
class Calibration:
    """What one pass over the calibration images found; its size does not depend on their number.

    Attributes
    ----------
    histograms : dict of MagnitudeHistogram by name of an input tensor
    input_means : dict of float64 [Cin] by name of an input tensor
        Mean of every channel.
    output_ranges : dict of ChannelRange by name of an output tensor
    picture_mean : float64 [3]
        Mean of every channel of the network's output, in [-1, 1].
    images : int
    """

    histograms: dict[str, MagnitudeHistogram]
    input_means: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    output_ranges: dict[str, ChannelRange] = field(default_factory=dict)
    picture_mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(RGB_CHANNELS))
    images: int = 0

    def thresholds(self, mode: str, percentile: float) -> dict[str, float]:
        """Return the clipping threshold of every input tensor under a calibration mode; 0 if it was zero."""
        return {
            name: found.threshold(mode, percentile) if found.largest > 0 else 0.0
            for name, found in self.histograms.items()
        }

    def check_alive(self, layers: Iterable[Sequence[str]]) -> None:
        """Fail if all that a layer reads was zero; one half may be (encoder features that do not exist).

        Parameters
        ----------
        layers : iterable of sequence of str
            The input tensors of each layer.

        Raises
        ------
        CalibrationError
        """
        dead = [
            ", ".join(names) for names in layers if not any(self.histograms[n].largest > 0 for n in names)
        ]
        if dead:
            raise CalibrationError(f"tensors that are zero on every calibration image: {'; '.join(dead[:5])}")


def calibrate(
    model: Path | onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    images: Iterable[FloatArray],
) -> Calibration:
    """Run the float model over the calibration images; record what layers read and write, and its output.

    Parameters
    ----------
    model : Path or ModelProto
        The float ONNX model.
    inputs : sequence of str
        Tensors that quantised layers read, [N, C, H, W].
    outputs : sequence of str
        Tensors that they write.
    images : iterable of float32 [1, 3, S, S]
        Read once, one at a time; memory does not grow with their number.

    Raises
    ------
    CalibrationError
        If there is no image, or a tensor is not finite.
    """
    found = Calibration({name: MagnitudeHistogram() for name in inputs})
    session = watching_session(model, [*inputs, *outputs])
    feed, picture = session.get_inputs()[0].name, session.get_outputs()[0].name
    watched = list(dict.fromkeys([*inputs, *outputs, picture]))
    for image in images:
        values = dict(zip(watched, session.run(watched, {feed: image}), strict=True))
        for name, value in values.items():
            if not all(map(math.isfinite, torch.from_numpy(value).aminmax())):  # NaN prevails in both
                raise CalibrationError(f"tensor {name} is not finite on calibration image {found.images}")
        _record(found, values, inputs, outputs)
        found.picture_mean += values[picture].mean(axis=(0, 2, 3), dtype=np.float64)
        found.images += 1
    if not found.images:
        raise CalibrationError("no calibration image was given")
    for mean in (*found.input_means.values(), found.picture_mean):
        mean /= found.images
    return found


def _record(
    found: Calibration,
    values: Mapping[str, NDArray[np.float32]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Add the tensors of one image."""
    for name in inputs:
        value = values[name]
        found.histograms[name].update(value)
        means = torch.from_numpy(value).mean(dim=(0, 2, 3)).double().numpy()
        found.input_means[name] = found.input_means.get(name, 0.0) + means
    for name in outputs:
        channels = values[name].shape[1]
        empty = ChannelRange(np.full(channels, np.inf), np.full(channels, -np.inf))
        found.output_ranges.setdefault(name, empty).update(values[name])


def watching_session(source: Path | onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session of the model with ``tensors`` as additional outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(source if isinstance(source, onnx.ModelProto) else onnx.load(source))
    present = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watching.onnx"
        onnx.save(model, path)
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


# ----------------------------------------------------------------------
# Keep what calibration found: a file per model, images and preprocessing.
#
# Every calibration mode and every form of int8 comes from the same pass, so that trying another mode costs
# seconds where calibration costs minutes.

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


# ----------------------------------------------------------------------
# The images a build calibrates on, and other ones to verify it with.

DEFAULT_COUNT = 32
HELD_OUT = 4
EMBEDDED_OFFSET = 100_000  # embedded faces from here on are never calibrated on nor evaluated


@dataclass(frozen=True)
class CalibrationData:
    """Disjoint calibration and verification images, already as network input when iterated."""

    chosen: Pairs | Pack  # a pack's inputs are degraded already
    verification: Pairs | Pack
    operators: tuple[ProcessOp, ...]
    task: str
    size: int

    @property
    def label(self) -> str:
        """Where the calibration images come from."""
        return self.chosen.label

    @property
    def digest(self) -> str:
        """Hash of the calibration images, in order."""
        return self.chosen.digest()

    def calibration(self, purpose: str = "calibrate") -> Iterator[FloatArray]:
        """Yield float32 [1, 3, S, S], one image at a time; ``purpose`` labels the progress bar."""
        bar = progress(range(len(self.chosen)), desc=purpose, unit="image")
        return (self._prepare(self.chosen, index) for index in bar)

    def pairs(self, count: int) -> Iterator[tuple[FloatArray, Image]]:
        """Yield the first ``count`` calibration images (or all, if fewer) with their truths.

        Returns
        -------
        iterator of (float32 [1, 3, S, S], uint8 [out_size, out_size, 3])

        Raises
        ------
        DataError
            If the images are a pack without truths.
        """
        for index in range(min(count, len(self.chosen))):
            yield self._prepare(self.chosen, index), self.chosen.truths(index)

    def network_input(self, pairs: Pairs | Pack, index: int) -> Image:
        """Return one picture as network input, uint8 [size, size, 3]."""
        return resize(pairs.inputs(index), self.size)

    def preprocessing(self) -> dict[str, Any]:
        """Return what happens to a picture on its way into the network, as JSON-like values."""
        operators = [{"type": operator.type, **operator.parameters} for operator in self.operators]
        return {"task": self.task, "size": self.size, "process_ops": operators}

    def held_out(self) -> Iterator[FloatArray]:
        """Yield a few images that calibration does not see."""
        return (self._prepare(self.verification, index) for index in range(len(self.verification)))

    def _prepare(self, pairs: Pairs | Pack, index: int) -> FloatArray:
        return preprocess(self.network_input(pairs, index), self.operators, self.size)


def open_calibration_data(config: DatasetConfig, size: int, out_size: int | None = None) -> CalibrationData:
    """Resolve a build's data set; pictures are degraded with their index as the seed.

    Raises
    ------
    DataError
        If the folder is absent, empty, or holds fewer images than ``sampler.get_data_num`` asks for.
        Unset, it takes up to 32 pictures of a folder, or a whole pack.
    """
    asked = config.sampler.get_data_num
    pack, source = None, embedded_faces(asked or DEFAULT_COUNT)
    if config.path is not None:
        folder = resolve_path(config.path)
        if (folder / DATALIST).is_file():
            pack = read_pack(folder)
        else:
            source = open_folder(folder, config.sampler.suffix)
    images = source if pack is None else pack
    count = asked or (min(DEFAULT_COUNT, len(images)) if pack is None else len(images))
    if len(images) < count:
        raise DataError(f"{images.label}: {len(images)} images, sampler.get_data_num asks for {count}")

    def pairs(indices: range) -> Pairs | Pack:
        if pack is not None:
            return pack.take(indices)
        return Pairs(source.take(indices), config.task, size, out_size, seed=())

    rest = range(count, min(count + HELD_OUT, len(images)))
    if rest:
        verification = pairs(rest)
    else:
        spare = range(EMBEDDED_OFFSET, EMBEDDED_OFFSET + HELD_OUT)
        verification = Pairs(embedded_faces(spare.stop).take(spare), config.task, size, out_size, seed=())
    return CalibrationData(pairs(range(count)), verification, tuple(config.operators()), config.task, size)
