"""Pairs of network input and truth, made when asked for; packs of them on disk for the vendor; their colours.

A pack is a folder as the vendor's ``image2npz.py`` and ``vamp --datalist`` have it. The truths are ours, so
that it can be scored without the pictures it came from::

    datalist.txt        one line per image, in order: input/<name>.npz (a vendor's may be absolute)
    input/<name>.npz    input_0: uint8 CHW RGB, what the network is given
    truth/<name>.npz    truth_0: uint8 CHW RGB, what it should answer
"""

from __future__ import annotations

import hashlib
import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gpenlib import images
from gpenlib.data.faces import DataError, Faces
from gpenlib.data.tasks import TASKS, find_task, make_pair
from gpenlib.files import (
    LONGEST_NAME,
    choice_error,
    cut,
    fingerprint,
    read_text,
    shortened,
    shown,
    too_long,
    write_atomically,
)
from gpenlib.images import FloatArray, Image
from gpenlib.jobs import progress
from gpenlib.metrics import colour_shift, colourfulness, mean_colour, psnr, ssim, to_lab

CACHED = 8  # pairs that are kept: input and truth of a face are asked for one after the other
DATALIST = "datalist.txt"
INPUT_FOLDER, INPUT_KEY = "input", "input_0"
TRUTH_FOLDER, TRUTH_KEY = "truth", "truth_0"
MOST_LIST = 64 << 20  # bytes of a datalist
MOST_UNPACKED = 256 << 20  # of an npz file: five times a network's output of 2048 px


class Pairs:
    """(input, truth) of every face, made when asked for: the task degrades with the seed ``(*seed, index)``.

    Where faces come with inputs of their own nothing is degraded, and ``task`` is empty.
    """

    def __init__(
        self, faces: Faces, task: str, in_size: int, out_size: int | None = None, seed: Sequence[int] = (0,)
    ) -> None:
        self.faces, self.task, self.seed = faces, "" if faces.inputs else task, tuple(seed)
        self.recipe = "inputs from files" if faces.inputs else find_task(task).recipe
        self.in_size, self.out_size = in_size, out_size or in_size
        self.label, self.names = faces.label, distinct_stems(faces.names)
        self._places: Sequence[int] = range(len(faces))  # seeds of degradations
        self._pair = lru_cache(maxsize=CACHED)(self._make)  # safe in threads

    def __len__(self) -> int:
        return len(self.faces)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pair"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pair = lru_cache(maxsize=CACHED)(self._make)

    def take(self, indices: Sequence[int]) -> Pairs:
        """Return the pairs at some positions, which keep their names and what their degradations draw."""
        names = [self.names[index] for index in indices]
        places = [self._places[index] for index in indices]
        return self._copy(faces=self.faces.take(indices), names=names, _places=places)

    def placed(self, names: Sequence[str], places: Sequence[int]) -> Pairs:
        """Return the same pairs under the names, and with the draws, that a larger set has for them."""
        return self._copy(names=[*names], _places=tuple(places))

    def _copy(self, **changes: Any) -> Pairs:
        copy = object.__new__(type(self))
        copy.__setstate__(self.__getstate__() | changes)
        return copy

    def inputs(self, index: int) -> Image:
        """Return what the network is given, uint8 RGB [in_size, in_size, 3]."""
        return self._pair(index)[0]

    def truths(self, index: int) -> Image:
        """Return what it should answer, uint8 RGB [out_size, out_size, 3]."""
        return self._pair(index)[1]

    def digest(self) -> str:
        """Return a hash of pictures, names, task and sizes; of the seed where the task draws anything."""
        seed = self.seed if self.task and find_task(self.task).seeded else None
        how = [self.task, self.recipe, self.in_size, self.out_size, seed]
        return fingerprint([self.faces.combined_digest(), self.names, *how])

    def _make(self, index: int) -> tuple[Image, Image]:
        face = self.faces.read(index)
        if self.faces.inputs:
            pictures = (self.faces.inputs.read(index), self.in_size), (face, self.out_size)
            pair = [images.resize(images.centre_square(picture), size) for picture, size in pictures]
        else:
            seed = (*self.seed, self._places[index])
            pair = [*make_pair(face, self.task, self.in_size, self.out_size, seed)]
        shown, truth = (image.view() for image in pair)  # shared by all who ask, and so not to be written to
        shown.flags.writeable = truth.flags.writeable = False
        return shown, truth


