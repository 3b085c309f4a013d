"""Figures of an ONNX graph: operators, constants, size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx

from gpenlib.export.onnx_export import CONVOLUTIONS, constant_names


@dataclass(frozen=True)
class GraphSummary:
    """What an ONNX file consists of."""

    nodes: int
    operators: dict[str, int]
    constant_convolutions: int
    runtime_convolutions: int  # convolutions whose weights the graph computes
    parameters: int
    bytes: int
    opset: int

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return dict(vars(self))


def summarise_graph(path: str | Path) -> GraphSummary:
    """Count what is in an ONNX file."""
    path = Path(path)
    model = onnx.load(path)
    constants = constant_names(model)
    convolutions = [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    constant = sum(node.input[1] in constants for node in convolutions)
    return GraphSummary(
        nodes=len(model.graph.node),
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        constant_convolutions=constant,
        runtime_convolutions=len(convolutions) - constant,
        parameters=sum(prod(tensor.dims) for tensor in model.graph.initializer),
        bytes=path.stat().st_size,
        opset=model.opset_import[0].version,
    )
