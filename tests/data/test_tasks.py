"""Tasks: the vendor's grey, blind degradation, masks, what the seed decides, registered tasks."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from gpenlib.data import tasks
from gpenlib.data.faces import embedded_faces
from gpenlib.data.tasks import PAPER, RELEASED, TASKS, BlindDegradation, StrokesAndBoxes, make_pair
from gpenlib.images import ImageError, resize
from gpenlib.metrics import psnr
from gpenlib.settings import RunSettings

SEEDED = ("restore", "restore-mild", "inpaint")
FACE = embedded_faces(1, 128).read(0)
FACE.setflags(write=False)
PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
PICTURE.setflags(write=False)  # nothing may write into what it is given


def draw(seed):
    return np.random.default_rng(seed)


# Pairs


def test_input_is_the_grey_of_the_resized_truth():
    shown, truth = make_pair(PICTURE, "color", 64)
    bgr = cv2.resize(PICTURE[:, 15:105, ::-1], (64, 64))  # as the vendor does it, in BGR; the middle square
    assert np.array_equal(truth, bgr[:, :, ::-1])
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    assert np.array_equal(shown, np.repeat(grey[:, :, None], 3, axis=2))
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8).repeat(3, axis=0)
    assert make_pair(colours, "color", 3)[0][0, :, 0].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255
    assert np.array_equal(make_pair(FACE, "color", 64, seed=0)[0], make_pair(FACE, "color", 64, seed=1)[0])


@pytest.mark.parametrize("task", SEEDED)
def test_equal_seeds_give_equal_inputs_and_others_do_not(task):
    inputs = {seed: make_pair(FACE, task, 64, seed=seed)[0] for seed in ((0, 0), (0, 1), (1, 0), 7)}
    for seed, shown in inputs.items():
        again, truth = make_pair(FACE.copy(), task, 64, seed=seed)
        assert np.array_equal(again, shown)
        assert np.array_equal(truth, make_pair(FACE, "color", 64)[1]), "the truth is the same for every task"
        assert not np.array_equal(shown, truth)
    assert len({shown.tobytes() for shown in inputs.values()}) == len(inputs)


# Tasks that are registered


@pytest.fixture
def registry(monkeypatch):
    """The registry, put back as it was."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))


def test_a_registered_task_serves_like_the_others(registry):
    def upside_down(truth, rng):
        return np.ascontiguousarray(truth[::-1])

    tasks.register_task("flip", upside_down, "turned input", seeded=False)
    shown, truth = make_pair(FACE, "flip", 96)
    assert np.array_equal(shown, truth[::-1]) and tasks.baseline_name("flip") == "turned input (do nothing)"
    assert RunSettings.parse({"task": "flip"}).task == "flip"
    tasks.register_task("flip", upside_down, "turned input", seeded=False)  # a cell run twice
    with pytest.raises(ValueError, match="task='flip'"):
        tasks.register_task("flip", upside_down, "another label")
    noisy = tasks.register_task("restore-noisy", replace(PAPER, noise=(60.0, 80.0)), "noisy input")
    assert noisy.recipe != TASKS["restore"].recipe and "noise=(60.0, 80.0)" in noisy.recipe


def test_a_task_may_not_write_into_the_truth_nor_return_anything_else(registry):
    def painting(truth, rng):
        truth[:] = 0
        return truth

    tasks.register_task("paint", painting)
    with pytest.raises(ValueError, match="read-only"):
        make_pair(FACE.copy(), "paint", 128)
    tasks.register_task("labels", lambda truth, rng: truth[:, :, 0])
    with pytest.raises(ImageError, match=r"input of task 'labels': uint8 \(96, 96\)"):
        make_pair(FACE, "labels", 96)


# The blind degradation

# Nothing but the step under test: no blur to speak of, full size, no noise, the best JPEG
GENTLE = BlindDegradation(
    side=128, blur=(0.01, 0.01), motion=(0.0, 0.0), factor=(1.0, 1.0), noise=(0.0, 0.0), quality=(100, 100),
    kernels=("isotropic",),
)  # fmt: skip


def deviations(kernel):
    """Return the standard deviations of a kernel along its principal axes, the larger one last."""
    radius = kernel.shape[0] // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    moments = [(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))]
    return np.sqrt(np.linalg.eigvalsh([[moments[0], moments[1]], [moments[1], moments[2]]]))


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.0])
def test_kernels_have_the_shape_asked_for(angle):
    kernel = tasks.gaussian_kernel(4.0, 1.5, angle)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert deviations(kernel) == pytest.approx([1.5, 4.0], rel=0.05)
    covariance = (kernel * np.outer(*[np.arange(-12, 13)] * 2)).sum()
    assert np.sign(covariance.round(3)) == np.sign(round(math.sin(2 * angle), 3))
    thin, long = deviations(tasks.motion_kernel(20.0, angle))
    assert long == pytest.approx(20 / math.sqrt(12), rel=0.1)  # of an even distribution over the line
    assert thin < 0.6
    for still in (tasks.motion_kernel(0.0, angle), tasks.gaussian_kernel(0.02, 0.02, angle)):
        assert still.shape == (3, 3) and still[1, 1] == pytest.approx(1)


