"""Calibration: the images, one streaming pass that records what layers see, and thresholds drawn from it."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from gpenlib.architecture import GpenConfig
from gpenlib.data.faces import DataError, Faces, embedded_faces, open_folder
from gpenlib.data.pairs import DATALIST, Pack, Pairs, ProcessOp, preprocess, read_npz, read_pack
from gpenlib.files import choice_error, fingerprint, resolve_path, write_atomically
from gpenlib.images import RGB_CHANNELS, FloatArray, Image, resize
from gpenlib.infer.runtime import open_graph, openvino_hint
from gpenlib.jobs import keep_memory, progress
from gpenlib.settings import MODES, DatasetConfig

LEVELS = 127  # between 0 and the threshold: quantisation is symmetric s8, so only magnitudes matter
BINS = 4096  # even, for merging in pairs; enough for a level to span several
CANDIDATES = 256  # thresholds that mse and kl_divergence try
# Of a tensor's values a histogram counts so many, at equal steps: of 64 channels of 512 px one in 25
MOST_VALUES = 1 << 20
SMALLEST_SHARE = 1 / 32  # of the largest magnitude; below it a bin is no longer narrower than a level
Counts = NDArray[np.float64]

log = logging.getLogger("gpenlib.compile")


class CalibrationError(RuntimeError):
    """Calibration that cannot give usable ranges."""


@dataclass
class MagnitudeHistogram:
    """Histogram of ``|x|`` over any number of arrays, in constant memory; one serves every mode."""

    counts: Counts = field(default_factory=lambda: np.zeros(BINS))
    limit: float = 0.0  # upper edge of the last bin
    largest: float = 0.0  # the exact largest magnitude

    def update(self, values: NDArray[np.float32], top: float | None = None) -> None:
        """Add an array of any shape, finite; or a sample of one whose largest magnitude is ``top``."""
        magnitudes = torch.from_numpy(np.ascontiguousarray(values)).abs().flatten()
        top = float(magnitudes.max()) if top is None else top
        self.largest = max(self.largest, top)
        self.limit = self.limit or top
        if self.limit == 0.0:  # all zeros so far; any range will do for them later
            self.counts[0] += magnitudes.numel()
            return
        while top > self.limit:  # neighbouring bins merge and the range doubles
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), (0, len(self.counts) // 2))
            self.limit *= 2
        self.counts += torch.histc(magnitudes, len(self.counts), 0.0, self.limit).double().numpy()

    def threshold(self, mode: str, percentile: float = 99.99) -> float:
        """Return the largest magnitude that stays representable under a mode of :data:`MODES`."""
        if mode not in MODES:
            raise ValueError(choice_error("calibrate_mode", mode, MODES))
        if not self.largest > 0:
            raise ValueError("no value other than zero was seen")
        if mode == "percentile":
            if not 0 < percentile <= 100:
                raise ValueError(f"percentile={percentile}: must be in (0, 100]")
            cumulative = np.cumsum(self.counts)
            place = int(np.searchsorted(cumulative, cumulative[-1] * percentile / 100.0))
            edge = (min(place, len(self.counts) - 1) + 1) * self.limit / len(self.counts)
            return min(edge, self.largest)
        if mode == "mse":
            return self._mse_threshold()
        return min(self._kl_threshold(), self.largest) if mode == "kl_divergence" else self.largest

    def _centres(self) -> Counts:
        return (np.arange(len(self.counts), dtype=np.float64) + 0.5) * (self.limit / len(self.counts))

    def _mse_threshold(self) -> float:
        """Return the candidate with the least mean square error of rounding and clipping bin centres."""
        centres, candidates = self._centres(), candidate_thresholds(self.largest)
        steps = candidates[:, None] / LEVELS  # [T, 1]
        restored = np.minimum(np.rint(centres / steps), LEVELS) * steps  # [T, bins]
        return float(candidates[np.argmin(np.square(restored - centres) @ self.counts)])

    def _kl_threshold(self) -> float:
        """Return the candidate that loses least information (Migacz, 8-bit Inference with TensorRT, 2017)."""
        # The reference is the histogram below the threshold with everything above it added to its last bin;
        # the candidate spreads the content of each of 128 levels evenly over its non-empty bins.
        best, best_threshold = np.inf, self.largest
        width = self.limit / len(self.counts)
        for threshold in candidate_thresholds(self.largest):
            used = min(max(int(np.ceil(threshold / width - 1e-9)), LEVELS + 1), len(self.counts))
            inside = self.counts[:used]
            reference = inside.copy()
            reference[-1] += self.counts[used:].sum()
            groups = (np.arange(used) * (LEVELS + 1)) // used  # [used] level of each bin
            filled = inside > 0
            totals = np.bincount(groups, weights=inside, minlength=LEVELS + 1)
            sizes = np.bincount(groups, weights=filled, minlength=LEVELS + 1)
            spread = np.where(filled, totals[groups] / np.maximum(sizes[groups], 1), 0.0)
            divergence = kl_divergence(reference, spread)
            if divergence < best:
                best, best_threshold = divergence, used * width
        return float(best_threshold)

    def summary(self, percentile: float = 99.99, bins: int = 128) -> dict[str, Any]:
        """Return what a report needs: ``limit``, coarse ``counts`` [bins], ``thresholds`` by mode."""
        return {
            "limit": self.limit,
            "counts": self.counts.reshape(bins, -1).sum(axis=1).tolist(),
            "thresholds": {mode: self.threshold(mode, percentile) for mode in MODES},
        }

    def clipped_share(self, threshold: float) -> float:
        """Return the share of values in bins that lie wholly above ``threshold``."""
        lower_edges = self._centres() - 0.5 * self.limit / len(self.counts)
        return float(self.counts[lower_edges >= threshold].sum() / max(self.counts.sum(), 1.0))


def candidate_thresholds(largest: float) -> Counts:
    """Return the thresholds to try, from a share of ``largest`` up to it."""
    return np.linspace(SMALLEST_SHARE, 1.0, CANDIDATES) * largest


def kl_divergence(reference: Counts, candidate: Counts, floor: float = 1e-9) -> float:
    """Return KL(reference || candidate) in nats, both normalised; empty candidate bins count as ``floor``."""
    p = reference / reference.sum()
    q = candidate / max(candidate.sum(), floor)
    mask = p > 0
    return float(np.sum(p[mask] * np.log(p[mask] / np.maximum(q[mask], floor))))


@dataclass
class ChannelRange:
    """Smallest and largest value of every channel, float64 [C] each."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass
