"""Colour statistics of data sets, and what the scores make of wrong answers: rows for tables and figures.

Not imported by ``gpenlib.data`` itself, because scikit-image's colour conversions are slow to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from skimage.color import rgb2lab

from gpenlib.data.packs import Pack
from gpenlib.data.tasks import TASKS, make_pair
from gpenlib.images import Image, check_image, resize, to_grey
from gpenlib.metrics import colour_shift, colourfulness, psnr, ssim
from gpenlib.progress import progress

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
