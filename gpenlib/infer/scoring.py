"""Restore faces and score them against their truth, or score outputs in npz files as ``vamp`` writes them."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from gpenlib import metrics
from gpenlib.data.faces import DataError, Faces, few
from gpenlib.data.pairs import DATALIST, Pack, Pairs, read_npz, read_pack
from gpenlib.files import choice_error, read_json, require, write_atomically, write_csv, write_json
from gpenlib.images import (
    FloatArray,
    Image,
    from_levels,
    from_tensor,
    read_image,
    resize,
    scale_chroma,
    to_grey,
    to_levels,
    to_tensor,
    write_image,
)
from gpenlib.infer.artefact import MANIFEST_FILE
from gpenlib.infer.runtime import Runtime, open_runtime
from gpenlib.jobs import Journal, ahead, processors, progress
from gpenlib.metrics import LabArray, finite_psnr, mean_colour, ssims, to_lab

Chroma = tuple[float, float]  # CIELAB a and b
Row = dict[str, Any]
GREY = 1.0  # mean chroma below this is no colour: a grey picture, up to rounding


# Whether there is something to score against.

PHOTO_NOTEBOOK = "07_photos.ipynb"  # enhances pictures of which nobody has the truth


def fit_to_score(faces: Faces, task: str) -> list[str]:
    """Refuse grey truths of ``color``; return in words how many pictures are not square, if any are."""

    def examine(index: int) -> tuple[bool, bool]:
        face = faces.read(index)
        both = [face, faces.inputs.read(index)] if faces.inputs else [face]
        return any(image.shape[0] != image.shape[1] for image in both), metrics.is_grey(face)

    count = len(faces)
    oblong, grey = zip(*ahead(range(count), examine, workers=workers()), strict=True)
    if task == "color" and any(grey):
        named = few([name for name, is_grey in zip(faces.names, grey, strict=True) if is_grey])
        which = f"all {count}" if all(grey) else f"{sum(grey)} of the {count}"
        todo = "" if all(grey) else "remove them from the folder, or "
        raise DataError(
            f"{faces.label}: {which} evaluation pictures are grey ({named}), so that no truth is there to "
            f"score task 'color' against; {todo}enhance such photographs with notebooks/{PHOTO_NOTEBOOK} "
            "(parameter photos)"
        )
    cropped = (
        f"aligned faces are square: {sum(oblong)} of {count} pictures were cropped to their middle; "
        f"for whole photographs use {PHOTO_NOTEBOOK}"
    )
    return [cropped] if any(oblong) else []


# What can be had without a network: the input as the answer, and the grey input under one even colour, the
# mean of other faces. None of it depends on a dtype, so that it is scored once for all of them.


@dataclass(frozen=True)
class Baselines:
    """Figures of the baselines and of the truth itself, a row (:data:`BASELINE_MEANS`) per face in order."""

    source: str  # where the even colour comes from, in words
    rows: tuple[Row, ...]


def score_baselines(
    pairs: Pairs | Pack,
    calibration: Pairs | Pack | None = None,
    finished: Journal | None = None,
    colour: tuple[str, Sequence[Chroma]] | None = None,
) -> Baselines:
    """Score the baselines on every face; those that a journal names are not done again.

    ``colour`` is what :func:`data_chroma` said of a larger set, for these faces.
    """
    source, chromas = colour or data_chroma(pairs, calibration)
    names, done = pairs.names, finished.finished if finished is not None else {}

    def row_of(index: int) -> tuple[str, Row]:
        row = _score_baselines(pairs.inputs(index), pairs.truths(index), chromas[index])
        return names[index], row if finished is None else finished.add(names[index], row, [])

    left = (index for index, name in enumerate(names) if name not in done)
    bar = {"total": len(pairs), "initial": len(done), "desc": "baselines", "unit": "image", "leave": False}
    rows = done | dict(progress(ahead(left, row_of, workers=workers()), **bar))
    return Baselines(source, tuple(rows[name] for name in names))


def data_chroma(
    pairs: Pairs | Pack, calibration: Pairs | Pack | None = None
) -> tuple[str, tuple[Chroma, ...]]:
    """Return where the even colour comes from, and that of every face, never drawn from the face itself.

    It is the mean CIELAB a and b of the calibration truths or, if there are none or grey ones, of all other
    faces.
    """
    if calibration is not None and len(calibration):
        a, b = _mean_chromas(calibration).mean(axis=0)
        if np.hypot(a, b) >= GREY:
            source = f"mean of {len(calibration)} calibration truths"
            return source, ((float(a), float(b)),) * len(pairs)
    means = _mean_chromas(pairs)
    others = (means.sum(axis=0) - means) / max(1, len(means) - 1)  # of a face alone: no colour
    return "mean of the other faces' truths", tuple((float(a), float(b)) for a, b in others)


def _mean_chromas(pairs: Pairs | Pack) -> NDArray[np.float64]:
    """Return the mean (a, b) of every truth, float64 [N, 2]."""
    means = ahead(range(len(pairs)), lambda i: mean_colour(to_lab(pairs.truths(i)))[1:], workers=workers())
    return np.array(list(progress(means, total=len(pairs), desc="mean chroma", unit="image", leave=False)))


def coloured_with(image: Image, chroma: Chroma) -> Image:
    """Return the grey of an image, uint8 [H, W, 3], under one even chroma, clipped to what sRGB can show."""
    return _coloured_levels(chroma)[to_grey(image)[:, :, 0]]


@lru_cache(maxsize=16)
def _coloured_levels(chroma: Chroma) -> Image:
    """Return what every grey level becomes in one chroma, uint8 [256, 3]."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]  # [1, 256, 3]
    lab = rgb2lab(levels)
    lab[..., 1], lab[..., 2] = chroma
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image warns where it clips, which is expected here
        return np.rint(255 * np.clip(lab2rgb(lab), 0, 1)[0]).astype(np.uint8)


