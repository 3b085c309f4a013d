"""From the training form to files that run elsewhere: deploy form, ONNX, TorchScript, parity."""

from gpenlib.export.deploy import DeployGpen, deploy_form
from gpenlib.export.graph import GraphSummary, summarise_graph
from gpenlib.export.onnx_export import export_onnx, export_training_form
from gpenlib.export.parity import Parity, ParityError, assert_parity, parity
from gpenlib.export.recover import RecoverError, gpen_from_onnx
from gpenlib.export.torchscript import export_torchscript

__all__ = [
    "DeployGpen",
    "GraphSummary",
    "Parity",
    "ParityError",
    "RecoverError",
    "assert_parity",
    "deploy_form",
    "export_onnx",
    "export_torchscript",
    "export_training_form",
    "gpen_from_onnx",
    "parity",
    "summarise_graph",
]
