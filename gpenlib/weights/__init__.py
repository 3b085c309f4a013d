"""Shipped demo weights (model cards beside them) and named random networks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gpenlib.architecture import CheckpointError, Gpen, GpenConfig, load_checkpoint, read_notes
from gpenlib.architecture.generator import noise_weights
from gpenlib.run import choice_error, fingerprint, resolve_path, sha256

FOLDER = Path(__file__).parent
TINY = GpenConfig(64, 64, 1, 0.0625)
RANDOM_NAMES = ("tiny-random", "random-256", "random-512", "random-1024", "random-2048")


@dataclass(frozen=True)
class Weights:
    """A network and where it came from."""

    model: Gpen
    name: str
    digest: str


def shipped_weights() -> dict[str, Path]:
    """Return the weights that come with the package, by name."""
    files = [path for path in sorted(FOLDER.glob("*.safetensors")) if "." not in path.stem]
    return {path.stem: path for path in files}


def discriminator_file(weights: Path) -> Path:
    """Return where the discriminator that was trained with ``weights`` lies, if it was kept."""
    return weights.with_suffix(".discriminator.safetensors")


def weights_file(name: str | Path) -> Path:
    """Return the file of a shipped name, or else the path, relative to the repository root."""
    return shipped_weights().get(str(name)) or resolve_path(name)


def is_prior(path: Path) -> bool:
    """Return whether a weights file notes that it was trained as a GAN prior, without encoder."""
    return read_notes(path).get("stage") == "prior"


def _restoring_names() -> list[str]:
    """Return the names that :func:`load_weights` takes."""
    return [*(name for name, file in shipped_weights().items() if not is_prior(file)), *RANDOM_NAMES]


def load_weights(name: str | Path, key: str | None = None) -> Weights:
    """Load weights by name or from a checkpoint file.

    Parameters
    ----------
    name : str or Path
        A shipped name (``demo-color``); ``tiny-random`` (64 px, for tests) or ``random-<size>`` (the
        full-width network with random weights, for speed measurements); or the path of a checkpoint, or of an
        ONNX file in the original formulation, relative to the repository root.
    key : str, optional
        As :func:`gpenlib.load_checkpoint`.

    Raises
    ------
    CheckpointError
        If the name is neither known nor a file, or the file cannot be loaded or is a GAN prior.
    RecoverError
        If an ONNX file is no GPEN in the original formulation.
    """
    from gpenlib.export import gpen_from_onnx  # heavy; only needed for ONNX files

    text = str(name)
    if text in RANDOM_NAMES:
        config = TINY if text == "tiny-random" else GpenConfig(*[int(text.rpartition("-")[2])] * 2)
        return Weights(random_network(config), text, fingerprint({"random": config.to_dict(), "seed": 0}))
    path = weights_file(text)
    if not path.is_file():
        known = _restoring_names()
        looks_like_a_path = re.search(r"[/\\.]", text)
        what = (
            f"weights file {path} does not exist"
            if looks_like_a_path
            else choice_error("weights", text, known)
        )
        raise CheckpointError(f"{what}; give one of {', '.join(known)}, or the path of a checkpoint")
    if is_prior(path):
        known = _restoring_names()
        raise CheckpointError(
            f"{text} is a GAN prior, a decoder without encoder: it draws faces (data_dir=prior:{text}) and "
            f"starts training (stage embed, init={text}), but restores none; give one of {', '.join(known)}"
        )
    model = gpen_from_onnx(path) if path.suffix == ".onnx" else load_checkpoint(path, key)
    return Weights(model, text, sha256(path))


def trained_task(name: str | Path) -> str:
    """Return the task that weights were trained for: as their file notes it, else ``color``."""
    path = weights_file(name)
    return (read_notes(path) if path.is_file() else {}).get("task", "color")


def random_network(config: GpenConfig, seed: int = 0) -> Gpen:
    """Return a network with seeded random weights whose encoder features take part, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gpen(config)
    for weight in noise_weights(model):
        nn.init.constant_(weight, 0.3)
    return model.eval()
