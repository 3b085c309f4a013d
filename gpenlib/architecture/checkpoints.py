"""Weights: by name, from checkpoint and ONNX files, written, and carried over into larger networks."""

from __future__ import annotations

import mmap
import os
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import gt
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import ZIP_STORED, ZipFile

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpenlib.architecture.model import (
    LEAKY_GAIN,
    LEAKY_SLOPE,
    Discriminator,
    Generator,
    Gpen,
    GpenConfig,
    noise_weights,
)
from gpenlib.files import (
    choice_error,
    describe,
    fingerprint,
    nearest,
    open_regular,
    resolve_path,
    sha256,
    write_atomically,
)

FOLDER = Path(__file__).parents[1] / "weights"
TINY = GpenConfig(64, 64, 1, 0.0625)
RANDOM_NAMES = ("tiny-random", "random-256", "random-512", "random-1024", "random-2048")
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
# Where training checkpoints keep networks: averaged weights before those of the last step
AVERAGED, LAST = ("g_ema", "params_ema", "ema"), ("g", "params", "net_g", "generator", "model", "state_dict")
Keys = Sequence[Sequence[str]]
GENERATOR_KEYS: Keys = (AVERAGED, LAST)
MARKS = {"ecd0.0.0.weight", "input.input", "final_conv.0.weight"}  # entries by which a network is known
WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # by DataParallel, torch.compile
# What strangers' files may hold
MOST_BYTES, MOST_ENTRIES, MOST_WIDTH = 8 << 30, 10_000, 1024  # a GPEN has 512 channels and less
MOST_PICKLED = 64 << 20  # bytes of all in a file of PyTorch's that is no tensor
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save's files began before they were archives
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ADVICE = "where it was made, save its weights alone: torch.save(network.state_dict(), 'weights.pth')"

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
        of this or another project, read with ``weights_only=True``; ``.onnx`` in the original form.
    key : str, optional
        Entry of a training checkpoint that holds the weights, with dots between where it lies deeper.
        Default: ``g_ema``, ``params_ema`` or ``ema``, else ``g``, ``params``, ``net_g``, ``generator``,
        ``model`` or ``state_dict``; where several of one kind hold a GPEN, ``key`` must choose.

    Raises
    ------
    CheckpointError
        If there are no such weights (a FileNotFoundError as well), or the file is no sound GPEN; it says why.
    """
    path = Path(name_or_path)
    here = path.suffix and os.path.lexists(path)
    return load_weights(path.absolute() if here else name_or_path, key).model


def load_weights(name: str | Path, key: str | None = None) -> Weights:
    """Load weights as :func:`load_checkpoint` does, with a digest; paths are relative to the repository."""
    text = str(name)
    if key and (text in RANDOM_NAMES or text.endswith(".onnx")):
        raise CheckpointError(f"key={key:.80} is for training checkpoints, and {text} is none: leave it out")
    if text in RANDOM_NAMES:
        config = TINY if text == "tiny-random" else GpenConfig(*[int(text.rpartition("-")[2])] * 2)
        return Weights(random_network(config), text, fingerprint({"random": config.to_dict(), "seed": 0}))
    path = weights_file(text)
    if not os.path.lexists(path):
        names, text = _restoring_names(), text[:200]
        is_path = re.search(r"[/\\.]", text)
        what = f"weights file {str(path)[:300]} does not exist; give one of {', '.join(names)}"
        what = what if is_path else choice_error("weights", text, names)
        raise MissingCheckpointError(f"{what}, or the path of a checkpoint")
    if path.suffix == ".onnx":
        open_regular(path, "weights file", CheckpointError, MissingCheckpointError).close()  # no pipe
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
    return Weights(model, text, fingerprint([sha256(path), key]) if key else sha256(path))


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
    return (read_notes(path) if os.path.lexists(path) and path.is_file() else {}).get("task", "color")


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
    state = read_state_dict(path, key, [["d"]])
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
    with torch.device("meta"):
        load_strict(kind(config), state, path)  # what does not fit must cost no memory
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
    if path.suffix != ".safetensors" or path.is_dir():
        raise CheckpointError(f"{path}: checkpoints are written as .safetensors, files of that name")
    state = {
        name: tensor.detach().cpu().to(torch.float32 if name.endswith(".kernel") else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    if broken := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"{path} is not written: not finite as {dtype}: {_some(broken)}; train anew")
    with write_atomically(path) as temporary:
        save_file(state, temporary, metadata=notes or {})
    return path


def read_notes(path: str | Path) -> dict[str, str]:
    """Return the notes in a safetensors header, such as the ``task``; files of other kinds hold none."""
    if Path(path).suffix != ".safetensors":
        return {}
    with _opened(Path(path)), safe_open(path, framework="pt") as file:
        return {name: value[:100] for name, value in (file.metadata() or {}).items()}


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    """Refuse a file that is not what its name says; turn what its reader raises into one kind of error."""
    allowed = (".safetensors", *TORCH_SUFFIXES)
    with open_regular(path, "weights file", CheckpointError, MissingCheckpointError) as file:
        start, size = file.read(512), file.seek(0, os.SEEK_END)
    torch_file, fault = start.startswith((b"PK\3\4", LEGACY)), ""
    if path.suffix not in allowed:
        fault = f"unknown checkpoint suffix; allowed: .onnx, {', '.join(allowed)}"
    elif size > MOST_BYTES:
        fault = f"{size / 2**30:.1f} GiB, at most {MOST_BYTES >> 30} are read; {ADVICE}"
    elif not torch_file and start[8:9] != b"{":
        fault = f"it {describe(start, 'weights file', allowed)}"
    elif torch_file == (path.suffix == ".safetensors"):
        fault = f"its content is of another kind: name it {'.pth' if torch_file else '.safetensors'}"
    if fault:
        raise CheckpointError(f"{path}: {fault}")
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # neither torch nor safetensors, nor what they are built on, has a common type
        if refused := re.search(r"GLOBAL (\S{1,80})", str(error)):  # torch's advice here is to run its code
            raise CheckpointError(f"{path}: it holds {refused[1]}, which is not loaded; {ADVICE}") from error
        text = str(error).rpartition("WeightsUnpickler error: ")[2].replace("weights_only", "...")
        reason = f"{type(error).__name__}: {text}".splitlines()[0][:150]
        raise CheckpointError(f"{path}: damaged or cut off ({reason}): fetch it again") from error


def read_entries(path: Path) -> dict[str, Any]:
    """Read a file's tensors, which stay in it until they are used, and plain values; nothing is run."""
    with _opened(path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()[: MOST_ENTRIES + 1]}
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            zipped = content[:2] == b"PK"
            if content.find(b"\nbytearray\n") >= 0:  # which torch makes of any length that is asked for
                raise CheckpointError(f"{path}: it holds a bytearray, which is not loaded; {ADVICE}")
        if zipped:
            with ZipFile(path) as archive:
                parts = {part.filename.partition("/")[2]: part for part in archive.infolist()}
            rest = sum(part.file_size for name, part in parts.items() if not name.startswith("data/"))
            packed = any(part.compress_type != ZIP_STORED for part in parts.values())
            if "data.pkl" not in parts or "constants.pkl" in parts or packed or rest > MOST_PICKLED:
                what = "a TorchScript program" if "constants.pkl" in parts else "a ZIP archive"
                raise CheckpointError(f"{path}: {what}, but no checkpoint as torch.save writes it; {ADVICE}")
        with torch.serialization.safe_globals([Namespace]):  # of argparse: values by name
            entries = _plain(torch.load(path, "cpu", weights_only=True, mmap=zipped))
        if not isinstance(entries, dict):
            what = type(entries).__name__
            raise CheckpointError(f"{path}: of type {what}, not a dictionary of tensors; {ADVICE}")
        return entries


