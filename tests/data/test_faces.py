"""Faces: folders, the split, the embedded photograph, samples of a prior, and the FFHQ layout."""

import math
import os
import pickle
import re
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gpenlib.architecture import CheckpointError, Generator, load_generator, save_checkpoint
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.architecture.inspect import draw_latents, generate, per_layer, to_pictures
from gpenlib.data import faces as module
from gpenlib.data.faces import DataError, Faces, Landmarks, Variation, embedded_faces, open_faces, open_folder
from gpenlib.files import sha256, write_json
from gpenlib.images import ImageError, resize, write_image
from gpenlib.metrics import psnr


def folder_of(folder: Path, levels: list[int], names: list[str] | None = None) -> Faces:
    """Write one flat image per level, named by position; equal levels are equal files."""
    for position, level in enumerate(levels):
        name = names[position] if names else f"{position}.png"
        write_image(folder / name, np.full((16, 16, 3), level, np.uint8))
    return open_folder(folder)


def contents(faces: Faces) -> set[str]:
    return {faces.digest(index) for index in range(len(faces))}


def numbers(faces: Faces) -> list[int]:
    """Return the numbers in the names."""
    return [int(re.sub(r"\D", "", name)) for name in faces.names]


# Folders


@pytest.mark.parametrize(
    "ordered",
    [
        "1.png 2.png 9.png 10.png 100.png",
        "01.png 1.png 7.png 12.png a.png Face1.png face2.png face10a.png face10b.png",
        "4.png 5²5.jpg 6.png x².png",  # a superscript is a digit to Python, but no number
        "٢.png 3.png ١٠.png ①.png",  # Arabic-Indic 2 and 10 are numbers, a circled one is not
    ],
)
def test_natural_order(tmp_path, ordered):
    names = ordered.split()
    assert folder_of(tmp_path, list(range(len(names))), names[::-1]).names == names
    assert sorted(names[::-1], key=module.natural_key) == names, "in whatever order the disk lists them"


def test_every_format_is_taken_and_other_files_are_not(tmp_path):
    (tmp_path / "f.png").mkdir()
    for name in ("notes.txt", "._a.jpg", ".hidden.png"):  # macOS writes the second beside every a.jpg
        (tmp_path / name).write_text("no image")
    names = ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp"]
    assert folder_of(tmp_path, [0] * 5, names).names == names
    for suffix in ("png", ".png", "PNG"):
        assert open_folder(tmp_path, suffix).names == ["c.png"]
    folder_of(tmp_path / "whole" / "CelebA-HQ-img", [0] * 3, ["0.jpg", "10.jpg", "2.jpg"])
    folder_of(tmp_path / "whole" / "CelebAMask-HQ-mask-anno", [0])
    faces = open_folder(tmp_path / "whole")  # CelebAMask-HQ as it is unpacked
    assert faces.names == ["0.jpg", "2.jpg", "10.jpg"] and "CelebA-HQ-img" in faces.label


# The collection


def test_faces_are_taken_and_joined(tmp_path):
    inner = embedded_faces(6, 64).take((5, 3, 1))
    outer = inner.take((2, 0))
    assert outer.names == ["astronaut_0001.png", "astronaut_0005.png"]
    assert (outer.label, outer.digest(0)) == (inner.label, embedded_faces(6, 64).digest(1))
    joined = outer + folder_of(tmp_path / "more", [7, 8])
    assert joined.names == [*outer.names, "0.png", "1.png"]
    assert joined.label == f"{outer.label}, then folder more"
    assert np.array_equal(joined.read(1), inner.read(0)) and joined.read(3)[0, 0, 0] == 8
    assert len({joined.digest(index) for index in range(len(joined))}) == 4
    first, copy, other = (folder_of(tmp_path, [0, 1, 0]).take(order) for order in ([0, 1], [2, 1], [1, 0]))
    assert first.combined_digest() == copy.combined_digest() != other.combined_digest()
    with pytest.raises(FrozenInstanceError):
        joined.label = "other"
    for faces in (outer, joined):  # they can be sent to another process
        there = pickle.loads(pickle.dumps(faces))
        assert np.array_equal(there.read(1), faces.read(1)) and there.digest(1) == faces.digest(1)


