"""ONNX and TorchScript files of a network, each checked against torch before it is kept.

ONNX files have one input ``input``, one output ``output``, plain ONNX operators and any batch size. torch's
exporters set modes of what they trace, so that each gets a copy and the caller's network stays as it is.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import itertools
import logging
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.data.faces import embedded_faces
from gpenlib.data.tasks import make_pair
from gpenlib.export.deploy import DeployGpen, deploy_copy
from gpenlib.files import write_atomically
from gpenlib.images import to_tensor
from gpenlib.jobs import keep_memory, return_memory

OPSET, IR_VERSION = 18, 9  # what ONNX Runtime 1.17 and OpenCV 4.10 read
INPUT_NAME, OUTPUT_NAME = "input", "output"
CONVOLUTIONS = ("Conv", "ConvTranspose")
NAMED_OPERATORS = (*CONVOLUTIONS, "Gemm", "MatMul")
PARITY_FACES = 2
TOLERANCE = 1e-4  # of the reference's standard deviation, as the reference figures ask
LEAST_ADDEND = 2e-8  # torch's default exporter takes scalars up to 1e-8 for zero, where they are added
Exporter = Literal["dynamo", "torchscript"]


@dataclass(frozen=True)
class GraphSummary:
    """What an ONNX file consists of."""

    nodes: int
    operators: dict[str, int]  # most frequent first
    constant_convolutions: int
    runtime_convolutions: int  # convolutions whose weights the graph computes
    parameters: int
    bytes: int
    opset: int

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


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
        parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        bytes=path.stat().st_size,
        opset=model.opset_import[0].version,
    )


class ParityError(RuntimeError):
    """Two implementations that should agree do not; the message gives the difference."""


@dataclass(frozen=True)
class Parity:
    """Difference of a candidate output from a reference output, both in [-1, 1]."""

    max_abs: float
    mean_abs: float
    relative: float  # max_abs / standard deviation of the reference
    psnr: float  # dB, data range 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers; an infinite PSNR (equal outputs) becomes None, which JSON can hold."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def parity(reference: NDArray[Any], candidate: NDArray[Any]) -> Parity:
    """Compare two outputs; ParityError if shapes differ or a value is not finite."""
    if reference.shape != candidate.shape:
        raise ParityError(f"shapes differ: {reference.shape} and {candidate.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise ParityError("an output holds NaN or infinity")
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    mean_square = float(np.square(difference).mean())
    return Parity(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        relative=float(difference.max() / max(reference.std(dtype=np.float64), 1e-12)),
        psnr=10 * math.log10(4.0 / mean_square) if mean_square else math.inf,
    )


def assert_parity(
    reference: NDArray[Any], candidate: NDArray[Any], what: str, tolerance: float = TOLERANCE
) -> Parity:
    """Return the parity, or raise ParityError if ``relative`` exceeds ``tolerance``."""
    try:
        difference = parity(reference, candidate)
    except ParityError as error:
        raise ParityError(f"{what}: {error}") from None
    if difference.relative > tolerance:
        raise ParityError(
            f"{what}: largest difference is {difference.relative:.2e} of the reference's standard deviation, "
            f"allowed {tolerance:.0e}"
        )
    return difference


def example_input(config: GpenConfig, batch: int = 1) -> Tensor:
    """Return a seeded random input [batch, 3, in_size, in_size] in [-1, 1]."""
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 3, config.in_size, config.in_size, generator=generator) * 2 - 1


def extreme_inputs(size: int) -> list[Tensor]:
    """Return pictures in which a lost safeguard shows, each [1, 3, size, size]: flat ones, a bright dot."""
    flat = [torch.full((1, 3, size, size), value) for value in (0.0, -1.0, 1.0, 1e-3)]
    dot = flat[1].clone()
    dot[..., size // 2, size // 2] = 1
    return [*flat, dot]


def assert_same(
    config: GpenConfig,
    reference: Callable[[Tensor], Tensor],
    candidate: Callable[[Tensor], Tensor],
    what: str,
    tolerance: float = TOLERANCE,
    batches: Sequence[int] = (1, 2),
    extremes: int | None = None,
) -> None:
    """Assert parity of two networks on random batches and, one by one, on (so many) extreme pictures."""
    probes = {f"batch {size}": [example_input(config, size)] for size in batches}
    probes["flat and extreme pictures"] = extreme_inputs(config.in_size)[:extremes]
    outputs: dict[str, list[NDArray[Any]]] = {name: [] for name in probes}
    for network in (reference, candidate):  # one after the other: each needs a gigabyte at 512 px
        keep_memory()
        for name, images in probes.items():
            with torch.inference_mode():
                outputs[name].append(np.concatenate([network(image).cpu().numpy() for image in images]))
        keep_memory(False)
    for name, (expected, output) in outputs.items():
        assert_parity(expected, output, f"{what}, {name}", tolerance)


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return ONNX Runtime on the CPU, opened at the first call: float32 [N, 3, S, S] -> the first output."""
    import onnxruntime  # heavy; only needed here

    @functools.cache
    def session() -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session().run(None, {session().get_inputs()[0].name: image.numpy()})[0])

    return run


