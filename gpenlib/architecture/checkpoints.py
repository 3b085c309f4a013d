"""Read and write GPEN checkpoints; deduce the configuration from the shapes."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpenlib.architecture.model import (
    MAX_SIZE,
    MIN_SIZE,
    Discriminator,
    Generator,
    Gpen,
    GpenConfig,
    noise_weights,
)
from gpenlib.files import choice_error, fingerprint, nearest, resolve_path, sha256, write_atomically

# ----------------------------------------------------------------------
# Read and write GPEN checkpoints; deduce the configuration from the shapes.

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
WEIGHT_KEYS = ("g_ema", "g")  # where the original project keeps the generator, best first


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file and the offending entries."""


def load_checkpoint(path: str | Path, key: str | None = None) -> Gpen:
    """Load a GPEN generator and deduce its configuration from the tensor shapes.

    Parameters
    ----------
    path : str or Path
        ``.safetensors``, or a torch file (``.pth``, ``.pt``, ``.ckpt``, ``.bin``) with a plain state dict or
        a training checkpoint. Torch files are read with ``weights_only=True``.
    key : str, optional
        Entry of a training checkpoint that holds the weights. Default: the plain state dict, else
        ``g_ema``, else ``g``.

    Returns
    -------
    Gpen
        float32, in eval mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is damaged or of an unknown kind, the key is absent, entries are missing, unexpected or
        of the wrong shape, or a tensor is not finite.
    """
    path = Path(path)
    return _build_gpen(read_state_dict(path, key), path)


def _build_gpen(state: Mapping[str, Tensor], path: Path) -> Gpen:
    """Return the network that a state dict describes, in eval mode."""
    model = Gpen(deduce_config(state, path))
    load_strict(model, state, path)
    return model.eval()


def load_discriminator(path: str | Path, key: str | None = None) -> Discriminator:
    """Load a discriminator; ``key`` is ``"d"`` in the original's training checkpoints.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As :func:`load_checkpoint`.
    """
    path = Path(path)
    state = read_state_dict(path, key)
    blocks = [name for name in state if name.startswith("convs.") and name.endswith(".skip.1.weight")]
    size = 4 * 2 ** len(blocks)
    if "final_conv.0.weight" not in state or "convs.0.0.weight" not in state:
        raise CheckpointError(
            f"{path}: not a GPEN discriminator (no 'convs.0.0.weight' or 'final_conv.0.weight')"
        )
    top, bottom = state["convs.0.0.weight"].shape[0], state["final_conv.0.weight"].shape[0]
    model = Discriminator(_config_from_widths(size, size, top, bottom, path))
    load_strict(model, state, path)
    return model.eval()


