"""Network outputs as npz files, as the vendor's ``vamp --path_output`` leaves them.

One file per image in the order of the datalist: ``000003_<name>.npz`` with

    output_0   float32 [3, S, S], RGB in [-1, 1] as the network gave it
    name       the face's name, so that files in another order are noticed
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.data.packs import Pack
from gpenlib.data.sources import DataError
from gpenlib.images import FloatArray
from gpenlib.run import write_atomically

OUTPUT_KEY, NAME_KEY = "output_0", "name"


def output_file(index: int, name: str) -> str:
    """Return the file name of one output."""
    return f"{index:06d}_{name}.npz"


def write_output_npz(folder: str | Path, index: int, name: str, output: FloatArray) -> Path:
    """Write the output of image ``index`` (from 0, in the order of the datalist).

    Parameters
    ----------
    folder : path
        Created if absent.
    index : int
    name : str
        As the pack names the image.
    output : float32 [3, S, S]

    Raises
    ------
    DataError
        If the array is something else or not finite.
    """
    path = Path(folder) / output_file(index, name)
    _check(path, output)
    arrays: dict[str, Any] = {OUTPUT_KEY: output, NAME_KEY: np.array(name)}
    with write_atomically(path) as temporary:
        np.savez(temporary, **arrays)  # noise-like mantissas: compressing takes long and gains little
    return path


def write_outputs_npz(folder: str | Path, pack: Pack, outputs: Iterable[FloatArray]) -> list[Path]:
    """Write one output per image of a pack, in its order.

    Parameters
    ----------
    folder : path
    pack : Pack
    outputs : iterable of float32 [3, S, S]

    Raises
    ------
    DataError
        As :func:`write_output_npz`.
    ValueError
        If there are fewer or more outputs than images.
    """
    pairs = zip(pack.names, outputs, strict=True)
    return [write_output_npz(folder, index, name, output) for index, (name, output) in enumerate(pairs)]


def output_paths(folder: str | Path, pack: Pack, named: bool = True) -> list[Path]:
    """Return the output file of every image of a pack, in its order.

    Parameters
    ----------
    folder : path
    pack : Pack
    named : bool
        False for files of the vendor's own tool, which carry no names: they are taken sorted by file
        name, as the vendor's evaluation does, and only their number can be checked.

    Raises
    ------
    DataError
        If a file is missing, or there are others beside them (another order, another pack); the message
        names it.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise DataError(f"{folder}: no npz file (04_infer writes them with save_npz=True)")
    if not named:
        if len(found) != len(pack):
            raise DataError(f"{folder}: {len(found)} npz files for {len(pack)} images of {pack.folder}")
        return found
    wanted = [folder / output_file(index, name) for index, name in enumerate(pack.names)]
    present = set(found)
    for index, path in enumerate(wanted):
        if path not in present:
            others = [p.name for p in found if p.name[7:] == path.name[7:] or p.name[:7] == path.name[:7]]
            hint = f"; in its place: {', '.join(others)} (another order?)" if others else ""
            raise DataError(f"{path}: the output of image {index} of {pack.folder} is missing{hint}")
    if surplus := sorted(present - set(wanted)):
        raise DataError(f"{surplus[0]}: belongs to no image of {pack.folder} ({len(surplus)} such files)")
    return wanted


def read_output_npz(path: Path, name: str | None, side: int) -> FloatArray:
    """Read one output.

    Parameters
    ----------
    path : Path
    name : str or None
        The face that the file must be of; None if files carry no names.
    side : int
        Expected side in pixels.

    Returns
    -------
    float32 [3, side, side]

    Raises
    ------
    DataError
        If the file cannot be read, is of another face, or holds anything but finite float32 [3, side, side]
        (a leading dimension of 1 is taken off).
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = [OUTPUT_KEY] if name is None else [OUTPUT_KEY, NAME_KEY]
            if missing := [key for key in wanted if key not in archive.files]:
                held = ", ".join(archive.files) or "nothing"
                raise DataError(f"{path}: holds {held}, expected also {', '.join(missing)}")
            output = archive[OUTPUT_KEY]
            found = None if name is None else str(archive[NAME_KEY])
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable npz file ({error})") from None
    if found != name:
        raise DataError(f"{path}: holds the output of {found!r}, expected that of {name!r} (another order?)")
    output = output[0] if output.ndim == 4 and output.shape[0] == 1 else output
    _check(path, output, side)
    return np.asarray(output)


def _check(path: Path, output: np.ndarray, side: int | None = None) -> None:
    """Raise DataError unless ``output`` is finite float32 [3, S, S] (of ``side``, if given)."""
    square = output.ndim == 3 and output.shape[0] == 3 and output.shape[1] == output.shape[2]
    if output.dtype != np.float32 or not square or (side is not None and output.shape[1] != side):
        size = "S, S" if side is None else f"{side}, {side}"
        raise DataError(
            f"{path}: {OUTPUT_KEY} is {output.dtype} {output.shape}, expected float32 [3, {size}]"
        )
    if not np.isfinite(output).all():
        raise DataError(f"{path}: {OUTPUT_KEY} holds NaN or infinity")
