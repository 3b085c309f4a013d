"""Where int8 and fp16 depart from float inside the network, layer by layer."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpenlib.architecture import Gpen
from gpenlib.architecture.inspect import capture
from gpenlib.architecture.model import StyledConv
from gpenlib.compile.calibrate import LEVELS, watching_session
from gpenlib.compile.rounding import RoundedLayer, convolution_layers, fake_quantised, split_halves
from gpenlib.compile.sensitivity import Probe, decibels
from gpenlib.export import DeployGpen, parity
from gpenlib.export.deploy import HalfArithmetic, Overflow, mixed_precision
from gpenlib.images import FloatArray
from gpenlib.jobs import progress


def analyse_layers(
    float_graph: Path,
    int8_file: Path,
    deploy: DeployGpen,
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
    ranking: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return every feature map's errors, and what its layer does to the picture (alone: by ``ranking``)."""
    if missing := sorted(layers.keys() - {row["name"] for row in ranking}):
        raise ValueError(f"the ranking of 03_compile lacks {', '.join(missing[:5])}: measure it again")
    ranked = {row["name"]: row["psnr"] for row in ranking if row["name"] in layers}  # the build's own layers
    rows = layer_errors(float_graph, int8_file, deploy, layers, images)
    probe = Probe(deploy, torch.from_numpy(np.concatenate(images)))

    def psnr_without(name: str) -> float:
        """Of the picture (data range 2) against the float network's, all but this layer quantised."""
        return decibels(probe.error({other: layer for other, layer in layers.items() if other != name}))

    without = {name: psnr_without(name) for name in progress(ranked, desc="all but one", unit="layer")}
    for row in rows:
        row["output_psnr_alone"] = ranked.get(row["layer"])
        row["output_psnr_without"] = without.get(row["layer"])
    return {"rows": rows}


# Every feature map of both graphs, on the same faces. Two errors are told apart. Accumulated: the map in the
# fully quantised network against the float one, with all that went wrong before it. Isolated: one layer
# computed in 8 bits from its float input, its own output against the float one. Both are those of the QDQ
# arithmetic, computed in float32. Decoder layers are computed in halves: what they read is compared so too.
# Clipped values and outermost codes are counted in the input as it arrives in the quantised network.

LIMIT_DB = 200.0  # an SQNR is clipped to this, so that equal maps have a finite one
WATCHED_BYTES = 2**29  # of the maps of one graph that are held at once
FILTERS = re.compile(r"(\.blur)?\.conv$|\.upsample$")  # follows a stage's path


@dataclass(frozen=True)
class FeatureMap:
    """An intermediate tensor, named alike in the float and the QDQ graph."""

    tensor: str
    module: str  # path of the stage that computes it: ecd3, generator.convs.4, generator.to_rgbs.0
    operator: str  # ONNX operator that writes it
    layer: str | None  # module path of the convolution that writes it, if one does
    sources: list[str]  # what that operator reads first; of a layer in halves, what each half reads
    shape: list[int]  # (C, H, W)


