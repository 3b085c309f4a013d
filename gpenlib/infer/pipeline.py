"""Stream a pack of faces through a runtime: pixels in, scored rows and image files out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack
from gpenlib.images import Image, from_tensor, resize, to_tensor, write_image
from gpenlib.infer.runtime import Runtime
from gpenlib.metrics import colour_shift, colourfulness, finite_psnr, ssim
from gpenlib.progress import progress

MEANS = (
    "psnr", "ssim", "psnr_truncated", "ssim_truncated", "psnr_input", "ssim_input", "colour_shift",
    "colourfulness", "colourfulness_truth",
)  # fmt: skip


def restore_pack(
    runtime: Runtime, pack: Pack, batch_size: int = 1, save_to: Path | None = None
) -> list[dict[str, Any]]:
    """Restore every image of a pack and score it against its truth.

    Parameters
    ----------
    runtime : Runtime
    pack : Pack
        Inputs uint8 [in_size, in_size, 3], truths uint8 [out_size, out_size, 3].
    batch_size : int
        Images per call; the last batch may be smaller.
    save_to : Path, optional
        Folder for the outputs as PNG.

    Returns
    -------
    list of dict
        One row per image in pack order: ``name``, the figures of :func:`score`, ``ms`` (its share of
        its batch's time, without reading and scoring).

    Raises
    ------
    ValueError
        If ``batch_size`` is below 1 or the network's output is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    for size in sorted({min(batch_size, len(pack)), len(pack) % batch_size or batch_size}):
        runtime(to_tensor([pack.inputs(0)] * size))  # first calls compile; they are not timed
    rows = []
    bar = progress(total=len(pack), desc=f"infer {runtime.dtype}", unit="image")
    for indices in _batches(len(pack), batch_size):
        inputs = [pack.inputs(i) for i in indices]
        batch = to_tensor(inputs)
        started = time.perf_counter()
        output = runtime(batch)
        milliseconds = (time.perf_counter() - started) * 1000 / len(indices)
        rounded, truncated = from_tensor(output), from_tensor(output, "truncate")
        for place, index in enumerate(indices):
            name = pack.names[index]
            row = score(inputs[place], pack.truths(index), rounded[place], truncated[place])
            rows.append({"name": name, **row, "ms": milliseconds})
            if save_to is not None:
                write_image(save_to / f"{name}.png", rounded[place])
        bar.update(len(indices))
    bar.close()
    return rows


def score(source: Image, truth: Image, output: Image, truncated: Image) -> dict[str, float]:
    """Return the figures of one image; all arguments are uint8 [S, S, 3].

    ``psnr``/``ssim`` judge the rounded output, ``*_truncated`` the vendor's uint8 convention, and ``*_input``
    the network's input as if it were the answer: the do-nothing baseline. PSNR of equal images is given
    as 100 dB, so that means stay finite.
    """
    baseline = resize(source, truth.shape[0])
    return {
        "psnr": finite_psnr(output, truth),
        "ssim": ssim(output, truth),
        "psnr_truncated": finite_psnr(truncated, truth),
        "ssim_truncated": ssim(truncated, truth),
        "psnr_input": finite_psnr(baseline, truth),
        "ssim_input": ssim(baseline, truth),
        "colour_shift": colour_shift(output, truth),
        "colourfulness": colourfulness(output),
        "colourfulness_truth": colourfulness(truth),
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return ``<figure>_mean`` over all rows and the median ``ms_per_image``."""
    means = {f"{name}_mean": statistics.fmean(row[name] for row in rows) for name in MEANS}
    return {**means, "ms_per_image": statistics.median(row["ms"] for row in rows)}


def _batches(count: int, size: int) -> Iterator[range]:
    """Yield index ranges of at most ``size``."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
