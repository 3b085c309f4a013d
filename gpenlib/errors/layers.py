"""Run PyTorch on as many threads as pay.

Threads that wait for each other spin. Where another process has one of the cores, two threads can take twenty
times as long as one on a small network, and hundreds of runs of it are what the analysis of layers is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpenlib.architecture import Gpen
from gpenlib.architecture.model import StyledConv
from gpenlib.compile.calibrate import LEVELS, watching_session
from gpenlib.compile.rounding import RoundedLayer, convolution_layers, fake_quantised, split_halves
from gpenlib.compile.sensitivity import Probe, decibels, rank_layers
from gpenlib.export import DeployGpen, parity
from gpenlib.export.deploy import HalfArithmetic, Overflow, mixed_precision
from gpenlib.files import progress
from gpenlib.images import FloatArray

# ----------------------------------------------------------------------
# Run PyTorch on as many threads as pay.
#
# Threads that wait for each other spin. Where another process has one of the cores, two threads can take
# twenty
# times as long as one on a small network, and hundreds of runs of it are what the analysis of layers is.

TRIALS = 3


@contextmanager
def measured_threads(call: Callable[[], Any], trials: int = TRIALS) -> Iterator[int]:
    """Use one thread or all of them, whichever runs ``call`` faster here and now, while the context lasts.

    Parameters
    ----------
    call : callable
        What is going to be repeated, such as the network on one image. It is run ``2 (trials + 1)`` times.
    trials : int

    Yields
    ------
    int
        The number of threads; the one before is restored behind the context.
    """
    before = torch.get_num_threads()
    seconds = dict.fromkeys((before, 1), 0.0)
    try:
        for trial in range(trials + 1):
            for threads in seconds:
                torch.set_num_threads(threads)
                start = time.perf_counter()
                call()
                if trial:  # the first is for warming up
                    seconds[threads] += time.perf_counter() - start
        chosen = min(seconds, key=lambda threads: seconds[threads])
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------
# Where int8 departs from float inside the network: every feature map of both graphs, on the same faces.
#
# Two errors are told apart. *Accumulated*: the map in the fully quantised network against the float one, with
# all that went wrong before it. *Isolated*: one layer computed in 8 bits from its float input, its own output
# against the float one. Both are those of the QDQ arithmetic, computed in float32.
# Decoder layers are computed in halves (:mod:`gpenlib.compile.halves`): what they read is compared so too.

LIMIT_DB = 200.0  # an SQNR is clipped to this, so that equal maps have a finite one
WATCHED_BYTES = 2**29  # of the maps of one graph that are held at once
FILTERS = (".blur.conv", ".conv", ".upsample")  # what follows a stage's path in its convolutions' names


@dataclass(frozen=True)
class FeatureMap:
    """An intermediate tensor of the deploy graph.

    Attributes
    ----------
    tensor : str
        Its name, the same in the float and the QDQ graph.
    module : str
        Path of the stage that computes it: ``ecd3``, ``generator.convs.4``, ``generator.to_rgbs.0``.
    operator : str
        ONNX operator that writes it.
    layer : str or None
        Module path of the convolution that writes it, if one does.
    sources : tuple of str
        The tensor that this operator reads first; of a layer in halves, what each half reads.
    shape : tuple of int
        (C, H, W).
    """

    tensor: str
    module: str
    operator: str
    layer: str | None
    sources: tuple[str, ...]
    shape: tuple[int, ...]


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


@dataclass
class CodeShares:
    """Counts over any number of arrays that give the shares of clipped values and of outermost codes."""

    values: int = 0
    clipped: int = 0
    saturated: int = 0

    def __add__(self, other: CodeShares) -> CodeShares:
        """Return the counts over the arrays of both."""
        sums = (a + b for a, b in zip(astuple(self), astuple(other), strict=True))
        return CodeShares(*sums)

    def update(self, x: NDArray[Any], step: float) -> None:
        """Add the float values that are rounded to ``step``."""
        threshold = LEVELS * step * (1 + 1e-6)  # the largest calibrated value itself is not beyond it
        codes = np.rint(x / np.float32(step))
        self.values += x.size
        self.clipped += int(np.count_nonzero(np.abs(x) > threshold))
        self.saturated += int(np.count_nonzero((codes >= LEVELS) | (codes <= -LEVELS - 1)))

    def shares(self) -> dict[str, float]:
        """Return ``clipped_share`` (|x| beyond the threshold) and ``saturation`` (codes -128 and 127)."""
        return {"clipped_share": self.clipped / self.values, "saturation": self.saturated / self.values}


def layer_errors(
    float_graph: Path,
    int8_file: Path,
    deploy: DeployGpen,
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
) -> list[dict[str, Any]]:
    """Compare every feature map of the quantised network with the float network's.

    Parameters
    ----------
    float_graph : Path
        ONNX file of ``deploy``.
    int8_file : Path
        The same in halves and in QDQ form with ``layers`` quantised (:func:`gpenlib.compile.qdq.write_qdq`).
    deploy : DeployGpen
    layers : mapping of module path to RoundedLayer
    images : sequence of float32 [1, 3, S, S]
        Read one at a time, several times; nothing but sums is kept of an image.

    Returns
    -------
    list of dict
        One per feature map in graph order: the fields of :class:`FeatureMap`, ``sqnr_db`` and ``cosine``
        (accumulated), ``quantised`` (whether an 8-bit layer wrote it). For quantised layers also
        ``isolated_sqnr_db`` and ``isolated_cosine``, and of the input as it arrives in the quantised network
        ``clipped_share`` and ``saturation``; None otherwise.

    Raises
    ------
    ValueError
        If there is no image, or the graphs have no feature map in common.
    """
    if not len(images):
        raise ValueError("no image was given; layer errors need at least one face")
    float_model, int8_model = split_halves(onnx.load(float_graph)), onnx.load(int8_file)
    maps = shared_maps(float_model, int8_model)
    agreements, shares = accumulated_errors(float_model, int8_model, maps, layers, images)
    isolated = isolated_errors(deploy, layers, images)
    rows = []
    for found in maps:
        own = isolated.get(found.layer or "")
        codes: dict[str, float | None] = {"clipped_share": None, "saturation": None}
        if own is not None:
            codes |= sum((shares[name] for name in found.sources), CodeShares()).shares()
        rows.append(
            asdict(found)
            | {"sources": list(found.sources), "shape": list(found.shape), "quantised": own is not None}
            | {"sqnr_db": agreements[found.tensor].sqnr_db, "cosine": agreements[found.tensor].cosine}
            | {"isolated_sqnr_db": None if own is None else own.sqnr_db}
            | {"isolated_cosine": None if own is None else own.cosine}
            | codes
        )
    return rows


def accumulated_errors(
    float_model: onnx.ModelProto,
    int8_model: onnx.ModelProto,
    maps: Sequence[FeatureMap],
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
) -> tuple[dict[str, Agreement], dict[str, CodeShares]]:
    """Run both graphs in ONNX Runtime; return agreement by tensor, and shares by quantised input tensor."""
    agreements = {found.tensor: Agreement() for found in maps}
    steps = {
        tensor: step
        for layer in layers.values()
        for tensor, step in zip(layer.report.tensors, layer.activation_scales, strict=True)
    }
    shares = {tensor: CodeShares() for tensor in steps}
    for group in in_groups(maps):
        names = [found.tensor for found in group]
        sessions = [watching_session(model, names) for model in (float_model, int8_model)]
        feed = sessions[0].get_inputs()[0].name
        for image in images:
            expected, given = (session.run(names, {feed: image}) for session in sessions)
            for name, reference, candidate in zip(names, expected, given, strict=True):
                agreements[name].update(reference, candidate)
                if name in steps:
                    shares[name].update(candidate, steps[name])
    return agreements, shares


def isolated_errors(
    deploy: DeployGpen, layers: Mapping[str, RoundedLayer], images: Sequence[FloatArray]
) -> dict[str, Agreement]:
    """Compare every layer in 8 bits with itself in float, on its float input; one pass for all layers."""
    found = {name: Agreement() for name in layers}
    rounded = copy.deepcopy(deploy)  # its layers are called with what the float network gives them

    def compare(name: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            found[name].update(output.numpy(), rounded.get_submodule(name)(inputs[0]).numpy())

        return hook

    handles = [deploy.get_submodule(name).register_forward_hook(compare(name)) for name in layers]
    try:
        with torch.inference_mode(), fake_quantised(rounded, layers):
            for image in images:
                deploy(torch.from_numpy(image))
    finally:
        for handle in handles:
            handle.remove()
    return found


def shared_maps(float_model: onnx.ModelProto, int8_model: onnx.ModelProto) -> list[FeatureMap]:
    """Return the feature maps that both graphs compute under the same name, in the float graph's order.

    Raises
    ------
    ValueError
        If there is none.
    """
    written = {name for node in int8_model.graph.node for name in node.output}
    maps = [found for found in feature_maps(float_model) if found.tensor in written]
    if not maps:
        raise ValueError("the graphs have no feature map in common: they are not forms of one network")
    return maps


def feature_maps(model: onnx.ModelProto) -> list[FeatureMap]:
    """Return what a deploy graph computes per pixel: rank 4 and larger than 1x1, in graph order.

    What the halves of a layer add to its output is no map of its own.
    The path of the stage is read from the names of convolutions. The maps of a stage stand together, and it
    begins with its convolution or with the scaling before that; names of constants say nothing, because the
    exporter keeps equal ones (biases of zero) once.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]
        for value in (*inferred.value_info, *inferred.output)
    }
    convolutions = convolution_layers(model)
    written = {found.output: found for found in convolutions}
    readers = {tensor: found.name for found in convolutions for tensor in found.inputs}
    halves = {node.output[0] for found in convolutions for node in found.nodes} - written.keys()
    stage = ""
    maps: list[FeatureMap] = []
    for node in model.graph.node:
        tensor = node.output[0]
        shape = shapes.get(tensor, ())
        if len(shape) != 3 or shape[1] * shape[2] <= 1 or tensor in halves:
            continue
        layer = written.get(tensor)
        if layer is not None:
            stage = stage_path(layer.name)
            maps.append(FeatureMap(tensor, stage, layer.operator, layer.name, layer.inputs, shape))
            continue
        elif node.op_type == "Mul" and tensor in readers:
            stage = stage_path(readers[tensor])  # the style's scale
        maps.append(FeatureMap(tensor, stage, node.op_type, None, (node.input[0],), shape))
    return maps


