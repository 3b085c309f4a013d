"""Packs: the vendor's npz files with a datalist.

A pack is a folder::

    datalist.txt        one line per image, in order: input/<stem>.npz
    input/<stem>.npz    input_0: uint8 CHW RGB, what the network is given
    truth/<stem>.npz    truth_0: uint8 CHW RGB, what it should answer

``input_0`` and the datalist are what the vendor's ``image2npz.py`` and ``vamp --datalist`` use; the truths
are ours, so that a pack can be scored without the pictures it came from.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage.color import rgb2lab

from gpenlib.data.faces import DataError, Faces
from gpenlib.data.tasks import TASKS, find_task, make_pair
from gpenlib.files import choice_error, fingerprint, progress, write_atomically
from gpenlib.images import (
    FloatArray,
    Image,
    check_image,
    from_planar,
    resize,
    to_grey,
    to_planar,
    write_image,
)
from gpenlib.metrics import colour_shift, colourfulness, psnr, ssim

CACHED = 8  # pairs that are kept: input and truth of a face are asked for one after the other


class Pairs:
    """(input, truth) of every face under a task, made when asked for; used like a :class:`Pack`.

    Face ``index`` is degraded with the seed ``(*seed, index)``. ``names`` are distinct stems of file names.
    Pictures are shared by all who ask for them, and so cannot be written to.
    """

    def __init__(
        self, faces: Faces, task: str, in_size: int, out_size: int | None = None, seed: Sequence[int] = (0,)
    ) -> None:
        find_task(task)  # an unknown one is refused here
        self.faces, self.task, self.seed = faces, task, tuple(seed)
        self.in_size, self.out_size = in_size, out_size or in_size
        self.label, self.names = faces.label, distinct_stems(faces.names)
        self._pair = lru_cache(maxsize=CACHED)(self._make)  # safe in threads

    def __len__(self) -> int:
        return len(self.faces)

    def inputs(self, index: int) -> Image:
        """Return what the network is given, uint8 RGB [in_size, in_size, 3]."""
        return self._pair(index)[0]

    def truths(self, index: int) -> Image:
        """Return what it should answer, uint8 RGB [out_size, out_size, 3]."""
        return self._pair(index)[1]

    def digest(self) -> str:
        """Return a hash of pictures, names, task and sizes; of the seed where the task draws anything."""
        task = find_task(self.task)
        seed = self.seed if task.seeded else None
        sizes = [self.in_size, self.out_size]
        return fingerprint([self.faces.combined_digest(), self.names, self.task, task.recipe, sizes, seed])

    def _make(self, index: int) -> tuple[Image, Image]:
        face = self.faces.read(index)
        pair = make_pair(face, self.task, self.in_size, self.out_size, (*self.seed, index))
        shared = tuple(image.view() for image in pair)
        for image in shared:
            image.setflags(write=False)
        return shared[0], shared[1]


# ----------------------------------------------------------------------
# Packs: the vendor's npz files with a datalist.
#
# A pack is a folder::
#
#     datalist.txt        one line per image, in order: input/<stem>.npz
#     input/<stem>.npz    input_0: uint8 CHW RGB, what the network is given
#     truth/<stem>.npz    truth_0: uint8 CHW RGB, what it should answer
#
# ``input_0`` and the datalist are what the vendor's ``image2npz.py`` and ``vamp --datalist`` use; the truths
# are ours, so that a pack can be scored without the pictures it came from.

DATALIST = "datalist.txt"
INPUT_FOLDER, INPUT_KEY = "input", "input_0"
TRUTH_FOLDER, TRUTH_KEY = "truth", "truth_0"


@dataclass(frozen=True)
class Pack:
    """A pack on disk; images are read one at a time, in the order of the datalist.

    ``names`` are distinct stems of the files: a vendor's datalist may name files of several folders.
    """

    folder: Path
    paths: tuple[Path, ...]
    names: Sequence[str] = ()

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
        """Return the truth of image ``index`` as uint8 RGB [H, W, 3]; the vendor's packs have none."""
        return _read_array(self.folder / TRUTH_FOLDER / f"{self.names[index]}.npz", TRUTH_KEY)

    def digest(self) -> str:
        """Return a hash of the inputs' pixels, in order."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(hashlib.sha256(self.inputs(index).tobytes()).hexdigest().encode())
        return digest.hexdigest()


def write_pack(folder: str | Path, pairs: Pairs) -> Path:
    """Write every (input, truth) pair as npz files; return the datalist.

    The datalist is removed first and written last, so an interrupted pack is never taken for a whole one.
    The same pairs give the same bytes. Without any face the datalist is empty, and :func:`read_pack` will
    refuse the pack.
    """
    folder = Path(folder)
    datalist = folder / DATALIST
    datalist.unlink(missing_ok=True)
    bar = progress(pairs.names, desc=f"packing {folder.name}", unit="image", leave=False)
    for index, name in enumerate(bar):
        _write_array(folder / INPUT_FOLDER / f"{name}.npz", INPUT_KEY, pairs.inputs(index))
        _write_array(folder / TRUTH_FOLDER / f"{name}.npz", TRUTH_KEY, pairs.truths(index))
    with write_atomically(datalist) as temporary:
        lines = "".join(f"{INPUT_FOLDER}/{name}.npz\n" for name in pairs.names)
        temporary.write_bytes(lines.encode("utf-8"))
    return datalist


def read_pack(folder: str | Path) -> Pack:
    """Open a pack, ours or the vendor's.

    Parameters
    ----------
    folder : path
        It holds ``datalist.txt``, whose lines are npz paths relative to it, or absolute.

    Raises
    ------
    DataError
        If the datalist is missing, empty or not UTF-8, or lists a file that is not there. If there is a
        ``truth`` folder, it must be complete.
    """
    folder = Path(folder)
    datalist = folder / DATALIST
    if not datalist.is_file():
        raise DataError(f"{datalist}: no such file (a pack that was interrupted has none: write it again)")
    try:
        lines = datalist.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{datalist}: not a UTF-8 text file") from None
    paths = tuple(folder / line.rstrip("\r") for line in lines if line.strip())
    if not paths:
        raise DataError(f"{datalist}: lists no file")
    pack = Pack(folder, paths)
    truths = folder / TRUTH_FOLDER
    expected = [truths / f"{name}.npz" for name in pack.names] if truths.is_dir() else []
    for path in (*paths, *expected):
        if not path.is_file():
            raise DataError(f"{datalist}: {path} is listed or belongs to a listed file, but is not there")
    return pack


def unpack(pack: Pack, folder: str | Path) -> list[Path]:
    """Write a pack back as pictures: ``input/<stem>.png`` and, where there are truths, ``truth/<stem>.png``.

    PNG is lossless, so packing these pictures again at the same size gives the same arrays.

    Returns
    -------
    list of Path
        The files written, inputs and truths in turn.

    Raises
    ------
    DataError
        As :meth:`Pack.inputs`.
    """
    folder = Path(folder)
    with_truths = (pack.folder / TRUTH_FOLDER).is_dir()
    written = []
    for index, name in enumerate(progress(pack.names, desc="unpacking", unit="image", leave=False)):
        written.append(write_image(folder / INPUT_FOLDER / f"{name}.png", pack.inputs(index)))
        if with_truths:
            written.append(write_image(folder / TRUTH_FOLDER / f"{name}.png", pack.truths(index)))
    return written


def check_packs(evaluation: Pack, calibration: Pack | None, task: str) -> None:
    """Read two packs through and raise unless they are sound.

    Parameters
    ----------
    evaluation : Pack
    calibration : Pack, optional
    task : str
        Of both; for ``"color"`` the three channels of every input must be equal.

    Raises
    ------
    DataError
        If a file cannot be read, sizes differ within the packs, an input is not what the task gives, or a
        calibration image has the pixels of an evaluation image (also where their files differ).
    """
    packs = {"evaluation": evaluation} | ({"calibration": calibration} if calibration else {})
    owners: dict[str, str] = {}
    sizes: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
    for subset, pack in packs.items():
        for index, name in enumerate(pack.names):
            given, truth = pack.inputs(index), pack.truths(index)
            if task == "color" and np.ptp(given, axis=2).any():
                raise DataError(f"{pack.paths[index]}: the input of task 'color' is not grey")
            sizes.setdefault((given.shape, truth.shape), f"{subset}/{name}")
            owner = owners.setdefault(hashlib.sha256(truth.tobytes()).hexdigest(), f"{subset}/{name}")
            if not owner.startswith(f"{subset}/"):
                raise DataError(
                    f"{subset}/{name} is the same picture as {owner}: remove one of the two files from the "
                    "data folder, or choose another calib_dir or seed"
                )
    if len(sizes) > 1:
        found = ", ".join(f"{name}: {given} and {truth}" for (given, truth), name in sizes.items())
        raise DataError(f"{evaluation.folder}: inputs and truths of several sizes ({found})")


def distinct_stems(names: Iterable[str]) -> list[str]:
    """Return one file stem per name: ``a.jpg`` and ``a.png`` become ``a`` and ``a_2``.

    Stems differ also where upper and lower case do not, and hold no control characters (a line break would
    break the datalist).
    """
    stems = ["".join(c if c.isprintable() else "_" for c in Path(name).stem) for name in names]
    reserved = {stem.casefold() for stem in stems}
    taken: set[str] = set()
    distinct = []
    for stem in stems:
        candidate, number = stem, 1
        while candidate.casefold() in taken or (number > 1 and candidate.casefold() in reserved):
            number += 1
            candidate = f"{stem}_{number}"
        taken.add(candidate.casefold())
        distinct.append(candidate)
    return distinct


def _write_array(path: Path, key: str, image: Image) -> None:
    """Write one uint8 [H, W, 3] image as compressed CHW."""
    with write_atomically(path) as temporary:
        arrays: dict[str, Any] = {key: to_planar(image)}
        np.savez_compressed(temporary, **arrays)


def _read_array(path: Path, key: str) -> Image:
    """Read one image; every failure is a DataError that names the file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array, expected an npz archive with {key}")
        with loaded as archive:
            if key not in archive.files:
                raise DataError(f"{path}: holds {', '.join(archive.files) or 'nothing'}, expected {key}")
            planar = archive[key]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable npz file ({error})") from None
    if planar.dtype != np.uint8 or planar.ndim != 3 or planar.shape[0] != 3 or 0 in planar.shape:
        raise DataError(f"{path}: {key} is {planar.dtype} {planar.shape}, expected uint8 [3, H, W]")
    return from_planar(planar)