class Calibration:
    """What one pass over the images saw; its size does not depend on their number."""

    histograms: dict[str, MagnitudeHistogram]  # by tensor that layers read
    input_means: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # of the same, [Cin]
    output_ranges: dict[str, ChannelRange] = field(default_factory=dict)  # by tensor that layers write
    # Of the network's answer to each image, in [-1, 1]
    picture_means: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, RGB_CHANNELS)))

    @property
    def images(self) -> int:
        """How many there were."""
        return len(self.picture_means)

    def thresholds(self, mode: str, percentile: float) -> dict[str, float]:
        """Return the clipping threshold of every input tensor under a calibration mode; 0 if it was zero."""
        return {
            name: histogram.threshold(mode, percentile) if histogram.largest > 0 else 0.0
            for name, histogram in self.histograms.items()
        }

    def check_alive(self, layers: Iterable[Sequence[str]]) -> None:
        """Fail if all that a layer reads was zero; one half may be (encoder features that do not exist)."""
        largest = {name: histogram.largest for name, histogram in self.histograms.items()}
        dead = [", ".join(names) for names in layers if not any(largest[name] > 0 for name in names)]
        if dead:
            raise CalibrationError(f"tensors that are zero on every calibration image: {'; '.join(dead[:5])}")


LARGE = 256  # px; a pass of a network of this side and more runs in bf16 where the processor has it


def precision_for(size: int) -> str:
    """Return OpenVINO's precision of the pass over the images for a network's side in pixels."""
    # At 512 px it is twice as fast; ranges and means change by a part in 256, a step of int8 at most.
    return openvino_hint("bf16") if size >= LARGE else "f32"


def calibrate(
    model: onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    images: Iterable[FloatArray],
    precision: str = "f32",
) -> Calibration:
    """Run the float model over images, float32 [1, 3, S, S]; record what its layers read and write."""
    result = Calibration({name: MagnitudeHistogram() for name in inputs})
    pictures: list[NDArray[np.float64]] = []
    keep_memory(False)  # copies of the graph come and go, and are nothing to run it in: 3.8 GiB, not 4.8
    run = open_graph(recording_graph(model, inputs, outputs), precision)
    for image in images:
        picture, *values = (np.asarray(value) for value in run(image).values())
        rest = iter(values)
        for name in inputs:
            low, high, means, sample = (next(rest) for _ in range(4))
            if not np.isfinite([*low, *high, *means]).all():
                raise CalibrationError(f"tensor {name} is not finite on calibration image {len(pictures)}")
            result.histograms[name].update(sample, max(-float(low.min()), float(high.max())))
            result.input_means[name] = result.input_means.get(name, 0.0) + means.astype(np.float64)
        for name in outputs:
            low, high = (next(rest) for _ in range(2))
            seen = result.output_ranges.setdefault(name, ChannelRange(low, high))
            seen.low, seen.high = np.minimum(seen.low, low), np.maximum(seen.high, high)
        if not np.isfinite(picture).all():
            raise CalibrationError(f"the output is not finite on calibration image {len(pictures)}")
        pictures.append(picture.mean(axis=(0, 2, 3), dtype=np.float64))
    if not pictures:
        raise CalibrationError("no calibration image was given")
    result.picture_means = np.stack(pictures)
    for mean in result.input_means.values():
        mean /= result.images
    return result