@pytest.mark.parametrize("ranges", [PAPER, RELEASED])
@pytest.mark.parametrize("size", [128, 512])
def test_kernels_stay_in_their_range_and_scale_with_the_picture(ranges, size):
    scale = size / ranges.side
    longest = max(scale * ranges.blur[1], scale * ranges.motion[1] / math.sqrt(12))
    widths = []
    for seed in range(60):
        kernel = ranges.kernel(draw(seed), scale)
        assert kernel.sum() == pytest.approx(1, abs=1e-5) and kernel.min() >= 0
        widths.append(deviations(kernel)[1])
    assert max(widths) <= 1.05 * longest + 0.5
    assert max(widths) >= 0.7 * longest, "the upper part of the range is reached"


def test_noise_has_its_deviation():
    flat = np.full((128, 128, 3), 128, np.uint8)
    loud = replace(GENTLE, noise=(20.0, 20.0))(flat, draw(0)).astype(float)
    luma = loud @ [0.299, 0.587, 0.114]  # JPEG halves the chroma's side, and with it its noise
    assert luma.std() == pytest.approx(20 * np.linalg.norm([0.299, 0.587, 0.114]), rel=0.05)
    assert luma.mean() == pytest.approx(128, abs=0.5)


def test_jpeg_is_applied_at_the_drawn_quality():
    for quality in (5, 50):
        degraded = replace(GENTLE, quality=(quality, quality))(FACE, draw(0))
        _, data = cv2.imencode(".jpg", FACE[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert np.array_equal(degraded, cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])
    worst, middling, best = (psnr(tasks.compress(FACE, quality), FACE) for quality in (5, 50, 95))
    assert worst < middling < best


def test_downsampling_leaves_the_pixels_that_it_says():
    """What remains is the picture at side / factor, whatever the size of the picture that is degraded."""
    for size in (64, 128):
        picture = resize(FACE, size)
        degraded = replace(GENTLE, factor=(8.0, 8.0))(picture, draw(0))  # 16 pixels are left
        small = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)
        assert psnr(degraded, cv2.resize(tasks.compress(small, 100), (size, size))) > 60
    assert psnr(replace(GENTLE, factor=(0.2, 1.0))(FACE, draw(0)), FACE) > 35, "below 1 it does not enlarge"
    tiny = replace(PAPER, factor=(1000.0, 1000.0))(FACE, draw(0))
    assert tiny.shape == FACE.shape and tasks.LEAST_SIDE >= 2 and tiny.std() > 0, "a few pixels are kept"


@pytest.mark.parametrize("ranges", [PAPER, RELEASED])
def test_how_much_is_lost(ranges):
    """Measured, 200 seeds at 128 px: PAPER 12.3 to 25.6 dB (median 15.7), RELEASED 21.2 to 38.6 (25.5)."""
    low, median, high = {PAPER: (11, 15.7, 27), RELEASED: (20, 25.5, 40)}[ranges]
    scores = []
    for seed in range(40):
        degraded = ranges(FACE, draw(seed))
        assert degraded.dtype == np.uint8 and degraded.shape == FACE.shape
        assert (degraded != FACE).any(axis=2).mean() > 0.5, "it never returns the picture itself"
        scores.append(psnr(degraded, FACE))
    assert low < min(scores) and max(scores) < high
    assert np.median(scores) == pytest.approx(median, abs=1.5)


# Masks

MASKS = StrokesAndBoxes()
SIDE = 128


def masks(ranges, count=60, side=SIDE):
    return [ranges.mask(side, side, draw(seed)) for seed in range(count)]


@pytest.mark.parametrize("side", [64, 256])
def test_share_of_masked_pixels_is_bounded(side):
    shares = [np.mean(mask > 0) for mask in masks(MASKS, side=side)]
    assert min(shares) >= MASKS.share[0]
    # A box covers at most 0.35 x 0.35; one piece of a stroke less than that
    assert max(shares) <= MASKS.share[1] + MASKS.box[1] ** 2 + 0.01
    assert min(shares) < 0.12 and max(shares) > 0.28, "the whole range is used"
    thin = replace(MASKS, share=(0.2, 0.2), boxes=0.0, width=(0.02, 0.02))
    assert [np.mean(mask > 0) for mask in masks(thin, 10)] == pytest.approx([0.2] * 10, abs=0.01)


def test_boxes_are_rectangles_within_their_sizes_and_strokes_are_none():
    for mask in masks(replace(MASKS, share=(1e-4, 1e-4), boxes=1.0), 20):
        _, _, width, height = cv2.boundingRect(mask)
        assert np.count_nonzero(mask) == width * height
        assert all(0.09 * SIDE <= length <= 0.36 * SIDE for length in (width, height))
    for mask in masks(replace(MASKS, share=(0.1, 0.1), boxes=0.0), 20):
        _, _, width, height = cv2.boundingRect(mask)
        assert np.count_nonzero(mask) < 0.95 * width * height


def test_masked_pixels_are_white_and_the_others_untouched():
    for seed in range(5):
        masked, hidden = MASKS(FACE, draw(seed)), MASKS.mask(SIDE, SIDE, draw(seed)) > 0
        assert (masked[hidden] == 255).all() and np.array_equal(masked[~hidden], FACE[~hidden])
    often = np.mean([mask > 0 for mask in masks(MASKS, 150, 64)], axis=0)
    assert often.reshape(4, 16, 4, 16).mean(axis=(1, 3)).min() > 0.04, "every part is masked at times"