@dataclass
class Agreement:
    """Sums over any number of arrays that give SQNR and cosine similarity; pooled, not averaged."""

    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0  # of the candidate
    product: float = 0.0

    def update(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Add two arrays of one shape."""
        a, b = (array.astype(np.float64).ravel() for array in (reference, candidate))
        self.signal += float(a @ a)
        self.power += float(b @ b)
        self.product += float(a @ b)
        b -= a
        self.noise += float(b @ b)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantisation-noise ratio in dB, within +-200 (200: equal)."""
        if self.noise == 0:
            return LIMIT_DB
        ratio = 10 * np.log10(self.signal / self.noise) if self.signal > 0 else -LIMIT_DB
        return float(np.clip(ratio, -LIMIT_DB, LIMIT_DB))

    @property
    def cosine(self) -> float:
        """Cosine similarity, -1 to 1 (1: equal up to a positive factor; equal zeros count as 1)."""
        if self.signal == 0 or self.power == 0:
            return float(self.signal == self.power)
        return float(np.clip(self.product / np.sqrt(self.signal * self.power), -1, 1))


def count_codes(x: NDArray[Any], step: float) -> NDArray[np.int64]:
    """Return how many values there are, lie beyond the range of ``step``, and get the codes -128 or 127."""
    threshold = LEVELS * step * (1 + 1e-6)  # the largest calibrated value itself is not beyond it
    codes = np.rint(x / np.float32(step))
    outermost = (codes >= LEVELS) | (codes <= -LEVELS - 1)
    return np.array([x.size, np.count_nonzero(np.abs(x) > threshold), np.count_nonzero(outermost)])


def layer_errors(
    float_graph: Path,
    int8_file: Path,
    deploy: DeployGpen,
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
) -> list[dict[str, Any]]:
    """Compare every map of a graph and of its QDQ form, in graph order, on images float32 [1, 3, S, S]."""
    if not len(images):
        raise ValueError("no image was given; layer errors need at least one face")
    float_model, int8_model = split_halves(onnx.load(float_graph)), onnx.load(int8_file)
    written = {name for node in int8_model.graph.node for name in node.output}
    maps = [map_ for map_ in feature_maps(float_model) if map_.tensor in written]
    if not maps:
        text = "have no feature map in common: they are not forms of one network"
        raise ValueError(f"{float_graph} and {int8_file} {text}")
    agreements, counts = accumulated_errors(float_model, int8_model, maps, layers, images)
    isolated = isolated_errors(deploy, layers, images)
    rows = []
    for map_ in maps:
        alone, accumulated = isolated.get(map_.layer or ""), agreements[map_.tensor]
        inputs = np.sum([counts[name] for name in map_.sources], axis=0) if alone else None
        row = asdict(map_) | {"quantised": alone is not None}
        row |= {"sqnr_db": accumulated.sqnr_db, "cosine": accumulated.cosine}
        row["isolated_sqnr_db"] = alone.sqnr_db if alone else None
        row["isolated_cosine"] = alone.cosine if alone else None
        row["clipped_share"] = None if inputs is None else float(inputs[1] / inputs[0])
        row["saturation"] = None if inputs is None else float(inputs[2] / inputs[0])
        rows.append(row)
    return rows


def accumulated_errors(
    float_model: onnx.ModelProto,
    int8_model: onnx.ModelProto,
    maps: Sequence[FeatureMap],
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
) -> tuple[dict[str, Agreement], dict[str, NDArray[np.int64]]]:
    """Run both graphs in ONNX Runtime; return agreement by tensor, and counts by quantised input tensor."""
    agreements = {map_.tensor: Agreement() for map_ in maps}
    steps = {
        tensor: step
        for layer in layers.values()
        for tensor, step in zip(layer.report.tensors, layer.activation_scales, strict=True)
    }
    counts = {tensor: np.zeros(3, np.int64) for tensor in steps}
    for group in in_groups(maps):
        names = [map_.tensor for map_ in group]
        sessions = [watching_session(model, names) for model in (float_model, int8_model)]
        feed = sessions[0].get_inputs()[0].name
        for image in images:
            outputs = (session.run(names, {feed: image}) for session in sessions)
            for name, reference, candidate in zip(names, *outputs, strict=True):
                agreements[name].update(reference, candidate)
                if name in steps:
                    counts[name] += count_codes(candidate, steps[name])
    return agreements, counts


def isolated_errors(
    deploy: DeployGpen, layers: Mapping[str, RoundedLayer], images: Sequence[FloatArray]
) -> dict[str, Agreement]:
    """Compare every layer in 8 bits with itself in float, on its float input; one pass for all layers."""
    agreements = {name: Agreement() for name in layers}
    rounded = copy.deepcopy(deploy)  # its layers are called with what the float network gives them

    def compare(name: str, inputs: Any, output: Tensor) -> None:
        agreements[name].update(output.numpy(), rounded.get_submodule(name)(inputs[0]).numpy())

    with torch.inference_mode(), fake_quantised(rounded, layers), capture(deploy, layers, compare):
        for image in images:
            deploy(torch.from_numpy(image))
    return agreements


def feature_maps(model: onnx.ModelProto) -> list[FeatureMap]:
    """Return what a deploy graph computes per pixel: rank 4, larger than 1x1, and not a half of a layer's."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in (*inferred.value_info, *inferred.output)
    }
    convolutions = convolution_layers(model)
    written = {layer.output: layer for layer in convolutions}
    readers = {tensor: layer.name for layer in convolutions for tensor in layer.inputs}
    halves = {node.output[0] for layer in convolutions for node in layer.nodes} - written.keys()
    # The maps of a stage stand together, and it begins with its convolution or with the scaling before that.
    # Names of constants say nothing of it, because the exporter keeps equal ones (biases of zero) once.
    stage = ""
    maps: list[FeatureMap] = []
    for node in model.graph.node:
        tensor = node.output[0]
        shape = shapes.get(tensor, [])
        if len(shape) != 3 or shape[1] * shape[2] <= 1 or tensor in halves:
            continue
        if layer := written.get(tensor):
            stage = FILTERS.sub("", layer.name)
            maps.append(FeatureMap(tensor, stage, layer.operator, layer.name, list(layer.inputs), shape))
            continue
        if node.op_type == "Mul" and tensor in readers:
            stage = FILTERS.sub("", readers[tensor])  # the style's scale
        maps.append(FeatureMap(tensor, stage, node.op_type, None, [node.input[0]], shape))
    return maps


def in_groups(maps: Sequence[FeatureMap], limit: int = WATCHED_BYTES) -> Iterator[list[FeatureMap]]:
    """Split maps so that those of one group take at most ``limit`` bytes (or are one map)."""
    group: list[FeatureMap] = []
    held = 0
    for map_ in maps:
        size = 4 * int(np.prod(map_.shape))
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(map_)
        held += size
    yield group


# Stress fp16 with styles far from 1: the original formulation breaks, the deploy form does not. Demodulation
# divides the size of a style out again, so that in exact arithmetic large and tiny styles give the same
# picture (up to the 1e-8 under the root). In fp16, sums of squares leave its range (65504) or vanish. ToRGB
# has no demodulation: its style is a real change of the picture.


def stress_half(model: Gpen, images: Tensor, factors: Sequence[float]) -> list[dict[str, Any]]:
    """Compare both forms in fp16 with float32 for styles times each factor: PSNR, and the first overflow."""
    rows = []
    with torch.inference_mode():
        unscaled = model(images)
        for factor in factors:
            scaled = scaled_styles(model, factor)
            expected = scaled(images)
            row: dict[str, Any] = {"factor": factor, "change_psnr": _psnr(unscaled, expected)}
            forms = {"original": copy.deepcopy(scaled).half(), "deploy": mixed_precision(scaled, "fp16")}
            for form, network in forms.items():
                output, overflow = run_in_half(network, images.half() if form == "original" else images)
                row[f"{form}_psnr"] = _psnr(expected, output)
                row[f"{form}_overflow"] = None if overflow is None else str(overflow)
            rows.append(row)
    return rows


def scaled_styles(model: Gpen, factor: float) -> Gpen:
    """Return a copy whose demodulated layers, so not ToRGB's, get ``factor`` times their styles."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for module in scaled.modules():
            if isinstance(module, StyledConv):
                module.conv.modulation.weight.mul_(factor)
                module.conv.modulation.bias.mul_(factor)
    return scaled


def run_in_half(network: nn.Module, images: Tensor) -> tuple[Tensor, Overflow | None]:
    """Run a network that holds fp16 tensors with fp16 arithmetic; return output and first overflow."""
    lost = (
        Overflow(name, "constant", tuple(value.shape))
        for name, value in network.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    )
    constant = next(lost, None)  # too large for fp16 before anything was computed
    with HalfArithmetic() as arithmetic:
        output = network(images)
    return output.float(), constant or arithmetic.overflow


def _psnr(expected: Tensor, output: Tensor) -> float | None:
    """Return the PSNR, or None if an output is not finite."""
    finite = bool(torch.isfinite(output).all())
    return min(parity(expected.numpy(), output.numpy()).psnr, 100.0) if finite else None


@contextmanager
def measured_threads(call: Callable[[], Any], trials: int = 3) -> Iterator[int]:
    """Use one thread or all of them, whichever runs ``call`` faster here and now, while the context lasts."""
    # Threads that wait for each other spin: on two busy cores an image of 64 px took 17 ms on one thread and
    # 130 to 2300 ms on two; on free cores two threads are the faster ones.
    before = torch.get_num_threads()

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        call()  # for warming up
        return timeit(call, number=trials)

    try:
        chosen = min((before, 1), key=seconds)
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)
