"""TorchScript export of the deploy form."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.export.deploy import DeployGpen, deploy_form
from gpenlib.export.onnx_export import example_input
from gpenlib.export.parity import TOLERANCE, assert_parity
from gpenlib.run import write_atomically


def export_torchscript(model: Gpen | DeployGpen, path: str | Path) -> Path:
    """Write the deploy form of ``model`` as a frozen TorchScript file and check it at batch 1 and 2.

    Parameters
    ----------
    model : Gpen or DeployGpen
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
    return save_torchscript(model if isinstance(model, DeployGpen) else deploy_form(model), Path(path))


def save_torchscript(module: nn.Module, path: Path, tolerance: float = TOLERANCE) -> Path:
    """Trace ``module``, write it frozen and check it at batch 1 and 2, on the module's device.

    Parameters
    ----------
    module : Module
        A deploy form in any precision, with its GpenConfig as ``config``.
    path : Path
    tolerance : float
        As in :func:`assert_parity`.

    Raises
    ------
    ParityError
        If the reloaded file and the module disagree.
    """
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
                what = f"{path.name}, batch {batch}"
                found = reloaded(image).cpu().numpy()
                assert_parity(module(image).cpu().numpy(), found, what, tolerance)
    return path
