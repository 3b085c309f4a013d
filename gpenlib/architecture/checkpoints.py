"""Weights: by name, from checkpoint and ONNX files, written, and carried over into larger networks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpenlib.architecture.model import Discriminator, Generator, Gpen, GpenConfig, noise_weights
from gpenlib.files import choice_error, fingerprint, nearest, resolve_path, sha256, write_atomically

FOLDER = Path(__file__).parents[1] / "weights"
TINY = GpenConfig(64, 64, 1, 0.0625)
RANDOM_NAMES = ("tiny-random", "random-256", "random-512", "random-1024", "random-2048")
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
GENERATOR_KEYS = ("g_ema", "g")  # where training checkpoints keep it, best first; the discriminator is "d"

Network = TypeVar("Network", Gpen, Generator, Discriminator)


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file and the offending entries."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint that is not there."""


class Weights(NamedTuple):
    """A network, the name or path it was asked for, and what identifies its content."""

    model: Gpen
    name: str
    digest: str


def load_checkpoint(name_or_path: str | Path, key: str | None = None) -> Gpen:
    """Load a GPEN by name or from a file as float32 in eval mode; tensor shapes give its configuration.

    Parameters
    ----------
    name_or_path : str or Path
        A shipped name (``demo-color``); ``tiny-random`` (64 px, for tests) or ``random-<size>`` (full width,
        for speed measurements); or a file, relative to the working directory or else to the repository root:
        ``.safetensors``; ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` with a state dict or a training checkpoint
        of this or the original project, read with ``weights_only=True``; ``.onnx`` in the original form.
    key : str, optional
        Entry of a training checkpoint that holds the weights. Default: ``g_ema``, else ``g``.

    Raises
    ------
    CheckpointError
        If there are no such weights (a FileNotFoundError as well), or the file is no sound GPEN; it says why.
    """
    path = Path(name_or_path)
    return load_weights(path.absolute() if path.suffix and path.is_file() else name_or_path, key).model


def load_weights(name: str | Path, key: str | None = None) -> Weights:
    """Load weights as :func:`load_checkpoint` does, with a digest; paths are relative to the repository."""
    text = str(name)
    if text in RANDOM_NAMES:
        config = TINY if text == "tiny-random" else GpenConfig(*[int(text.rpartition("-")[2])] * 2)
        return Weights(random_network(config), text, fingerprint({"random": config.to_dict(), "seed": 0}))
    path = weights_file(text)
    if not path.is_file():
        names = _restoring_names()
        is_path = re.search(r"[/\\.]", text)
        what = f"weights file {path} does not exist; give one of {', '.join(names)}"
        what = what if is_path else choice_error("weights", text, names)
        raise MissingCheckpointError(f"{what}, or the path of a checkpoint")
    if path.suffix == ".onnx":
        # The one upward import of the package: export stands above, but one door opens every file
        from gpenlib.export import RecoverError, gpen_from_onnx

        digest = onnx_digest(path)  # first: it refuses external data outside the folder
        try:
            return Weights(gpen_from_onnx(path), text, digest)
        except RecoverError as error:
            raise CheckpointError(str(error)) from error
    if is_prior(path):
        uses = f"draws faces (data_dir=prior:{text}) and starts training (stage embed, init={text})"
        usable = ", ".join(_restoring_names())
        raise CheckpointError(f"{text} is a GAN prior: it {uses}, but restores none; give one of {usable}")
    state = read_state_dict(path, key)
    model = _build(Gpen, deduce_config(state, path), state, path)
    model.task = read_notes(path).get("task")
    return Weights(model, text, sha256(path))


def _restoring_names() -> list[str]:
    return [*(name for name, file in shipped_weights().items() if not is_prior(file)), *RANDOM_NAMES]


def shipped_weights() -> dict[str, Path]:
    """Return the weights that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors")) if "." not in path.stem}


def weights_file(name: str | Path) -> Path:
    """Return the file of a shipped name, or else the path, relative to the repository root."""
    return shipped_weights().get(str(name)) or resolve_path(name)


def discriminator_file(weights: Path) -> Path:
    """Return where the discriminator that was trained with ``weights`` lies, if it was kept."""
    return weights.with_suffix(".discriminator.safetensors")


def is_prior(path: Path) -> bool:
    """Return whether a weights file notes that it was trained as a GAN prior, without encoder."""
    return read_notes(path).get("stage") == "prior"


def trained_task(name: str | Path) -> str:
    """Return the task that weights were trained for: as their file notes it, else ``color``."""
    path = weights_file(name)
    return (read_notes(path) if path.is_file() else {}).get("task", "color")


def random_network(config: GpenConfig, seed: int = 0) -> Gpen:
    """Return a network with seeded random weights whose encoder features take part, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gpen(config)
    open_skips(model, 0.3)
    return model.eval()


