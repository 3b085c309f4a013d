"""Where int8 departs from float inside the network: every feature map of both graphs, on the same faces.

Two errors are told apart. *Accumulated*: the map in the fully quantised network against the float one, with
all that went wrong before it. *Isolated*: one layer computed in 8 bits from its float input, its own output
against the float one. Both are those of the QDQ arithmetic, computed in float32.
Decoder layers are computed in halves (:mod:`gpenlib.compile.halves`): what they read is compared so too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from gpenlib.compile.calibrate import watching_session
from gpenlib.compile.halves import convolution_layers, split_halves
from gpenlib.compile.histogram import LEVELS
from gpenlib.compile.layers import RoundedLayer
from gpenlib.compile.simulate import fake_quantised
from gpenlib.export import DeployGpen
from gpenlib.images import FloatArray

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
