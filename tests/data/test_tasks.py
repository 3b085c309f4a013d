"""Tasks: the vendor's preparation of grey, what the seed decides, and tasks that are registered."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from gpenlib import run as stages
from gpenlib.data import tasks
from gpenlib.data.faces import embedded_faces
from gpenlib.data.tasks import PAPER, TASKS, baseline_name, make_pair, register_task
from gpenlib.images import ImageError
from gpenlib.settings import BuildConfig, SettingsError


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def test_input_is_the_grey_of_the_resized_truth(picture):
    given, truth = make_pair(picture, "color", 64)
    bgr = cv2.resize(picture[:, :, ::-1], (64, 64))  # as the vendor does it, in BGR
    assert np.array_equal(truth, bgr[:, :, ::-1])
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    for channel in range(3):
        assert np.array_equal(given[:, :, channel], grey)


def test_super_resolution_sizes(picture):
    given, truth = make_pair(picture, "color", 32, 128)
    assert given.shape == (32, 32, 3)
    assert truth.shape == (128, 128, 3)
    assert given.dtype == truth.dtype == np.uint8


def test_picture_is_left_alone(picture):
    before = picture.copy()
    make_pair(picture, "color", 64)
    assert np.array_equal(picture, before)


def test_known_grey_levels():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8).repeat(3, axis=0)
    given, _ = make_pair(colours, "color", 3)
    assert given[0, :, 0].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255


def test_unknown_task(picture):
    with pytest.raises(ValueError, match=r"task='colour'.*color.*did you mean 'color'"):
        make_pair(picture, "colour", 64)
    assert "color" in TASKS


SEEDED = ("restore", "restore-mild", "inpaint")


@pytest.fixture
def face() -> np.ndarray:
    return embedded_faces(1, 96).read(0)


@pytest.fixture
def registry(monkeypatch):
    """The registry, put back as it was."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))


def test_the_tasks_that_are_there():
    assert tuple(TASKS) == ("color", *SEEDED)
    assert [name for name, task in TASKS.items() if task.seeded] == list(SEEDED)


@pytest.mark.parametrize("task", SEEDED)
def test_equal_seeds_give_equal_inputs_and_others_do_not(face, task):
    inputs = {seed: make_pair(face, task, 64, seed=seed)[0] for seed in ((0, 0), (0, 1), (1, 0), 7)}
    for seed, given in inputs.items():
        again, truth = make_pair(face.copy(), task, 64, seed=seed)
        assert np.array_equal(again, given)
        assert np.array_equal(truth, make_pair(face, "color", 64)[1]), "the truth is the same for every task"
        assert not np.array_equal(given, truth)
    assert len({given.tobytes() for given in inputs.values()}) == len(inputs)


def test_another_process_draws_the_same(face):
    code = (
        "import hashlib; from gpenlib.data import embedded_faces, make_pair\n"
        "face = embedded_faces(1, 96).read(0)\n"
        f"for task in {SEEDED}:\n"
        "    print(hashlib.sha256(make_pair(face, task, 64, seed=(3, 1))[0].tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        hashlib.sha256(make_pair(face, task, 64, seed=(3, 1))[0].tobytes()).hexdigest() for task in SEEDED
    ]
    assert there.stdout.split() == here


def test_colour_ignores_the_seed(face):
    given = [make_pair(face, "color", 64, seed=seed)[0] for seed in (0, 1)]
    assert np.array_equal(*given)


@pytest.mark.parametrize("task", SEEDED)
def test_sizes_of_super_resolution(face, task):
    given, truth = make_pair(face, task, 32, 96)
    assert given.shape == (32, 32, 3) and truth.shape == (96, 96, 3)


def test_a_registered_task_serves_like_the_others(face, registry):
    def upside_down(truth, rng):
        return np.ascontiguousarray(truth[::-1])

    register_task("flip", upside_down, "turned input", seeded=False)
    given, truth = make_pair(face, "flip", 96)
    assert np.array_equal(given, truth[::-1])
    assert baseline_name("flip") == "turned input (do nothing)"
    assert stages.DataSettings.parse({"task": "flip"}).task == "flip"
    register_task("flip", upside_down, "turned input", seeded=False)  # a cell run twice
    with pytest.raises(ValueError, match=r"task='flip'.*taken are color"):
        register_task("flip", upside_down, "another label")
    with pytest.raises(ValueError, match="did you mean 'flip'"):
        make_pair(face, "flop", 64)


def test_a_task_with_other_ranges(face, registry):
    task = register_task("restore-noisy", replace(PAPER, noise=(60.0, 80.0)), "noisy input")
    assert task.recipe != TASKS["restore"].recipe and "noise=(60.0, 80.0)" in task.recipe
    noisy, plain = (make_pair(face, name, 64, seed=1)[0] for name in ("restore-noisy", "restore"))
    assert not np.array_equal(noisy, plain)


def test_a_task_may_not_write_into_the_truth_nor_return_anything_else(face, registry):
    def painting(truth, rng):
        truth[:] = 0
        return truth

    register_task("paint", painting)
    before = face.copy()
    with pytest.raises(ValueError, match="read-only"):
        make_pair(face, "paint", 96)
    assert np.array_equal(face, before)
    register_task("labels", lambda truth, rng: truth[:, :, 0])
    with pytest.raises(ImageError, match=r"input of task 'labels': uint8 \(96, 96\)"):
        make_pair(face, "labels", 96)


@pytest.mark.parametrize("name", ["recolor", "restor", "inpant"])
def test_settings_refuse_unknown_tasks_with_the_nearest(name):
    nearest = {"recolor": "color", "restor": "restore", "inpant": "inpaint"}[name]
    with pytest.raises(SettingsError, match=rf"task='{name}': allowed are color.*did you mean '{nearest}'"):
        stages.DataSettings.parse({"task": name})
    with pytest.raises(SettingsError, match=rf"dataset.task='{name}'.*'{nearest}'"):
        BuildConfig.parse({"dataset": {"task": name}})


def test_names_of_the_baselines():
    names = {task: baseline_name(task) for task in ("color", "restore", "inpaint")}
    assert names == {
        "color": "grey input (do nothing)",
        "restore": "degraded input (do nothing)",
        "inpaint": "masked input (do nothing)",
    }