def onnx_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file; with external data, one over it and every file that it names."""
    from gpenlib.export.recover import read_onnx, refusal  # upward, as in load_weights

    try:
        _, files = read_onnx(path)
    except Exception as error:  # onnx and the file system share no type of error
        raise CheckpointError(refusal(path, error)) from error
    digest = sha256(path)
    return fingerprint([digest, {name: sha256(file) for name, file in files.items()}]) if files else digest


def load_discriminator(path: str | Path, key: str | None = None) -> Discriminator:
    """Load a discriminator: a state dict, or entry ``key`` (default ``d``) of a training checkpoint."""
    state = read_state_dict(path, key, ("d",))
    top, bottom = "convs.0.0.weight", "final_conv.0.weight"
    _require({top: 4, bottom: 4}, state, path, "discriminator")
    size = 4 * 2 ** sum(name.startswith("convs.") and name.endswith(".skip.1.weight") for name in state)
    config = _config_from_widths(size, size, len(state[top]), len(state[bottom]), path)
    return _build(Discriminator, config, state, path)


def load_generator(path: str | Path, key: str | None = None) -> Generator:
    """Load a GAN prior: a generator's own weights, or those inside a whole GPEN (``key`` as there)."""
    state = read_state_dict(path, key)
    if "input.input" not in state:
        return _build(Gpen, deduce_config(state, path), state, path).generator
    size, top, bottom = _decoder_widths(state, "", path)
    return _build(Generator, _config_from_widths(size, size, top, bottom, path), state, path)


def _build(kind: type[Network], config: GpenConfig, state: Mapping[str, Tensor], path: str | Path) -> Network:
    """Return the network that a state dict describes, in eval mode."""
    model = kind(config)
    load_strict(model, state, path)
    return model.eval()


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    notes: dict[str, str] | None = None,
) -> Path:
    """Write a state dict as safetensors, ``notes`` in its header; FIR kernels stay float32, so exact."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: checkpoints are written as .safetensors")
    state = {
        name: tensor.detach().cpu().to(torch.float32 if name.endswith(".kernel") else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with write_atomically(path) as temporary:
        save_file(state, temporary, metadata=notes or {})
    return path


def read_notes(path: str | Path) -> dict[str, str]:
    """Return the notes in a safetensors header, such as the ``task``; files of other kinds hold none."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    """Return the error for what a reader raised; neither torch nor safetensors has a common type for it."""
    refused = re.search(r"GLOBAL (\S+)", str(error))  # torch's advice here is to run the pickle's code
    reason = f"it holds {refused[1]}, which is not loaded" if refused else str(error) or type(error).__name__
    return CheckpointError(f"{path}: damaged, truncated or not a plain weights file ({reason})")


def read_state_dict(
    path: str | Path, key: str | None = None, defaults: Sequence[str] = GENERATOR_KEYS
) -> dict[str, Tensor]:
    """Read the tensors of a file as float32; those of a training checkpoint stand under one of the keys."""
    path = Path(path)
    if not path.is_file():
        raise MissingCheckpointError(f"{path}: no such checkpoint")
    pickled = path.suffix in TORCH_SUFFIXES
    if not pickled and path.suffix != ".safetensors":
        allowed = ", ".join((".safetensors", ".onnx", *TORCH_SUFFIXES))
        raise CheckpointError(f"{path}: unknown checkpoint suffix; allowed: {allowed}")
    try:
        content: Any = torch.load(path, "cpu", weights_only=True) if pickled else load_file(path)
    except Exception as error:
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    where = str(path)
    if key is not None or not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = defaults if key is None else (key,)
        key = next((name for name in keys if isinstance(content.get(name), Mapping)), None)
        if key is None:
            present = f"present: {_some([str(name) for name in content]) or 'no entries'}"
            raise CheckpointError(f"{path}: no state dict under {', '.join(keys)}; pass key=; {present}")
        content, where = content[key], f"{path}[{key!r}]"
    wrong = [str(name) for name, value in content.items() if not _is_weight(name, value)]
    if wrong:
        raise CheckpointError(f"{where}: entries that are not floating-point tensors: {_some(wrong)}")
    state = {name.removeprefix("module."): tensor.float() for name, tensor in content.items()}
    twice = [name for name in state if name in content and f"module.{name}" in content]
    if twice:
        raise CheckpointError(f"{where}: entries with and without the prefix 'module.': {_some(twice)}")
    return state


def _is_weight(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


def deduce_config(state: Mapping[str, Tensor], path: str | Path = "checkpoint") -> GpenConfig:
    """Deduce the configuration of a generator from its tensor shapes."""
    _require({"ecd0.0.0.weight": 4}, state, path, "generator")
    stages = sum(name.startswith("ecd") and name.endswith(".weight") for name in state)
    return _config_from_widths(2 ** (stages + 1), *_decoder_widths(state, "generator.", path), path)


def _decoder_widths(state: Mapping[str, Tensor], prefix: str, path: str | Path) -> tuple[int, int, int]:
    """Return the size of a decoder's image in pixels, and its channels at that size and at 4 px."""
    levels = sum(name.startswith(f"{prefix}to_rgbs.") and name.endswith("conv.weight") for name in state)
    top, bottom = f"{prefix}to_rgbs.{max(levels, 1) - 1}.conv.weight", f"{prefix}input.input"
    _require({bottom: 4, top: 5}, state, path, "generator")
    return 4 * 2**levels, state[top].shape[2] // 2, state[bottom].shape[1]  # ToRGB sees features and noise


