"""Choose faces to look at, and get their pictures: input, restored output, truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gpenlib.data.packs import Pack
from gpenlib.images import Image, from_tensor, read_image, to_tensor
from gpenlib.infer.runtime import open_runtime
from gpenlib.run import choice_error

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