def read_state_dict(
    path: str | Path, key: str | None = None, defaults: Keys = GENERATOR_KEYS
) -> dict[str, Tensor]:
    """Read the tensors of a file; those of a training checkpoint stand under one of the keys."""
    path = Path(path)
    content = read_entries(path)
    key = _find_key(content, key, defaults, path)
    where = f"{path}[{key!r}]" if key else str(path)
    content = _entry(content, key) if key else content
    if wrong := [f"{name} ({kind})" for name, entry in content.items() if (kind := _fault(name, entry))]:
        what = "entries that are not floating-point tensors"
        raise CheckpointError(f"{where}: {what}: {_some(wrong)}; {ADVICE}")
    claimed, size = sum(tensor.nbytes for tensor in content.values()), path.stat().st_size
    if len(content) > MOST_ENTRIES or claimed > size:
        what = f"{len(content)} entries of {claimed} bytes in a file of {size}"
        raise CheckpointError(f"{where}: {what}, which no GPEN has: fetch it again")
    names = {name: WRAPPED.sub("", name) for name in content}
    if twice := [name for name, times in Counter(names.values()).items() if times > 1]:
        raise CheckpointError(
            f"{where}: entries with and without the prefix 'module.': {_some(twice)}; keep one"
        )
    return {names[name]: tensor for name, tensor in content.items()}


