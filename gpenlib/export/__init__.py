"""From the training form to files that run elsewhere: deploy form, ONNX, TorchScript, parity."""

from gpenlib.export.deploy import DeployGpen, deploy_form
from gpenlib.export.graph import GraphSummary, summarise_graph
from gpenlib.export.mixed_precision import (
    MixedPrecisionGpen,
    mixed_precision,
    read_mixed_precision,
    write_mixed_precision,
)
from gpenlib.export.onnx_export import export_onnx, export_training_form
from gpenlib.export.parity import Parity, ParityError, assert_parity, parity
from gpenlib.export.recover import RecoverError, gpen_from_onnx
from gpenlib.export.torchscript import export_torchscript, save_torchscript

__all__ = [
    "DeployGpen",
    "GraphSummary",
    "MixedPrecisionGpen",
    "Parity",
    "ParityError",
    "RecoverError",
    "assert_parity",
    "deploy_form",
    "export_onnx",
    "export_torchscript",
    "export_training_form",
    "gpen_from_onnx",
    "mixed_precision",
    "parity",
    "read_mixed_precision",
    "save_torchscript",
    "summarise_graph",
    "write_mixed_precision",
]