def test_a_file_is_hashed_once_and_only_if_needed(tmp_path, monkeypatch):
    """A folder of thousands is not read through to draw a few."""
    hashed: list[str] = []
    monkeypatch.setattr(module, "sha256", lambda path: hashed.append(path.name) or path.name)
    faces = folder_of(tmp_path, list(range(30)))
    parts = faces.split(2, 3)
    assert len(hashed) == 5
    for part in (parts.evaluation, parts.calibration, parts.evaluation + parts.calibration, faces):
        part.combined_digest()
    assert len(hashed) == len(set(hashed)) == 30


# Pairs of files


def test_inputs_and_truths_of_one_stem_are_pairs(tmp_path):
    truths = folder_of(tmp_path / "hq", [10, 2, 9, 5], ["10.png", "2.png", "Face.PNG", "only.png"])
    inputs = folder_of(tmp_path / "lq", [110, 102, 109, 0], ["10.bmp", "2.PNG", "face.webp", "lonely.png"])
    faces = module.pair_up(inputs, truths)
    assert faces.names == ["2.png", "10.png", "Face.PNG"], "in the order of the truths"
    assert [faces.read(i)[0, 0, 0] for i in range(2)] == [2, 10]
    assert [faces.inputs.read(i)[0, 0, 0] for i in range(2)] == [102, 110]
    assert faces.left_out == "truths without an input: 1 (only.png); inputs without a truth: 1 (lonely.png)"
    with pytest.raises(DataError, match=r"dataset_size=4.*there are 3.*only\.png"):
        faces.split(4, 1)
    parts = faces.split(1, 5)
    assert parts.calibration.inputs.names == ["10.bmp", "face.webp"] and parts.evaluation.left_out
    before = faces.combined_digest()
    changed = module.pair_up(folder_of(tmp_path / "lq", [111], ["10.bmp"]), truths)
    assert changed.combined_digest() != before, "the inputs' contents count"
    for name, said in (("a.png", r"such as a\.png.*such as 2\.png"), ("A.jpg", r"A\.jpg and a\.png")):
        with pytest.raises(DataError, match=said):
            module.pair_up(folder_of(tmp_path / "other", [0], [name]), truths)


# The split


def test_evaluation_is_the_first_images_whatever_is_calibrated_on(tmp_path):
    faces = folder_of(tmp_path, list(range(20)))
    parts = faces.split(3, 4)
    assert parts.evaluation.names == ["0.png", "1.png", "2.png"] and parts.evaluation.read(2)[0, 0, 0] == 2
    assert len(parts.calibration) == 4 and not contents(parts.evaluation) & contents(parts.calibration)
    assert faces.split(3, 8, seed=3).evaluation.names == faces.split(3, 0).evaluation.names
    assert len(faces.split(3, 0).calibration) == 0 and faces.split(3, 0).note


def test_calibration_is_drawn_from_beyond_as_in_earlier_versions():
    """Which pictures a seed draws is part of every published score."""
    faces = embedded_faces(40, 16)
    drawn = {seed: numbers(faces.split(10, 6, seed=seed).calibration) for seed in (0, 7)}
    assert drawn == {0: [12, 14, 20, 21, 31, 36], 7: [14, 22, 24, 32, 34, 38]}
    assert "drawn with seed 1" in faces.split(10, 8, seed=1).note
    whole = faces.split(36, 4)
    assert numbers(whole.calibration) == [36, 37, 38, 39] and "seed" not in whole.note


def test_copies_of_evaluation_images_are_passed_over(tmp_path):
    faces = folder_of(tmp_path, [0, 1, 2, 0, 1, 5, 6])
    assert numbers(faces.split(3, 2).calibration) == [5, 6]
    parts = faces.split(3, 4)
    assert numbers(parts.calibration) == [5, 6]
    assert "dropped 2 with the content of an evaluation image (3.png, 4.png)" in parts.note
    assert "fewer than the 4 asked for" in parts.note


def test_calibration_folder_of_its_own(tmp_path):
    faces = folder_of(tmp_path / "faces", [0, 1, 2, 3, 4])
    other = folder_of(tmp_path / "calibration", [9, 1, 8, 7])
    parts = faces.split(3, 10, calibration=other)
    assert contents(parts.calibration) == {other.digest(index) for index in (0, 2, 3)}
    assert "folder calibration: 3 of 4" in parts.note and "(1.png)" in parts.note
    assert len(faces.split(3, 2, calibration=other).calibration) == 2
    copies = folder_of(tmp_path / "copies", [2, 1])
    with pytest.raises(DataError, match=r"folder copies.*all 2 images are evaluation images"):
        faces.split(3, 4, calibration=copies)
    assert len(faces.split(3, 0, calibration=copies).calibration) == 0