def stage_path(layer: str) -> str:
    """Return the path of the stage that a convolution belongs to."""
    suffix = next((suffix for suffix in FILTERS if layer.endswith(suffix)), "")
    return layer.removesuffix(suffix)


def in_groups(maps: Sequence[FeatureMap], limit: int = WATCHED_BYTES) -> Iterator[list[FeatureMap]]:
    """Split maps so that those of one group take at most ``limit`` bytes (or are one map)."""
    group: list[FeatureMap] = []
    held = 0
    for found in maps:
        size = 4 * int(np.prod(found.shape))
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(found)
        held += size
    yield group


# ----------------------------------------------------------------------
# What each layer's rounding costs the picture, and which layers heal it when they stay in float.

MOST_IN_FLOAT = 8


def analyse_layers(
    float_graph: Path,
    int8_file: Path,
    deploy: DeployGpen,
    layers: Mapping[str, RoundedLayer],
    images: Sequence[FloatArray],
) -> dict[str, Any]:
    """Return ``rows``, ``ranking`` and ``healing`` of one quantised network.

    Parameters
    ----------
    float_graph, int8_file, deploy, layers, images
        As :func:`gpenlib.errors.layers.layer_errors` takes them.

    Returns
    -------
    dict
        ``rows``: those of :func:`gpenlib.errors.layers.layer_errors` with ``output_psnr_alone`` and
        ``output_psnr_without`` (None but for quantised layers); ``ranking``: see :func:`rank_by_output`;
        ``healing``: see :func:`healing_steps`.
    """
    rows = layer_errors(float_graph, int8_file, deploy, layers, images)
    probe = Probe(deploy, torch.from_numpy(np.concatenate(images)))
    ranking = rank_by_output(probe, layers)
    by_name = {row["name"]: row for row in ranking}
    keys = ("output_psnr_alone", "output_psnr_without")
    none = dict.fromkeys(keys)
    for row in rows:
        ranked = by_name.get(row["layer"])
        row |= none if ranked is None else {key: ranked[key] for key in keys}
    names = [row["name"] for row in ranking]
    return {"rows": rows, "ranking": ranking, "healing": healing_steps(probe, layers, names)}


