"""The way in: recover the weights of a GPEN generator from an ONNX file of the training form.

Names are not used: ONNX Runtime evaluates what is constant, so that every node left depends on the input;
tensors are matched by their place in the graph and their shape, and the result is run against the file.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data
from onnx.helper import (
    make_graph,
    make_model,
    make_tensor_type_proto,
    make_value_info,
    tensor_dtype_to_np_dtype,
)
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from gpenlib.architecture import CheckpointError, Gpen
from gpenlib.architecture.checkpoints import deduce_config, load_strict
from gpenlib.architecture.model import FIR_TAPS, EqualConv2d, EqualLinear, ModulatedConv2d
from gpenlib.export.graphs import CONVOLUTIONS, ParityError, assert_parity, example_input, sort_nodes

TOLERANCE = 1e-3  # of the output's standard deviation
LINEARS = ("Gemm", "MatMul")
SHAPE_READERS = ("Shape", "Size")
# Operators between a weighted operation and its bias that move values without changing them.
MOVES = (
    *("Cast", "Expand", "Flatten", "Identity", "Pad", "Reshape"),
    *("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
# ONNX Runtime evaluates what is constant when it opens a file: 300 bytes can ask for hours or all memory. So
# a graph is looked through first. It may do what exporters make of GPEN's modules, native FIR filters and
# arithmetic on shapes included, within what 2048 px need: no loops, branches, functions or random numbers.
OPERATORS = {
    *CONVOLUTIONS, *LINEARS, *SHAPE_READERS, *MOVES,
    *("Abs", "Add", "And", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Exp"),
    *("Floor", "Gather", "Greater", "LeakyRelu", "Less", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not"),
    *("Or", "PRelu", "Pow", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "Relu", "ScatterND", "Split", "Sqrt", "Sub", "Where"),
}  # fmt: skip
OF_INT8 = ("DequantizeLinear", "DepthToSpace", "QLinearConv", "QuantizeLinear")  # of our int8 files
MOST_NODES, MOST_BYTES = 20_000, 1 << 30  # bytes of a file, and of its tensors
MOST_ENTRIES = 1 << 28  # of what a node makes
MOST_CONSTANTS = 1 << 26  # entries of all constants that are computed, beyond eight times those of the file
MOST_PRODUCTS = 1 << 41  # of convolutions and linear layers
FEW = 1024  # entries of a constant on which sizes may depend
NO_TRAINING_FORM = (
    "not a GPEN training form. A deploy form or quantised file (constant convolution weights) cannot be "
    "recovered; run it as it is, or give the original checkpoint"
)
Array = NDArray[Any]


class RecoverError(ValueError):
    """An ONNX file whose weights cannot be recovered; the message names what could not be matched."""


def gpen_from_onnx(path: str | Path) -> Gpen:
    """Recover a generator from an ONNX file of the original formulation, such as ``GPEN-BFR-512.onnx``.

    Parameters
    ----------
    path : str or Path
        ONNX file whose decoder convolutions modulate their weights, float32, one input
        [N, 3, S, S] in [-1, 1], first output the image in the same range. Names do not matter; scales of the
        equalised learning rate may be folded into the weights or stand in the graph. Tensors may lie in other
        files of its folder (ONNX's external data).

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
        If the file is damaged or no GPEN training form (the message names what could not be matched), its
        external data are missing or lie outside its folder, or the recovered network's output differs from
        the file's.

    Notes
    -----
    Noise weights above ``in_size`` meet zeros in an exported graph, cannot be read, and become zero; so do
    biases that an exporter dropped because they were zero.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    graph = TrainingGraph(path)
    try:
        state = graph.state()
        config = deduce_config(state, path)
        with torch.device("meta"):  # shapes alone: what is deduced from few may be of any width
            size = sum(entry.numel() for entry in Gpen(config).state_dict().values())
        if size > 2 * sum(entry.numel() for entry in state.values()):
            raise CheckpointError(f"{path}: its layers are too few or too narrow for {config}")
        model = Gpen(config)
        for name, module in model.named_modules():  # the file's weights are scaled, Gpen's are not yet
            if isinstance(module, EqualConv2d | EqualLinear | ModulatedConv2d) and f"{name}.weight" in state:
                state[f"{name}.weight"] /= module.scale
            if isinstance(module, EqualLinear) and f"{name}.bias" in state:
                state[f"{name}.bias"] /= module.lr_mul
        kernels = {name: value for name, value in model.state_dict().items() if name.endswith(".kernel")}
        load_strict(model, state | kernels, path)
    except RecoverError:
        raise
    except CheckpointError as error:
        raise RecoverError(f"the weights fit no GPEN: {error}") from error
    except Exception as error:  # a graph that is wired in a way that no GPEN is
        raise RecoverError(f"{path}: {NO_TRAINING_FORM} ({type(error).__name__}: {error!s:.200})") from error
    image = example_input(model.config)
    with torch.inference_mode():
        output = model.eval()(image).numpy()
    try:
        assert_parity(graph.run(image.numpy()), output, f"{path} and the recovered network", TOLERANCE)
    except ParityError as error:
        raise RecoverError(f"recovered weights do not reproduce the file: {error}") from error
    return model


def read_onnx(path: Path) -> tuple[ModelProto, dict[str, Path]]:
    """Parse a stranger's ONNX file; return it without external data, and their files by relative path."""
    model = ModelProto()
    if path.stat().st_size <= MOST_BYTES:
        with suppress(Exception):  # protobuf's error has another type in every version
            model.ParseFromString(path.read_bytes())
    if not model.graph.node:
        what = "is it a web page, a pointer to a file or the beginning of one?"
        raise ValueError(f"no ONNX file of {MOST_BYTES} bytes at most; {what}")
    attributes = (entry for node in model.graph.node for entry in node.attribute)
    tensors = [*model.graph.initializer, *(entry.t for entry in attributes if entry.HasField("t"))]
    if sum(map(_bytes, tensors)) > MOST_BYTES:
        raise ValueError(f"its tensors take more than {MOST_BYTES} bytes")
    files, folder = {}, path.parent.resolve()
    for tensor in filter(uses_external_data, tensors):
        info, length = ExternalDataInfo(tensor), _bytes(tensor)
        file, start = (folder / info.location).resolve(), info.offset or 0
        where = f"external data {info.location[:200]!r} of tensor {tensor.name[:80]!r}"
        if not file.is_relative_to(folder) or not file.is_file():
            raise ValueError(f"{where} are no file in the model's folder; put them into it")
        size = file.stat().st_size
        if not 0 <= start <= start + length <= size <= MOST_BYTES or info.length not in (None, length):
            raise ValueError(f"{where} are to be {length} bytes from {start} on, in a file of {size}")
        files[file.relative_to(folder).as_posix()] = file
    return model, files


def _bytes(tensor: TensorProto) -> int:
    """Return what a tensor takes in memory."""
    if min(tensor.dims, default=0) < 0:
        raise ValueError(f"tensor {tensor.name[:80]!r} has a negative size")
    return math.prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def refusal(path: Path, error: Exception) -> str:
    """Return the message for a file that is not read, of an error that may be of any library's."""
    return f"{path}: {' '.join(str(error).split())[:400]}; fetch it again, or give the original checkpoint"


def check_graph(
    model: ModelProto, more: Collection[str] = (), most_products: int = MOST_PRODUCTS
) -> dict[str, list[int]]:
    """Return the shapes of all tensors; ValueError for a graph that no GPEN has, or that asks for too much.

    Operators ``more`` than those of training forms are allowed. An open batch becomes 1, nodes are sorted.
    Sizes are followed from node to node, as are the values of the few constants that sizes depend on.
    """
    graph, version = model.graph, {entry.domain: entry.version for entry in model.opset_import}.get("", 1)
    known = {(domain, name) for domain in ("", "ai.onnx") for name in (*OPERATORS, *more)}
    odd = [node.op_type[:40] for node in graph.node if (node.domain, node.op_type) not in known]
    if odd or model.functions or graph.sparse_initializer or len(graph.node) > MOST_NODES:
        what = ", ".join(dict.fromkeys(odd[:5])) or f"functions, sparse tensors or over {MOST_NODES} nodes"
        raise ValueError(
            f"{what}: {'no operator of a network that is read here' if more else NO_TRAINING_FORM}"
        )
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16) if more else (TensorProto.FLOAT,)
    if len(graph.input) != 1 or graph.input[0].type.tensor_type.elem_type not in floats:
        what = ", ".join(value.name for value in graph.input)[:200] or "none"
        told = "a GPEN graph has one input, float32 (half-precision and integer files are not read)"
        raise ValueError(f"{told}; inputs here: {what}")
    sort_nodes(graph)
    image = graph.input[0]
    for batch in image.type.tensor_type.shape.dim[:1]:
        batch.dim_value = batch.dim_value or 1
    stored = {tensor.name: tensor for tensor in graph.initializer}
    types = {name: make_tensor_type_proto(t.data_type, t.dims) for name, t in stored.items()}
    types[image.name] = image.type
    shapes = {"": [0]} | {name: _shape(kind, name) for name, kind in types.items()}
    values = {name: tensor for name, tensor in stored.items() if math.prod(tensor.dims) <= FEW}
    fixed, constants, products = {"", *stored} - {image.name}, 0, 0
    most = MOST_CONSTANTS + 8 * sum(math.prod(shapes[name]) for name in stored)
    for node in graph.node:
        what, read = f"node {node.name[:80]!r} ({node.op_type})", list(filter(None, node.input))
        names = [name for name in node.output if name]
        if wrong := ({*read} - shapes.keys()) | (shapes.keys() & names):
            raise ValueError(f"{what}: {wrong.pop()[:80]!r} is read before it is made, or made twice")
        types |= onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, version), node, {name: types[name] for name in read},
            {name: values[name] for name in read if name in values}, None, list(model.opset_import),
        )  # fmt: skip
        shapes |= {name: _shape(types.get(name, onnx.TypeProto()), name) for name in names}
        entries = sum(math.prod(shapes[name]) for name in names)
        constant, weighted = fixed.issuperset(read), node.op_type in (*CONVOLUTIONS, *LINEARS)
        if weighted:
            data, weight = (shapes[name] for name in read[:2])
            each = math.prod(weight[1:] if node.op_type in CONVOLUTIONS else data[-1:])
            products += each * (math.prod(data) if node.op_type == "ConvTranspose" else entries)
        if constant:
            fixed.update(names)
            given = node.op_type == "Constant" and node.attribute[0].name == "value"
            most += 8 * entries * given  # as if it were stored
            constants += entries
        asked = (entries, MOST_ENTRIES), (products, most_products), (constants, most)
        if any(number > limit for number, limit in asked) or (constant and weighted):
            raise ValueError(f"{what}: {entries} numbers and {products} products are more than a GPEN needs")
        if node.op_type == "Shape":
            part = {entry.name: entry.i for entry in node.attribute}
            sizes = np.array(shapes[read[0]][part.get("start", 0) : part.get("end")], np.int64)
            values[names[0]] = numpy_helper.from_array(sizes, names[0])
        elif entries <= FEW and values.keys() >= {*read} and node.op_type not in OF_INT8:  # no sizes
            ends = [make_value_info(name, types[name]) for name in names]
            alone = make_graph([node], "constant", [], ends, [values[name] for name in read])
            found = ReferenceEvaluator(make_model(alone, opset_imports=model.opset_import)).run(None, {})
            for name, value in zip(names, found, strict=True):
                values[name] = numpy_helper.from_array(np.asarray(value), name)
    return shapes