@dataclass(frozen=True)
class Pack:
    """A pack on disk, ours or the vendor's, which has no truths; images are read one at a time."""

    folder: Path
    paths: tuple[Path, ...]
    names: Sequence[str] = ()  # distinct stems: a vendor's datalist may name files of several folders

    label = "pack of network inputs"

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", distinct_stems(path.name for path in self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Iterable[int]) -> Pack:
        """Return the images at some positions, under the names that they have here."""
        chosen = tuple(indices)
        return Pack(self.folder, tuple(self.paths[i] for i in chosen), [self.names[i] for i in chosen])

    def inputs(self, index: int) -> Image:
        """Return the network's input of image ``index`` as uint8 RGB [H, W, 3]."""
        return _read_array(self.paths[index], INPUT_KEY)

    def truths(self, index: int) -> Image:
        """Return the truth of image ``index`` as uint8 RGB [H, W, 3]."""
        return _read_array(self.folder / TRUTH_FOLDER / f"{self.names[index]}.npz", TRUTH_KEY)

    def digest(self) -> str:
        """Return a hash of the inputs' pixels, in order."""
        return fingerprint([hashlib.sha256(self.inputs(i).tobytes()).hexdigest() for i in range(len(self))])


AnyPairs = Pairs | Pack


def write_pack(folder: str | Path, pairs: AnyPairs) -> Path:
    """Write every (input, truth) pair as npz files; return the datalist. Equal pairs give equal bytes."""
    folder = Path(folder)
    datalist = folder / DATALIST
    datalist.unlink(missing_ok=True)  # it is written last: an interrupted pack is never taken for a whole one
    bar = progress(pairs.names, desc=f"packing {folder.name}", unit="image", leave=False)
    for index, name in enumerate(bar):
        _write_array(folder / INPUT_FOLDER / f"{name}.npz", INPUT_KEY, pairs.inputs(index))
        _write_array(folder / TRUTH_FOLDER / f"{name}.npz", TRUTH_KEY, pairs.truths(index))
    with write_atomically(datalist) as temporary:
        lines = "".join(f"{INPUT_FOLDER}/{name}.npz\n" for name in pairs.names)
        temporary.write_bytes(lines.encode("utf-8"))
    return datalist


def read_pack(folder: str | Path, outside: bool = False) -> Pack:
    """Open a pack whose files, and truths if it has a folder of them, are all there; else DataError.

    With ``outside`` the datalist may lead out of the folder, as a vendor's absolute paths do.
    """
    folder = Path(folder)
    datalist = folder / DATALIST
    if not datalist.is_file():
        raise DataError(f"{datalist}: no such file (a pack that was interrupted has none: write it again)")
    try:
        lines = read_text(datalist, MOST_LIST).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{error}; write the pack again") from None
    pack = Pack(folder, tuple(folder / line.rstrip("\r") for line in lines if line.strip()))
    if not len(pack):
        raise DataError(f"{datalist}: lists no file")
    truths = folder / TRUTH_FOLDER
    expected = [truths / f"{name}.npz" for name in pack.names] if truths.is_dir() else []
    root = folder.resolve()
    for path in (*pack.paths, *expected):
        listed = shown(str(path))
        if too_long(path) or not path.is_file():
            raise DataError(f"{datalist}: {listed} is listed or belongs to a listed file, but is not there")
        if not outside and not path.resolve().is_relative_to(root):
            allow = "read_pack(folder, outside=True) or `score --outside` reads it"
            raise DataError(f"{datalist}: {listed} lies outside of the pack; if you trust the list, {allow}")
    return pack


def unpack(pack: Pack, folder: str | Path) -> list[Path]:
    """Write a pack back without loss: ``input/<name>.png`` and, if it has truths, ``truth/<name>.png``."""
    folder = Path(folder)
    readers = {INPUT_FOLDER: pack.inputs}
    if (pack.folder / TRUTH_FOLDER).is_dir():
        readers[TRUTH_FOLDER] = pack.truths
    bar = progress(pack.names, desc="unpacking", unit="image", leave=False)
    return [
        images.write_image(folder / part / f"{name}.png", read(index))
        for index, name in enumerate(bar)
        for part, read in readers.items()
    ]


