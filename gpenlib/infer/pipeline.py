"""Stream a pack of faces through a runtime: pixels in, scored rows and image files out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack
from gpenlib.images import FloatArray, from_tensor, to_tensor, write_image
from gpenlib.infer.chroma import Chroma, DataChroma, data_chroma
from gpenlib.infer.npz_outputs import write_output_npz
from gpenlib.infer.runtime import Runtime
from gpenlib.infer.scoring import in_parallel, score
from gpenlib.progress import progress

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
    name = pack.paths[index].stem
    row = score(pack.inputs(index), pack.truths(index), output, chromas[index])
    if save_to is not None:
        write_image(save_to / f"{name}.png", from_tensor(output[None])[0])
    if npz_to is not None:
        write_output_npz(npz_to, index, name, output)
    return {"name": name, **row, "ms": milliseconds}
