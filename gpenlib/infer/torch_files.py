"""What an artefact folder holds for PyTorch's backends."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from gpenlib.architecture import Gpen
from gpenlib.export import DeployGpen, mixed_precision, save_torchscript, write_mixed_precision
from gpenlib.export.parity import TOLERANCE
from gpenlib.infer.runtime import FILES

# How far the trace may lie from its module (see assert_parity): other kernels round elsewhere.
TRACE_TOLERANCE = {"fp32": TOLERANCE, "bf16": 0.1, "fp16": 0.02}


def write_torch_files(
    model: Gpen | DeployGpen, dtype: str, folder: str | Path, backends: Iterable[str]
) -> list[Path]:
    """Write what the PyTorch backends among ``backends`` read; others are passed over.

    Parameters
    ----------
    model : Gpen or DeployGpen
    dtype : {"fp32", "bf16", "fp16"}
    folder : path
        Gets ``model.safetensors`` for ``torch`` (the weights of the deploy form; the network's configuration
        is in the manifest) and ``model.pt`` for ``torchscript`` (the frozen trace, for any batch size).
    backends : iterable of str

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ValueError
        If there is something to write and ``dtype`` is another one.
    ParityError
        If the reloaded trace and the module disagree.
    """
    wanted = {name: Path(folder) / FILES[name] for name in ("torch", "torchscript") if name in set(backends)}
    if not wanted:
        return []
    module = mixed_precision(model, dtype).cpu()
    if "torch" in wanted:
        write_mixed_precision(module, wanted["torch"])
    if "torchscript" in wanted:
        if dtype == "fp16" and torch.cuda.is_available():
            module.cuda()  # processors without fp16 arithmetic take many times as long for the trace's check
        save_torchscript(module, wanted["torchscript"], TRACE_TOLERANCE[dtype])
    return list(wanted.values())
