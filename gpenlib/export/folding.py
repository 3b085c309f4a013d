"""An ONNX graph with everything constant evaluated: what is left depends on the input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from gpenlib.architecture.ops import FIR_TAPS

Array = NDArray[Any]
RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")
SHAPE_READERS = ("Shape", "Size")
CONVOLUTIONS = ("Conv", "ConvTranspose")
# Operators between a weighted operation and its bias that move values without changing them.
MOVES = (
    *("Cast", "Expand", "Flatten", "Identity", "Pad", "Reshape"),
    *("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)


class RecoverError(ValueError):
    """An ONNX file whose weights cannot be recovered; the message names what could not be matched."""


class FoldedGraph:
    """Nodes that depend on the input, and the value of every tensor that does not.

    Parameters
    ----------
    path : Path
        ONNX file; external data beside it is read too.

    Attributes
    ----------
    nodes : list of NodeProto
        Nodes that depend on the input, in topological order.
    constants : dict of str to ndarray
        Initialisers, and what constant nodes compute from them.

    Raises
    ------
    RecoverError
        If the file is not ONNX, an initialiser is damaged, a node reads a tensor that nothing produces,
        or the graph has not exactly one input and at least one output.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf's, onnx's and the file system's errors have no common type
            raise RecoverError(f"{path}: not a readable ONNX file ({error})") from error
        self.path = path
        self.constants: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            try:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise RecoverError(f"{path}: damaged initialiser {tensor.name!r} ({error})") from error
        inputs = [value for value in model.graph.input if value.name not in self.constants]
        if len(inputs) != 1 or not model.graph.output:
            names = ", ".join(value.name for value in inputs) or "none"
            raise RecoverError(f"{path}: a GPEN graph has one input and an output; found inputs: {names}")
        self.input = inputs[0]
        self.nodes: list[NodeProto] = []
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        for node in model.graph.node:
            self._add(node, opsets)

    def _add(self, node: NodeProto, opsets: dict[str, int]) -> None:
        """Evaluate ``node`` if its inputs are constant, else keep it."""
        for name in filter(None, node.input):
            if name not in self.constants and name not in self.producer and name != self.input.name:
                raise RecoverError(
                    f"{self.path}: node {node.name!r} ({node.op_type}) reads {name!r}, which is neither an "
                    "initialiser nor the output of an earlier node"
                )
        if all(name in self.constants for name in node.input if name) and self._evaluate(node, opsets):
            return
        self.nodes.append(node)
        for name in node.output:
            self.producer[name] = node
        for name in set(node.input):
            self.consumers[name].append(node)

    def _evaluate(self, node: NodeProto, opsets: dict[str, int]) -> bool:
        """Compute a constant node with the reference evaluator; False if it is random or unknown."""
        if node.op_type.startswith(RANDOM):
            return False
        if node.op_type == "Identity":
            self.constants[node.output[0]] = self.constants[node.input[0]]
            return True
        feeds = {name: self.constants[name] for name in node.input if name}
        try:
            results = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
        except Exception as error:  # the reference evaluator has no common error type
            if any(array.ndim >= 2 for array in feeds.values()):  # likely a weight of the wrong shape
                raise RecoverError(
                    f"{self.path}: constant node {node.name!r} ({node.op_type}) cannot be evaluated ({error})"
                ) from error
            return False
        self.constants.update(zip(node.output, map(np.asarray, results), strict=False))
        return True

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant tensor as float32, or None."""
        value = self.constants.get(name)
        return None if value is None else np.asarray(value, np.float32)

    def constant_operand(self, node: NodeProto) -> Array | None:
        """Return the constant operand of a two-operand node, or None."""
        return next((value for name in node.input if (value := self.constant(name)) is not None), None)

    def is_fir(self, node: NodeProto) -> bool:
        """Tell a depthwise low-pass filter, whose taps belong to the architecture."""
        if node.op_type not in CONVOLUTIONS or node.input[1] not in self.constants:
            return False
        return self.constants[node.input[1]].shape[1:] == (1, len(FIR_TAPS), len(FIR_TAPS))

    def next_after(self, node: NodeProto) -> tuple[NodeProto | None, str]:
        """Return the first node after ``node`` that changes values, and the tensor it reads.

        Moves and FIR filters are passed. The node is None at the output or where the data branches.
        """
        while True:
            tensor = node.output[0]
            readers = [reader for reader in self.consumers[tensor] if reader.op_type not in SHAPE_READERS]
            if len(readers) != 1:
                return None, tensor
            node = readers[0]
            if node.op_type not in MOVES and not self.is_fir(node):
                return node, tensor

    def ancestors(self, name: str) -> Iterator[NodeProto]:
        """Yield the nodes that tensor ``name`` depends on, nearest first (breadth first)."""
        seen: set[str] = set()
        queue = [name]
        for tensor in queue:  # grows while it is read
            node = self.producer.get(tensor)
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            yield node
            queue.extend(node.input)


def attribute(node: NodeProto, name: str, default: float) -> float:
    """Return a numeric attribute of ``node``."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else float(onnx.helper.get_attribute_value(found))
