"""Tasks: how a truth becomes the network's input by losing colour, sharpness or parts; more can be added."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from gpenlib.files import choice_error
from gpenlib.images import FloatArray, Image, centre_square, check_image, resize, to_grey

# Blind degradation, GPEN paper (Yang et al., CVPR 2021), section 4.1:
# degraded = upsample(JPEG_q(downsample_s(truth * k) + n)), k a blur kernel, s the factor, n white noise,
# q the JPEG quality.

KERNELS = ("isotropic", "anisotropic", "motion")
LEAST_SIDE = 4  # pixels that are left of a picture at least
Range = tuple[float, float]


def check_ranges(settings: object, limits: Mapping[str, Range]) -> None:
    """Raise ValueError unless each named (low, high) of ``settings`` lies in order within its limits."""
    for name, (least, most) in limits.items():
        low, high = getattr(settings, name)
        if not least <= low <= high <= most:
            raise ValueError(f"{name}={(low, high)}: needed is {least:g} <= low <= high <= {most:g}")


@dataclass(frozen=True)
class BlindDegradation:
    """Ranges of the blind degradation, each drawn from uniformly and anew for each picture."""

    # Lengths and the factor are given for pictures of ``side`` pixels and scaled with the picture, so that a
    # degraded face looks the same at 128 and at 512 px; one smaller than ``side / factor`` keeps its pixels
    side: int
    blur: Range  # standard deviation of the Gaussian kernels along each axis, pixels
    motion: Range  # length of the straight path of the motion kernels, pixels
    factor: Range  # how many times smaller the recorded picture is
    noise: Range  # standard deviation, grey levels of 255; drawn for each channel of each recorded pixel
    quality: tuple[int, int]  # of the JPEG, 0 to 100, both ends included
    kernels: tuple[str, ...] = KERNELS  # all equally likely

    def __post_init__(self) -> None:
        limits = {"blur": (1e-3, math.inf), "motion": (0.0, math.inf), "factor": (0.1, math.inf)}
        check_ranges(self, limits | {"noise": (0.0, 255.0), "quality": (0, 100)})
        if self.side < 1:
            raise ValueError(f"side={self.side}: must be at least 1")
        for kind in self.kernels or ("none",):
            if kind not in KERNELS:
                raise ValueError(choice_error("kernels", kind, KERNELS))

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return a degraded copy in the same size, uint8 RGB [H, W, 3]."""
        height, width = image.shape[:2]
        scale = max(height, width) / self.side
        blurred = cv2.filter2D(image, -1, self.kernel(rng, scale), borderType=cv2.BORDER_REFLECT_101)
        factor = max(1.0, scale * rng.uniform(*self.factor))
        small = tuple(max(LEAST_SIDE, round(length / factor)) for length in (width, height))
        # Averaging over areas: without it a factor of 20 would pick single pixels of the picture
        recorded = cv2.resize(blurred, small, interpolation=cv2.INTER_AREA).astype(np.float32)
        deviation = rng.uniform(*self.noise)
        recorded += deviation * rng.standard_normal(recorded.shape, dtype=np.float32)
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        stored = compress(np.clip(np.rint(recorded), 0, 255).astype(np.uint8), quality)
        return np.asarray(cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)

    def kernel(self, rng: np.random.Generator, scale: float) -> FloatArray:
        """Draw a blur kernel for pictures ``scale`` times as large as ``side``, float32 [K, K], sum 1."""
        kind = self.kernels[int(rng.integers(len(self.kernels)))]
        angle = rng.uniform(0, math.pi)
        if kind == "motion":
            return motion_kernel(scale * rng.uniform(*self.motion), angle)
        along, across = rng.uniform(*self.blur, size=2)
        return gaussian_kernel(scale * along, scale * (along if kind == "isotropic" else across), angle)