def _require(ranks: Mapping[str, int], state: Mapping[str, Tensor], path: str | Path, kind: str) -> None:
    """Refuse a state dict without the entries of these ranks, which fix the configuration."""
    for name, rank in ranks.items():
        if name not in state or state[name].ndim != rank:
            hint = f"; nearest present: {', '.join(close)}" if (close := nearest(name, list(state))) else ""
            raise CheckpointError(f"{path}: not a GPEN {kind}, missing {name} of rank {rank}{hint}")


def _config_from_widths(in_size: int, out_size: int, top: int, bottom: int, path: str | Path) -> GpenConfig:
    """Solve ``bottom = 512 narrow`` and ``top = 16384 / out_size * channel_multiplier * narrow``."""
    narrow = bottom / 512
    try:
        config = GpenConfig(in_size, out_size, max(round(top * out_size / 16384 / narrow), 1), narrow)
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: shapes fit no GPEN configuration ({error})") from error
    if config.channels(out_size) != top:
        raise CheckpointError(f"{path}: {top} channels at {out_size} px and {bottom} at 4 px fit no GPEN")
    return config


def load_strict(model: nn.Module, state: Mapping[str, Tensor], path: str | Path = "checkpoint") -> None:
    """Load ``state`` into ``model``; every key, shape and value must be right, else the error names them."""
    expected = model.state_dict()
    shapes = {n: (tuple(state[n].shape), tuple(expected[n].shape)) for n in expected if n in state}
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "wrong shape": [f"{name} {a} instead of {b}" for name, (a, b) in shapes.items() if a != b],
        "not finite": [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())],
    }
    listed = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if listed:
        raise CheckpointError(f"{path}: {listed}")
    model.load_state_dict(dict(state))


def _some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# Encoder and discriminator count their stages from the largest size down, the decoder from 4 px up.
TOP_DOWN = re.compile(r"^(ecd|convs\.)(\d+)(\..*)$")
COLOURS = re.compile(r"^(generator\.)?to_rgbs\.\d+\.(conv\.weight|bias)$")


def find_discriminator(weights: Path) -> Discriminator | None:
    """Return the discriminator kept with weights, beside safetensors or in a training checkpoint, if any."""
    if weights.suffix == ".safetensors":
        beside = discriminator_file(weights)
        return load_discriminator(beside) if beside.is_file() else None
    try:
        return load_discriminator(weights, key="d")
    except CheckpointError:
        return None  # a generator's state dict alone, or a name such as tiny-random


def seed_generator(prior: Generator, trained: Generator) -> None:
    """Copy the levels that ``trained`` has; new levels begin by adding nothing to the picture."""
    _seed(prior, trained, shift=0)


def seed_discriminator(model: Discriminator, trained: Discriminator) -> None:
    """Copy the trained blocks to the same sizes in pixels; blocks above them stay new."""
    _seed(model, trained, shift=model.config.log_out - trained.config.log_out)


def seed_gpen(model: Gpen, trained: Gpen) -> None:
    """Copy decoder levels and encoder stages of the same sizes in pixels."""
    _seed(model, trained, shift=model.config.log_in - trained.config.log_in)


def open_skips(model: Gpen, weight: float = 1.0) -> None:
    """Let the encoder's features, the main path, into a random decoder, whose noise begins at weight 0."""
    for parameter in noise_weights(model):
        nn.init.constant_(parameter, weight)


def _seed(model: Network, trained: Network, shift: int) -> None:
    """Copy every trained entry; top-down stages move by ``shift`` sizes, the one from RGB stays behind."""
    size = "in_size" if shift < 0 else "out_size"
    old, new = getattr(trained.config, size), getattr(model.config, size)
    if old > new:
        raise ValueError(f"trained weights of {old} px cannot seed a network of {new} px")
    state = {}
    for name, tensor in trained.state_dict().items():
        if not (stage := TOP_DOWN.match(name) if shift else None):
            state[name] = tensor
        elif int(stage[2]) > 0:
            state[f"{stage[1]}{int(stage[2]) + shift}{stage[3]}"] = tensor
    target = model.state_dict()
    wrong = [name for name in state if name not in target or target[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"trained weights of another width or kind: {_some(wrong)} do not fit")
    model.load_state_dict(state, strict=False)
    for name, parameter in model.named_parameters():
        if name not in state and COLOURS.match(name):
            nn.init.zeros_(parameter)
