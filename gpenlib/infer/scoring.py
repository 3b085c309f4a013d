"""The second baseline of colouring: the grey input under one even colour, the mean of other faces."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from gpenlib.data.faces import DataError
from gpenlib.data.pairs import DATALIST, TRUTH_FOLDER, Pack, read_pack
from gpenlib.files import choice_error, progress, write_atomically, write_csv, write_json
from gpenlib.images import (
    FloatArray,
    Image,
    from_levels,
    from_tensor,
    read_image,
    resize,
    to_grey,
    to_levels,
    to_tensor,
    write_image,
)
from gpenlib.infer.runtime import Runtime, open_runtime
from gpenlib.metrics import (
    SsimReference,
    chroma_error,
    colourfulness,
    delta_e2000,
    detail,
    finite_psnr,
    mean_colour,
    sharpness,
    to_lab,
)

# ----------------------------------------------------------------------
# The second baseline of colouring: the grey input under one even colour, the mean of other faces.

Chroma = tuple[float, float]
CALIBRATION = "calibration"
GREY = 1.0  # mean chroma below this is no colour: a grey picture, up to rounding


@dataclass(frozen=True)
class DataChroma:
    """The chroma that the baseline gives to each face; never drawn from that face.

    Attributes
    ----------
    source : str
        In words, where it comes from.
    per_face : tuple of (a, b)
        CIELAB coordinates, in the order of the pack.
    """

    source: str
    per_face: tuple[Chroma, ...]


def data_chroma(pack: Pack) -> DataChroma:
    """Return the mean chroma of the data set for every face of a pack.

    It is the mean of CIELAB a and b over all pixels of the calibration truths: those of the pack in the
    folder ``calibration`` beside this one, which shares no picture with it. If there is none, or if
    it is grey, it is the mean over all other faces of this pack; a face alone gets no colour, (0, 0).

    Parameters
    ----------
    pack : Pack
        With truths.
    """
    beside = pack.folder.parent / CALIBRATION
    if (
        (beside / DATALIST).is_file()
        and (beside / TRUTH_FOLDER).is_dir()
        and not beside.samefile(pack.folder)
    ):
        means = _mean_chromas(read_pack(beside))
        a, b = means.mean(axis=0)
        if np.hypot(a, b) >= GREY:
            source = f"mean of {len(means)} calibration truths"
            return DataChroma(source, ((float(a), float(b)),) * len(pack))
    means = _mean_chromas(pack)
    others = (means.sum(axis=0) - means) / max(1, len(means) - 1)
    if len(means) == 1:
        others[:] = 0
    return DataChroma("mean of the other faces' truths", tuple((float(a), float(b)) for a, b in others))


def coloured_with(image: Image, chroma: Chroma) -> Image:
    """Return an image in its own lightness and one even chroma; colours that sRGB lacks are clipped.

    Parameters
    ----------
    image : uint8 [H, W, 3]
        Its grey is taken (equal channels stay as they are).
    chroma : (a, b)
        CIELAB coordinates.

    Returns
    -------
    uint8 [H, W, 3]
    """
    return _coloured_levels(chroma)[to_grey(image)[:, :, 0]]


@lru_cache(maxsize=16)
def _coloured_levels(chroma: Chroma) -> Image:
    """Return what every grey level becomes in one chroma, uint8 [256, 3]."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]  # [1, 256, 3]
    lab = rgb2lab(levels)
    lab[..., 1], lab[..., 2] = chroma
    return np.rint(255 * _to_rgb(lab)[0]).astype(np.uint8)


def _to_rgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB in [0, 1], clipped; scikit-image warns where it clips, which is expected here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.clip(lab2rgb(lab), 0, 1)


def _mean_chromas(pack: Pack) -> NDArray[np.float64]:
    """Return the mean (a, b) of every truth, float64 [N, 2]."""
    bar = progress(range(len(pack)), desc="mean chroma", unit="image", leave=False)
    return np.array([mean_colour(to_lab(pack.truths(index)))[1:] for index in bar])


# ----------------------------------------------------------------------
# Score one restored face against its truth, beside its baselines; many faces on all processors.

