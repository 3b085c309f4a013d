"""Identity loss: how far a face-recognition network sees output and truth apart."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpenlib.run import resolve_path

DEFAULT_SIDE = 112  # ArcFace's input


class IdentityError(ValueError):
    """A face-recognition model that cannot be used; the message says why."""


class IdentityLoss:
    """1 - cosine similarity of embeddings, as the original's ``id_loss``.

    Parameters
    ----------
    path : str or Path
        TorchScript (``.pt``, ``.pth``, ``.torchscript``), or ONNX where the package ``onnx2torch`` is
        installed (ONNX Runtime computes no gradients). It takes RGB float32 [N, 3, side, side] in [-1, 1] and
        returns embeddings [N, D]. You bring the file and its licence.
    device : torch.device
    side : int
        Side of the recogniser's input; pictures are resized (bilinear, antialiased).

    Raises
    ------
    IdentityError
        If the file is absent, of another kind, or needs a package that is not installed.
    """

    def __init__(self, path: str | Path, device: torch.device, side: int = DEFAULT_SIDE) -> None:
        self.model = _load(resolve_path(path)).to(device).eval()
        for parameter in self.model.parameters():  # TorchScript modules have no requires_grad_
            parameter.requires_grad_(False)
        self.side = side

    def __call__(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return the mean over the batch of 1 - cosine, for images [N, 3, S, S] in [-1, 1]."""
        with torch.no_grad():
            wanted = self._embed(truth)
        return (1 - F.cosine_similarity(self._embed(output), wanted, dim=1)).mean()

    def _embed(self, images: Tensor) -> Tensor:
        size = (self.side, self.side)
        small = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        embedding: Tensor = self.model(small)
        return embedding.flatten(1)


def _load(path: Path) -> nn.Module:
    if not path.is_file():
        raise IdentityError(f"{path}: no such face-recognition model")
    if path.suffix != ".onnx":
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise IdentityError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]})") from None
    try:
        from onnx2torch import convert  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise IdentityError(
            f"{path}: an ONNX recogniser needs gradients; install onnx2torch, or give a TorchScript file"
        ) from None
    model: nn.Module = convert(str(path))
    return model