def rank_by_output(probe: Probe, layers: Mapping[str, RoundedLayer]) -> list[dict[str, Any]]:
    """Rank layers by what each does to the picture.

    Returns
    -------
    list of dict
        The most sensitive first: ``name``; ``output_psnr_alone``, the output with only this layer in 8 bits
        against the float network's, dB, data range 2; ``output_psnr_without``, with all but this one;
        ``share`` of the summed squared errors of all layers alone, 0 to 1.
    """
    ranking = rank_layers(probe, layers)
    return [
        {
            "name": row.name,
            "output_psnr_alone": row.psnr,
            "output_psnr_without": output_psnr(probe, layers, [row.name]),
            "share": row.share,
        }
        for row in progress(ranking, desc="all but one", unit="layer")
    ]


def healing_steps(
    probe: Probe, layers: Mapping[str, RoundedLayer], ranking: Sequence[str], most: int = MOST_IN_FLOAT
) -> list[dict[str, Any]]:
    """Leave the first 0, 1, 2, ... layers of a ranking in float; at least one stays quantised.

    Returns
    -------
    list of dict
        ``in_float`` (how many), ``name`` (the one that this step adds; None at 0), ``psnr`` of the output
        against the float network's in dB, data range 2.
    """
    counts = range(min(most, len(ranking) - 1) + 1)
    return [
        {
            "in_float": count,
            "name": ranking[count - 1] if count else None,
            "psnr": output_psnr(probe, layers, ranking[:count]),
        }
        for count in progress(counts, desc="healing", unit="step")
    ]


