"""TorchScript export of the deploy form."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from gpenlib.architecture import Gpen
from gpenlib.export.deploy import DeployGpen, deploy_form
from gpenlib.export.onnx_export import example_input
from gpenlib.export.parity import assert_parity
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
    deploy = model if isinstance(model, DeployGpen) else deploy_form(model)
    path = Path(path)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # torch marks TorchScript as superseded by torch.export
        traced = torch.jit.freeze(torch.jit.trace(deploy, example_input(deploy.config)))
        with write_atomically(path) as temporary:
            traced.save(str(temporary))
            reloaded = torch.jit.load(str(temporary))
            for batch in (1, 2):
                image = example_input(deploy.config, batch)
                what = f"{path.name}, batch {batch}"
                assert_parity(deploy(image).numpy(), reloaded(image).numpy(), what)
    return path