def _shape(kind: onnx.TypeProto, name: str) -> list[int]:
    """Return the shape of a tensor; ValueError if it is not known."""
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.tensor_type.shape.dim]
    if not kind.tensor_type.HasField("shape") or min(dims, default=0) < 0:
        tool = "python -m onnxruntime.tools.make_dynamic_shape_fixed"
        raise ValueError(f"the size of {name[:80]!r} is open; fix that of the input with {tool}")
    return dims


class TrainingGraph:
    """A graph whose constants are evaluated; gives them as the entries of a generator's state dict."""

    def __init__(self, path: Path) -> None:
        import onnxruntime  # heavy; only needed here

        self.path = path
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            model, _ = read_onnx(path)
            load_external_data_for_model(model, str(path.parent))
            check_graph(model)
            onnx.checker.check_model(model)
            with tempfile.TemporaryDirectory() as folder:
                options.optimized_model_filepath = f"{folder}/folded.onnx"
                self.session = onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
                graph = onnx.load(options.optimized_model_filepath).graph
        except Exception as error:  # onnx, onnxruntime and the file system share no type of error
            raise RecoverError(refusal(path, error)) from error
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.constants = {name: value.astype(np.float32) for name, value in tensors.items()}
        self.nodes = list(graph.node)  # in topological order
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in set(node.input):
                self.consumers[name].append(node)
        self._sort_out()

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the file on float32 [1, 3, S, S]; return its first output."""
        try:
            return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: image})[0])
        except Exception as error:  # onnxruntime has no common error type
            raise self._error(f"does not run on an input of shape {image.shape} ({error})") from error

    def _error(self, message: str) -> RecoverError:
        return RecoverError(f"{self.path}: {message}")

    def _sort_out(self) -> None:
        """Group the weighted operations by kind, each kind in the order of execution.

        Within a kind every operation follows from the previous one, so that the number of weighted operations
        before it gives this order, whatever the order in the file.
        """
        depth: dict[str, int] = {}
        for node in self.nodes:
            below = max((depth.get(name, 0) for name in node.input), default=0)
            depth.update(dict.fromkeys(node.output, below + self._is_weighted(node)))
        weighted = sorted(filter(self._is_weighted, self.nodes), key=lambda node: depth[node.output[0]])
        convolutions = [node for node in weighted if node.op_type in CONVOLUTIONS]
        self.encoder = [node for node in convolutions if node.input[1] in self.constants]
        modulated = [node for node in convolutions if node.input[1] not in self.constants]
        self.modulation = {node.output[0]: self._modulation(node) for node in modulated}
        self.rgb = [node for node in modulated if self.modulation[node.output[0]][0].shape[-1] == 1]
        self.styled = [node for node in modulated if self.modulation[node.output[0]][0].shape[-1] != 1]
        if not self.styled:
            raise self._error(f"no convolution with modulated weights: {NO_TRAINING_FORM}")
        affines = {linear.output[0] for _, linear in self.modulation.values()}
        linears = [node for node in weighted if node.op_type in LINEARS]
        self.latent_path = [node for node in linears if node.output[0] not in affines]

    def _is_weighted(self, node: NodeProto) -> bool:
        if node.op_type in LINEARS:
            return node.input[1] in self.constants
        return node.op_type in CONVOLUTIONS and not self._is_fir(node)

    def _is_fir(self, node: NodeProto) -> bool:
        """Tell a depthwise low-pass filter, whose taps belong to the architecture."""
        weight = self.constants.get(node.input[1]) if node.op_type in CONVOLUTIONS else None
        return weight is not None and weight.shape[1:] == (1, len(FIR_TAPS), len(FIR_TAPS))

    def _constant_operand(self, node: NodeProto) -> Array | None:
        return next((self.constants[name] for name in node.input if name in self.constants), None)

    def _next_after(self, node: NodeProto) -> tuple[NodeProto | None, str]:
        """Return the first node after ``node`` that changes values, and the tensor it reads.

        Moves and FIR filters are passed. The node is None at the output or where the data branches.
        """
        while True:
            tensor = node.output[0]
            readers = [reader for reader in self.consumers[tensor] if reader.op_type not in SHAPE_READERS]
            if len(readers) != 1:
                return None, tensor
            node = readers[0]
            if node.op_type not in MOVES and not self._is_fir(node):
                return node, tensor

    def _ancestors(self, name: str) -> Iterator[NodeProto]:
        """Yield the nodes that tensor ``name`` depends on, nearest first (breadth first)."""
        seen: set[str] = set()
        queue = [name]
        for tensor in queue:  # grows while it is read
            node = self.producer.get(tensor)
            if node is not None and node.output[0] not in seen:
                seen.add(node.output[0])
                yield node
                queue.extend(node.input)

    def state(self) -> dict[str, Tensor]:
        """Return the state dict without FIR kernels, scales of the equalised learning rate included."""
        state: dict[str, Array] = {}
        for index, node in enumerate(self.encoder):
            place = min(index, 1)  # the first stage has no blur before its convolution
            weight = state[f"ecd{index}.0.{place}.weight"] = self._weight(node)
            state[f"ecd{index}.0.{place + 1}.bias"] = self._bias(node, len(weight))
        for index, node in enumerate(self.latent_path):
            state |= self._linear(node, f"generator.style.{index}" if index else "final_linear.0")
        for nodes, first, others in ((self.styled, "conv1", "convs"), (self.rgb, "to_rgb1", "to_rgbs")):
            for index, node in enumerate(nodes):
                name = f"generator.{others}.{index - 1}" if index else f"generator.{first}"
                weight, affine = self.modulation[node.output[0]]
                state |= self._linear(affine, f"{name}.conv.modulation")
                state[f"{name}.conv.weight"] = weight
                if nodes is self.rgb:
                    state[f"{name}.bias"] = self._bias(node, 3).reshape(1, 3, 1, 1)
                    continue
                concat, features = self._next_after(node)
                if concat is None or concat.op_type != "Concat":
                    raise self._error(f"nothing is concatenated to the output of {name}")
                state[f"{name}.noise.weight"] = self._noise_weight(concat, features)
                state[f"{name}.activate.bias"] = self._bias(concat, 2 * weight.shape[1])
        state["generator.input.input"] = self._constant_input()
        return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}

    def _weight(self, node: NodeProto) -> Array:
        """Return the constant weight: [O, I, k, k], or [O, I] of a linear layer."""
        weight = self.constants[node.input[1]]
        if node.op_type in CONVOLUTIONS:
            return weight
        transposed = node.op_type == "Gemm" and _attribute(node, "transB", 0)
        return (weight if transposed else weight.T) * np.float32(_attribute(node, "alpha", 1))

    def _linear(self, node: NodeProto, name: str) -> dict[str, Array]:
        weight = self._weight(node)
        return {f"{name}.weight": weight, f"{name}.bias": self._bias(node, len(weight))}

    def _modulation(self, node: NodeProto) -> tuple[Array, NodeProto]:
        """Return the weight [1, O, I, k, k] of a modulated convolution and the linear layer of its style."""
        for product in self._ancestors(node.input[1]):
            weight = self._constant_operand(product) if product.op_type == "Mul" else None
            if weight is None or weight.ndim < 4:
                continue
            style = next(name for name in product.input if name not in self.constants)
            for linear in self._ancestors(style):
                if linear.op_type in LINEARS and linear.input[1] in self.constants:
                    return weight.reshape(1, *weight.shape[-4:]), linear
        raise self._error(
            f"no constant weight times a style behind the weight of node {node.name!r} ({node.op_type})"
        )

    def _bias(self, node: NodeProto, width: int) -> Array:
        """Return what is added after ``node``, [width]: within the node or by an Add; else zeros."""
        parts: list[Array | None] = []
        if node.op_type in (*CONVOLUTIONS, "Gemm") and node.input[2:] and node.input[2] in self.constants:
            parts.append(self.constants[node.input[2]] * np.float32(_attribute(node, "beta", 1)))
        following, _ = self._next_after(node)
        if following is not None and following.op_type == "Add":
            parts.append(self._constant_operand(following))
        bias = np.zeros(width, np.float32)
        for part in parts:
            if part is not None and part.size not in (1, width):
                raise self._error(f"after {node.name!r} a bias of shape {part.shape} for {width} channels")
            bias = bias if part is None else bias + part.reshape(-1)
        return bias

    def _noise_weight(self, concat: NodeProto, features: str) -> Array:
        """Return the factor [1] of the encoder feature that is concatenated to ``features``."""
        noise = next(name for name in concat.input if name != features)
        if noise in self.constants:  # zeros: a level above in_size
            return np.zeros(1, np.float32)
        product = next((node for node in self._ancestors(noise) if node.op_type == "Mul"), None)
        if product is not None:
            behind = [self.producer[name] for name in product.input if name in self.producer]
            if any(node.op_type == "LeakyRelu" for node in behind):  # the gain: a factor of one was dropped
                return np.ones(1, np.float32)
            factor = self._constant_operand(product)
            if factor is not None and factor.size == 1:
                return factor.reshape(1)
        raise self._error(f"no noise weight before node {concat.name!r} (Concat)")

    def _constant_input(self) -> Array:
        """Return the constant [1, C, 4, 4] that the first styled convolution reads."""
        name = self.styled[0].input[0]
        while name not in self.constants and name in self.producer:
            name = self.producer[name].input[0]
        value = self.constants.get(name)
        if value is None or value.ndim != 4 or value.shape[2:] != (4, 4):
            raise self._error("no constant [1, C, 4, 4] before the first styled layer")
        return value[:1]


def _attribute(node: NodeProto, name: str, default: float) -> float:
    values = [onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name]
    return float(values[0]) if values else default
