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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.data.sources import DataError, ImageSource
from gpenlib.data.tasks import make_pair
from gpenlib.images import Image, from_planar, to_planar, write_image
from gpenlib.progress import progress
from gpenlib.run import write_atomically

DATALIST = "datalist.txt"
INPUT_FOLDER, INPUT_KEY = "input", "input_0"
TRUTH_FOLDER, TRUTH_KEY = "truth", "truth_0"


@dataclass(frozen=True)
class Pack:
    """A pack on disk; images are read one at a time, in the order of the datalist.

    Attributes
    ----------
    folder : Path
    paths : tuple of Path
        The input files.
    """

    folder: Path
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """Stems of the files, which are distinct in packs that :func:`write_pack` wrote."""
        return [path.stem for path in self.paths]

    def inputs(self, index: int) -> Image:
        """Return the network's input of image ``index`` as uint8 RGB [H, W, 3].

        Raises
        ------
        DataError
            If the file is damaged, has no ``input_0`` or holds something else than uint8 [3, H, W].
        """
        return _read_array(self.paths[index], INPUT_KEY)

    def truths(self, index: int) -> Image:
        """Return the truth of image ``index`` as uint8 RGB [H, W, 3].

        Raises
        ------
        DataError
            As :meth:`inputs`, or if the pack has no truth for this image (the vendor's have none).
        """
        return _read_array(self.folder / TRUTH_FOLDER / self.paths[index].name, TRUTH_KEY)


def write_pack(
    folder: str | Path,
    source: ImageSource,
    task: str,
    in_size: int,
    out_size: int | None = None,
    seed: Sequence[int] = (0,),
) -> Path:
    """Write every image of ``source`` as an (input, truth) pair of npz files.

    The datalist is removed first and written last, so an interrupted pack is never taken for a whole one.
    The same images, in the same order and with the same seed, give the same bytes.

    Parameters
    ----------
    folder : path
        Created if absent.
    source : ImageSource
        If it has no image, the datalist is empty, and :func:`read_pack` will refuse the pack.
    task : str
        A name in :data:`gpenlib.data.tasks.TASKS`.
    in_size, out_size : int
        Sides of input and truth in pixels; ``out_size`` defaults to ``in_size``.
    seed : sequence of int
        Image ``index`` is degraded with the seed ``(*seed, index)``.

    Returns
    -------
    Path
        The datalist.

    Raises
    ------
    ImageError
        If a picture is damaged; the message names its file.
    ValueError
        If the task is unknown.
    """
    folder = Path(folder)
    datalist = folder / DATALIST
    datalist.unlink(missing_ok=True)
    stems = distinct_stems(source.names)
    for index, stem in enumerate(progress(stems, desc=f"packing {folder.name}", unit="image", leave=False)):
        given, truth = make_pair(source.read(index), task, in_size, out_size, (*seed, index))
        _write_array(folder / INPUT_FOLDER / f"{stem}.npz", INPUT_KEY, given)
        _write_array(folder / TRUTH_FOLDER / f"{stem}.npz", TRUTH_KEY, truth)
    with write_atomically(datalist) as temporary:
        lines = "".join(f"{INPUT_FOLDER}/{stem}.npz\n" for stem in stems)
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
    truths = [folder / TRUTH_FOLDER / path.name for path in paths] if (folder / TRUTH_FOLDER).is_dir() else []
    for path in (*paths, *truths):
        if not path.is_file():
            raise DataError(f"{datalist}: {path} is listed or belongs to a listed file, but is not there")
    return Pack(folder, paths)


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
    stems = distinct_stems(pack.names)  # a vendor's datalist may name files of several folders
    for index, stem in enumerate(progress(stems, desc="unpacking", unit="image", leave=False)):
        written.append(write_image(folder / INPUT_FOLDER / f"{stem}.png", pack.inputs(index)))
        if with_truths:
            written.append(write_image(folder / TRUTH_FOLDER / f"{stem}.png", pack.truths(index)))
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