def run_onnx(path: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a file once, as :func:`open_onnx` opens it."""
    return open_onnx(path)(torch.from_numpy(image)).numpy()


def export_onnx(
    model: Gpen | DeployGpen, path: str | Path, exporter: Exporter = "dynamo", dynamic_batch: bool = True
) -> Path:
    """Write the deploy form of ``model`` as ONNX and check it against torch at batch 1 and 2.

    Parameters
    ----------
    model : Gpen or DeployGpen
        In any mode and precision, on any device; it is not changed.
    path : path ending in ``.onnx``
    exporter : {"dynamo", "torchscript"}
        torch's two exporters. ``"dynamo"`` (``torch.export``) is the default: it is the maintained one and
        writes fewer nodes. ``"torchscript"`` is kept for comparison (notebook 01).
    dynamic_batch : bool
        If False the batch size is fixed at 1.

    Returns
    -------
    Path
        The file: ``input`` -> ``output``, float32 [N, 3, S, S], RGB in [-1, 1], opset 18.
        Convolution and linear nodes carry their module paths as names.

    Raises
    ------
    ParityError
        If ONNX Runtime and torch disagree.
    """
    deploy = deploy_copy(model).cpu()
    path = Path(path)
    with write_atomically(path) as temporary:
        graph = _trace(deploy, temporary, exporter, dynamic_batch)
        name_nodes(graph)
        save_onnx(graph, temporary)
        del graph
        gc.collect()
        return_memory()
        batches = (2,) if dynamic_batch else (1,)  # the extreme pictures come one by one
        assert_same(deploy.config, deploy, open_onnx(temporary), path.name, batches=batches)
    return path


def export_training_form(model: Gpen, path: str | Path) -> Path:
    """Write the original formulation (weights modulated per image) as ONNX, for comparison.

    The batch size is fixed at 1: its grouped convolution has one group per image, which ONNX cannot
    express for an unknown batch: with one, both of torch's exporters fail (notebook 01 shows it).
    """
    path, network = Path(path), _training_form(model)
    with write_atomically(path) as temporary:
        save_onnx(_trace(network, temporary, "dynamo", dynamic_batch=False), temporary)
        assert_same(network.config, network, open_onnx(temporary), path.name, batches=(1,), extremes=1)
    return path


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a file that older runtimes and OpenCV open, too; all of ours pass here. ``model`` is changed."""
    graph, version = model.graph, model.ir_version
    # Stack traces of this machine do not belong in the file, and IR 10 brought metadata.
    ends = (*graph.input, *graph.output, *graph.value_info)
    for owner in (model, graph, *graph.node, *graph.initializer, *ends):
        del owner.metadata_props[:]
        owner.doc_string = ""
    _unsqueeze_one_by_one(graph)
    model.ir_version = min(version, IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those whose results it reads, as ONNX asks; ValueError if they form a circle."""
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    order = {i: [maker[name] for name in node.input if name in maker] for i, node in enumerate(nodes)}
    try:
        places = [*TopologicalSorter(order).static_order()]
    except CycleError as error:
        name = nodes[error.args[1][0]].output[0]
        raise ValueError(f"{name[:80]!r} is read before it is made: nodes in a circle") from None
    del graph.node[:]
    graph.node.extend(nodes[i] for i in places)


def _unsqueeze_one_by_one(graph: onnx.GraphProto) -> None:
    """Give every Unsqueeze a single axis: OpenCV 4.10 reads no other, unless the tensor is constant."""
    axes = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        known = axes.get(node.input[1]) if node.op_type == "Unsqueeze" else None
        places = [] if known is None else sorted(numpy_helper.to_array(known).tolist())
        if len(places) < 2 or places[0] < 0:  # negative axes count from the end of the result
            nodes.append(node)
            continue
        names = [node.input[0], *(f"{node.output[0]}.{axis}" for axis in places[:-1]), node.output[0]]
        for axis, source, target in zip(places, names, names[1:], strict=False):
            if (place := f"axis.{axis}") not in axes:
                axes[place] = numpy_helper.from_array(np.array([axis]), place)
                graph.initializer.append(axes[place])
            name = f"{node.name}.{axis}"
            nodes.append(onnx.helper.make_node("Unsqueeze", [source, place], [target], name))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_constants(graph)


def drop_unused_constants(graph: onnx.GraphProto) -> None:
    """Remove constants that nothing reads any more; one by one, as removing and adding all copies them."""
    read = {name for node in graph.node for name in node.input}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def _training_form(model: Gpen) -> Gpen:
    return copy.deepcopy(model).cpu().float().eval().set_modulation("weights")


def _trace(
    network: Gpen | DeployGpen, path: Path, exporter: Exporter, dynamic_batch: bool
) -> onnx.ModelProto:
    """Run one of torch's exporters by way of ``path``, silencing its remarks on deprecation and packages."""
    free: dict[str, Any] = {}
    if dynamic_batch and exporter == "dynamo":
        free = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)}
    elif dynamic_batch:
        free = {"dynamic_axes": {INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}}}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, (example_input(network.config, 2 if dynamic_batch else 1),), path,
                input_names=[INPUT_NAME], output_names=[OUTPUT_NAME], opset_version=OPSET,
                dynamo=exporter == "dynamo", external_data=False, verbose=False, optimize=False, **free,
            )  # fmt: skip
            model = onnx.load(path)
            return _optimised(model) if exporter == "dynamo" else model
    finally:
        logger.setLevel(level)


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop what does nothing, as the exporter itself would, but no epsilon."""
    import onnxscript.optimizer  # imported here: it takes seconds, and few processes export

    # It compares with zero to within 1e-8: StyleGAN2's safeguards would go, and a flat face be NaN. Only
    # scalars are compared: an addend of rank 1 adds the same, and stays.
    addends = {name for node in model.graph.node if node.op_type in ("Add", "Sub") for name in node.input}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in addends and node.attribute[0].HasField("t"):
            tensor = node.attribute[0].t
            if not tensor.dims and 0 < abs(numpy_helper.to_array(tensor)) < LEAST_ADDEND:
                tensor.dims[:] = [1]
    optimised: onnx.ModelProto = onnxscript.optimizer.optimize(model)
    return optimised


def try_exporters(model: Gpen) -> list[dict[str, str]]:
    """Try both exporters with the training form, open and fixed batch size, one row each, for notebook 01."""
    rows, network = [], _training_form(model)
    for exporter, dynamic_batch in itertools.product(get_args(Exporter), (True, False)):
        outcome, stdout = "works", os.dup(1)
        with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # a trace that fails prints its whole graph, past Python
            try:
                _trace(network, Path(folder) / "training.onnx", exporter, dynamic_batch)
            except Exception as error:  # whatever an exporter raises is the answer
                cause: BaseException = error
                while cause.__cause__:
                    cause = cause.__cause__
                reason = str(cause).partition("  [")[0][:100]
                outcome = f"fails with {type(cause).__name__}: {reason}"
            finally:
                os.dup2(stdout, 1)
                os.close(stdout)
        batch = "open" if dynamic_batch else "fixed"
        rows.append({"exporter": exporter, "batch size": batch, "training form": outcome})
    return rows


def name_nodes(model: onnx.ModelProto) -> None:
    """Name weighted nodes by their module paths; ParityError if two claim one, or a weight is computed.

    A quantiser would pass over a convolution whose weight is computed at run time in silence.
    """
    constants, nodes = constant_names(model), model.graph.node
    taken: set[str] = set()
    for node in nodes:
        if node.op_type in CONVOLUTIONS and node.input[1] not in constants:
            raise ParityError(f"node {node.name} ({node.op_type}) has no constant weight")
    for node in (node for node in nodes if node.op_type in NAMED_OPERATORS):
        path = module_path(node)
        if node.op_type == "MatMul":
            path += ".energy"  # the style-dependent part of demodulation, the only bare matrix product
        if path in taken:
            raise ParityError(f"two nodes claim the module {path}")
        taken.add(path)
        node.name = path


def module_path(node: onnx.NodeProto) -> str:
    """Return the module path that either of torch's exporters recorded for a node."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [scope for scope in ast.literal_eval(entry.value) if scope]
            return str(scopes[-2] if len(scopes) > 1 else scopes[-1])  # the last one is the operator
    return node.name.strip("/").rpartition("/")[0].replace("/", ".")