def output_psnr(probe: Probe, layers: Mapping[str, RoundedLayer], in_float: Sequence[str]) -> float:
    """Return the PSNR of the output with all but ``in_float`` quantised, against the float network's."""
    return decibels(probe.error({name: layer for name, layer in layers.items() if name not in in_float}))


# ----------------------------------------------------------------------
# Stress fp16 with styles far from 1: the original formulation breaks, the deploy form does not.
#
# Demodulation divides the size of a style out again, so that in exact arithmetic large and tiny styles
# give the
# same picture (up to the 1e-8 under the root). In fp16, sums of squares leave its range (65504) or vanish.

FACTORS = (1e-3, 1.0, 1e2, 1e4)


def scaled_styles(model: Gpen, factor: float) -> Gpen:
    """Return a copy whose demodulated layers get ``factor`` times their styles.

    ToRGB layers are left alone: they have no demodulation, and their style is a real change of the picture.
    """
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for module in scaled.modules():
            if isinstance(module, StyledConv):
                module.conv.modulation.weight.mul_(factor)
                module.conv.modulation.bias.mul_(factor)
    return scaled


def stress_half(model: Gpen, images: Tensor, factors: Sequence[float] = FACTORS) -> list[dict[str, Any]]:
    """Compare both formulations in fp16 with float32, for styles of several sizes.

    Parameters
    ----------
    model : Gpen
        float32; not changed.
    images : float32 [N, 3, S, S]
    factors : sequence of float
        What the styles are multiplied by.

    Returns
    -------
    list of dict
        ``factor``; for each form ``original`` and ``deploy``: ``<form>_psnr`` against float32 with the same
        styles in dB (data range 2, at most 100; None: NaN or infinity in the output) and ``<form>_overflow``
        (the first tensor that is not finite, or None); ``change_psnr``: float32 with scaled against
        float32 with unscaled styles, i.e. how much the function itself changes.
    """
    rows = []
    with torch.inference_mode():
        unscaled = model(images)
        for factor in factors:
            scaled = scaled_styles(model, factor)
            expected = scaled(images)
            row: dict[str, Any] = {"factor": factor, "change_psnr": _psnr(unscaled, expected)}
            forms = {"original": copy.deepcopy(scaled).half(), "deploy": mixed_precision(scaled, "fp16")}
            for form, network in forms.items():
                found, overflow = run_in_half(network, images.half() if form == "original" else images)
                row[f"{form}_psnr"] = _psnr(expected, found)
                row[f"{form}_overflow"] = None if overflow is None else str(overflow)
            rows.append(row)
    return rows


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


def _psnr(expected: Tensor, found: Tensor) -> float | None:
    """Return the PSNR, or None if an output is not finite."""
    if not bool(torch.isfinite(found).all()):
        return None
    return min(parity(expected.numpy(), found.numpy()).psnr, 100.0)