SCORES = ("psnr", "ssim", "delta_e2000", "chroma_error", "colour_shift")
BASELINES = ("input", "chroma_baseline")
MEANS = (
    *SCORES,
    *(f"{score}_{baseline}" for baseline in BASELINES for score in SCORES),
    "psnr_truncated", "ssim_truncated", "psnr_float", "ssim_float", "colourfulness",
    "colourfulness_truth", "sharpness", "sharpness_input", "sharpness_truth", "detail", "detail_input",
    "lightness", "lab_a", "lab_b",
)  # fmt: skip
MOST_THREADS = 8
Result = TypeVar("Result")


def score(source: Image, truth: Image, output: FloatArray, chroma: Chroma) -> dict[str, float]:
    """Return the figures of one image, those of :data:`MEANS`.

    Parameters
    ----------
    source : uint8 [H, W, 3]
        The network's input.
    truth : uint8 [S, S, 3]
    output : float32 [3, S, S]
        The network's answer, nominally in [-1, 1].
    chroma : (a, b)
        Chroma of the data set, for the baseline of that name.

    Returns
    -------
    dict
        ``psnr`` (dB), ``ssim``, ``delta_e2000``, ``chroma_error`` and ``colour_shift`` judge the rounded
        output; ``*_input`` judge the input as if it were the answer (doing nothing),
        ``*_chroma_baseline`` the input coloured evenly with ``chroma``. ``psnr_truncated`` and
        ``ssim_truncated`` follow the vendor's uint8 convention, ``psnr_float`` and ``ssim_float`` judge
        the output without any rounding, but clipped as every picture is. ``colourfulness*``,
        ``sharpness*`` and ``detail*`` are as in :mod:`gpenlib.metrics`. ``lightness``, ``lab_a``
        and ``lab_b`` are the mean CIELAB colour of the output. PSNR of equal images is given as 100 dB, so
        that means stay finite.
    """
    unrounded = to_levels(output[None])[0]
    rounded, truncated = from_levels(unrounded), from_levels(unrounded, "truncate")
    baseline = resize(source, (truth.shape[1], truth.shape[0]))
    reference, truth_lab = SsimReference(truth), to_lab(truth)
    truth_colour = mean_colour(truth_lab)
    answers = {"": rounded, "_input": baseline, "_chroma_baseline": coloured_with(baseline, chroma)}
    row: dict[str, float] = {}
    for suffix, answer in answers.items():
        lab = to_lab(answer)
        colour = mean_colour(lab)
        row[f"psnr{suffix}"] = finite_psnr(answer, truth)
        row[f"ssim{suffix}"] = reference.score(answer)
        row[f"delta_e2000{suffix}"] = delta_e2000(lab, truth_lab)
        row[f"chroma_error{suffix}"] = chroma_error(lab, truth_lab)
        row[f"colour_shift{suffix}"] = float(np.linalg.norm(colour - truth_colour))
        if not suffix:
            row |= {name: float(v) for name, v in zip(("lightness", "lab_a", "lab_b"), colour, strict=True)}
    return row | {
        "psnr_truncated": finite_psnr(truncated, truth),
        "ssim_truncated": reference.score(truncated),
        # Grey levels in [0, 255]: the same as [-1, 1] with data range 2, but SSIM needs its zero at black
        "psnr_float": finite_psnr(unrounded, truth.astype(np.float32), 255.0),
        "ssim_float": reference.score(unrounded),
        "colourfulness": colourfulness(rounded),
        "colourfulness_truth": colourfulness(truth),
        "sharpness": sharpness(rounded),
        "sharpness_input": sharpness(baseline),
        "sharpness_truth": sharpness(truth),
        "detail": detail(rounded, truth),
        "detail_input": detail(baseline, truth),
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return ``<figure>_mean`` over all rows, and the median ``ms_per_image`` if they hold times."""
    means = {f"{name}_mean": statistics.fmean(row[name] for row in rows) for name in MEANS}
    if all("ms" in row for row in rows):
        means["ms_per_image"] = statistics.median(row["ms"] for row in rows)
    return means


def in_parallel(jobs: Iterable[Callable[[], Result]], threads: int | None = None) -> Iterator[Result]:
    """Run jobs on threads, a few at a time, and yield their results in order.

    The next few are only fetched when those before are done: memory stays flat however many there are,
    and work that the iterable does itself, such as a timed call, never runs beside a job.

    Parameters
    ----------
    jobs : iterable of callable
        Without arguments; NumPy and OpenCV release Python's lock in all that takes long here.
    threads : int, optional
        Defaults to the processors this process may use, at most 8.
    """
    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    remaining = iter(jobs)
    with ThreadPoolExecutor(threads) as pool:
        while few := list(islice(remaining, 4 * threads)):
            yield from pool.map(lambda job: job(), few)


# ----------------------------------------------------------------------
# Network outputs as npz files, as the vendor's ``vamp --path_output`` leaves them.
#
# One file per image in the order of the datalist: ``000003_<name>.npz`` with
#
#     output_0   float32 [3, S, S], RGB in [-1, 1] as the network gave it
#     name       the face's name, so that files in another order are noticed

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


# ----------------------------------------------------------------------
# Stream a pack of faces through a runtime: pixels in, scored rows and image files out.

Row = dict[str, Any]


def restore_pack(
    runtime: Runtime,
    pack: Pack,
    batch_size: int = 1,
    save_to: Path | None = None,
    npz_to: Path | None = None,
    chroma: DataChroma | None = None,
) -> list[Row]:
    """Restore every image of a pack and score it against its truth.

    Parameters
    ----------
    runtime : Runtime
    pack : Pack
        Inputs uint8 [in_size, in_size, 3], truths uint8 [out_size, out_size, 3].
    batch_size : int
        Images per call; the last batch may be smaller.
    save_to, npz_to : Path, optional
        Folders for the outputs as PNG, and as the float arrays that they were.
    chroma : DataChroma, optional
        Of the chroma baseline; found by :func:`gpenlib.infer.chroma.data_chroma` if not given.

    Returns
    -------
    list of dict
        One row per image in pack order: ``name``, the figures of :func:`gpenlib.infer.scoring.score`, ``ms``
        (its share of its batch's time, without reading and scoring).

    Raises
    ------
    ValueError
        If ``batch_size`` is below 1 or the network's output is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    for size in sorted({min(batch_size, len(pack)), len(pack) % batch_size or batch_size}):
        runtime(to_tensor([pack.inputs(0)] * size))  # first calls compile; they are not timed
    chromas = (chroma or data_chroma(pack)).per_face
    finish = partial(_finish, pack, chromas, save_to, npz_to)
    jobs = _timed_outputs(runtime, pack, batch_size, finish)
    return list(progress(in_parallel(jobs), total=len(pack), desc=f"infer {runtime.dtype}", unit="image"))


def _timed_outputs(
    runtime: Runtime, pack: Pack, batch_size: int, finish: Callable[[int, FloatArray, float], Row]
) -> Iterator[Callable[[], Row]]:
    """Run the network batch by batch and yield, per image, the rest of the work."""
    for start in range(0, len(pack), batch_size):
        indices = range(start, min(start + batch_size, len(pack)))
        batch = to_tensor([pack.inputs(index) for index in indices])
        started = time.perf_counter()
        output = runtime(batch)
        milliseconds = (time.perf_counter() - started) * 1000 / len(indices)
        for index, answer in zip(indices, output, strict=True):
            yield partial(finish, index, answer, milliseconds)


def _finish(
    pack: Pack,
    chromas: tuple[Chroma, ...],
    save_to: Path | None,
    npz_to: Path | None,
    index: int,
    output: FloatArray,
    milliseconds: float,
) -> Row:
    """Score and save one output, float32 [3, S, S]."""
    name = pack.names[index]
    row = score(pack.inputs(index), pack.truths(index), output, chromas[index])
    if save_to is not None:
        write_image(save_to / f"{name}.png", from_tensor(output[None])[0])
    if npz_to is not None:
        write_output_npz(npz_to, index, name, output)
    return {"name": name, **row, "ms": milliseconds}


# ----------------------------------------------------------------------
# Choose faces to look at, and get their pictures: input, restored output, truth.

Order = Literal["best", "median", "worst"]
ORDERS: tuple[str, ...] = get_args(Order)
OutputReader = Callable[[int], Image]


@dataclass(frozen=True)
class Face:
    """One restored face with its pictures and scores.

    Attributes
    ----------
    name : str
    source : uint8 [in_size, in_size, 3]
        The network's input.
    output, truth : uint8 [out_size, out_size, 3]
    row : mapping
        Its scores, a row of 04_infer.
    role : str
        Why it is shown, such as ``"best"``; may be empty.
    """

    name: str
    source: Image
    output: Image
    truth: Image
    row: Mapping[str, Any] = field(default_factory=dict)
    role: str = ""


def rank(rows: Sequence[Mapping[str, Any]], order: Order, count: int, key: str = "psnr") -> list[int]:
    """Return positions of the ``count`` best, most typical or worst rows by ``key`` (higher is better).

    Parameters
    ----------
    rows : sequence of mapping
        Rows of 04_infer.
    order : {"best", "median", "worst"}
        ``"best"`` begins with the highest score, ``"worst"`` with the lowest, ``"median"`` with the middle
        one (of an even number, the lower) and goes on to its neighbours. Equal scores stay in the order of
        ``rows``.
    count : int
        At most this many; fewer if there are fewer rows.
    key : str
        Name of the score.

    Raises
    ------
    ValueError
        If ``order`` or ``key`` is unknown.
    """
    if order not in ORDERS:
        raise ValueError(choice_error("order", order, ORDERS))
    if rows and key not in rows[0]:
        raise ValueError(choice_error("score", key, list(rows[0])))
    rising = sorted(range(len(rows)), key=lambda index: rows[index][key])
    if order == "best":
        rising = sorted(range(len(rows)), key=lambda index: -rows[index][key])
    elif order == "median":
        middle = (len(rows) - 1) // 2
        rising = [rising[place] for place in sorted(range(len(rows)), key=lambda i: abs(i - middle))]
    return rising[:count]


def best_median_worst(rows: Sequence[Mapping[str, Any]], key: str = "psnr") -> dict[int, str]:
    """Return the positions of the best, the middle and the worst row with their role; no row twice.

    With fewer than three rows, the later roles are left out.
    """
    chosen: dict[int, str] = {}
    orders: tuple[Order, ...] = ("best", "worst", "median")
    for order in orders:
        free = [index for index in rank(rows, order, len(rows), key) if index not in chosen]
        chosen |= dict.fromkeys(free[:1], order)
    return dict(sorted(chosen.items(), key=lambda item: ORDERS.index(item[1])))


def output_reader(
    pack: Pack, images: str | Path | None, artefact: str | Path, device: str = "cpu"
) -> OutputReader:
    """Return a function that gives the restored image of a pack's face by position.

    Parameters
    ----------
    pack : Pack
    images : path or None
        Folder with ``<name>.png`` as 04_infer saves them, or None if it saved none. Then the faces that
        are asked for are computed anew; the artefact is opened when the first one is.
    artefact : path
        The artefact that made the images.
    device : {"cpu", "cuda"}
    """
    if images is not None:
        return lambda index: read_image(Path(images) / f"{pack.names[index]}.png")
    opened: list[Any] = []

    def compute(index: int) -> Image:
        if not opened:
            opened.append(open_runtime(artefact, device=device))
        return from_tensor(opened[0](to_tensor(pack.inputs(index))))[0]

    return compute


def open_faces(
    pack: Pack,
    rows: Sequence[Mapping[str, Any]],
    indices: Sequence[int] | Mapping[int, str],
    read_output: OutputReader,
) -> list[Face]:
    """Return the faces at ``indices`` with pictures and scores, in that order.

    Parameters
    ----------
    pack : Pack
    rows : sequence of mapping
        Rows of 04_infer over this pack, in its order.
    indices : sequence of int, or mapping of int to role
    read_output : callable
        As :func:`output_reader` returns.

    Raises
    ------
    ValueError
        If rows and pack are not about the same faces.
    """
    if [row["name"] for row in rows] != pack.names:
        raise ValueError(f"{pack.folder}: the scores were not made from this pack: names or order differ")
    roles = indices if isinstance(indices, Mapping) else dict.fromkeys(indices, "")
    return [
        Face(pack.names[i], pack.inputs(i), read_output(i), pack.truths(i), rows[i], role)
        for i, role in roles.items()
    ]


# ----------------------------------------------------------------------
# Score network outputs that lie in npz files: ``python -m gpenlib.errors.from_npz FOLDER PACK_FOLDER``.
#
# The figures are those that 04_infer gives for the same outputs, because the same function computes them.


def evaluate_npz(
    folder: str | Path, pack: Pack, named: bool = True, chroma: DataChroma | None = None
) -> list[Row]:
    """Score outputs that :func:`gpenlib.infer.npz_outputs.write_outputs_npz` wrote.

    Parameters
    ----------
    folder : path
    pack : Pack
        The pack whose inputs were restored, with truths.
    named : bool
        False for files of the vendor's own tool, which hold no names: taken in the order of their file
        names, and only their number is checked.
    chroma : DataChroma, optional
        Of the chroma baseline; found by :func:`gpenlib.infer.chroma.data_chroma` if not given.

    Returns
    -------
    list of dict
        One row per image in pack order: ``name`` and the figures of :func:`gpenlib.infer.scoring.score`.

    Raises
    ------
    DataError
        If an output is missing, of another face, or not finite float32 of the truth's size. The
        message names the file.
    """
    paths = output_paths(folder, pack, named)
    chromas = (chroma or data_chroma(pack)).per_face
    jobs = (
        partial(_score_file, pack, index, path, named, chromas[index]) for index, path in enumerate(paths)
    )
    return list(progress(in_parallel(jobs), total=len(pack), desc="score npz", unit="image"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the means, write the rows as JSON and CSV; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib.errors.from_npz", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of npz outputs")
    parser.add_argument("pack", type=Path, help="folder of the pack, such as outputs/demo/02_data/evaluation")
    parser.add_argument("--unnamed", action="store_true", help="files of the vendor's tool: no names inside")
    parser.add_argument("--out", type=Path, help="where rows.json and rows.csv go (default: beside FOLDER)")
    given = parser.parse_args(arguments)
    try:
        pack = read_pack(given.pack)
        chroma = data_chroma(pack)
        rows = evaluate_npz(given.folder, pack, not given.unnamed, chroma)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    means = summarise(rows)
    print(_table(means, len(rows)))
    print(f"chroma baseline: {chroma.source}")
    out = given.out or given.folder.parent
    results = {"images": len(rows), "chroma_baseline": chroma.source, **means, "rows": rows}
    for path in (write_json(out / "rows.json", results), write_csv(out / "rows.csv", rows)):
        print(f"wrote {path}")
    return 0


def _score_file(pack: Pack, index: int, path: Path, named: bool, chroma: Chroma) -> Row:
    """Return the row of one file."""
    name, truth = pack.names[index], pack.truths(index)
    output = read_output_npz(path, name if named else None, truth.shape[0])
    return {"name": name, **score(pack.inputs(index), truth, output, chroma)}


def _table(means: dict[str, float], count: int) -> str:
    """Return the mean scores of the outputs and of the baselines, one line each."""
    lines = [f"{f'mean of {count}':<16}" + "".join(f"{name:>14}" for name in SCORES)]
    for label, suffix in (("output", ""), *((name, f"_{name}") for name in BASELINES)):
        values = [means[f"{name}{suffix}_mean"] for name in SCORES]
        lines.append(f"{label:<16}" + "".join(f"{value:>14.4f}" for value in values))
    for label in ("truncated", "float"):
        values = [means[f"{name}_{label}_mean"] for name in ("psnr", "ssim")]
        lines.append(f"{label:<16}" + "".join(f"{value:>14.4f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
