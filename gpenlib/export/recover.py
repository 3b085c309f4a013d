"""The way in: recover the weights of a GPEN generator from an ONNX file of the training form.

Names are not used: tensors are matched by their place in the graph and their shape, and the result is run
against the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto
from torch import Tensor

from gpenlib.architecture import CheckpointError, Gpen
from gpenlib.architecture.checkpoints import deduce_config, load_strict
from gpenlib.architecture.model import MAPPING_LAYERS, EqualConv2d, EqualLinear, ModulatedConv2d
from gpenlib.export.deploy import CONVOLUTIONS, Array, FoldedGraph, RecoverError, attribute
from gpenlib.export.graphs import ParityError, assert_parity, example_input

__all__ = ["RecoverError", "gpen_from_onnx"]

TOLERANCE = 1e-3  # of the output's standard deviation
LINEARS = ("Gemm", "MatMul")


def gpen_from_onnx(path: str | Path) -> Gpen:
    """Recover a generator from an ONNX file of the original formulation, such as ``GPEN-BFR-512.onnx``.

    Parameters
    ----------
    path : str or Path
        ONNX file whose decoder convolutions modulate their weights, float32, one input
        [N, 3, S, S] in [-1, 1], first output the image in the same range. Names do not matter; scales of the
        equalised learning rate may be folded into the weights or stand in the graph.

    Returns
    -------
    Gpen
        float32, in eval mode; its output on a seeded input agrees with the file's within 1e-3 of the
        output's standard deviation.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RecoverError
        If the file is damaged or no GPEN training form (the message names what could not be matched), or the
        recovered network's output differs from the file's.

    Notes
    -----
    Noise weights above ``in_size`` meet zeros in an exported graph, cannot be read, and become zero; so do
    biases that an exporter dropped because they were zero.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    graph = FoldedGraph(path)
    if graph.input.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise RecoverError(f"{path}: the input is not float32; half-precision and integer files are not read")
    try:
        state = Matcher(graph).state()
        model = Gpen(deduce_config(state, path))
        _undo_scales(model, state)
        kernels = {name: value for name, value in model.state_dict().items() if name.endswith(".kernel")}
        load_strict(model, state | kernels, path)
    except CheckpointError as error:
        raise RecoverError(f"the weights fit no GPEN: {error}") from error
    _verify(model.eval(), graph)
    return model


