"""ONNX and TorchScript files of a network, each checked against torch before it is kept.

ONNX files have one input ``input``, one output ``output``, plain ONNX operators and any batch size. torch's
exporters set modes of what they trace, so that each gets a copy and the caller's network stays as it is.
"""

from __future__ import annotations

import ast
import copy
import itertools
import logging
import math
import os
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.export.deploy import DeployGpen, deploy_copy
from gpenlib.files import write_atomically

OPSET = 18
INPUT_NAME, OUTPUT_NAME = "input", "output"
CONVOLUTIONS = ("Conv", "ConvTranspose")
NAMED_OPERATORS = (*CONVOLUTIONS, "Gemm", "MatMul")
TOLERANCE = 1e-4  # of the reference's standard deviation, as the reference figures ask
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
    difference = parity(reference, candidate)
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


def run_onnx(path: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a file of one input on the CPU in ONNX Runtime, float32 [N, 3, S, S]; return its first output."""
    import onnxruntime  # heavy; only needed here

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


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
        _trace(deploy, temporary, exporter, dynamic_batch)
        graph = onnx.load(temporary)
        name_nodes(graph)
        for node in graph.graph.node:  # stack traces of this machine do not belong in the file
            del node.metadata_props[:]
            node.doc_string = ""
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, temporary)
        for batch in (1, 2) if dynamic_batch else (1,):
            image = example_input(deploy.config, batch)
            with torch.inference_mode():
                expected = deploy(image).numpy()
            assert_parity(expected, run_onnx(temporary, image.numpy()), f"{path.name}, batch {batch}")
    return path


def export_training_form(model: Gpen, path: str | Path) -> Path:
    """Write the original formulation (weights modulated per image) as ONNX, for comparison.

    The batch size is fixed at 1: its grouped convolution has one group per image, which ONNX cannot
    express for an unknown batch: with one, both of torch's exporters fail (notebook 01 shows it).
    """
    with write_atomically(Path(path)) as temporary:
        _trace(_training_form(model), temporary, "dynamo", dynamic_batch=False)
    return Path(path)


def _training_form(model: Gpen) -> Gpen:
    return copy.deepcopy(model).cpu().float().eval().set_modulation("weights")


def _trace(network: Gpen | DeployGpen, path: Path, exporter: Exporter, dynamic_batch: bool) -> None:
    """Run one of torch's exporters, silencing its remarks on deprecation and packages that are not needed."""
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
                dynamo=exporter == "dynamo", external_data=False, verbose=False, **free,
            )  # fmt: skip
    finally:
        logger.setLevel(level)


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
    constants = constant_names(model)
    taken: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in NAMED_OPERATORS:
            continue
        if node.op_type in CONVOLUTIONS and node.input[1] not in constants:
            raise ParityError(f"node {node.name} ({node.op_type}) has no constant weight")
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
            for batch in (1, 2):
                image = example_input(config, batch).to(device)
                expected, output = module(image).cpu().numpy(), reloaded(image).cpu().numpy()
                assert_parity(expected, output, f"{path.name}, batch {batch}", tolerance)
    return path