def test_embedded_faces_calibrate_when_nothing_else_is_left(tmp_path):
    for levels, size, note in (([0, 1, 2], 3, "no image is left"), ([0, 1, 0, 1], 2, "dropped 2")):
        parts = folder_of(tmp_path / str(size), levels).split(size, 5)
        assert numbers(parts.calibration) == [0, 1, 2, 3, 4]
        assert "from the embedded images" in parts.note and note in parts.note
    assert numbers(embedded_faces(20, 64).split(12, 8).calibration) == list(range(12, 20))
    exhausted = embedded_faces(12, 64).split(12, 8)
    assert numbers(exhausted.calibration) == list(range(10_000, 10_008)), "far from all that is scored"
    assert exhausted.calibration.read(0).shape == (64, 64, 3)


# The embedded photograph

SIZE = 128
SOME = range(24)


@pytest.fixture(scope="module")
def embedded() -> Faces:
    return embedded_faces(64, SIZE)


def test_an_image_depends_on_its_number_alone(embedded):
    image = embedded.read(7)
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert embedded.names[:2] == ["astronaut_0000.png", "astronaut_0001.png"] and len(embedded) == 64
    assert "one public-domain photograph" in embedded.label
    fewer = embedded_faces(8, SIZE)
    assert np.array_equal(image, fewer.read(7)) and embedded.digest(7) == fewer.digest(7)
    assert len(contents(embedded)) == 64
    assert len({embedded.read(index).tobytes() for index in SOME}) == len(SOME)
    large = embedded_faces(9, 2 * SIZE)
    assert embedded.digest(8) != large.digest(8) and psnr(resize(large.read(8), SIZE), embedded.read(8)) > 30
    for wrong in ({"count": 0}, {"count": 1, "size": 8}):
        with pytest.raises(DataError, match="embedded images"):
            embedded_faces(**wrong)


def test_first_image_is_the_photograph_and_no_caller_can_change_it(embedded):
    first = embedded.read(0)
    first[:] = 0
    assert embedded.read(0).mean() > 50
    mirrored, pale = (module.apply(Variation(mirror=True, saturation=part), SIZE) for part in (1.0, 0.0))
    assert psnr(np.ascontiguousarray(mirrored[:, ::-1]), embedded.read(0)) > 45
    assert np.ptp(pale, axis=2).max() == 0, "without saturation its grey is left"
    assert np.abs(pale[:, :, 0].astype(int) - cv2.cvtColor(mirrored, cv2.COLOR_RGB2GRAY)).max() <= 1


def test_digest_follows_the_variation(monkeypatch, embedded):
    """A stage built from other variations must not pass for the present one."""
    before = [embedded.digest(index) for index in (0, 3)]
    monkeypatch.setattr(module, "variation", lambda index: Variation(turn=0.1 * index))
    changed = embedded_faces(64, SIZE)
    assert changed.digest(0) == before[0] and changed.digest(3) != before[1]


# Samples of a prior, and what a data_dir may be


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(2)
    return save_checkpoint(Generator(TINY), tmp_path_factory.mktemp("prior") / "mine.safetensors")


@pytest.fixture(scope="module")
def samples(file) -> Faces:
    return open_faces(f"prior:{file}", 3)


def test_samples_depend_on_their_number_alone(file, samples):
    more = open_faces(f"prior:{file}", 5)
    for index in range(3):
        face = samples.read(index)
        assert (face.dtype, face.shape) == (np.uint8, (64, 64, 3))
        assert np.array_equal(face, more.read(index))
        assert (samples.names[index], samples.digest(index)) == (more.names[index], more.digest(index))
    assert len(contents(more)) == len(set(more.names)) == 5 and len(samples) == 3
    assert not np.array_equal(samples.read(0), samples.read(1))
    assert "mine" in samples.label and "in-distribution" in samples.label