class Matcher:
    """Assign the constants of a graph to the entries of a generator's state dict, by graph order."""

    def __init__(self, graph: FoldedGraph) -> None:
        self.graph = graph
        weighted = [node for node in graph.nodes if self._is_weighted(node)]
        convolutions = [node for node in weighted if node.op_type in CONVOLUTIONS]
        self.encoder = [node for node in convolutions if node.input[1] in graph.constants]
        modulated = [node for node in convolutions if node.input[1] not in graph.constants]
        if not modulated:
            raise RecoverError(
                f"{graph.path}: no convolution with modulated weights: not a GPEN training form. A deploy "
                "form or a quantised file (constant convolution weights) cannot be recovered; run it as it is"
            )
        self.modulation = {node.output[0]: self._modulation(node) for node in modulated}
        taken = {linear.output[0] for _, linear in self.modulation.values()}
        self.latent_path = [
            node for node in weighted if node.op_type in LINEARS and node.output[0] not in taken
        ]
        self.rgb = [node for node in modulated if self.modulation[node.output[0]][0].shape[-1] == 1]
        self.styled = [node for node in modulated if self.modulation[node.output[0]][0].shape[-1] != 1]
        self._sort_by_depth()
        self._check_counts()

    def _is_weighted(self, node: NodeProto) -> bool:
        if node.op_type in LINEARS:
            return node.input[1] in self.graph.constants
        return node.op_type in CONVOLUTIONS and not self.graph.is_fir(node)

    def _sort_by_depth(self) -> None:
        """Sort each kind of operation by how many weighted operations stand before it.

        Within a kind every operation follows from the previous one, so this is the order of execution
        whatever the order in the file.
        """
        depth: dict[str, int] = {}
        for node in self.graph.nodes:
            own = max((depth.get(name, 0) for name in node.input), default=0) + self._is_weighted(node)
            depth.update(dict.fromkeys(node.output, own))
        for nodes in (self.encoder, self.latent_path, self.rgb, self.styled):
            nodes.sort(key=lambda node: depth[node.output[0]])

    def _check_counts(self) -> None:
        """Compare the number of operations of each kind with what a GPEN has."""
        linears, styled, levels = len(self.latent_path), len(self.styled), len(self.rgb)
        wrong = []
        if not self.encoder:
            wrong.append("no encoder convolutions")
        if linears != MAPPING_LAYERS + 1:
            wrong.append(
                f"{linears} linear layers before the decoder instead of {MAPPING_LAYERS + 1} "
                "(final_linear and the mapping network)"
            )
        if styled != 2 * levels - 1:
            wrong.append(
                f"{styled} styled convolutions for {levels} ToRGB layers instead of {2 * levels - 1}"
            )
        if wrong:
            raise RecoverError(f"{self.graph.path}: {'; '.join(wrong)}")

    def state(self) -> dict[str, Tensor]:
        """Return the state dict without FIR kernels, scales of the equalised learning rate included."""
        found: dict[str, Array] = {}
        for index, node in enumerate(self.encoder):
            stage = f"ecd{index}.0.{min(index, 1)}"
            found[f"{stage}.weight"] = self._weight(node)
            found[f"ecd{index}.0.{min(index, 1) + 1}.bias"] = self._bias(node, len(self._weight(node)))
        for index, node in enumerate(self.latent_path):
            self._linear(node, f"generator.style.{index}" if index else "final_linear.0", found)
        for index, node in enumerate(self.styled):
            name = f"generator.convs.{index - 1}" if index else "generator.conv1"
            self._modulated(node, name, found)
            concat, tensor = self.graph.next_after(node)
            if concat is None or concat.op_type != "Concat":
                raise RecoverError(f"{self.graph.path}: nothing is concatenated to the output of {name}")
            found[f"{name}.noise.weight"] = self._noise_weight(concat, tensor)
            width = 2 * found[f"{name}.conv.weight"].shape[1]
            found[f"{name}.activate.bias"] = self._bias(concat, width)
        for index, node in enumerate(self.rgb):
            name = f"generator.to_rgbs.{index - 1}" if index else "generator.to_rgb1"
            self._modulated(node, name, found)
            found[f"{name}.bias"] = self._bias(node, 3).reshape(1, 3, 1, 1)
        found["generator.input.input"] = self._constant_input()
        return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in found.items()}

    def _weight(self, node: NodeProto) -> Array:
        """Return the constant weight: [O, I, k, k], or [O, I] of a linear layer."""
        weight = np.asarray(self.graph.constants[node.input[1]], np.float32)
        if node.op_type in CONVOLUTIONS:
            return weight
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        return (weight if transposed else weight.T) * np.float32(attribute(node, "alpha", 1))

    def _linear(self, node: NodeProto, name: str, found: dict[str, Array]) -> None:
        found[f"{name}.weight"] = self._weight(node)
        found[f"{name}.bias"] = self._bias(node, len(found[f"{name}.weight"]))

    def _modulation(self, node: NodeProto) -> tuple[Array, NodeProto]:
        """Return the weight [1, O, I, k, k] of a modulated convolution and the linear layer of its style."""
        for product in self.graph.ancestors(node.input[1]):
            weight = self.graph.constant_operand(product) if product.op_type == "Mul" else None
            if weight is None or weight.ndim < 4:
                continue
            style = next(name for name in product.input if name not in self.graph.constants)
            for linear in self.graph.ancestors(style):
                if linear.op_type in LINEARS and linear.input[1] in self.graph.constants:
                    return weight.reshape(1, *weight.shape[-4:]), linear
        raise RecoverError(
            f"{self.graph.path}: found no constant weight times a style behind the weight of node "
            f"{node.name!r} ({node.op_type})"
        )

    def _modulated(self, node: NodeProto, name: str, found: dict[str, Array]) -> None:
        found[f"{name}.conv.weight"], linear = self.modulation[node.output[0]]
        self._linear(linear, f"{name}.conv.modulation", found)

    def _bias(self, node: NodeProto, width: int) -> Array:
        """Return what is added after ``node``, [width]: within the node or by an Add; else zeros."""
        bias = np.zeros(width, np.float32)
        parts = []
        if node.op_type in (*CONVOLUTIONS, "Gemm") and len(node.input) > 2 and node.input[2]:
            inner = self.graph.constant(node.input[2])
            parts.append(None if inner is None else inner * np.float32(attribute(node, "beta", 1)))
        following, _ = self.graph.next_after(node)
        if following is not None and following.op_type == "Add":
            parts.append(self.graph.constant_operand(following))
        for part in parts:
            if part is None:
                continue
            if part.size not in (1, width):
                raise RecoverError(
                    f"{self.graph.path}: the bias after node {node.name!r} ({node.op_type}) has shape "
                    f"{part.shape} for {width} channels"
                )
            bias = bias + part.reshape(-1)
        return bias

    def _noise_weight(self, concat: NodeProto, features: str) -> Array:
        """Return the factor [1] of the encoder feature that is concatenated to ``features``."""
        noise = next(name for name in concat.input if name != features)
        if noise in self.graph.constants:  # zeros: a level above in_size
            return np.zeros(1, np.float32)
        product = next((node for node in self.graph.ancestors(noise) if node.op_type == "Mul"), None)
        if product is not None:
            behind = [self.graph.producer[name] for name in product.input if name in self.graph.producer]
            if any(node.op_type == "LeakyRelu" for node in behind):  # the gain: a factor of one was dropped
                return np.ones(1, np.float32)
            factor = self.graph.constant_operand(product)
            if factor is not None and factor.size == 1:
                return factor.reshape(1)
        raise RecoverError(f"{self.graph.path}: no noise weight before node {concat.name!r} (Concat)")

    def _constant_input(self) -> Array:
        """Return the constant [1, C, 4, 4] that the first styled convolution reads."""
        name = self.styled[0].input[0]
        while name not in self.graph.constants and name in self.graph.producer:
            name = self.graph.producer[name].input[0]
        value = self.graph.constant(name)
        if value is None or value.ndim != 4 or value.shape[2:] != (4, 4):
            raise RecoverError(f"{self.graph.path}: no constant [1, C, 4, 4] before the first styled layer")
        return value[:1]