def _find_key(content: Mapping[str, Any], key: str | None, defaults: Keys, path: Path) -> str | None:
    """Return under which key the weights lie, None where they are all that there is."""
    flat = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    if flat and not key:
        return None
    defaults = [[key]] if key else defaults
    entries = {name: _entry(content, name) for names in defaults for name in names}
    entries = {name: entry for name, entry in entries.items() if isinstance(entry, dict) and entry}
    for names in defaults:
        held = [n for n in names if any(isinstance(v, Tensor) for v in entries.get(n, {}).values())]
        fitting = [n for n in held if any(WRAPPED.sub("", str(e)) in MARKS for e in entries[n])]
        if len(fitting) > 1:
            raise CheckpointError(f"{path}: weights under {', '.join(fitting)}; choose one with key=")
        if held:
            return (fitting or held)[0]
    if entries:
        return next(iter(entries))
    keys = ", ".join(name[:80] for names in defaults for name in names)
    present = "the weights themselves: pass no key" if flat else _some(list(content)) or "no entries"
    raise CheckpointError(f"{path}: no state dict under {keys}; pass key=; present: {present}")


def _entry(content: Any, key: str) -> Any:
    """Return what lies under a key, or under its parts between dots one after the other; or None."""
    first, _, rest = key.partition(".")
    if not isinstance(content, dict) or key in content or not rest:
        return _plain(content.get(key)) if isinstance(content, dict) else None
    return _entry(_plain(content.get(first)), rest)


def _plain(value: Any) -> Any:
    """Return a dictionary without the attributes that a file may give an OrderedDict in place of methods."""
    return dict(dict.items(value)) if isinstance(value, dict) else value