# One restored face against its truth; many faces on all processors.

SCORES = ("psnr", "ssim", "delta_e2000", "chroma_error", "colour_shift")
BASELINES = ("input", "chroma_baseline")  # the input as the answer (doing nothing), and evenly coloured
BASELINE_MEANS = (
    *(f"{score}_{baseline}" for baseline in BASELINES for score in SCORES),
    "colourfulness_truth", "sharpness_input", "sharpness_truth", "detail_input",
)  # fmt: skip
# PSNR in dB. "truncated": uint8 as the vendor makes it; "lightness" and "lab_*": mean CIELAB colour
OUTPUT_MEANS = (
    *SCORES, "psnr_truncated", "ssim_truncated", "colourfulness", "sharpness", "detail", "lightness", "lab_a",
    "lab_b",
)  # fmt: skip
MEANS = (*OUTPUT_MEANS, *BASELINE_MEANS)


def score(levels: FloatArray, truth: Image) -> Row:
    """Return :data:`OUTPUT_MEANS` of an answer in grey levels, float32 [S, S, 3] (``to_levels``)."""
    rounded, truncated = from_levels(levels), from_levels(levels, "truncate")
    ssim, ssim_truncated = ssims([rounded, truncated], truth)
    row, colour = _scores(rounded, truth, ssim, to_lab(truth))
    return row | {
        "psnr_truncated": finite_psnr(truncated, truth),
        "ssim_truncated": ssim_truncated,
        "colourfulness": metrics.colourfulness(rounded),
        "sharpness": metrics.sharpness(rounded),
        "detail": metrics.detail(rounded, truth),
        **dict(zip(("lightness", "lab_a", "lab_b"), map(float, colour), strict=True)),
    }