def _undo_scales(model: Gpen, state: dict[str, Tensor]) -> None:
    """Divide ``state`` in place by the scales of the equalised learning rate."""
    for name, module in model.named_modules():
        if isinstance(module, EqualConv2d | EqualLinear | ModulatedConv2d) and f"{name}.weight" in state:
            state[f"{name}.weight"] /= module.scale
        if isinstance(module, EqualLinear) and f"{name}.bias" in state:
            state[f"{name}.bias"] /= module.lr_mul


def _verify(model: Gpen, graph: FoldedGraph) -> None:
    """Run the file and the recovered network on one seeded image and compare."""
    import onnxruntime  # heavy; only needed here

    image = example_input(model.config)
    sides = [dim.dim_value for dim in graph.input.type.tensor_type.shape.dim][1:]
    if any(side and side != own for side, own in zip(sides, image.shape[1:], strict=False)):
        raise RecoverError(f"{graph.path}: input of shape {sides}, but the weights are for {model.config}")
    try:
        session = onnxruntime.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
        expected = np.asarray(session.run(None, {graph.input.name: image.numpy()})[0])
    except Exception as error:  # onnxruntime has no common error type
        raise RecoverError(f"{graph.path}: ONNX Runtime cannot run the file ({error})") from error
    with torch.inference_mode():
        found = model(image).numpy()
    try:
        assert_parity(expected, found, f"{graph.path} and the recovered network", TOLERANCE)
    except ParityError as error:
        raise RecoverError(f"recovered weights do not reproduce the file: {error}") from error