def test_latents_are_truncated_and_noise_is_reduced(file, samples):
    prior, whole = load_generator(file), module.prior_faces(str(file), 1, truncation=1.0, noise=1.0)
    for faces, truncation, noise in ((samples, module.TRUNCATION, module.NOISE), (whole, 1.0, 1.0)):
        w = draw_latents(prior, 1, 0, truncation)
        expected = to_pictures(generate(prior, per_layer(prior, w), 0, noise))[0]
        assert np.abs(faces.read(0).astype(int) - expected).max() <= 1
    assert not np.array_equal(samples.read(0), whole.read(0))
    assert samples.digest(0) != whole.digest(0), "another truncation, other pixels"
    for wrong in ({"count": 0}, {"truncation": 0.0}, {"truncation": 1.5}, {"noise": -0.1}):
        with pytest.raises(DataError, match="{}={}".format(*next(iter(wrong.items())))):
            module.prior_faces(**{"name": str(file), "count": 1} | wrong)


def test_chosen_samples_are_taken_where_they_were_chosen(file, samples, tmp_path):
    mine = tmp_path / "mine.safetensors"
    shutil.copy(file, mine)
    chosen = {"truncation": 0.9, "noise": 0.1, "numbers": [2, 5]}
    beside = mine.with_suffix(".samples.json")
    write_json(beside, {"weights_sha256": sha256(mine), **chosen})
    picked, all_of_them = open_faces(f"prior:{mine}", 4), module.prior_faces(str(mine), 8, 0.9, 0.1)
    for index, number in enumerate((2, 5, 6, 7)):  # behind the last one there is no choice
        assert np.array_equal(picked.read(index), all_of_them.read(number))
        assert picked.digest(index) == all_of_them.digest(number)
    assert "truncation 0.9, noise 0.1, chosen by" in picked.label and "chosen" not in all_of_them.label
    for wrong, told in (
        ({"weights_sha256": "0", **chosen}, "other weights"),
        ({"weights_sha256": sha256(mine), **chosen, "numbers": [-1]}, "not samples"),
        ({"weights_sha256": sha256(mine), **chosen, "numbers": [2**64]}, "not samples"),
        ({"weights_sha256": sha256(mine), **chosen, "numbers": []}, "not samples"),
        ([1, 2], "not samples"),
    ):
        write_json(beside, wrong)
        with pytest.raises(DataError, match=rf"mine\.samples\.json: .*{told}"):
            open_faces(f"prior:{mine}", 1)
    beside.write_bytes(b"\xff{")
    with pytest.raises(DataError, match="not samples"):
        open_faces(f"prior:{mine}", 1)


def test_what_a_data_dir_may_be(tmp_path, samples):
    write_image(tmp_path / "a.png", samples.read(0))
    assert open_faces(str(tmp_path), 1).names == ["a.png"]
    assert open_faces("embedded", 3, 64).digest(2) == embedded_faces(3, 64).digest(2)
    whole = save_checkpoint(random_network(TINY), tmp_path / "gpen.safetensors")
    assert open_faces(f"prior:{whole}", 1).read(0).shape == (64, 64, 3), "the prior inside a whole network"
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for data_dir, refused in (
        (f"prior:{tmp_path}/nothing.safetensors", DataError), (str(tmp_path / "nowhere"), DataError),
        (f"prior:{tmp_path}/bad.safetensors", CheckpointError),
    ):  # fmt: skip
        with pytest.raises(refused, match=Path(data_dir).name):
            open_faces(data_dir, 1)
    faces, shipped = open_faces("", 4, 64), open_faces("prior", 2)  # the photographs come first
    assert faces.names == ["astronaut_0000.png", "grace_hopper.png", "prior_0000.png", "prior_0001.png"]
    assert "demo-prior" in faces.label and faces.digest(3) == shipped.digest(1)
    assert np.array_equal(faces.read(0), embedded_faces(1, 64).read(0))
    hopper, large = faces.read(1), open_faces("", 2, 128)
    assert psnr(resize(large.read(1), 64), hopper) > 25 and large.digest(1) != faces.digest(1)
    assert hopper[10:22, 24:40].mean() + 60 < hopper[36:44, 28:36].mean(), "a black cap over a light nose"
    assert open_faces(None, 1, 64).names == ["astronaut_0000.png"]
    made, brought = ("", None, "prior", "prior:mine.safetensors", "embedded"), ("faces", "priors", ":prior")
    assert all(map(module.made_here, made)) and not any(map(module.made_here, brought)), "no test set"


# The FFHQ layout

# A frontal face as an aligned data set has it on average at 256 px (pixel centres).
TEMPLATE = np.array([(96.0, 120.0), (159.0, 120.0), (102.0, 188.0), (153.0, 188.0)])


