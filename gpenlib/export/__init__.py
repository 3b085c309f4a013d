"""From the training form to files that run elsewhere: deploy form, ONNX, TorchScript, parity; and back."""

from gpenlib.export.deploy import (
    DeployGpen,
    deploy_form,
    mixed_precision,
    read_mixed_precision,
    write_mixed_precision,
)
from gpenlib.export.graphs import (
    ParityError,
    assert_parity,
    export_onnx,
    export_torchscript,
    export_training_form,
    parity,
    save_torchscript,
    summarise_graph,
)
from gpenlib.export.recover import RecoverError, gpen_from_onnx

__all__ = [
    "DeployGpen",
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