# ----------------------------------------------------------------------
# The vendor zoo's preprocessing operators, read from a build configuration's ``process_ops``.

PARAMETERS: dict[str, tuple[str, ...]] = {
    "DecodeImage": (),
    "Resize": ("size",),
    "CenterCrop": ("size",),
    "Pad": ("size", "value"),
    "CvtColor": ("code",),
    "Normalize": ("mean", "std"),
    "ToTensor": (),
}
COLOUR_CODES = ("COLOR_BGR2RGB", "COLOR_RGB2BGR", "COLOR_RGB2GRAY", "COLOR_BGR2GRAY")


@dataclass(frozen=True)
class ProcessOp:
    """One operator and its parameters."""

    type: str
    parameters: Mapping[str, Any]


def parse_process_ops(entries: Sequence[Mapping[str, Any]]) -> list[ProcessOp]:
    """Validate a ``process_ops`` list.

    Raises
    ------
    ValueError
        If an operator or parameter is unknown.
    """
    operators = []
    for entry in entries:
        kind = entry.get("type")
        if kind not in PARAMETERS:
            raise ValueError(choice_error("process_ops type", kind, tuple(PARAMETERS)))
        given = {name: value for name, value in entry.items() if name != "type"}
        for name in given:
            if name not in PARAMETERS[kind]:
                raise ValueError(choice_error(f"parameter of {kind}", name, PARAMETERS[kind] or ("(none)",)))
        if kind == "CvtColor" and given.get("code") not in COLOUR_CODES:
            raise ValueError(choice_error("CvtColor code", given.get("code"), COLOUR_CODES))
        operators.append(ProcessOp(kind, given))
    return operators