def load_generator(path: str | Path, key: str | None = None) -> Generator:
    """Load a GAN prior: a generator's own weights, or those inside a whole GPEN.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As :func:`load_checkpoint`.
    """
    path = Path(path)
    state = read_state_dict(path, key)
    if "input.input" not in state:
        return _build_gpen(state, path).generator
    size, top, bottom = _decoder_widths(state, "", path)
    prior = Generator(_config_from_widths(size, size, top, bottom, path))
    load_strict(prior, state, path)
    return prior.eval()


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write the state dict of ``model`` as safetensors, atomically.

    FIR kernels are part of the architecture and stay float32, so that a half-precision file loads to the
    exact kernels. ``notes`` go into the file's header, where :func:`read_notes` finds them.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: checkpoints are written as .safetensors")
    state = {
        name: tensor.detach().cpu().to(torch.float32 if name.endswith(".kernel") else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with write_atomically(path) as temporary:
        save_file(state, temporary, metadata=dict(notes or {}))
    return path


def read_notes(path: str | Path) -> dict[str, str]:
    """Return the notes in a safetensors header, such as the ``task`` its weights were trained for.

    Files of other kinds hold none.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error})") from error


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file as float32 without building a model.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As :func:`load_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        elif path.suffix in TORCH_SUFFIXES:
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise CheckpointError(
                f"{path}: unknown checkpoint suffix; allowed: .safetensors, {', '.join(TORCH_SUFFIXES)}"
            )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, truncated or not a plain weights file ({error})") from error
    state = _select(content, key, path)
    return {name.removeprefix("module."): tensor.float() for name, tensor in state.items()}


def _select(content: object, key: str | None, path: Path) -> dict[str, Tensor]:
    """Pick the state dict out of a checkpoint's content."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    if key is None:
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        key = next((name for name in WEIGHT_KEYS if isinstance(content.get(name), Mapping)), None)
        if key is None:
            raise CheckpointError(
                f"{path}: no state dict under {', '.join(WEIGHT_KEYS)}; "
                f"pass key=, one of: {', '.join(map(str, content)) or '(empty file)'}"
            )
    inner = content.get(key)
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"{path}: no state dict under key {key!r}; present: {', '.join(map(str, content))}"
        )
    wrong = [str(name) for name, value in inner.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{path}[{key!r}]: entries that are not tensors: {_some(wrong)}")
    return dict(inner)


def deduce_config(state: Mapping[str, Tensor], path: str | Path = "checkpoint") -> GpenConfig:
    """Deduce the configuration of a generator from its tensor shapes.

    Raises
    ------
    CheckpointError
        If the entries that fix the configuration are absent or contradict each other.
    """
    stages = sum(1 for name in state if name.startswith("ecd") and name.endswith(".weight"))
    out_size, top, bottom = _decoder_widths(state, "generator.", path, also=("ecd0.0.0.weight",))
    return _config_from_widths(2 ** (stages + 1), out_size, top, bottom, path)


def _decoder_widths(
    state: Mapping[str, Tensor], prefix: str, path: str | Path, also: Sequence[str] = ()
) -> tuple[int, int, int]:
    """Return the size of a decoder's image in pixels, and its channels at that size and at 4 px.

    Entries that fix them must be there, and those that ``also`` names.
    """
    rgbs = sum(name.startswith(f"{prefix}to_rgbs.") and name.endswith("conv.weight") for name in state)
    top_key, bottom_key = f"{prefix}to_rgbs.{rgbs - 1}.conv.weight", f"{prefix}input.input"
    missing = [name for name in (*also, bottom_key, top_key) if name not in state]
    if missing:
        found = nearest(bottom_key, list(state))
        hint = f"; nearest present: {', '.join(found)}" if found else ""
        raise CheckpointError(f"{path}: not a GPEN generator, missing {', '.join(missing)}{hint}")
    top = state[top_key].shape[2] // 2  # ToRGB sees features and noise
    return 4 * 2**rgbs, top, state[bottom_key].shape[1]


def _config_from_widths(in_size: int, out_size: int, top: int, bottom: int, path: str | Path) -> GpenConfig:
    """Solve ``bottom = 512 narrow`` and ``top = 16384 / out_size * channel_multiplier * narrow``."""
    narrow = bottom / 512
    try:
        if not MIN_SIZE <= out_size <= MAX_SIZE:
            raise ValueError(f"out_size={out_size} is outside {MIN_SIZE}..{MAX_SIZE}")
        multiplier = round(top * out_size / 16384 / narrow)
        config = GpenConfig(in_size, out_size, max(multiplier, 1), narrow)
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: shapes fit no GPEN configuration ({error})") from error
    if config.channels(out_size) != top:
        raise CheckpointError(
            f"{path}: {top} channels at {out_size} px and {bottom} at 4 px "
            "fit no channel_multiplier and narrow"
        )
    return config


def load_strict(model: nn.Module, state: Mapping[str, Tensor], path: str | Path = "checkpoint") -> None:
    """Load ``state`` into ``model``; every key, shape and value must be right.

    Raises
    ------
    CheckpointError
        Naming the first entries that are missing, unexpected, of the wrong shape, or not finite.
    """
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "wrong shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
        "not finite": [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())],
    }
    found = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{path}: {'; '.join(found)}")
    model.load_state_dict(dict(state))