def constant_names(model: onnx.ModelProto) -> set[str]:
    """Return the names of tensors that are fixed: initialisers, constants and copies of them."""
    names = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.op_type == "Identity" and node.input[0] in names):
            names.add(node.output[0])
    return names


def export_torchscript(model: Gpen | DeployGpen, path: str | Path) -> Path:
    """Write the deploy form of ``model`` as a frozen TorchScript file and check it at batch 1 and 2.

    Parameters
    ----------
    model : Gpen or DeployGpen
        In any mode and precision; it is not changed.
    path : path, by custom ending in ``.pt``

    Returns
    -------
    Path
        ``torch.jit.load(path)(x)``: float32 [N, 3, S, S] in [-1, 1] -> same.

    Raises
    ------
    ParityError
        If the reloaded file and the module disagree.
    """
    return save_torchscript(deploy_copy(model), Path(path))


def save_torchscript(module: nn.Module, path: Path, tolerance: float = TOLERANCE) -> Path:
    """Trace a deploy form of any precision in eval mode, on its device, write it frozen, and check it."""
    config = module.config
    if not isinstance(config, GpenConfig):
        raise TypeError(f"{type(module).__name__}.config is a {type(config).__name__}, not a GpenConfig")
    device = next(module.buffers()).device
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # torch marks TorchScript as superseded by torch.export
        traced = torch.jit.freeze(torch.jit.trace(module, example_input(config).to(device)))
        with write_atomically(path) as temporary:
            traced.save(str(temporary))
            reloaded = torch.jit.load(str(temporary))
            here, there = (lambda image, run=run: run(image.to(device)) for run in (module, reloaded))
            assert_same(config, here, there, path.name, tolerance)
    return path


def export_parity(model: Gpen, folder: Path) -> dict[str, Any]:
    """Measure every exported file against the training form on faces, at batch 1 and 2; assert it."""
    source = embedded_faces(PARITY_FACES)
    size = model.config.in_size
    faces = to_tensor([make_pair(source.read(i), "color", size)[0] for i in range(PARITY_FACES)])
    script = torch.jit.load(str(folder / "deploy.pt"))
    parity: dict[str, Any] = {}
    for batch in (1, 2):
        image = faces[-batch:]
        with torch.inference_mode():
            expected = model(torch.from_numpy(image)).numpy()
            outputs = {"deploy.pt": script(torch.from_numpy(image)).numpy()}
        for path in sorted(folder.glob("*.onnx")):
            if batch == 1 or path.name != "training.onnx":  # that one is fixed at batch 1
                outputs[path.name] = run_onnx(path, image)
        for name, output in outputs.items():
            what = f"{name}, batch {batch}, against the training form"
            parity.setdefault(name, {})[str(batch)] = assert_parity(expected, output, what).to_dict()
    return parity