def _score_baselines(source: Image, truth: Image, chroma: Chroma) -> Row:
    """Return :data:`BASELINE_MEANS` of a face."""
    shown = resize(source, (truth.shape[1], truth.shape[0]))
    answers, truth_lab = [shown, coloured_with(shown, chroma)], to_lab(truth)
    row: Row = {}
    for name, answer, ssim in zip(BASELINES, answers, ssims(answers, truth), strict=True):
        scores, _ = _scores(answer, truth, ssim, truth_lab)
        row |= {f"{score}_{name}": value for score, value in scores.items()}
    return row | {
        "colourfulness_truth": metrics.colourfulness(truth),
        "sharpness_input": metrics.sharpness(shown),
        "sharpness_truth": metrics.sharpness(truth),
        "detail_input": metrics.detail(shown, truth),
    }


def _scores(answer: Image, truth: Image, ssim: float, truth_lab: LabArray) -> tuple[Row, NDArray[np.float64]]:
    """Return :data:`SCORES` of an answer, and its mean CIELAB colour."""
    lab = to_lab(answer)
    colour = mean_colour(lab)
    return {
        "psnr": finite_psnr(answer, truth),
        "ssim": ssim,
        "delta_e2000": metrics.delta_e2000(lab, truth_lab),
        "chroma_error": metrics.chroma_error(lab, truth_lab),
        "colour_shift": float(np.linalg.norm(colour - mean_colour(truth_lab))),
    }, colour


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """Return ``<figure>_mean`` over all rows, and the median ``ms_per_image`` if they hold times."""
    means = {f"{name}_mean": statistics.fmean(row[name] for row in rows) for name in MEANS}
    if all("ms" in row for row in rows):
        means["ms_per_image"] = statistics.median(row["ms"] for row in rows)
    return means


def workers() -> int:
    """Return how many threads score: one per processor, at most 8."""
    return min(8, processors())


# Network outputs as npz files: one per image in the order of the faces, ``000003_<name>.npz``, with
#     output_0   float32 [3, S, S], RGB in [-1, 1] as the network gave it
#     name       the face's name, so that files in another order are noticed

OUTPUT_KEY, NAME_KEY, OUTPUT_FILE = "output_0", "name", "{:06d}_{}.npz"


def write_output_npz(folder: str | Path, index: int, name: str, output: FloatArray) -> Path:
    """Write the output of image ``index``, finite float32 [3, S, S]; DataError if it is something else."""
    path = Path(folder) / OUTPUT_FILE.format(index, name)
    _check(path, output)
    arrays: dict[str, Any] = {OUTPUT_KEY: output, NAME_KEY: np.array(name)}
    with write_atomically(path) as temporary:
        np.savez(temporary, **arrays)  # noise-like mantissas: compressing takes long and gains little
    return path


def output_paths(folder: str | Path, pairs: Pairs | Pack, named: bool = True) -> list[Path]:
    """Return the file of every image, in order; with ``named=False`` the vendor's, which are only sorted."""
    folder = Path(folder)
    present = sorted(folder.glob("*.npz"))
    if not present:
        raise DataError(f"{folder}: no npz file (04_infer writes them with save_npz=True)")
    if not named:
        if len(present) != len(pairs):
            raise DataError(f"{folder}: {len(present)} npz files for {len(pairs)} images")
        return present
    expected = [folder / OUTPUT_FILE.format(index, name) for index, name in enumerate(pairs.names)]
    for index, path in enumerate(expected):
        if not path.is_file():
            others = [p.name for p in present if p.name[7:] == path.name[7:] or p.name[:7] == path.name[:7]]
            hint = f"; in its place: {', '.join(others)} (another order?)" if others else ""
            raise DataError(f"{path}: the output of image {index} is missing{hint}")
    if surplus := sorted(set(present) - set(expected)):
        raise DataError(f"{surplus[0]}: belongs to no image of these ({len(surplus)} such files)")
    return expected


def read_output_npz(path: Path, name: str | None, side: int) -> FloatArray:
    """Read a face's output, float32 [3, side, side]; its ``name`` must agree (None: files carry none)."""
    keys = [OUTPUT_KEY] if name is None else [OUTPUT_KEY, NAME_KEY]
    arrays = read_npz(path, *keys)
    output, stored = arrays[OUTPUT_KEY], None if name is None else str(arrays[NAME_KEY])
    if stored != name:
        held = f"the output of {stored!r:.99}, expected that of {name!r}"
        raise DataError(f"{path}: holds {held} (another order?)")
    output = output[0] if output.ndim == 4 and output.shape[0] == 1 else output
    _check(path, output, side)
    return np.asarray(output)