def preprocess(image: Image, operators: Sequence[ProcessOp], size: int) -> FloatArray:
    """Apply operators to one decoded image.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    operators : sequence of ProcessOp
        ``Normalize`` divides by 255, subtracts ``mean`` and divides by ``std``. Without it pixels are scaled
        to [0, 1] by ``ToTensor``.
    size : int
        Side that ``Resize`` takes when it names none, and that the result must have.

    Returns
    -------
    float32 [1, 3, size, size]

    Raises
    ------
    ValueError
        If the result has another size.
    """
    check_image(image)
    value: Any = image
    for operator in operators:
        value = _apply(value, operator, size)
    array = np.asarray(value, dtype=np.float32)
    if np.asarray(value).dtype == np.uint8:
        array = array / 255.0
    array = array.transpose(2, 0, 1)[None]
    if array.shape != (1, 3, size, size):
        raise ValueError(f"process_ops give {array.shape[1:]}, the network takes {(3, size, size)}")
    return np.ascontiguousarray(array)


def _apply(value: Any, operator: ProcessOp, size: int) -> Any:
    """Apply one operator to an HWC array."""
    given = operator.parameters
    if operator.type == "Resize":
        height, width = _sides(given.get("size", size))
        return resize(value, (width, height))
    if operator.type == "CenterCrop":
        height, width = _sides(given.get("size", size))
        top, left = (value.shape[0] - height) // 2, (value.shape[1] - width) // 2
        return value[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    if operator.type == "Pad":
        height, width = _sides(given.get("size", size))
        bottom, right = max(height - value.shape[0], 0), max(width - value.shape[1], 0)
        fill = given.get("value", 0)
        return cv2.copyMakeBorder(value, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=[fill] * 3)
    if operator.type == "CvtColor":
        # Images are RGB from decoding on; a swap is a swap under either name.
        return to_grey(value) if given["code"].endswith("GRAY") else value[:, :, ::-1]
    if operator.type == "Normalize":
        mean = np.asarray(given.get("mean", (0.0, 0.0, 0.0)), dtype=np.float32)
        std = np.asarray(given.get("std", (1.0, 1.0, 1.0)), dtype=np.float32)
        return (value.astype(np.float32) / 255.0 - mean) / std
    return value  # DecodeImage was done on reading; ToTensor is the change of layout at the end


def _sides(size: Any) -> tuple[int, int]:
    """Return (height, width) from a number or a pair."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


# ----------------------------------------------------------------------
# Colour statistics of data sets, and what the scores make of wrong answers: rows for tables and figures.
#
# Not imported by ``gpenlib.data`` itself, because scikit-image's colour conversions are slow to load.

Row = dict[str, Any]


def colour_row(image: Image) -> Row:
    """Return the colour statistics of one image.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]

    Returns
    -------
    dict
        ``red_mean``, ``red_std`` and so on for green and blue, in [0, 255]; ``lightness`` in [0, 100],
        ``lab_a`` and ``lab_b``, the mean CIELAB coordinates (D65); ``chroma``, the mean distance of the
        pixels from grey in CIELAB; ``colourfulness`` (Hasler and Suesstrunk 2003).

    Raises
    ------
    ImageError
        If ``image`` is not uint8 [H, W, 3].
    """
    check_image(image)
    channels = image.reshape(-1, 3).astype(np.float64)
    lab = rgb2lab(image).reshape(-1, 3)
    row: Row = {}
    for name, values in zip(("red", "green", "blue"), channels.T, strict=True):
        row[f"{name}_mean"], row[f"{name}_std"] = float(values.mean()), float(values.std())
    row["lightness"], row["lab_a"], row["lab_b"] = (float(value) for value in lab.mean(axis=0))
    row["chroma"] = float(np.hypot(lab[:, 1], lab[:, 2]).mean())
    row["colourfulness"] = colourfulness(image)
    return row


def colour_statistics(pack: Pack, subset: str) -> list[Row]:
    """Return the colour statistics of the truths of a pack, one row per image.

    Parameters
    ----------
    pack : Pack
    subset : str
        Written into each row, such as ``"evaluation"``.

    Returns
    -------
    list of dict
        :func:`colour_row` with ``subset``, ``index`` and ``image`` before it.
    """
    bar = progress(range(len(pack)), desc=f"colours of {subset}", unit="image", leave=False)
    names = pack.names
    return [{"subset": subset, "index": i, "image": names[i], **colour_row(pack.truths(i))} for i in bar]


def score(answer: Image, truth: Image) -> Row:
    """Return ``psnr`` in dB, ``ssim`` and ``colour_shift`` (Delta E of the mean colours) of one answer.

    Parameters
    ----------
    answer, truth : uint8 RGB
        An answer of another size (the input of a super-resolution network) is resized to the truth's.
    """
    answer = resize(answer, (truth.shape[1], truth.shape[0]))
    return {
        "psnr": psnr(answer, truth),
        "ssim": ssim(answer, truth),
        "colour_shift": colour_shift(answer, truth),
    }


def baseline_scores(pack: Pack) -> list[Row]:
    """Score the inputs of a pack as if they were the answers: what doing nothing is worth, row by row."""
    bar = progress(range(len(pack)), desc="scoring the inputs", unit="image", leave=False)
    names = pack.names
    return [{"index": i, "image": names[i], **score(pack.inputs(i), pack.truths(i))} for i in bar]


def task_examples(image: Image, size: int, seeds: Sequence[int]) -> list[Row]:
    """Return what every registered task makes of one picture.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    size : int
        Side of inputs and truth, pixels.
    seeds : sequence of int
        One row per seed; a task that draws nothing gets one row, for the first.

    Returns
    -------
    list of dict
        ``task``, ``seed`` (None where nothing is drawn), ``given`` (uint8 [size, size, 3]), ``truth`` and the
        figures of :func:`score`.
    """
    rows: list[Row] = []
    for task, how in TASKS.items():
        for seed in seeds if how.seeded else seeds[:1]:
            given, truth = make_pair(image, task, size, seed=seed)
            drawn = seed if how.seeded else None
            rows.append({"task": task, "seed": drawn, "given": given, "truth": truth, **score(given, truth)})
    return rows


def wrong_answers(truth: Image) -> dict[str, Image]:
    """Return the truth and three answers that are wrong in different ways, by a short name.

    ``grey`` has lost all colour; ``wrong colours`` has every hue turned by a third of the circle in CIELAB at
    equal lightness; ``soft`` has the right colours under a Gaussian blur (standard deviation 1/128 of the
    side, at least 1 pixel).

    Parameters
    ----------
    truth : uint8 RGB [H, W, 3]

    Returns
    -------
    dict of uint8 RGB [H, W, 3]
    """
    check_image(truth)
    lab = cv2.cvtColor(truth.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    angle = 2 * np.pi / 3
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)
    lab[:, :, 1:] = lab[:, :, 1:] @ turn
    turned = np.clip(np.rint(255 * cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)), 0, 255).astype(np.uint8)
    deviation = max(1.0, max(truth.shape[:2]) / 128)
    soft = np.asarray(cv2.GaussianBlur(truth, (0, 0), deviation), dtype=np.uint8)
    return {"truth": truth, "grey": to_grey(truth), "wrong colours": turned, "soft": soft}