def _some(names: list[str], limit: int = 5) -> str:
    """Return the first names and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


# ----------------------------------------------------------------------
# Shipped demo weights (model cards beside them) and named random networks.

FOLDER = Path(__file__).parents[1] / "weights"
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


# ----------------------------------------------------------------------
# Start a network from trained weights, also from those of a smaller one.

# Encoder and discriminator count their stages from the largest size down, the decoder from 4 px up.
TOP_DOWN = re.compile(r"^(ecd|convs\.)(\d+)(\..*)$")

NEW_COLOURS = re.compile(r"^to_rgbs\.\d+\.(conv\.weight|bias)$")


def find_discriminator(weights: Path) -> Discriminator | None:
    """Return the discriminator that was trained with weights, if it was kept.

    A training checkpoint holds it under ``d``; beside ``NAME.safetensors`` it lies in
    ``NAME.discriminator.safetensors``.

    Raises
    ------
    CheckpointError
        If it is there and cannot be loaded.
    """
    if weights.suffix == ".safetensors":
        beside = discriminator_file(weights)
        return load_discriminator(beside) if beside.is_file() else None
    try:
        return load_discriminator(weights, key="d")
    except (CheckpointError, FileNotFoundError):
        return None  # a generator's state dict alone, or a name such as tiny-random


def seed_generator(prior: Generator, trained: Generator) -> None:
    """Copy the levels that ``trained`` has; new levels begin by adding nothing to the picture.

    Raises
    ------
    ValueError
        If the trained network is larger, or of another width.
    """
    new = _copy(prior, trained.state_dict(), trained.config.out_size, prior.config.out_size)
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if name in new and NEW_COLOURS.match(name):
                parameter.zero_()


def seed_discriminator(model: Discriminator, trained: Discriminator) -> None:
    """Copy the trained blocks to the same sizes in pixels; blocks above them stay new."""
    shift = model.config.log_out - trained.config.log_out
    _copy(
        model,
        shifted(trained.state_dict(), shift),
        trained.config.out_size,
        model.config.out_size,
    )


def seed_gpen(model: Gpen, trained: Gpen) -> None:
    """Copy decoder levels and encoder stages of the same sizes in pixels."""
    seed_generator(model.generator, trained.generator)
    shift = model.config.log_in - trained.config.log_in
    state = {
        name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("generator.")
    }
    _copy(model, shifted(state, shift), trained.config.in_size, model.config.in_size)


def open_skips(model: Gpen) -> None:
    """Let the encoder's features into a decoder that starts from random weights.

    StyleGAN2 starts its noise at weight 0; without a trained prior the features are the main path.
    """
    for weight in noise_weights(model):
        nn.init.ones_(weight)


def shifted(state: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """Rename top-down stages for a network with ``by`` more sizes; the first one (from RGB) stays behind."""
    if by == 0:
        return dict(state)
    renamed = {}
    for name, tensor in state.items():
        match = TOP_DOWN.match(name)
        if match is None:
            renamed[name] = tensor
        elif int(match[2]) > 0:
            renamed[f"{match[1]}{int(match[2]) + by}{match[3]}"] = tensor
    return renamed


def _copy(model: nn.Module, state: Mapping[str, Tensor], size: int, target_size: int) -> set[str]:
    """Copy every entry of ``state`` into ``model``; return the names that it does not have."""
    if size > target_size:
        raise ValueError(f"trained weights of {size} px cannot seed a network of {target_size} px")
    own = model.state_dict()
    wrong = [name for name in state if name not in own or own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"trained weights of another width or kind: {', '.join(wrong[:5])} do not fit")
    model.load_state_dict(dict(state), strict=False)
    return set(own) - set(state)