def _check(path: Path, output: np.ndarray, side: int | None = None) -> None:
    """Raise DataError unless ``output`` is finite float32 [3, S, S] (of ``side``, if given)."""
    square = output.ndim == 3 and output.shape[0] == 3 and output.shape[1] == output.shape[2]
    if output.dtype != np.float32 or not square or (side is not None and output.shape[1] != side):
        held, size = f"{output.dtype} {output.shape}", "S" if side is None else side
        raise DataError(f"{path}: {OUTPUT_KEY} is {held}, expected float32 [3, {size}, {size}]")
    if not np.isfinite(output).all():
        raise DataError(f"{path}: {OUTPUT_KEY} holds NaN or infinity")


@dataclass
class _Batch:
    """Some images on their way through the steps of :func:`restore_pairs`."""

    indices: Sequence[int]
    truths: list[Image]
    outputs: FloatArray  # [N, 3, S, S]; until it has run, the network's input
    ms: float = 0.0  # per image


def restore_pairs(
    runtime: Runtime,
    pairs: Pairs | Pack,
    batch_size: int = 1,
    images: Path | None = None,
    npz: Path | None = None,
    baselines: Baselines | None = None,
    finished: Journal | None = None,
    first: int = 0,
    called: set[int] | None = None,
) -> list[Row]:
    """Restore and score every image: its figures and ``ms``, its share of the batch's time; keep outputs.

    Reading, running, and scoring with writing overlap, a few images ahead of one another. With a journal
    every image is noted when its files are written, and those that were noted earlier are not done again.
    Of a larger set these are the images from ``first`` on; ``called`` are sizes of batches that ran before.
    """
    runtime.check_batch(batch_size, len(pairs))
    names, known = pairs.names, (baselines or score_baselines(pairs)).rows
    done = finished.finished if finished is not None else {}
    starts = range(0, len(pairs), batch_size)  # of the same batches, whatever is done: they decide last bits
    batches = [range(start, min(start + batch_size, len(pairs))) for start in starts]
    batches = [indices for indices in batches if any(names[index] not in done for index in indices)]

    def read(indices: range) -> _Batch:
        inputs = to_tensor([pairs.inputs(index) for index in indices])
        return _Batch(indices, [pairs.truths(index) for index in indices], inputs)

    def run(batch: _Batch) -> _Batch:
        started = time.perf_counter()
        batch.outputs = runtime(batch.outputs)
        batch.ms = (time.perf_counter() - started) * 1000 / len(batch.indices)
        return batch

    def finish(item: tuple[_Batch, int]) -> tuple[str, Row]:
        batch, place = item
        index, output, files = batch.indices[place], batch.outputs[place], []
        name = names[index]
        levels = to_levels(output[None])[0]
        row: Row = {"name": name, **score(levels, batch.truths[place]), **known[index], "ms": batch.ms}
        if images is not None:
            files.append(write_image(images / f"{name}.png", from_levels(levels)))
        if npz is not None:
            files.append(write_output_npz(npz, first + index, name, output))
        return name, row if finished is None else finished.add(name, row, files)

    called = set() if called is None else called
    for size in {len(indices) for indices in batches} - called:
        runtime(to_tensor([pairs.inputs(0)] * size))  # first calls compile; they are not timed
        called.add(size)
    ran = ahead(ahead(batches, read), run)
    left = ((b, place) for b in ran for place, index in enumerate(b.indices) if names[index] not in done)
    bar = {"total": len(pairs), "initial": len(done), "desc": f"infer {runtime.dtype}", "unit": "image"}
    rows = done | dict(progress(ahead(left, finish, workers=workers()), **bar))
    return [rows[name] for name in names]


# Faces to look at, with their pictures: input, restored output, truth.