def check_packs(evaluation: AnyPairs, calibration: AnyPairs | None, task: str) -> None:
    """Refuse sets of unequal sizes, coloured inputs of ``color``, or evaluation pictures in calibration."""
    owners: dict[str, str] = {}
    sizes: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
    sets = {"evaluation": evaluation} | ({"calibration": calibration} if calibration else {})
    for subset, pairs in sets.items():
        for index, name in enumerate(pairs.names):
            shown, truth = pairs.inputs(index), pairs.truths(index)
            if task == "color" and np.ptp(shown, axis=2).any():
                raise DataError(f"{subset}/{name}: the input of task 'color' is not grey")
            sizes.setdefault((shown.shape, truth.shape), f"{subset}/{name}")
            owner = owners.setdefault(hashlib.sha256(truth.tobytes()).hexdigest(), f"{subset}/{name}")
            if not owner.startswith(f"{subset}/"):
                todo = "remove one of the two files, or choose another calib_dir or seed"
                raise DataError(f"{subset}/{name} is the same picture as {owner}: {todo}")
    if len(sizes) > 1:
        shapes = ", ".join(f"{name}: {shown} and {truth}" for (shown, truth), name in sizes.items())
        raise DataError(f"{evaluation.label}: inputs and truths of several sizes ({shapes})")


def plain_stem(name: str) -> str:
    """Return the stem of a file's name for other files that are made of it."""
    name = name.rpartition("/")[2]
    dot = name.rfind(".")  # pathlib would do it, and intern a part of every name
    stem = name[:dot] if 0 < dot < len(name) - 1 else name
    # A line break would break the datalist; a number, a dtype and a suffix must have room
    stem = "".join(c if c.isprintable() else "_" for c in stem)
    return shortened(stem, LONGEST_NAME - 55)


def distinct_stems(names: Iterable[str]) -> list[str]:
    """Return file stems that differ in lower case too: ``a.jpg`` and ``A.png`` become ``a`` and ``A_2``.

    Stems of more than 200 bytes are cut, and end in a digest of the whole.
    """
    stems = [plain_stem(name) for name in names]
    reserved, seen = {stem.casefold() for stem in stems}, set[str]()
    distinct = []
    for stem in stems:
        name = stem
        if stem.casefold() in seen:
            name = next(n for i in count(2) if (n := f"{stem}_{i}").casefold() not in reserved)
            reserved.add(name.casefold())
        seen.add(stem.casefold())
        distinct.append(name)
    return distinct


def _write_array(path: Path, key: str, image: Image) -> None:
    arrays: dict[str, Any] = {key: images.to_planar(image)}
    with write_atomically(path) as temporary:
        np.savez_compressed(temporary, **arrays)


NPZ_DAMAGE = (
    OSError, EOFError, TypeError, ValueError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile,
    SyntaxError, tokenize.TokenError, zlib.error, lzma.LZMAError,
)  # fmt: skip


