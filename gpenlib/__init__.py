"""GPEN workbench: look into, export, compile, run and measure GAN Prior Embedded Networks.

The names below are the public surface; they are loaded on first use, so that ``import gpenlib`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpenlib.architecture import Discriminator, Gpen, GpenConfig, load_checkpoint
    from gpenlib.architecture.checkpoints import load_weights
    from gpenlib.compile import compile_model
    from gpenlib.export import deploy_form, export_onnx, export_torchscript, gpen_from_onnx
    from gpenlib.infer import open_runtime
    from gpenlib.metrics import psnr, ssim
    from gpenlib.photos import enhance_photo
    from gpenlib.run import Run
    from gpenlib.settings import BuildConfig

__version__ = "0.1.0"

_HOME = {
    "BuildConfig": "settings",
    "Discriminator": "architecture",
    "Gpen": "architecture",
    "GpenConfig": "architecture",
    "Run": "run",
    "compile_model": "compile",
    "deploy_form": "export",
    "enhance_photo": "photos",
    "export_onnx": "export",
    "export_torchscript": "export",
    "gpen_from_onnx": "export",
    "load_checkpoint": "architecture",
    "load_weights": "architecture.checkpoints",
    "open_runtime": "infer",
    "psnr": "metrics",
    "ssim": "metrics",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gpenlib' has no attribute {name!r}")
    return getattr(import_module(f"gpenlib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