# The ranges that the paper names for faces of 1024 pixels: noise, factor and quality. It only says that the
# kernels are Gaussian and motion blur "with varying kernel sizes": ours are those of the released code at
# this size, and motion over up to the width of its kernels.
PAPER = BlindDegradation(
    side=1024, blur=(0.2, 20.0), motion=(2.0, 80.0), factor=(10.0, 200.0), noise=(0.0, 25.0), quality=(5, 50)
)
# What the released training code uses for 512 pixels (GFPGAN's ranges, which its authors call good enough),
# where both kinds of Gaussian are equally likely and nothing moves.
RELEASED = BlindDegradation(
    side=512, blur=(0.1, 10.0), motion=(0.0, 0.0), factor=(0.8, 8.0), noise=(0.0, 20.0), quality=(60, 100),
    kernels=("isotropic", "anisotropic"),
)  # fmt: skip


def gaussian_kernel(along: float, across: float, angle: float) -> FloatArray:
    """Return a Gaussian of these deviations along the axis at ``angle`` and across: float32 [K, K], sum 1."""
    x, y = _grid(3 * max(along, across))
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    weights = np.exp(-0.5 * ((u / along) ** 2 + (v / across) ** 2))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def motion_kernel(length: float, angle: float) -> FloatArray:
    """Return the blur of a straight, even motion: a line one pixel wide, float32 [K, K], K odd, sum 1."""
    x, y = _grid(length / 2 + 1)
    along = np.clip(x * math.cos(angle) + y * math.sin(angle), -length / 2, length / 2)
    distance = np.hypot(x - along * math.cos(angle), y - along * math.sin(angle))
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def compress(image: Image, quality: int) -> Image:
    """Return uint8 RGB as it is after OpenCV's JPEG of a quality in 0 to 100 (chroma at half the side)."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def _grid(reach: float) -> tuple[FloatArray, FloatArray]:
    """Return the coordinates (x, y) of a kernel's pixels from its centre, at least 3 x 3."""
    radius = max(1, math.ceil(reach))
    line = np.arange(-radius, radius + 1, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


# Masks of free-form strokes and boxes.

Mask = NDArray[np.uint8]
WHITE = 255


@dataclass(frozen=True)
class StrokesAndBoxes:
    """Ranges of white masks: strokes and boxes are added until the drawn share of the picture is hidden."""

    # Strokes are those of free-form inpainting (Yu et al., ICCV 2019): random walks that turn back and forth.
    # GPEN's masks were not published; its paper shows such. Lengths are parts of the picture's side.
    share: Range = (0.05, 0.30)  # of the pixels; more than the upper end by no more than one shape
    boxes: float = 0.4  # part of the shapes that are boxes
    box: Range = (0.10, 0.35)  # width and height of a box
    width: Range = (12 / 256, 40 / 256)  # of a stroke
    step: Range = (0.05, 0.25)  # length of one straight piece of a stroke
    pieces: tuple[int, int] = (4, 12)  # of a stroke, both ends included

    def __post_init__(self) -> None:
        limits = {"share": (1e-4, 0.9), "box": (0.01, 1.0), "width": (0.005, 1.0), "step": (0.0, 1.0)}
        check_ranges(self, limits | {"pieces": (1, 1000)})
        if not 0 <= self.boxes <= 1:
            raise ValueError(f"boxes={self.boxes}: must lie in 0 to 1")

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return a copy, uint8 RGB [H, W, 3], that is white inside a random mask."""
        masked = image.copy()
        masked[self.mask(image.shape[0], image.shape[1], rng) > 0] = WHITE
        return masked

    def mask(self, height: int, width: int, rng: np.random.Generator) -> Mask:
        """Draw a mask, uint8 [height, width]: 255 where the picture is hidden, 0 elsewhere."""
        mask = np.zeros((height, width), dtype=np.uint8)
        pixels = rng.uniform(*self.share) * mask.size
        while cv2.countNonZero(mask) < pixels:
            if rng.random() >= self.boxes:
                self._add_stroke(mask, rng, pixels)
                continue
            sides = np.maximum(1, np.rint(rng.uniform(*self.box, size=2) * mask.shape)).astype(int)
            top, left = rng.integers(0, np.array(mask.shape) - sides + 1)
            mask[top : top + sides[0], left : left + sides[1]] = WHITE
        return mask

    def _add_stroke(self, mask: Mask, rng: np.random.Generator, pixels: float) -> None:
        """Add one stroke, piece by piece; it ends early where that number of pixels is masked."""
        height, width = mask.shape
        side = max(height, width)
        thickness = max(1, round(rng.uniform(*self.width) * side))
        bend = 2 * math.pi / 5 + rng.uniform(-1, 1, size=2) * 2 * math.pi / 15  # Yu et al., algorithm 1
        x, y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        direction = rng.uniform(0, 2 * math.pi)
        for piece in range(int(rng.integers(self.pieces[0], self.pieces[1] + 1))):
            angle = direction + (bend[0] if piece % 2 else 2 * math.pi - bend[1])
            step = rng.uniform(*self.step) * side
            start = (round(x), round(y))
            x = float(np.clip(x + step * math.cos(angle), 0, width - 1))
            y = float(np.clip(y + step * math.sin(angle), 0, height - 1))
            cv2.line(mask, start, (round(x), round(y)), WHITE, thickness)
            if cv2.countNonZero(mask) >= pixels:
                return


Degrade = Callable[[Image, np.random.Generator], Image]
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Task:
    """What makes inputs: ``degrade`` must not write into the truth, and draws from the generator alone."""

    degrade: Degrade  # (truth uint8 RGB [S, S, 3], generator) -> degraded uint8 RGB [H, W, 3]
    given: str  # what the network gets, in words for tables: the answer of doing nothing
    seeded: bool = True  # whether ``degrade`` draws anything; if not, the seed changes nothing

    @property
    def recipe(self) -> str:
        """What decides the degradation beside the seed: the function, or the object with its ranges."""
        name = getattr(self.degrade, "__qualname__", None) or repr(self.degrade)
        return f"{self.degrade.__module__}.{name}"


def _grey(truth: Image, rng: np.random.Generator) -> Image:
    """Return OpenCV's grey in three equal channels, as the vendor's card says."""
    return to_grey(truth)


_TASKS: dict[str, Task] = {
    "color": Task(_grey, "grey input", seeded=False),
    "restore": Task(PAPER, "degraded input"),
    "restore-mild": Task(RELEASED, "degraded input"),
    "inpaint": Task(StrokesAndBoxes(), "masked input"),
}
TASKS: Mapping[str, Task] = MappingProxyType(_TASKS)


def register_task(name: str, degrade: Degrade, given: str = "degraded input", seeded: bool = True) -> Task:
    """Add a task, or other ranges such as ``replace(PAPER, noise=(20.0, 40.0))``, for this process alone."""
    task = Task(degrade, given, seeded)
    if not name or _TASKS.get(name, task) != task:
        raise ValueError(f"task={name!r}: give a new task a name of its own; taken are {', '.join(_TASKS)}")
    _TASKS[name] = task
    return task


def find_task(name: str) -> Task:
    """Return a task by name; ValueError with the names that there are and the nearest one."""
    if name not in _TASKS:
        raise ValueError(choice_error("task", name, tuple(_TASKS)))
    return _TASKS[name]


def baseline_name(task: str) -> str:
    """Return the input's name as an answer in tables, such as ``grey input (do nothing)``; "" is any task."""
    return f"{find_task(task).given if task else 'input'} (do nothing)"


def known_task(name: str) -> str:
    """Check a task's name in settings, whose errors name the key themselves."""
    if name not in _TASKS:
        raise ValueError(choice_error("task", name, tuple(_TASKS)).partition(": ")[2])
    return name


TaskName = Annotated[str, AfterValidator(known_task)]  # type of a task in pydantic settings


def make_pair(
    image: Image, task: str, in_size: int, out_size: int | None = None, seed: Seed = 0
) -> tuple[Image, Image]:
    """Return (input uint8 [in_size, in_size, 3], truth uint8 [out_size, out_size, 3]) of one uint8 RGB image.

    The image's middle square is resized (bilinear), degraded at ``out_size``, and resized to ``in_size``. The
    seed (from 0) alone decides what the degradation draws, in any order and in any process.
    """
    how = find_task(task)
    truth = resize(centre_square(image), out_size or in_size)
    shown = truth.view()
    shown.setflags(write=False)
    given = how.degrade(shown, np.random.default_rng(seed))
    check_image(given, f"input of task {task!r}")
    return resize(given, in_size), truth