def read_npz(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file that have these names, or all; DataError says why it cannot be."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no regular file" if path.exists() else "no such file")
        with zipfile.ZipFile(path) as archive:
            size = max(path.stat().st_size, sum(entry.file_size for entry in archive.infolist()))
        if size > MOST_UNPACKED:
            raise ValueError(f"{size >> 20} MiB of arrays, at most {MOST_UNPACKED >> 20} are read")
        with np.load(path, allow_pickle=False) as arrays:
            held = arrays.files
            found = {key: arrays[key] for key in keys or held if key in held}
        if wrong := [key for key, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{wrong[0][:80]!r} is no array")
    except NPZ_DAMAGE as error:
        why = re.sub("<.*?>", "code", str(error)) or type(error).__name__
        what = f"not a readable npz file with {', '.join(keys) or 'arrays'} ({why:.200})"
        raise DataError(f"{path}: {what}; write it again") from None
    if missing := [key for key in keys if key not in found]:
        names = cut(", ".join(held)) or "nothing"
        raise DataError(f"{path}: holds {names}, expected also {', '.join(missing)}")
    return found


def _read_array(path: Path, key: str) -> Image:
    """Read one image; every failure is a DataError that names the file."""
    planar = read_npz(path, key)[key]
    if planar.dtype != np.uint8 or planar.ndim != 3 or planar.shape[0] != 3 or 0 in planar.shape:
        raise DataError(f"{path}: {key} is {planar.dtype} {planar.shape}, expected uint8 [3, H, W]")
    return images.from_planar(planar)


# The vendor zoo's preprocessing operators, read from a build configuration's ``process_ops``.

PARAMETERS: dict[str, tuple[str, ...]] = {
    "DecodeImage": (), "Resize": ("size",), "CenterCrop": ("size",), "Pad": ("size", "value"),
    "CvtColor": ("code",), "Normalize": ("mean", "std"), "ToTensor": (),
}  # fmt: skip
NUMBERS = {  # length of the list (0: none), from, to
    "size": ((0, 2), 1, 4096), "value": ((0,), 0.0, 255.0),
    "mean": ((3,), -1e4, 1e4), "std": ((3,), 1e-4, 1e4),
}  # fmt: skip
COLOUR_CODES = ("COLOR_BGR2RGB", "COLOR_RGB2BGR", "COLOR_RGB2GRAY", "COLOR_BGR2GRAY")


@dataclass(frozen=True)
class ProcessOp:
    """One operator and its parameters."""

    type: str
    parameters: Mapping[str, Any]


def parse_process_ops(entries: Sequence[Mapping[str, Any]]) -> list[ProcessOp]:
    """Validate a ``process_ops`` list; ValueError if an operator or parameter is unknown."""
    operators = []
    for entry in entries:
        kind = entry.get("type")
        if not isinstance(kind, str) or kind not in PARAMETERS:
            raise ValueError(choice_error("process_ops type", kind, tuple(PARAMETERS)))
        parameters = {name: value for name, value in entry.items() if name != "type"}
        for name in parameters:
            if name not in PARAMETERS[kind]:
                raise ValueError(choice_error(f"parameter of {kind}", name, PARAMETERS[kind] or ("(none)",)))
            if name in NUMBERS:
                _check_numbers(f"{name} of {kind}", parameters[name], *NUMBERS[name])
        if kind == "CvtColor" and parameters.get("code") not in COLOUR_CODES:
            raise ValueError(choice_error("CvtColor code", parameters.get("code"), COLOUR_CODES))
        operators.append(ProcessOp(kind, parameters))
    return operators


def _check_numbers(what: str, value: Any, lengths: tuple[int, ...], least: float, most: float) -> None:
    """Refuse what is no number, or list of so many numbers (0: none), in the bounds."""
    numbers = value if isinstance(value, list | tuple) else [value]
    whole = (int,) if isinstance(most, int) else (int, float)
    good = [type(number) in whole and least <= number <= most for number in numbers]
    if not all(good) or (len(good) if numbers is value else 0) not in lengths:
        forms = " or ".join(f"a list of {length}" if length else "one number" for length in lengths)
        raise ValueError(f"{what}={shown(value)}: must be {forms} from {least} to {most}")


def preprocess(image: Image, operators: Sequence[ProcessOp], size: int) -> FloatArray:
    """Apply operators to uint8 RGB [H, W, 3] -> float32 [1, 3, size, size], in [0, 1] without Normalize."""
    images.check_image(image)
    value: Any = image
    order = "RGB"
    for operator in operators:  # DecodeImage was done on reading; ToTensor is the change of layout at the end
        parameters = operator.parameters
        sides = parameters.get("size", size)
        height, width = (sides, sides) if isinstance(sides, int) else map(int, sides)
        if operator.type == "Resize":
            value = cv2.resize(value, (width, height), interpolation=cv2.INTER_LINEAR)
        elif operator.type == "CenterCrop":
            top, left = (max(0, (value.shape[i] - side) // 2) for i, side in enumerate((height, width)))
            value = value[top : top + height, left : left + width]
        elif operator.type == "Pad":
            bottom, right = max(height - value.shape[0], 0), max(width - value.shape[1], 0)
            fill = [parameters.get("value", 0)] * 3
            value = cv2.copyMakeBorder(value, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=fill)
        elif operator.type == "CvtColor":
            # The first half of a code names what the vendor's decoder gives, BGR. Pictures are RGB here from
            # decoding on, so only the second half counts, the order that the network wants: BGR2RGB changes
            # nothing, RGB2BGR swaps, and grey is that of the true colours under either name.
            target = parameters["code"].partition("2")[2]
            if target == "GRAY":
                grey = cv2.cvtColor(value, cv2.COLOR_RGB2GRAY if order == "RGB" else cv2.COLOR_BGR2GRAY)
                value = np.repeat(grey[:, :, None], 3, axis=2)
            elif target != order:
                value, order = cv2.cvtColor(value, cv2.COLOR_RGB2BGR), target
        elif operator.type == "Normalize":
            mean = np.asarray(parameters.get("mean", (0.0, 0.0, 0.0)), dtype=np.float32)
            std = np.asarray(parameters.get("std", (1.0, 1.0, 1.0)), dtype=np.float32)
            value = (value.astype(np.float32) / 255.0 - mean) / std
    array = value.astype(np.float32) / 255.0 if value.dtype == np.uint8 else value
    array = array.transpose(2, 0, 1)[None]
    if array.shape != (1, 3, size, size):
        raise ValueError(f"process_ops give {array.shape[1:]}, the network takes {(3, size, size)}")
    return np.ascontiguousarray(array)


# Colours of data sets, and what the scores make of wrong answers: rows for the tables and figures of 02_data.

Row = dict[str, Any]


def colour_row(image: Image) -> Row:
    """Return mean and deviation of R, G, B in [0, 255], mean CIELAB, mean CIELAB chroma, colourfulness."""
    images.check_image(image)
    lab = to_lab(image)
    row: Row = {}
    for name, values in zip(("red", "green", "blue"), image.reshape(-1, 3).T.astype(np.float64), strict=True):
        row |= {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std())}
    row |= dict(zip(("lightness", "lab_a", "lab_b"), mean_colour(lab).tolist(), strict=True))
    chroma = float(np.hypot(lab[..., 1], lab[..., 2]).mean(dtype=np.float64))
    return row | {"chroma": chroma, "colourfulness": colourfulness(image)}


def colour_statistics(pairs: AnyPairs, subset: str) -> list[Row]:
    """Return :func:`colour_row` of every truth, after ``subset`` as named, ``index`` and ``image``."""
    bar = enumerate(progress(pairs.names, desc=f"colours of {subset}", unit="image", leave=False))
    return [{"subset": subset, "index": i, "image": name, **colour_row(pairs.truths(i))} for i, name in bar]


def score(answer: Image, truth: Image) -> Row:
    """Return ``psnr`` in dB, ``ssim`` and ``colour_shift`` of an answer, resized to the truth's size."""
    answer = images.resize(answer, (truth.shape[1], truth.shape[0]))
    figures = {"psnr": psnr, "ssim": ssim, "colour_shift": colour_shift}
    return {name: figure(answer, truth) for name, figure in figures.items()}


def baseline_scores(pairs: AnyPairs) -> list[Row]:
    """Score the inputs as if they were the answers: what doing nothing is worth, row by row."""
    bar = enumerate(progress(pairs.names, desc="scoring the inputs", unit="image", leave=False))
    return [{"index": i, "image": name, **score(pairs.inputs(i), pairs.truths(i))} for i, name in bar]


def task_examples(image: Image, size: int, seeds: Sequence[int]) -> list[Row]:
    """Return what every task makes of one picture, by seed: ``task``, ``given``, ``truth`` and scores."""
    rows: list[Row] = []
    for task, how in TASKS.items():
        for seed in seeds if how.seeded else seeds[:1]:
            shown, truth = make_pair(image, task, size, seed=seed)
            drawn = seed if how.seeded else None
            rows.append({"task": task, "seed": drawn, "given": shown, "truth": truth, **score(shown, truth)})
    return rows


def wrong_answers(truth: Image) -> dict[str, Image]:
    """Return the truth and three wrong answers: grey, every CIELAB hue turned by a third, blurred."""
    images.check_image(truth)
    lab = cv2.cvtColor(truth.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    angle = 2 * np.pi / 3
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)
    lab[:, :, 1:] = lab[:, :, 1:] @ turn
    turned = np.clip(np.rint(255 * cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)), 0, 255).astype(np.uint8)
    deviation = max(1.0, max(truth.shape[:2]) / 128)  # pixels
    soft = np.asarray(cv2.GaussianBlur(truth, (0, 0), deviation), dtype=np.uint8)
    return {"truth": truth, "grey": images.to_grey(truth), "wrong colours": turned, "soft": soft}