Order = Literal["best", "median", "worst"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Face:
    """One restored face with its pictures, uint8 [H, W, 3], and scores."""

    name: str
    source: Image  # the network's input
    output: Image
    truth: Image
    row: Mapping[str, Any] = field(default_factory=dict)  # a row of 04_infer
    role: str = ""  # why it is shown, such as "best"


def rank(rows: Sequence[Mapping[str, Any]], order: Order, count: int, key: str = "psnr") -> list[int]:
    """Return positions of ``count`` best, most typical or worst rows (higher is better), equals in order."""
    if order not in ORDERS:
        raise ValueError(choice_error("order", order, ORDERS))
    if rows and key not in rows[0]:
        raise ValueError(choice_error("score", key, list(rows[0])))
    ranked = sorted(range(len(rows)), key=lambda index: rows[index][key], reverse=order == "best")
    if order == "median":  # from the middle one outwards
        middle = (len(rows) - 1) // 2
        ranked = [ranked[place] for place in sorted(range(len(rows)), key=lambda i: abs(i - middle))]
    return ranked[:count]


def best_median_worst(rows: Sequence[Mapping[str, Any]], key: str = "psnr") -> dict[int, str]:
    """Return the positions of the best, middle and worst row with their role; no row twice."""
    chosen: dict[int, Order] = {}
    for order in ("best", "worst", "median"):
        free = [index for index in rank(rows, order, len(rows), key) if index not in chosen]
        chosen |= dict.fromkeys(free[:1], order)
    return dict(sorted(chosen.items(), key=lambda item: ORDERS.index(item[1])))


def extremes(rows: Sequence[Mapping[str, Any]], leading: int = 0, most: int = 4) -> list[list[int]]:
    """Return positions of the best and of the worst rows, as many of each, none twice.

    The leading rows are left out where two others are there.
    """
    first = leading if len(rows) - leading > 1 else 0
    count = min(most, (len(rows) - first) // 2)
    best, worst = (rank(rows[first:], order, count) for order in (ORDERS[0], ORDERS[-1]))
    return [[first + index for index in end] for end in (best or range(len(rows)), worst)]


def output_reader(
    pairs: Pairs | Pack,
    images: str | Path | None,
    artefact: str | Path,
    device: str = "cpu",
    chroma: float = 1.0,
) -> Callable[[int], Image]:
    """Return a reader of restored images by position: from ``images``, or, if None, computed anew."""
    if images is not None:
        return lambda index: read_image(Path(images) / f"{pairs.names[index]}.png")
    runtime = lru_cache(partial(open_runtime, artefact, device=device, chroma=chroma))
    return lambda index: from_tensor(runtime()(to_tensor(pairs.inputs(index))))[0]


def in_pytorch(network: torch.nn.Module, source: Image, chroma: float = 1.0) -> Image:
    """Return what a network makes of one input in PyTorch, without an artefact."""
    with torch.inference_mode():
        output = network(torch.from_numpy(to_tensor(source))).float().numpy()
    return from_tensor(scale_chroma(output, chroma))[0]


CHROMA_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def chroma_trade(pairs: Pairs | Pack, indices: Sequence[int], read: Callable[[int], Image]) -> list[Row]:
    """Return mean PSNR and colourfulness (1: the truths') by factor on the chroma of restored images."""
    restored = [(to_tensor(read(index)), pairs.truths(index)) for index in indices]
    truths = statistics.fmean(metrics.colourfulness(truth) for _, truth in restored)
    rows: list[Row] = []
    for factor in CHROMA_FACTORS:
        images = [(from_tensor(scale_chroma(tensor, factor))[0], truth) for tensor, truth in restored]
        colour = statistics.fmean(metrics.colourfulness(image) for image, _ in images)
        psnr = statistics.fmean(finite_psnr(image, truth) for image, truth in images)
        rows.append({"factor": factor, "psnr": psnr, "colourfulness": colour / truths})
    return rows


def open_faces(
    pairs: Pairs | Pack,
    rows: Sequence[Mapping[str, Any]],
    indices: Sequence[int] | Mapping[int, str],
    read_output: Callable[[int], Image],
) -> list[Face]:
    """Return the faces at ``indices`` (and roles, if a mapping) with pictures, and scores of 04_infer."""
    names = pairs.names
    if [row["name"] for row in rows] != [*names]:
        raise ValueError("the scores were not made from these faces: names or order differ; score them anew")
    roles = indices if isinstance(indices, Mapping) else dict.fromkeys(indices, "")
    return [
        Face(names[i], pairs.inputs(i), read_output(i), pairs.truths(i), rows[i], role)
        for i, role in roles.items()
    ]


def evaluate_npz(
    folder: str | Path, pairs: Pairs | Pack, named: bool = True, baselines: Baselines | None = None
) -> list[Row]:
    """Score outputs that lie in npz files (:func:`output_paths`); rows as those of :func:`restore_pairs`."""
    paths, names = output_paths(folder, pairs, named), pairs.names
    known = (baselines or score_baselines(pairs)).rows

    def row_of(index: int) -> Row:
        truth = pairs.truths(index)
        output = read_output_npz(paths[index], names[index] if named else None, truth.shape[0])
        return {"name": names[index], **score(to_levels(output[None])[0], truth), **known[index]}

    rows = ahead(range(len(pairs)), row_of, workers=workers())
    return list(progress(rows, total=len(pairs), desc="score npz", unit="image"))


PROMISED = {  # to other programs that read results.json
    "images", "dtype", "backend", "psnr_mean", "ssim_mean", "psnr_input_mean", "ssim_input_mean",
    "ms_per_image", "rows",
}  # fmt: skip


def check_results(results: Row, folder: Path, images: int, saved: bool) -> None:
    """Refuse results of 04 that differ from their file, or lack an image, a figure or what was promised."""
    figures = [value for row in results["rows"] for name, value in row.items() if name != "name"]
    require({
        f"results.json holds {', '.join(sorted(PROMISED))}": results.keys() >= PROMISED,
        "results.json is what the manifest says": read_json(folder / "results.json") == results,
        "there is a row per image": results["images"] == len(results["rows"]) == images,
        "scores are finite": bool(np.isfinite(np.array(figures, float)).all()),
        "there is a PNG per image": len([*folder.glob("images/*.png")]) == (images if saved else 0),
    })  # fmt: skip


def score_npz(folder: Path, pack_folder: Path, unnamed: bool, outside: bool, out: Path | None) -> int:
    """Score network outputs in npz files: print the means, write the rows as JSON and CSV.

    ``out`` is where ``rows.json`` and ``rows.csv`` go; None: beside the outputs' folder, or its stage.
    """
    import pandas as pd

    beside = pack_folder.resolve().parent / "calibration"  # as 02_data lays them out
    pack = read_pack(pack_folder, outside)
    has_calibration = (beside / DATALIST).is_file() and not beside.samefile(pack_folder)
    baselines = score_baselines(pack, read_pack(beside, outside) if has_calibration else None)
    rows = evaluate_npz(folder, pack, not unnamed, baselines)
    means = summarise(rows)
    suffixes = {"output": "", **{name: f"_{name}" for name in (*BASELINES, "truncated")}}
    cells = {row: [means.get(f"{name}{suffix}_mean") for name in SCORES] for row, suffix in suffixes.items()}
    table = pd.DataFrame.from_dict(cells, orient="index", columns=[*SCORES], dtype=float)
    print(f"mean of {len(rows)}", table.to_string(float_format="{:.4f}".format, na_rep=""), sep="\n")
    print(f"chroma baseline: {baselines.source}")
    place = out or folder.parent
    if out is None and (place / MANIFEST_FILE).is_file():  # a stage's folder takes no other files
        place = place.with_name(f"{place.name}-scores")
    results = {"images": len(rows), "chroma_baseline": baselines.source, **means, "rows": rows}
    for path in (write_json(place / "rows.json", results), write_csv(place / "rows.csv", rows)):
        print(f"wrote {path}")
    return 0