def posed(angle: float, scale: float, shift: tuple[float, float]) -> Landmarks:
    """Return the template turned (degrees), scaled and moved."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = scale * np.array([[cosine, -sine], [sine, cosine]])
    return Landmarks(*[tuple(turn @ point + shift) for point in TEMPLATE])


def mapped(face: Landmarks, size: int) -> np.ndarray:
    matrix = module.ffhq_matrix(face, size)
    points = np.array([face.left_eye, face.right_eye, face.left_mouth, face.right_mouth])
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("angle", [-170.0, -30.0, 0.0, 12.5, 90.0])
@pytest.mark.parametrize(("scale", "size"), [(0.4, 512), (1.0, 256), (3.7, 64)])
def test_landmarks_land_where_ffhq_has_them(angle, scale, size):
    landed = (mapped(posed(angle, scale, (310.0, -45.0)), size) + 0.5) * 256 / size - 0.5
    # Eyes and mouth corners of the template differ from an exact FFHQ face by its rounding to whole pixels.
    assert np.abs(landed - TEMPLATE).max() < 2.5
    assert np.abs(landed - mapped(posed(0, 1, (0, 0)), 256)).max() < 1e-9 * 256


def test_hand_computed_squares():
    face = Landmarks((10, 20), (30, 20), (14, 40), (26, 40))  # side 80, centre (20, 22)
    assert np.allclose(module.ffhq_matrix(face, 80), [[1, 0, 39.5 - 20], [0, 1, 39.5 - 22]])
    wide, long = (Landmarks((0, 0), (w, 0), (w / 5, h), (w - w / 5, h)) for w, h in ((100, 50), (50, 100)))
    assert (module.crop_side(wide), module.crop_side(long)) == pytest.approx((400, 360))
    picture = np.random.default_rng(1).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    face = Landmarks((40.5, 47.5), (60.5, 47.5), (44.5, 67.5), (56.5, 67.5))  # side 80, centre (50.5, 49.5)
    assert np.array_equal(module.align(picture, face, 80), picture[10:90, 11:91]), "whole pixels are copied"


def test_reduction_does_not_alias():
    board = (np.indices((1024, 1024)).sum(axis=0) % 2 * 255).astype(np.uint8)  # one-pixel chequerboard
    crop = module.align(np.repeat(board[:, :, None], 3, axis=2), posed(7.0, 3.3, (80.0, 60.0)), 128)
    assert abs(float(crop.mean()) - 127.5) < 2
    assert float(crop.std()) < 6  # plain sampling gives moire with a deviation of about 60


def test_points_that_are_no_face():
    eyes, mouth = ((10, 20), (30, 20)), ((14, 40), (26, 40))
    wrong = [(eyes[0], eyes[0], *mouth), (*eyes[::-1], *mouth[::-1]), (*eyes, (15, 20), (25, 20))]
    for points in (*wrong, (eyes[0], (30, math.nan), *mouth)):  # one eye, exchanged, all on a line, no number
        with pytest.raises(module.AlignError):
            Landmarks(*points)
    with pytest.raises(module.AlignError, match="size=0"):
        module.ffhq_matrix(posed(0, 1, (0, 0)), 0)


def test_a_folder_names_what_is_no_file_and_a_face_has_a_size(tmp_path):
    """Nothing is left out in silence: a link into nothing is one face less, and other pairs."""
    for name, shape in {"0": (16, 64), "1": (16, 16), "2": (15, 30), "3": (65, 16)}.items():
        write_image(tmp_path / f"{name}.png", np.zeros((*shape, 3), np.uint8))
    (tmp_path / "4.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "5.png")
    (tmp_path / "6.png").mkdir()
    faces = open_folder(tmp_path)
    assert faces.names == [f"{number}.png" for number in range(6)]
    assert [faces.read(number).shape[:2] for number in range(2)] == [(16, 64), (16, 16)]
    for number, words in enumerate(("30 x 15 pixels", "16 x 65 pixels", "gone.png, which", "a pipe"), 2):
        with pytest.raises((DataError, ImageError), match=rf"{number}\.png.*{words}"):
            faces.read(number)
    for number in (4, 5):
        with pytest.raises(ImageError, match=rf"{number}\.png"):
            faces.digest(number)
    with pytest.raises(ImageError, match=r"1\.png.*at most 0\.0002 are read"):
        open_folder(tmp_path, most_megapixels=0.0002).read(1)