def recording_graph(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the model, its batch size 1, with more outputs, in order.

    Of each tensor in ``inputs`` the channels' smallest and largest values and means, and a sample of its
    values; of each in ``outputs`` the smallest and largest. So whole maps, 800 MB at 512 px, need not be
    handed over.
    """
    result, shapes = copy.deepcopy(model), tensor_shapes(model)
    graph = result.graph
    for end in (*graph.input, *graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 1
    constants = {"record.axes": [0, 2, 3], "record.sides": [2, 3], "record.start": [0, 0]}
    constants["record.end"] = [2**31 - 1] * 2
    for place, name in enumerate((*inputs, *outputs)):
        wanted = ["ReduceMin", "ReduceMax"] + (["ReduceMean", "Slice"] if place < len(inputs) else [])
        for operator in wanted:
            found, read = f"record{place}.{operator}", [name, "record.axes"]
            if operator == "Slice":
                constants[f"{found}.step"] = [sample_step(*shapes[name][1:])] * 2
                read = [name, "record.start", "record.end", "record.sides", f"{found}.step"]
            settings: dict[str, Any] = {} if operator == "Slice" else {"keepdims": 0}
            graph.node.append(onnx.helper.make_node(operator, read, [found], found, **settings))
            graph.output.append(onnx.helper.make_tensor_value_info(found, onnx.TensorProto.FLOAT, None))
    arrays = ((name, np.array(values, np.int64)) for name, values in constants.items())
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays)
    del graph.value_info[:]
    return result


def sample_step(channels: int, height: int, width: int) -> int:
    """Return the step between sampled rows and columns, so that few enough values remain."""
    # Odd steps: what is upsampled, or comes in phases, repeats every second or fourth pixel.
    return math.ceil(math.sqrt(channels * height * width / MOST_VALUES)) | 1


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of a graph's tensors; an open batch is 1."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in values}


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


FORMAT = 6  # of the cache; raise it when the meaning of a field changes
DAMAGE = (ValueError, KeyError, TypeError, AttributeError)


def cache_key(model_digest: str, images_digest: str, settings: Any) -> str:
    """Return the name of a cache entry; ``settings`` (JSON-like) is all else that changes what layers see."""
    content = {"model": model_digest, "images": images_digest, "settings": settings, "bins": BINS}
    return fingerprint(content | {"format": FORMAT})


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as npz; the file holds its own name, ``<key>.npz``, to tell copies of others."""
    arrays: dict[str, Any] = {"key": path.stem, "picture_means": calibration.picture_means}
    for name, histogram in calibration.histograms.items():
        arrays[f"counts/{name}"] = histogram.counts
        arrays[f"range/{name}"] = np.array([histogram.limit, histogram.largest])
        arrays[f"mean/{name}"] = calibration.input_means[name]
    for name, seen in calibration.output_ranges.items():
        arrays[f"output/{name}"] = np.stack([seen.low, seen.high])
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_calibration(
    path: Path, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> Calibration | None:
    """Return a stored calibration (of these tensors); None if there is none, or it is another's (logged)."""
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path)
        if str(arrays["key"]) != path.stem:
            raise ValueError(f"it is {arrays['key']!s:.80}")
        result = Calibration({}, picture_means=arrays["picture_means"])
        for key, values in arrays.items():
            kind, _, name = key.partition("/")
            if key != "key" and not np.isfinite(values).all():
                raise ValueError(f"{key:.80} is not finite")
            if kind == "counts":
                limit, largest = arrays[f"range/{name}"].tolist()
                mean = arrays[f"mean/{name}"]
                if values.shape != (BINS,) or values.min() < 0 or not 0 <= largest <= limit or mean.ndim != 1:
                    raise ValueError(f"{key:.80} is no histogram")
                result.histograms[name] = MagnitudeHistogram(values, limit, largest)
                result.input_means[name] = mean
            elif kind == "output":
                result.output_ranges[name] = ChannelRange(*values)
        named = (inputs or result.histograms, outputs or result.output_ranges)
        if result.histograms.keys() != {*named[0]} or result.output_ranges.keys() != {*named[1]}:
            raise ValueError("it is of other tensors")
        if result.picture_means.shape[1:] != (RGB_CHANNELS,) or result.images < 1:
            raise ValueError("it saw no image")
        return result
    except DAMAGE as error:
        log.warning("%s: damaged calibration cache, calibrating anew (%.300s)", path, error)
        return None


DEFAULT_COUNT = 32
HELD_OUT = 4
EMBEDDED_OFFSET = 100_000  # embedded faces from here on are never calibrated on nor evaluated


@dataclass(frozen=True)
class CalibrationData:
    """Disjoint calibration and verification images, as network input when iterated."""

    chosen: Pairs | Pack  # whose inputs are degraded already: a second time would be too much
    verification: Pairs | Pack
    operators: tuple[ProcessOp, ...]
    size: int

    def calibration(self, purpose: str = "calibrate", count: int | None = None) -> Iterator[FloatArray]:
        """Yield float32 [1, 3, S, S], all or the first; ``purpose`` labels the progress bar."""
        bar = progress(range(len(self.chosen))[:count], desc=purpose, unit="image")
        return (self._prepare(self.chosen, index) for index in bar)

    def pairs(self, count: int) -> Iterator[tuple[FloatArray, Image]]:
        """Yield the first ``count`` calibration images with their truths, uint8 [out_size, out_size, 3]."""
        for index in range(min(count, len(self.chosen))):
            yield self._prepare(self.chosen, index), self.chosen.truths(index)

    def held_out(self) -> Iterator[FloatArray]:
        """Yield a few images that calibration does not see."""
        return (self._prepare(self.verification, index) for index in range(len(self.verification)))

    def preprocessing(self) -> dict[str, Any]:
        """Return what happens to a picture on its way into the network, as JSON-like values."""
        operators = [{"type": operator.type, **operator.parameters} for operator in self.operators]
        content = {"size": self.size, "process_ops": operators}
        if isinstance(self.chosen, Pairs):
            chosen = self.chosen
            content |= {"task": chosen.task, "recipe": chosen.recipe, "out_size": chosen.out_size}
        return content

    def network_input(self, pairs: Pairs | Pack, index: int) -> Image:
        """Return one picture as network input, uint8 [size, size, 3]."""
        return resize(pairs.inputs(index), self.size)

    def _prepare(self, pairs: Pairs | Pack, index: int) -> FloatArray:
        return preprocess(self.network_input(pairs, index), self.operators, self.size)


def open_calibration_data(
    config: DatasetConfig, network: GpenConfig, calibration: Pairs | Pack | None = None
) -> CalibrationData:
    """Resolve a build's data set for a network, or take ``calibration`` in its place."""
    # Without sampler.get_data_num: up to 32 pictures of a folder, or a whole pack. Up to 4 beyond them, or
    # else embedded faces, are for verification.

    def pairs(faces: Faces, indices: range) -> Pairs:  # degraded at the output's size, as in training
        return Pairs(faces.take(indices), config.task, network.in_size, network.out_size, seed=())

    count = config.sampler.get_data_num
    source: Faces | Pack
    rest = range(0)
    if calibration is not None:
        chosen = calibration
    else:
        if config.path is None:
            source = embedded_faces(count or DEFAULT_COUNT)
        else:
            folder = resolve_path(config.path)
            packed = (folder / DATALIST).is_file()
            source = read_pack(folder) if packed else open_folder(folder, config.sampler.suffix)
        count = count or (len(source) if isinstance(source, Pack) else min(DEFAULT_COUNT, len(source)))
        if len(source) < count:
            raise DataError(f"{source.label}: {len(source)} images, sampler.get_data_num asks for {count}")
        rest = range(count, min(count + HELD_OUT, len(source)))
        chosen, verification = (
            source.take(indices) if isinstance(source, Pack) else pairs(source, indices)
            for indices in (range(count), rest)
        )
    if not rest:
        spare = range(EMBEDDED_OFFSET, EMBEDDED_OFFSET + HELD_OUT)
        verification = pairs(embedded_faces(spare.stop), spare)
    return CalibrationData(chosen, verification, tuple(config.operators()), network.in_size)
