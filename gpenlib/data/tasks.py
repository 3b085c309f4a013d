"""Tasks: how a truth image becomes the network's input.

``color`` takes the colours away, ``restore`` and ``restore-mild`` degrade blindly, ``inpaint`` hides parts.
Further tasks are added with :func:`register_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from gpenlib.data.degradations import PAPER, RELEASED
from gpenlib.data.masks import StrokesAndBoxes
from gpenlib.images import Image, check_image, resize, to_grey
from gpenlib.run import choice_error

Degrade = Callable[[Image, np.random.Generator], Image]
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes
    ----------
    degrade : callable
        (truth uint8 RGB [S, S, 3], generator) -> degraded uint8 RGB [H, W, 3]. It must not write into the
        truth, and takes everything random from the generator.
    given : str
        What the network gets, in words for tables: the answer of doing nothing.
    seeded : bool
        Whether ``degrade`` draws anything; if not, the seed changes nothing.
    """

    degrade: Degrade
    given: str
    seeded: bool = True

    @property
    def recipe(self) -> str:
        """What decides the degradation beside the seed: the function, or the object with its ranges."""
        name = getattr(self.degrade, "__qualname__", None) or repr(self.degrade)
        return f"{self.degrade.__module__}.{name}"


def _grey(truth: Image, rng: np.random.Generator) -> Image:
    return to_grey(truth)


_TASKS: dict[str, Task] = {
    "color": Task(_grey, "grey input", seeded=False),
    "restore": Task(PAPER, "degraded input"),
    "restore-mild": Task(RELEASED, "degraded input"),
    "inpaint": Task(StrokesAndBoxes(), "masked input"),
}
TASKS: Mapping[str, Task] = MappingProxyType(_TASKS)


def register_task(name: str, degrade: Degrade, given: str = "degraded input", seeded: bool = True) -> Task:
    """Add a task under a name, which then serves everywhere a task is named: packs, settings, training.

    This is also the way to other ranges, and to tasks whose input is no face: segmentation to face needs a
    function that finds the label map of a truth. A registration lasts as long as the process; a notebook
    registers in its first cell.

    Parameters
    ----------
    name, degrade, given, seeded
        See :class:`Task`.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        If the name is empty or taken by another task (the same one again does no harm).

    Examples
    --------
    >>> from dataclasses import replace
    >>> from gpenlib.data.degradations import PAPER
    >>> task = register_task("restore-noisy", replace(PAPER, noise=(20.0, 40.0)), "noisy input")

    A label map instead of a face, from any parser of faces ``parse`` (not part of this package):

    >>> def segmentation(truth, rng):
    ...     labels = parse(truth)  # int [S, S]
    ...     return PALETTE[labels]  # uint8 [S, S, 3], one colour per part of the face
    >>> task = register_task("seg-to-face", segmentation, "label map", seeded=False)
    """
    task = Task(degrade, given, seeded)
    if not name or _TASKS.get(name, task) != task:
        taken = ", ".join(_TASKS)
        raise ValueError(f"task={name!r}: give a new task a name of its own; taken are {taken}")
    _TASKS[name] = task
    return task


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises
    ------
    ValueError
        If there is none, with the names that there are and the nearest one.
    """
    if name not in _TASKS:
        raise ValueError(choice_error("task", name, tuple(_TASKS)))
    return _TASKS[name]


def baseline_name(task: str) -> str:
    """Return the name of the input as an answer in tables, such as ``grey input (do nothing)``."""
    return f"{find_task(task).given} (do nothing)"


def _known(name: str) -> str:
    """Check a task's name in settings, whose errors name the key themselves."""
    if name not in _TASKS:
        raise ValueError(choice_error("task", name, tuple(_TASKS)).partition(": ")[2])
    return name


TaskName = Annotated[str, AfterValidator(_known)]  # type of a task in pydantic settings


def make_pair(
    image: Image, task: str, in_size: int, out_size: int | None = None, seed: Seed = 0
) -> tuple[Image, Image]:
    """Return (input, truth) for one image.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    task : str
        A name in :data:`TASKS`:

        ``"color"``: OpenCV grey in three equal channels, as the vendor's card says.

        ``"restore"``: blind degradation with the ranges of the paper,
        :data:`gpenlib.data.degradations.PAPER`.

        ``"restore-mild"``: the same with the ranges of the released training code,
        :data:`gpenlib.data.degradations.RELEASED`.

        ``"inpaint"``: white strokes and boxes, :class:`gpenlib.data.masks.StrokesAndBoxes`.
    in_size, out_size : int
        Sides in pixels; ``out_size`` defaults to ``in_size``. Resizing is bilinear. The truth is degraded in
        its own size and then resized.
    seed : int or sequence of int
        Decides what the degradation draws, and nothing else does: equal pictures with equal seeds give equal
        inputs, in any order and in any process. At least 0.

    Returns
    -------
    (uint8 [in_size, in_size, 3], uint8 [out_size, out_size, 3])

    Raises
    ------
    ValueError
        If the task is unknown or the seed negative.
    ImageError
        If a registered task returns something else than an image.
    """
    how = find_task(task)
    truth = resize(image, out_size or in_size)
    shown = truth.view()
    shown.setflags(write=False)
    given = how.degrade(shown, np.random.default_rng(seed))
    check_image(given, f"input of task {task!r}")
    return resize(given, in_size), truth