def _fault(name: object, value: object) -> str:
    """Return what an entry is that is no weight."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return type(value if isinstance(name, str) else name).__name__
    plain = value.dtype in DTYPES and value.layout == torch.strided and not (value.is_meta or value.is_nested)
    return "" if plain else f"{value.dtype}, {value.layout}, {value.device}"


def deduce_config(state: Mapping[str, Tensor], path: str | Path = "checkpoint") -> GpenConfig:
    """Deduce the configuration of a generator from its tensor shapes."""
    _require({"ecd0.0.0.weight": 4}, state, path, "generator")
    stages = min(sum(name.startswith("ecd") and name.endswith(".weight") for name in state), 20)
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
            hint = f"; nearest present: {_some(close)}" if (close := nearest(name, list(state))) else ""
            raise CheckpointError(
                f"{path}: not a GPEN {kind}, missing {name} of rank {rank}{hint}; give the state dict of one"
            )


def _config_from_widths(in_size: int, out_size: int, top: int, bottom: int, path: str | Path) -> GpenConfig:
    """Solve ``bottom = 512 narrow`` and ``top = 16384 / out_size * channel_multiplier * narrow``."""
    if not 0 < max(top, bottom) <= MOST_WIDTH:
        raise CheckpointError(f"{path}: {top} and {bottom} channels, a GPEN has at most {MOST_WIDTH}")
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
    }
    listed = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if listed:
        raise CheckpointError(f"{path}: {listed}; give the whole state dict of a GPEN")
    if any(tensor.is_meta for tensor in expected.values()):
        return
    model.load_state_dict(dict(state))  # as float32, which a larger value of float64 leaves
    if broken := [name for name, tensor in expected.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"{path}: not finite: {_some(broken)}; fetch it again")


def _some(names: Sequence[object], limit: int = 5) -> str:
    """Return the first names, in plain characters and not all of long ones, and how many more there are."""
    shown = ", ".join(ascii(str(name))[1:-1][:80] for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


# Encoder and discriminator count their stages from the largest size down, the decoder from 4 px up.
TOP_DOWN = re.compile(r"^(ecd|convs\.)(\d+)(\..*)$")
COLOURS = re.compile(r"^(generator\.)?to_rgbs\.\d+\.(conv\.weight|bias)$")


def find_discriminator(weights: Path) -> Discriminator | None:
    """Return the discriminator kept with weights, beside safetensors or in a training checkpoint, if any."""
    if weights.suffix == ".safetensors":
        beside = discriminator_file(weights)
        return load_discriminator(beside) if beside.is_file() else None
    kept = weights.suffix in TORCH_SUFFIXES and os.path.lexists(weights) and "d" in read_entries(weights)
    return (
        load_discriminator(weights, "d") if kept else None
    )  # else a generator's state dict alone, or a name


def seed_generator(prior: Generator, trained: Generator) -> None:
    """Copy the levels that ``trained`` has; new levels begin by adding nothing to the picture."""
    _seed(prior, trained, shift=0)


def seed_discriminator(model: Discriminator, trained: Discriminator) -> None:
    """Copy the trained blocks to the same sizes in pixels; blocks above them stay new."""
    _seed(model, trained, shift=model.config.log_out - trained.config.log_out)


def seed_gpen(model: Gpen, trained: Gpen) -> None:
    """Copy decoder levels and encoder stages of the same sizes in pixels; narrower ones seed some channels.

    A larger network begins by answering what the trained one answers to the reduced picture, enlarged.
    """
    shift = model.config.log_in - trained.config.log_in
    _seed(model, trained, shift)
    if shift > 0:
        with torch.no_grad():
            _reduce_and_pass(model.encoder[: shift + 1], trained.encoder[0])


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
    seeds = {name: _widened(name, tensor, target.get(name)) for name, tensor in state.items()}
    if wrong := [name for name, tensor in seeds.items() if tensor is None]:
        raise ValueError(f"trained weights of another width or kind: {_some(wrong)} do not fit")
    model.load_state_dict(seeds, strict=False)
    for name, parameter in model.named_parameters():
        if name not in state and COLOURS.match(name):
            nn.init.zeros_(parameter)


def _reduce_and_pass(stages: Sequence[Any], former: Any) -> None:
    """Let new encoder stages reduce the picture by [1, 3, 3, 1] each, the last answer as the former first.

    Two channels with opposite weights let a colour through a leaky ReLU: sqrt(2) (f(x) - f(-x)) = 1.7 x.
    """
    mirrored = torch.cat([torch.eye(3), -torch.eye(3)])  # [6, 3]
    through = mirrored.T / (LEAKY_GAIN * (1 + LEAKY_SLOPE))  # [3, 6]
    old, bias = former[0][0], former[0][1].bias
    for number, stage in enumerate(stages):
        *_, conv, activation = stage[0]
        last = number == len(stages) - 1
        weights = old.weight[:, :, 0, 0] * old.scale if last else mirrored  # as they multiply: [Cout, 3]
        weights = weights @ through if number else weights
        rows, columns = weights.shape
        middle = conv.weight.shape[-1] // 2
        conv.weight[:rows] = 0
        conv.weight[:, len(mirrored) :] = 0
        conv.weight[:rows, :columns, middle, middle] = weights / conv.scale
        activation.bias[:rows] = bias if last else 0


# How many parts each axis of channels has: into the decoder's layers come features, then the encoder's.
WIDER = {
    r"ecd\d+\.0\.\d\.(weight|bias)": (1, 1),
    r"generator\.(convs|to_rgbs)\.\d+\.conv\.weight": (1, 1, 2),
    r"generator\.(convs|to_rgbs)\.\d+\.conv\.modulation\.(weight|bias)": (2,),
    r"generator\.convs\.\d+\.activate\.bias": (2,),
}


def _widened(name: str, trained: Tensor, new: Tensor | None) -> Tensor | None:
    """Return a trained entry among the channels of a new one, to which no other listens; None if unfit."""
    if new is not None and trained.shape == new.shape:
        return trained
    known = next((parts for pattern, parts in WIDER.items() if re.fullmatch(pattern, name)), None)
    if new is None or known is None or any(map(gt, trained.shape, new.shape)):
        return None
    sides = zip(trained.shape, new.shape, (*known, 1, 1)[: trained.ndim], strict=True)
    places = [
        torch.cat([torch.arange(old // n) + part * (now // n) for part in range(n)]) for old, now, n in sides
    ]
    wide, inputs = new.clone(), trained.ndim - 3  # the axis in [Cout, Cin, k, k] and [1, Cout, Cin, k, k]
    if inputs > 0:
        silent = torch.ones(new.shape[inputs], dtype=torch.bool)
        silent[places[inputs]] = False
        wide.transpose(0, inputs)[silent] = 0
        trained = trained * (new.shape[inputs] / trained.shape[inputs]) ** 0.5  # equalised: divided by it
    wide[torch.meshgrid(*places, indexing="ij")] = trained
    return wide
